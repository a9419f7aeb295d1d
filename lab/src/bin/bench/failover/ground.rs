//! The clusters, the callers in them, and how one outage goes.

use super::{
    Args,
    figures::{Marked, Run, Seen, Told},
};
use anyhow::{Context, Result, ensure};
use lab::{
    addresses::Network,
    attempts::{Figures, ms, ms_after},
    caller::{Attempt, End, Kind},
    clusters::{Caller, Calls, Clusters, Impairment, KUBE_PROXY_CLIENT, Programs},
    manifests::SERVICE_PORT,
    report::now,
};
use serde_json::Value;
use std::{
    env,
    net::SocketAddr,
    path::PathBuf,
    thread,
    time::{Duration, Instant},
};

/// The cluster that the callers are in.
const CALLERS: &str = "west";
/// The clusters that die, in turns.
pub(super) const VICTIMS: [&str; 2] = ["east", "north"];
/// What is called.
const SERVICE: &str = "frontend-federated";
/// Pods in west, east and north.
const PODS: [(&str, usize); 3] = [("west", 2), ("east", 4), ("north", 4)];
/// How long agents get until they are ready.
const READY_WITHIN: Duration = Duration::from_secs(60);
/// How many answers a share is taken from.
const SAMPLE: u32 = 200;
/// What part of its share a cluster has to have to be fully back.
const FULL: f64 = 0.75;
/// Connects a second that show the shares between losses, where the full rate is only for the time about a loss.
const TRICKLE: u32 = 20;
/// How long before the loss flows are opened, and the full rate begins.
const FLOWS_BEFORE: Duration = Duration::from_millis(1500);
const FULL_RATE_BEFORE: Duration = Duration::from_millis(500);
/// How long after the loss it ends.
const FULL_RATE_AFTER: Duration = Duration::from_secs(3);
/// Connections of each kind of flow, and messages a second on all of those that send.
const FLOWS: (u32, u32) = (10, 20);
/// What an idle flow is to survive.
const IDLE_SURVIVES: Duration = Duration::from_secs(9);
/// How often it is looked at.
const LOOK: Duration = Duration::from_millis(50);

/// The clusters and the callers in them.
pub(super) struct Ground {
    clusters: Clusters,
    tombolo: Callers,
    kube_proxy: Option<Callers>,
    lean: bool,
}

/// Those of one way.
struct Callers {
    pod: &'static str,
    /// Connects all the time, at the full rate unless that is only for losses.
    connects: Caller,
    /// Those of one outage.
    extra: Option<Caller>,
    sending: Option<Caller>,
    waiting: Option<Caller>,
    idle: Option<Caller>,
}

impl Ground {
    pub(super) fn build(args: &Args) -> Result<Self> {
        let (lab, agent) = programs()?;
        let everywhere = (!args.lean).then(|| agent.clone());
        let mut clusters = Clusters::build(Programs { lab, agent: everywhere, agent_flags: Vec::new() })?;
        if args.lean {
            clusters.start_client_agent(CALLERS, agent)?;
        }
        if let Some(rtt) = args.rtt_ms {
            for cluster in VICTIMS {
                clusters.impair(cluster, Impairment { rtt: Duration::from_millis(rtt), lost_percent: 0 })?;
            }
        }
        clusters.start_pods(&PODS.map(|(cluster, count)| (cluster, "frontend", Network::Flat, count)))?;
        clusters.publish()?;
        for agent in clusters.agents() {
            agent.wait_until_ready(READY_WITHIN)?;
        }
        let calls = calls(&clusters, if args.lean { TRICKLE } else { args.rate }, args.timeout_ms);
        let callers = |clusters: &Clusters, pod| Callers::start(clusters, pod, &calls);
        let tombolo = callers(&clusters, "client")?;
        let kube_proxy = if args.lean {
            None
        } else {
            clusters.start_kube_proxy_client(CALLERS, SERVICE)?;
            Some(callers(&clusters, KUBE_PROXY_CLIENT)?)
        };
        Ok(Self { clusters, tombolo, kube_proxy, lean: args.lean })
    }

    pub(super) fn end(mut self) -> Result<()> {
        for callers in self.callers() {
            callers.connects.stop()?;
        }
        self.clusters.agents().try_for_each(|agent| agent.unload())
    }

    fn callers(&mut self) -> impl Iterator<Item = &mut Callers> {
        [Some(&mut self.tombolo), self.kube_proxy.as_mut()].into_iter().flatten()
    }

