//! Backends that fail, and what the programs learn of it.
//!
//! Backends are addresses of each pod's own namespace, so every pod has its own path to the same backend: one may find it
//! serving, another refusing, a third may lose what it sends.

use crate::{
    clock::judges_no_times,
    draws::own4,
    ground::{Client, Ground},
    sockets::{PATIENCE, tcp_socket},
    tables::{backed_by, group, service, tcp},
};
use lab::{netns::Netns, nft};
use rustix::time::{ClockId, clock_getres, clock_gettime};
use socket2::Socket;
use std::{
    fmt::Write as _,
    io,
    net::{Ipv4Addr, SocketAddr},
    sync::Arc,
    thread,
    time::{Duration, Instant},
};
use tombolo::tables::{Step, cluster_name};
use tombolo_ebpf::abi::{BackendState, Cluster, ClusterState};

/// Backends in two clusters, with frontends.
pub(crate) struct Scene {
    /// What it stands on. Its client is the first pod.
    pub(crate) ground: Ground,
    /// Backends of the own cluster.
    pub(crate) local: Vec<SocketAddr>,
    /// Backends of cluster east.
    pub(crate) remote: Vec<SocketAddr>,
}

/// The other cluster.
pub(crate) const EAST: &str = "east";

/// The first SYN timeout of flows to it.
pub(crate) const SYN_TIMEOUT: Duration = Duration::from_millis(200);

/// What leads to all backends alike.
pub(crate) fn frontend() -> SocketAddr {
    "10.96.0.10:80".parse().unwrap()
}

/// What leads to this backend and no other.
pub(crate) fn only(backend: SocketAddr) -> SocketAddr {
    let SocketAddr::V4(v4) = backend else { panic!("{backend} is not of IPv4") };
    SocketAddr::new(Ipv4Addr::new(10, 96, 1, v4.ip().octets()[3]).into(), 80)
}

impl Scene {
    /// So many backends in each cluster. None of them serves.
    pub(crate) fn new(local: u8, remote: u8) -> Option<Self> {
        if judges_no_times() {
            return None;
        }
        let mut ground = Ground::new()?;
        let (local, remote) = (own4(&ground, 1, local), own4(&ground, 101, remote));
        let groups = [("west", &local), (EAST, &remote)].into_iter().filter(|(_, backends)| !backends.is_empty());
        let groups = groups.map(|(name, backends)| group(name, 1, backends)).collect();
        ground.want(tcp(frontend()), service(vec![groups]));
        for backend in &local {
            ground.want(tcp(only(*backend)), backed_by(&[*backend]));
        }
        for backend in &remote {
            ground.want(tcp(only(*backend)), service(vec![vec![group(EAST, 1, &[*backend])]]));
        }
        ground.install();
        let mut scene = Self { ground, local, remote };
        if !scene.remote.is_empty() {
            scene.set_cluster(EAST, |cluster| cluster.syn_timeout = jiffies(SYN_TIMEOUT));
        }
        scene.set_cluster("west", |cluster| cluster.syn_timeout = jiffies(SYN_TIMEOUT));
        Some(scene)
    }

    /// All backends serve this pod.
    pub(crate) fn serve(&self, pod: &Client) {
        for backend in self.local.iter().chain(&self.remote) {
            self.ground.servers.tcp(&pod.netns, *backend);
        }
    }

    /// The first pod.
    pub(crate) fn pod(&self) -> Client {
        self.ground.client.clone()
    }

    /// Another pod, which none of the backends serves yet.
    pub(crate) fn another_pod(&self) -> Client {
        let netns = Netns::anonymous().unwrap();
        for backend in self.local.iter().chain(&self.remote) {
            netns.address("lo", backend.ip().into()).unwrap();
        }
        Client { netns: Arc::new(netns), cgroup: self.ground.client.cgroup.clone() }
    }

    /// What is known of a backend.
    pub(crate) fn state(&self, backend: SocketAddr) -> BackendState {
        let found = self.ground.backends_at(backend);
        let [(index, entry)] = found[..] else { panic!("{backend} is one backend") };
        self.ground.kernel.maps.state(index, entry.generation).unwrap().unwrap_or_default()
    }

