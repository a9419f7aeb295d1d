//! An agent and its kernel: plans are carried out step by step, and every step is held against all the rules.

use crate::kernel::{End, Kernel, Reached};
use proptest::test_runner::Config as ProptestConfig;
use std::collections::{BTreeMap, BTreeSet};
use tombolo::{
    model::ClusterName,
    plan::{Plan, plan},
    tables::{Capacity, Desired, DesiredGroup, DesiredService, Installed, Member, Step, Verdicts},
};
use tombolo_ebpf::abi::FrontendKey;

/// More than any test needs.
pub(crate) const ROOMY: Capacity =
    Capacity { frontends: 10_000, services: 20_000, slots: 1_000_000, backends: 400_000, members: 400_000, pods: 1000 };

/// How many cases a property gets: ten times as many in release builds. A failure prints its case in full, so no file
/// of seeds is kept.
pub(crate) fn cases(debug: u32) -> ProptestConfig {
    let cases = if cfg!(debug_assertions) { debug } else { debug * 10 };
    ProptestConfig { cases, failure_persistence: None, ..ProptestConfig::default() }
}

pub(crate) struct World {
    pub(crate) kernel: Kernel,
    pub(crate) installed: Installed,
    pub(crate) capacity: Capacity,
    pub(crate) own: ClusterName,
}

impl World {
    pub(crate) fn new(capacity: Capacity) -> Self {
        let own = ClusterName("west".into());
        Self { kernel: Kernel::default(), installed: Installed::default(), capacity, own }
    }

    /// Plans by what is open now.
    pub(crate) fn plan(&mut self, desired: &Desired, prune: bool) -> Plan {
        self.installed.set_busy(self.kernel.busy());
        plan(desired, &self.installed, &self.capacity, &self.own, prune)
    }

    /// Carries out at most `most` steps of a plan for `desired`. After each, every frontend leads to its old or its new
    /// backends and never back, no program finds anything changed under it, and the agent knows what the kernel knows.
    pub(crate) fn carry_out(&mut self, plan: &Plan, desired: &Desired, prune: bool, most: usize) -> Result<(), String> {
        let mut watched = self.watch(plan, desired, prune);
        for step in plan.steps.iter().take(most) {
            let explain = |reason: String| format!("{step:?}: {reason}\nin {:#?}", summary(&plan.steps));
            self.installed.check(step, &self.capacity).map_err(explain)?;
            self.kernel.begin_programs();
            self.kernel.apply(step);
            self.installed.apply(step);
            self.kernel.check_programs().map_err(explain)?;
            self.kernel.check_connections().map_err(explain)?;
            for (key, watched) in &mut watched {
                watched.look(key, &self.kernel, &self.installed).map_err(explain)?;
                self.kernel.check_remembered(key).map_err(explain)?;
            }
        }
        if most >= plan.steps.len() {
            for (key, watched) in &watched {
                if self.kernel.lookup(key) != watched.new {
                    return Err(format!("{key:?} does not lead where it should after {:#?}", summary(&plan.steps)));
                }
            }
            self.kernel.check_addresses()?;
        }
        let read = Installed::from_maps(self.kernel.read()).to_maps();
        if read != self.installed.to_maps() {
            return Err(format!("the kernel holds {read:#?}, the agent thinks {:#?}", self.installed.to_maps()));
        }
        Ok(())
    }

    /// Plans and carries out as long as plans say that planning again may find room, and until all that is left alone is
    /// cleared; returns the last plan that refused or changed anything, after which nothing must be left to do.
    pub(crate) fn settle(&mut self, desired: &Desired) -> Result<Plan, String> {
        for _ in 0..100 {
            let plan = self.plan(desired, true);
            self.carry_out(&plan, desired, true, usize::MAX)?;
            if !plan.again && self.plan(desired, true).steps.is_empty() {
                return Ok(plan);
            }
        }
        Err("does not come to rest".to_owned())
    }

    /// Puts verdicts into force, ahead of any plan. No look-up changes by that.
    pub(crate) fn judge(&mut self, verdicts: &Verdicts) -> Result<(), String> {
        self.kernel.begin_programs();
        for step in self.installed.verdict_steps(verdicts) {
            self.installed.check(&step, &self.capacity)?;
            self.kernel.apply(&step);
            self.installed.apply(&step);
            self.kernel.check_programs()?;
        }
        match self.installed.verdict_steps(verdicts).as_slice() {
            [] => Ok(()),
            left => Err(format!("left to judge: {left:?}")),
        }
    }

    /// The agent is killed and starts again from what the kernel holds.
    pub(crate) fn restart(&mut self) {
        self.kernel.outlive();
        self.installed = Installed::from_maps(self.kernel.read());
    }

