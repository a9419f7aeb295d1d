//! The maps with their types. Their names and sizes appear here only.

mod audit;

use super::{clock, grace::Grace, hash::Hash, pins::Pins, table::Table};
use crate::{
    report::States,
    tables::{self, Capacity, Step, object_name, service_name},
};
use anyhow::{Context, bail};
use aya::{
    Ebpf,
    maps::{Map, MapData, MapInfo, PerCpuArray},
};
use std::{
    collections::{BTreeMap, BTreeSet},
    os::fd::{AsFd, OwnedFd},
};
use tombolo_ebpf::abi::{
    Backend, BackendKey, BackendState, Cluster, ClusterState, Config, Counter, FrontendKey, Group, MemberKey, Service,
    ServiceName, Slot, map,
};

/// Every map is pinned: the next agent takes it over, and the CLI reads it when there is no agent.
pub(super) const PINNED: [&str; 19] = [
    map::FRONTENDS,
    map::CURRENT,
    map::SERVICES,
    map::SLOTS,
    map::BACKENDS,
    map::BACKEND_OF,
    map::MEMBERS,
    map::CLUSTERS,
    map::PODS,
    map::NAMES,
    map::CONFIG,
    map::BACKEND_STATE,
    map::CLUSTER_STATE,
    map::ARMED,
    map::EVENTS,
    map::ORIGINS,
    map::UDP_ORIGIN,
    map::AFFINITY,
    map::COUNTERS,
];

/// Sessions that are remembered at most, on one node; the longest unused go first.
const SESSIONS: u32 = 65_536;

/// `max_entries` of the maps that grow with the tables.
pub(super) fn sizes(capacity: &Capacity) -> [(&'static str, u32); 11] {
    [
        (map::FRONTENDS, capacity.frontends),
        (map::CURRENT, capacity.services),
        (map::SERVICES, capacity.services),
        (map::SLOTS, capacity.slots),
        (map::BACKENDS, capacity.backends),
        (map::BACKEND_OF, capacity.backends),
        (map::BACKEND_STATE, capacity.backends),
        (map::MEMBERS, capacity.members),
        (map::NAMES, capacity.services),
        (map::PODS, capacity.pods),
        (map::AFFINITY, SESSIONS),
    ]
}

/// How much room the pinned maps have.
pub(super) fn capacity_of(pins: &Pins) -> anyhow::Result<Capacity> {
    let entries = |name: &'static str| {
        let map = MapData::from_pin(pins.map(name)).with_context(|| format!("open the pinned map {name}"))?;
        let info: MapInfo = map.info().with_context(|| format!("read the size of the pinned map {name}"))?;
        anyhow::Ok(info.max_entries())
    };
    Ok(Capacity {
        frontends: entries(map::FRONTENDS)?,
        services: entries(map::SERVICES)?,
        slots: entries(map::SLOTS)?,
        backends: entries(map::BACKENDS)?,
        members: entries(map::MEMBERS)?,
        pods: entries(map::PODS)?,
    })
}

/// A descriptor of a map that wasn't taken out of the object yet.
pub(super) fn descriptor(ebpf: &Ebpf, name: &str) -> anyhow::Result<OwnedFd> {
    let data = match ebpf.map(name) {
        Some(
            Map::Array(data)
            | Map::HashMap(data)
            | Map::LruHashMap(data)
            | Map::PerCpuArray(data)
            | Map::RingBuf(data)
            | Map::SkStorage(data),
        ) => data,
        Some(_) => bail!("map {name} is of a kind that isn't known here"),
        None => bail!("map {name} is not in the object"),
    };
    data.fd().as_fd().try_clone_to_owned().with_context(|| format!("keep map {name} open"))
}

/// The maps that user space reads or writes.
pub struct KernelMaps {
    frontends: Hash<FrontendKey, u32>,
    current: Table<u32>,
    services: Table<Service>,
    slots: Table<Slot>,
    backends: Table<Backend>,
    backend_of: Hash<BackendKey, u32>,
    members: Hash<MemberKey, u32>,
    clusters: Table<Cluster>,
    pods: Hash<u64, u32>,
    names: Hash<u32, ServiceName>,
    config: Table<Config>,
    backend_state: Table<BackendState>,
    cluster_state: Table<ClusterState>,
    counters: PerCpuArray<MapData, u64>,
    grace: Grace,
}

/// What programs counted, by counter.
pub type Counts = BTreeMap<&'static str, u64>;

