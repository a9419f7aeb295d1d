//! What wears the clusters: loss between them, or CPUs that are never idle.

use crate::{
    cgroup::Cgroup,
    clusters::{Cluster, Clusters},
    netns::Netns,
    nft,
    process::Process,
};
use anyhow::{Context, Result, ensure};
use serde::Serialize;
use std::{
    fmt::{self, Display},
    fs,
    process::Stdio,
    thread,
};

/// Of 1,000 packets between clusters so many are lost, each way.
const LOST: u32 = 10;
/// Busy processes for each CPU: whoever wants to run has to wait for so many time slices.
const BUSY: usize = 4;
/// The least part of the packets that has to have been lost, and the most of the CPUs' time that may have been idle, in
/// 1,000: else there was no strain, and nothing was shown.
const LEAST_LOST: f64 = 5.0;
const MOST_IDLE: f64 = 50.0;
/// Fewer packets tell nothing about the part that was lost.
const TELLING: u64 = 2000;
/// The filter on the fabric.
const TABLE: &str = "bridge soak";

/// One of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Strain {
    /// One packet in a hundred between clusters is lost.
    Loss,
    /// More processes want to run than there are CPUs, all the time.
    Saturated,
}

/// One that is in force. Dropped, busy processes are ended.
pub(super) enum Strained {
    Loss,
    Busy { cpus: usize, before: Times, processes: Vec<Process>, _cgroup: Cgroup },
}

/// How hard it was.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(untagged)]
pub(super) enum Measured {
    /// Packets between clusters, and how many of them were lost.
    Loss { packets: u64, lost: u64 },
    /// The CPUs of this machine, the processes that kept them busy, and how much of their time was idle, in 1,000.
    Busy { cpus: usize, processes: usize, idle_permille: f64 },
}

/// What the CPUs have done since the machine started, in ticks.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Times {
    idle: f64,
    all: f64,
}

impl Display for Strain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Loss => "loss",
            Self::Saturated => "saturated",
        })
    }
}

impl Strain {
    /// Brings it into force.
    pub(super) fn begin(self, clusters: &Clusters) -> Result<Strained> {
        match self {
            Self::Loss => {
                nft::apply(clusters.fabric(), &rules(clusters))?;
                Ok(Strained::Loss)
            }
            Self::Saturated => {
                let cpus = thread::available_parallelism().context("count CPUs")?.get();
                let cgroup = Cgroup::new("busy")?;
                let busy = |_| {
                    let mut command = cgroup.command("sh");
                    command.args(["-c", "while :; do :; done"]).stdin(Stdio::null());
                    Ok(Process::start(&Netns::current()?, command)?.called("a busy process"))
                };
                let processes = (0..BUSY * cpus).map(busy).collect::<Result<_>>()?;
                Ok(Strained::Busy { cpus, before: Times::now()?, processes, _cgroup: cgroup })
            }
        }
    }
}

impl Strained {
    /// Ends it, and says how hard it was.
    pub(super) fn end(self, clusters: &Clusters) -> Result<Measured> {
        match self {
            Self::Loss => {
                let counters = nft::counters(clusters.fabric(), TABLE)?;
                nft::remove_table(clusters.fabric(), TABLE)?;
                let counter = |name: &str| counters.get(name).copied().with_context(|| format!("no counter {name}"));
                Ok(Measured::Loss { packets: counter("crossed")?, lost: counter("lost")? })
            }
            Self::Busy { cpus, before, mut processes, _cgroup } => {
                let idle_permille = Times::now()?.idle_permille_since(before);
                for process in &mut processes {
                    ensure!(process.ended()?.is_none(), "a busy process ended by itself");
                    process.kill()?;
                }
                Ok(Measured::Busy { cpus, processes: processes.len(), idle_permille })
            }
        }
    }
}

