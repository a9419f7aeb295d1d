//! Brings the kernel's tables in step with what is desired, whatever happens on the way.

use crate::{
    datapath::Datapath,
    model::ClusterName,
    plan::{Scope, plan_within},
    report::socket_address,
    tables::{Capacity, Desired, Differing, Installed, Part, Step, Verdicts},
};
use anyhow::Context;
use std::{
    collections::{BTreeMap, BTreeSet},
    time::{Duration, Instant},
};
use tombolo_ebpf::abi::{FrontendKey, UDP};
use tracing::{info, warn};

/// Plans that follow each other at most. Each finds room that the one before has made; what is still refused then is
/// tried a moment later.
const PLANS: usize = 8;
/// How long a backend stays at least once no slot names it: a thread that was sent there at the last moment may be
/// kept from sending its SYN for a while, if its pod's CPU time is used up.
const LINGER: Duration = Duration::from_secs(2);
/// How far apart it is at least that programs are waited for, which takes some 10 ms: a change meanwhile doesn't wait too.
const SETTLE: Duration = Duration::from_secs(2);
/// Slots and frontends that one plan writes: those of large tables take several, or the plan of a start would take as much
/// memory as the tables themselves.
const MOST: usize = 8192;

/// The one writer of the tables, and what it knows of them.
pub(super) struct Writer<D> {
    /// What carries out the steps.
    pub(super) datapath: D,
    capacity: Capacity,
    own: ClusterName,
    installed: Installed,
    /// How often what is installed changed.
    writes: u64,
    /// A step failed or the tables are not what they should be: they have to be read before anything is planned.
    unknown: bool,
    /// The frontends that may differ from what is desired.
    differing: Differing,
    /// When programs were last waited for.
    settled: Option<Instant>,
    /// Whether planning again may find room for what was refused.
    behind: bool,
    refused: BTreeMap<FrontendKey, String>,
    refused_pods: usize,
    /// What health has found out; none until it has said anything.
    verdicts: Option<Verdicts>,
    /// Backends that no slot names, by index and generation, with the time when that was seen first.
    left: BTreeMap<(u32, u32), Instant>,
    /// Those of them that no plan clears, because they drain.
    draining: BTreeSet<(u32, u32)>,
    /// Whether a backend of a UDP service ceased to be one since that was asked.
    removed_udp: bool,
}

impl<D: Datapath> Writer<D> {
    /// Starts from what the tables hold.
    pub(super) fn new(datapath: D, capacity: Capacity, own: ClusterName) -> anyhow::Result<Self> {
        let mut writer = Self {
            datapath,
            capacity,
            own,
            installed: Installed::default(),
            writes: 0,
            unknown: true,
            differing: Differing::All,
            settled: None,
            behind: false,
            refused: BTreeMap::new(),
            refused_pods: 0,
            verdicts: None,
            left: BTreeMap::new(),
            draining: BTreeSet::new(),
            removed_udp: false,
        };
        writer.read_back()?;
        Ok(writer)
    }

    /// Whether a backend of a UDP service ceased to be one since the last time that this was asked.
    pub(super) fn take_removed_udp(&mut self) -> bool {
        std::mem::take(&mut self.removed_udp)
    }

    /// What the tables hold, as far as is known.
    pub(super) fn installed(&self) -> &Installed {
        &self.installed
    }

    /// Another number whenever what is installed has changed.
    pub(super) fn writes(&self) -> u64 {
        self.writes
    }

    /// Frontends for which there was no room, with the reason. What was installed for them stays.
    pub(super) fn refused(&self) -> &BTreeMap<FrontendKey, String> {
        &self.refused
    }

    /// How many pods ought to be left alone and found no room.
    pub(super) fn refused_pods(&self) -> usize {
        self.refused_pods
    }

