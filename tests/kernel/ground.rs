//! What every test stands on: a client's network namespace, a cgroup with the programs attached, tables, servers.
//!
//! Tests run side by side, each on a ground of its own. The client is a thread, for a socket belongs to the cgroup that the
//! thread was in when it made it. Tables are filled the agent's way: from a `Desired` by `plan`.

use crate::{
    servers::Servers,
    tables::{OWN, mapped},
};
use lab::{bpffs, netns::Netns, threads::ThreadCgroup};
use std::{
    fs,
    net::SocketAddr,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU32, Ordering},
    },
};
use tombolo::{
    datapath::{self, Datapath, Kernel, pins::Pins},
    model::ClusterName,
    plan::plan,
    tables::{Capacity, Desired, DesiredService, Installed, Step, cluster_name},
};
use tombolo_ebpf::abi::{Backend, Counter, FrontendKey};

/// Enough for any test here, and little to make.
const CAPACITY: Capacity =
    Capacity { frontends: 256, services: 1024, slots: 8192, backends: 1024, members: 4096, pods: 64 };

/// Held while pin folders are made or removed, which have one parent.
static PINNING: Mutex<()> = Mutex::new(());

/// See the module.
pub(crate) struct Ground {
    /// The programs and their maps.
    pub(crate) kernel: Kernel,
    /// What the maps hold.
    pub(crate) installed: Installed,
    /// What [`install`](Self::install) brings about.
    pub(crate) desired: Desired,
    /// Servers anywhere on the ground.
    pub(crate) servers: Servers,
    /// Who dials.
    pub(crate) client: Client,
    pins: Pins,
}

/// Where a client is: the pod that its sockets belong to.
#[derive(Clone)]
pub(crate) struct Client {
    /// Its network namespace.
    pub(crate) netns: Arc<Netns>,
    /// Its cgroup.
    pub(crate) cgroup: Arc<ThreadCgroup>,
}

impl Client {
    /// Does `work` as this client, on a thread of its own.
    pub(crate) fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        let inside = || {
            self.cgroup.enter().unwrap();
            work()
        };
        self.netns.run(inside).unwrap()
    }
}

impl Ground {
    /// A new ground; none, and it says so, without root.
    pub(crate) fn new() -> Option<Self> {
        static MADE: AtomicU32 = AtomicU32::new(0);
        if lab::netns::need_root().is_err() {
            println!("skipped: needs root");
            return None;
        }
        let name = format!("ground-{}", MADE.fetch_add(1, Ordering::Relaxed));
        let pins = Pins::new(bpffs::folder().unwrap().join(&name));
        let cgroup = ThreadCgroup::new(&name).unwrap();
        let netns = Netns::anonymous().unwrap();
        let servers = Servers::start();
        let pinning = PINNING.lock().unwrap_or_else(PoisonError::into_inner);
        pins.create().unwrap();
        drop(pinning);
        let kernel = Kernel::load(&pins, cgroup.path(), &CAPACITY).unwrap();
        let client = Client { netns: Arc::new(netns), cgroup: Arc::new(cgroup) };
        let installed = Installed::from_maps(kernel.maps.read().unwrap());
        Some(Self { kernel, installed, desired: Desired::default(), servers, client, pins })
    }

    /// Starts serving TCP and UDP at `address` in the client's namespace.
    pub(crate) fn serve(&self, address: SocketAddr) {
        self.servers.tcp(&self.client.netns, address);
        self.servers.udp(&self.client.netns, address);
    }

    /// Makes `service` what is desired for `key`.
    pub(crate) fn want(&mut self, key: FrontendKey, service: DesiredService) -> &mut Self {
        self.desired.services.insert(key, service);
        self
    }

    /// Brings the kernel in step with what is desired: when it returns, everything that is gone is out of reach.
    pub(crate) fn install(&mut self) {
        self.install_stepwise(|_, _| {});
    }

    /// Likewise, with a look at how things are after each write.
    pub(crate) fn install_stepwise(&mut self, mut look: impl FnMut(&Self, &Step)) {
        // A plan narrows the ranges that its predecessor widened, hence more than one.
        for _ in 0..8 {
            let plan = plan(&self.desired, &self.installed, &CAPACITY, &ClusterName(OWN.to_owned()), true);
            assert_eq!(plan.refused, [], "there is room");
            if plan.steps.is_empty() {
                return;
            }
            for step in &plan.steps {
                self.apply(step);
                look(self, step);
            }
        }
        panic!("plans don't come to an end");
    }

    /// Carries out one step.
    pub(crate) fn apply(&mut self, step: &Step) {
        datapath::apply(&mut self.kernel, std::slice::from_ref(step)).unwrap();
        Datapath::apply(&mut self.installed, step).unwrap();
    }

    /// Sets a cluster's verdict.
    pub(crate) fn judge_cluster(&mut self, name: &str, verdict: u8) {
        let clusters = self.installed.clusters();
        let found = clusters.iter().find(|(_, entry)| cluster_name(entry).0 == name);
        let (index, mut entry) = found.map(|(index, entry)| (*index, *entry)).expect("the cluster is installed");
        entry.verdict = verdict;
        self.apply(&Step::PutCluster(index, Box::new(entry)));
    }

    /// Sets the verdict of the backends at `address`, those of either protocol.
    pub(crate) fn judge_backend(&mut self, address: SocketAddr, verdict: u8) {
        let found = self.backends_at(address);
        assert!(!found.is_empty(), "{address} is installed");
        for (index, mut backend) in found {
            backend.verdict = verdict;
            self.apply(&Step::PutBackend(index, backend));
        }
    }

    /// How often the backends at `address` were chosen.
    pub(crate) fn chosen(&self, address: SocketAddr) -> u64 {
        let found = self.backends_at(address).into_iter();
        found.map(|(index, backend)| self.kernel.maps.chosen(index, backend.generation).unwrap()).sum()
    }

    /// How often `counter` was counted.
    pub(crate) fn count(&self, counter: Counter) -> u64 {
        self.kernel.maps.counts().unwrap()[counter.name()]
    }

    /// The backends at `address`, by index.
    pub(crate) fn backends_at(&self, address: SocketAddr) -> Vec<(u32, Backend)> {
        let is_at =
            |backend: &Backend| backend.addr == mapped(address.ip()) && backend.port == address.port().to_be_bytes();
        self.installed
            .backends()
            .filter(|(_, backend)| is_at(backend))
            .map(|(index, backend)| (index, *backend))
            .collect()
    }
}

impl Drop for Ground {
    fn drop(&mut self) {
        let pinning = PINNING.lock().unwrap_or_else(PoisonError::into_inner);
        if let Err(error) = self.pins.unload() {
            eprintln!("{error:#}");
        }
        // The last one takes the folder of all along; while there are others it isn't empty.
        if let Ok(folder) = bpffs::folder() {
            fs::remove_dir(folder).ok();
        }
        drop(pinning);
    }
}
