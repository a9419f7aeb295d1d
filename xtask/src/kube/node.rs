//! A node: containerd, kubelet and kube-proxy in network, mount, process, cgroup and host-name namespaces of their own.
//!
//! Its first process is the script `node-init`. This machine's programs and libraries are the node's, its own are the
//! folders that those programs write to.

use super::{
    build,
    certificates::{of_node, sign, write_kubeconfig},
    cgroups,
    daemon::{Daemon, child_of, tail},
    kubectl::{apply, get, kubectl},
    layout::{Cluster, Node, state},
    network,
};
use crate::process::output;
use anyhow::{Context, bail};
use serde_json::{Value, json};
use std::{
    fs,
    os::unix::fs::{PermissionsExt, symlink},
    path::{Path, PathBuf},
    process::Command,
    thread,
    time::{Duration, Instant},
};

const INIT: &str = include_str!("node-init");
/// Folders of a machine that every node has its own of.
const FOLDERS: [&str; 7] = [
    "/etc/cni",
    "/run/containerd",
    "/run/tombolo",
    "/var/lib/cni",
    "/var/lib/containerd",
    "/var/lib/kubelet",
    "/var/log",
];
/// Where network plug-ins lie: Debian's, and those of other packages of containerd.
const PLUGINS: [&str; 2] = ["/usr/lib/cni", "/opt/cni/bin"];
/// How long a node may take to become ready.
const PATIENCE: Duration = Duration::from_secs(300);

/// Where the archives lie that every node imports when it starts.
pub(crate) fn images() -> PathBuf {
    state().join("images")
}

/// The network plug-in that makes bridges: where it lies, or where Debian's package puts it.
pub(crate) fn plugin() -> String {
    let places = PLUGINS.map(|folder| format!("{folder}/bridge"));
    places.iter().find(|place| Path::new(place).exists()).unwrap_or(&places[0]).clone()
}

/// The node's first process, outside.
pub(crate) fn daemon(node: &Node) -> Daemon {
    Daemon::new(node.folder(), "node")
}

/// The node's first process as this machine sees it, whose namespaces are the node's.
pub(crate) fn init(node: &Node) -> anyhow::Result<Option<i32>> {
    Ok(daemon(node).pid()?.and_then(child_of))
}

/// Starts a node of a cluster that is up, unless it runs; whether it didn't.
pub(crate) fn start(node: &Node) -> anyhow::Result<bool> {
    if daemon(node).pid()?.is_some() {
        return Ok(false);
    }
    // What an earlier life of it left: a node that starts is a new machine of the same name.
    remove(node)?;
    let folder = node.folder();
    fs::create_dir_all(&folder).with_context(|| format!("create {}", folder.display()))?;
    mount_points()?;
    let pki = folder.join("pki");
    for subject in of_node(node) {
        sign(&node.cluster, &pki, &subject)?;
        write_kubeconfig(&node.cluster, &pki, subject.file, &folder.join(format!("{}.kubeconfig", subject.file)))?;
    }
    let ca = node.cluster.pki().join("ca.crt");
    for (name, contents) in [
        ("containerd.toml", containerd()?),
        ("kubelet.json", format!("{:#}\n", kubelet(node, &ca, open_files()?))),
        ("kube-proxy.json", format!("{:#}\n", kube_proxy(node))),
        ("node-init", INIT.to_owned()),
    ] {
        fs::write(folder.join(name), contents).with_context(|| format!("write {name} of {}", node.name()))?;
    }
    let script = folder.join("node-init");
    fs::set_permissions(&script, fs::Permissions::from_mode(0o755)).context("make node-init executable")?;
    for program in ["kubelet", "kube-proxy"] {
        symlink(build::folder()?.join(program), folder.join(program)).with_context(|| format!("link {program}"))?;
    }
    let plugins = folder.join("fs/etc/cni/net.d");
    fs::create_dir_all(&plugins).with_context(|| format!("create {}", plugins.display()))?;
    fs::write(plugins.join("10-tombolo-kube.conflist"), format!("{:#}\n", pod_network(node)))
        .context("write the configuration of the pods' network")?;

    register(node)?;
    let cgroups = cgroups::create(node)?;
    network::add(node)?;
    let mut command = Command::new(script);
    command.arg("outside").args([node.name(), node.address(), node.netns()]).args(cgroups);
    daemon(node).start(command)?;
    Ok(true)
}