    /// What is known of cluster east.
    pub(crate) fn east(&self) -> ClusterState {
        let index = self.index_of(EAST);
        self.ground.kernel.maps.cluster_states().unwrap().get(&index).copied().unwrap_or_default()
    }

    /// What is known of the own cluster.
    pub(crate) fn own(&self) -> ClusterState {
        self.ground.kernel.maps.cluster_states().unwrap().get(&0).copied().unwrap_or_default()
    }

    fn index_of(&self, name: &str) -> u32 {
        let clusters = self.ground.installed.clusters();
        let found = clusters.iter().find(|(_, entry)| cluster_name(entry).0 == name);
        *found.expect("the cluster is installed").0
    }

    /// Changes a cluster's entry.
    pub(crate) fn set_cluster(&mut self, name: &str, change: impl FnOnce(&mut Cluster)) {
        let index = self.index_of(name);
        let mut entry = self.ground.installed.clusters()[&index];
        change(&mut entry);
        self.ground.apply(&Step::PutCluster(index, Box::new(entry)));
    }

    /// Waits until `done`; panics with `what` if that takes longer than a slow machine explains.
    pub(crate) fn until(&self, what: &str, mut done: impl FnMut(&Self) -> bool) {
        let deadline = Instant::now() + PATIENCE;
        while !done(self) {
            assert!(Instant::now() < deadline, "still not: {what}");
            thread::sleep(Duration::from_millis(1));
        }
    }
}

/// Rounds of what has to happen within some hundred milliseconds, until the machine keeps that pace: `round` says whether it
/// did. A machine that never does tells nothing.
pub(crate) fn rounds(what: &str, mut round: impl FnMut() -> bool) {
    if !(0..5).any(|_| round()) {
        println!("skipped: {what}: this machine is too busy");
    }
}

/// A duration in the kernel's ticks.
pub(crate) fn jiffies(duration: Duration) -> u32 {
    let tick = clock_getres(ClockId::MonotonicCoarse);
    let tick = Duration::new(tick.tv_sec.try_into().unwrap(), tick.tv_nsec.try_into().unwrap());
    u32::try_from(duration.as_nanos() / tick.as_nanos()).unwrap()
}

/// The time as programs count it.
pub(crate) fn now() -> u64 {
    let now = clock_gettime(ClockId::Monotonic);
    u64::try_from(now.tv_sec).unwrap() * 1_000_000_000 + u64::try_from(now.tv_nsec).unwrap()
}

/// Has all segments between this pod and these backends vanish, those between it and others pass.
pub(crate) fn black_hole(pod: &Client, backends: &[SocketAddr]) {
    let mut rules = String::from("add table inet hole\ndelete table inet hole\ntable inet hole {\nchain lost {\n");
    rules.push_str("type filter hook input priority 0;\n");
    for backend in backends {
        let (ip, port) = (backend.ip(), backend.port());
        writeln!(rules, "ip daddr {ip} tcp dport {port} drop\nip saddr {ip} tcp sport {port} drop").unwrap();
    }
    rules.push_str("}\n}");
    filter(|| nft::apply(&pod.netns, &rules));
}

/// Has them pass again.
pub(crate) fn lift(pod: &Client) {
    filter(|| nft::remove_table(&pod.netns, "inet hole"));
}

/// Changes a packet filter. Debian 12's nft now and then fails to list what there is ("cache initialization failed") on newer
/// kernels; the change is one transaction, so it is simply made again.
fn filter(change: impl Fn() -> anyhow::Result<()>) {
    change().or_else(|_| change()).or_else(|_| change()).unwrap();
}

/// A connect that was begun and not waited for.
pub(crate) fn begin(address: SocketAddr) -> Socket {
    let socket = tcp_socket(address);
    socket.set_nonblocking(true).unwrap();
    match socket.connect(&address.into()) {
        Err(error) if error.raw_os_error() == Some(rustix::io::Errno::INPROGRESS.raw_os_error()) => {}
        // Refused at once, as it is over the loopback.
        Ok(()) | Err(_) => {}
    }
    socket
}

/// A whole connect: how it ended, and what it took.
pub(crate) fn timed<T>(work: impl FnOnce() -> io::Result<T>) -> (io::Result<T>, Duration) {
    let began = Instant::now();
    let result = work();
    (result, began.elapsed())
}