    fn watch(&self, plan: &Plan, desired: &Desired, prune: bool) -> BTreeMap<FrontendKey, Watched> {
        let keys = desired.services.keys().chain(self.kernel.frontends());
        let watch = |key: &FrontendKey| {
            let old = self.kernel.lookup(key);
            let refused = plan.refused.iter().any(|(refused, _)| refused == key);
            let new = match desired.services.get(key).map(reached) {
                _ if refused => old.clone(),
                None if !prune => old.clone(),
                Some(new) if !prune && old.as_ref().is_some_and(|old| !old.is_subset(&new)) => old.clone(),
                wanted => wanted,
            };
            (*key, Watched { old, new, arrived: false })
        };
        keys.map(watch).collect()
    }
}

/// A frontend on its way from its old backends to its new ones.
struct Watched {
    old: Reached,
    new: Reached,
    arrived: bool,
}

impl Watched {
    fn look(&mut self, key: &FrontendKey, kernel: &Kernel, installed: &Installed) -> Result<(), String> {
        let now = kernel.lookup(key);
        if installed.lookup(key) != now {
            return Err(format!("{key:?} leads to {now:?}, the agent thinks {:?}", installed.lookup(key)));
        }
        self.arrived |= now == self.new;
        let expected = if self.arrived { &self.new } else { &self.old };
        if now != *expected { Err(format!("{key:?} leads to {now:?} instead of {expected:?}")) } else { Ok(()) }
    }
}

/// All that a desired service can send a connect to.
pub(crate) fn reached(service: &DesiredService) -> BTreeSet<End> {
    let members = service.tiers.iter().flatten().flat_map(|group| &group.members);
    members.map(|member| (member.addr, member.port)).collect()
}

/// Says how what is installed differs from what is desired, frontends in `except` left aside.
pub(crate) fn compare(view: &Desired, desired: &Desired, except: &[(FrontendKey, String)]) -> Result<(), String> {
    let excepted = |key: &FrontendKey| except.iter().any(|(refused, _)| refused == key);
    let keys = |desired: &Desired| desired.services.keys().copied().filter(|key| !excepted(key)).collect::<Vec<_>>();
    same("frontends", &keys(view), &keys(desired))?;
    same("pods", &view.pods, &desired.pods)?;
    same("pod level", &view.pod_level, &desired.pod_level)?;
    for key in keys(desired) {
        let (view, desired) = (&view.services[&key], &desired.services[&key]);
        same("name", &view.name, &desired.name)?;
        same("affinity", &view.affinity_seconds, &desired.affinity_seconds)?;
        same("exclusive", &view.exclusive, &desired.exclusive)?;
        same("no abort", &view.no_abort, &desired.no_abort)?;
        same("tiers", &view.tiers.len(), &desired.tiers.len())?;
        for (view, desired) in view.tiers.iter().zip(&desired.tiers) {
            same("groups", &view.len(), &desired.len())?;
            view.iter().zip(desired).try_for_each(|(view, desired)| compare_groups(view, desired))?;
        }
    }
    Ok(())
}

fn compare_groups(view: &DesiredGroup, desired: &DesiredGroup) -> Result<(), String> {
    same("cluster", &view.cluster, &desired.cluster)?;
    same("weight", &view.weight, &desired.weight)?;
    let nameless = |group: &DesiredGroup| {
        let mut members: Vec<Member> =
            group.members.iter().cloned().map(|member| Member { weight: 0, ..member }).collect();
        members.sort();
        members
    };
    same("members", &nameless(view), &nameless(desired))?;
    let sum = |group: &DesiredGroup| group.members.iter().map(|member| f64::from(member.weight)).sum::<f64>();
    for member in &desired.members {
        let is_same = |other: &&Member| Member { weight: member.weight, ..(*other).clone() } == *member;
        let viewed = view.members.iter().find(is_same).expect("members are the same");
        let (viewed, desired) = (f64::from(viewed.weight) / sum(view), f64::from(member.weight) / sum(desired));
        // Shares are exact to 2^-32; the sum of at most a few dozen of them is not much worse.
        if (viewed - desired).abs() > 1e-7 {
            return Err(format!("{member:?} has a share of {viewed} instead of {desired}"));
        }
    }
    Ok(())
}

fn same<T: PartialEq + std::fmt::Debug>(what: &str, installed: &T, desired: &T) -> Result<(), String> {
    if installed == desired { Ok(()) } else { Err(format!("{what}: installed {installed:?}, desired {desired:?}")) }
}

fn summary(steps: &[Step]) -> Vec<String> {
    steps.iter().map(|step| format!("{step:?}").chars().take(160).collect()).collect()
}
