//! What makes a single write safe: the rules of the kernel tables, as tests hold every step of every plan against them.

use super::{
    Capacity, Installed, Step, Target,
    backends::{key_of, mentioned},
    groups,
    installed::distinct_ranges,
    tiers,
};
use crate::prefixes::Cover;
use tombolo_ebpf::abi::{self, BackendKey, FrontendKey, MAX_CLUSTERS, MemberKey, Ranges, verdict};

impl Installed {
    /// Says why `step` must not be done now: it would change what a program can still reach, name what isn't there, leave
    /// something behind that nobody finds, or not fit.
    ///
    /// # Errors
    ///
    /// The rule that `step` breaks.
    pub fn check(&self, step: &Step, capacity: &Capacity) -> Result<(), String> {
        match *step {
            Step::PutCluster(index, ref cluster) => self.check_put_cluster(index, cluster),
            Step::PutBackend(index, backend) => self.check_put_backend(index, &backend, capacity),
            Step::PutBackendOf(key, index) => self.check_put_backend_of(key, index, capacity),
            Step::PutSlots(first, ref slots) => self.check_put_slots(first, slots, capacity),
            Step::PutService(index, ref service) => self.check_put_service(index, service, capacity),
            Step::PutName(id, _) => rule(id < capacity.services, "the id is beyond NAMES"),
            Step::PutMember(member) => {
                rule(self.members.contains(&member) || fits(self.members.len(), capacity.members), "MEMBERS is full")?;
                rule(self.backends.get(member.backend).is_some(), "the member's backend is free")
            }
            Step::PutPod(cgroup, _) => {
                rule(self.pods.contains_key(&cgroup) || fits(self.pods.len(), capacity.pods), "PODS is full")
            }
            Step::PutConfig(ref config) => self.check_put_config(config),
            Step::PutFrontend(key, index) => self.check_put_frontend(key, index, capacity),
            Step::DropFrontend(key) => rule(self.frontends.contains_key(&key), "the frontend is not there"),
            Step::DropMember(member) => self.check_drop_member(member),
            Step::DropPod(cgroup) => rule(self.pods.contains_key(&cgroup), "the pod is not there"),
            Step::DropName(id) => {
                rule(self.names.contains_key(&id), "the name is not there")?;
                rule(!self.ids.contains_key(&id), "the service still exists")
            }
            Step::DropBackendOf(key) => self.check_drop_backend_of(key),
            Step::DropBackend(index) => self.check_drop_backend(index),
            Step::DropCluster(index) => {
                rule(self.clusters.contains_key(&index), "the cluster is not there")?;
                rule(index != 0, "the own cluster stays")?;
                rule(!self.mentions_cluster(index), "a backend or a group still names the cluster")
            }
            Step::Grace => Ok(()),
        }
    }

    fn check_put_cluster(&self, index: u32, cluster: &abi::Cluster) -> Result<(), String> {
        rule(index < MAX_CLUSTERS, "beyond CLUSTERS")?;
        rule(cluster.name != [0; 64], "a cluster without a name")?;
        let stays = self.clusters.get(&index).is_none_or(|old| old.name == cluster.name);
        rule(stays || index == 0 || !self.mentions_cluster(index), "the index is another cluster's")
    }

    fn mentions_cluster(&self, index: u32) -> bool {
        self.backends.iter().any(|(_, backend)| backend.cluster == index)
            || self.services.values().flat_map(|service| groups(service)).any(|group| group.cluster == index)
    }

    fn check_put_backend(&self, index: u32, backend: &abi::Backend, capacity: &Capacity) -> Result<(), String> {
        rule(index < capacity.backends, "beyond BACKENDS")?;
        rule(backend.generation != 0, "generation 0 means free")?;
        rule(self.clusters.contains_key(&backend.cluster), "the backend's cluster is free")?;
        let same = |old: &abi::Backend| old.generation == backend.generation && Target::of(old) == Target::of(backend);
        rule(self.backends.get(index).is_none_or(same), "the index is another backend's")?;
        rule(
            backend.verdict != verdict::DRAINING || self.backends.named(index) == 0,
            "a slot names the draining backend",
        )
    }

