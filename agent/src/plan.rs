//! The writes that lead from what is installed to what is desired, in an order that is safe to stop after any of them.

mod allot;
mod backends;
mod compare;
mod cover;
mod layout;

use self::{allot::Allot, backends::Fates, compare::Clusters, layout::Layout};
use crate::{
    model::{ClusterName, ObjectName},
    tables::{Capacity, Desired, DesiredService, Installed, Step, cluster_entry, groups},
};
use std::collections::{BTreeMap, BTreeSet};
use tombolo_ebpf::abi::{self, FrontendKey, MemberKey};

/// What is to be done.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    /// The writes, in order; none if what is installed agrees with what is desired as far as there is room.
    pub steps: Vec<Step>,
    /// Frontends that found no room, or that no table can hold, each with the reason in a person's words. What was
    /// installed for them stays as it is.
    pub refused: Vec<(FrontendKey, String)>,
    /// Cgroup ids of pods that ought to be left alone and found no room.
    pub refused_pods: Vec<u64>,
    /// Whether the steps set entries free while something was refused: once they are carried out, planning again may find
    /// room for it.
    pub again: bool,
    /// Whether services that differ are left for another plan, by [`Scope::most`].
    pub left: bool,
}

/// What a plan looks at, and how much it does at once.
#[derive(Clone, Copy, Debug)]
pub struct Scope<'a> {
    /// The frontends whose services may differ from what is installed, so that a change costs what it concerns; none: any
    /// may.
    pub differing: Option<&'a BTreeSet<FrontendKey>>,
    /// Slots and frontends that are written at most, so that a plan takes little memory; a single service may need more.
    pub most: usize,
    /// Whether it waits for programs to let go of what nothing leads to any more, and clears that. Without it these entries
    /// stay taken, and nothing drains, until a plan that does. One that takes frontends away always does.
    pub settles: bool,
}

impl Scope<'_> {
    /// Everything at once.
    pub const ALL: Self = Self { differing: None, most: usize::MAX, settles: true };
}

/// Plans the way from `installed` to `desired`.
///
/// New entries are written first: clusters, backends, their addresses, slots, services, names, members, pods. Then the
/// prefixes are widened, then frontends are flipped, one word each. Then what nothing leads to any more is taken away in
/// reverse, with a grace period before whatever a running program could still be reading is cleared. Only entries that
/// are free at the start are written. So every look-up between two steps finds the old or the new version of its service,
/// and a plan that was broken off is simply planned again.
///
/// A backend goes in two plans. The one that takes it out of its last slot leaves it in place, draining; a later one
/// clears it, and its address with it, once [`Installed::set_busy`] doesn't name it any more. So whatever was sent there
/// up to the last moment is still found by its address.
///
/// Services that don't change cost a comparison each and no step. A service that finds no room is refused whole and stays
/// as it was; changes come before new frontends, both in the order of frontends, so the same input refuses the same.
///
/// `own` is the agent's own cluster, which always has index 0.
///
/// `prune` is false until every source has delivered its first full list. Then nothing is taken away: frontends that are
/// not desired stay, and a service is changed only if its new version has all addresses and ports of the installed
/// one, because what is missing may just not have been heard of yet. The same holds for pods.
pub fn plan(desired: &Desired, installed: &Installed, capacity: &Capacity, own: &ClusterName, prune: bool) -> Plan {
    plan_within(&Scope::ALL, desired, installed, capacity, own, prune)
}

