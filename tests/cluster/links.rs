//! Links as objects: found, changed and taken away while the mirror runs, with credentials that rotate and peers that hang.

use super::{
    linked::{Mirror, backends, has_service, install, links, own_half, peer_half, rotate, until},
    objects::{NAMESPACE, put_built_in, put_service},
    server::Server,
};
use k8s_openapi::api::{
    authorization::v1::SelfSubjectAccessReview,
    core::v1::Secret,
    discovery::v1::EndpointSlice,
    events::v1::Event,
    rbac::v1::{ClusterRole, ClusterRoleBinding, PolicyRule},
};
use kube::{
    Api, Client,
    api::{DeleteParams, ListParams, Patch, PatchParams, PostParams},
};
use serde_json::{Value, json};
use std::time::Duration;
use tokio::{
    net::TcpListener,
    time::{Instant, sleep},
};
use tombolo::mirror::{
    check::{Scope, Verdict, check},
    lease::Standing,
    links::status::{Denied, Facts},
};

#[tokio::test]
async fn what_link_prints_is_all_that_a_link_takes() -> anyhow::Result<()> {
    let Some(Pair { west, east, own, peer }) = Pair::start().await? else { return Ok(()) };
    let mut mirror = Mirror::start(&west, "west").await?;
    let kubeconfig = peer_half(&east, "tombolo-peer").await?;
    own_half(&west, "east", &kubeconfig, &["10.108.0.0/14"])?;
    mirror.until("east", "connected", |facts| facts.is_connected).await?;
    until("api-east", || async { Ok(backends(&own, NAMESPACE, "api-east").await? == ["10.108.0.1:8080"]) }).await?;

    // An endpoint elsewhere is refused, and the link says so.
    put_built_in(&peer, "api-b", "api", "10.200.0.1").await?;
    until("status", || async {
        let status = links(&own).get("east").await?.data["status"].clone();
        let refused = json!([{"reason": "OutsidePodRanges", "count": 1}]);
        Ok(status["connected"] == true && status["refusedEndpoints"] == refused && status["importedServices"] == 1)
    })
    .await?;
    assert_eq!(backends(&own, NAMESPACE, "api-east").await?, ["10.108.0.1:8080"]);
    let status = links(&own).get("east").await?.data["status"].clone();
    let well = |kind: &str| {
        let conditions = status["conditions"].as_array().into_iter().flatten();
        conditions.filter(|it| it["type"] == kind).any(|it| it["status"] == "True")
    };
    assert!(well("Accepted") && well("Connected") && !well("EndpointsAccepted"), "{status}");
    until("events", || async {
        let events = Api::<Event>::namespaced(own.clone(), "tombolo-system").list(&ListParams::default()).await?;
        Ok(events.items.iter().any(|event| event.reason.as_deref() == Some("Refused")))
    })
    .await?;

    // A range that is none takes nothing away; a link that goes takes what it brought along.
    set_link(&own, json!({"podRanges": ["0.0.0.0/0"]})).await?;
    mirror.until("east", "not accepted", |facts| facts.problem.is_some()).await?;
    assert_eq!(backends(&own, NAMESPACE, "api-east").await?, ["10.108.0.1:8080"]);
    set_link(&own, json!({"podRanges": ["10.200.0.0/16"]})).await?;
    until("other range", || async { Ok(backends(&own, NAMESPACE, "api-east").await? == ["10.200.0.1:8080"]) }).await?;
    links(&own).delete("east", &DeleteParams::default()).await?;
    until("gone", || async { Ok(!has_service(&own, NAMESPACE, "api-east").await?) }).await?;
    assert_eq!(backends(&own, NAMESPACE, "api-east").await?, [""; 0]);
    Ok(())
}