    /// Writes what is missing; what isn't desired goes if `prune` says so, backends once they have no connections.
    /// `differing` are the frontends for which something else may be desired than when this was called last.
    ///
    /// # Errors
    ///
    /// A write failed. Every look-up still finds the old or the new version of its service, and the next call goes on from
    /// what there is.
    pub(super) fn bring_in_step(
        &mut self,
        desired: &Desired,
        differing: Differing,
        prune: bool,
        now: Instant,
    ) -> anyhow::Result<()> {
        self.differing.join(differing);
        if self.unknown {
            self.read_back().context("read the tables back")?;
        }
        self.put_verdicts()?;
        let mut settles = self.settled.is_none_or(|last| now.saturating_duration_since(last) >= SETTLE);
        let (mut done, mut plans, mut refused) = (0, 0, (BTreeMap::new(), 0));
        let was_behind = std::mem::replace(&mut self.behind, true);
        while self.behind && plans < PLANS {
            self.look_at_left(now);
            // What was not pruned differs still, whatever changed since.
            let differing = self.differing.frontends().filter(|_| prune);
            let scope = Scope { differing, most: MOST, settles };
            let plan = plan_within(&scope, desired, &self.installed, &self.capacity, &self.own, prune);
            let idle: Vec<(u32, u32)> = self.idle().collect();
            let unsound = self.installed.unsound().clone();
            self.carry_out(&plan.steps)?;
            self.put_verdicts()?;
            self.look_at_left(now);
            done += plan.steps.len();
            if settles {
                self.settled = Some(now);
            }
            if prune {
                // Without settling, what drains isn't told from what may be cleared.
                let stays = idle.into_iter().filter(|backend| settles && self.left.contains_key(backend));
                self.draining = stays.collect();
            }
            if plan.left {
                settles = false;
                continue;
            }
            // Slots that two services led to are one's alone now, and the other has to be written anew.
            let entangled = *self.installed.unsound() != unsound;
            if prune {
                let refused = plan.refused.iter().map(|(key, _)| *key);
                self.differing = Differing::Only(refused.chain(self.installed.unsound().iter().copied()).collect());
            }
            let is_new = |(key, _): &(FrontendKey, String)| was_behind || !self.refused.contains_key(key);
            let is_short = !settles && self.installed.awaits_grace() && plan.refused.iter().any(is_new);
            // One that finds no room until programs were waited for is followed by the same that waits.
            plans += usize::from(!is_short);
            self.behind = plan.again || is_short || entangled;
            refused = (plan.refused.into_iter().collect(), plan.refused_pods.len());
            settles = true;
        }
        self.note_refused(refused.0, refused.1);
        if done > 0 {
            info!(steps = done, frontends = self.installed.frontends().len(), "tables changed");
        }
        Ok(())
    }

    /// Whether there is something to do that no change brings about: what only programs need that were running at its last
    /// change, or what a call left to the next one.
    pub(super) fn is_unfinished(&self, now: Instant) -> bool {
        let is_time = self.settled.is_none_or(|last| now.saturating_duration_since(last) >= SETTLE);
        self.behind || self.installed.awaits_grace() && is_time
    }

    /// Puts what health found out into force: now, ahead of any plan, and for whatever plans install from now on.
    ///
    /// # Errors
    ///
    /// A write failed. The next call of this or of [`bring_in_step`](Self::bring_in_step) makes up for it.
    pub(super) fn judge(&mut self, verdicts: Verdicts) -> anyhow::Result<()> {
        self.verdicts = Some(verdicts);
        if self.unknown { Ok(()) } else { self.put_verdicts() }
    }

    fn put_verdicts(&mut self) -> anyhow::Result<()> {
        let steps = self.verdicts.as_ref().map(|verdicts| self.installed.verdict_steps(verdicts));
        self.carry_out(&steps.unwrap_or_default()).context("write verdicts")
    }

    /// Whether a backend that was left in place may be cleared by now.
    pub(super) fn has_idle(&mut self, now: Instant) -> bool {
        self.look_at_left(now);
        self.idle().any(|backend| !self.draining.contains(&backend))
    }

    /// Those left that a plan may clear, unless they drain.
    fn idle(&self) -> impl Iterator<Item = (u32, u32)> {
        self.left.keys().copied().filter(|(index, _)| self.installed.is_idle(*index))
    }

    /// Finds out which of the backends that no slot names are still needed.
    fn look_at_left(&mut self, now: Instant) {
        let installed = &self.installed;
        let generation = |&index: &u32| Some((index, installed.backend(index)?.generation));
        let left = installed.unnamed_backends().iter().filter_map(generation);
        self.left = left.map(|backend| (backend, self.left.get(&backend).copied().unwrap_or(now))).collect();
        let mut busy = BTreeSet::new();
        for (&(index, generation), &since) in &self.left {
            let lingers = now.saturating_duration_since(since) < LINGER;
            let is_busy = lingers
                || self.datapath.is_busy(index, generation).unwrap_or_else(|error| {
                    warn!(error = format!("{error:#}"), index, "connections of a backend not counted; it stays");
                    true
                });
            busy.extend(is_busy.then_some(index));
        }
        self.installed.set_busy(busy);
    }

