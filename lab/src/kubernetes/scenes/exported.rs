//! A Service of all clusters, exported by the MCS API: a ServiceImport, and the Service that is derived from it.

use crate::{
    clusters::NAMES,
    demo::shares::{by_endpoint, check},
    kubernetes::{
        kubectl::{eventually, text},
        stage::Stage,
        workloads::NAMESPACE,
    },
};
use anyhow::{Result, ensure};
use serde_json::json;
use std::time::Duration;

const SERVICE: &str = "frontend";
/// Where a ServiceImport names the Service that is derived from it, as a JSON pointer.
const DERIVED: &str = "/metadata/annotations/multicluster.kubernetes.io~1derived-service";
const KIND: &str = "serviceexports.multicluster.x-k8s.io";

pub(super) fn play(stage: &mut Stage<'_>) -> Result<()> {
    let export = json!({
        "apiVersion": "multicluster.x-k8s.io/v1beta1",
        "kind": "ServiceExport",
        "metadata": {"name": SERVICE, "namespace": NAMESPACE},
    });
    for cluster in NAMES {
        stage.ground.cluster(cluster).apply(std::slice::from_ref(&export))?;
    }
    let played = imported(stage);
    for cluster in NAMES {
        let remove = ["--namespace", NAMESPACE, "delete", KIND, SERVICE, "--ignore-not-found"];
        stage.ground.cluster(cluster).run(&remove)?;
    }
    played
}

fn imported(stage: &mut Stage<'_>) -> Result<()> {
    for cluster in NAMES {
        let kubectl = stage.ground.cluster(cluster);
        let derived = eventually(&format!("a ServiceImport in {cluster}"), || {
            let kind = "serviceimports.multicluster.x-k8s.io";
            let import = kubectl.get(&["--namespace", NAMESPACE, kind, SERVICE])?;
            let clusters = import.pointer("/status/clusters").and_then(|clusters| clusters.as_array());
            ensure!(clusters.map(Vec::len) == Some(NAMES.len()), "it has the clusters {clusters:?}");
            Ok(text(&import, DERIVED)?.to_owned())
        })?;
        stage.settle(&derived, &by_endpoint(), &[cluster])?;
        stage.ask(cluster, &derived, false)?;
    }
    stage.watch(Duration::from_secs(4))?;
    for (cluster, report) in stage.stop()? {
        check(&format!("clients in {cluster}"), &report.by_cluster, &by_endpoint())?;
    }
    stage.said.note("ServiceExports in all clusters, ServiceImports and derived Services");
    Ok(())
}
