//! `failover`: a cluster goes dark under load, again and again, and comes back; what new connections and flows that send
//! see of it, through Tombolo and, at the same time, through kube-proxy's rules.
//!
//! The clusters are the lab's, with an agent on each node. They die in turns, so that one has its time to be
//! trusted again while the other is out. Nothing here passes or fails.

use crate::quantiles::Quantiles;
use anyhow::{Context, Result, ensure};
use lab::{
    addresses::Network,
    attempts::{Figures, ms, ms_after},
    caller::{Attempt, End, Kind},
    clusters::{Caller, Calls, Clusters, KUBE_PROXY_CLIENT, Programs},
    manifests::SERVICE_PORT,
    netns::need_root,
    report::now,
};
use serde::Serialize;
use serde_json::Value;
use std::{
    collections::BTreeMap,
    env, fs,
    net::SocketAddr,
    path::PathBuf,
    thread,
    time::{Duration, Instant},
};

/// The cluster that the callers are in.
const CALLERS: &str = "west";
/// The clusters that die, in turns.
const VICTIMS: [&str; 2] = ["east", "north"];
/// What is called.
const SERVICE: &str = "frontend-federated";
/// Pods in west, east and north.
const PODS: [(&str, usize); 3] = [("west", 2), ("east", 4), ("north", 4)];
/// How long agents get until they are ready.
const READY_WITHIN: Duration = Duration::from_secs(60);
/// The stretch of time that a share is taken over.
const STRETCH: Duration = Duration::from_secs(1);
/// What part of its share a cluster has to have to be fully back.
const FULL: f64 = 0.75;
/// Connections with a long HTTP/2 call each, and messages a second on all of them.
const FLOWS: (u32, u32) = (20, 200);
/// How often it is looked at.
const LOOK: Duration = Duration::from_millis(50);

#[derive(clap::Args)]
pub(crate) struct Args {
    /// Outages
    #[arg(long, default_value_t = 50)]
    runs: usize,
    /// Where the figures go as JSON
    #[arg(long)]
    json: Option<PathBuf>,
    /// Connects a second, each way
    #[arg(long, default_value_t = 500)]
    rate: u32,
    /// Milliseconds that a cluster is gone
    #[arg(long, default_value_t = 6000)]
    outage_ms: u64,
    /// Milliseconds that a client waits, for the connect and the answer together
    #[arg(long, default_value_t = 2000)]
    timeout_ms: u64,
    /// Seconds that a cluster may take to have its share again
    #[arg(long, default_value_t = 40)]
    back_within_s: u64,
}

/// All of it: what `--json` writes.
#[derive(Serialize)]
struct Results {
    kernel: String,
    rate: u32,
    outage_ms: u64,
    timeout_ms: u64,
    runs: Vec<Run>,
    /// Over the runs, by metric.
    tombolo: BTreeMap<&'static str, Quantiles>,
    kube_proxy: BTreeMap<&'static str, Quantiles>,
}

/// One outage. Times are after the loss, or after the return, in milliseconds.
#[derive(Serialize)]
struct Run {
    victim: &'static str,
    tombolo: Seen,
    kube_proxy: Seen,
    /// When the agent beside the callers was seen to have changed its mind, and what it says of it.
    marked: Option<Marked>,
    /// When the first answer came from the cluster after it was back.
    first_answer_ms: Option<f64>,
    /// When the stretch of time began in which it had its share again.
    full_share_ms: Option<f64>,
}

/// What callers of one way saw of an outage.
#[derive(Serialize)]
struct Seen {
    requests: u64,
    failed: u64,
    failed_with_retry: u64,
    /// When the last connect that failed began; 0 if none failed.
    last_failure_ms: f64,
    /// The longest connect that failed; 0 if none failed.
    longest_failed_connect_ms: f64,
    longest_connect_ms: f64,
    /// Flows that failed: messages that got no answer.
    flows_failed: u64,
    /// The longest that one of them waited for its end; 0 if none failed.
    longest_flow_failure_ms: f64,
}

