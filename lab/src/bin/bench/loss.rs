//! `loss`: what connects see of a way that loses SYNs at random, with the agent, and after it was unloaded.
//!
//! Every connect crosses the lossy way, for all pods are behind it; what comes back is not touched, so a connect whose
//! SYN got there succeeds. Clients are as patient as TCP, and TCP tries so often that it never fails by itself: what
//! fails was given up by somebody else. Without the agent, the same number of connects goes by kube-proxy's rules.

use crate::{
    failover::{kernel, programs},
    quantiles::Quantiles,
    write_json,
};
use anyhow::{Context, Result, ensure};
use lab::{
    addresses::Network,
    attempts::ms,
    caller::{Attempt, End, Kind},
    clusters::{Calls, Clusters, Impairment, KUBE_PROXY_CLIENT, Programs},
    manifests::SERVICE_PORT,
    netns::need_root,
};
use serde::Serialize;
use serde_json::Value;
use std::{collections::BTreeMap, net::SocketAddr, path::PathBuf, thread, time::Duration};

/// The cluster that the callers are in.
const CALLERS: &str = "west";
/// Those that they call.
const CALLED: [&str; 2] = ["east", "north"];
/// Pods of each.
const PODS: usize = 4;
/// What is called.
const SERVICE: &str = "frontend-federated";
/// How long the agent gets until it is ready.
const READY_WITHIN: Duration = Duration::from_secs(60);
/// What an attempt gets: more than TCP takes for all its tries.
const PATIENCE: Duration = Duration::from_secs(3600);
/// Before the first connect, so that probes have found out what way it is.
const SETTLE: Duration = Duration::from_secs(10);

#[derive(clap::Args)]
pub(crate) struct Args {
    /// Connects for each loss, each way
    #[arg(long, default_value_t = 2000)]
    connects: usize,
    /// Connects a second
    #[arg(long, default_value_t = 100)]
    rate: u32,
    /// Of 100 segments to the pods so many get lost
    #[arg(long, value_delimiter = ',', default_values_t = [1, 10, 30], value_parser = clap::value_parser!(u8).range(0..=90))]
    percent: Vec<u8>,
    /// How often TCP repeats a SYN (`net.ipv4.tcp_syn_retries`); the kernel's own 6 lose 2 of 10,000 connects at 30 %
    #[arg(long, default_value_t = 20)]
    syn_retries: u8,
    /// Milliseconds of a round trip to the pods
    #[arg(long, default_value_t = 1)]
    rtt_ms: u64,
    /// Where the figures go as JSON
    #[arg(long)]
    json: Option<PathBuf>,
}

/// All of it: what `--json` writes.
#[derive(Serialize)]
struct Results {
    kernel: String,
    rate: u32,
    rtt_ms: u64,
    syn_retries: u8,
    losses: Vec<Loss>,
}

/// What a loss brought.
#[derive(Serialize)]
struct Loss {
    percent: u8,
    /// With the agent.
    tombolo: Seen,
    /// By kube-proxy's rules, with the agent unloaded.
    unloaded: Seen,
    /// What the programs counted meanwhile.
    counters: BTreeMap<String, u64>,
    /// What the agent said of the clusters at the end.
    clusters: Value,
}

#[derive(Serialize)]
struct Seen {
    connects: usize,
    failed: usize,
    /// Connected, but no answer came.
    unanswered: usize,
    connect_ms: Quantiles,
}