/// Waits until the cluster says that its nodes are ready.
pub(crate) fn wait(cluster: Cluster, nodes: &[Node]) -> anyhow::Result<()> {
    let deadline = Instant::now() + PATIENCE;
    let mut waiting: Vec<&Node> = nodes.iter().collect();
    loop {
        let objects = get(&cluster, &["nodes"])?;
        waiting.retain(|node| !is_ready(&objects, &node.name()));
        let Some(first) = waiting.first() else { return Ok(()) };
        for node in &waiting {
            daemon(node).check().with_context(|| format!("node {}", node.name()))?;
        }
        if Instant::now() > deadline {
            let logs = ["node", "containerd", "kubelet"].map(|name| first.folder().join(format!("{name}.log")));
            let ends = logs.map(|log| format!("\n{}:\n{}", log.display(), tail(&log)));
            bail!("{} is not ready; its logs end so:{}", first.name(), ends.concat());
        }
        thread::sleep(Duration::from_millis(500));
    }
}

/// Ends a node and removes what it was: processes, cgroups, namespaces, files.
pub(crate) fn remove(node: &Node) -> anyhow::Result<()> {
    daemon(node).end()?;
    cgroups::remove(node)?;
    network::remove_node(node)?;
    let folder = node.folder();
    if folder.exists() {
        fs::remove_dir_all(&folder).with_context(|| format!("remove {}", folder.display()))?;
    }
    Ok(())
}

/// Imports an image archive into a running node.
pub(crate) fn import(node: &Node, archive: &Path) -> anyhow::Result<()> {
    let init = init(node)?.with_context(|| format!("node {} doesn't run", node.name()))?;
    let mut import = Command::new("nsenter");
    import.args(["--target", &init.to_string(), "--all", "ctr", "--namespace", "k8s.io", "images", "import"]);
    output(import.arg(archive)).with_context(|| format!("import {} into {}", archive.display(), node.name()))?;
    Ok(())
}

/// Takes a node that goes for good out of its cluster.
pub(crate) fn unregister(node: &Node) -> anyhow::Result<()> {
    let name = node.name();
    output(kubectl(&node.cluster)?.args(["delete", "node", &name, "--ignore-not-found", "--wait=false"])).map(drop)
}

/// Whether a list of nodes says that the one called `name` is ready.
pub(crate) fn is_ready(nodes: &Value, name: &str) -> bool {
    ready_condition(nodes, name).is_some_and(|condition| condition["status"] == "True")
}

/// The condition `Ready` of the node called `name` in a list of nodes, if it has one.
pub(crate) fn ready_condition<'a>(nodes: &'a Value, name: &str) -> Option<&'a Value> {
    let node = nodes["items"].as_array()?.iter().find(|node| node["metadata"]["name"] == name)?;
    node["status"]["conditions"].as_array()?.iter().find(|condition| condition["type"] == "Ready")
}

/// Creates the Node before its kubelet does, so that its pods' range is the one that everybody has a route to.
fn register(node: &Node) -> anyhow::Result<()> {
    unregister(node)?;
    let object = json!({
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {"name": node.name(), "labels": {
            "kubernetes.io/hostname": node.name(),
            "topology.kubernetes.io/region": node.cluster.name,
            "topology.kubernetes.io/zone": node.zone(),
        }},
        "spec": {"podCIDR": node.pods(), "podCIDRs": [node.pods()]},
    });
    apply(&node.cluster, &[object])
}

/// Makes the folders that nodes mount theirs over, where this machine lacks them, and notes which those were.
fn mount_points() -> anyhow::Result<()> {
    let list = made_folders();
    let mut made = fs::read_to_string(&list).unwrap_or_default();
    for folder in FOLDERS.map(Path::new) {
        if !folder.exists() {
            fs::create_dir_all(folder).with_context(|| format!("create {}", folder.display()))?;
            made.push_str(&format!("{}\n", folder.display()));
            fs::write(&list, &made).with_context(|| format!("write {}", list.display()))?;
        }
    }
    Ok(())
}

/// Removes the folders that [`mount_points`] made and nobody has used.
pub(crate) fn remove_mount_points() -> anyhow::Result<()> {
    for folder in fs::read_to_string(made_folders()).unwrap_or_default().lines().map(Path::new) {
        let empty = fs::read_dir(folder).is_ok_and(|mut entries| entries.next().is_none());
        if empty {
            fs::remove_dir(folder).with_context(|| format!("remove {}", folder.display()))?;
        }
    }
    Ok(())
}

fn made_folders() -> PathBuf {
    state().join("made-folders")
}

