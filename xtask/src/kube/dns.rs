//! The clusters' DNS: CoreDNS as a Deployment behind the Service `kube-dns`, as elsewhere. It answers for
//! `clusterset.local` too, by its multicluster plugin, once ServiceImports are an API of the cluster.

use super::{
    build,
    image::Image,
    kubectl::{apply, kubectl},
    layout::Cluster,
};
use crate::process::output;
use serde_json::{Value, json};

/// What CoreDNS is told. `clusterset.local` has a block of its own: without the ServiceImport API it answers nothing, and
/// would keep the other names from being answered.
const COREFILE: &str = "cluster.local in-addr.arpa ip6.arpa {
    errors
    health
    ready
    kubernetes cluster.local in-addr.arpa ip6.arpa {
        ttl 5
    }
    cache 5
    reload 2s
    loadbalance
}
clusterset.local {
    errors
    kubernetes clusterset.local {
        multicluster clusterset.local
        startup_timeout 1s
        ttl 5
    }
    loadbalance
}
";

/// The image of CoreDNS.
pub(crate) fn image() -> anyhow::Result<Image> {
    let mut image = Image::new(&name()?, &["/coredns"]);
    image.program("/coredns", &build::folder()?.join("coredns"))?;
    Ok(image)
}

/// Creates what CoreDNS needs and CoreDNS itself, which starts as soon as there is a node.
pub(crate) fn apply_to(cluster: &Cluster) -> anyhow::Result<()> {
    apply(cluster, &objects(cluster, &name()?))
}

/// Waits until it answers.
pub(crate) fn wait(cluster: &Cluster) -> anyhow::Result<()> {
    let mut wait = kubectl(cluster)?;
    wait.args(["--namespace", "kube-system", "rollout", "status", "deployment/coredns", "--timeout=180s"]);
    output(&mut wait).map(drop)
}

fn name() -> anyhow::Result<String> {
    Ok(format!("localhost/coredns:{}", build::dns_version()?))
}

fn objects(cluster: &Cluster, image: &str) -> Vec<Value> {
    let meta = |name: &str| json!({"name": name, "namespace": "kube-system"});
    let labels = json!({"k8s-app": "kube-dns"});
    let read = |group: &str, resources: &[&str]| json!({"apiGroups": [group], "resources": resources, "verbs": ["list", "watch"]});
    let probe = |path: &str, port: u16| json!({"httpGet": {"path": path, "port": port}, "periodSeconds": 2, "timeoutSeconds": 5});
    vec![
        json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": meta("coredns")}),
        json!({"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRole", "metadata": {"name": "system:coredns"},
        "rules": [
            read("", &["endpoints", "services", "pods", "namespaces"]),
            read("discovery.k8s.io", &["endpointslices"]),
            read("multicluster.x-k8s.io", &["serviceimports"]),
        ]}),
        json!({"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRoleBinding", "metadata": {"name": "system:coredns"},
            "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "system:coredns"},
            "subjects": [{"kind": "ServiceAccount", "name": "coredns", "namespace": "kube-system"}]}),
        json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": meta("coredns"), "data": {"Corefile": COREFILE}}),
        json!({"apiVersion": "v1", "kind": "Service", "metadata": meta("kube-dns"), "spec": {
            "clusterIP": cluster.dns_service(), "selector": labels, "ports": [
                {"name": "dns", "port": 53, "protocol": "UDP"}, {"name": "dns-tcp", "port": 53, "protocol": "TCP"}]}}),
        json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": meta("coredns"), "spec": {
            "replicas": 1,
            "selector": {"matchLabels": labels},
            "template": {"metadata": {"labels": labels}, "spec": {
                "serviceAccountName": "coredns",
                "priorityClassName": "system-cluster-critical",
                "dnsPolicy": "Default",
                "containers": [{
                    "name": "coredns", "image": image, "args": ["-conf", "/etc/coredns/Corefile"],
                    "volumeMounts": [{"name": "config", "mountPath": "/etc/coredns", "readOnly": true}],
                    "livenessProbe": probe("/health", 8080),
                    "readinessProbe": probe("/ready", 8181),
                }],
                "volumes": [{"name": "config", "configMap": {"name": "coredns"}}],
            }},
        }}),
    ]
}

#[cfg(test)]
mod tests {
    use super::super::layout::CLUSTERS;
    use super::*;

    #[test]
    fn pods_ask_at_the_address_where_it_listens() {
        let objects = objects(&CLUSTERS[2], "localhost/coredns:1");
        let service = objects.iter().find(|object| object["kind"] == "Service").unwrap();
        assert_eq!(service["spec"]["clusterIP"], "10.98.0.10");
        let deployment = objects.iter().find(|object| object["kind"] == "Deployment").unwrap();
        assert_eq!(service["spec"]["selector"], deployment["spec"]["template"]["metadata"]["labels"]);
    }

    #[test]
    fn names_of_the_set_don_t_wait_for_those_of_the_cluster_nor_the_other_way_round() {
        let blocks: Vec<&str> = COREFILE.split("\n}\n").collect();
        assert!(blocks[0].contains("ready") && !blocks[0].contains("clusterset.local"));
        assert!(blocks[1].contains("multicluster clusterset.local") && !blocks[1].contains("ready"));
    }
}