#[tokio::test]
async fn a_peers_credential_may_do_what_a_link_needs_and_nothing_else() -> anyhow::Result<()> {
    let Some(east) = Server::start().await? else { return Ok(()) };
    let kubeconfig = peer_half(&east, "tombolo-peer").await?;
    let token = east.token("tombolo-system/tombolo-peer", 3600).await?;
    assert!(kubeconfig.contains("token"));
    let peer = east.client_with(&token).await?;
    let granted = [
        ("", "services"),
        ("discovery.k8s.io", "endpointslices"),
        ("multicluster.x-k8s.io", "serviceexports"),
        ("about.k8s.io", "clusterproperties"),
    ];
    let others = [
        ("", "pods"),
        ("", "secrets"),
        ("", "configmaps"),
        ("", "nodes"),
        ("", "namespaces"),
        ("", "endpoints"),
        ("", "serviceaccounts"),
        ("", "events"),
        ("apps", "deployments"),
        ("rbac.authorization.k8s.io", "clusterroles"),
        ("multicluster.x-k8s.io", "serviceimports"),
        ("tombolo.io", "links"),
        ("coordination.k8s.io", "leases"),
    ];
    let verbs = ["get", "list", "watch", "create", "update", "patch", "delete"];
    let mut tried = 0;
    for (group, resource) in granted.iter().chain(&others) {
        for verb in verbs {
            let is_granted = granted.contains(&(group, resource)) && ["get", "list", "watch"].contains(&verb);
            assert_eq!(may(&peer, group, resource, verb).await?, is_granted, "{verb} {resource}.{group}");
            tried += 1;
        }
    }
    assert!(tried >= 60, "{tried}");
    Ok(())
}

#[tokio::test]
async fn a_credential_that_rotates_is_used_at_once_and_a_wrong_one_takes_nothing_away() -> anyhow::Result<()> {
    let Some(Pair { west, east, own, peer }) = Pair::start().await? else { return Ok(()) };
    let first = peer_half(&east, "peer-0").await?;
    let mut mirror = Mirror::start(&west, "west").await?;
    own_half(&west, "east", &first, &["10.108.0.0/14"])?;
    mirror.until("east", "connected", |facts| facts.is_connected).await?;
    until("api-east", || async { Ok(backends(&own, NAMESPACE, "api-east").await?.len() == 1) }).await?;
    let watching = tokio::spawn(never_empty(own.clone()));

    let mut slowest = Duration::ZERO;
    for turn in 1..=5 {
        let next = peer_half(&east, &format!("peer-{turn}")).await?;
        // Wrong ones first: one that the peer doesn't know, one that may do nothing, one that is none.
        let nobody = east.token("tombolo-system/nobody", 3600).await?;
        for wrong in [east.kubeconfig_with(0, "e30.e30.x")?, east.kubeconfig_with(0, &nobody)?, "nonsense".to_owned()] {
            rotate(&own, "east", &wrong).await?;
            mirror.until("east", "refused", |facts| facts.unusable.is_some()).await?;
            // What is in use goes on.
            move_endpoint(&peer, &own, turn * 2).await?;
        }
        rotate(&own, "east", &next).await?;
        let began = Instant::now();
        mirror.until("east", "usable", |facts| facts.unusable.is_none()).await?;
        // Now the one before is taken away: it is not in use any more.
        let accounts: Api<k8s_openapi::api::core::v1::ServiceAccount> = Api::namespaced(peer.clone(), "tombolo-system");
        accounts.delete(&format!("peer-{}", turn - 1), &DeleteParams::default()).await?;
        slowest = slowest.max(began.elapsed());
        move_endpoint(&peer, &own, turn * 2 + 1).await?;
    }
    println!("a rotated credential was in use after {slowest:?} at most, as shown once a second");
    assert!(slowest < Duration::from_secs(20), "{slowest:?}");
    watching.abort();
    match watching.await {
        Err(error) if error.is_cancelled() => Ok(()),
        ended => panic!("endpoints were gone: {ended:?}"),
    }
}

#[tokio::test]
async fn peers_that_hang_or_lie_delay_nobody_else() -> anyhow::Result<()> {
    let Some(Pair { west, east, own, peer }) = Pair::start().await? else { return Ok(()) };
    let kubeconfig = peer_half(&east, "tombolo-peer").await?;
    // One accepts and says nothing; at another one's address nobody is.
    let silent = TcpListener::bind("127.0.0.1:0").await?;
    let at = format!("https://{}", silent.local_addr()?);
    let held = tokio::spawn(async move {
        let mut connections = Vec::new();
        while let Ok((connection, _)) = silent.accept().await {
            connections.push(connection);
        }
    });
    let mut mirror = Mirror::start(&west, "west").await?;
    own_half(&west, "gone", &elsewhere(&kubeconfig, "https://127.0.0.1:1"), &["10.120.0.0/14"])?;
    own_half(&west, "silent", &elsewhere(&kubeconfig, &at), &["10.124.0.0/14"])?;
    own_half(&west, "east", &kubeconfig, &["10.108.0.0/14"])?;
    mirror.until("east", "connected", |facts| facts.is_connected).await?;
    for hung in ["gone", "silent"] {
        mirror.until(hung, "unreachable", |facts| !facts.failures.is_empty()).await?;
    }
    let mut slowest = Duration::ZERO;
    for turn in 1..=5 {
        slowest = slowest.max(move_endpoint(&peer, &own, turn).await?);
    }
    println!("beside peers that hang, a change took {slowest:?} at most");
    assert!(slowest < Duration::from_secs(10), "{slowest:?}");
    held.abort();
    Ok(())
}

