//! Agent and mirror in a cluster, as `deploy/` has them, with what differs from cluster to cluster in an overlay.

use super::{
    kubectl::{Kubectl, PATIENCE, eventually, text},
    workloads::GATEWAY,
};
use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use std::{
    fs,
    path::{Component, Path, PathBuf},
    process::Command,
};

/// Where agent and mirror run.
pub(super) const NAMESPACE: &str = "tombolo-system";
/// The labels of their pods.
pub(super) const AGENTS: &str = "app.kubernetes.io/name=tombolo-agent";
pub(super) const MIRRORS: &str = "app.kubernetes.io/name=tombolo-mirror";

/// What a link leads to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Reach {
    /// The peer's pods.
    Pods,
    /// Its gateway only.
    Gateway,
}

/// Writes the overlay of this cluster's and applies it.
pub(super) fn apply(kubectl: &Kubectl, deploy: &Path, overlays: &Path, build: &str) -> Result<()> {
    let folder = overlays.join(kubectl.name);
    fs::create_dir_all(&folder).with_context(|| format!("create {}", folder.display()))?;
    let mut literals = vec![format!("cluster={}", kubectl.name)];
    literals.extend((kubectl.name == GATEWAY).then(|| "gateway=node-port".to_owned()));
    let overlay = json!({
        "apiVersion": "kustomize.config.k8s.io/v1beta1",
        "kind": "Kustomization",
        "resources": [relative(&folder, deploy)?],
        // The tag stays the same from build to build, so nothing else would replace the pods.
        "commonAnnotations": {"tombolo.io/build": build},
        "configMapGenerator": [{"name": "tombolo", "namespace": NAMESPACE, "literals": literals}],
    });
    let file = folder.join("kustomization.yaml");
    fs::write(&file, format!("{overlay:#}\n")).with_context(|| format!("write {}", file.display()))?;
    let folder = folder.display().to_string();
    let apply = ["apply", "--server-side", "--field-manager=tombolo-lab", "--force-conflicts", "-k", &folder];
    kubectl.run(&apply).map(drop)
}

/// Has a cluster import from another, where all is installed already.
pub(super) fn link(kubectl: &Kubectl, peer: &Kubectl, tombolo: &Path, reach: Reach) -> Result<()> {
    let print = |args: &[&str]| {
        let done = Command::new(tombolo).args(["link", peer.name]).args(args).output();
        let done = done.with_context(|| format!("run {}", tombolo.display()))?;
        let complaint = String::from_utf8_lossy(&done.stderr);
        ensure!(done.status.success(), "tombolo link {} {}: {}", peer.name, args.join(" "), complaint.trim());
        String::from_utf8(done.stdout).context("what tombolo link prints")
    };
    let apply = ["apply", "--server-side", "--field-manager=tombolo-lab", "--force-conflicts", "-f", "-"];
    peer.filter(&apply, &print(&["--peer"])?)?;
    let kubeconfig = peer.kubeconfig.display().to_string();
    let (pods, nodes) = (peer.pods.to_string(), nodes(peer)?.join(","));
    let own = match reach {
        Reach::Pods => print(&["--kubeconfig", &kubeconfig, "--pod-ranges", &pods])?,
        Reach::Gateway => print(&["--kubeconfig", &kubeconfig, "--mode", "gateway", "--gateway-ranges", &nodes])?,
    };
    // A kind that was just defined is served a moment later.
    eventually(&format!("link {} to {}", kubectl.name, peer.name), || kubectl.filter(&apply, &own).map(drop))
}

/// The nodes' addresses, each as a range.
fn nodes(kubectl: &Kubectl) -> Result<Vec<String>> {
    let nodes = kubectl.get(&["nodes"])?;
    let addresses =
        nodes["items"].as_array().into_iter().flatten().filter_map(|node| node["status"]["addresses"].as_array());
    let internal = addresses.flatten().filter(|address| address["type"] == "InternalIP");
    Ok(internal.filter_map(|address| Some(format!("{}/32", address["address"].as_str()?))).collect())
}

