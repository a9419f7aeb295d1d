//! How links stand: what of all that is known a link's status and the metrics say.

use super::Controller;
use crate::{
    mirror::{
        links::status::{Denied, Facts},
        peer::PeerTask,
        source::{LinkName, Told},
        validate::Refusal,
        watch,
        world::ImportKey,
    },
    model::ClusterName,
};
use std::collections::{BTreeMap, BTreeSet};

impl Controller {
    /// How each link stands, and what its object's status says.
    pub(super) fn facts(&self) -> Vec<(Facts, Told)> {
        let mut counts: BTreeMap<&LinkName, usize> = BTreeMap::new();
        for key in self.world.imports() {
            let links: BTreeSet<_> =
                self.world.exporters(key).filter_map(|(exporter, _)| watch::link(&exporter.0)).collect();
            for link in links {
                *counts.entry(link).or_default() += 1;
            }
        }
        let mut denied: BTreeMap<&LinkName, Denied> = BTreeMap::new();
        for (key, refused) in &self.invalid {
            for link in self.links_of(key) {
                let known = denied.entry(link).or_default();
                known.imports += 1;
                if let Some(refused) = refused.first().filter(|_| known.imports == 1) {
                    known.reason.clone_from(&refused.reason);
                }
            }
        }
        let mut endpoints: BTreeMap<&ClusterName, usize> = BTreeMap::new();
        for placed in self.world.own.placed.values().flat_map(BTreeMap::values) {
            *endpoints.entry(&placed.content.cluster).or_default() += placed.endpoints.len();
        }
        let mut refused: BTreeMap<&LinkName, BTreeMap<Refusal, u32>> = BTreeMap::new();
        for ((link, reason), count) in self.refused.values().flatten() {
            let known = refused.entry(link).or_default().entry(*reason).or_default();
            *known = known.saturating_add(*count);
        }
        let facts = |(name, task): (&LinkName, &PeerTask)| {
            let link = &self.world.peers.get(name)?.link;
            let wanted = task.wanted.as_ref();
            let credentials = wanted.and_then(|wanted| wanted.credentials.as_ref().ok());
            let unusable = wanted.and_then(|wanted| wanted.credentials.as_ref().err()).or(task.refused.as_ref());
            let failures = task.failure.iter().chain(task.problems.values()).cloned();
            let held =
                task.is_held.then(|| "what it says counts for nothing while its link isn't understood".to_owned());
            let failures = failures.chain(task.overflow.map(str::to_owned)).chain(held).collect();
            let facts = Facts {
                name: name.clone(),
                object: wanted.map(|it| (it.definer.clone(), it.version.0.clone(), it.version.1)),
                cluster: link.cluster.clone(),
                problem: wanted.and_then(|wanted| wanted.problem.clone()),
                is_held: task.is_held,
                unusable: unusable.cloned(),
                expires: credentials.and_then(|credentials| credentials.validity()),
                is_unverified: credentials.is_some_and(|credentials| credentials.is_unverified()),
                is_connected: task.is_connected(),
                failures,
                standing: task.shown,
                heard: task.heard,
                round_trip: task.round_trip,
                exported: self.world.export_count(name),
                imported: counts.get(name).copied().unwrap_or(0),
                endpoints: endpoints.get(&link.cluster).copied().unwrap_or(0),
                refused: refused.get(name).cloned().unwrap_or_default(),
                denied: denied.get(name).cloned().unwrap_or_default(),
            };
            Some((facts, wanted.map(|wanted| wanted.told.clone()).unwrap_or_default()))
        };
        self.peers.iter().filter_map(facts).collect()
    }

    /// The links that have a part in an import, or had one when it was written last.
    fn links_of<'a>(&'a self, key: &'a ImportKey) -> BTreeSet<&'a LinkName> {
        let exporters = self.world.exporters(key).filter_map(|(exporter, _)| watch::link(&exporter.0));
        let placed = self.world.own.placed.get(key).into_iter().flat_map(BTreeMap::values);
        let clusters: BTreeSet<&ClusterName> = placed.map(|placed| &placed.content.cluster).collect();
        let peers = self.world.peers.iter().filter(|(_, peer)| clusters.contains(&peer.link.cluster));
        exporters.chain(peers.map(|(link, _)| link)).collect()
    }
}