fn containerd() -> anyhow::Result<String> {
    let plugin = plugin();
    let plugins = plugin.rsplit_once('/').context("a plug-in lies in a folder")?.0;
    // No score below one's own may be set without CAP_SYS_RESOURCE, which containers of a machine may lack.
    Ok(format!(
        r#"version = 2
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "localhost/pause:1"
  restrict_oom_score_adj = true
  disable_apparmor = true
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "{plugins}"
    conf_dir = "/etc/cni/net.d"
  [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
    runtime_type = "io.containerd.runc.v2"
"#
    ))
}

fn kubelet(node: &Node, ca: &Path, open_files: u64) -> Value {
    json!({
        "apiVersion": "kubelet.config.k8s.io/v1beta1",
        "kind": "KubeletConfiguration",
        "authentication": {
            "anonymous": {"enabled": false},
            "webhook": {"enabled": true},
            "x509": {"clientCAFile": ca},
        },
        "authorization": {"mode": "Webhook"},
        "cgroupDriver": "cgroupfs",
        "failCgroupV1": false,
        "failSwapOn": false,
        // Nodes share a machine, whose memory and disk are not theirs to divide or to tidy.
        "enforceNodeAllocatable": ["none"],
        "evictionHard": {
            "nodefs.available": "0%", "nodefs.inodesFree": "0%", "imagefs.available": "0%", "memory.available": "0%"},
        "imageGCHighThresholdPercent": 100,
        "maxOpenFiles": open_files,
        "containerRuntimeEndpoint": "unix:///run/containerd/containerd.sock",
        "clusterDNS": [node.cluster.dns_service()],
        "clusterDomain": "cluster.local",
        "resolvConf": "/dev/null",
        "address": node.address(),
    })
}

fn kube_proxy(node: &Node) -> Value {
    json!({
        "apiVersion": "kubeproxy.config.k8s.io/v1alpha1",
        "kind": "KubeProxyConfiguration",
        "clientConnection": {"kubeconfig": node.folder().join("kube-proxy.kubeconfig")},
        "mode": "iptables",
        "clusterCIDR": node.cluster.pods(),
        // The table of connections is the machine's.
        "conntrack": {"maxPerCore": 0, "min": 0, "tcpEstablishedTimeout": "0s", "tcpCloseWaitTimeout": "0s"},
    })
}

fn pod_network(node: &Node) -> Value {
    json!({
        "cniVersion": "0.4.0",
        "name": "tombolo-kube",
        "plugins": [
            {"type": "bridge", "bridge": "cni0", "isDefaultGateway": true, "hairpinMode": true,
             "ipam": {"type": "host-local", "ranges": [[{"subnet": node.pods()}]]}},
            {"type": "portmap", "capabilities": {"portMappings": true}},
        ],
    })
}

/// The most files that a process of this machine may have open: a kubelet that asks for more doesn't start.
fn open_files() -> anyhow::Result<u64> {
    let limits = fs::read_to_string("/proc/self/limits").context("read this process's limits")?;
    let line = limits.lines().find(|line| line.starts_with("Max open files")).context("no limit of open files")?;
    let hard = line.split_whitespace().nth(4).context("no hard limit of open files")?;
    Ok(hard.parse().unwrap_or(1_000_000))
}

#[cfg(test)]
mod tests {
    use super::super::layout::CLUSTERS;
    use super::*;

    #[test]
    fn a_node_s_pods_get_addresses_of_the_range_that_others_have_a_route_to() {
        let node = CLUSTERS[1].nodes(2).last().unwrap();
        assert_eq!(pod_network(&node)["plugins"][0]["ipam"]["ranges"][0][0]["subnet"], node.pods());
        assert_eq!(kube_proxy(&node)["clusterCIDR"], "10.129.0.0/16");
    }

    #[test]
    fn readiness_is_read_from_the_node_s_own_condition() {
        let node = |name: &str, ready: &str| {
            json!({"metadata": {"name": name}, "status": {"conditions": [
                {"type": "DiskPressure", "status": "False"}, {"type": "Ready", "status": ready}]}})
        };
        let nodes =
            json!({"items": [node("west-1", "True"), node("west-2", "Unknown"), {"metadata": {"name": "new"}}]});
        assert!(is_ready(&nodes, "west-1"));
        for other in ["west-2", "new", "west-3"] {
            assert!(!is_ready(&nodes, other), "{other}");
        }
    }

    #[test]
    fn every_folder_that_nodes_mount_over_is_in_their_script() {
        let line = format!("for path in {}; do", FOLDERS.join(" "));
        assert!(INIT.contains(&line), "{line}");
    }

    #[test]
    fn the_limit_of_open_files_is_read() {
        assert!(open_files().unwrap() >= 256);
    }
}