/// Plans a part of the way: see [`plan`] and [`Scope`].
pub fn plan_within(
    scope: &Scope<'_>,
    desired: &Desired,
    installed: &Installed,
    capacity: &Capacity,
    own: &ClusterName,
    prune: bool,
) -> Plan {
    let mut plan = Plan::default();
    let Some(own_entry) = cluster_entry(own) else {
        plan.refused = desired.services.keys().map(|key| (*key, format!("cluster name {own:?} has no room"))).collect();
        return plan;
    };
    let clusters = Clusters::of(installed, own);
    let changes = find_changes(scope.differing, desired, installed, &clusters, prune);
    let settles = scope.settles || !changes.dropped.is_empty();
    let mut allot = Allot::new(installed, capacity, clusters);
    let mut layouts = Vec::new();
    let mut written = 0;
    for (key, service) in changes.replaced.into_iter().chain(changes.added) {
        if written >= scope.most {
            plan.left = true;
            break;
        }
        match allot.lay_out(key, service) {
            Ok(layout) => {
                written += 1 + layout.addresses.len();
                layouts.push(layout);
            }
            Err(reason) => plan.refused.push((key, reason)),
        }
    }
    plan.refused.sort_unstable();

    let stays = Stays::of(desired, installed, &allot);
    let leaves = Leaves::of(installed, &layouts, &changes.dropped, &stays, prune, settles);
    let ranges = cover::Needs::of(installed, &layouts, &changes.dropped, &leaves.backends.cleared);
    let widening = ranges.widening();
    let pods = pod_steps(desired, installed, capacity, prune, &mut plan.refused_pods);

    let mut steps = Vec::new();
    if widening.is_some() && installed.config_in_use() {
        steps.push(Step::Grace);
    }
    if installed.clusters().get(&0).is_none_or(|entry| entry.name != own_entry.name) {
        steps.push(Step::PutCluster(0, Box::new(own_entry)));
    }
    let mut config = *installed.config();
    write_steps(&layouts, desired, &changes.renamed, &leaves.backends, &mut steps);
    steps.extend(pods.puts);
    if config.pod_level != pods.level {
        config.pod_level = pods.level;
        steps.push(Step::PutConfig(Box::new(config)));
    }
    if let Some(wide) = widening {
        cover::switch(&mut config, wide, &mut steps);
    }
    steps.extend(layouts.iter().map(|layout| Step::PutFrontend(layout.service.key, layout.index)));

    steps.extend(changes.dropped.iter().map(|key| Step::DropFrontend(*key)));
    steps.extend(leaves.members.into_iter().map(Step::DropMember));
    steps.extend(leaves.names.into_iter().map(Step::DropName));
    steps.extend(pods.drops);
    steps.extend(leaves.backends.part());
    let narrowing = if prune { ranges.narrowing(&config) } else { None };
    if settles {
        if leaves.awaits_grace {
            steps.push(Step::Grace);
        }
        steps.extend(leaves.backends.drain());
        steps.extend(leaves.backends.cleared.into_iter().map(Step::DropBackend));
        steps.extend(leaves.clusters.into_iter().map(Step::DropCluster));
        if let Some(narrow) = narrowing {
            cover::switch(&mut config, narrow, &mut steps);
        }
    }
    plan.again = !plan.refused.is_empty() && steps.iter().any(frees)
        || !plan.refused_pods.is_empty() && steps.iter().any(|step| matches!(step, Step::DropPod(_)));
    plan.steps = steps;
    plan
}

/// Whether a step sets entries free that the next plan may hand out.
fn frees(step: &Step) -> bool {
    matches!(
        step,
        Step::Grace
            | Step::DropFrontend(_)
            | Step::DropMember(_)
            | Step::DropName(_)
            | Step::DropBackend(_)
            | Step::DropCluster(_)
    )
}