    /// Compares a part of the tables with what it should hold; whether it does. If not, the next call of
    /// [`bring_in_step`](Self::bring_in_step) mends them.
    pub(super) fn audit(&mut self, part: Part) -> anyhow::Result<bool> {
        // What is known is not what was written last.
        if self.unknown {
            return Ok(true);
        }
        let agree = self.datapath.agree(&self.installed, part).context("read the tables to audit them")?;
        self.unknown |= !agree;
        Ok(agree)
    }

    fn carry_out(&mut self, steps: &[Step]) -> anyhow::Result<()> {
        for step in steps {
            self.removed_udp |= self.removes_udp(step);
            if let Err(error) = self.datapath.apply(step) {
                self.unknown = true;
                return Err(error).with_context(|| format!("write {step}"));
            }
            self.installed.apply(step);
            self.writes += 1;
        }
        Ok(())
    }

    /// Whether a backend of UDP is taken from its service by this step, or from the tables.
    fn removes_udp(&self, step: &Step) -> bool {
        let index = match step {
            Step::DropMember(member) => member.backend,
            Step::DropBackend(index) => *index,
            _ => return false,
        };
        self.installed.backend(index).is_some_and(|backend| backend.proto == UDP)
    }

    /// Finds out what the tables hold. Entries that nothing leads to are free from then on, hence the wait for programs
    /// that could still be reading them.
    fn read_back(&mut self) -> anyhow::Result<()> {
        self.datapath.apply(&Step::Grace)?;
        self.installed = Installed::from_maps(self.datapath.read()?);
        (self.unknown, self.differing) = (false, Differing::All);
        self.writes += 1;
        info!(
            frontends = self.installed.frontends().len(),
            backends = self.installed.backends().count(),
            "tables read from the kernel"
        );
        Ok(())
    }

    fn note_refused(&mut self, refused: BTreeMap<FrontendKey, String>, pods: usize) {
        for (key, reason) in refused.iter().filter(|(key, _)| !self.refused.contains_key(key)) {
            warn!(frontend = %socket_address(key.addr, key.port), %reason, "service refused");
        }
        if pods > self.refused_pods {
            warn!(pods, "no room for pods that ought to be left alone");
        }
        (self.refused, self.refused_pods) = (refused, pods);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        model::{ObjectName, Path},
        tables::{ClusterVerdict, DesiredGroup, DesiredService, Maps, Member},
    };
    use anyhow::{bail, ensure};
    use tombolo_ebpf::abi::{BackendKey, TCP, verdict};

    const CAPACITY: Capacity =
        Capacity { frontends: 64, services: 128, slots: 512, backends: 128, members: 512, pods: 8 };

    /// A kernel that fails at one step, and that finds out whether a step is one that it must not be told.
    struct Fake {
        kernel: Installed,
        steps: usize,
        fails_at: Option<usize>,
        busy: BTreeSet<(u32, u32)>,
        /// What somebody else made of the tables takes steps to mend that they never take otherwise.
        is_checked: bool,
    }

    impl Fake {
        fn new(fails_at: Option<usize>) -> Self {
            Self { kernel: Installed::default(), steps: 0, fails_at, busy: BTreeSet::new(), is_checked: true }
        }
    }

    impl Datapath for Fake {
        fn apply(&mut self, step: &Step) -> anyhow::Result<()> {
            self.steps += 1;
            if self.fails_at == Some(self.steps) {
                bail!("out of luck");
            }
            let allowed = self.kernel.check(step, &CAPACITY);
            ensure!(!self.is_checked || allowed.is_ok(), "unsafe: {allowed:?}");
            self.kernel.apply(step);
            Ok(())
        }

        fn read(&self) -> anyhow::Result<Maps> {
            Ok(self.kernel.to_maps())
        }

        fn is_busy(&self, index: u32, generation: u32) -> anyhow::Result<bool> {
            Ok(self.busy.contains(&(index, generation)))
        }
    }

