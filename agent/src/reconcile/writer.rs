//! Brings the kernel's tables in step with what is desired, whatever happens on the way.

use crate::{
    datapath::Datapath,
    model::ClusterName,
    plan::plan,
    report::socket_address,
    tables::{Capacity, Desired, Installed, Step},
};
use anyhow::Context;
use std::collections::BTreeMap;
use tombolo_ebpf::abi::FrontendKey;
use tracing::{info, warn};

/// Plans that follow each other at most. Each finds room that the one before has made; what is still refused then is
/// tried with the next change.
const PLANS: usize = 8;

/// The one writer of the tables, and what it knows of them.
pub(super) struct Writer<D> {
    /// What carries out the steps.
    pub(super) datapath: D,
    capacity: Capacity,
    own: ClusterName,
    installed: Installed,
    /// A step failed or the tables are not what they should be: they have to be read before anything is planned.
    unknown: bool,
    refused: BTreeMap<FrontendKey, String>,
    refused_pods: usize,
}

impl<D: Datapath> Writer<D> {
    /// Starts from what the tables hold.
    pub(super) fn new(datapath: D, capacity: Capacity, own: ClusterName) -> anyhow::Result<Self> {
        let mut writer = Self {
            datapath,
            capacity,
            own,
            installed: Installed::default(),
            unknown: true,
            refused: BTreeMap::new(),
            refused_pods: 0,
        };
        writer.read_back()?;
        Ok(writer)
    }

    /// What the tables hold, as far as is known.
    pub(super) fn installed(&self) -> &Installed {
        &self.installed
    }

    /// Frontends for which there was no room, with the reason. What was installed for them stays.
    pub(super) fn refused(&self) -> &BTreeMap<FrontendKey, String> {
        &self.refused
    }

    /// How many pods ought to be left alone and found no room.
    pub(super) fn refused_pods(&self) -> usize {
        self.refused_pods
    }

    /// Writes what is missing; what isn't desired goes if `prune` says so.
    ///
    /// # Errors
    ///
    /// A write failed. Every look-up still finds the old or the new version of its service, and the next call goes on from
    /// what there is.
    pub(super) fn bring_in_step(&mut self, desired: &Desired, prune: bool) -> anyhow::Result<()> {
        if self.unknown {
            self.read_back().context("read the tables back")?;
        }
        let mut done = 0;
        let mut again = true;
        for _ in 0..PLANS {
            if !again {
                break;
            }
            let plan = plan(desired, &self.installed, &self.capacity, &self.own, prune);
            self.carry_out(&plan.steps)?;
            done += plan.steps.len();
            again = plan.again;
            self.note_refused(plan.refused.into_iter().collect(), plan.refused_pods.len());
        }
        if done > 0 {
            info!(steps = done, frontends = self.installed.frontends().len(), "tables changed");
        }
        Ok(())
    }

    /// Compares the tables with what they should hold; whether they do. If not, the next call of
    /// [`bring_in_step`](Self::bring_in_step) mends them.
    pub(super) fn audit(&mut self) -> anyhow::Result<bool> {
        let mut read = self.datapath.read().context("read the tables to audit them")?;
        let known = self.installed.to_maps();
        // Entries that no frontend leads to may hold anything.
        read.services.retain(|index, _| known.services.contains_key(index));
        let agree = read == known;
        self.unknown |= !agree;
        Ok(agree)
    }

    fn carry_out(&mut self, steps: &[Step]) -> anyhow::Result<()> {
        for step in steps {
            if let Err(error) = self.datapath.apply(step) {
                self.unknown = true;
                return Err(error).with_context(|| format!("write {step}"));
            }
            self.installed.apply(step);
        }
        Ok(())
    }

    /// Finds out what the tables hold. Entries that nothing leads to are free from then on, hence the wait for programs
    /// that could still be reading them.
    fn read_back(&mut self) -> anyhow::Result<()> {
        self.datapath.apply(&Step::Grace)?;
        self.installed = Installed::from_maps(self.datapath.read()?);
        self.unknown = false;
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
        tables::{DesiredGroup, DesiredService, Maps, Member},
    };
    use anyhow::{bail, ensure};
    use tombolo_ebpf::abi::{TCP, UDP};

    const CAPACITY: Capacity =
        Capacity { frontends: 64, services: 128, slots: 512, backends: 128, members: 512, pods: 8 };

    /// A kernel that fails at one step, and that finds out whether a step is one that it must not be told.
    struct Fake {
        kernel: Installed,
        steps: usize,
        fails_at: Option<usize>,
    }

    impl Fake {
        fn new(fails_at: Option<usize>) -> Self {
            Self { kernel: Installed::default(), steps: 0, fails_at }
        }
    }

    impl Datapath for Fake {
        fn apply(&mut self, step: &Step) -> anyhow::Result<()> {
            self.steps += 1;
            if self.fails_at == Some(self.steps) {
                bail!("out of luck");
            }
            let allowed = self.kernel.check(step, &CAPACITY);
            ensure!(allowed.is_ok(), "unsafe: {allowed:?}");
            self.kernel.apply(step);
            Ok(())
        }

        fn read(&self) -> anyhow::Result<Maps> {
            Ok(self.kernel.to_maps())
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

    #[test]
    fn a_write_that_fails_at_any_step_is_made_up_for_by_the_next_pass() {
        let states = [desired(&[1, 2, 3, 4]), desired(&[2, 3, 5]), desired(&[2, 6, 7])];
        let own = ClusterName("west".to_owned());
        let run = |fails_at| {
            let mut writer = Writer::new(Fake::new(fails_at), CAPACITY, own.clone())?;
            let mut failures = 0;
            for state in &states {
                // A change may come at once, or after the retry: both go on from half a plan.
                if let Err(error) = writer.bring_in_step(state, true) {
                    ensure!(format!("{error:#}").contains("out of luck"), "{error:#}");
                    failures += 1;
                    if fails_at.is_some_and(|step| step % 2 == 0) {
                        writer.bring_in_step(state, true)?;
                    }
                }
            }
            writer.bring_in_step(&states[2], true)?;
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
            assert!(writer.audit().unwrap(), "step {step}");
        }
    }

    #[test]
    fn a_table_that_somebody_else_changed_is_found_and_mended() {
        let state = desired(&[1, 2]);
        let mut writer = Writer::new(Fake::new(None), CAPACITY, ClusterName("west".to_owned())).unwrap();
        writer.bring_in_step(&state, true).unwrap();
        assert!(writer.audit().unwrap());
        let key = *state.services.keys().next().unwrap();
        writer.datapath.kernel.apply(&Step::DropFrontend(key));
        assert!(!writer.audit().unwrap());
        writer.bring_in_step(&state, true).unwrap();
        assert!(writer.audit().unwrap());
        assert!(writer.datapath.kernel.service(&key).is_some());
    }

    #[test]
    fn what_finds_no_room_is_refused_until_there_is_some() {
        let capacity = Capacity { frontends: 2, ..CAPACITY };
        let mut writer = Writer::new(Fake::new(None), capacity, ClusterName("west".to_owned())).unwrap();
        writer.bring_in_step(&desired(&[1, 2, 3]), true).unwrap();
        assert_eq!(writer.refused().len(), 1);
        assert_eq!(writer.installed().frontends().len(), 2);
        writer.bring_in_step(&desired(&[2, 3]), true).unwrap();
        assert_eq!(writer.refused().len(), 0);
        assert_eq!(writer.installed().view(), desired(&[2, 3]));
    }
}
