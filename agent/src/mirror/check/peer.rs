//! What the peer says: whether it answers, what it grants, what its clock shows, and whether its pods can be reached from here.

use super::{Finding, Verdict, chain, found, judge};
use crate::mirror::{
    conventions, links,
    links::book::Wanted,
    links::manifests::PEER_RULES,
    read,
    read::Written,
    source::{Link, LinkName, Transport},
};
use crate::model::ObjectName;
use k8s_openapi::{
    api::{
        authorization::v1::{ResourceAttributes, SelfSubjectAccessReview, SelfSubjectAccessReviewSpec},
        core::v1::Service,
        discovery::v1::EndpointSlice,
    },
    jiff::{Timestamp, fmt::rfc2822},
};
use kube::{
    Api, Client,
    api::{ListParams, PostParams},
    client::Body,
};
use std::{
    collections::BTreeSet,
    net::{IpAddr, SocketAddr},
    time::{Duration, Instant},
};
use tokio::{net::TcpStream, task::JoinSet, time::timeout};

/// How long one question to the peer may take.
const PATIENCE: Duration = Duration::from_secs(10);
/// Pods that are dialled, and how long each may take.
const PODS: usize = 5;
const DIAL: Duration = Duration::from_secs(2);
/// Objects of a kind that are looked at.
const PAGE: u32 = 500;

/// Looks at a peer with the link's credential.
pub(super) async fn look(name: &LinkName, wanted: &Wanted, probes: bool) -> Vec<Finding> {
    let say = |check, verdict, text: String| found(Some(name.0.clone()), check, verdict, text);
    let Ok(credentials) = &wanted.credentials else { return Vec::new() };
    let client = match credentials.client().await {
        Ok(client) => client,
        Err(reason) => return vec![say("credential", Verdict::Problem, reason)],
    };
    let mut findings = match reach(&client).await {
        Ok((api, clock)) => vec![say("api", Verdict::Ok, api), say("clock", clock.0, clock.1)],
        Err(reason) => return vec![say("api", Verdict::Problem, reason)],
    };
    let (verdict, text) = rights(&client, wanted.link.is_linkerds).await;
    findings.push(say("rights", verdict, text));
    match pods(&client, &wanted.link).await {
        Err(reason) => findings.push(say("endpoints", Verdict::Unknown, reason)),
        Ok(pods) => {
            let (verdict, text) = pods.say(&wanted.link);
            findings.push(say("endpoints", verdict, text));
            if wanted.link.is_flat && probes {
                let (verdict, text) = route(pods.inside).await;
                findings.push(say("route", verdict, text));
            }
        }
    }
    findings
}

/// How the API server answers, and what its clock shows.
async fn reach(client: &Client) -> Result<(String, (Verdict, String)), String> {
    let request = http::Request::get("/version").body(Body::empty()).map_err(|error| error.to_string())?;
    let (asked, at) = (Timestamp::now(), Instant::now());
    let answer = match timeout(PATIENCE, client.send(request)).await {
        Err(_) => return Err(format!("the peer's API server doesn't answer within {} s", PATIENCE.as_secs())),
        Ok(Err(error)) => return Err(format!("the peer's API server can't be reached: {}", chain(&error))),
        Ok(Ok(answer)) => answer,
    };
    let took = at.elapsed();
    match answer.status().as_u16() {
        401 => return Err("the peer doesn't accept the credential (401): it was revoked or has ended".to_owned()),
        code @ 500.. => return Err(format!("the peer's API server can't serve ({code})")),
        _ => {}
    }
    let date = answer.headers().get("date").and_then(|date| date.to_str().ok());
    let clock = match date.and_then(|date| rfc2822::parse(date).ok()) {
        Some(date) => judge::clock(date.timestamp(), asked, took),
        None => (Verdict::Unknown, "the peer's API server doesn't say what time it is".to_owned()),
    };
    Ok((format!("answers after {} ms", took.as_millis()), clock))
}

