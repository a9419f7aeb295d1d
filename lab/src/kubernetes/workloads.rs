//! What runs in the clusters: servers that say who answers, Services by which they are shared, and a client in each.

use super::{kubectl::Kubectl, outage::CALLERS};
use crate::{
    clusters::NAMES,
    demo::{FRONTENDS, OTHERS},
    manifests::SERVICE_PORT,
};
use anyhow::Result;
use serde_json::{Value, json};

/// Where all of it is.
pub(super) const NAMESPACE: &str = "tombolo-shop";
/// The Deployment of the one pod that asks.
pub(super) const CLIENT: &str = "client";
/// The Deployment of one in west whose connections Tombolo leaves to kube-proxy.
pub(super) const KUBE_PROXY_CLIENT: &str = "client-kube-proxy";
/// The image with the program `lab`, and busybox.
pub(super) const IMAGE: &str = "localhost/lab:1";
/// The federated Service, in all clusters.
pub(super) const FEDERATED: &str = "frontend-federated";
/// The Services that are joined by marks, in all clusters: Cilium's and Istio's.
pub(super) const MARKED: [&str; 2] = ["frontend-marked", "frontend-global"];
/// What others reach through the gateway of its cluster.
pub(super) const ANALYTICS: &str = "analytics";
/// The cluster that has it.
pub(super) const GATEWAY: &str = "east";
/// Does nothing until it is told to end.
const IDLE: &str = "trap 'exit 0' TERM\nsleep infinity &\nwait";
/// How long a pod that is told to end still takes new connections: endpoints are taken out of the tables of all clusters
/// meanwhile, on a machine that runs three of them.
const LINGER_MS: u32 = 8_000;
/// What servers listen on.
pub(super) const SERVER_PORT: u16 = 8080;

/// A Service of a cluster, with the label or annotation by which it is exported.
struct Exported {
    name: &'static str,
    app: &'static str,
    /// Whether the mark is a label or an annotation.
    kind: &'static str,
    mark: &'static str,
    value: &'static str,
}

/// What a cluster exports.
fn exported(cluster: &str) -> Vec<Exported> {
    let service = |name, app, kind, mark, value| Exported { name, app, kind, mark, value };
    let mut exported = vec![
        service("frontend", "frontend", "labels", "mirror.linkerd.io/federated", "member"),
        service(MARKED[0], "frontend", "annotations", "service.cilium.io/global", "true"),
        service(MARKED[1], "frontend", "labels", "istio.io/global", "true"),
    ];
    if cluster != "north" {
        exported.push(service("api", "api", "labels", "mirror.linkerd.io/exported", "remote-discovery"));
    }
    if cluster == GATEWAY {
        exported.push(service(ANALYTICS, ANALYTICS, "labels", "mirror.linkerd.io/exported", "true"));
    }
    exported
}

/// The Deployments of a cluster: what they are called, and how many pods they have.
fn deployments(cluster: &str) -> Vec<(&'static str, usize)> {
    let place = NAMES.iter().position(|name| *name == cluster).expect("it is one of them");
    let mut deployments = vec![("frontend", FRONTENDS[place]), (CLIENT, 1)];
    deployments.extend((cluster != "north").then_some(("api", OTHERS)));
    deployments.extend((cluster == GATEWAY).then_some((ANALYTICS, OTHERS)));
    deployments.extend((cluster == CALLERS).then_some((KUBE_PROXY_CLIENT, 1)));
    deployments
}

/// Creates what isn't there, and puts back what a scene has changed.
pub(super) fn apply(kubectl: &Kubectl, build: &str) -> Result<()> {
    let mut objects = vec![json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE}})];
    let idle = container("client", &["/bin/sh", "-c", IDLE]);
    for (name, replicas) in deployments(kubectl.name) {
        objects.push(match name {
            CLIENT => deployment(name, replicas, build, &idle, &[]),
            KUBE_PROXY_CLIENT => deployment(name, replicas, build, &idle, &[("tombolo.io/opt-out", "true")]),
            _ => deployment(name, replicas, build, &server(kubectl.name), &[]),
        });
    }
    for Exported { name, app, kind, mark, value } in exported(kubectl.name) {
        objects.push(service(name, app, json!({kind: {mark: value}})));
    }
    kubectl.apply(&objects)
}

/// Takes all marks away, by which Services are exported.
pub(super) fn withdraw(kubectl: &Kubectl) -> Result<()> {
    for Exported { name, kind, mark, .. } in exported(kubectl.name) {
        let (verb, mark) = (if kind == "labels" { "label" } else { "annotate" }, format!("{mark}-"));
        kubectl.run(&["--namespace", NAMESPACE, verb, "service", name, &mark])?;
    }
    Ok(())
}

/// Waits until all of it is ready.
pub(super) fn wait(kubectl: &Kubectl) -> Result<()> {
    let names = deployments(kubectl.name).into_iter().map(|(name, _)| format!("deployment/{name}"));
    names.into_iter().try_for_each(|name| kubectl.rolled_out(NAMESPACE, &name))
}

/// The names of the pods that answer for `app`.
pub(super) fn pods_of(kubectl: &Kubectl, app: &str) -> Result<Vec<String>> {
    let pods = kubectl.pods(NAMESPACE, &format!("app={app}"))?;
    pods.iter().map(|pod| Ok(super::kubectl::text(pod, "/metadata/name")?.to_owned())).collect()
}

/// A container of our image.
pub(super) fn container(name: &str, command: &[&str]) -> Value {
    json!({"name": name, "image": IMAGE, "imagePullPolicy": "IfNotPresent", "command": command})
}

/// A container that says who answers.
fn server(cluster: &str) -> Value {
    let linger = LINGER_MS.to_string();
    let command = ["/bin/lab", "server", "--cluster", cluster, "--pod", "$(POD)", "--linger-ms", linger.as_str()];
    let mut server = container("server", &command);
    server["env"] = json!([{"name": "POD", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}}]);
    server["readinessProbe"] =
        json!({"httpGet": {"path": "/", "port": SERVER_PORT}, "periodSeconds": 1, "timeoutSeconds": 3});
    server
}

fn deployment(
    app: &str,
    replicas: usize,
    build: &str,
    container: &Value,
    annotations: &[(&'static str, &'static str)],
) -> Value {
    let labels = json!({"app": app});
    let mut all = json!({"tombolo.io/build": build});
    for (name, value) in annotations {
        all[*name] = json!(value);
    }
    json!({
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": app, "namespace": NAMESPACE},
        "spec": {
            "replicas": replicas,
            "selector": {"matchLabels": labels},
            "strategy": {"rollingUpdate": {"maxUnavailable": 0, "maxSurge": 1}},
            "template": {
                "metadata": {"labels": labels, "annotations": all},
                "spec": {"terminationGracePeriodSeconds": 30, "containers": [container]},
            },
        },
    })
}

fn service(name: &str, app: &str, mut meta: Value) -> Value {
    meta["name"] = name.into();
    meta["namespace"] = NAMESPACE.into();
    let port = |name: &str, protocol: &str| json!({"name": name, "protocol": protocol, "port": SERVICE_PORT, "targetPort": SERVER_PORT});
    json!({
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": meta,
        "spec": {"selector": {"app": app}, "ports": [port("http", "TCP"), port("dgram", "UDP")]},
    })
}
