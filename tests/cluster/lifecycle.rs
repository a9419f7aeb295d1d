//! What a mirror puts right: what it missed, what it lost sight of, and what is in its way.

use super::{
    objects::{NAMESPACE, delete, patch, put, put_built_in, put_service},
    pair::{Pair, eventually},
};
use k8s_openapi::api::{core::v1::Service, discovery::v1::EndpointSlice};
use kube::{Api, ResourceExt, api::ListParams};
use serde_json::{Value, json};
use std::{collections::BTreeMap, time::Duration};
use tombolo::{
    mirror::{leader::Candidate, lease::Terms},
    sources::kubernetes::connect,
};

#[tokio::test]
async fn a_mirror_that_was_down_puts_right_what_it_missed_and_touches_nothing_else() -> anyhow::Result<()> {
    let Some(mut pair) = Pair::start().await? else { return Ok(()) };
    for side in [&pair.west, &pair.east] {
        side.install_crds().await?;
    }
    for name in ["stays", "moves", "goes"] {
        put_service(&pair.east.admin, name, flat()).await?;
        put_built_in(&pair.east.admin, &format!("{name}-1"), name, "10.108.0.1").await?;
    }
    for name in ["stays", "goes"] {
        pair.east.export(name, json!({})).await?;
    }
    pair.west.mirror(&pair.east, Terms::default()).await?;
    for name in ["stays", "goes"] {
        eventually(name, "True".to_owned(), || async {
            Ok(pair.west.condition("ServiceImport", name, "Ready").await?[0].clone())
        })
        .await?;
    }
    eventually("moves", endpoint("10.108.0.1"), || pair.west.endpoints("moves-east")).await?;
    // Nothing is on its way any more.
    let mut before = versions(&pair).await?;
    loop {
        tokio::time::sleep(Duration::from_secs(1)).await;
        let now = versions(&pair).await?;
        if now == before {
            break;
        }
        before = now;
    }

    pair.west.stop_mirror().await?;
    pair.east.unexport("goes").await?;
    delete::<Service>(&pair.east.admin, "goes").await?;
    let moved = json!({"endpoints": [{"addresses": ["10.108.0.2"]}]});
    patch::<EndpointSlice>(&pair.east.admin, "moves-1", moved).await?;
    put_service(&pair.east.admin, "comes", flat()).await?;
    put_built_in(&pair.east.admin, "comes-1", "comes", "10.108.0.3").await?;
    let meddled = json!({"spec": {"ports": [{"port": 81, "protocol": "TCP"}]}});
    patch::<Service>(&pair.west.admin, "moves-east", meddled).await?;
    pair.west.mirror(&pair.east, Terms::default()).await?;

    let west = &pair.west;
    eventually("comes", endpoint("10.108.0.3"), || west.endpoints("comes-east")).await?;
    eventually("moves", endpoint("10.108.0.2"), || west.endpoints("moves-east")).await?;
    let port = || async { Ok(west.service("moves-east").await?.unwrap().spec.unwrap().ports.unwrap()[0].port) };
    eventually("meddled with", 80, port).await?;
    eventually("goes", true, || async { Ok(west.service("goes-east").await?.is_none()) }).await?;
    eventually("goes", None, || async { Ok(west.mcs("ServiceImport").get_opt("goes").await?) }).await?;
    eventually("goes", Vec::new(), || west.endpoints("goes-east")).await?;
    let after = versions(&pair).await?;
    let untouched = |name: &&String| before.get(*name) == after.get(*name);
    let names: Vec<_> = before.keys().filter(|name| name.contains("stays")).collect();
    assert!(names.len() >= 4 && names.iter().all(untouched), "{before:?} {after:?}");
    Ok(())
}