    /// Services of either protocol, one on each of `ports`, with as many backends as its port says.
    fn desired(ports: &[u8]) -> Desired {
        let cluster = ClusterName("west".to_owned());
        let address = |last: u8| std::net::Ipv4Addr::new(10, 0, 0, last).to_ipv6_mapped().octets();
        let member = |number: u8| Member {
            addr: address(number),
            port: [0, 80],
            path: Path::Pod,
            cluster: cluster.clone(),
            weight: 1,
        };
        let service = |port: u8| DesiredService {
            name: ObjectName { namespace: "shop".to_owned(), name: format!("api-{port}") },
            affinity_seconds: Some(60),
            exclusive: false,
            no_abort: false,
            draining: Vec::new(),
            tiers: vec![vec![DesiredGroup {
                cluster: cluster.clone(),
                weight: 1,
                members: (1..=port).map(member).collect(),
            }]],
        };
        let key = |port: u8| {
            let proto = if port.is_multiple_of(2) { TCP } else { UDP };
            FrontendKey { addr: address(200), port: [0, port], proto, pad: 0 }
        };
        Desired { services: ports.iter().map(|port| (key(*port), service(*port))).collect(), ..Desired::default() }
    }

    fn audit(writer: &mut Writer<Fake>) -> anyhow::Result<bool> {
        Part::ALL.iter().try_fold(true, |agree, part| Ok(writer.audit(*part)? && agree))
    }

    #[test]
    fn a_write_that_fails_at_any_step_is_made_up_for_by_the_next_pass() {
        let states = [desired(&[1, 2, 3, 4]), desired(&[2, 3, 5]), desired(&[2, 6, 7])];
        let (own, now) = (ClusterName("west".to_owned()), Instant::now());
        let run = |fails_at| {
            let mut writer = Writer::new(Fake::new(fails_at), CAPACITY, own.clone())?;
            let mut failures = 0;
            for state in &states {
                // A change may come at once, or after the retry: both go on from half a plan.
                if let Err(error) = writer.bring_in_step(state, Differing::All, true, now) {
                    ensure!(format!("{error:#}").contains("out of luck"), "{error:#}");
                    failures += 1;
                    if fails_at.is_some_and(|step| step % 2 == 0) {
                        writer.bring_in_step(state, Differing::All, true, now)?;
                    }
                }
            }
            writer.bring_in_step(&states[2], Differing::All, true, now + LINGER)?;
            anyhow::Ok((failures, writer))
        };
        let (_, calm) = run(None).unwrap();
        let steps = calm.datapath.steps;
        assert!(steps > 60, "{steps}");
        // The first step is the wait of the start.
        for step in 2..=steps {
            let (failures, mut writer) = run(Some(step)).unwrap_or_else(|error| panic!("step {step}: {error:#}"));
            assert_eq!(failures, 1, "step {step}");
            assert_eq!(writer.datapath.kernel.view(), calm.datapath.kernel.view(), "step {step}");
            assert!(audit(&mut writer).unwrap(), "step {step}");
        }
    }

    #[test]
    fn a_table_that_somebody_else_changed_is_found_and_mended() {
        let (state, now) = (desired(&[1, 2]), Instant::now());
        let mut writer = Writer::new(Fake::new(None), CAPACITY, ClusterName("west".to_owned())).unwrap();
        writer.bring_in_step(&state, Differing::All, true, now).unwrap();
        assert!(audit(&mut writer).unwrap());
        let key = *state.services.keys().next().unwrap();
        writer.datapath.kernel.apply(&Step::DropFrontend(key));
        assert!(!audit(&mut writer).unwrap());
        writer.bring_in_step(&state, Differing::All, true, now).unwrap();
        assert!(audit(&mut writer).unwrap());
        assert!(writer.datapath.kernel.service(&key).is_some());
    }

    #[test]
    fn what_finds_no_room_is_refused_until_there_is_some() {
        let (capacity, now) = (Capacity { frontends: 2, ..CAPACITY }, Instant::now());
        let mut writer = Writer::new(Fake::new(None), capacity, ClusterName("west".to_owned())).unwrap();
        writer.bring_in_step(&desired(&[1, 2, 3]), Differing::All, true, now).unwrap();
        assert_eq!(writer.refused().len(), 1);
        assert_eq!(writer.installed().frontends().len(), 2);
        writer.bring_in_step(&desired(&[2, 3]), Differing::All, true, now).unwrap();
        assert_eq!(writer.refused().len(), 0);
        assert_eq!(writer.installed().view(), desired(&[2, 3]));
    }

