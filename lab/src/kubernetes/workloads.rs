//! What runs in the clusters: servers that say who answers, Services by which they are shared, and a client in each.

use super::kubectl::Kubectl;
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
/// The image with the program `lab`, and busybox.
pub(super) const IMAGE: &str = "localhost/lab:1";
/// The federated Service, and the one that is joined by Cilium's mark, both in all clusters.
pub(super) const FEDERATED: &str = "frontend-federated";
pub(super) const MARKED: &str = "frontend-marked";
/// Does nothing until it is told to end.
const IDLE: &str = "trap 'exit 0' TERM\nsleep infinity &\nwait";
/// How long a pod that is told to end still takes new connections: endpoints are taken out of the tables of all clusters
/// meanwhile, on a machine that runs three of them.
const LINGER_MS: u32 = 8_000;
/// What servers listen on.
const SERVER_PORT: u16 = 8080;

/// Creates what isn't there, and puts back what a scene has changed.
pub(super) fn apply(kubectl: &Kubectl, build: &str) -> Result<()> {
    let place = NAMES.iter().position(|name| *name == kubectl.name).expect("it is one of them");
    let mut objects = vec![
        json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE}}),
        deployment("frontend", FRONTENDS[place], build, &server(kubectl.name)),
        service("frontend", "frontend", json!({"labels": {"mirror.linkerd.io/federated": "member"}})),
        service(MARKED, "frontend", json!({"annotations": {"service.cilium.io/global": "true"}})),
        deployment(CLIENT, 1, build, &container("client", &["/bin/sh", "-c", IDLE])),
    ];
    if kubectl.name != "north" {
        objects.push(deployment("api", OTHERS, build, &server(kubectl.name)));
        objects.push(service("api", "api", json!({"labels": {"mirror.linkerd.io/exported": "remote-discovery"}})));
    }
    kubectl.apply(&objects)
}

/// Waits until all of it is ready.
pub(super) fn wait(kubectl: &Kubectl) -> Result<()> {
    let deployments = ["frontend", CLIENT].into_iter().chain((kubectl.name != "north").then_some("api"));
    deployments.into_iter().try_for_each(|name| kubectl.rolled_out(NAMESPACE, &format!("deployment/{name}")))
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

fn deployment(app: &str, replicas: usize, build: &str, container: &Value) -> Value {
    let labels = json!({"app": app});
    json!({
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": app, "namespace": NAMESPACE},
        "spec": {
            "replicas": replicas,
            "selector": {"matchLabels": labels},
            "strategy": {"rollingUpdate": {"maxUnavailable": 0, "maxSurge": 1}},
            "template": {
                "metadata": {"labels": labels, "annotations": {"tombolo.io/build": build}},
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