    fn check_put_backend_of(&self, key: BackendKey, index: u32, capacity: &Capacity) -> Result<(), String> {
        let is_new = !self.backend_of.contains_key(&key);
        rule(!is_new || fits(self.backend_of.len(), capacity.backends), "BACKEND_OF is full")?;
        rule(key.pad == 0, "padding is not zero")?;
        rule(self.backends.get(index).is_some_and(|backend| key_of(backend) == key), "the address is another's")
    }

    fn check_put_slots(&self, first: u32, slots: &[abi::Slot], capacity: &Capacity) -> Result<(), String> {
        let end = u32::try_from(slots.len()).ok().and_then(|len| first.checked_add(len));
        let end = end.filter(|&end| end <= capacity.slots).ok_or("beyond SLOTS")?;
        rule(first < end, "no slots")?;
        let overlaps = |group: &abi::Group| group.first_slot < end && first < group.first_slot + group.slots;
        rule(
            !self.services.values().flat_map(|service| groups(service)).any(overlaps),
            "a service still names these slots",
        )?;
        rule(mentioned(slots).all(|index| self.backends.get(index).is_some()), "a slot names a free backend")?;
        let is_found = |index| self.backends.get(index).is_some_and(|backend| !self.astray.contains(&key_of(backend)));
        rule(mentioned(slots).all(is_found), "a slot names a backend that its address doesn't lead to")
    }

    fn check_put_service(&self, index: u32, service: &abi::Service, capacity: &Capacity) -> Result<(), String> {
        rule(index < capacity.services, "beyond SERVICES")?;
        rule(!self.services.contains_key(&index), "a program may still be reading the entry")?;
        rule(!self.frontends.values().any(|&named| named == index), "a frontend leads to the entry")?;
        rule(service.key.pad == 0 && service.pad == 0, "padding is not zero")?;
        rule(service.version != 0, "version 0 means free")?;
        rule(!self.services.values().any(|old| old.version == service.version), "the version was given out before")?;
        let id = service.id;
        let kept = self.service(&service.key).map(|old| old.id);
        let taken = self.ids.contains_key(&id) || self.members.iter().any(|member| member.service == id);
        rule(id < capacity.services, "the id is beyond NAMES")?;
        rule(kept.map_or(!taken, |kept| kept == id), "the id is another service's, or changed")?;
        let used: usize = tiers(service).map(<[abi::Group]>::len).sum();
        rule(used == groups(service).len(), "tiers are not one after the other")?;
        for tier in tiers(service) {
            let mut before = 0;
            for group in tier {
                rule(group.upto > before, "a group has no weight")?;
                before = group.upto;
                let slots = self.slots.get(&group.first_slot).map(Vec::len);
                rule(slots.is_some() && slots == usize::try_from(group.slots).ok(), "a group's slots are not there")?;
                rule(self.clusters.contains_key(&group.cluster), "a group's cluster is free")?;
            }
        }
        let mut slots = distinct_ranges(service).flat_map(|group| self.slots(group));
        let proto = |index| self.backends.get(index).map(|backend| backend.proto);
        rule(slots.all(|slot| proto(slot.backend) == Some(service.key.proto)), "a backend of another protocol")
    }

