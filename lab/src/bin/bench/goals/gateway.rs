//! T15: a cluster is reached flat, then by its gateway, then flat again, under load: once because its slices say so, and
//! once because the flat path swallows everything. Answers of a mebibyte pass on both ways.

use super::{Args, Figure};
use anyhow::{Context, Result, bail};
use lab::{
    addresses::{self, Dual, Network},
    attempts::Figures,
    caller::Kind,
    clusters::{Caller, Calls, Client, Clusters, GATEWAY_PORT, Load, Programs},
    manifests::{POD_PORT, SERVICE_PORT},
    nft,
    report::now,
};
use std::{
    collections::BTreeMap,
    env,
    net::{Ipv4Addr, SocketAddr},
    thread,
    time::{Duration, Instant},
};

/// The service, in west, and where it is dialled.
const SERVICE: &str = "switched-east";
const ADDRESS: Ipv4Addr = Ipv4Addr::new(10, 101, 0, 40);
/// The pods behind the flat path, and those behind the gateway.
const FLAT: &str = "api";
const BEHIND: &str = "analytics";
/// One connect of so many is for a large answer.
const LARGE: u32 = 20;
const TIMEOUT: Duration = Duration::from_millis(2500);
const READY_WITHIN: Duration = Duration::from_secs(60);
/// How long a path is used before the next switch, and how long it may take to switch.
const STAYS: Duration = Duration::from_secs(5);
const SWITCHED_WITHIN: Duration = Duration::from_secs(30);
/// How often it is switched, each way.
const SWITCHES: usize = 5;

/// How endpoints are offered.
#[derive(Clone, Copy)]
enum Offer {
    Flat,
    Gateway,
    FlatAndFallback,
}

/// The clusters, callers of both kinds, and a load that tells pods apart.
struct Ground {
    clusters: Clusters,
    callers: Vec<Caller>,
    load: Client,
}

/// What switches of one sort cost.
#[derive(Default)]
struct Cost {
    requests: u64,
    failed: u64,
    lost: u64,
    large: u64,
    large_lost: u64,
    slowest: Duration,
}

pub(super) fn play(args: &Args) -> Result<Vec<Figure>> {
    let mut ground = Ground::build(args.rate)?;
    let mut told = Cost::default();
    for _ in 0..SWITCHES {
        ground.switch(&mut told, BEHIND, |ground| ground.offer(Offer::Gateway))?;
        ground.switch(&mut told, FLAT, |ground| ground.offer(Offer::Flat))?;
    }
    ground.offer(Offer::FlatAndFallback)?;
    thread::sleep(STAYS);
    ground.take()?;
    let mut dark = Cost::default();
    for _ in 0..SWITCHES {
        ground.switch(&mut dark, BEHIND, Ground::swallow)?;
        ground.switch(&mut dark, FLAT, |ground| nft::clear(ground.clusters.fabric()))?;
    }
    ground.end()?;
    let mut figures = Vec::new();
    for (cost, by, plain) in [(told, "its slices say so", true), (dark, "the flat path swallows everything", false)] {
        let what = |what: &str| format!("{what}: {by}");
        let failed = Figure::count(what("failed connects"), cost.failed);
        figures.extend([
            Figure::count(what("requests"), cost.requests).at_least(5.0 * f64::from(args.rate)),
            if plain { failed.none() } else { failed },
            Figure::count(what("failed in spite of a retry"), cost.lost).none(),
            Figure::count(what("answers of 1 MiB"), cost.large).at_least(f64::from(args.rate / LARGE)),
            Figure::count(what("of them lost in spite of a retry"), cost.large_lost).none(),
            Figure::new(what("slowest switch, ms"), cost.slowest.as_secs_f64() * 1000.0),
        ]);
    }
    Ok(figures)
}

impl Ground {
    fn build(rate: u32) -> Result<Self> {
        let beside = env::current_exe().context("find this program")?;
        let (lab, agent) = (beside.with_file_name("lab"), beside.with_file_name("tombolo"));
        let mut clusters = Clusters::build(Programs { lab, agent: Some(agent), agent_flags: Vec::new() })?;
        // North has pods, so that somebody bears witness.
        clusters.start_pods(&[
            ("east", FLAT, Network::Flat, 3),
            ("east", BEHIND, Network::Private, 2),
            ("west", "frontend", Network::Flat, 2),
            ("north", "frontend", Network::Flat, 2),
        ])?;
        clusters.publish()?;
        for agent in clusters.agents() {
            agent.wait_until_ready(READY_WITHIN)?;
        }
        offer(&clusters, Offer::Flat)?;
        thread::sleep(Duration::from_secs(2));
        let targets = vec![SocketAddr::new(ADDRESS.into(), SERVICE_PORT)];
        let call = |(kind, rate): (Kind, u32)| {
            let calls = Calls { targets: targets.clone(), kind, rate, connections: 1, timeout: TIMEOUT };
            clusters.call("west", "client", kind.to_string(), &calls)
        };
        let callers = [(Kind::NewConnections, rate), (Kind::LargeAnswers, rate.div_ceil(LARGE))]
            .into_iter()
            .map(call)
            .collect::<Result<_>>()?;
        let load = clusters.load("west", &Load { targets, udp: false, rate: 50, requests: None })?;
        let mut ground = Self { clusters, callers, load };
        ground.serves(FLAT)?;
        thread::sleep(STAYS);
        ground.take()?;
        Ok(ground)
    }