    /// One outage, from when all is well until the last request has ended that it may have hit.
    pub(super) fn lose(&mut self, victim: &'static str, outage: Duration, args: &Args) -> Result<Run> {
        let began = Instant::now();
        for cluster in VICTIMS {
            let well = self.full(cluster, now()?, args)?;
            well.with_context(|| format!("{cluster} has not its share after {} s", began.elapsed().as_secs()))?;
        }
        self.open_flows(outage, args)?;
        let used_again = now()? + idle_pause(outage);
        thread::sleep(FLOWS_BEFORE - FULL_RATE_BEFORE);
        self.begin_full_rate(args)?;
        thread::sleep(FULL_RATE_BEFORE);

        let lost = now()?;
        self.clusters.black_out(victim)?;
        sleep_until(lost + FULL_RATE_AFTER.min(outage))?;
        self.end_full_rate(args)?;
        sleep_until(lost + outage)?;
        let marked = self.marked(victim, lost)?;
        self.clusters.light_up(victim)?;
        let back = now()?;

        let full = self.full(victim, back, args)?;
        // The retry of a request that began just before, a flow's message, the idle flows' second request.
        let last = Duration::from_millis(2 * args.timeout_ms + 500).max(outage);
        sleep_until(used_again.max(back + last))?;
        let ours = self.tombolo.take()?;
        let theirs = self.kube_proxy.as_mut().map(Callers::take).transpose()?;
        let of_victim = |each: &&Attempt| matches!(&each.end, End::Answered(cluster) if cluster == victim);
        let ended = ours.connects.iter().filter(of_victim).map(Attempt::ended);
        let first = ended.filter(|&ended| ended > back).min();
        Ok(Run {
            victim,
            outage_ms: u64::try_from(outage.as_millis()).context("an outage of so many milliseconds")?,
            tombolo: Seen::of(&ours, lost),
            kube_proxy: theirs.map(|theirs| Seen::of(&theirs, lost)),
            marked,
            first_answer_ms: first.map(|first| ms_after(back, first)),
            full_share_ms: full.map(|full| ms(full - back)),
        })
    }

    /// Opens the flows that are to be hit: those of the last outage have moved to clusters that stayed.
    fn open_flows(&mut self, outage: Duration, args: &Args) -> Result<()> {
        let (connections, rate) = FLOWS;
        let calls = calls(&self.clusters, rate, args.timeout_ms);
        // A flow that isn't ended by anybody else is to be seen waiting until the cluster is back.
        let sending = Calls { kind: Kind::Stream, connections, timeout: outage, ..calls };
        let waiting = Calls { kind: Kind::WaitingStream, ..sending.clone() };
        let pause = u32::try_from(idle_pause(outage).as_secs()).context("an outage of so many seconds")?;
        // One a second: each connection every `pause`.
        let idle = Calls { kind: Kind::Idle, connections: pause, rate: 1, ..sending.clone() };
        let Self { clusters, tombolo, kube_proxy, .. } = self;
        for callers in [Some(tombolo), kube_proxy.as_mut()].into_iter().flatten() {
            callers.sending = Some(call(clusters, callers.pod, &sending)?);
            callers.waiting = Some(call(clusters, callers.pod, &waiting)?);
            if outage <= IDLE_SURVIVES {
                callers.idle = Some(call(clusters, callers.pod, &idle)?);
            }
        }
        Ok(())
    }

    fn begin_full_rate(&mut self, args: &Args) -> Result<()> {
        let Self { clusters, tombolo, kube_proxy, lean } = self;
        let calls = calls(clusters, args.rate, args.timeout_ms);
        for callers in [Some(tombolo), kube_proxy.as_mut()].into_iter().flatten() {
            callers.connects.take();
            if *lean {
                callers.extra = Some(call(clusters, callers.pod, &calls)?);
            }
        }
        Ok(())
    }

    fn end_full_rate(&mut self, args: &Args) -> Result<()> {
        // A request and its retry.
        let within = Duration::from_millis(2 * args.timeout_ms + 500);
        self.callers().filter_map(|callers| callers.extra.as_mut()).try_for_each(|extra| extra.finish(within))
    }

    /// When the agent beside the callers changed its mind about `victim`, if it did after `lost`.
    fn marked(&mut self, victim: &str, lost: Duration) -> Result<Option<Marked>> {
        let status = self.clusters.cluster_mut(CALLERS).client_agent()?.status()?;
        Ok(marked(&status["clusters"][victim], lost, now()?))
    }

