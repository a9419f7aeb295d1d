//! `kube check`: that the clusters are real ones. Pods run, Services lead to them, pods of different clusters reach each
//! other by their own addresses, and a token of one cluster is nobody in another.

use super::{
    cgroups,
    kubectl::{apply, get, kubectl},
    layout::{CLUSTERS, Cluster},
};
use crate::process::output;
use anyhow::{Context, bail, ensure};
use serde_json::{Value, json};
use std::{
    collections::BTreeSet,
    fs,
    process::Command,
    thread,
    time::{Duration, Instant},
};

const NAMESPACE: &str = "tombolo-check";
/// How long what is being set up may take.
const PATIENCE: Duration = Duration::from_secs(180);
/// Pods of the Deployment.
const REPLICAS: usize = 2;
/// Requests to a Service: that all of them meet the same one of two pods has a probability of 1 in 2^19.
const REQUESTS: usize = 20;

/// What a pod of the Deployment answers: who it is, and who asked.
const SERVE: &str = r#"mkdir -p /www/cgi-bin
cat >/www/cgi-bin/who <<END
#!/bin/sh
printf 'Content-Type: text/plain\r\n\r\n'
echo "$CLUSTER $(hostname) \$REMOTE_ADDR"
END
chmod +x /www/cgi-bin/who
exec httpd -f -p 8080 -h /www"#;

/// A pod as the checks see it.
struct Pod {
    name: String,
    address: String,
    node: String,
    uid: String,
}

/// Runs the checks in the clusters that have nodes, and removes what they made.
pub(crate) fn main() -> anyhow::Result<()> {
    let clusters: Vec<Cluster> = CLUSTERS.into_iter().filter(|cluster| !cluster.known_nodes().is_empty()).collect();
    ensure!(!clusters.is_empty(), "no cluster has nodes: cargo xtask kube up");
    let mut tally = Tally::default();
    for cluster in &clusters {
        tally.note(format!("{} takes objects", cluster.name), apply(cluster, &objects(cluster)));
    }
    for cluster in &clusters {
        tally.note(format!("{} runs pods", cluster.name), pods_run(cluster));
    }
    for cluster in &clusters {
        tally.note(format!("a pod of {} reaches both pods of a Service", cluster.name), reaches_service(cluster));
        tally.note(format!("a pod of {} finds a Service by name", cluster.name), finds_by_name(cluster));
        tally.note(
            format!("a node of {} reaches the API by the Service kubernetes", cluster.name),
            node_reaches_api(cluster),
        );
        tally.note(format!("pods of {} are in the cgroup of their node", cluster.name), is_in_cgroup(cluster));
        tally.note(format!("a token of {} is who it is there, and nobody elsewhere", cluster.name), token(cluster));
        for other in clusters.iter().filter(|other| *other != cluster) {
            let what = format!("a pod of {} reaches pods of {}, as itself", cluster.name, other.name);
            tally.note(what, reaches_pods(cluster, other));
        }
    }
    for cluster in &clusters {
        let mut delete = kubectl(cluster)?;
        delete.args(["delete", "namespace", NAMESPACE, "--ignore-not-found", "--timeout=120s"]);
        tally.note(format!("{} removes what was made", cluster.name), output(&mut delete).map(drop));
    }
    println!("\n{} passed, {} failed", tally.passed, tally.failed);
    if tally.failed > 0 {
        bail!("{} of {} checks failed", tally.failed, tally.passed + tally.failed);
    }
    Ok(())
}

#[derive(Default)]
struct Tally {
    passed: u32,
    failed: u32,
}

impl Tally {
    fn note(&mut self, what: String, done: anyhow::Result<()>) {
        match done {
            Ok(()) => {
                self.passed += 1;
                println!("ok: {what}");
            }
            Err(error) => {
                self.failed += 1;
                println!("FAILED: {what}: {error:#}");
            }
        }
    }
}