impl Measured {
    /// Why it was no strain, if it wasn't.
    pub(super) fn missing(&self) -> Option<String> {
        match *self {
            Self::Loss { packets, lost } if packets >= TELLING && permille(lost, packets) < LEAST_LOST => {
                Some(format!("only {lost} of {packets} packets were lost"))
            }
            Self::Loss { packets: 0, .. } => Some("no packets went between clusters".to_owned()),
            Self::Busy { idle_permille, .. } if idle_permille > MOST_IDLE => {
                Some(format!("the CPUs were idle {:.1} % of the time", idle_permille / 10.0))
            }
            _ => None,
        }
    }

    pub(super) fn in_words(&self) -> String {
        match self {
            Self::Loss { packets, lost } => {
                let part = permille(*lost, *packets) / 10.0;
                format!("{lost} of {packets} packets between clusters were lost ({part:.2} %)")
            }
            Self::Busy { cpus, processes, idle_permille } => {
                format!("{processes} busy processes on {cpus} CPUs, idle {:.1} %", idle_permille / 10.0)
            }
        }
    }
}

impl Times {
    fn now() -> Result<Self> {
        Self::read(&fs::read_to_string("/proc/stat").context("read /proc/stat")?)
    }

    fn read(stat: &str) -> Result<Self> {
        let line = stat.lines().next().context("/proc/stat is empty")?;
        let times = line.split_whitespace().skip(1).map(str::parse);
        let times = times.collect::<Result<Vec<f64>, _>>().context("read the first line of /proc/stat")?;
        // user nice system idle iowait irq softirq steal; guests' time is part of user and nice.
        let all = times.iter().take(8).sum();
        Ok(Self { idle: times.iter().skip(3).take(2).sum(), all })
    }

    fn idle_permille_since(self, before: Self) -> f64 {
        let all = self.all - before.all;
        if all > 0.0 { (self.idle - before.idle) / all * 1000.0 } else { 0.0 }
    }
}

/// What is lost is lost between clusters only, and whatever it is but neighbour discovery, which has no cluster.
fn rules(clusters: &Clusters) -> String {
    let within = |cluster: &Cluster| {
        let nodes = cluster.nodes().iter().map(|node| node.name().to_owned());
        let links: Vec<String> =
            nodes.chain([format!("{}-gateway", cluster.name())]).map(|link| format!("\"{link}\"")).collect();
        let links = links.join(", ");
        format!("iifname {{ {links} }} oifname {{ {links} }} accept\n")
    };
    let within: String = clusters.iter().map(within).collect();
    format!(
        "table {TABLE} {{
            counter crossed {{ }}
            counter lost {{ }}
            chain forward {{
                type filter hook forward priority 0
                icmpv6 type {{ nd-neighbor-solicit, nd-neighbor-advert }} accept
                meta protocol != {{ ip, ip6 }} accept
                {within}
                counter name crossed
                numgen random mod 1000 < {LOST} counter name lost drop
            }}
        }}"
    )
}

/// Counts of packets are far below 2⁵³.
#[expect(clippy::cast_precision_loss, reason = "see above")]
fn permille(part: u64, of: u64) -> f64 {
    part as f64 / of.max(1) as f64 * 1000.0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn idle_is_what_the_cpus_did_not_use_waiting_for_disks_included() {
        let before = Times::read("cpu  100 0 100 700 100 0 0 0 0 0\ncpu0 1\n").unwrap();
        let after = Times::read("cpu  180 0 110 705 105 0 0 0 0 0\n").unwrap();
        assert!((after.idle_permille_since(before) - 100.0).abs() < 1e-9);
        assert!(Times::read("").is_err());
    }

    #[test]
    fn a_strain_that_was_none_is_told() {
        let loss = |packets, lost| Measured::Loss { packets, lost }.missing();
        assert_eq!(loss(100_000, 1000), None);
        assert!(loss(100_000, 0).is_some() && loss(0, 0).is_some());
        assert_eq!(loss(100, 0), None, "by chance");
        let busy = |idle_permille| Measured::Busy { cpus: 2, processes: 8, idle_permille }.missing();
        assert_eq!(busy(0.0), None);
        assert!(busy(300.0).is_some());
    }
}