/// Installs the CRDs of the MCS API.
pub(super) fn crds(kubectl: &Kubectl, tombolo: &Path) -> Result<()> {
    let done = Command::new(tombolo).arg("crds").arg("--kubeconfig").arg(&kubectl.kubeconfig).output();
    let done = done.with_context(|| format!("run {}", tombolo.display()))?;
    ensure!(done.status.success(), "tombolo crds: {}", String::from_utf8_lossy(&done.stderr).trim());
    Ok(())
}

/// Waits until agents and mirrors are ready.
pub(super) fn wait(kubectl: &Kubectl) -> Result<()> {
    for workload in ["daemonset/tombolo-agent", "deployment/tombolo-mirror"] {
        kubectl.rolled_out(NAMESPACE, workload).with_context(|| why(kubectl))?;
    }
    Ok(())
}

/// What the agent on this node prints for a subcommand of the CLI.
pub(super) fn ask_agent(kubectl: &Kubectl, node: &str, what: &str) -> Result<Value> {
    let pods = kubectl.pods(NAMESPACE, AGENTS)?;
    let pod = pods.iter().find(|pod| pod["spec"]["nodeName"] == node);
    let pod = text(pod.with_context(|| format!("no agent on {node}"))?, "/metadata/name")?.to_owned();
    let words = ["--namespace", NAMESPACE, "exec", &pod, "--", "/tombolo", what, "-o", "json"];
    let answer = kubectl.run(&words)?;
    serde_json::from_str(&answer).with_context(|| format!("understand tombolo {what}"))
}

/// Removes agents, and what they left in their nodes' kernels, as the README says it.
pub(super) fn remove_agents(kubectl: &Kubectl) -> Result<()> {
    let agents = ["--namespace", NAMESPACE, "daemonset", "tombolo-agent"];
    if kubectl.run(&[&["get", "--ignore-not-found", "-o", "name"][..], &agents].concat())?.is_empty() {
        return Ok(());
    }
    let unload = json!({"spec": {
        "minReadySeconds": 2,
        "updateStrategy": {"rollingUpdate": {"maxUnavailable": "100%"}},
        "template": {"spec": {"containers": [{"name": "agent", "args": ["unload", "--stay"], "readinessProbe": null}]}},
    }});
    let unload = unload.to_string();
    kubectl.run(&[&["patch"], &agents[..], &["--patch", &unload]].concat())?;
    kubectl.rolled_out(NAMESPACE, "daemonset/tombolo-agent").with_context(|| why(kubectl))?;
    let timeout = format!("--timeout={}s", PATIENCE.as_secs());
    kubectl.run(&[&["delete", "--cascade=foreground", &timeout][..], &agents].concat()).map(drop)
}

/// What the pods say that don't get ready.
fn why(kubectl: &Kubectl) -> String {
    let mut said = format!("agents and mirrors in {}:", kubectl.name);
    for selector in [AGENTS, MIRRORS] {
        let logs = ["--namespace", NAMESPACE, "logs", "--selector", selector, "--prefix", "--tail=8"];
        let text = kubectl.run(&logs).unwrap_or_else(|error| format!("{error:#}"));
        said.push_str(&format!("\n{}", text.trim()));
    }
    said
}

/// How to get from one folder to another: kustomize takes no other paths.
fn relative(from: &Path, to: &Path) -> Result<PathBuf> {
    let full = |path: &Path| fs::canonicalize(path).with_context(|| format!("find {}", path.display()));
    let (from, to) = (full(from)?, full(to)?);
    let (from, to): (Vec<Component<'_>>, Vec<_>) = (from.components().collect(), to.components().collect());
    let shared = from.iter().zip(&to).take_while(|(one, other)| one == other).count();
    let up = from[shared..].iter().map(|_| Component::ParentDir);
    Ok(up.chain(to[shared..].iter().copied()).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_overlay_finds_what_it_lies_over() {
        let root = std::env::temp_dir();
        let (from, to) =
            (root.join(format!("lab-{}/a/b", std::process::id())), root.join(format!("lab-{}/c", std::process::id())));
        fs::create_dir_all(&from).unwrap();
        fs::create_dir_all(&to).unwrap();
        let found = relative(&from, &to).unwrap();
        fs::remove_dir_all(to.parent().unwrap()).unwrap();
        assert_eq!(found, Path::new("../../c"));
    }
}
