//! What became of each link: the status of Tombolo's Links, and Events where a condition turns. Linkerd's Links have Linkerd's.

use super::{
    book::Definer,
    credentials::Validity,
    object::{GROUP, VERSION},
};
use crate::{
    mirror::{
        lease::Standing,
        names,
        source::{LinkName, Told},
        validate::Refusal,
    },
    model::{ClusterName, ObjectName},
};
use k8s_openapi::{api::core::v1::ObjectReference, jiff::Timestamp};
use kube::{
    Api, Client,
    api::{ApiResource, DynamicObject, Patch, PatchParams},
    core::GroupVersionKind,
    runtime::events::{Event, EventType, Recorder, Reporter},
};
use serde_json::{Value, json};
use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};
use tokio::task::JoinSet;
use tracing::warn;

/// How often what always changes is written: the round trip, and when the peer was heard last.
const REFRESH: Duration = Duration::from_secs(30);
/// How long writes of one link's status are apart.
const APART: Duration = Duration::from_secs(1);

/// What is known of a link.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Facts {
    /// Its name.
    pub name: LinkName,
    /// The object that defines it, with its UID and generation; none for a flag.
    pub object: Option<(Definer, String, i64)>,
    /// The peer's id.
    pub cluster: ClusterName,
    /// What can't be understood of the object.
    pub problem: Option<String>,
    /// Whether the link was never understood since the mirror began.
    pub is_held: bool,
    /// Why what the peer is reached with can't be used.
    pub unusable: Option<String>,
    /// How long the credential is good, if that ends.
    pub expires: Option<Validity>,
    /// Whether the peer's certificate isn't checked.
    pub is_unverified: bool,
    /// Whether everything that the peer has was listed, and it answers.
    pub is_connected: bool,
    /// Why it doesn't, or which kinds of objects it doesn't show.
    pub failures: Vec<String>,
    /// How it stands.
    pub standing: Standing,
    /// When it was heard last.
    pub heard: Option<Timestamp>,
    /// How long it takes to answer.
    pub round_trip: Option<Duration>,
    /// What it exports, each by each convention counted.
    pub exported: usize,
    /// What here its exports are a part of.
    pub imported: usize,
    /// Endpoints of its cluster that slices here hold.
    pub endpoints: usize,
    /// Endpoints that were refused.
    pub refused: BTreeMap<Refusal, u32>,
    /// What can't be written here of what it brings in.
    pub denied: Denied,
}

/// What the own API server, or a policy of its, refuses to take.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Denied {
    /// How many imports aren't as they should be because of it.
    pub imports: usize,
    /// What was said of the first one.
    pub reason: String,
}

/// A condition, without its times.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Condition {
    /// Its type.
    pub kind: &'static str,
    /// Whether it holds.
    pub is_true: bool,
    /// One word.
    pub reason: &'static str,
    /// A sentence, or nothing.
    pub message: String,
}

