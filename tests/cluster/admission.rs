//! The ValidatingAdmissionPolicy of the mirror: what its service account may write, and what not even RBAC lets slip.

use super::{
    linked::install,
    objects::{NAMESPACE, define, kind},
    server::Server,
};
use k8s_openapi::api::{core::v1::Service, discovery::v1::EndpointSlice};
use kube::{
    Api, Client,
    api::{ApiResource, DeleteParams, DynamicObject, Patch, PatchParams},
};
use serde_json::{Value, json};
use std::time::Duration;
use tokio::time::{Instant, sleep};

const MARK: &str = "tombolo.io/managed-by";
const SLICE_MARK: &str = "endpointslice.kubernetes.io/managed-by";
const OURS: &str = "mirror.tombolo.io";

#[tokio::test]
async fn the_mirror_writes_only_what_carries_its_marks() -> anyhow::Result<()> {
    let Some(west) = Server::start().await? else { return Ok(()) };
    install(&west)?;
    let admin = west.client(0, "admin").await?;
    let imports = kind("multicluster.x-k8s.io", "v1beta1", "ServiceImport", "serviceimports");
    let exports = kind("multicluster.x-k8s.io", "v1beta1", "ServiceExport", "serviceexports");
    define(&admin, &imports, "Namespaced").await?;
    define(&admin, &exports, "Namespaced").await?;
    let mirror = west.client_with(&west.token("tombolo-system/tombolo-mirror", 3600).await?).await?;
    // A policy takes a moment to hold.
    let deadline = Instant::now() + Duration::from_secs(60);
    while put(&mirror, "Service", NAMESPACE, "unmarked", json!({"spec": ports()})).await.is_ok() {
        anyhow::ensure!(Instant::now() < deadline, "the policy doesn't hold");
        sleep(Duration::from_millis(200)).await;
    }

    let marked = |mark: &str| json!({"labels": {mark: OURS}});
    let with = |meta: Value, key: &str, value: Value| {
        let mut object = json!({"metadata": meta});
        object[key] = value;
        object
    };
    let service = |spec: Value| with(marked(MARK), "spec", spec);
    // Its own: made, changed and deleted.
    put(&mirror, "Service", NAMESPACE, "api-east", service(ports())).await?;
    let other_port = json!({"ports": [{"name": "x", "port": 81}]});
    put(&mirror, "Service", NAMESPACE, "api-east", service(other_port)).await?;
    let slice = |meta: Value, endpoint: Value| json!({"metadata": meta, "addressType": "IPv4", "endpoints": [endpoint], "ports": [{"port": 80}]});
    let endpoint = json!({"addresses": ["10.108.0.1"]});
    put(&mirror, "EndpointSlice", NAMESPACE, "api-east-1", slice(marked(SLICE_MARK), endpoint.clone())).await?;
    put_defined(&mirror, &imports, "api", with(marked(MARK), "spec", json!({"type": "ClusterSetIP"}))).await?;

    // Others': as they are, with a mark put on them, with the mark taken away.
    put(&admin, "Service", NAMESPACE, "mine", json!({"spec": ports()})).await?;
    put(&admin, "EndpointSlice", NAMESPACE, "mine", slice(json!({}), endpoint.clone())).await?;
    put_defined(&admin, &exports, "api", json!({"spec": {}})).await?;
    put_defined(&admin, &imports, "mine", json!({"spec": {"type": "Headless"}})).await?;
    let mut targeted = endpoint.clone();
    targeted["targetRef"] = json!({"kind": "Pod", "name": "p", "namespace": NAMESPACE});
    let mut of_api_server = marked(SLICE_MARK);
    of_api_server["labels"]["kubernetes.io/service-name"] = json!("kubernetes");
    let cases: Vec<(&str, &str, &str, Value, &str)> = vec![
        ("Service", NAMESPACE, "new", json!({"spec": ports()}), "nothing without its mark"),
        (
            "Service",
            NAMESPACE,
            "mine",
            json!({"metadata": {"labels": {"a": "b"}}, "spec": ports()}),
            "nothing without its mark",
        ),
        ("Service", NAMESPACE, "mine", service(ports()), "this is not the mirror's"),
        (
            "Service",
            NAMESPACE,
            "api-east",
            json!({"metadata": {"labels": {MARK: "me"}}, "spec": ports()}),
            "without its mark",
        ),
        ("Service", "kube-system", "dns-east", service(ports()), "Kubernetes' own namespaces"),
        ("Service", "kube-public", "x", service(ports()), "Kubernetes' own namespaces"),
        (
            "Service",
            NAMESPACE,
            "selects",
            service(json!({"ports": [{"port": 80}], "selector": {"app": "x"}})),
            "selects no pods",
        ),
        (
            "Service",
            NAMESPACE,
            "external",
            service(json!({"ports": [{"port": 80}], "externalIPs": ["8.8.8.8"]})),
            "no externalIPs",
        ),
        (
            "Service",
            NAMESPACE,
            "named",
            service(json!({"type": "ExternalName", "externalName": "x.example"})),
            "no other host",
        ),
        ("EndpointSlice", NAMESPACE, "new", slice(json!({}), endpoint.clone()), "without its mark"),
        ("EndpointSlice", NAMESPACE, "mine", slice(marked(SLICE_MARK), endpoint.clone()), "this is not the mirror's"),
        (
            "EndpointSlice",
            "kube-system",
            "dns",
            slice(marked(SLICE_MARK), endpoint.clone()),
            "Kubernetes' own namespaces",
        ),
        ("EndpointSlice", NAMESPACE, "ref", slice(marked(SLICE_MARK), targeted), "name no object of this one"),
        ("EndpointSlice", "default", "api-server", slice(of_api_server, endpoint.clone()), "API server's endpoints"),
    ];
    for (what, namespace, name, object, said) in cases {
        refused(put(&mirror, what, namespace, name, object).await, said, name);
    }
    refused(
        put_defined(&mirror, &imports, "mine", with(marked(MARK), "spec", json!({"type": "ClusterSetIP"}))).await,
        "this is not the mirror's",
        "import",
    );
    refused(
        put_defined(&mirror, &imports, "new", json!({"spec": {"type": "ClusterSetIP"}})).await,
        "without its mark",
        "import",
    );
    // RBAC keeps it from the rest.
    refused(put_defined(&mirror, &exports, "api", json!({"spec": {"x": 1}})).await, "cannot patch", "export");

    let services: Api<Service> = Api::namespaced(mirror.clone(), NAMESPACE);
    let slices: Api<EndpointSlice> = Api::namespaced(mirror.clone(), NAMESPACE);
    let delete = DeleteParams::default();
    refused(services.delete("mine", &delete).await.map(drop), "this is not the mirror's", "delete");
    refused(slices.delete("mine", &delete).await.map(drop), "this is not the mirror's", "delete");
    refused(
        Api::<Service>::namespaced(mirror.clone(), "default").delete("kubernetes", &delete).await.map(drop),
        "this is not the mirror's",
        "delete",
    );
    services.delete("api-east", &delete).await?;
    slices.delete("api-east-1", &delete).await?;
    // It concerns nobody else.
    put(&admin, "Service", NAMESPACE, "mine", json!({"metadata": {"labels": {"a": "c"}}, "spec": ports()})).await?;
    Ok(())
}