#[tokio::test]
async fn a_peer_that_answers_and_shows_nothing_any_more_is_lost() -> anyhow::Result<()> {
    let Some(Pair { west, mut east, own, peer }) = Pair::start().await? else { return Ok(()) };
    let kubeconfig = peer_half(&east, "tombolo-peer").await?;
    let mut mirror = Mirror::start(&west, "west").await?;
    own_half(&west, "east", &kubeconfig, &["10.108.0.0/14"])?;
    set_link(&own, json!({"lease": {"seconds": 10}})).await?;
    mirror.until("east", "connected", |facts| facts.is_connected).await?;
    until("api-east", || async { Ok(backends(&own, NAMESPACE, "api-east").await?.len() == 1) }).await?;

    // A watch that is open stays so; a server that starts anew looks at rights again.
    let bindings: Api<ClusterRoleBinding> = Api::all(peer.clone());
    bindings.delete("tombolo-peer", &DeleteParams::default()).await?;
    east.kill_api(0)?;
    east.start_api(0).await?;
    let is_forbidden = |facts: &Facts| facts.failures.iter().any(|failure| failure.contains("forbidden"));
    let is_lost = |facts: &Facts| matches!(facts.standing, Standing::Lost { .. }) && is_forbidden(facts);
    mirror.until("east", "lost", is_lost).await?;
    // It goes on answering, and stays lost.
    sleep(Duration::from_secs(12)).await;
    mirror.until("east", "still lost", is_lost).await?;
    assert!(has_service(&own, NAMESPACE, "api-east").await?);

    peer_half(&east, "tombolo-peer").await?;
    mirror.until("east", "fresh", |facts| facts.standing == Standing::Fresh && facts.failures.is_empty()).await?;
    move_endpoint(&peer, &own, 1).await?;
    Ok(())
}

#[tokio::test]
async fn a_mirror_that_starts_and_never_understood_a_link_keeps_what_it_brought() -> anyhow::Result<()> {
    let Some(Pair { west, east, own, peer }) = Pair::start().await? else { return Ok(()) };
    let kubeconfig = peer_half(&east, "tombolo-peer").await?;
    own_half(&west, "east", &kubeconfig, &["10.108.0.0/14"])?;
    set_link(&own, json!({"cluster": "e1"})).await?;
    let mut mirror = Mirror::start(&west, "west").await?;
    mirror.until("east", "connected", |facts| facts.is_connected).await?;
    until("api-east", || async { Ok(backends(&own, NAMESPACE, "api-east").await?.len() == 1) }).await?;
    drop(mirror);

    set_link(&own, json!({"podRanges": ["0.0.0.0/0"]})).await?;
    let watching = tokio::spawn(never_empty(own.clone()));
    let mut mirror = Mirror::start(&west, "west").await?;
    let goes_on = |facts: &Facts| facts.problem.is_some() && facts.is_connected && facts.cluster.0 == "e1";
    mirror.until("east", "not understood", goes_on).await?;
    sleep(Duration::from_secs(3)).await;
    assert_eq!(backends(&own, NAMESPACE, "api-east").await?, ["10.108.0.1:8080"]);
    set_link(&own, json!({"podRanges": ["10.108.0.0/14"]})).await?;
    mirror.until("east", "understood", |facts| facts.problem.is_none()).await?;
    move_endpoint(&peer, &own, 1).await?;
    watching.abort();
    match watching.await {
        Err(error) if error.is_cancelled() => Ok(()),
        ended => panic!("endpoints were gone: {ended:?}"),
    }
}

