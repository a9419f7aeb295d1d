//! `kube`: three real Kubernetes clusters on this machine: west, east and north, with real control planes, nodes and pods.
//!
//! A control plane is four processes of this machine. A node is containerd, kubelet and kube-proxy in namespaces of their
//! own, on a bridge; every pod reaches every pod of all clusters by its own address, and nothing else. No container
//! engine, registry or virtual machine is needed. Everything has a fixed name and place ([`layout`]), so a later run finds
//! what an earlier one started.

mod build;
mod certificates;
mod cgroups;
mod check;
mod control_plane;
mod cut;
mod daemon;
mod dns;
pub(crate) mod image;
mod kubectl;
pub(crate) mod layout;
mod network;
pub(crate) mod node;
mod stand_ins;
mod status;

use crate::{
    process::{is_root, prefixed, root_prefix, text},
    setup::{self, Need},
    toolchain::cache,
};
use anyhow::{Context, ensure};
pub(crate) use layout::{CLUSTERS, Cluster};
use layout::{Counts, MAX_NODES, Node, state};
use std::{
    env,
    fs::{self, File},
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
    time::Instant,
};

#[derive(clap::Args)]
pub(crate) struct Args {
    #[command(subcommand)]
    action: Action,
}

#[derive(clap::Subcommand)]
enum Action {
    /// Start what doesn't run of the three clusters, and say how to use them
    Up {
        /// Nodes: a number for every cluster, or CLUSTER=NUMBER with commas, one for those not named. Nodes that run stay
        #[arg(long, value_name = "COUNTS", default_value_t)]
        nodes: Counts,
    },
    /// End all clusters and remove everything that they left on this machine
    Down,
    /// What runs, and in what state
    Status(status::Args),
    /// Run pods, and show that they reach Services and each other over all clusters
    Check,
    /// Have a cluster not be reached any more, or its pods not from another one: to see what happens then
    Cut(cut::Args),
    /// Have all clusters reach each other again
    Heal,
    /// Import image archives into every node that runs, and keep them for those that start later
    Load {
        /// Archives in the OCI layout, or as `docker save` writes them; they need names that differ
        #[arg(required = true, value_name = "ARCHIVE")]
        archives: Vec<PathBuf>,
    },
}

/// Does it, as root.
pub(crate) fn main(args: &Args) -> anyhow::Result<()> {
    if let Action::Up { .. } = args.action {
        prepare()?;
    }
    if !is_root()? {
        return as_root();
    }
    match &args.action {
        Action::Up { nodes } => up(*nodes),
        Action::Down => down(),
        Action::Status(args) => status::main(args),
        Action::Check => check::main(),
        Action::Cut(args) => locked(|| cut::main(args)),
        Action::Heal => locked(cut::heal),
        Action::Load { archives } => load(archives),
    }
}

/// Installs and builds what clusters are made of.
pub(crate) fn prepare() -> anyhow::Result<()> {
    setup::ensure_packages(&[Need::Kubernetes])?;
    build::ensure()
}

/// Where the programs of Kubernetes lie, once [`prepare`] has seen to it.
pub(crate) fn programs() -> anyhow::Result<PathBuf> {
    build::folder()
}

/// Starts what doesn't run of the clusters, as root.
pub(crate) fn up(counts: Counts) -> anyhow::Result<()> {
    let begun = Instant::now();
    if counts.nodes().next().is_some() {
        cgroups::check()?;
    }
    let _lock = lock()?;
    network::create().context("make the network between the nodes")?;
    write_images()?;
    for cluster in CLUSTERS {
        control_plane::start(&cluster).with_context(|| format!("start the control plane of {}", cluster.name))?;
    }
    for cluster in CLUSTERS {
        control_plane::wait(&cluster)?;
        dns::apply_to(&cluster)?;
        println!("kube: {} is up after {:.1} s", cluster.name, begun.elapsed().as_secs_f64());
    }
    for node in counts.nodes() {
        node::start(&node).with_context(|| format!("start the node {}", node.name()))?;
    }
    let running = running_nodes()?;
    cut::heal().context("undo what cut clusters off")?;
    for cluster in CLUSTERS {
        let nodes: Vec<Node> = running.iter().copied().filter(|node| node.cluster == cluster).collect();
        node::wait(cluster, &nodes)?;
        if !nodes.is_empty() {
            dns::wait(&cluster)?;
        }
    }
    println!("kube: {} nodes are ready after {:.1} s\n", running.len(), begun.elapsed().as_secs_f64());
    println!("{}", how_to_use()?);
    Ok(())
}