/// Whether the credential may do what a link needs, and no more than that.
async fn rights(client: &Client, is_linkerds: bool) -> (Verdict, String) {
    let mut missing = Vec::new();
    for (group, resource) in PEER_RULES {
        // The mirror lists and watches; the cluster's id is in the link, and Linkerd's links know nothing of ServiceExports.
        let is_needed = group != "about.k8s.io" && !(is_linkerds && group == "multicluster.x-k8s.io");
        let verbs: &[&str] = if is_needed { &["list", "watch"] } else { &[] };
        for verb in verbs {
            match may(client, group, resource, verb).await {
                Ok(true) => {}
                Ok(false) => missing.push(format!("{verb} {resource}")),
                Err(reason) => return (Verdict::Unknown, format!("the peer doesn't say what it grants: {reason}")),
            }
        }
    }
    if !missing.is_empty() {
        let text = format!(
            "the peer doesn't grant {}: apply its half of the link there (`tombolo link NAME --peer`)",
            missing.join(", ")
        );
        return (Verdict::Problem, text);
    }
    for (group, resource, verb) in [("", "secrets", "list"), ("", "pods", "create"), ("", "services", "patch")] {
        if may(client, group, resource, verb).await == Ok(true) {
            let text = format!("the credential may {verb} {resource} of the peer, which is more than a link needs");
            return (Verdict::Warning, text);
        }
    }
    (Verdict::Ok, "granted what a link needs".to_owned())
}

async fn may(client: &Client, group: &str, resource: &str, verb: &str) -> Result<bool, String> {
    let attributes = ResourceAttributes {
        group: Some(group.to_owned()),
        resource: Some(resource.to_owned()),
        verb: Some(verb.to_owned()),
        ..ResourceAttributes::default()
    };
    let review = SelfSubjectAccessReview {
        spec: SelfSubjectAccessReviewSpec {
            resource_attributes: Some(attributes),
            ..SelfSubjectAccessReviewSpec::default()
        },
        ..SelfSubjectAccessReview::default()
    };
    let reviews: Api<SelfSubjectAccessReview> = Api::all(client.clone());
    match timeout(PATIENCE, reviews.create(&PostParams::default(), &review)).await {
        Err(_) => Err("no answer".to_owned()),
        Ok(Err(error)) => Err(chain(&error)),
        Ok(Ok(review)) => Ok(review.status.is_some_and(|status| status.allowed)),
    }
}

/// Ready endpoints of what the peer exports.
#[derive(Default)]
struct Pods {
    /// Services that are exported.
    exported: usize,
    /// One endpoint of each of a few Services, in the link's ranges, that speaks TCP.
    inside: Vec<SocketAddr>,
    /// Endpoints in none of the link's ranges.
    outside: BTreeSet<IpAddr>,
    seen: usize,
}

impl Pods {
    fn say(&self, link: &Link) -> (Verdict, String) {
        match (self.exported, self.seen, self.outside.first()) {
            (0, ..) => (Verdict::Warning, "the peer exports nothing over this link".to_owned()),
            (exported, 0, _) => {
                (Verdict::Warning, format!("the peer exports {exported} Services, and none has a ready endpoint"))
            }
            (_, seen, Some(example)) => {
                let text = format!(
                    "{} of {seen} endpoints are in none of the link's podRanges, as {example}, and are refused: a range is missing, \
                     or these pods use their nodes' network",
                    self.outside.len()
                );
                (if self.outside.len() == seen { Verdict::Problem } else { Verdict::Warning }, text)
            }
            (exported, seen, None) => {
                let place = if link.pod_ranges.is_empty() { "" } else { ", all in the link's ranges" };
                (Verdict::Ok, format!("{exported} Services exported, {seen} ready endpoints{place}"))
            }
        }
    }
}

