//! `tombolo agent`: puts the parts together and waits for a signal.

use crate::{
    control::Socket,
    datapath::{Events, Kernel, cgroup, pins::Pins, preflight, probe},
    health::{
        Changed, Event, View,
        driver::{Driver, Fact},
    },
    model::{ClusterName, Place},
    reconcile::{Reconciler, Waits},
    sources::{
        Event as Told,
        kubernetes::{self, KubernetesSource},
        manifests::ManifestSource,
        objects::{Options, cluster_name},
    },
    tables::Capacity,
    telemetry,
};
use anyhow::{Context, bail};
use clap::{Args, builder::RangedI64ValueParser};
use std::{
    fs,
    hash::{DefaultHasher, Hash, Hasher},
    path::PathBuf,
    time::Duration,
};
use tokio::{
    signal::unix::{SignalKind, signal},
    sync::{mpsc, watch},
};
use tracing::info;

/// Events and questions that may wait.
const QUEUE: usize = 64;
/// Room for pods of this node that are left alone; the kubelet's own limit is 110 pods unless it is raised.
const PODS: u32 = 4096;

/// Run the node agent.
#[derive(Args)]
pub(super) struct AgentArgs {
    /// A folder of manifests, as `kubectl get svc,endpointslices -o yaml` prints them; it is watched.
    /// Without it an API server is watched: that of the cluster that the agent runs in, or the one of --kubeconfig.
    #[arg(long, env = "TOMBOLO_MANIFESTS", value_name = "DIR", conflicts_with = "kubeconfig", requires = "cluster")]
    manifests: Option<PathBuf>,
    /// Watch the API server that this kubeconfig's current context names.
    #[arg(long, env = "TOMBOLO_KUBECONFIG", value_name = "FILE")]
    kubeconfig: Option<PathBuf>,
    /// This cluster's id in the ClusterSet. Without it the API server is asked, which has it as the ClusterProperty
    /// cluster.clusterset.k8s.io.
    #[arg(long, env = "TOMBOLO_CLUSTER", value_name = "NAME", value_parser = cluster_name)]
    cluster: Option<ClusterName>,
    /// This node's name.
    #[arg(long, env = "TOMBOLO_NODE", value_name = "NAME", value_parser = clap::builder::NonEmptyStringValueParser::new())]
    node: String,
    /// This node's zone. Without it the API server is asked, which has it as a label of the Node.
    #[arg(long, env = "TOMBOLO_ZONE", value_name = "NAME")]
    zone: Option<String>,
    /// The cgroup to attach to. Without it: the one that holds all pods' cgroups if the agent runs in a pod, else the
    /// root.
    #[arg(long, env = "TOMBOLO_CGROUP", value_name = "DIR")]
    cgroup: Option<PathBuf>,
    /// The folder of bpffs in which maps and links are pinned.
    #[arg(long, env = "TOMBOLO_PINS", value_name = "DIR", default_value = "/sys/fs/bpf/tombolo")]
    pins: PathBuf,
    /// Where the CLI reaches the agent.
    #[arg(long, env = "TOMBOLO_SOCKET", value_name = "FILE", default_value = "/run/tombolo/agent.sock")]
    socket: PathBuf,
    /// Room for frontends: one for each address, port and protocol of a service.
    #[arg(long, env = "TOMBOLO_MAX_FRONTENDS", value_name = "N", default_value_t = 16_384, value_parser = size())]
    max_frontends: u32,
    /// Room for backends. New services leave a sixteenth of it to changes of those that are there.
    #[arg(long, env = "TOMBOLO_MAX_BACKENDS", value_name = "N", default_value_t = 262_144, value_parser = size())]
    max_backends: u32,
    /// Room for slots: one for each frontend's backend, and as many as the largest change needs besides. New services
    /// leave a sixteenth of it to changes of those that are there.
    #[arg(long, env = "TOMBOLO_MAX_SLOTS", value_name = "N", default_value_t = 1_048_576, value_parser = size())]
    max_slots: u32,
    /// How long connected UDP sockets are watched after a backend was lost, in seconds: what they send there fails, so that
    /// they connect again.
    #[arg(long, env = "TOMBOLO_UDP_REFUSAL", value_name = "SECONDS", default_value_t = 3600, value_parser = clap::value_parser!(u32).range(1..=7 * 86_400))]
    udp_refusal: u32,
    /// How long programs of an earlier agent whose maps can't be used serve on while some of the source can't be read, in
    /// seconds. What can't be read by then is left to kube-proxy until it can be.
    #[arg(long, env = "TOMBOLO_TAKE_OVER_AFTER", value_name = "SECONDS", default_value_t = 60, value_parser = clap::value_parser!(u32).range(..=86_400))]
    take_over_after: u32,
    /// Translate every Service with a ClusterIP, not just the federated ones.
    #[arg(long, env = "TOMBOLO_ALL_SERVICES")]
    all_services: bool,
}

impl AgentArgs {
    fn capacity(&self) -> Capacity {
        // What is asked for is the user's; the probe's own services come on top.
        let frontends = self.max_frontends + probe::SERVICES;
        let slots = self.max_slots + probe::SERVICES;
        Capacity {
            frontends,
            // A change needs a second entry for a while.
            services: frontends * 2,
            slots,
            backends: self.max_backends + probe::SERVICES,
            // Needed for UDP and for sessions only; a hash of this kind takes 32 bytes of memory for each place.
            members: self.max_backends + probe::SERVICES,
            pods: PODS,
        }
    }
}