#[derive(Serialize)]
struct Marked {
    seen_after_ms: f64,
    cluster: Value,
}

/// The clusters and the callers in them.
struct Ground {
    clusters: Clusters,
    tombolo: Callers,
    kube_proxy: Callers,
}

/// Those of one way.
struct Callers {
    connects: Caller,
    flows: Caller,
}

pub(crate) fn run(args: &Args) -> Result<()> {
    need_root()?;
    let mut ground = Ground::build(args)?;
    let mut runs = Vec::new();
    for number in 0..args.runs {
        let victim = VICTIMS[number % VICTIMS.len()];
        let run = ground.lose(victim, args).with_context(|| format!("run {} ({victim})", number + 1))?;
        println!("{:>3} {}", number + 1, run.line());
        runs.push(run);
    }
    ground.end()?;

    let kernel = fs::read_to_string("/proc/sys/kernel/osrelease").context("read the kernel's version")?;
    let results = Results {
        kernel: kernel.trim().to_owned(),
        rate: args.rate,
        outage_ms: args.outage_ms,
        timeout_ms: args.timeout_ms,
        tombolo: over(&runs, |run| &run.tombolo, true),
        kube_proxy: over(&runs, |run| &run.kube_proxy, false),
        runs,
    };
    results.print();
    if let Some(file) = &args.json {
        let text = serde_json::to_string_pretty(&results).context("write the figures as JSON")?;
        fs::write(file, text + "\n").with_context(|| format!("write {}", file.display()))?;
    }
    Ok(())
}

impl Ground {
    fn build(args: &Args) -> Result<Self> {
        let beside = env::current_exe().context("find this program")?;
        let (lab, agent) = (beside.with_file_name("lab"), beside.with_file_name("tombolo"));
        for program in [&lab, &agent] {
            ensure!(program.is_file(), "there is no {}: cargo xtask bench builds it", program.display());
        }
        let mut clusters = Clusters::build(Programs { lab, agent: Some(agent), agent_flags: Vec::new() })?;
        clusters.start_pods(&PODS.map(|(cluster, count)| (cluster, "frontend", Network::Flat, count)))?;
        clusters.publish()?;
        for agent in clusters.agents() {
            agent.wait_until_ready(READY_WITHIN)?;
        }
        clusters.start_kube_proxy_client(CALLERS, SERVICE)?;
        let addresses = clusters.service_addresses(CALLERS, SERVICE).both();
        let connects = Calls {
            targets: addresses.map(|address| SocketAddr::new(address, SERVICE_PORT)).to_vec(),
            kind: Kind::NewConnections,
            rate: args.rate,
            connections: 1,
            timeout: Duration::from_millis(args.timeout_ms),
        };
        let (connections, rate) = FLOWS;
        let timeout = Duration::from_millis(args.outage_ms);
        let flows = Calls { kind: Kind::Stream, rate, connections, timeout, ..connects.clone() };
        let call = |pod: &str| -> Result<Callers> {
            let call = |calls: &Calls| clusters.call(CALLERS, pod, format!("{} of {pod}", calls.kind), calls);
            Ok(Callers { connects: call(&connects)?, flows: call(&flows)? })
        };
        let (tombolo, kube_proxy) = (call("client")?, call(KUBE_PROXY_CLIENT)?);
        Ok(Self { clusters, tombolo, kube_proxy })
    }

    fn end(mut self) -> Result<()> {
        self.tombolo.stop()?;
        self.kube_proxy.stop()?;
        self.clusters.agents().try_for_each(|agent| agent.unload())
    }

