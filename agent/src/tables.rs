//! The kernel's tables as data: what they should hold ([`Desired`]), what they hold ([`Installed`]), and the single
//! writes that lead from one to the other ([`Step`]).
//!
//! `Desired` speaks of names only. [`Maps`] is what the kernel's maps hold, indexes and all, so it can be read back from
//! the pinned maps of an agent that is gone; [`Installed`] is the same with what planning needs to be fast. It
//! is also the fake kernel of tests: [`Installed::apply`] does to it what `datapath` does to the maps.

mod backends;
mod check;
mod differing;
mod free;
mod installed;
mod part;
mod query;
mod text;
mod verdicts;
mod view;

pub use self::{
    backends::Target,
    differing::Differing,
    installed::Installed,
    part::Part,
    text::{cluster_entry, cluster_name, object_name, service_name},
    verdicts::{ClusterVerdict, Verdicts},
};
pub(crate) use self::{
    backends::{Backends, key_of, mentioned},
    free::Free,
    installed::{distinct_ranges, remembers, to_ranges},
};

use crate::model::{ClusterName, ObjectName, Path};
use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
};
use tombolo_ebpf::abi::{self, BackendKey, FrontendKey, MemberKey};

/// What the tables should hold.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Desired {
    /// By what clients dial.
    pub services: BTreeMap<FrontendKey, DesiredService>,
    /// Cgroup ids of pods that are left alone, with a value of [`abi::exempt`].
    pub pods: BTreeMap<u64, u32>,
    /// [`abi::Config::pod_level`] for `pods`.
    pub pod_level: u32,
}

/// One frontend's endpoints, ready to be laid out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DesiredService {
    /// For people.
    pub name: ObjectName,
    /// ClientIP affinity's timeout in seconds.
    pub affinity_seconds: Option<u32>,
    /// [`abi::service_flag::EXCLUSIVE`].
    pub exclusive: bool,
    /// Its connections to what is known dead are not aborted: [`abi::service_flag::NO_ABORT`].
    pub no_abort: bool,
    /// At most [`abi::MAX_TIERS`], each of at most [`abi::MAX_TIER_GROUPS`] groups, [`abi::MAX_GROUPS`] in all; no tier
    /// and no group is empty. No tier at all: no endpoint.
    pub tiers: Vec<Vec<DesiredGroup>>,
    /// Endpoints that take nothing new and keep what they have: those of them that are installed stay, in no slot. Their
    /// weights don't matter.
    pub draining: Vec<Member>,
}

/// The endpoints of one cluster within one tier.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DesiredGroup {
    /// Whose verdict rules over the group.
    pub cluster: ClusterName,
    /// Its share of the tier, relative to the others'; at least 1, and a tier's sum fits an `u32`.
    pub weight: u32,
    /// Its endpoints, ordered, without duplicates.
    pub members: Vec<Member>,
}

/// An endpoint of a group.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Member {
    /// Its address; IPv4 as an IPv4-mapped IPv6 address.
    pub addr: [u8; 16],
    /// Its port, in network byte order.
    pub port: [u8; 2],
    /// How it is reached.
    pub path: Path,
    /// The cluster it is in, which differs from the group's only where clusters share a group.
    pub cluster: ClusterName,
    /// Its share of the group, relative to the others'; at least 1.
    pub weight: u32,
}

/// The contents of the maps that user space writes, as they are read from the kernel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Maps {
    /// [`abi::map::FRONTENDS`] and [`abi::map::CURRENT`]: indexes in `SERVICES`.
    pub frontends: BTreeMap<FrontendKey, u32>,
    /// [`abi::map::SERVICES`]: the entries that a frontend names. What is read from the kernel may hold the others too:
    /// they are asked for their version only, so that no version is given out twice.
    pub services: BTreeMap<u32, abi::Service>,
    /// [`abi::map::SLOTS`]: the range of each group of these services, by first slot.
    pub slots: BTreeMap<u32, Vec<abi::Slot>>,
    /// [`abi::map::BACKENDS`]: the entries in use, those of a generation other than 0.
    pub backends: BTreeMap<u32, abi::Backend>,
    /// [`abi::map::BACKEND_OF`]: indexes in `BACKENDS`.
    pub backend_of: BTreeMap<BackendKey, u32>,
    /// [`abi::map::MEMBERS`].
    pub members: BTreeSet<MemberKey>,
    /// [`abi::map::CLUSTERS`]: the entries in use, those with a name.
    pub clusters: BTreeMap<u32, abi::Cluster>,
    /// [`abi::map::NAMES`].
    pub names: BTreeMap<u32, ObjectName>,
    /// [`abi::map::PODS`].
    pub pods: BTreeMap<u64, u32>,
    /// [`abi::map::CONFIG`].
    pub config: abi::Config,
}

impl Default for Maps {
    /// Freshly made maps: nothing in them, and a configuration that covers nothing.
    fn default() -> Self {
        Self {
            frontends: BTreeMap::new(),
            services: BTreeMap::new(),
            slots: BTreeMap::new(),
            backends: BTreeMap::new(),
            backend_of: BTreeMap::new(),
            members: BTreeSet::new(),
            clusters: BTreeMap::new(),
            names: BTreeMap::new(),
            pods: BTreeMap::new(),
            config: abi::Config { active: 0, pod_level: 0, ranges: [abi::Ranges::NONE; 2] },
        }
    }
}