/// What differs, each list in the order of frontends.
struct Changes<'a> {
    replaced: Vec<(FrontendKey, &'a DesiredService)>,
    added: Vec<(FrontendKey, &'a DesiredService)>,
    dropped: Vec<FrontendKey>,
    /// Service ids of frontends whose table stays and whose name doesn't.
    renamed: Vec<(u32, &'a ObjectName)>,
}

fn find_changes<'a>(
    differing: Option<&BTreeSet<FrontendKey>>,
    desired: &'a Desired,
    installed: &Installed,
    clusters: &Clusters,
    prune: bool,
) -> Changes<'a> {
    let mut changes = Changes { replaced: Vec::new(), added: Vec::new(), dropped: Vec::new(), renamed: Vec::new() };
    match differing {
        Some(keys) => {
            for key in keys {
                let is_installed = installed.frontends().contains_key(key);
                match desired.services.get(key) {
                    Some(service) => changes.look(*key, service, is_installed, installed, clusters, prune),
                    None => changes.dropped.extend(is_installed.then_some(*key)),
                }
            }
        }
        None => {
            let mut old = installed.frontends().keys().peekable();
            for (key, service) in &desired.services {
                while let Some(gone) = old.next_if(|old| *old < key) {
                    changes.dropped.push(*gone);
                }
                let is_installed = old.next_if_eq(&key).is_some();
                changes.look(*key, service, is_installed, installed, clusters, prune);
            }
            changes.dropped.extend(old);
        }
    }
    if !prune {
        changes.dropped.clear();
    }
    changes
}

impl<'a> Changes<'a> {
    /// Notes what has to be done for a service that is desired.
    fn look(
        &mut self,
        key: FrontendKey,
        service: &'a DesiredService,
        is_installed: bool,
        installed: &Installed,
        clusters: &Clusters,
        prune: bool,
    ) {
        if !is_installed {
            self.added.push((key, service));
        } else if let Some(id) = compare::agrees(installed, clusters, &key, service) {
            if !installed.names().get(&id).is_some_and(|name| compare::same_name(name, &service.name)) {
                self.renamed.push((id, &service.name));
            }
        } else if prune || compare::keeps_all(installed, &key, service) {
            self.replaced.push((key, service));
        }
    }
}

/// What drains: installed, in no slot, and not to be cleared.
#[derive(Default)]
struct Stays {
    backends: BTreeSet<u32>,
    members: BTreeSet<MemberKey>,
}

impl Stays {
    fn of(desired: &Desired, installed: &Installed, allot: &Allot<'_>) -> Self {
        let mut stays = Self::default();
        for (key, service) in desired.services.iter().filter(|(_, service)| !service.draining.is_empty()) {
            let id = installed.service(key).map(|service| service.id);
            for index in service.draining.iter().filter_map(|member| allot.find_backend(key.proto, member)) {
                stays.backends.insert(index);
                let member = id.map(|service| MemberKey { service, backend: index });
                stays.members.extend(member.filter(|member| installed.members().contains(member)));
            }
        }
        stays
    }
}

/// What nothing leads to any more once the layouts are in force and `dropped` is gone.
struct Leaves<'a> {
    members: BTreeSet<MemberKey>,
    names: BTreeSet<u32>,
    backends: Fates<'a>,
    clusters: Vec<u32>,
    awaits_grace: bool,
}

impl<'a> Leaves<'a> {
    fn of(
        installed: &'a Installed,
        layouts: &'a [Layout],
        dropped: &[FrontendKey],
        stays: &Stays,
        prune: bool,
        settles: bool,
    ) -> Self {
        let replaced = layouts.iter().map(|layout| layout.service.key);
        let gone: Vec<&abi::Service> =
            replaced.chain(dropped.iter().copied()).filter_map(|key| installed.entry(&key)).collect();
        let backends = Fates::of(installed, layouts, &gone, &stays.backends, prune && settles);
        let awaits_grace =
            installed.awaits_grace() || !gone.is_empty() || !dropped.is_empty() || !backends.cleared.is_empty();
        if !prune {
            let (members, names, clusters) = (BTreeSet::new(), BTreeSet::new(), Vec::new());
            return Self { members, names, backends, clusters, awaits_grace };
        }
        let mut members = installed.stale_members().clone();
        let mut names = installed.stale_names().clone();
        for service in &gone {
            members.extend(installed.members_of(service).filter(|member| installed.members().contains(member)));
            names.extend(installed.names().contains_key(&service.id).then_some(service.id));
        }
        for layout in layouts {
            for member in &layout.members {
                members.remove(member);
            }
            names.remove(&layout.service.id);
        }
        members.retain(|member| !stays.members.contains(member));
        let clusters = unused_clusters(installed, layouts, &gone, &backends.cleared);
        Self { members, names, backends, clusters, awaits_grace }
    }
}