#[tokio::test]
async fn what_a_link_brought_that_a_mirror_never_understood_or_could_use_goes_by_its_terms() -> anyhow::Result<()> {
    let Some(Pair { west, east, own, .. }) = Pair::start().await? else { return Ok(()) };
    let kubeconfig = peer_half(&east, "tombolo-peer").await?;
    own_half(&west, "east", &kubeconfig, &["10.108.0.0/14"])?;
    set_link(&own, json!({"lease": {"seconds": 10, "staleAfterSeconds": 10, "removeAfterSeconds": 60}})).await?;
    let is_here = || async { Ok(backends(&own, NAMESPACE, "api-east").await? == ["10.108.0.1:8080"]) };
    for is_understood in [false, true] {
        let mirror = Mirror::start(&west, "west").await?;
        until("api-east", is_here).await?;
        drop(mirror);

        if is_understood {
            rotate(&own, "east", "nonsense").await?;
        } else {
            set_link(&own, json!({"podRanges": ["0.0.0.0/0"]})).await?;
        }
        let mut mirror = Mirror::start(&west, "west").await?;
        for standing in [Standing::Stale, Standing::Removed] {
            let says = |facts: &Facts| {
                let is_so = if is_understood { facts.unusable.is_some() } else { facts.is_held && facts.is_connected };
                is_so && facts.standing == standing
            };
            mirror.until("east", &format!("{standing:?}"), says).await?;
            assert!(has_service(&own, NAMESPACE, "api-east").await? || standing == Standing::Removed);
        }
        until("gone", || async { Ok(!has_service(&own, NAMESPACE, "api-east").await?) }).await?;
        let status = links(&own).get("east").await?.data["status"].clone();
        let (kind, words) = if is_understood {
            ("CredentialsValid", "kubeconfig")
        } else {
            ("Accepted", "as if the peer were not heard")
        };
        let condition = status["conditions"].as_array().into_iter().flatten().find(|it| it["type"] == kind).cloned();
        let message = condition.as_ref().and_then(|it| it["message"].as_str()).unwrap_or_default();
        assert!(message.contains(words), "{status}");

        set_link(&own, json!({"podRanges": ["10.108.0.0/14"]})).await?;
        rotate(&own, "east", &kubeconfig).await?;
        until("back", is_here).await?;
    }
    Ok(())
}

#[tokio::test]
async fn a_peer_that_shows_its_pods_and_not_its_exports_keeps_no_pod_that_is_gone() -> anyhow::Result<()> {
    let Some(Pair { west, east, own, peer }) = Pair::start().await? else { return Ok(()) };
    let kubeconfig = peer_half(&east, "tombolo-peer").await?;
    own_half(&west, "east", &kubeconfig, &["10.108.0.0/14"])?;
    let mut mirror = Mirror::start(&west, "west").await?;
    mirror.until("east", "connected", |facts| facts.is_connected).await?;
    until("api-east", || async { Ok(backends(&own, NAMESPACE, "api-east").await?.len() == 1) }).await?;
    drop(mirror);

    // While nobody looks, the pod is replaced, and a right is taken away.
    let before = rules(&peer, "tombolo-peer", |rules| {
        rules.retain(|rule| !rule.resources.iter().flatten().any(|it| it == "serviceexports"));
    });
    let before = before.await?;
    let slices: Api<EndpointSlice> = Api::namespaced(peer.clone(), NAMESPACE);
    let patch = Patch::Merge(json!({"endpoints": [{"addresses": ["10.108.1.1"]}]}));
    slices.patch("api-a", &PatchParams::default(), &patch).await?;

    mirror = Mirror::start(&west, "west").await?;
    let is_forbidden =
        |facts: &Facts| !facts.is_connected && facts.failures.iter().any(|failure| failure.contains("serviceexports"));
    mirror.until("east", "without exports", is_forbidden).await?;
    until("followed", || async { Ok(backends(&own, NAMESPACE, "api-east").await? == ["10.108.1.1:8080"]) }).await?;
    move_endpoint(&peer, &own, 2).await?;
    mirror.until("east", "without exports", is_forbidden).await?;
    rules(&peer, "tombolo-peer", |rules| *rules = before).await?;
    mirror.until("east", "connected", |facts| facts.is_connected).await
}