fn down() -> anyhow::Result<()> {
    let begun = Instant::now();
    let lock = lock()?;
    for cluster in CLUSTERS {
        // All that there can be: one whose folder was lost is found by its names.
        for node in cluster.nodes(MAX_NODES) {
            node::remove(&node).with_context(|| format!("remove the node {}", node.name()))?;
        }
        control_plane::end(&cluster).with_context(|| format!("end the control plane of {}", cluster.name))?;
    }
    cgroups::remove_parents()?;
    network::remove().context("remove the network between the nodes")?;
    node::remove_mount_points()?;
    fs::remove_dir_all(state()).with_context(|| format!("remove {}", state().display()))?;
    drop(lock);
    println!("kube: all is down after {:.1} s", begun.elapsed().as_secs_f64());
    Ok(())
}

/// Has every node that runs import the archives, and those that start later.
pub(crate) fn load(archives: &[PathBuf]) -> anyhow::Result<()> {
    let _lock = lock()?;
    for archive in archives {
        let name = archive.file_name().with_context(|| format!("{} is no file", archive.display()))?;
        let kept = node::images().join(name).with_extension("tar");
        fs::create_dir_all(node::images()).context("create the folder of images")?;
        // Read whole first: it may be the one that is kept already.
        let contents = fs::read(archive).with_context(|| format!("read {}", archive.display()))?;
        fs::write(&kept, contents).with_context(|| format!("write {}", kept.display()))?;
        for node in running_nodes()? {
            node::import(&node, &kept)?;
            println!("kube: {} has {}", node.name(), archive.display());
        }
    }
    Ok(())
}

/// Brings the images that the MCS API's conformance suite names to all nodes that run.
pub(crate) fn load_stand_ins() -> anyhow::Result<()> {
    let _lock = lock()?;
    let nodes = running_nodes()?;
    ensure!(!nodes.is_empty(), "no node runs");
    let busybox = image::busybox()?;
    for (index, stand_in) in stand_ins::of_conformance(&busybox)?.iter().enumerate() {
        let archive = node::images().join(format!("stand-in-{index}.tar"));
        image::write(stand_in, &archive)?;
        for node in &nodes {
            node::import(node, &archive)?;
        }
    }
    Ok(())
}

/// Sees to it that a cluster has this namespace.
pub(crate) fn namespace(cluster: &Cluster, name: &str) -> anyhow::Result<()> {
    let namespace = serde_json::json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}});
    kubectl::apply(cluster, &[namespace])
}

/// The nodes that run, of all clusters.
fn running_nodes() -> anyhow::Result<Vec<Node>> {
    let mut running = Vec::new();
    for node in CLUSTERS.into_iter().flat_map(Cluster::known_nodes) {
        if node::daemon(&node).pid()?.is_some() {
            running.push(node);
        }
    }
    Ok(running)
}

/// Makes the images that every node has.
fn write_images() -> anyhow::Result<()> {
    let folder = node::images();
    fs::create_dir_all(&folder).with_context(|| format!("create {}", folder.display()))?;
    let busybox = image::busybox()?;
    image::write(&image::pause(&busybox)?, &folder.join("pause.tar"))?;
    image::write(&image::tools(&busybox)?, &folder.join("tools.tar"))?;
    image::write(&dns::image()?, &folder.join("coredns.tar"))
}

/// Keeps other runs from changing the clusters until it is dropped.
fn lock() -> anyhow::Result<File> {
    fs::create_dir_all(state()).with_context(|| format!("create {}", state().display()))?;
    let file = state().join("lock");
    let lock = File::create(&file).with_context(|| format!("create {}", file.display()))?;
    lock.try_lock().with_context(|| format!("another run holds {}", file.display()))?;
    Ok(lock)
}

/// Does something to the network while no other run changes the clusters.
fn locked(work: impl FnOnce() -> anyhow::Result<()>) -> anyhow::Result<()> {
    let _lock = lock()?;
    work()
}

/// What a person needs to go on.
fn how_to_use() -> anyhow::Result<String> {
    let kubeconfigs: Vec<String> =
        CLUSTERS.map(|cluster| cluster.kubeconfig("admin").display().to_string()).into_iter().collect();
    Ok(format!(
        "export KUBECONFIG={}\n\
         {} --context west get nodes -o wide     # or any kubectl; the contexts are west, east, north\n\
         image localhost/tools:1 is busybox; `cargo xtask kube load ARCHIVE` brings others\n\
         cargo xtask kube status | check | down",
        kubeconfigs.join(":"),
        build::folder()?.join("kubectl").display(),
    ))
}

/// Becomes the same task as root, with this user's cache folder.
pub(crate) fn as_root() -> anyhow::Result<()> {
    let prefix = root_prefix()?.context("clusters are made of namespaces and cgroups: run it as root")?;
    let cache = cache()?;
    let home = cache.parent().unwrap_or(Path::new("/"));
    let mut command = prefixed(&prefix, "env");
    command.arg(format!("XDG_CACHE_HOME={}", home.display()));
    command.arg(format!("PATH={}", env::var("PATH").unwrap_or_default()));
    command.arg(env::current_exe().context("find this program")?).args(env::args_os().skip(1));
    let error = command.exec();
    Err(error).with_context(|| format!("run {}", text(&command)))
}