pub(crate) fn run(args: &Args) -> Result<()> {
    need_root()?;
    let (lab, agent) = programs()?;
    let mut clusters = Clusters::build(Programs { lab, agent: None, agent_flags: Vec::new() })?;
    clusters.start_client_agent(CALLERS, agent)?;
    clusters.start_pods(&CALLED.map(|cluster| (cluster, "frontend", Network::Flat, PODS)))?;
    clusters.publish()?;
    clusters.start_kube_proxy_client(CALLERS, SERVICE)?;
    for pod in ["client", KUBE_PROXY_CLIENT] {
        let pod = clusters.cluster(CALLERS).pods_of(pod).next().context("the callers have pods")?;
        pod.netns().sysctl("net.ipv4.tcp_syn_retries", args.syn_retries)?;
    }
    clusters.cluster_mut(CALLERS).client_agent()?.wait_until_ready(READY_WITHIN)?;

    let mut with = Vec::new();
    for &percent in &args.percent {
        impair(&clusters, percent, args)?;
        let before = counters(&mut clusters)?;
        let seen = connect(&clusters, "client", args)?;
        println!("{percent:>3} %: with the agent: {}", seen.line());
        let status = clusters.cluster_mut(CALLERS).client_agent()?.status()?;
        let after = counters(&mut clusters)?;
        let counters = after.into_iter().map(|(name, count)| (name.clone(), count - before.get(&name).unwrap_or(&0)));
        let counters: BTreeMap<_, _> = counters.filter(|(_, count)| *count > 0).collect();
        println!("       {counters:?}");
        with.push((percent, seen, counters, status["clusters"].clone()));
    }
    clusters.agents().try_for_each(|agent| agent.unload())?;
    let mut losses = Vec::new();
    for (percent, tombolo, counters, of_clusters) in with {
        impair(&clusters, percent, args)?;
        let unloaded = connect(&clusters, KUBE_PROXY_CLIENT, args)?;
        println!("{percent:>3} %: unloaded: {}", unloaded.line());
        losses.push(Loss { percent, tombolo, unloaded, counters, clusters: of_clusters });
    }
    let results =
        Results { kernel: kernel()?, rate: args.rate, rtt_ms: args.rtt_ms, syn_retries: args.syn_retries, losses };
    args.json.as_deref().map_or(Ok(()), |file| write_json(file, &results))
}

fn impair(clusters: &Clusters, lost_percent: u8, args: &Args) -> Result<()> {
    let rtt = Duration::from_millis(args.rtt_ms);
    CALLED.iter().try_for_each(|cluster| clusters.impair(cluster, Impairment { rtt, lost_percent }))?;
    thread::sleep(SETTLE);
    Ok(())
}

/// Makes the connects from the pod of `app`, and waits for the end of each.
fn connect(clusters: &Clusters, app: &str, args: &Args) -> Result<Seen> {
    let addresses = clusters.service_addresses(CALLERS, SERVICE).both();
    let calls = Calls {
        targets: addresses.map(|address| SocketAddr::new(address, SERVICE_PORT)).to_vec(),
        kind: Kind::NewConnections,
        rate: args.rate,
        connections: 1,
        timeout: PATIENCE,
    };
    let mut caller = clusters.call(CALLERS, app, format!("connects of {app}"), &calls)?;
    // A second more, so that there are enough for sure.
    let seconds = u32::try_from(args.connects)?.div_ceil(args.rate) + 1;
    thread::sleep(Duration::from_secs(seconds.into()));
    caller.finish(PATIENCE)?;
    let mut attempts = caller.take();
    attempts.retain(|attempt| !attempt.retry);
    attempts.sort_by_key(|attempt| attempt.began);
    ensure!(attempts.len() >= args.connects, "{} of {} connects were made", attempts.len(), args.connects);
    attempts.truncate(args.connects);
    Ok(Seen::of(&attempts))
}

/// What the programs have counted.
fn counters(clusters: &mut Clusters) -> Result<BTreeMap<String, u64>> {
    let status = clusters.cluster_mut(CALLERS).client_agent()?.status()?;
    serde_json::from_value(status["counters"].clone()).context("understand the agent's counters")
}

impl Seen {
    fn of(attempts: &[Attempt]) -> Self {
        let connects = || attempts.iter().filter_map(|attempt| attempt.connect);
        let is_unanswered = |attempt: &&Attempt| {
            attempt.connect.is_some_and(|connect| connect.done)
                && matches!(attempt.end, End::Failed(_) | End::Unfinished)
        };
        Self {
            connects: attempts.len(),
            failed: connects().filter(|connect| !connect.done).count(),
            unanswered: attempts.iter().filter(is_unanswered).count(),
            connect_ms: Quantiles::of(connects().map(|connect| ms(connect.took))),
        }
    }

    fn line(&self) -> String {
        format!(
            "{} connects, {} failed, {} unanswered; ms (p50, p99, max): {}",
            self.connects, self.failed, self.unanswered, self.connect_ms
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use lab::caller::Connect;

    #[test]
    fn a_connect_that_failed_is_told_from_one_that_got_no_answer() {
        let attempt = |done, end| Attempt {
            retry: false,
            began: Duration::ZERO,
            connect: Some(Connect { took: Duration::from_millis(5), done }),
            took: Duration::from_millis(9),
            pod: None,
            end,
        };
        let failed = || End::Failed("timed out".to_owned());
        let answered = End::Answered("east".to_owned());
        let seen = Seen::of(&[attempt(false, failed()), attempt(true, failed()), attempt(true, answered)]);
        assert_eq!((seen.connects, seen.failed, seen.unanswered, seen.connect_ms.max), (3, 1, 1, 5.0));
    }
}