    /// Waits until `cluster` has its share of the answers through Tombolo; when the stretch began, `from` or later, in
    /// which it had. None if it takes too long.
    fn full(&mut self, cluster: &str, from: Duration, args: &Args) -> Result<Option<Duration>> {
        let pods = |name: &str| PODS.iter().find(|(each, _)| *each == name).map_or(0, |(_, count)| *count as u64);
        let share = part(pods(cluster), PODS.iter().map(|(_, count)| *count as u64).sum());
        let (stretch, look) = if self.lean {
            (Duration::from_secs(1) * SAMPLE / TRICKLE, 10 * LOOK)
        } else {
            (Duration::from_secs(1) * SAMPLE.max(args.rate) / args.rate, LOOK)
        };
        let deadline = Instant::now() + Duration::from_secs(args.back_within_s);
        while Instant::now() < deadline {
            self.callers().try_for_each(|callers| callers.connects.check())?;
            let now = now()?;
            let latest = self.tombolo.connects.attempts(from.max(now.saturating_sub(stretch)), now);
            let latest = Figures::of(&latest, now);
            let (its, all) = (latest.by_cluster.get(cluster).copied().unwrap_or(0), latest.by_cluster.values().sum());
            if now >= from + stretch && part(its, all) >= share * FULL {
                return Ok(Some(now - stretch));
            }
            thread::sleep(look);
        }
        Ok(None)
    }
}

impl Callers {
    fn start(clusters: &Clusters, pod: &'static str, calls: &Calls) -> Result<Self> {
        let connects = call(clusters, pod, calls)?;
        Ok(Self { pod, connects, extra: None, sending: None, waiting: None, idle: None })
    }

    /// Ends what was started for an outage, and what all of them told.
    fn take(&mut self) -> Result<Told> {
        let told = |caller: &mut Option<Caller>| -> Result<Option<Vec<Attempt>>> {
            let Some(mut caller) = caller.take() else { return Ok(None) };
            caller.stop()?;
            Ok(Some(caller.take()))
        };
        let mut connects = self.connects.take();
        connects.extend(told(&mut self.extra)?.unwrap_or_default());
        Ok(Told {
            connects,
            sending: told(&mut self.sending)?.unwrap_or_default(),
            waiting: told(&mut self.waiting)?.unwrap_or_default(),
            idle: told(&mut self.idle)?,
        })
    }
}

/// The programs that this one was built with: `lab` and the agent.
pub(crate) fn programs() -> Result<(PathBuf, PathBuf)> {
    let beside = env::current_exe().context("find this program")?;
    let (lab, agent) = (beside.with_file_name("lab"), beside.with_file_name("tombolo"));
    for program in [&lab, &agent] {
        ensure!(program.is_file(), "there is no {}: cargo xtask bench builds it", program.display());
    }
    Ok((lab, agent))
}

fn calls(clusters: &Clusters, rate: u32, timeout_ms: u64) -> Calls {
    let addresses = clusters.service_addresses(CALLERS, SERVICE).both();
    Calls {
        targets: addresses.map(|address| SocketAddr::new(address, SERVICE_PORT)).to_vec(),
        kind: Kind::NewConnections,
        rate,
        connections: 1,
        timeout: Duration::from_millis(timeout_ms),
    }
}

fn call(clusters: &Clusters, pod: &str, calls: &Calls) -> Result<Caller> {
    clusters.call(CALLERS, pod, format!("{} of {pod}", calls.kind), calls)
}

/// How long an idle flow is left alone: in whole seconds, from before the loss until the cluster is back for a while.
fn idle_pause(outage: Duration) -> Duration {
    Duration::from_secs((outage + FLOWS_BEFORE).as_secs() + 3)
}

/// What a cluster's row in the status says of its last change, if that was after `lost`.
fn marked(row: &Value, lost: Duration, now: Duration) -> Option<Marked> {
    let changed = now.saturating_sub(Duration::from_millis(row["since_ms"].as_u64()?));
    (changed >= lost).then(|| Marked { after_ms: ms_after(lost, changed), cluster: row.clone() })
}

fn sleep_until(then: Duration) -> Result<()> {
    thread::sleep(then.saturating_sub(now()?));
    Ok(())
}

/// `some` of `all`; 0 of nothing.
#[expect(clippy::cast_precision_loss, reason = "counts of requests are far below 2⁵³")]
fn part(some: u64, all: u64) -> f64 {
    if all == 0 { 0.0 } else { some as f64 / all as f64 }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_change_counts_if_it_came_after_the_loss() {
        let at = Duration::from_millis;
        let after = |row| marked(&row, at(5_000), at(9_000)).map(|marked| marked.after_ms);
        assert_eq!(after(json!({"since_ms": 3_000})), Some(1_000.0));
        assert_eq!(after(json!({"since_ms": 4_500})), None);
        assert_eq!(after(json!({"since_ms": null})), None);
    }

    #[test]
    fn idle_flows_are_used_again_once_the_cluster_is_back() {
        assert!(idle_pause(Duration::from_secs(8)) >= FLOWS_BEFORE + Duration::from_secs(8 + 2));
    }
}