fn ports() -> Value {
    json!({"ports": [{"name": "http", "port": 80}]})
}

fn refused(result: Result<(), kube::Error>, said: &str, name: &str) {
    match result {
        Err(kube::Error::Api(status)) => assert!(status.message.contains(said), "{name}: {}", status.message),
        other => panic!("{name} was not refused: {other:?}"),
    }
}

/// Applies as the mirror does.
async fn put(client: &Client, what: &str, namespace: &str, name: &str, object: Value) -> Result<(), kube::Error> {
    let resource = match what {
        "Service" => kind("", "v1", "Service", "services"),
        _ => kind("discovery.k8s.io", "v1", "EndpointSlice", "endpointslices"),
    };
    apply(client, &resource, namespace, name, object).await
}

async fn put_defined(client: &Client, resource: &ApiResource, name: &str, object: Value) -> Result<(), kube::Error> {
    let deadline = Instant::now() + Duration::from_secs(60);
    loop {
        match apply(client, resource, NAMESPACE, name, object.clone()).await {
            // Defined a moment ago.
            Err(kube::Error::Api(status)) if status.code == 404 && Instant::now() < deadline => {
                sleep(Duration::from_millis(200)).await;
            }
            applied => return applied,
        }
    }
}

async fn apply(
    client: &Client,
    resource: &ApiResource,
    namespace: &str,
    name: &str,
    mut object: Value,
) -> Result<(), kube::Error> {
    object["apiVersion"] = json!(resource.api_version);
    object["kind"] = json!(resource.kind);
    object["metadata"]["name"] = json!(name);
    object["metadata"]["namespace"] = json!(namespace);
    let api: Api<DynamicObject> = Api::namespaced_with(client.clone(), namespace, resource);
    api.patch(name, &PatchParams::apply("mirror.tombolo.io").force(), &Patch::Apply(&object)).await.map(drop)
}