#[tokio::test]
async fn a_peer_that_is_lost_loses_nothing_and_is_as_before_once_it_is_back() -> anyhow::Result<()> {
    let Some(mut pair) = Pair::start().await? else { return Ok(()) };
    for name in ["a", "b"] {
        put_service(&pair.east.admin, name, flat()).await?;
        put_built_in(&pair.east.admin, &format!("{name}-1"), name, "10.108.0.1").await?;
    }
    let terms = Terms { lease: Duration::from_secs(12), steady: Duration::from_secs(1), ..Terms::default() };
    pair.west.mirror(&pair.east, terms).await?;
    for name in ["a-east", "b-east"] {
        eventually(name, endpoint("10.108.0.1"), || pair.west.endpoints(name)).await?;
    }
    pair.east.server.kill_api(0)?;
    let state = || async {
        let slice = pair.west.slices("a-east").await?.remove(0);
        Ok(slice.labels().get("tombolo.io/peer-state").cloned())
    };
    eventually("lost", Some("lost".to_owned()), state).await?;
    // Nobody answers there either: unready, but not gone.
    let silent = vec!["east 10.108.0.1:8080 unready".to_owned()];
    eventually("silent", silent, || pair.west.endpoints("a-east")).await?;
    assert!(pair.west.service("a-east").await?.is_some());

    pair.east.server.start_api(0).await?;
    delete::<Service>(&pair.east.admin, "b").await?;
    eventually("back", endpoint("10.108.0.1"), || pair.west.endpoints("a-east")).await?;
    let fresh =
        || async { Ok(pair.west.slices("a-east").await?.remove(0).labels().get("tombolo.io/peer-state").cloned()) };
    eventually("fresh", None, fresh).await?;
    eventually("deleted meanwhile", true, || async { Ok(pair.west.service("b-east").await?.is_none()) }).await
}

#[tokio::test]
async fn a_watch_whose_history_is_gone_finds_what_was_deleted() -> anyhow::Result<()> {
    let Some(mut pair) = Pair::start().await? else { return Ok(()) };
    for name in ["a", "b"] {
        put_service(&pair.east.admin, name, flat()).await?;
    }
    pair.west.mirror(&pair.east, Terms::default()).await?;
    eventually("there", true, || async { Ok(pair.west.service("b-east").await?.is_some()) }).await?;
    pair.east.server.start_api(1).await?;
    pair.east.server.kill_api(0)?;
    // By the other one, behind the back of the first, and beyond all history.
    let other = pair.east.server.client(1, "admin").await?;
    delete::<Service>(&other, "a").await?;
    pair.east.server.forget_history()?;
    pair.east.server.start_api(0).await?;
    eventually("deleted", true, || async { Ok(pair.west.service("a-east").await?.is_none()) }).await?;
    assert!(pair.west.service("b-east").await?.is_some());
    Ok(())
}

#[tokio::test]
async fn a_service_of_somebodys_own_is_never_taken_over_nor_deleted() -> anyhow::Result<()> {
    let Some(mut pair) = Pair::start().await? else { return Ok(()) };
    put_service(&pair.west.admin, "api-east", json!({"labels": {"app": "theirs"}})).await?;
    let before = pair.west.service("api-east").await?;
    put_service(&pair.east.admin, "api", flat()).await?;
    put_built_in(&pair.east.admin, "api-1", "api", "10.108.0.1").await?;
    put_service(&pair.east.admin, "other", flat()).await?;
    pair.west.mirror(&pair.east, Terms::default()).await?;
    let west = &pair.west;
    eventually("other", true, || async { Ok(west.service("other-east").await?.is_some()) }).await?;
    assert_eq!(west.service("api-east").await?, before);
    assert_eq!(west.endpoints("api-east").await?, [""; 0]);
    // Not even when the export goes.
    delete::<Service>(&pair.east.admin, "api").await?;
    delete::<Service>(&pair.east.admin, "other").await?;
    eventually("other", true, || async { Ok(west.service("other-east").await?.is_none()) }).await?;
    assert_eq!(west.service("api-east").await?, before);
    // Once the name is free it is imported.
    put_service(&pair.east.admin, "api", flat()).await?;
    delete::<Service>(&west.admin, "api-east").await?;
    eventually("free", endpoint("10.108.0.1"), || west.endpoints("api-east")).await
}