fn objects(cluster: &Cluster) -> Vec<Value> {
    let meta = |name: &str| json!({"name": name, "namespace": NAMESPACE});
    let container = |command: &[&str]| {
        json!({"name": "it", "image": "localhost/tools:1", "command": command,
               "env": [{"name": "CLUSTER", "value": cluster.name}]})
    };
    let mut server = container(&["/bin/sh", "-c", SERVE]);
    server["readinessProbe"] = json!({"httpGet": {"path": "/cgi-bin/who", "port": 8080}, "periodSeconds": 1});
    let labels = json!({"app": "web"});
    vec![
        json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE}}),
        json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": meta("web"), "spec": {
            "replicas": REPLICAS,
            "selector": {"matchLabels": labels},
            "template": {"metadata": {"labels": labels}, "spec": {
                "terminationGracePeriodSeconds": 1,
                // On different nodes, if there are.
                "topologySpreadConstraints": [{"maxSkew": 1, "topologyKey": "kubernetes.io/hostname",
                    "whenUnsatisfiable": "ScheduleAnyway", "labelSelector": {"matchLabels": labels}}],
                "containers": [server],
            }},
        }}),
        json!({"apiVersion": "v1", "kind": "Service", "metadata": meta("web"), "spec": {
            "selector": labels, "ports": [{"port": 80, "targetPort": 8080}]}}),
        json!({"apiVersion": "v1", "kind": "Pod", "metadata": meta("client"), "spec": {
            "terminationGracePeriodSeconds": 1, "containers": [container(&["/bin/sleep", "infinity"])]}}),
        json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": meta("reader")}),
        json!({"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "Role", "metadata": meta("reader"), "rules": [
            {"apiGroups": ["discovery.k8s.io"], "resources": ["endpointslices"], "verbs": ["get", "list"]}]}),
        json!({"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "RoleBinding", "metadata": meta("reader"),
            "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": "reader"},
            "subjects": [{"kind": "ServiceAccount", "name": "reader", "namespace": NAMESPACE}]}),
    ]
}

fn pods_run(cluster: &Cluster) -> anyhow::Result<()> {
    for (condition, object) in [("Available", "deployment/web"), ("Ready", "pod/client")] {
        let mut wait = kubectl(cluster)?;
        wait.args(["--namespace", NAMESPACE, "wait", &format!("--for=condition={condition}"), object]);
        output(wait.arg(format!("--timeout={}s", PATIENCE.as_secs())))?;
    }
    Ok(())
}

fn reaches_service(cluster: &Cluster) -> anyhow::Result<()> {
    let service = get(cluster, &["--namespace", NAMESPACE, "service", "web"])?;
    let address = service["spec"]["clusterIP"].as_str().context("the Service has no ClusterIP")?.to_owned();
    let names: BTreeSet<String> = pods(cluster, "app=web")?.into_iter().map(|pod| pod.name).collect();
    ensure!(names.len() == REPLICAS, "the Deployment has the pods {names:?}");
    let script = format!("for n in $(seq {REQUESTS}); do wget -q -O - http://{address}:80/cgi-bin/who; done");
    // kube-proxy may yet have to hear of the last endpoint.
    eventually(|| {
        let answers = in_client(cluster, &["/bin/sh", "-c", &script])?;
        ensure!(answers.lines().count() == REQUESTS, "{REQUESTS} requests, answered by {answers:?}");
        let who: BTreeSet<String> =
            answers.lines().filter_map(|line| line.split(' ').nth(1)).map(str::to_owned).collect();
        ensure!(who == names, "{who:?} answered for {names:?}");
        Ok(())
    })
}

fn finds_by_name(cluster: &Cluster) -> anyhow::Result<()> {
    let service = get(cluster, &["--namespace", NAMESPACE, "service", "web"])?;
    let address = service["spec"]["clusterIP"].as_str().context("the Service has no ClusterIP")?.to_owned();
    let name = format!("web.{NAMESPACE}.svc.cluster.local");
    eventually(|| {
        let answer = in_client(cluster, &["/bin/nslookup", &name])?;
        ensure!(answer.contains(&address), "{name} is {address}, and the answer {answer:?}");
        Ok(())
    })
}

fn reaches_pods(cluster: &Cluster, other: &Cluster) -> anyhow::Result<()> {
    let client = client(cluster)?;
    for pod in pods(other, "app=web")? {
        let url = format!("http://{}:8080/cgi-bin/who", pod.address);
        let answer = in_client(cluster, &["/bin/wget", "-q", "-O", "-", &url])?;
        let expected = format!("{} {} ", other.name, pod.name);
        ensure!(answer.starts_with(&expected), "{} answered {answer:?}", pod.address);
        // As busybox prints it: [::ffff:10.128.1.2] on a socket of both families.
        let asked = answer.trim().rsplit([' ', ':', '[']).next().unwrap_or_default().trim_end_matches(']');
        ensure!(asked == client.address, "{} was asked by {asked}, not by {}", pod.address, client.address);
    }
    Ok(())
}

