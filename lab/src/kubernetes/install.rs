//! Agent and mirror in a cluster, as `deploy/` has them, with what differs from cluster to cluster in an overlay.

use super::kubectl::{Kubectl, PATIENCE, eventually, text};
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
/// Writes the overlay of this cluster's and applies it.
pub(super) fn apply(kubectl: &Kubectl, deploy: &Path, overlays: &Path, build: &str) -> Result<()> {
    let folder = overlays.join(kubectl.name);
    fs::create_dir_all(&folder).with_context(|| format!("create {}", folder.display()))?;
    let overlay = json!({
        "apiVersion": "kustomize.config.k8s.io/v1beta1",
        "kind": "Kustomization",
        "resources": [relative(&folder, deploy)?],
        // The tag stays the same from build to build, so nothing else would replace the pods.
        "commonAnnotations": {"tombolo.io/build": build},
        "configMapGenerator": [
            {"name": "tombolo", "namespace": NAMESPACE, "literals": [format!("cluster={}", kubectl.name)]}],
    });
    let file = folder.join("kustomization.yaml");
    fs::write(&file, format!("{overlay:#}\n")).with_context(|| format!("write {}", file.display()))?;
    let folder = folder.display().to_string();
    let apply = ["apply", "--server-side", "--field-manager=tombolo-lab", "--force-conflicts", "-k", &folder];
    kubectl.run(&apply).map(drop)
}

/// Has a cluster import from another, where all is installed already.
pub(super) fn link(kubectl: &Kubectl, peer: &Kubectl, tombolo: &Path) -> Result<()> {
    let print = |args: &[&str]| {
        let done = Command::new(tombolo).args(["link", peer.name]).args(args).output();
        let done = done.with_context(|| format!("run {}", tombolo.display()))?;
        let complaint = String::from_utf8_lossy(&done.stderr);
        ensure!(done.status.success(), "tombolo link {} {}: {}", peer.name, args.join(" "), complaint.trim());
        String::from_utf8(done.stdout).context("what tombolo link prints")
    };
    let apply = ["apply", "--server-side", "--field-manager=tombolo-lab", "--force-conflicts", "-f", "-"];
    peer.filter(&apply, &print(&["--peer"])?)?;
    let (kubeconfig, pods) = (peer.kubeconfig.display().to_string(), peer.pods.to_string());
    let own = print(&["--kubeconfig", &kubeconfig, "--pod-ranges", &pods])?;
    // A kind that was just defined is served a moment later.
    eventually(&format!("link {} to {}", kubectl.name, peer.name), || kubectl.filter(&apply, &own).map(drop))
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

/// Removes agents, and what they left in their nodes' kernels.
pub(super) fn remove_agents(kubectl: &Kubectl) -> Result<()> {
    let object = kubectl.get(&["--namespace", NAMESPACE, "daemonset", "tombolo-agent"])?;
    let nodes: Vec<String> = kubectl
        .pods(NAMESPACE, AGENTS)?
        .iter()
        .map(|pod| Ok(text(pod, "/spec/nodeName")?.to_owned()))
        .collect::<Result<_>>()?;
    ensure!(!nodes.is_empty(), "there is no agent in {}", kubectl.name);
    let timeout = format!("--timeout={}s", PATIENCE.as_secs());
    kubectl.run(&[
        "--namespace",
        NAMESPACE,
        "delete",
        "daemonset",
        "tombolo-agent",
        "--cascade=foreground",
        &timeout,
    ])?;
    let unload = |node: &String| {
        let mut spec = object["spec"]["template"]["spec"].clone();
        spec["nodeName"] = node.as_str().into();
        spec["restartPolicy"] = "Never".into();
        spec["containers"][0]["args"] = json!(["unload"]);
        for probe in ["readinessProbe", "livenessProbe"] {
            spec["containers"][0].as_object_mut().map(|container| container.remove(probe));
        }
        let meta = json!({"name": format!("unload-{node}"), "namespace": NAMESPACE});
        json!({"apiVersion": "v1", "kind": "Pod", "metadata": meta, "spec": spec})
    };
    kubectl.apply(&nodes.iter().map(unload).collect::<Vec<_>>())?;
    for node in &nodes {
        let name = format!("unload-{node}");
        eventually(&format!("{name} in {}", kubectl.name), || {
            let pod = kubectl.get(&["--namespace", NAMESPACE, "pod", &name])?;
            ensure!(pod["status"]["phase"] == "Succeeded", "it is {}", pod["status"]["phase"]);
            Ok(())
        })?;
        kubectl.run(&["--namespace", NAMESPACE, "delete", "pod", &name, "--wait=false"])?;
    }
    Ok(())
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