impl Facts {
    /// What holds of the link; each is well if it is true.
    pub fn conditions(&self, now: Timestamp) -> [Condition; 5] {
        let accepted = match &self.problem {
            None => well("Accepted", "Accepted"),
            Some(problem) => {
                let effect = if self.is_held {
                    "nothing new comes in, and what is here goes as if the peer were not heard"
                } else {
                    "the link runs on as it was understood last"
                };
                let message = format!("{problem}; {effect}");
                ill("Accepted", "Invalid", message)
            }
        };
        let left = self.expires.map(|validity| (validity.end.as_second() - now.as_second(), validity.is_short(now)));
        let credentials = match (&self.unusable, left) {
            (Some(reason), _) => ill("CredentialsValid", "Unusable", reason.clone()),
            (None, Some((left, _))) if left <= 0 => {
                ill("CredentialsValid", "Expired", "the credential has ended".to_owned())
            }
            (None, Some((left, true))) => {
                let message = format!("the credential ends in {} h", left / 3600);
                ill("CredentialsValid", "ExpiresSoon", message)
            }
            (None, _) if self.is_unverified => Condition {
                message: "the peer's certificate is not checked: whoever answers at its address is taken for it"
                    .to_owned(),
                ..well("CredentialsValid", "Unverified")
            },
            (None, _) => well("CredentialsValid", "Valid"),
        };
        let failures = self.failures.join("; ");
        let connected = match self.standing {
            Standing::Fresh if self.is_connected && self.failures.is_empty() => well("Connected", "Connected"),
            Standing::Fresh if self.is_connected => ill("Connected", "Incomplete", failures),
            Standing::Fresh if self.failures.is_empty() => ill("Connected", "Pending", "not listed yet".to_owned()),
            Standing::Fresh => ill("Connected", "Unreachable", failures),
            Standing::Lost { .. } => ill("Connected", "Lost", failures),
            Standing::Stale => ill("Connected", "Stale", failures),
            Standing::Removed => ill("Connected", "Removed", failures),
        };
        let refused: Vec<String> = self.refused.iter().map(|(reason, count)| format!("{count} {reason}")).collect();
        let endpoints = if refused.is_empty() {
            well("EndpointsAccepted", "Accepted")
        } else {
            ill("EndpointsAccepted", "Refused", format!("endpoints refused: {}", refused.join(", ")))
        };
        let written = match self.denied.imports {
            0 => well("Written", "Written"),
            count => {
                // Some policies say a lot.
                let reason: String = self.denied.reason.chars().take(500).collect();
                let message = format!("{count} imports can't be written as they should be, as: {reason}");
                ill("Written", "Refused", message)
            }
        };
        [accepted, credentials, connected, endpoints, written]
    }

    /// The status, without what always changes.
    fn stable(&self, now: Timestamp) -> Value {
        let refused: Vec<Value> =
            self.refused.iter().map(|(reason, count)| json!({"reason": reason.name(), "count": count})).collect();
        let mut status = json!({
            "observedGeneration": self.object.as_ref().map_or(0, |(_, _, generation)| *generation),
            "cluster": self.cluster.0,
            "connected": self.is_connected,
            "state": state(self.standing),
            "exportedServices": self.exported,
            "importedServices": self.imported,
            "endpoints": self.endpoints,
            "refusedEndpoints": refused,
        });
        if let Some(expires) = self.expires {
            status["credentialsExpire"] = json!(rfc3339(expires.end));
        }
        let conditions = self.conditions(now).map(|condition| {
            let status = if condition.is_true { "True" } else { "False" };
            json!({"type": condition.kind, "status": status, "reason": condition.reason, "message": condition.message})
        });
        status["conditions"] = json!(conditions);
        status
    }
}

fn well(kind: &'static str, reason: &'static str) -> Condition {
    Condition { kind, is_true: true, reason, message: String::new() }
}

fn ill(kind: &'static str, reason: &'static str, message: String) -> Condition {
    Condition { kind, is_true: false, reason, message }
}

/// How a peer stands, as status and metrics name it.
pub fn state(standing: Standing) -> &'static str {
    match standing {
        Standing::Fresh => "Fresh",
        Standing::Lost { .. } => "Lost",
        Standing::Stale => "Stale",
        Standing::Removed => "Removed",
    }
}

fn rfc3339(time: Timestamp) -> String {
    time.strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}

/// Writes what became of links, each once a second at most.
pub struct StatusWriter {
    client: Client,
    recorder: Recorder,
    written: BTreeMap<ObjectName, Written>,
    writes: JoinSet<(ObjectName, Result<(), kube::Error>)>,
}

struct Written {
    uid: String,
    /// As written last, without what always changes.
    stable: Value,
    at: Instant,
    /// Since when each condition's status is as it is.
    since: BTreeMap<String, (String, String)>,
    /// Whether the last write failed, or is under way.
    is_failed: bool,
    is_in_flight: bool,
}

impl StatusWriter {
    /// A writer into the own cluster.
    pub fn new(client: Client) -> Self {
        let reporter = Reporter { controller: names::MIRROR.to_owned(), instance: None };
        Self {
            recorder: Recorder::new(client.clone(), reporter),
            client,
            written: BTreeMap::new(),
            writes: JoinSet::new(),
        }
    }

