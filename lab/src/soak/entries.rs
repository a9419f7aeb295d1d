//! What lies in the kernel's maps because of connections, and has to be gone when they are.

use crate::clusters::{Agent, Clusters};
use anyhow::{Context, Result};
use aya::{
    Pod,
    maps::{HashMap, Map, MapData},
};
use serde::Serialize;
use serde_json::Value;
use std::{
    collections::BTreeMap,
    path::Path,
    thread,
    time::{Duration, Instant},
};
use tombolo_ebpf::abi::{AffinityKey, AffinityValue, Armed, BackendKey, FrontendKey, LAYOUT, MemberKey, map};

/// How long an agent gets to answer.
const ANSWERED_WITHIN: Duration = Duration::from_secs(60);

/// By node, and by map or `open`: entries of hashes, and connections that are taken for open.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(transparent)]
pub(super) struct Entries(BTreeMap<String, BTreeMap<String, u64>>);

impl Entries {
    /// Those of all agents.
    pub(super) fn of(clusters: &mut Clusters) -> Result<Self> {
        let of = |agent: &mut Agent| {
            let entries = count(agent).with_context(|| format!("count entries of the maps of {}", agent.node()))?;
            Ok((agent.node().to_owned(), entries))
        };
        Ok(Self(clusters.agents().map(of).collect::<Result<_>>()?))
    }

    /// What there is more of than `before`, in words. Less of it is no leak: what was draining at the beginning is gone.
    pub(super) fn left_since(&self, before: &Self) -> Vec<String> {
        let mut left = Vec::new();
        for (node, counts) in &self.0 {
            for (name, count) in counts {
                let was = before.0.get(node).and_then(|counts| counts.get(name)).copied().unwrap_or(0);
                if *count > was {
                    left.push(format!("{node}: {name} has {count} instead of {was}"));
                }
            }
        }
        left
    }
}

fn count(agent: &Agent) -> Result<BTreeMap<String, u64>> {
    let folder = agent.pins().join(format!("v{LAYOUT}/maps"));
    let mut counts = BTreeMap::from([
        (map::FRONTENDS.to_owned(), entries::<FrontendKey, u32>(&folder.join(map::FRONTENDS), Map::HashMap)?),
        (map::BACKEND_OF.to_owned(), entries::<BackendKey, u32>(&folder.join(map::BACKEND_OF), Map::HashMap)?),
        (map::MEMBERS.to_owned(), entries::<MemberKey, u32>(&folder.join(map::MEMBERS), Map::HashMap)?),
        (map::ARMED.to_owned(), entries::<u64, Armed>(&folder.join(map::ARMED), Map::LruHashMap)?),
        (
            map::AFFINITY.to_owned(),
            entries::<AffinityKey, AffinityValue>(&folder.join(map::AFFINITY), Map::LruHashMap)?,
        ),
    ]);
    let backends = backends(agent)?;
    let backends = backends["backends"].as_array().context("a list of backends")?;
    counts.insert("open".to_owned(), backends.iter().filter_map(|row| row["open"].as_u64()).sum());
    counts.insert("backends".to_owned(), u64::try_from(backends.len()).unwrap_or(u64::MAX));
    let draining = |row: &&Value| row["verdict"] != "ok";
    let draining = backends.iter().filter(draining).count();
    counts.insert("backends out".to_owned(), u64::try_from(draining).unwrap_or(u64::MAX));
    Ok(counts)
}

/// What the agent says of its backends: at the latest when the machine has the time for it.
fn backends(agent: &Agent) -> Result<Value> {
    let begun = Instant::now();
    loop {
        match agent.backends() {
            Ok(backends) => return Ok(backends),
            Err(error) if begun.elapsed() >= ANSWERED_WITHIN => return Err(error),
            Err(_) => thread::sleep(Duration::from_millis(100)),
        }
    }
}

/// How many entries the hash that is pinned at `path` has.
fn entries<K: Pod, V: Pod>(path: &Path, kind: fn(MapData) -> Map) -> Result<u64> {
    let map = MapData::from_pin(path).with_context(|| format!("open {}", path.display()))?;
    let hash: HashMap<MapData, K, V> =
        kind(map).try_into().with_context(|| format!("{} does not have the layout of abi", path.display()))?;
    let mut count = 0;
    for key in hash.keys() {
        key.with_context(|| format!("read {}", path.display()))?;
        count += 1;
    }
    Ok(count)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_left_is_named_with_its_node() {
        let entries = |armed| {
            let counts = BTreeMap::from([("ARMED".to_owned(), armed), ("open".to_owned(), 0)]);
            Entries(BTreeMap::from([("west-1".to_owned(), counts)]))
        };
        assert!(entries(0).left_since(&entries(0)).is_empty() && entries(0).left_since(&entries(3)).is_empty());
        assert_eq!(entries(3).left_since(&entries(0)), ["west-1: ARMED has 3 instead of 0"]);
    }
}
