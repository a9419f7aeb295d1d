//! Talking to a cluster the way people do.

use super::{build, layout::Cluster};
use crate::process::{filter, output};
use anyhow::Context;
use serde_json::Value;
use std::process::Command;

/// kubectl as the administrator of `cluster`.
pub(crate) fn kubectl(cluster: &Cluster) -> anyhow::Result<Command> {
    let mut command = Command::new(build::folder()?.join("kubectl"));
    command.arg("--kubeconfig").arg(cluster.kubeconfig("admin"));
    Ok(command)
}

/// Creates the objects or makes them like this, as the owner of their fields.
pub(crate) fn apply(cluster: &Cluster, objects: &[Value]) -> anyhow::Result<()> {
    let list = serde_json::json!({"apiVersion": "v1", "kind": "List", "items": objects});
    let mut apply = kubectl(cluster)?;
    apply.args(["apply", "--server-side", "--field-manager=tombolo-kube", "--force-conflicts", "-f", "-"]);
    filter(&mut apply, list.to_string().as_bytes()).with_context(|| format!("apply objects to {}", cluster.name))?;
    Ok(())
}

/// What `kubectl get ARGS -o json` answers.
pub(crate) fn get(cluster: &Cluster, args: &[&str]) -> anyhow::Result<Value> {
    let answer = output(kubectl(cluster)?.arg("get").args(args).args(["-o", "json"]))?;
    serde_json::from_str(&answer).with_context(|| format!("the answer to kubectl get {}", args.join(" ")))
}