    /// Has written what is new of these links. `told` has what the status of a link says that was not written here yet.
    pub fn report(&mut self, links: &[(Facts, Told)]) {
        while let Some(ended) = self.writes.try_join_next() {
            let Ok((name, result)) = ended else { continue };
            let Some(written) = self.written.get_mut(&name) else { continue };
            written.is_in_flight = false;
            if let Err(error) = result {
                if !written.is_failed {
                    warn!(link = %name, error = %error, "status not written; to be tried again");
                }
                written.is_failed = true;
            } else {
                written.is_failed = false;
            }
        }
        let is_there = |name: &ObjectName| {
            links.iter().any(|(facts, _)| matches!(&facts.object, Some((Definer::Tombolo(known), ..)) if known == name))
        };
        self.written.retain(|name, _| is_there(name));
        for (facts, told) in links {
            if let Some((Definer::Tombolo(name), uid, _)) = &facts.object {
                self.one(name, uid, facts, told);
            }
        }
    }

    fn one(&mut self, name: &ObjectName, uid: &str, facts: &Facts, told: &Told) {
        let (now, instant) = (Timestamp::now(), Instant::now());
        let stable = facts.stable(now);
        let known = self.written.remove(name).filter(|written| written.uid == uid);
        let is_due = match &known {
            None => true,
            Some(written) if written.is_in_flight => false,
            Some(written) => {
                let age = instant.saturating_duration_since(written.at);
                age >= REFRESH || (age >= APART && (written.stable != stable || written.is_failed))
            }
        };
        if !is_due {
            self.written.extend(known.map(|known| (name.clone(), known)));
            return;
        }
        let mut since = match known {
            Some(written) => written.since,
            None => told
                .conditions
                .iter()
                .filter_map(|(kind, said)| Some((kind.clone(), (said[0].clone(), told.since.get(kind)?.clone()))))
                .collect(),
        };
        let mut status = stable.clone();
        let mut turned = Vec::new();
        for condition in status["conditions"].as_array_mut().into_iter().flatten() {
            let text = |field: &str| condition[field].as_str().unwrap_or_default().to_owned();
            let (kind, is) = (text("type"), text("status"));
            let entry = since.get(&kind).filter(|(was, _)| *was == is).cloned();
            let at = entry.unwrap_or_else(|| {
                turned.push((kind.clone(), is.clone(), text("reason"), text("message")));
                (is, rfc3339(now))
            });
            condition["lastTransitionTime"] = json!(at.1);
            since.insert(kind, at);
        }
        if let Some(heard) = facts.heard {
            status["lastSyncTime"] = json!(rfc3339(heard));
        }
        if let Some(round_trip) = facts.round_trip {
            status["roundTripMilliseconds"] = json!(u64::try_from(round_trip.as_millis()).unwrap_or(u64::MAX));
        }
        let written = Written { uid: uid.to_owned(), stable, at: instant, since, is_failed: false, is_in_flight: true };
        self.written.insert(name.clone(), written);
        self.write(name.clone(), uid.to_owned(), status, turned);
    }

    fn write(&mut self, name: ObjectName, uid: String, status: Value, turned: Vec<(String, String, String, String)>) {
        let resource = resource();
        let api: Api<DynamicObject> = Api::namespaced_with(self.client.clone(), &name.namespace, &resource);
        let recorder = self.recorder.clone();
        self.writes.spawn(async move {
            // Of this very object: one that was made anew has nothing of it.
            let body = json!({
                "apiVersion": resource.api_version, "kind": resource.kind,
                "metadata": {"name": name.name, "namespace": name.namespace, "uid": uid}, "status": status,
            });
            let params = PatchParams::apply(names::MIRROR).force();
            let result = api.patch_status(&name.name, &params, &Patch::Apply(&body)).await.map(drop);
            let regarding = ObjectReference {
                api_version: Some(resource.api_version.clone()),
                kind: Some(resource.kind.clone()),
                name: Some(name.name.clone()),
                namespace: Some(name.namespace.clone()),
                uid: Some(uid),
                ..ObjectReference::default()
            };
            for (kind, is, reason, message) in turned {
                let event = Event {
                    type_: if is == "True" { EventType::Normal } else { EventType::Warning },
                    reason,
                    // The API takes 1 kB.
                    note: Some(note(&kind, &is, &message)),
                    action: kind,
                    secondary: None,
                };
                if let Err(error) = recorder.publish(&event, &regarding).await {
                    warn!(link = %name, error = %error, "Event not written");
                    break;
                }
            }
            (name, result)
        });
    }
}

