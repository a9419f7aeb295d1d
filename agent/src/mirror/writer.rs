//! Writes what was planned into the own cluster: server-side apply, at a limited rate, and tells what came of it.

pub(super) mod refused;

use super::{
    names,
    plan::{Kind, Step},
    raw::RawObject,
    read,
    source::{McsVersions, Origin},
    watch::{Watched, removal, version},
    world::Change,
};
use crate::model::ObjectName;
use kube::{
    Api, Client,
    api::{DeleteParams, Patch, PatchParams, Preconditions},
    core::Status,
};
use refused::{Denial, Refused, Sourced};
use serde_json::json;
use std::{sync::Arc, time::Duration};
use tokio::{
    sync::Mutex,
    time::{Instant, sleep_until, timeout},
};

/// Writes a second in the long run, and at once after a pause.
const RATE: u32 = 400;
const BURST: u32 = 400;
/// How long one write may take: an API server that accepts connections and never answers must not hold writers for good.
const PATIENCE: Duration = Duration::from_secs(20);

/// Answers of an API server about one object: it can't be taken as it is, or somebody's policy or quota is against it.
const FINAL: [u16; 4] = [400, 403, 413, 422];
/// What an API server says, with code 500, when its store doesn't take an object of that size.
const TOO_LARGE: &str = "request is too large";

/// Writes into one cluster.
#[derive(Clone)]
pub(super) struct Writer {
    client: Client,
    pace: Arc<Mutex<Pace>>,
}

/// When the next write may begin: a write takes its part of a second from a store that holds a burst.
struct Pace {
    next: Instant,
}

impl Pace {
    fn take(&mut self, now: Instant) -> Instant {
        let full = now.checked_sub(Duration::from_secs(1) * BURST / RATE).unwrap_or(now);
        self.next = self.next.max(full) + Duration::from_secs(1) / RATE;
        self.next
    }
}

impl Writer {
    pub(super) fn new(client: Client) -> Self {
        Self { client, pace: Arc::new(Mutex::new(Pace { next: Instant::now() })) }
    }

    /// Does `steps` in order and stops at the first failure. What the API server made of each is told, as far as it got.
    ///
    /// An object that it finds invalid keeps nothing else from being written, and from being deleted only what it was to
    /// come in the place of. What was found invalid just before (`known`) isn't sent again.
    pub(super) async fn perform(&self, steps: Vec<Sourced>, known: &[Denial], versions: McsVersions) -> Performed {
        let mut performed = Performed::default();
        let mut refused = Refused::none_of(&steps);
        for (source, step) in steps {
            let sourced = (source, step);
            if refused.has_wait(&sourced) {
                continue;
            }
            let (source, step) = sourced;
            if let Some(denial) = refused::known(known, &step) {
                refused.add(source);
                performed.refused.push(denial.clone());
                continue;
            }
            let done = &mut performed.done;
            let at = self.pace.lock().await.take(Instant::now());
            sleep_until(at).await;
            let (said, namespace) = (describe(&step), step.name().namespace.clone());
            match timeout(PATIENCE, self.one(step.clone(), versions)).await {
                Ok(Ok(one)) => done.extend(one),
                Ok(Err(kube::Error::Api(status))) if is_going(&status) => {
                    // The watch will say so; what is still to be written would be refused as well.
                    let change = Change::Namespace(namespace.clone(), false);
                    let name = ObjectName { namespace: String::new(), name: namespace };
                    done.push(Done { watched: Watched::Namespaces, name, version: None, change });
                    return performed;
                }
                Ok(Err(kube::Error::Api(status))) => {
                    let failure = format!("{said}: {} ({})", status.message, status.code);
                    if !is_final(&status) {
                        return Performed { failure: Some(failure), ..performed };
                    }
                    refused.add(source);
                    performed.refused.push(Denial { step, reason: failure });
                }
                Ok(Err(error)) => return Performed { failure: Some(format!("{said}: {error}")), ..performed },
                Err(_) => {
                    let failure = Some(format!("{said}: no answer within {PATIENCE:?}"));
                    return Performed { failure, ..performed };
                }
            }
        }
        performed
    }