fn unused_clusters(installed: &Installed, layouts: &[Layout], gone: &[&abi::Service], backends: &[u32]) -> Vec<u32> {
    let mut change: BTreeMap<u32, i64> = installed.clusters().keys().map(|&index| (index, 0)).collect();
    let mut count = |cluster: u32, by: i64| *change.entry(cluster).or_default() += by;
    for group in gone.iter().flat_map(|service| groups(service)) {
        count(group.cluster, -1);
    }
    for backend in backends.iter().filter_map(|&index| installed.backend(index)) {
        count(backend.cluster, -1);
    }
    for layout in layouts {
        groups(&layout.service).iter().for_each(|group| count(group.cluster, 1));
        layout.backends.iter().for_each(|(_, backend)| count(backend.cluster, 1));
    }
    let unused = |(index, change): (u32, i64)| {
        let is_installed = index != 0 && installed.clusters().contains_key(&index);
        (is_installed && i64::from(installed.cluster_users(index)) + change <= 0).then_some(index)
    };
    change.into_iter().filter_map(unused).collect()
}

/// All that is written before anything leads to it, each kind of entry in one run so that it can be written in bulk.
fn write_steps(
    layouts: &[Layout],
    desired: &Desired,
    renamed: &[(u32, &ObjectName)],
    fates: &Fates<'_>,
    steps: &mut Vec<Step>,
) {
    let clusters = layouts.iter().flat_map(|layout| &layout.clusters);
    steps.extend(clusters.map(|(index, cluster)| Step::PutCluster(*index, Box::new(*cluster))));
    let backends = layouts.iter().flat_map(|layout| &layout.backends);
    steps.extend(backends.map(|(index, backend)| Step::PutBackend(*index, *backend)));
    steps.extend(fates.lead());
    steps.extend(fates.welcome());
    let slots = layouts.iter().flat_map(|layout| &layout.slots);
    steps.extend(slots.map(|(first, slots)| Step::PutSlots(*first, slots.clone())));
    steps.extend(layouts.iter().map(|layout| Step::PutService(layout.index, Box::new(layout.service))));
    let names = layouts.iter().filter_map(|layout| {
        let name = &desired.services.get(&layout.service.key)?.name;
        layout.needs_name.then(|| Step::PutName(layout.service.id, name.clone()))
    });
    steps.extend(names);
    steps.extend(renamed.iter().map(|(id, name)| Step::PutName(*id, (*name).clone())));
    let members = layouts.iter().flat_map(|layout| &layout.new_members);
    steps.extend(members.map(|member| Step::PutMember(*member)));
}

/// What changes in `PODS`.
struct Pods {
    puts: Vec<Step>,
    drops: Vec<Step>,
    level: u32,
}

fn pod_steps(
    desired: &Desired,
    installed: &Installed,
    capacity: &Capacity,
    prune: bool,
    refused: &mut Vec<u64>,
) -> Pods {
    let mut room = usize::try_from(capacity.pods).unwrap_or(usize::MAX).saturating_sub(installed.pods().len());
    let mut puts = Vec::new();
    for (&cgroup, &reason) in &desired.pods {
        match installed.pods().get(&cgroup) {
            Some(&old) if old == reason => {}
            Some(_) => puts.push(Step::PutPod(cgroup, reason)),
            None if room > 0 => {
                room -= 1;
                puts.push(Step::PutPod(cgroup, reason));
            }
            None => refused.push(cgroup),
        }
    }
    let gone = installed.pods().keys().filter(|cgroup| prune && !desired.pods.contains_key(cgroup));
    let drops: Vec<Step> = gone.map(|&cgroup| Step::DropPod(cgroup)).collect();
    let keeps = !prune && desired.pods.is_empty() && !installed.pods().is_empty();
    let level = if keeps { installed.config().pod_level } else { desired.pod_level };
    Pods { puts, drops, level }
}
