//! `kube status`: what runs, by its process ids, and what the clusters say of their nodes.

use super::{
    build, cgroups, control_plane,
    daemon::resident_kib,
    kubectl::{get, kubectl},
    layout::{CLUSTERS, Cluster, Node},
    node::{daemon, init, is_ready, ready_condition},
};
use crate::process::output;
use anyhow::bail;
use serde_json::{Value, json};

#[derive(clap::Args)]
pub(crate) struct Args {
    /// How to print it
    #[arg(short, long, value_enum, default_value_t = Format::Text)]
    output: Format,
}

#[derive(Clone, Copy, clap::ValueEnum)]
enum Format {
    Text,
    Json,
}

/// Prints it; an error if anything isn't as `up` leaves it.
pub(crate) fn main(args: &Args) -> anyhow::Result<()> {
    let mut clusters = Vec::new();
    for cluster in CLUSTERS {
        clusters.push(of_cluster(cluster)?);
    }
    let status = json!({"kubernetes": build::version()?, "clusters": clusters});
    match args.output {
        Format::Json => println!("{status:#}"),
        Format::Text => print!("{}", text(&status)),
    }
    let up = |cluster: &Value| {
        let nodes = cluster["nodes"].as_array().is_some_and(|nodes| nodes.iter().all(|node| node["ready"] == true));
        cluster["ready"] == true && nodes
    };
    if !clusters.iter().all(up) {
        bail!("not all of it is up");
    }
    Ok(())
}

fn of_cluster(cluster: Cluster) -> anyhow::Result<Value> {
    let mut programs = Vec::new();
    for daemon in control_plane::daemons(&cluster) {
        let pid = daemon.pid()?;
        programs.push(json!({"name": daemon.name(), "pid": pid, "residentKiB": pid.map(resident_kib)}));
    }
    let runs = programs.iter().all(|program| program["pid"].is_i64());
    let ready = runs && output(kubectl(&cluster)?.args(["get", "--raw", "/readyz", "--request-timeout=5s"])).is_ok();
    let objects = if ready { get(&cluster, &["nodes"])? } else { Value::Null };
    let mut nodes = Vec::new();
    for node in cluster.known_nodes() {
        nodes.push(of_node(&node, &objects)?);
    }
    Ok(json!({
        "name": cluster.name,
        "ready": ready,
        "server": cluster.server(),
        "kubeconfig": cluster.kubeconfig("admin"),
        "services": cluster.services(),
        "pods": cluster.pods(),
        "programs": programs,
        "nodes": nodes,
    }))
}

fn of_node(node: &Node, objects: &Value) -> anyhow::Result<Value> {
    let name = node.name();
    let pid = daemon(node).pid()?;
    let resident: u64 = cgroups::processes(node)?.into_iter().map(resident_kib).sum();
    let object = objects["items"].as_array().and_then(|nodes| nodes.iter().find(|it| it["metadata"]["name"] == *name));
    let condition = ready_condition(objects, &name);
    Ok(json!({
        "name": name,
        "pid": pid,
        "initPid": init(node)?,
        "ready": pid.is_some() && is_ready(objects, &name),
        "message": condition.map(|condition| &condition["message"]),
        "kubelet": object.map(|object| &object["status"]["nodeInfo"]["kubeletVersion"]),
        "runtime": object.map(|object| &object["status"]["nodeInfo"]["containerRuntimeVersion"]),
        "address": node.address(),
        "pods": node.pods(),
        "zone": node.zone(),
        // Pods' processes included.
        "residentKiB": resident,
    }))
}

/// The same for people.
fn text(status: &Value) -> String {
    let word = |value: &Value| value.as_str().unwrap_or("-").to_owned();
    let mib = |value: &Value| value.as_u64().map_or("-".to_owned(), |kib| format!("{} MiB", kib / 1024));
    let mut text = format!("Kubernetes {}\n", word(&status["kubernetes"]));
    for cluster in status["clusters"].as_array().into_iter().flatten() {
        let state = if cluster["ready"] == true { "ready" } else { "down" };
        text += &format!("\n{:<8} {state:<9} {}", word(&cluster["name"]), word(&cluster["kubeconfig"]));
        text += &format!(
            "  {}  Services {}  pods {}\n",
            word(&cluster["server"]),
            word(&cluster["services"]),
            word(&cluster["pods"])
        );
        for program in cluster["programs"].as_array().into_iter().flatten() {
            let pid = program["pid"].as_i64().map_or("doesn't run".to_owned(), |pid| format!("pid {pid}"));
            text += &format!("  {:<26} {pid:<14} {}\n", word(&program["name"]), mib(&program["residentKiB"]));
        }
        for node in cluster["nodes"].as_array().into_iter().flatten() {
            let state = match (node["ready"] == true, node["pid"].is_i64()) {
                (true, _) => "Ready".to_owned(),
                (false, true) => format!("not ready: {}", word(&node["message"])),
                // What the cluster says of it may be from before.
                (false, false) => "doesn't run".to_owned(),
            };
            text += &format!(
                "  {:<8} {state:<17} {:<14} {}  {}",
                word(&node["name"]),
                word(&node["address"]),
                word(&node["pods"]),
                word(&node["zone"])
            );
            let shell = node["initPid"].as_i64().map_or("-".to_owned(), |pid| format!("nsenter -t {pid} -a"));
            text += &format!("  {}  {}  {shell}\n", mib(&node["residentKiB"]), word(&node["runtime"]));
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_doesn_t_run_is_said_in_words() {
        let status = json!({"kubernetes": "v1.34.4", "clusters": [{
            "name": "west", "ready": false, "programs": [{"name": "etcd", "pid": null, "residentKiB": null}],
            "nodes": [{"name": "west-1", "ready": false, "message": null, "initPid": null, "residentKiB": 0}]}]});
        let text = text(&status);
        assert!(text.contains("west     down"), "{text}");
        assert!(text.lines().any(|line| line.contains("etcd") && line.contains("doesn't run")), "{text}");
        assert!(text.lines().any(|line| line.contains("west-1") && line.contains("doesn't run")), "{text}");
    }
}