impl KernelMaps {
    /// Takes the maps out of a loaded object. Only after its programs are loaded: taking closes the object's own
    /// descriptors.
    pub(super) fn take(ebpf: &mut Ebpf) -> anyhow::Result<Self> {
        Self::of(|name| ebpf.take_map(name).with_context(|| format!("map {name} is not in the object")))
    }

    /// Opens the pinned maps of an agent, running or gone.
    pub fn open(pins: &Pins) -> anyhow::Result<Self> {
        Self::of(|name| {
            let path = pins.map(name);
            let data = MapData::from_pin(&path).with_context(|| format!("open {}", path.display()))?;
            Map::from_map_data(data).with_context(|| format!("open {}", path.display()))
        })
    }

    fn of(mut map: impl FnMut(&'static str) -> anyhow::Result<Map>) -> anyhow::Result<Self> {
        Ok(Self {
            frontends: Hash::new(map(map::FRONTENDS)?, map::FRONTENDS)?,
            current: Table::new(map(map::CURRENT)?, map::CURRENT)?,
            services: Table::new(map(map::SERVICES)?, map::SERVICES)?,
            slots: Table::new(map(map::SLOTS)?, map::SLOTS)?,
            backends: Table::new(map(map::BACKENDS)?, map::BACKENDS)?,
            backend_of: Hash::new(map(map::BACKEND_OF)?, map::BACKEND_OF)?,
            members: Hash::new(map(map::MEMBERS)?, map::MEMBERS)?,
            clusters: Table::new(map(map::CLUSTERS)?, map::CLUSTERS)?,
            pods: Hash::new(map(map::PODS)?, map::PODS)?,
            names: Hash::new(map(map::NAMES)?, map::NAMES)?,
            config: Table::new(map(map::CONFIG)?, map::CONFIG)?,
            backend_state: Table::new(map(map::BACKEND_STATE)?, map::BACKEND_STATE)?,
            cluster_state: Table::new(map(map::CLUSTER_STATE)?, map::CLUSTER_STATE)?,
            counters: PerCpuArray::try_from(map(map::COUNTERS)?)
                .with_context(|| format!("map {} does not have the layout of abi", map::COUNTERS))?,
            grace: Grace::default(),
        })
    }

    /// Carries out one step.
    pub fn apply(&mut self, step: &Step) -> anyhow::Result<()> {
        match step {
            Step::PutCluster(index, cluster) => self.clusters.set(*index, cluster)?,
            Step::PutBackend(index, backend) => self.backends.set(*index, backend)?,
            Step::PutBackendOf(key, index) => self.backend_of.insert(key, index)?,
            Step::PutSlots(first, slots) => self.slots.write(*first, slots)?,
            Step::PutService(index, service) => self.services.set(*index, service)?,
            Step::PutName(id, name) => self.names.insert(id, &service_name(name))?,
            Step::PutMember(key) => self.members.insert(key, &1)?,
            Step::PutPod(cgroup, reason) => self.pods.insert(cgroup, reason)?,
            Step::PutConfig(config) => self.config.set(0, config)?,
            Step::PutFrontend(key, index) => self.put_frontend(key, *index)?,
            Step::DropFrontend(key) => self.frontends.remove(key)?,
            Step::DropMember(key) => self.members.remove(key)?,
            Step::DropBackendOf(key) => self.backend_of.remove(key)?,
            Step::DropPod(cgroup) => self.pods.remove(cgroup)?,
            Step::DropName(id) => self.names.remove(id)?,
            Step::DropBackend(index) => self.backends.set(*index, &Backend::default())?,
            Step::DropCluster(index) => self.clusters.set(*index, &NO_CLUSTER)?,
            Step::Grace => self.grace.wait()?,
        }
        Ok(())
    }

    /// Reads back what user space has written: the state that the next plan starts from.
    pub fn read(&self) -> anyhow::Result<tables::Maps> {
        let frontends = self.frontends()?;
        let services: BTreeMap<u32, Service> = self.services.used(|service| service.version != 0)?;
        let mut slots = BTreeMap::new();
        for group in frontends.values().filter_map(|index| services.get(index)).flat_map(used_groups) {
            slots.insert(group.first_slot, self.slots_of(group)?);
        }
        let members: BTreeMap<MemberKey, u32> = self.members.all()?;
        let names: BTreeMap<u32, ServiceName> = self.names.all()?;
        Ok(tables::Maps {
            frontends,
            services,
            slots,
            backends: self.backends()?,
            backend_of: self.backend_of.all()?,
            members: members.into_keys().collect(),
            clusters: self.clusters()?,
            names: names.into_iter().map(|(id, name)| (id, object_name(&name))).collect(),
            pods: self.pods.all()?,
            config: self.config.get(0)?,
        })
    }

    /// Makes a frontend lead to the service at `index`. For a frontend that is there already this is one write to
    /// `CURRENT`; a new one is put into `FRONTENDS` once its id leads where it should.
    fn put_frontend(&mut self, key: &FrontendKey, index: u32) -> anyhow::Result<()> {
        let id = self.services.get(index)?.id;
        self.current.set(id, &index)?;
        if self.frontends.get(key)? == Some(id) { Ok(()) } else { self.frontends.insert(key, &id) }
    }

    /// Where each frontend leads: indexes in `SERVICES`.
    fn frontends(&self) -> anyhow::Result<BTreeMap<FrontendKey, u32>> {
        let ids: BTreeMap<FrontendKey, u32> = self.frontends.all()?;
        ids.into_iter().map(|(key, id)| Ok((key, self.current.get(id)?))).collect()
    }

    fn slots_of(&self, group: &Group) -> anyhow::Result<Vec<Slot>> {
        let range = group.first_slot..group.first_slot.saturating_add(group.slots);
        Ok(self.slots.read(range)?.into_iter().map(|(_, slot)| slot).collect())
    }

    /// The addresses and ports that a frontend leads to now, by look-ups as programs do them; none if it isn't there, or if
    /// what was read belongs to another frontend, since somebody may be writing.
    pub fn reached(&self, key: &FrontendKey) -> anyhow::Result<BTreeSet<([u8; 16], [u8; 2])>> {
        let mut reached = BTreeSet::new();
        let Some(id) = self.frontends.get(key)? else { return Ok(reached) };
        let service = self.services.get(self.current.get(id)?)?;
        if service.key != *key {
            return Ok(reached);
        }
        for group in used_groups(&service) {
            for slot in self.slots_of(group)? {
                let backend = self.backends.get(slot.backend)?;
                reached.insert((backend.addr, backend.port));
            }
        }
        Ok(reached)
    }

    /// The backends in use, by index.
    pub fn backends(&self) -> anyhow::Result<BTreeMap<u32, Backend>> {
        self.backends.used(|backend| backend.generation != 0)
    }

    /// The clusters in use, by index.
    pub fn clusters(&self) -> anyhow::Result<BTreeMap<u32, Cluster>> {
        self.clusters.used(|cluster| cluster.name[0] != 0)
    }

    /// How often the backend at `index` was chosen since it has this generation.
    pub fn chosen(&self, index: u32, generation: u32) -> anyhow::Result<u64> {
        Ok(self.state(index, generation)?.map_or(0, |state| state.chosen))
    }

    /// What the programs learned about the backend at `index` since it has this generation; none if that is nothing.
    pub fn state(&self, index: u32, generation: u32) -> anyhow::Result<Option<BackendState>> {
        let state = self.backend_state.get(index)?;
        Ok((state.generation == generation).then_some(state))
    }

    /// What the programs learned about clusters, by index.
    pub fn cluster_states(&self) -> anyhow::Result<BTreeMap<u32, ClusterState>> {
        self.cluster_state.used(|state| *state != ClusterState::default())
    }

    /// What the programs learned about backends, by index.
    pub fn states(&self) -> anyhow::Result<BTreeMap<u32, BackendState>> {
        self.backend_state.used(|state| state.generation != 0)
    }

    /// All that the programs learned, as of now.
    pub fn learned(&self) -> anyhow::Result<States> {
        Ok(States { backends: self.states()?, clusters: self.cluster_states()?, now: clock::now()? })
    }

    /// What the programs counted, summed over CPUs.
    pub fn counts(&self) -> anyhow::Result<Counts> {
        let mut counts = Counts::new();
        for counter in Counter::ALL {
            counts.insert(counter.name(), self.count(counter)?);
        }
        Ok(counts)
    }

    /// Likewise for one counter.
    pub fn count(&self, counter: Counter) -> anyhow::Result<u64> {
        let by_cpu = self.counters.get(&(counter as u32), 0);
        let by_cpu = by_cpu.with_context(|| format!("read counter {}", counter.name()))?;
        Ok(by_cpu.iter().sum())
    }
}

/// A free entry of `CLUSTERS`.
const NO_CLUSTER: Cluster =
    Cluster { verdict: 0, keepalive_idle: 0, keepalive_interval: 0, keepalive_count: 0, syn_timeout: 0, name: [0; 64] };

/// The groups that a tier names.
fn used_groups(service: &Service) -> impl Iterator<Item = &Group> {
    let used = service.tier_end.iter().copied().max().unwrap_or(0);
    service.groups.iter().take(usize::from(used))
}