async fn pods(client: &Client, link: &Link) -> Result<Pods, String> {
    let asked = async {
        let page = ListParams::default().limit(PAGE);
        let services = Api::<Service>::all(client.clone()).list(&page).await?;
        let slices = Api::<EndpointSlice>::all(client.clone()).list(&page).await?;
        Ok::<_, kube::Error>((services, slices))
    };
    let (services, slices) = match timeout(PATIENCE, asked).await {
        Err(_) => return Err("the peer doesn't list Services and EndpointSlices in time".to_owned()),
        Ok(Err(error)) => return Err(format!("what the peer exports can't be read: {}", chain(&error))),
        Ok(Ok(read)) => read,
    };
    let mut peer = links::unheard(link.clone());
    for service in services.items {
        if let Some(name) = read::name(&service.metadata) {
            peer.cluster.services.insert(name, read::service(service));
        }
    }
    let names: Vec<ObjectName> = peer.cluster.services.keys().cloned().collect();
    let exported: BTreeSet<ObjectName> =
        names.into_iter().filter(|name| !conventions::of_peer(name, &peer).is_empty()).collect();
    let mut pods = Pods { exported: exported.len(), ..Pods::default() };
    let mut dialled = BTreeSet::new();
    for slice in slices.items {
        let Some(name) = read::name(&slice.metadata) else { continue };
        let Some(Written::FirstHand(slice)) = read::slice(slice) else { continue };
        let service = ObjectName { namespace: name.namespace, name: slice.service.clone() };
        if !exported.contains(&service) {
            continue;
        }
        let port = slice.ports.iter().find(|port| port.protocol == Transport::Tcp).map(|port| port.port);
        for endpoint in slice.endpoints.iter().filter(|endpoint| endpoint.ready) {
            pods.seen += 1;
            let is_inside =
                link.pod_ranges.is_empty() || link.pod_ranges.iter().any(|range| range.contains(&endpoint.address));
            if !is_inside {
                pods.outside.insert(endpoint.address);
            } else if let Some(port) = port
                && pods.inside.len() < PODS
                && dialled.insert(service.clone())
            {
                pods.inside.push(SocketAddr::new(endpoint.address, port));
            }
        }
    }
    Ok(pods)
}

/// Whether pods answer from here, were it by a refusal.
async fn route(pods: Vec<SocketAddr>) -> (Verdict, String) {
    if pods.is_empty() {
        return (Verdict::Unknown, "no endpoint to dial".to_owned());
    }
    let all = pods.len();
    let mut dials = JoinSet::new();
    for pod in pods {
        dials.spawn(async move {
            let answered = match timeout(DIAL, TcpStream::connect(pod)).await {
                Ok(Ok(_)) => true,
                Ok(Err(error)) => error.kind() == std::io::ErrorKind::ConnectionRefused,
                Err(_) => false,
            };
            (pod, answered)
        });
    }
    let mut silent = BTreeSet::new();
    while let Some(dialled) = dials.join_next().await {
        if let Ok((pod, false)) = dialled {
            silent.insert(pod);
        }
    }
    match (silent.len(), silent.first()) {
        (0, _) | (_, None) => (Verdict::Ok, format!("{all} of {all} pods that were dialled answer")),
        (count, Some(example)) if count == all => {
            let text = format!(
                "no pod answers from here, as {example}: there is no flat route, or a firewall or NetworkPolicy is in the way. This says \
                 something of the nodes only if it runs on one of them (--no-probes leaves it out)"
            );
            (Verdict::Problem, text)
        }
        (count, Some(example)) => {
            (Verdict::Warning, format!("{count} of {all} pods that were dialled don't answer, as {example}"))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_refusal_is_an_answer_too() {
        let open = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let closed = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let (verdict, text) = route(vec![open.local_addr().unwrap(), closed]).await;
        assert_eq!((verdict, text.as_str()), (Verdict::Ok, "2 of 2 pods that were dialled answer"));
        assert_eq!(route(Vec::new()).await.0, Verdict::Unknown);
    }

    #[test]
    fn endpoints_outside_the_ranges_are_told_with_an_example() {
        let mut link = links::plain(crate::model::ClusterName("east".to_owned()), 0);
        link.pod_ranges = vec!["10.108.0.0/14".parse().unwrap()];
        let pods = |seen, outside: &[&str]| Pods {
            exported: 1,
            seen,
            outside: outside.iter().map(|address| address.parse().unwrap()).collect(),
            inside: Vec::new(),
        };
        for (pods, verdict, said) in [
            (Pods::default(), Verdict::Warning, "exports nothing"),
            (pods(0, &[]), Verdict::Warning, "none has a ready endpoint"),
            (pods(3, &[]), Verdict::Ok, "3 ready endpoints, all in the link's ranges"),
            (pods(3, &["10.9.0.1"]), Verdict::Warning, "1 of 3 endpoints are in none"),
            (pods(1, &["10.9.0.1"]), Verdict::Problem, "as 10.9.0.1"),
        ] {
            let (found, text) = pods.say(&link);
            assert!(found == verdict && text.contains(said), "{text}");
        }
    }
}