fn node_reaches_api(cluster: &Cluster) -> anyhow::Result<()> {
    let node = cluster.known_nodes().into_iter().next().context("the cluster has no node")?;
    let kubectl = kubectl(cluster)?;
    let mut inside = Command::new("ip");
    inside.args(["netns", "exec", &node.netns()]).arg(kubectl.get_program()).args(kubectl.get_args());
    inside.args(["--server", &format!("https://{}:443", cluster.api_service()), "get", "--raw", "/version"]);
    let version = output(&mut inside)?;
    ensure!(version.contains(&super::build::version()?), "it answered {version}");
    Ok(())
}

fn is_in_cgroup(cluster: &Cluster) -> anyhow::Result<()> {
    let client = client(cluster)?;
    let node = cluster.known_nodes().into_iter().find(|node| node.name() == client.node);
    let node = node.with_context(|| format!("{} runs on {}, which is no node of ours", client.name, client.node))?;
    let folder = format!("/{}/kubepods/", node.cgroup().display());
    let found = cgroups::processes(&node)?.into_iter().any(|pid| {
        let cgroups = fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap_or_default();
        let own = cgroups.lines().find_map(|line| line.strip_prefix("0::")).unwrap_or_default();
        own.starts_with(&folder) && own.contains(&client.uid)
    });
    ensure!(found, "no process of pod {} is in cgroup2 below {folder}", client.uid);
    Ok(())
}

fn token(cluster: &Cluster) -> anyhow::Result<()> {
    let token = output(kubectl(cluster)?.args(["--namespace", NAMESPACE, "create", "token", "reader"]))?;
    let slices = format!("/apis/discovery.k8s.io/v1/namespaces/{NAMESPACE}/endpointslices");
    let ask = |whom: &Cluster, path: &str| {
        let mut ask = Command::new(super::build::folder()?.join("kubectl"));
        // No kubeconfig, whose certificate would come before the token.
        ask.env("KUBECONFIG", "/dev/null").args(["--server", &whom.server(), "--token", token.trim()]);
        output(ask.arg("--certificate-authority").arg(whom.pki().join("ca.crt")).args(["get", "--raw", path]))
    };
    ask(cluster, &slices)?;
    let refused = |answer: anyhow::Result<String>, word: &str| match answer {
        Ok(answer) => bail!("it was answered {answer}"),
        Err(error) => {
            ensure!(format!("{error:#}").contains(word), "not {word}: {error:#}");
            Ok(())
        }
    };
    refused(ask(cluster, "/api/v1/secrets"), "Forbidden")?;
    for other in CLUSTERS.iter().filter(|other| *other != cluster) {
        refused(ask(other, &slices), "Unauthorized").with_context(|| format!("in {}", other.name))?;
    }
    Ok(())
}

fn client(cluster: &Cluster) -> anyhow::Result<Pod> {
    let object = get(cluster, &["--namespace", NAMESPACE, "pod", "client"])?;
    pod(&object).context("the client has no address")
}

/// The running pods with this label.
fn pods(cluster: &Cluster, selector: &str) -> anyhow::Result<Vec<Pod>> {
    let list = get(cluster, &["--namespace", NAMESPACE, "pods", "--selector", selector])?;
    let items = list["items"].as_array().context("a list of pods")?;
    Ok(items.iter().filter(|item| item["metadata"]["deletionTimestamp"].is_null()).filter_map(pod).collect())
}

fn pod(object: &Value) -> Option<Pod> {
    Some(Pod {
        name: object["metadata"]["name"].as_str()?.to_owned(),
        uid: object["metadata"]["uid"].as_str()?.to_owned(),
        node: object["spec"]["nodeName"].as_str()?.to_owned(),
        address: object["status"]["podIP"].as_str()?.to_owned(),
    })
}

/// What a command in the client writes.
fn in_client(cluster: &Cluster, command: &[&str]) -> anyhow::Result<String> {
    output(kubectl(cluster)?.args(["--namespace", NAMESPACE, "exec", "client", "--"]).args(command))
}

/// Tries until it works, for as long as setting things up may take.
fn eventually(check: impl Fn() -> anyhow::Result<()>) -> anyhow::Result<()> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        match check() {
            Err(_) if Instant::now() < deadline => thread::sleep(Duration::from_millis(500)),
            done => return done,
        }
    }
}
