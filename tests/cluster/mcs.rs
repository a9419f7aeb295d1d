//! The MCS API between two clusters.

use super::{
    objects::{put_built_in, put_service},
    pair::{Pair, Side, eventually},
};
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::{
    Api, ResourceExt,
    api::{Patch, PatchParams, PostParams},
};
use serde_json::{Value, json};
use tombolo::{
    mirror::{
        crds::{self, Verdict},
        lease::Terms,
    },
    model::ObjectName,
};

#[tokio::test]
async fn an_export_is_imported_everywhere_and_conflicts_are_told_to_all() -> anyhow::Result<()> {
    let Some(mut pair) = Pair::start().await? else { return Ok(()) };
    for side in [&pair.west, &pair.east] {
        assert_eq!(side.install_crds().await?, [(); 4].map(|()| Verdict::Install));
    }
    pair.mirror().await?;
    let Pair { west, east } = &pair;
    hello(west, "10.100.0.1", json!({"exportedLabels": {"l": "west"}})).await?;
    for side in [west, east] {
        eventually("ready", ready(), || side.condition("ServiceImport", "hello", "Ready")).await?;
        eventually("slices", vec!["west 10.100.0.1:8080".to_owned()], || side.endpoints("hello")).await?;
        let import = side.mcs("ServiceImport").get("hello").await?;
        assert_eq!(import.data["status"]["clusters"], json!([{"cluster": "west"}]));
        assert_eq!(import.labels()["l"], "west");
        // Whoever reads the older version finds the same.
        assert_eq!(side.mcs_in("v1alpha1", "ServiceImport").get("hello").await?.data, import.data);
        let derived = side.service(&derived()).await?.unwrap();
        assert_eq!(json!(derived.spec.unwrap().cluster_ips), import.data["spec"]["ips"]);
        assert_eq!(derived.metadata.owner_references.unwrap()[0].uid, import.uid().unwrap());
    }
    let valid = ["True".to_owned(), "Valid".to_owned()];
    eventually("valid", valid, || west.condition("ServiceExport", "hello", "Valid")).await?;
    eventually("ready", ready(), || west.condition("ServiceExport", "hello", "Ready")).await?;

    // Whose timestamps are of the same second is decided by name.
    tokio::time::sleep(std::time::Duration::from_millis(1100)).await;
    hello(east, "10.108.0.1", json!({"exportedLabels": {"l": "east"}})).await?;
    let both = vec!["east 10.108.0.1:8080".to_owned(), "west 10.100.0.1:8080".to_owned()];
    for side in [west, east] {
        let conflict = ["True".to_owned(), "LabelsConflict".to_owned()];
        eventually("conflict", conflict, || side.condition("ServiceExport", "hello", "Conflict")).await?;
        eventually("both", both.clone(), || side.endpoints("hello")).await?;
        assert_eq!(side.mcs("ServiceImport").get("hello").await?.labels()["l"], "west", "the oldest decides");
    }

    west.unexport("hello").await?;
    for side in [west, east] {
        eventually("east alone", vec!["east 10.108.0.1:8080".to_owned()], || side.endpoints("hello")).await?;
        let label = || async { Ok(side.mcs("ServiceImport").get("hello").await?.labels().get("l").cloned()) };
        eventually("east decides", Some("east".to_owned()), label).await?;
    }
    east.unexport("hello").await?;
    for side in [west, east] {
        eventually("gone", None, || async { Ok(side.mcs("ServiceImport").get_opt("hello").await?) }).await?;
        eventually("gone", None, || async { Ok(side.service(&derived()).await?.map(|it| it.name_any())) }).await?;
        eventually("gone", Vec::new(), || side.endpoints("hello")).await?;
    }
    Ok(())
}