    fn end(mut self) -> Result<()> {
        self.callers.iter_mut().try_for_each(Caller::stop)?;
        self.load.stop()?;
        self.clusters.agents().try_for_each(|agent| agent.unload())
    }

    fn offer(&mut self, what: Offer) -> Result<()> {
        offer(&self.clusters, what)
    }

    /// What goes to east's pods and what comes from them vanishes. What goes to its gateway doesn't.
    fn swallow(&mut self) -> Result<()> {
        let rules = "table bridge flat {
            chain forward {
                type filter hook forward priority 0
                ip daddr 10.62.0.0/16 drop
                ip saddr 10.62.0.0/16 drop
                ip6 daddr fd62::/32 drop
                ip6 saddr fd62::/32 drop
            }
        }";
        nft::apply(self.clusters.fabric(), rules)
    }

    /// Switches, waits until these pods alone serve, and adds up what it cost.
    fn switch(&mut self, cost: &mut Cost, to: &str, by: impl FnOnce(&mut Self) -> Result<()>) -> Result<()> {
        let began = Instant::now();
        by(self)?;
        self.serves(to)?;
        cost.slowest = cost.slowest.max(began.elapsed());
        thread::sleep(STAYS.max(2 * TIMEOUT));
        let figures = self.take()?;
        let (small, large) = (&figures[&Kind::NewConnections], &figures[&Kind::LargeAnswers]);
        cost.requests += small.requests;
        cost.failed += small.failed;
        cost.lost += small.failed_with_retry;
        cost.large += large.requests;
        cost.large_lost += large.failed_with_retry;
        for (kind, figures) in &figures {
            for failure in figures.failures.iter().take(2) {
                println!("    to {to}: {kind}: {}", failure.error);
            }
        }
        Ok(())
    }

    /// Waits until these pods answer, and no others; counted from the last answer of another.
    fn serves(&mut self, app: &str) -> Result<()> {
        let began = Instant::now();
        loop {
            let answers = |load: &Client| -> BTreeMap<bool, u64> {
                let mut answers = BTreeMap::from([(false, 0), (true, 0)]);
                for (pod, report) in load.report().by_pod {
                    *answers.entry(pod.contains(app)).or_default() += report.answers;
                }
                answers
            };
            let before = answers(&self.load);
            thread::sleep(Duration::from_millis(300));
            let after = answers(&self.load);
            if after[&true] > before[&true] && after[&false] == before[&false] {
                return Ok(());
            }
            if began.elapsed() > SWITCHED_WITHIN {
                let agent = self.clusters.cluster_mut("west").client_agent()?;
                let services = agent.services()?;
                let mut services = services["services"].as_array().context("there are services")?.iter();
                let service = services.find(|service| service["name"] == format!("demo/{SERVICE}"));
                bail!("pods of {app} don't serve alone: {service:?} {}", agent.status()?["clusters"]);
            }
        }
    }

    fn take(&mut self) -> Result<BTreeMap<Kind, Figures>> {
        self.callers.iter_mut().try_for_each(Caller::check)?;
        let now = now()?;
        Ok(self.callers.iter().map(|caller| (caller.kind(), Figures::of(&caller.take(), now))).collect())
    }
}

/// Writes the service, and its endpoints as they are offered.
fn offer(clusters: &Clusters, what: Offer) -> Result<()> {
    let flat: Vec<Dual> = clusters.cluster("east").pods_of(FLAT).map(lab::clusters::Pod::addresses).collect();
    let flat: Vec<Ipv4Addr> = flat.into_iter().map(|addresses| addresses.v4).collect();
    let gateway = [addresses::gateway(2).v4];
    let service = format!("kubernetes.io/service-name: {SERVICE}");
    let by_gateway = format!("{service}, tombolo.io/path: gateway");
    let fallback = format!("tombolo.io/fallback-for: {SERVICE}, tombolo.io/path: gateway");
    let flat = slice("flat", &service, &flat, POD_PORT, true);
    let slices = match what {
        Offer::Flat => flat,
        Offer::Gateway => slice("gateway", &by_gateway, &gateway, GATEWAY_PORT, true),
        Offer::FlatAndFallback => flat + &slice("gateway", &fallback, &gateway, GATEWAY_PORT, false),
    };
    let service = format!(
        "apiVersion: v1\nkind: Service\nmetadata: {{name: {SERVICE}, namespace: demo, labels: \
         {{mirror.linkerd.io/mirrored-service: \"true\"}}}}\nspec: {{clusterIP: {ADDRESS}, clusterIPs: [{ADDRESS}], ports: \
         [{{name: http, port: {SERVICE_PORT}, protocol: TCP}}]}}\n"
    );
    super::node::write(clusters.cluster("west").manifests(), "switched.yaml", Some(&(service + &slices)))
}

fn slice(name: &str, labels: &str, addresses: &[Ipv4Addr], port: u16, ready: bool) -> String {
    let endpoint = |address| {
        format!("{{addresses: [{address}], conditions: {{ready: {ready}, serving: {ready}, terminating: false}}}}")
    };
    format!(
        "---\napiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata: {{name: {SERVICE}-{name}, namespace: demo, labels: \
         {{{labels}, multicluster.kubernetes.io/service-name: {SERVICE}, multicluster.kubernetes.io/source-cluster: \
         east}}}}\naddressType: IPv4\nports: [{{name: http, port: {port}, protocol: TCP}}]\nendpoints: [{}]\n",
        addresses.iter().map(endpoint).collect::<Vec<_>>().join(", ")
    )
}