    async fn one(&self, step: Step, versions: McsVersions) -> Result<Option<Done>, kube::Error> {
        let params = PatchParams::apply(names::MIRROR).force();
        let api = |kind: Kind, name: &ObjectName| -> Api<RawObject> {
            let resource = watched(kind).resource(versions);
            Api::namespaced_with(self.client.clone(), &name.namespace, &resource)
        };
        match step {
            Step::Put(kind, name, body) => {
                let written = api(kind, &name).patch(&name.name, &params, &Patch::Apply(&body)).await?;
                Ok(now(kind, name, &written))
            }
            Step::SetPorts(name, ports) => {
                let (kind, patch) = (Kind::Service, Patch::Merge(json!({"spec": {"ports": ports}})));
                let params = PatchParams { field_manager: Some(names::MIRROR.to_owned()), ..PatchParams::default() };
                let written = api(kind, &name).patch(&name.name, &params, &patch).await?;
                Ok(now(kind, name, &written))
            }
            Step::PutStatus(kind, name, status) => {
                let resource = watched(kind).resource(versions);
                let body = json!({
                    "apiVersion": resource.api_version, "kind": resource.kind,
                    "metadata": {"name": name.name, "namespace": name.namespace}, "status": status,
                });
                let written = api(kind, &name).patch_status(&name.name, &params, &Patch::Apply(&body)).await?;
                Ok(now(kind, name, &written))
            }
            Step::Delete(kind, name, uid) => {
                let mut params = DeleteParams::background();
                params.preconditions = uid.map(|uid| Preconditions { uid: Some(uid), resource_version: None });
                match api(kind, &name).delete(&name.name, &params).await {
                    Ok(_) => {}
                    // Gone already.
                    Err(kube::Error::Api(status)) if status.code == 404 => {}
                    Err(error) => return Err(error),
                }
                let change = removal(watched(kind), &Origin::Own, name.clone());
                Ok(change.map(|change| Done { watched: watched(kind), name, version: None, change }))
            }
        }
    }
}

/// What came of steps.
#[derive(Default)]
pub(super) struct Performed {
    /// What was written, in order.
    pub(super) done: Vec<Done>,
    /// What kept the rest from being tried.
    pub(super) failure: Option<String>,
    /// Steps that the API server refused.
    pub(super) refused: Vec<Denial>,
}

/// What the API server holds after a write; the watch will say so too, later.
pub(super) struct Done {
    pub(super) watched: Watched,
    pub(super) name: ObjectName,
    /// The object's version, if it is a number; none for one that is gone.
    pub(super) version: Option<u64>,
    pub(super) change: Change,
}

/// Whether a write was refused because its namespace is about to go.
fn is_going(status: &Status) -> bool {
    let causes = status.details.iter().flat_map(|details| &details.causes);
    causes.into_iter().any(|cause| cause.reason == "NamespaceTerminating")
}

/// Whether an object is refused for what it is, or by somebody's policy or quota: others may be taken nevertheless.
fn is_final(status: &Status) -> bool {
    FINAL.contains(&status.code) || status.message.contains(TOO_LARGE)
}

fn describe(step: &Step) -> String {
    match step {
        Step::Put(kind, name, _) => format!("apply {kind:?} {name}"),
        Step::SetPorts(name, _) => format!("set the ports of Service {name}"),
        Step::PutStatus(kind, name, _) => format!("apply the status of {kind:?} {name}"),
        Step::Delete(kind, name, _) => format!("delete {kind:?} {name}"),
    }
}

/// The object that a step writes.
pub(super) fn object(step: &Step) -> (Watched, ObjectName) {
    let kind = match step {
        Step::Put(kind, ..) | Step::PutStatus(kind, ..) | Step::Delete(kind, ..) => *kind,
        Step::SetPorts(..) => Kind::Service,
    };
    (watched(kind), step.name().clone())
}

fn watched(kind: Kind) -> Watched {
    match kind {
        Kind::Service => Watched::Services,
        Kind::Slice => Watched::Slices,
        Kind::Import => Watched::Imports,
        Kind::Export => Watched::Exports,
    }
}

fn now(kind: Kind, name: ObjectName, object: &RawObject) -> Option<Done> {
    let version = version(&object.metadata);
    let change = match kind {
        Kind::Service => Change::Service(Origin::Own, name.clone(), Some(Box::new(read::service(object.read().ok()?)))),
        Kind::Slice => Change::Slice(Origin::Own, name.clone(), read::slice(object.read().ok()?)),
        Kind::Import => Change::Import(name.clone(), Some(read::import(object.read().ok()?))),
        Kind::Export => Change::Export(Origin::Own, name.clone(), Some(read::export(object.read().ok()?, true))),
    };
    Some(Done { watched: watched(kind), name, version, change })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_said_of_one_object_lets_the_rest_go_on() {
        for (code, message, expected) in [
            (400, "the object's encoding is invalid", true),
            (403, "exceeded quota: services", true),
            (413, "Request entity too large", true),
            (422, "Service \"api\" is invalid", true),
            (500, "etcdserver: request is too large", true),
            (401, "Unauthorized", false),
            (409, "the object has been modified", false),
            (429, "too many requests", false),
            (500, "etcdserver: request timed out", false),
            (503, "the server is currently unable to handle the request", false),
        ] {
            let status = Status { code, message: message.to_owned(), ..Status::default() };
            assert_eq!(is_final(&status), expected, "{code} {message}");
        }
    }
}