    #[test]
    fn what_may_differ_is_all_that_is_looked_at_and_programs_are_waited_for_now_and_then() {
        let start = Instant::now();
        let mut writer = Writer::new(Fake::new(None), CAPACITY, ClusterName("west".to_owned())).unwrap();
        writer.bring_in_step(&desired(&[1, 2, 3]), Differing::All, true, start).unwrap();
        let keys: Vec<FrontendKey> = desired(&[1, 2, 3]).services.into_keys().collect();
        let mut changed = desired(&[1, 2, 3]);
        for service in changed.services.values_mut() {
            service.exclusive = true;
        }
        for (at, key) in keys.iter().enumerate() {
            writer.bring_in_step(&changed, Differing::Only([*key].into()), true, start).unwrap();
            let installed = writer.installed().view();
            assert_eq!(installed.services.values().filter(|service| service.exclusive).count(), at + 1);
        }
        assert!(writer.installed().awaits_grace(), "nobody waited for programs");
        assert!(!writer.is_unfinished(start));
        let later = start + SETTLE;
        assert!(writer.is_unfinished(later));
        writer.bring_in_step(&changed, Differing::default(), true, later).unwrap();
        assert!(!writer.is_unfinished(later) && !writer.installed().awaits_grace());
        assert_eq!(writer.installed().view(), changed);
        assert!(audit(&mut writer).unwrap());
        writer.bring_in_step(&desired(&[2]), Differing::Only(keys.into_iter().collect()), true, later).unwrap();
        assert_eq!(writer.installed().view(), desired(&[2]));
    }

    #[test]
    fn a_backend_stays_while_it_has_connections_and_for_a_moment_after_it_left() {
        let start = Instant::now();
        let mut writer = Writer::new(Fake::new(None), CAPACITY, ClusterName("west".to_owned())).unwrap();
        let backends = |writer: &Writer<Fake>| writer.installed().backends().count();
        writer.bring_in_step(&desired(&[4]), Differing::All, true, start).unwrap();
        writer.bring_in_step(&desired(&[2]), Differing::All, true, start).unwrap();
        assert_eq!(backends(&writer), 4, "programs may just have chosen them");
        assert!(!writer.has_idle(start + LINGER / 2));

        let (index, left) = writer.installed().backends().find(|(_, backend)| backend.addr[15] == 4).unwrap();
        writer.datapath.busy.insert((index, left.generation));
        let later = start + LINGER;
        assert!(writer.has_idle(later));
        writer.bring_in_step(&desired(&[2]), Differing::All, true, later).unwrap();
        assert_eq!(backends(&writer), 3, "one of the two that left has connections");
        assert!(!writer.has_idle(later + LINGER));

        writer.datapath.busy.clear();
        assert!(writer.has_idle(later));
        let later = later + SETTLE;
        writer.bring_in_step(&desired(&[2]), Differing::default(), true, later).unwrap();
        assert_eq!(backends(&writer), 2);
        assert!(!writer.has_idle(later));
    }

    #[test]
    fn a_backend_that_drained_goes_even_if_its_end_comes_between_two_waits() {
        let start = Instant::now();
        let mut writer = Writer::new(Fake::new(None), CAPACITY, ClusterName("west".to_owned())).unwrap();
        let whole = desired(&[4]);
        let mut state = whole.clone();
        let last = state.services.values_mut().find_map(|service| service.tiers[0][0].members.pop());
        let gone = state.clone();
        state.services.values_mut().for_each(|service| service.draining.push(last.clone().unwrap()));
        for desired in [&whole, &state] {
            writer.bring_in_step(desired, Differing::All, true, start).unwrap();
        }
        // No slot names it once programs were waited for; a moment later it is idle, and drains.
        for (at, drains) in [(start + SETTLE, false), (start + SETTLE + LINGER, true)] {
            assert_eq!((writer.is_unfinished(at), writer.has_idle(at)), (!drains, drains));
            writer.bring_in_step(&state, Differing::default(), true, at).unwrap();
        }
        let later = start + SETTLE + LINGER;
        writer.bring_in_step(&gone, Differing::All, true, later + SETTLE / 2).unwrap();
        assert_eq!(writer.installed().backends().count(), 4);
        assert!(writer.has_idle(later + SETTLE / 2));
        writer.bring_in_step(&gone, Differing::default(), true, later + SETTLE).unwrap();
        assert_eq!(writer.installed().backends().count(), 3);
        assert!(!writer.has_idle(later + SETTLE));
    }

