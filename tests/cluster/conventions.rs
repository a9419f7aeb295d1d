//! What exported Services become while their marks change in place, between two API servers.

use super::{
    objects::{patch, put_built_in, put_service},
    pair::{Pair, Side, eventually},
};
use k8s_openapi::api::core::v1::Service;
use kube::{Api, api::PostParams};
use serde_json::{Value, json};
use tombolo::mirror::lease::Terms;

#[tokio::test]
async fn a_label_that_changes_in_place_makes_another_import_of_the_service() -> anyhow::Result<()> {
    let Some(mut pair) = Pair::start().await? else { return Ok(()) };
    pair.west.mirror(&pair.east, Terms::default()).await?;
    let (west, east) = (&pair.west, &pair.east);
    put_service(&east.admin, "api", json!({"labels": {"mirror.linkerd.io/exported": "remote-discovery"}})).await?;
    put_built_in(&east.admin, "api-1", "api", "10.108.0.1").await?;
    let remote = || vec!["east 10.108.0.1:8080".to_owned()];
    eventually("flat", remote(), || west.endpoints("api-east")).await?;
    let address = address_of(west, "api-east").await?;

    // Through a gateway that isn't there: its clients keep the address, and are refused instead of led astray.
    label(east, "api", json!({"mirror.linkerd.io/exported": "true"})).await?;
    eventually("gateway", Vec::new(), || west.endpoints("api-east")).await?;
    assert_eq!(address_of(west, "api-east").await?, address);

    label(east, "api", json!({"mirror.linkerd.io/exported": null, "mirror.linkerd.io/federated": "member"})).await?;
    eventually("federated", remote(), || west.endpoints("api-federated")).await?;
    eventually("no more flat", true, || async { Ok(west.service("api-east").await?.is_none()) }).await?;

    // The own cluster joins, the other one leaves, and the last one takes the Service along.
    put_service(&west.admin, "api", json!({"labels": {"mirror.linkerd.io/federated": "member"}})).await?;
    put_built_in(&west.admin, "api-1", "api", "10.100.0.1").await?;
    let local = || vec!["west 10.100.0.1:8080".to_owned()];
    eventually("joined", [remote(), local()].concat(), || west.endpoints("api-federated")).await?;
    label(east, "api", json!({"mirror.linkerd.io/federated": null})).await?;
    eventually("left", local(), || west.endpoints("api-federated")).await?;
    label(west, "api", json!({"mirror.linkerd.io/federated": null})).await?;
    eventually("none", true, || async { Ok(west.service("api-federated").await?.is_none()) }).await?;
    eventually("none", Vec::new(), || west.endpoints("api-federated")).await?;

    // And back.
    label(east, "api", json!({"mirror.linkerd.io/exported": "remote-discovery"})).await?;
    eventually("flat again", remote(), || west.endpoints("api-east")).await
}

#[tokio::test]
async fn what_can_not_be_imported_waits_or_is_left_out_and_keeps_nothing_else_from_it() -> anyhow::Result<()> {
    let Some(mut pair) = Pair::start().await? else { return Ok(()) };
    pair.west.mirror(&pair.east, Terms::default()).await?;
    let (west, east) = (&pair.west, &pair.east);
    // A name that would be too long, and one whose namespace isn't here yet.
    let flat = json!({"mirror.linkerd.io/exported": "remote-discovery"});
    let long = "s".repeat(59);
    put_service(&east.admin, &long, json!({"labels": flat})).await?;
    east.namespace("later").await?;
    let service: Service = serde_json::from_value(json!({
        "metadata": {"name": "api", "labels": flat}, "spec": {"ports": [{"port": 80}]},
    }))?;
    Api::namespaced(east.admin.clone(), "later").create(&PostParams::default(), &service).await?;
    put_service(&east.admin, "api", json!({"labels": flat})).await?;
    eventually("one that is well", true, || async { Ok(west.service("api-east").await?.is_some()) }).await?;
    let all = || async {
        let services: Api<Service> = Api::all(west.admin.clone());
        let names = services.list(&Default::default()).await?.into_iter().filter_map(|service| {
            let meta = service.metadata;
            let is_ours = meta.labels?.contains_key("tombolo.io/managed-by");
            is_ours.then(|| format!("{}/{}", meta.namespace.unwrap_or_default(), meta.name.unwrap_or_default()))
        });
        Ok(names.collect::<Vec<_>>())
    };
    assert_eq!(all().await?, ["shop/api-east"]);
    west.namespace("later").await?;
    eventually("the namespace came", vec!["later/api-east".to_owned(), "shop/api-east".to_owned()], all).await
}

#[tokio::test]
async fn marks_join_services_only_while_both_carry_them() -> anyhow::Result<()> {
    let Some(mut pair) = Pair::start().await? else { return Ok(()) };
    pair.west.mirror(&pair.east, Terms::default()).await?;
    let (west, east) = (&pair.west, &pair.east);
    let (cilium, istio) = ("service.cilium.io/global", "istio.io/global");
    let remote = || vec!["east 10.108.0.1:8080".to_owned()];
    for (name, field, mark) in [("cart", "annotations", cilium), ("search", "labels", istio)] {
        let marked = |value: Value| json!({field: {mark: value}});
        put_service(&east.admin, name, marked(json!("true"))).await?;
        put_built_in(&east.admin, &format!("{name}-1"), name, "10.108.0.1").await?;
        put_service(&west.admin, name, json!({})).await?;
        // One that carries the mark joins, and by then the other one would have.
        let witness = format!("{name}-too");
        for side in [west, east] {
            put_service(&side.admin, &witness, marked(json!("true"))).await?;
        }
        put_built_in(&east.admin, &format!("{witness}-1"), &witness, "10.108.0.1").await?;
        eventually(&witness, remote(), || west.endpoints(&witness)).await?;
        assert_eq!(west.endpoints(name).await?, [""; 0]);

        patch::<Service>(&west.admin, name, json!({"metadata": marked(json!("true"))})).await?;
        eventually(name, remote(), || west.endpoints(name)).await?;
        let labels = west.service(name).await?.and_then(|service| service.metadata.labels).unwrap_or_default();
        assert!(!labels.contains_key("tombolo.io/managed-by"), "it stays its owner's: {labels:?}");
        patch::<Service>(&west.admin, name, json!({"metadata": marked(json!(null))})).await?;
        eventually(name, Vec::new(), || west.endpoints(name)).await?;
        assert!(west.service(name).await?.is_some());
    }
    Ok(())
}

async fn label(side: &Side, service: &str, labels: Value) -> anyhow::Result<()> {
    patch::<Service>(&side.admin, service, json!({"metadata": {"labels": labels}})).await
}

async fn address_of(side: &Side, service: &str) -> anyhow::Result<Option<String>> {
    Ok(side.service(service).await?.and_then(|service| service.spec?.cluster_ip))
}