/// What people read; the API takes 1 kB.
fn note(kind: &str, is: &str, message: &str) -> String {
    let text = format!("{kind} is {is}: {message}");
    text.trim_end_matches(": ").chars().take(900).collect()
}

fn resource() -> ApiResource {
    ApiResource::from_gvk_with_plural(&GroupVersionKind::gvk(GROUP, VERSION, "Link"), "links")
}

#[cfg(test)]
pub(in crate::mirror) mod tests {
    use super::*;

    #[test]
    fn a_link_that_is_well_says_so_in_every_condition() {
        let conditions = facts().conditions(now());
        assert!(conditions.iter().all(|condition| condition.is_true), "{conditions:?}");
        let status = facts().stable(now());
        assert_eq!((status["state"].as_str(), status["connected"].as_bool()), (Some("Fresh"), Some(true)));
    }

    #[test]
    fn whatever_is_wrong_is_one_condition_with_a_reason() {
        type Change = fn(&mut Facts, Option<Validity>);
        let end = |seconds: i64| Timestamp::from_second(now().as_second() + seconds).ok();
        let end = |seconds: i64| end(seconds).map(|end| Validity { from: None, end });
        let cases: [(Change, Option<Validity>, &str, &str); 9] = [
            (|it, _| it.problem = Some("spec.x".to_owned()), None, "Accepted", "Invalid"),
            (|it, _| it.unusable = Some("no Secret".to_owned()), None, "CredentialsValid", "Unusable"),
            (|it, end| it.expires = end, end(-1), "CredentialsValid", "Expired"),
            (|it, end| it.expires = end, end(6 * 86_400), "CredentialsValid", "ExpiresSoon"),
            (|it, _| it.is_connected = false, None, "Connected", "Pending"),
            (|it, _| it.failures = vec!["RBAC".to_owned()], None, "Connected", "Incomplete"),
            (|it, _| it.standing = Standing::Lost { silent: true }, None, "Connected", "Lost"),
            (|it, _| it.refused = [(Refusal::OwnPod, 2)].into(), None, "EndpointsAccepted", "Refused"),
            (|it, _| it.denied = Denied { imports: 2, reason: "403".to_owned() }, None, "Written", "Refused"),
        ];
        for (change, end, kind, reason) in cases {
            let mut facts = facts();
            change(&mut facts, end);
            let ill: Vec<Condition> =
                facts.conditions(now()).into_iter().filter(|condition| !condition.is_true).collect();
            assert_eq!(ill.len(), 1, "{ill:?}");
            assert_eq!((ill[0].kind, ill[0].reason), (kind, reason));
            assert!(!ill[0].message.is_empty() || reason == "Lost");
        }
        let mut facts = facts();
        facts.expires = end(8 * 86_400);
        assert!(facts.conditions(now()).iter().all(|condition| condition.is_true), "a week and a day is long enough");
    }

    fn now() -> Timestamp {
        Timestamp::from_second(1_800_000_000).unwrap()
    }

    pub(in crate::mirror) fn facts() -> Facts {
        Facts {
            name: LinkName("east".to_owned()),
            object: None,
            cluster: ClusterName("east".to_owned()),
            problem: None,
            is_held: false,
            unusable: None,
            expires: None,
            is_unverified: false,
            is_connected: true,
            failures: Vec::new(),
            standing: Standing::Fresh,
            heard: None,
            round_trip: None,
            exported: 3,
            imported: 2,
            endpoints: 9,
            refused: BTreeMap::new(),
            denied: Denied::default(),
        }
    }
}
