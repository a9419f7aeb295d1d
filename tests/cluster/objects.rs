//! Objects for the tests, written as a person would.

use super::followed::PATIENCE;
use anyhow::Context;
use k8s_openapi::{
    api::{
        core::v1::{Namespace, Node, Pod, Service},
        discovery::v1::EndpointSlice,
    },
    apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition,
};
use kube::{
    Api, Client,
    api::{DeleteParams, Patch, PatchParams, PostParams},
    core::{ApiResource, DynamicObject, GroupVersionKind, NamespaceResourceScope},
};
use serde::{Serialize, de::DeserializeOwned};
use serde_json::{Value, json};
use std::{fmt::Debug, time::Duration};
use tokio::time::{Instant, sleep};

pub(crate) const NAMESPACE: &str = "shop";

/// Creates a namespace, the agent's node and another one.
pub(crate) async fn ground(client: &Client) -> anyhow::Result<()> {
    let namespace: Namespace = serde_json::from_value(json!({"metadata": {"name": NAMESPACE}}))?;
    Api::all(client.clone()).create(&PostParams::default(), &namespace).await?;
    for (name, zone) in [("node-1", "a"), ("node-2", "b")] {
        let labels = json!({"topology.kubernetes.io/zone": zone});
        let node: Node = serde_json::from_value(json!({"metadata": {"name": name, "labels": labels}}))?;
        Api::all(client.clone()).create(&PostParams::default(), &node).await?;
    }
    Ok(())
}

pub(crate) async fn put<K>(client: &Client, object: Value) -> anyhow::Result<()>
where
    K: kube::Resource<Scope = NamespaceResourceScope> + Clone + Debug + DeserializeOwned + Serialize,
    K::DynamicType: Default,
{
    let object: K = serde_json::from_value(object)?;
    Api::<K>::namespaced(client.clone(), NAMESPACE).create(&PostParams::default(), &object).await?;
    Ok(())
}

pub(crate) async fn patch<K>(client: &Client, name: &str, patch: Value) -> anyhow::Result<()>
where
    K: kube::Resource<Scope = NamespaceResourceScope> + Clone + Debug + DeserializeOwned,
    K::DynamicType: Default,
{
    let api = Api::<K>::namespaced(client.clone(), NAMESPACE);
    api.patch(name, &PatchParams::default(), &Patch::Merge(patch)).await?;
    Ok(())
}

pub(crate) async fn delete<K>(client: &Client, name: &str) -> anyhow::Result<()>
where
    K: kube::Resource<Scope = NamespaceResourceScope> + Clone + Debug + DeserializeOwned,
    K::DynamicType: Default,
{
    Api::<K>::namespaced(client.clone(), NAMESPACE).delete(name, &DeleteParams::default().grace_period(0)).await?;
    Ok(())
}

/// A Service; `meta` has labels and annotations.
pub(crate) async fn put_service(client: &Client, name: &str, mut meta: Value) -> anyhow::Result<()> {
    meta["name"] = name.into();
    put::<Service>(client, json!({"metadata": meta, "spec": {"ports": [{"port": 80}]}})).await
}

/// A slice of one endpoint; `labels` besides the Service's name.
pub(crate) async fn put_slice(client: &Client, name: &str, labels: Value, address: &str) -> anyhow::Result<()> {
    let slice = json!({
        "metadata": {"name": name, "labels": labels},
        "addressType": "IPv4",
        "endpoints": [{"addresses": [address]}],
        "ports": [{"name": "", "port": 8080}],
    });
    put::<EndpointSlice>(client, slice).await
}

/// A slice as the built-in controller makes them.
pub(crate) async fn put_built_in(client: &Client, name: &str, service: &str, address: &str) -> anyhow::Result<()> {
    let labels = json!({
        "kubernetes.io/service-name": service,
        "endpointslice.kubernetes.io/managed-by": "endpointslice-controller.k8s.io",
    });
    put_slice(client, name, labels, address).await
}

/// A slice as a mirror makes them.
pub(crate) async fn put_mirrored(client: &Client, name: &str, service: &str, address: &str) -> anyhow::Result<()> {
    let labels = json!({
        "kubernetes.io/service-name": service,
        "multicluster.kubernetes.io/source-cluster": "east",
        "endpointslice.kubernetes.io/managed-by": "tombolo.io",
    });
    put_slice(client, name, labels, address).await
}

/// A kind that is not built in.
pub(crate) fn kind(group: &str, version: &str, kind: &str, plural: &str) -> ApiResource {
    ApiResource::from_gvk_with_plural(&GroupVersionKind::gvk(group, version, kind), plural)
}

/// Defines the kind; its objects may hold anything.
pub(crate) async fn define(client: &Client, kind: &ApiResource, scope: &str) -> anyhow::Result<()> {
    let schema = json!({"openAPIV3Schema": {"type": "object", "x-kubernetes-preserve-unknown-fields": true}});
    let definition: CustomResourceDefinition = serde_json::from_value(json!({
        "metadata": {
            "name": format!("{}.{}", kind.plural, kind.group),
            // Names below *.k8s.io are Kubernetes' own, which it wants to be told.
            "annotations": {"api-approved.kubernetes.io": "unapproved, test only"},
        },
        "spec": {
            "group": kind.group,
            "scope": scope,
            "names": {"kind": kind.kind, "plural": kind.plural, "singular": kind.kind.to_lowercase()},
            "versions": [{"name": kind.version, "served": true, "storage": true, "schema": schema}],
        },
    }))?;
    Api::all(client.clone()).create(&PostParams::default(), &definition).await?;
    Ok(())
}

/// Creates an object of a kind that was just defined, which takes a moment.
pub(crate) async fn put_defined(api: Api<DynamicObject>, kind: &ApiResource, object: Value) -> anyhow::Result<()> {
    let mut object: Value = object;
    object["apiVersion"] = kind.api_version.clone().into();
    object["kind"] = kind.kind.clone().into();
    let object: DynamicObject = serde_json::from_value(object)?;
    let deadline = Instant::now() + PATIENCE;
    loop {
        match api.create(&PostParams::default(), &object).await {
            Err(kube::Error::Api(status)) if status.code == 404 && Instant::now() < deadline => {
                sleep(Duration::from_millis(100)).await;
            }
            created => return created.map(drop).context("create an object of a kind that was just defined"),
        }
    }
}

pub(crate) async fn put_pod(client: &Client, name: &str, node: &str, containers: &[&str]) -> anyhow::Result<()> {
    let containers: Vec<_> = containers.iter().map(|name| json!({"name": name, "image": "none"})).collect();
    put::<Pod>(client, json!({"metadata": {"name": name}, "spec": {"nodeName": node, "containers": containers}})).await
}