    fn check_put_config(&self, config: &abi::Config) -> Result<(), String> {
        let (old, new) = (&self.config, config);
        rule(new.active < 2, "there are two sets of prefixes")?;
        let active = usize::from(old.active != 0);
        rule(new.ranges[active] == old.ranges[active], "the active prefixes are in use")?;
        let rewritten = new.ranges[1 - active] != old.ranges[1 - active];
        let flipped = new.active != old.active;
        let changes = [rewritten, flipped, new.pod_level != old.pod_level];
        rule(changes.iter().filter(|&&changed| changed).count() <= 1, "more than one thing changes")?;
        rule(!rewritten || !self.config_in_use(), "programs may still be reading the other prefixes")?;
        let ranges = &new.ranges[usize::from(new.active != 0)];
        let mut services = self.frontends.keys().filter_map(|key| self.service(key));
        rule(services.all(|service| self.covers(ranges, service)), "the prefixes leave a frontend or a backend out")?;
        let before = backends_in(self.ranges());
        let mut covered = self.backends.iter().filter(|(_, backend)| before.contains(backend.addr));
        let all = covered.all(|(_, backend)| backends_in(ranges).contains(backend.addr));
        rule(all, "the prefixes leave a backend out that may still have connections")
    }

    fn covers(&self, ranges: &Ranges, service: &abi::Service) -> bool {
        let frontends = Cover { v4: ranges.frontends4, v6: ranges.frontends6 };
        let backends = backends_in(ranges);
        let mut slots = groups(service).iter().flat_map(|group| self.slots(group));
        let covered = |index| self.backends.get(index).is_some_and(|backend| backends.contains(backend.addr));
        frontends.contains(service.key.addr) && slots.all(|slot| covered(slot.backend))
    }

    fn check_put_frontend(&self, key: FrontendKey, index: u32, capacity: &Capacity) -> Result<(), String> {
        let is_new = !self.frontends.contains_key(&key);
        rule(!is_new || fits(self.frontends.len(), capacity.frontends), "FRONTENDS is full")?;
        let service = self.services.get(&index).ok_or("the entry is free")?;
        rule(service.key == key, "the entry is another frontend's")?;
        rule(self.names.contains_key(&service.id), "the service has no name")?;
        let mut missing = self.members_of(service).filter(|member| !self.members.contains(member));
        rule(missing.next().is_none(), "a member is missing")?;
        let mut slots = distinct_ranges(service).flat_map(|group| mentioned(self.slots(group)));
        let is_draining = |index| self.backends.get(index).is_some_and(|b| b.verdict == verdict::DRAINING);
        rule(!slots.any(is_draining), "a backend is draining")?;
        rule(self.covers(self.ranges(), service), "the active prefixes leave the frontend or a backend out")
    }

    fn check_drop_member(&self, member: MemberKey) -> Result<(), String> {
        rule(self.members.contains(&member), "the member is not there")?;
        let service = self.ids.get(&member.service).and_then(|index| self.services.get(index));
        let needed = service.is_some_and(|service| self.members_of(service).any(|needed| needed == member));
        rule(!needed, "the member is still one")
    }

    fn check_drop_backend(&self, index: u32) -> Result<(), String> {
        rule(self.backends.get(index).is_some(), "the backend is not there")?;
        rule(self.backends.held(index) == 0, "a slot that programs may read names the backend")?;
        rule(!self.members.iter().any(|member| member.backend == index), "it is still somebody's member")?;
        rule(!self.backend_of.values().any(|&found| found == index), "its address still leads to it")?;
        rule(!self.parted.contains(&index), "a program may still know it by its address")?;
        rule(!self.busy.contains(&index), "it has open connections")
    }

    fn check_drop_backend_of(&self, key: BackendKey) -> Result<(), String> {
        rule(self.backend_of.contains_key(&key), "the address is not there")?;
        rule(self.holders(&key).all(|index| self.is_idle(index)), "a backend that is in use has the address")
    }
}

fn backends_in(ranges: &Ranges) -> Cover {
    Cover { v4: ranges.backends4, v6: ranges.backends6 }
}

fn fits(used: usize, capacity: u32) -> bool {
    u32::try_from(used).is_ok_and(|used| used < capacity)
}

fn rule(holds: bool, broken: &str) -> Result<(), String> {
    if holds { Ok(()) } else { Err(broken.to_owned()) }
}
