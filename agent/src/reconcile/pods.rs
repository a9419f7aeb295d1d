//! The cgroups of pods that are left alone, which appear some time after the objects, or before.

use crate::{datapath::cgroup, model::Pod};
use anyhow::{Context, ensure};
use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
    time::{Duration, Instant},
};
use tombolo_ebpf::abi::exempt;
use tracing::debug;

/// How long a pod without a cgroup is looked for often: it is being started. Later it may be one that has ended.
const STARTING: Duration = Duration::from_secs(60);

/// Looks for cgroups.
#[derive(Debug)]
pub(super) struct PodCgroups {
    /// How many cgroups lie above what is mounted as the root; none if that isn't known.
    mount_level: Option<u32>,
    /// Where they may be.
    folders: Vec<PathBuf>,
    /// Since when pods have been without a cgroup, by UID.
    missing: BTreeMap<String, Instant>,
}

/// What is known of the cgroups of pods that are left alone.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Exempt {
    /// Cgroup id → a value of [`exempt`].
    pub(super) pods: BTreeMap<u64, u32>,
    /// [`tombolo_ebpf::abi::Config::pod_level`].
    pub(super) level: u32,
}

impl PodCgroups {
    /// Has found nothing yet.
    pub(super) fn new(mount_level: Option<u32>) -> Self {
        Self { mount_level, folders: Vec::new(), missing: BTreeMap::new() }
    }

    /// Looks for those of `pods` below `cgroup`; `everywhere` there, or only where the kubelet was found to keep them.
    ///
    /// If `pods` are `all` there are, a cgroup of any other pod is left alone until the pod is known: it may have a mesh
    /// proxy.
    ///
    /// # Errors
    ///
    /// What can't be looked at, or lies too deep or nobody knows how deep for the programs to find it.
    pub(super) fn look(
        &mut self,
        pods: &BTreeMap<String, Pod>,
        all: bool,
        cgroup: &Path,
        everywhere: bool,
        now: Instant,
    ) -> anyhow::Result<Exempt> {
        let reasons: BTreeMap<&str, u32> =
            pods.iter().filter_map(|(uid, pod)| Some((uid.as_str(), exemption(pod)?))).collect();
        self.missing.retain(|uid, _| reasons.contains_key(uid.as_str()));
        if reasons.is_empty() && !all {
            return Ok(Exempt::default());
        }
        if everywhere || self.folders.is_empty() {
            self.folders = cgroup::pods_folders(cgroup)?;
        }
        let found = cgroup::pods(&self.folders)?;
        for &uid in reasons.keys().filter(|uid| !found.contains_key(**uid)) {
            if !self.missing.contains_key(uid) {
                debug!(pod = %pods[uid].name, uid, "pod has no cgroup yet");
                self.missing.insert(uid.to_owned(), now);
            }
        }
        self.missing.retain(|uid, _| !found.contains_key(uid.as_str()));
        let mut exempt = Exempt::default();
        let mut levels = BTreeSet::new();
        for (uid, dir) in found {
            let unknown = (all && is_uid(&uid) && !pods.contains_key(&uid)).then_some(exempt::UNKNOWN);
            let Some(reason) = reasons.get(uid.as_str()).copied().or(unknown) else { continue };
            // Gone since it was found: then so are its sockets.
            let Ok(id) = cgroup::id(&dir) else { continue };
            exempt.pods.insert(id, reason);
            let mount_level = self.mount_level.context("how deep pods' cgroups lie can't be told from here")?;
            levels.insert(mount_level + cgroup::level_below_mount(&dir)?);
        }
        exempt.level = levels.first().copied().unwrap_or(0);
        ensure!(
            levels.iter().all(|level| *level <= exempt.level + 1),
            "pods' cgroups lie {levels:?} cgroups deep, and programs look at two neighbouring depths only"
        );
        Ok(exempt)
    }

    /// Whether a pod is being waited for that was heard of only lately.
    pub(super) fn is_waiting(&self, now: Instant) -> bool {
        self.missing.values().any(|since| now.duration_since(*since) < STARTING)
    }
}

/// Whether the kubelet may have named a pod's cgroup by this: others keep cgroups there too whose names begin alike.
fn is_uid(text: &str) -> bool {
    text.len() >= 32 && text.bytes().all(|byte| byte.is_ascii_hexdigit() || byte == b'-')
}

/// Why a pod is left alone, if it is: a value of [`exempt`].
fn exemption(pod: &Pod) -> Option<u32> {
    if pod.meshed {
        Some(exempt::MESHED)
    } else if pod.opted_out {
        Some(exempt::OPTED_OUT)
    } else {
        None
    }
}