    #[test]
    fn slots_that_two_services_led_to_are_written_anew_for_both() {
        let (state, now) = (desired(&[2, 4]), Instant::now());
        let mut writer = Writer::new(Fake::new(None), CAPACITY, ClusterName("west".to_owned())).unwrap();
        writer.bring_in_step(&state, Differing::All, true, now).unwrap();
        let mut maps = writer.datapath.kernel.to_maps();
        let firsts: Vec<_> = maps.services.values().map(|service| service.groups[0].first_slot).collect();
        maps.services.values_mut().for_each(|service| service.groups[0].first_slot = firsts[0]);
        let fake = Fake { kernel: Installed::from_maps(maps), is_checked: false, ..Fake::new(None) };
        let mut writer = Writer::new(fake, CAPACITY, ClusterName("west".to_owned())).unwrap();
        for later in [Duration::ZERO, LINGER, LINGER + SETTLE] {
            writer.bring_in_step(&state, Differing::default(), true, now + later).unwrap();
        }
        assert!(writer.installed().unsound().is_empty());
        assert_eq!((writer.datapath.kernel.view(), writer.installed().backends().count()), (state, 4));
        assert!(audit(&mut writer).unwrap());
    }

    #[test]
    fn one_that_is_refused_for_good_has_no_change_wait_for_programs() {
        let (capacity, now) = (Capacity { frontends: 2, ..CAPACITY }, Instant::now());
        let mut writer = Writer::new(Fake::new(None), capacity, ClusterName("west".to_owned())).unwrap();
        let mut state = desired(&[1, 2, 3]);
        writer.bring_in_step(&state, Differing::All, true, now).unwrap();
        assert_eq!(writer.refused().len(), 1);
        state.services.values_mut().for_each(|service| service.exclusive = true);
        writer.bring_in_step(&state, Differing::All, true, now).unwrap();
        assert!(writer.installed().awaits_grace() && !writer.is_unfinished(now));
        assert!(writer.installed().view().services.values().all(|service| service.exclusive));
    }

    #[test]
    fn what_a_call_had_too_little_room_for_is_gone_on_with() {
        let ports: Vec<u8> = (1..=15).collect();
        let (capacity, now) = (Capacity { services: 16, ..CAPACITY }, Instant::now());
        let mut writer = Writer::new(Fake::new(None), capacity, ClusterName("west".to_owned())).unwrap();
        let mut state = desired(&ports);
        writer.bring_in_step(&state, Differing::All, true, now).unwrap();
        assert_eq!(writer.refused().len(), 0);
        state.services.values_mut().for_each(|service| service.exclusive = true);
        writer.bring_in_step(&state, Differing::All, true, now).unwrap();
        let mut calls = 1;
        while writer.is_unfinished(now) {
            writer.bring_in_step(&state, Differing::default(), true, now).unwrap();
            calls += 1;
        }
        assert!(writer.installed().view() == state, "after {calls} calls");
        assert!(calls > 1);
    }

    #[test]
    fn verdicts_are_written_at_once_and_hold_for_what_is_installed_later() {
        let now = Instant::now();
        let mut writer = Writer::new(Fake::new(None), CAPACITY, ClusterName("west".to_owned())).unwrap();
        writer.bring_in_step(&desired(&[1]), Differing::All, true, now).unwrap();
        let before = writer.datapath.steps;
        let dead = |installed: &Installed| {
            let dead = installed.backends().filter(|(_, backend)| backend.verdict == verdict::DEAD);
            dead.map(|(_, backend)| (backend.addr[15], backend.proto)).collect::<Vec<_>>()
        };
        let key = |last: u8, proto| BackendKey {
            addr: std::net::Ipv4Addr::new(10, 0, 0, last).to_ipv6_mapped().octets(),
            port: [0, 80],
            proto,
            pad: 0,
        };
        let west = ClusterVerdict { verdict: verdict::DEAD, syn_timeout: 60, ..ClusterVerdict::default() };
        let verdicts = Verdicts {
            clusters: [(ClusterName("west".to_owned()), west)].into(),
            dead: [key(1, UDP), key(2, TCP)].into(),
        };
        writer.judge(verdicts.clone()).unwrap();
        assert_eq!(writer.datapath.steps - before, 2, "one write for the cluster, one for the backend");
        assert_eq!(dead(writer.installed()), [(1, UDP)]);
        assert_eq!(writer.installed().clusters()[&0].syn_timeout, 60);
        writer.judge(verdicts.clone()).unwrap();
        assert_eq!(writer.datapath.steps - before, 2, "nothing is written twice");

        writer.bring_in_step(&desired(&[1, 2]), Differing::All, true, now).unwrap();
        assert_eq!(dead(writer.installed()), [(1, UDP), (2, TCP)]);
        assert!(audit(&mut writer).unwrap());
        writer.judge(Verdicts { dead: BTreeSet::new(), ..verdicts }).unwrap();
        assert_eq!(dead(&writer.datapath.kernel), []);
    }
}