#[tokio::test]
async fn what_the_own_api_server_refuses_to_take_is_said_and_written_once_it_may_be() -> anyhow::Result<()> {
    let Some(Pair { west, east, own, .. }) = Pair::start().await? else { return Ok(()) };
    own_half(&west, "east", &peer_half(&east, "tombolo-peer").await?, &["10.108.0.0/14"])?;
    let before = rules(&own, "tombolo-mirror", |rules| {
        rules.iter_mut().for_each(|rule| rule.verbs.retain(|verb| ["get", "list", "watch"].contains(&verb.as_str())));
        rules.retain(|rule| !rule.verbs.is_empty());
    });
    let before = before.await?;
    let mut mirror = Mirror::start(&west, "west").await?;
    let is_denied =
        |facts: &Facts| facts.is_connected && facts.denied.imports == 1 && facts.denied.reason.contains("forbidden");
    mirror.until("east", "denied", is_denied).await?;
    let written = async || -> anyhow::Result<String> {
        let status = links(&own).get("east").await?.data["status"].clone();
        let condition = status["conditions"].as_array().into_iter().flatten().find(|it| it["type"] == "Written");
        Ok(condition.and_then(|it| it["status"].as_str()).unwrap_or_default().to_owned())
    };
    until("said", || async { Ok(written().await? == "False") }).await?;
    // It stays refused, and is tried less and less often.
    sleep(Duration::from_secs(5)).await;
    mirror.until("east", "denied", is_denied).await?;
    assert!(!has_service(&own, NAMESPACE, "api-east").await?);

    rules(&own, "tombolo-mirror", |rules| *rules = before).await?;
    let took =
        until("written", || async { Ok(backends(&own, NAMESPACE, "api-east").await? == ["10.108.0.1:8080"]) }).await?;
    println!("a right that was granted was used after {took:?}");
    mirror.until("east", "well", |facts| facts.denied == Denied::default()).await?;
    until("said", || async { Ok(written().await? == "True") }).await?;
    Ok(())
}

#[tokio::test]
async fn check_says_what_is_wrong_in_words() -> anyhow::Result<()> {
    let (Some(west), Some(east)) = (Server::start().await?, Server::start().await?) else { return Ok(()) };
    let (own, peer) = (west.client(0, "admin").await?, east.client(0, "admin").await?);
    let scope = Scope {
        namespace: "tombolo-system".to_owned(),
        linkerd: "linkerd-multicluster".to_owned(),
        only: None,
        probes: true,
    };
    let said = async |link: Option<&str>, name: &str, verdict: Verdict, text: &str| -> anyhow::Result<()> {
        let findings = check(&own, &scope).await;
        let found = findings.iter().any(|finding| {
            finding.link.as_deref() == link
                && finding.check == name
                && finding.verdict == verdict
                && finding.text.contains(text)
        });
        anyhow::ensure!(found, "{name} {verdict:?} {text}: {findings:#?}");
        Ok(())
    };
    said(None, "kinds", Verdict::Problem, "this cluster has no Links").await?;
    install(&west)?;
    said(None, "links", Verdict::Problem, "there are no links").await?;
    said(None, "kinds", Verdict::Warning, "no ServiceExports").await?;

    exports(&east, &peer, "10.108.0.1").await?;
    let kubeconfig = peer_half(&east, "tombolo-peer").await?;
    own_half(&west, "east", &kubeconfig, &[])?;
    let east_link = Some("east");
    said(east_link, "ranges", Verdict::Warning, "no pod ranges (spec.podRanges)").await?;
    said(east_link, "status", Verdict::Warning, "no mirror has said anything").await?;
    said(east_link, "api", Verdict::Ok, "answers after").await?;
    said(east_link, "clock", Verdict::Ok, "clocks agree").await?;
    said(east_link, "rights", Verdict::Ok, "granted what a link needs").await?;
    // Tokens of the test are good for an hour, which is not near their end.
    said(east_link, "credential", Verdict::Ok, "ends in 5").await?;
    // Nobody is at that address.
    said(east_link, "route", Verdict::Problem, "no pod answers from here, as 10.108.0.1:8080").await?;

    set_link(&own, json!({"podRanges": ["10.99.0.0/16"]})).await?;
    said(east_link, "ranges", Verdict::Problem, "overlaps this cluster's own Services").await?;
    said(
        east_link,
        "endpoints",
        Verdict::Problem,
        "1 of 1 endpoints are in none of the link's podRanges, as 10.108.0.1",
    )
    .await?;
    set_link(&own, json!({"podRanges": ["10.108.0.0/14"]})).await?;
    own_half(&west, "north", &kubeconfig, &["10.108.4.0/24"])?;
    said(Some("north"), "ranges", Verdict::Problem, "overlaps 10.108.0.0/14 of link east").await?;

    let nobody = east.token("tombolo-system/nobody", 3600).await?;
    rotate(&own, "east", &east.kubeconfig_with(0, &nobody)?).await?;
    said(east_link, "rights", Verdict::Problem, "the peer doesn't grant list services").await?;
    rotate(&own, "east", &east.kubeconfig_with(0, "admin")?).await?;
    said(east_link, "rights", Verdict::Warning, "the credential may list secrets").await?;
    rotate(&own, "east", &east.kubeconfig_with(0, "e30.e30.x")?).await?;
    said(east_link, "api", Verdict::Problem, "doesn't accept the credential (401)").await?;
    rotate(&own, "east", &elsewhere(&kubeconfig, "https://127.0.0.1:1")).await?;
    said(east_link, "api", Verdict::Problem, "can't be reached").await?;
    rotate(&own, "east", "users: [{user: {token: canary").await?;
    said(east_link, "credential", Verdict::Problem, "the kubeconfig can't be read as one").await?;
    Api::<Secret>::namespaced(own.clone(), "tombolo-system")
        .delete("tombolo-link-east", &DeleteParams::default())
        .await?;
    said(east_link, "credential", Verdict::Problem, "Secret tombolo-system/tombolo-link-east is not there").await?;
    Ok(())
}