#[tokio::test]
async fn clusters_join_and_leave_in_any_order_and_a_namespace_may_come_later() -> anyhow::Result<()> {
    let Some(mut pair) = Pair::start().await? else { return Ok(()) };
    pair.mirror().await?;
    let Pair { west, east } = &pair;
    for (side, address) in [(east, "10.108.0.1"), (west, "10.100.0.1")] {
        let member = json!({"labels": {"mirror.linkerd.io/federated": "member"}});
        put_service(&side.admin, "web", member).await?;
        put_built_in(&side.admin, "web-1", "web", address).await?;
    }
    let all = ["east 10.108.0.1:8080", "west 10.100.0.1:8080"].map(str::to_owned);
    for side in [west, east] {
        eventually("joined", all.to_vec(), || side.endpoints("web-federated")).await?;
    }
    // A label that changes in place parts and joins.
    for (value, expected) in [(Value::Null, &all[1..]), (json!("member"), &all[..])] {
        patch::<Service>(&east.admin, "web", json!({"metadata": {"labels": {"mirror.linkerd.io/federated": value}}}))
            .await?;
        for side in [west, east] {
            eventually("label", expected.to_vec(), || side.endpoints("web-federated")).await?;
        }
    }
    delete::<Service>(&west.admin, "web").await?;
    for side in [west, east] {
        eventually("left", all[..1].to_vec(), || side.endpoints("web-federated")).await?;
    }
    delete::<Service>(&east.admin, "web").await?;
    for side in [west, east] {
        eventually("all left", true, || async { Ok(side.service("web-federated").await?.is_none()) }).await?;
    }

    east.namespace("later").await?;
    let service = json!({"metadata": {"name": "api", "namespace": "later", "labels": flat()["labels"]},
        "spec": {"ports": [{"port": 80}]}});
    Api::<Service>::namespaced(east.admin.clone(), "later")
        .create(&Default::default(), &serde_json::from_value(service)?)
        .await?;
    put::<Service>(
        &east.admin,
        json!({"metadata": {"name": "now", "labels": flat()["labels"]}, "spec": {"ports": [{"port": 80}]}}),
    )
    .await?;
    eventually("now", true, || async { Ok(west.service("now-east").await?.is_some()) }).await?;
    west.namespace("later").await?;
    let there =
        || async { Ok(Api::<Service>::namespaced(west.admin.clone(), "later").get_opt("api-east").await?.is_some()) };
    eventually("the namespace came", true, there).await
}

#[tokio::test]
async fn a_lease_that_is_given_back_is_taken_at_once() -> anyhow::Result<()> {
    let Some(pair) = Pair::start().await? else { return Ok(()) };
    let client = connect(Some(&pair.west.server.kubeconfig(0, "admin")?)).await?;
    let candidate = || Candidate::new(client.clone(), NAMESPACE, "mirror");
    let first = candidate().win().await?;
    let second = tokio::spawn(candidate().win());
    tokio::time::sleep(Duration::from_secs(4)).await;
    assert!(!second.is_finished(), "one leads");
    first.release().await;
    // It would run out after 15 s.
    let second = tokio::time::timeout(Duration::from_secs(12), second).await???;
    second.release().await;
    Ok(())
}

/// Every Service, slice and ServiceImport of west in the namespace, with its version.
async fn versions(pair: &Pair) -> anyhow::Result<BTreeMap<String, String>> {
    let client = &pair.west.admin;
    let services = Api::<Service>::namespaced(client.clone(), NAMESPACE).list(&ListParams::default()).await?;
    let slices = Api::<EndpointSlice>::namespaced(client.clone(), NAMESPACE).list(&ListParams::default()).await?;
    let imports = pair.west.mcs("ServiceImport").list(&ListParams::default()).await?;
    let services = services
        .into_iter()
        .map(|it| (format!("service {} {}", it.name_any(), subject(&it.metadata.labels)), it.metadata));
    let slices =
        slices.into_iter().map(|it| (format!("slice {} {}", it.name_any(), subject(&it.metadata.labels)), it.metadata));
    let imports = imports.into_iter().map(|it| (format!("import {}", it.name_any()), it.metadata));
    Ok(services
        .chain(slices)
        .chain(imports)
        .map(|(name, meta)| (name, meta.resource_version.unwrap_or_default()))
        .collect())
}

/// What a derived Service or a slice is of, whose own names don't tell.
fn subject(labels: &Option<BTreeMap<String, String>>) -> String {
    labels.as_ref().and_then(|all| all.get("multicluster.kubernetes.io/service-name").cloned()).unwrap_or_default()
}

fn endpoint(address: &str) -> Vec<String> {
    vec![format!("east {address}:8080")]
}

fn flat() -> Value {
    json!({"labels": {"mirror.linkerd.io/exported": "remote-discovery"}})
}