    /// One outage, from when all is well until the last request has ended that it may have hit.
    fn lose(&mut self, victim: &'static str, args: &Args) -> Result<Run> {
        let began = Instant::now();
        for cluster in VICTIMS {
            let well = self.full(cluster, now()?, args)?;
            well.with_context(|| format!("{cluster} has not its share after {} s", began.elapsed().as_secs()))?;
        }
        for callers in [&self.tombolo, &self.kube_proxy] {
            callers.connects.take();
            callers.flows.take();
        }
        let lost = now()?;
        self.clusters.black_out(victim)?;
        let marked = self.mark(victim, lost, lost + Duration::from_millis(args.outage_ms))?;
        self.clusters.light_up(victim)?;
        let back = now()?;
        let full = self.full(victim, back, args)?;
        // The retry of a request that began just before, and a flow's message.
        let last = Duration::from_millis(args.outage_ms.max(2 * args.timeout_ms) + 500);
        thread::sleep((back + last).saturating_sub(now()?));

        let ours = self.tombolo.connects.take();
        let theirs = self.kube_proxy.connects.take();
        let of_victim = |each: &&Attempt| matches!(&each.end, End::Answered(cluster) if cluster == victim);
        let first = ours.iter().filter(of_victim).map(Attempt::ended).filter(|&ended| ended > back).min();
        Ok(Run {
            victim,
            tombolo: Seen::of(&ours, &self.tombolo.flows.take(), lost),
            kube_proxy: Seen::of(&theirs, &self.kube_proxy.flows.take(), lost),
            marked,
            first_answer_ms: first.map(|first| ms_after(back, first)),
            full_share_ms: full.map(|full| ms(full - back)),
        })
    }

    /// Lets time pass until `end`; when the agent beside the callers was first seen to think otherwise of `victim` than
    /// at the beginning.
    fn mark(&mut self, victim: &str, lost: Duration, end: Duration) -> Result<Option<Marked>> {
        let agent = self.clusters.cluster_mut(CALLERS).client_agent()?;
        let verdict = |status: &Value| {
            let cluster = match &status["clusters"] {
                Value::Array(clusters) => clusters.iter().find(|each| each["name"] == victim).cloned(),
                by_name => by_name.get(victim).cloned(),
            };
            let cluster = cluster.unwrap_or_default();
            let verdict = cluster.get("verdict").unwrap_or(&cluster).clone();
            (verdict, cluster)
        };
        let (before, _) = verdict(&agent.status()?);
        let mut marked = None;
        while now()? < end {
            if marked.is_none() {
                let (after, cluster) = verdict(&agent.status()?);
                if after != before {
                    marked = Some(Marked { seen_after_ms: ms_after(lost, now()?), cluster });
                }
            }
            thread::sleep(LOOK.min(end.saturating_sub(now()?)));
        }
        Ok(marked)
    }

    /// Waits until `cluster` has its share of the answers through Tombolo; when the stretch began, `from` or later, in
    /// which it had. None if it takes too long.
    fn full(&mut self, cluster: &str, from: Duration, args: &Args) -> Result<Option<Duration>> {
        let pods = |name: &str| PODS.iter().find(|(each, _)| *each == name).map_or(0, |(_, count)| *count as u64);
        let share = part(pods(cluster), PODS.iter().map(|(_, count)| *count as u64).sum());
        let deadline = Instant::now() + Duration::from_secs(args.back_within_s);
        while Instant::now() < deadline {
            self.tombolo.check()?;
            self.kube_proxy.check()?;
            let now = now()?;
            let latest = self.tombolo.connects.attempts(from.max(now.saturating_sub(STRETCH)), now);
            let latest = Figures::of(&latest, now);
            let (its, all) = (latest.by_cluster.get(cluster).copied().unwrap_or(0), latest.by_cluster.values().sum());
            if now >= from + STRETCH && part(its, all) >= share * FULL {
                return Ok(Some(now - STRETCH));
            }
            thread::sleep(LOOK);
        }
        Ok(None)
    }
}

impl Callers {
    fn check(&mut self) -> Result<()> {
        self.connects.check()?;
        self.flows.check()
    }

    fn stop(&mut self) -> Result<()> {
        self.connects.stop()?;
        self.flows.stop()
    }
}

