//! What the loop answers.

use super::Reconciler;
use crate::{
    datapath::How,
    report::{self, Agent, Question},
    sources::Problem,
};
use anyhow::Context;
use std::collections::{BTreeMap, BTreeSet};
use tombolo_ebpf::abi::FrontendKey;

impl Reconciler {
    /// The answer, as JSON.
    pub(super) fn answer(&self, question: Question) -> anyhow::Result<String> {
        let installed = self.writer.installed();
        let answer = match question {
            Question::Status => serde_json::to_string(&self.status()?),
            Question::Services => {
                let problems = self.frontend_problems();
                serde_json::to_string(&report::services(
                    Agent::Running,
                    installed,
                    &self.writer.datapath.maps.learned()?,
                    Some(&self.kept.desired().services),
                    &problems,
                ))
            }
            Question::Backends => {
                let states = self.writer.datapath.maps.learned()?;
                serde_json::to_string(&report::backends(Agent::Running, installed, &states))
            }
        };
        answer.context("write the answer")
    }

    fn frontend_problems(&self) -> BTreeMap<FrontendKey, Vec<String>> {
        let mut problems: BTreeMap<FrontendKey, Vec<String>> = BTreeMap::new();
        for (key, service) in &self.kept.desired().services {
            let known = self.service_problems.get(&service.name).into_iter().flatten().cloned();
            let refused = self.writer.refused().get(key).map(|reason| format!("not installed: {reason}"));
            let all: Vec<_> = known.chain(refused).collect();
            if !all.is_empty() {
                problems.insert(*key, all);
            }
        }
        problems
    }

    /// What keeps the agent from being ready.
    fn faults(&self) -> Vec<String> {
        let mut faults = Vec::new();
        if !self.synced {
            faults.push("the source has not delivered its first full list yet".to_owned());
        }
        if self.writer.datapath.waits() {
            faults.push("the programs of an earlier agent still serve, until new tables are filled".to_owned());
        }
        faults.extend(self.faults.hooks.clone());
        faults.extend(self.faults.tables.clone());
        faults.extend(self.faults.pods.clone());
        faults.extend(self.faults.proof.clone());
        faults
    }

    /// What is odd besides, although traffic flows.
    fn oddities(&self) -> Vec<String> {
        let sources = self.source_problems.iter().map(Problem::to_string);
        let incomplete = (self.synced && !self.complete).then(|| {
            "some of the source could not be read since the start, so nothing is taken out of the tables until it can be".to_owned()
        });
        let given_up = incomplete.as_ref().and_then(|_| self.taking_over.oddity());
        let services = self
            .found_problems
            .iter()
            .flat_map(|(name, texts)| texts.iter().map(move |text| format!("{name}: {text}")));
        let refused: BTreeSet<_> = self.writer.refused().values().collect();
        let refused = refused.into_iter().map(|reason| format!("services refused: {reason}"));
        let pods = self.writer.refused_pods();
        let pods = (pods > 0).then(|| format!("no room for {pods} pods that ought to be left alone"));
        let held = self.judging.view().clusters.into_iter();
        let held = held.filter_map(|view| Some(format!("cluster {} does not answer, but {}", view.name, view.held?)));
        let udp = self.refusing.fault();
        let udp = udp.map(|reason| format!("connected UDP sockets of lost backends are not refused: {reason}"));
        incomplete
            .into_iter()
            .chain(given_up)
            .chain(self.strangers.clone())
            .chain(held)
            .chain(udp)
            .chain(sources)
            .chain(services)
            .chain(refused)
            .chain(pods)
            .collect()
    }

    fn status(&self) -> anyhow::Result<report::Status> {
        let (kernel, installed) = (&self.writer.datapath, self.writer.installed());
        let (faults, states, view) = (self.faults(), kernel.maps.learned()?, self.judging.view());
        let ready = faults.is_empty();
        let verified: BTreeMap<_, _> = kernel.verified.iter().cloned().collect();
        let hook = |attached: &crate::datapath::Attached| report::Hook {
            name: attached.hook.to_owned(),
            adopted: Some(attached.how == How::Adopted),
            verified_instructions: verified.get(attached.hook).copied(),
        };
        Ok(report::Status {
            agent: Agent::Running,
            ready,
            problems: faults.into_iter().chain(self.oddities()).collect(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            place: Some(report::Place {
                cluster: self.place.cluster.0.clone(),
                node: self.place.node.clone(),
                zone: self.place.zone.clone(),
            }),
            cgroup: Some(self.cgroup.display().to_string()),
            pins: self.pins.dir().display().to_string(),
            hooks: kernel.attached.iter().map(hook).collect(),
            watches: self.watches.borrow().clone(),
            frontends: report::Tally {
                desired: Some(report::count(self.kept.desired().services.keys())),
                installed: report::count(installed.frontends().keys()),
            },
            backends: report::count_backends(installed),
            exempt_pods: installed.pods().len(),
            clusters: report::clusters(installed, &states, &view.clusters),
            ejected: report::count_ejected(installed, &states),
            counters: report::counters(kernel.maps.counts()?),
            drift: Some(self.drift),
            findings: Some(view.findings),
        })
    }
}