/// Changes the rules of a ClusterRole, and says what they were.
async fn rules(
    client: &Client,
    role: &str,
    change: impl FnOnce(&mut Vec<PolicyRule>),
) -> anyhow::Result<Vec<PolicyRule>> {
    let roles: Api<ClusterRole> = Api::all(client.clone());
    let mut found = roles.get(role).await?;
    let mut rules = found.rules.take().unwrap_or_default();
    let before = rules.clone();
    change(&mut rules);
    found.rules = Some(rules);
    roles.replace(role, &PostParams::default(), &found).await?;
    Ok(before)
}

/// Two clusters: one that imports, with all that a mirror needs, and one whose `api` is exported.
struct Pair {
    west: Server,
    east: Server,
    own: Client,
    peer: Client,
}

impl Pair {
    /// None where API servers can't be run.
    async fn start() -> anyhow::Result<Option<Self>> {
        let (Some(west), Some(east)) = (Server::start().await?, Server::start().await?) else { return Ok(None) };
        install(&west)?;
        let (own, peer) = (west.client(0, "admin").await?, east.client(0, "admin").await?);
        exports(&east, &peer, "10.108.0.1").await?;
        Ok(Some(Self { west, east, own, peer }))
    }
}

/// Changes something in the link's spec.
async fn set_link(own: &Client, spec: Value) -> anyhow::Result<()> {
    drop(links(own).patch("east", &PatchParams::default(), &Patch::Merge(json!({"spec": spec}))).await?);
    Ok(())
}

/// A flat Service `api` with one endpoint.
async fn exports(server: &Server, client: &Client, address: &str) -> anyhow::Result<()> {
    server.apply(&format!("{{apiVersion: v1, kind: Namespace, metadata: {{name: {NAMESPACE}}}}}"))?;
    put_service(client, "api", json!({"labels": {"mirror.linkerd.io/exported": "remote-discovery"}})).await?;
    put_built_in(client, "api-a", "api", address).await
}

/// Gives the one endpoint of `api` another address, and waits until it is here.
async fn move_endpoint(peer: &Client, own: &Client, octet: u32) -> anyhow::Result<Duration> {
    let address = format!("10.108.1.{octet}");
    let slices: Api<EndpointSlice> = Api::namespaced(peer.clone(), NAMESPACE);
    let patch = Patch::Merge(json!({"endpoints": [{"addresses": [address]}]}));
    slices.patch("api-a", &PatchParams::default(), &patch).await?;
    let expected = [format!("{address}:8080")];
    until("moved", || async { Ok(backends(own, NAMESPACE, "api-east").await? == expected) }).await
}

/// Until there are no endpoints.
async fn never_empty(own: Client) -> anyhow::Result<()> {
    while backends(&own, NAMESPACE, "api-east").await.is_ok_and(|found| !found.is_empty()) {
        sleep(Duration::from_millis(10)).await;
    }
    Ok(())
}

/// The same kubeconfig with another server.
fn elsewhere(kubeconfig: &str, server: &str) -> String {
    let mut value: Value = serde_json::from_str(kubeconfig).expect("it is written as JSON");
    value["clusters"][0]["cluster"]["server"] = json!(server);
    value.to_string()
}

async fn may(client: &Client, group: &str, resource: &str, verb: &str) -> anyhow::Result<bool> {
    let review: SelfSubjectAccessReview = serde_json::from_value(json!({
        "spec": {"resourceAttributes": {"group": group, "resource": resource, "verb": verb}},
    }))?;
    let reviews: Api<SelfSubjectAccessReview> = Api::all(client.clone());
    let review = reviews.create(&PostParams::default(), &review).await?;
    Ok(review.status.is_some_and(|status| status.allowed))
}