/// What the size of a map may be. The largest ones take a few GiB then.
fn size() -> RangedI64ValueParser<u32> {
    clap::value_parser!(u32).range(1..=1 << 24)
}

pub(super) fn run(args: AgentArgs) -> anyhow::Result<()> {
    telemetry::init()?;
    preflight::check_privileges()?;
    let cgroup = match &args.cgroup {
        Some(cgroup) => cgroup.clone(),
        None => cgroup::attach_point().context("find the cgroup to attach to (--cgroup names it)")?,
    };
    let cgroup = cgroup::named(&cgroup)?;
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    let runtime = runtime.context("start the runtime")?;
    // Before anything is attached, so that an agent that can't go on changes nothing.
    let client = match &args.manifests {
        Some(dir) => {
            fs::read_dir(dir).with_context(|| format!("list manifests in {} (--manifests)", dir.display()))?;
            None
        }
        None => Some(runtime.block_on(kubernetes::connect(args.kubeconfig.as_deref()))?),
    };
    let cluster = match (args.cluster.clone(), &client) {
        (Some(cluster), _) => cluster,
        (None, Some(client)) => runtime.block_on(kubernetes::cluster_id(client))?,
        (None, None) => bail!("--manifests don't say which cluster this is: name it with --cluster"),
    };
    let socket = Socket::bind(&args.socket)?;
    let capacity = args.capacity();
    let pins = Pins::new(&args.pins);
    let kernel = Kernel::load(&pins, &cgroup, &capacity)?;
    let waits = Waits {
        udp_refusal: Duration::from_secs(args.udp_refusal.into()),
        take_over: Duration::from_secs(args.take_over_after.into()),
    };
    let place = Place { cluster: cluster.clone(), node: args.node.clone(), zone: args.zone.clone() };
    let options = Options { cluster, node: args.node, all_services: args.all_services };
    let (watches, shown_watches) = watch::channel(Vec::new());
    let source = match (args.manifests, client) {
        (None, Some(client)) => {
            Source::Kubernetes(KubernetesSource::new(client, options, args.zone.is_none(), watches))
        }
        (dir, _) => Source::Manifests(ManifestSource::new(dir.context("--manifests is given")?, options)),
    };
    runtime.block_on(async {
        let (facts, told) = mpsc::channel(QUEUE);
        let (changed, changes) = watch::channel(Changed::default());
        let (shown, views) = watch::channel(View::default());
        let driver = Driver::new(seed(&place.node), kernel.signs()?, told, changed, shown);
        let events = kernel.events()?;
        let reconciler = Reconciler::new(place, pins, cgroup, kernel, facts.clone(), views, &waits)?;
        let reconciler = reconciler.with_watches(shown_watches);
        // Tasks of their own: while the loop writes large tables they go on, and a cluster that dies just then is found out.
        let (mut driver, mut told) = (tokio::spawn(driver.run()), tokio::spawn(pass_on(events, facts)));
        let health = async {
            tokio::select! {
                ended = &mut driver => ended.context("run health")?,
                ended = &mut told => ended.context("pass on events")?,
            }
        };
        serve(reconciler, changes, health, source, socket).await
    })
}

/// Where knowledge comes from.
enum Source {
    Manifests(ManifestSource),
    Kubernetes(KubernetesSource),
}

impl Source {
    async fn run(self, events: mpsc::Sender<Told>) -> anyhow::Result<()> {
        match self {
            Self::Manifests(source) => source.run(events).await.context("manifests"),
            Self::Kubernetes(source) => source.run(events).await.context("API server"),
        }
    }
}

/// Another number for each node, the same after a restart.
fn seed(node: &str) -> u64 {
    let mut hasher = DefaultHasher::new();
    node.hash(&mut hasher);
    hasher.finish()
}

/// Passes on what the programs tell, as it comes.
async fn pass_on(mut events: Events, facts: mpsc::Sender<Fact>) -> anyhow::Result<()> {
    loop {
        let events = events.next().await?.iter().filter_map(Event::of).collect();
        if facts.send(Fact::Events(events)).await.is_err() {
            return Ok(());
        }
    }
}

/// Runs all tasks until a signal comes; if one ends by itself, that is an error that says which.
async fn serve(
    reconciler: Reconciler,
    changes: watch::Receiver<Changed>,
    health: impl Future<Output = anyhow::Result<()>>,
    source: Source,
    socket: Socket,
) -> anyhow::Result<()> {
    let (events, received) = mpsc::channel(QUEUE);
    let (asked, questions) = mpsc::channel(QUEUE);
    let mut terminate = signal(SignalKind::terminate()).context("listen for SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("listen for SIGINT")?;
    tokio::select! {
        ended = source.run(events) => ended?,
        ended = reconciler.run(received, questions, changes) => ended.context("reconcile")?,
        ended = health => ended.context("health")?,
        ended = socket.serve(asked) => ended.context("socket")?,
        _ = terminate.recv() => return stopped("SIGTERM"),
        _ = interrupt.recv() => return stopped("SIGINT"),
    }
    bail!("a part of the agent ended by itself");
}

fn stopped(signal: &str) -> anyhow::Result<()> {
    info!(signal, "stopping; the data path stays in place until `tombolo unload`");
    Ok(())
}