/// How many entries the maps have room for. New frontends leave a sixteenth of slots, backends and members to changes of
/// those that are there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Capacity {
    /// Of `FRONTENDS`.
    pub frontends: u32,
    /// Of `SERVICES` and `NAMES`; more than `frontends`, for a change needs a second entry for a while.
    pub services: u32,
    /// Of `SLOTS`.
    pub slots: u32,
    /// Of `BACKENDS`, `BACKEND_OF` and `BACKEND_STATE`.
    pub backends: u32,
    /// Of `MEMBERS`.
    pub members: u32,
    /// Of `PODS`.
    pub pods: u32,
}

/// One write to one map, or a wait. Stopping after any of them leaves tables in which every look-up is right.
///
/// A first plan has several for each backend: what is large is boxed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// Writes an entry of `CLUSTERS`, or changes its verdict and SYN timeout in place.
    PutCluster(u32, Box<abi::Cluster>),
    /// Writes an entry of `BACKENDS` that nothing names, or changes a verdict in place.
    PutBackend(u32, abi::Backend),
    /// Makes an address lead to a backend that has it.
    PutBackendOf(BackendKey, u32),
    /// Writes entries of `SLOTS` that nothing names, from this index on.
    PutSlots(u32, Vec<abi::Slot>),
    /// Writes an entry of `SERVICES` that nothing names.
    PutService(u32, Box<abi::Service>),
    /// Writes an entry of `NAMES`.
    PutName(u32, ObjectName),
    /// Adds to `MEMBERS`.
    PutMember(MemberKey),
    /// Adds to `PODS`, or changes the reason.
    PutPod(u64, u32),
    /// Writes `CONFIG`.
    PutConfig(Box<abi::Config>),
    /// Makes a frontend lead to this service: the moment at which a change takes effect.
    PutFrontend(FrontendKey, u32),
    /// Takes a frontend away.
    DropFrontend(FrontendKey),
    /// Takes out of `MEMBERS`.
    DropMember(MemberKey),
    /// Makes an address lead to no backend any more.
    DropBackendOf(BackendKey),
    /// Takes out of `PODS`.
    DropPod(u64),
    /// Takes out of `NAMES`.
    DropName(u32),
    /// Clears an entry of `BACKENDS` that nothing names any more.
    DropBackend(u32),
    /// Clears an entry of `CLUSTERS` that nothing names any more.
    DropCluster(u32),
    /// Waits until every program that is running has ended, so that what nothing names is free to be written.
    Grace,
}
const _: () = assert!(size_of::<Step>() <= 56);

/// The groups of all tiers of a service, one after the other.
pub fn groups(service: &abi::Service) -> &[abi::Group] {
    let used = service.tier_end.iter().map(|&end| usize::from(end)).max().unwrap_or(0);
    &service.groups[..used.min(abi::MAX_GROUPS)]
}

/// The groups of each tier of a service; tiers without any are left out.
pub fn tiers(service: &abi::Service) -> impl Iterator<Item = &[abi::Group]> {
    let starts = std::iter::once(0).chain(service.tier_end);
    let range = |(start, end): (u8, u8)| service.groups.get(usize::from(start)..usize::from(end));
    starts.zip(service.tier_end).filter_map(range).filter(|tier| !tier.is_empty())
}

impl fmt::Display for Step {
    /// Which write it is and to what, without the contents.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::PutCluster(index, _) => write!(f, "cluster {index}"),
            Self::PutBackend(index, _) => write!(f, "backend {index}"),
            Self::PutBackendOf(key, index) => write!(f, "address {key:?} of backend {index}"),
            Self::PutSlots(first, slots) => write!(f, "{} slots from {first} on", slots.len()),
            Self::PutService(index, service) => {
                write!(f, "version {} of service {} at {index}", service.version, service.id)
            }
            Self::PutName(id, name) => write!(f, "name {name} of service {id}"),
            Self::PutMember(key) => write!(f, "backend {} as a member of service {}", key.backend, key.service),
            Self::PutPod(cgroup, _) => write!(f, "pod of cgroup {cgroup}"),
            Self::PutConfig(_) => f.write_str("configuration"),
            Self::PutFrontend(key, index) => write!(f, "frontend {key:?}, which leads to {index}"),
            Self::DropFrontend(key) => write!(f, "removal of frontend {key:?}"),
            Self::DropMember(key) => write!(f, "removal of backend {} from service {}", key.backend, key.service),
            Self::DropBackendOf(key) => write!(f, "removal of address {key:?}"),
            Self::DropPod(cgroup) => write!(f, "removal of the pod of cgroup {cgroup}"),
            Self::DropName(id) => write!(f, "removal of the name of service {id}"),
            Self::DropBackend(index) => write!(f, "removal of backend {index}"),
            Self::DropCluster(index) => write!(f, "removal of cluster {index}"),
            Self::Grace => f.write_str("wait for a grace period"),
        }
    }
}