#[tokio::test]
async fn older_crds_are_used_as_they_are_brought_up_to_date_under_way_and_newer_ones_stay() -> anyhow::Result<()> {
    let Some(mut pair) = Pair::start().await? else { return Ok(()) };
    pair.west.install_crds().await?;
    for mut crd in crds::ours()?.into_iter().take(2) {
        crd.metadata.labels = None;
        crd.spec.versions.remove(0);
        crd.spec.versions[0].storage = true;
        Api::all(pair.east.admin.clone()).create(&PostParams::default(), &crd).await?;
    }
    pair.west.mirror(&pair.east, Terms::default()).await?;
    pair.east.mirror(&pair.west, Terms::default()).await?;
    let Pair { west, east } = &pair;
    hello(west, "10.100.0.1", json!({})).await?;
    let address = || async {
        let import = east.mcs_in("v1alpha1", "ServiceImport").get_opt("hello").await?;
        Ok(import.is_some_and(|import| !import.data["spec"]["ips"][0].is_null()))
    };
    eventually("imported by the older version", true, address).await?;
    let before = east.mcs_in("v1alpha1", "ServiceImport").get("hello").await?;

    let outdated = Verdict::Update("it doesn't serve v1beta1".to_owned());
    let missing = Verdict::Install;
    assert_eq!(east.install_crds().await?, [outdated.clone(), outdated, missing.clone(), missing]);
    let after = east.mcs("ServiceImport").get("hello").await?;
    assert_eq!((before.data, before.metadata.uid), (after.data, after.metadata.uid));
    put_service(&east.admin, "hello", json!({})).await?;
    put_built_in(&east.admin, "hello-1", "hello", "10.108.0.1").await?;
    east.export("hello", json!({})).await?;
    let both = vec!["east 10.108.0.1:8080".to_owned(), "west 10.100.0.1:8080".to_owned()];
    for side in [west, east] {
        eventually("both", both.clone(), || side.endpoints("hello")).await?;
    }

    let api: Api<CustomResourceDefinition> = Api::all(east.admin.clone());
    let newer = json!({"metadata": {"labels": {"multicluster.x-k8s.io/release-version": "v0.6.0"}}});
    let name = "serviceimports.multicluster.x-k8s.io";
    api.patch(name, &PatchParams::default(), &Patch::Merge(newer)).await?;
    let verdicts = east.install_crds().await?;
    assert!(matches!(&verdicts[..], [Verdict::Keep, Verdict::Newer(_), Verdict::Keep, Verdict::Keep]), "{verdicts:?}");
    assert_eq!(api.get(name).await?.labels()["multicluster.x-k8s.io/release-version"], "v0.6.0");
    Ok(())
}

#[tokio::test]
async fn crds_that_come_while_the_mirror_runs_are_found() -> anyhow::Result<()> {
    let Some(mut pair) = Pair::start().await? else { return Ok(()) };
    pair.mirror().await?;
    let Pair { west, east } = &pair;
    let flat = json!({"labels": {"mirror.linkerd.io/exported": "remote-discovery"}});
    put_service(&east.admin, "api", flat).await?;
    eventually("what needs none", true, || async { Ok(west.service("api-east").await?.is_some()) }).await?;
    for side in [west, east] {
        side.install_crds().await?;
    }
    hello(east, "10.108.0.1", json!({})).await?;
    eventually("ready", ready(), || west.condition("ServiceImport", "hello", "Ready")).await
}

/// The Service `hello` with one endpoint, exported.
async fn hello(side: &Side, address: &str, spec: Value) -> anyhow::Result<()> {
    put_service(&side.admin, "hello", json!({})).await?;
    put_built_in(&side.admin, "hello-1", "hello", address).await?;
    side.export("hello", spec).await
}

fn ready() -> [String; 2] {
    ["True".to_owned(), "Ready".to_owned()]
}

fn derived() -> String {
    let name = ObjectName { namespace: super::objects::NAMESPACE.to_owned(), name: "hello".to_owned() };
    tombolo::mirror::conventions::derived_name(&name).name
}