impl Seen {
    /// Of new connections and of messages on flows that ended after `lost`.
    fn of(attempts: &[Attempt], messages: &[Attempt], lost: Duration) -> Self {
        let figures = Figures::of(attempts, lost);
        let flows =
            messages.iter().filter(|message| message.connect.is_none() && matches!(message.end, End::Failed(_)));
        let flows: Vec<f64> = flows.map(|message| ms(message.took)).collect();
        let failed = attempts.iter().filter_map(|attempt| attempt.connect.filter(|connect| !connect.done));
        Self {
            requests: figures.requests,
            failed: figures.failed,
            failed_with_retry: figures.failed_with_retry,
            last_failure_ms: figures.last_failure_ms.unwrap_or(0.0).max(0.0),
            longest_failed_connect_ms: failed.map(|connect| ms(connect.took)).fold(0.0, f64::max),
            longest_connect_ms: figures.longest_connect_ms.unwrap_or(0.0),
            flows_failed: flows.len() as u64,
            longest_flow_failure_ms: flows.into_iter().fold(0.0, f64::max),
        }
    }
}

impl Run {
    fn line(&self) -> String {
        let ms = |value: Option<f64>| value.map_or_else(|| "-".to_owned(), |value| format!("{value:.0}"));
        let seen = |seen: &Seen| {
            format!(
                "last failure {:>5.0} ms, longest {:>5.0} ms, failed {:>4}, with retry {:>4}",
                seen.last_failure_ms, seen.longest_failed_connect_ms, seen.failed, seen.failed_with_retry
            )
        };
        format!(
            "{:<6} {} | kube-proxy: {} | marked {}, back {}, full {} ms",
            self.victim,
            seen(&self.tombolo),
            seen(&self.kube_proxy),
            ms(self.marked.as_ref().map(|marked| marked.seen_after_ms)),
            ms(self.first_answer_ms),
            ms(self.full_share_ms),
        )
    }
}

impl Results {
    fn print(&self) {
        println!("\n{:<28}{:>30}{:>30}", "", "Tombolo: p50, p99, max", "kube-proxy: p50, p99, max");
        for (metric, ours) in &self.tombolo {
            let theirs = self.kube_proxy.get(metric).map(Quantiles::to_string).unwrap_or_default();
            println!("{metric:<28}{:>30}{theirs:>30}", ours.to_string());
        }
        println!(
            "kernel {}, {} runs, {} connects a second each way, {} ms outages",
            self.kernel,
            self.runs.len(),
            self.rate,
            self.outage_ms
        );
    }
}

/// Each metric over the runs; those of the cluster's return too, if asked for.
fn over(runs: &[Run], side: impl Fn(&Run) -> &Seen, returns: bool) -> BTreeMap<&'static str, Quantiles> {
    let of = |metric: &dyn Fn(&Seen) -> f64| Quantiles::of(runs.iter().map(|run| metric(side(run))));
    #[expect(clippy::cast_precision_loss, reason = "counts of requests are far below 2⁵³")]
    let mut metrics = BTreeMap::from([
        ("last_failure_ms", of(&|seen| seen.last_failure_ms)),
        ("longest_failed_connect_ms", of(&|seen| seen.longest_failed_connect_ms)),
        ("longest_connect_ms", of(&|seen| seen.longest_connect_ms)),
        ("failed", of(&|seen| seen.failed as f64)),
        ("failed_with_retry", of(&|seen| seen.failed_with_retry as f64)),
        ("flows_failed", of(&|seen| seen.flows_failed as f64)),
        ("longest_flow_failure_ms", of(&|seen| seen.longest_flow_failure_ms)),
    ]);
    if returns {
        let marked = runs.iter().filter_map(|run| Some(run.marked.as_ref()?.seen_after_ms));
        metrics.insert("marked_ms", Quantiles::of(marked));
        metrics.insert("first_answer_ms", Quantiles::of(runs.iter().filter_map(|run| run.first_answer_ms)));
        metrics.insert("full_share_ms", Quantiles::of(runs.iter().filter_map(|run| run.full_share_ms)));
    }
    metrics
}

/// `some` of `all`; 0 of nothing.
#[expect(clippy::cast_precision_loss, reason = "counts of requests are far below 2⁵³")]
fn part(some: u64, all: u64) -> f64 {
    if all == 0 { 0.0 } else { some as f64 / all as f64 }
}
