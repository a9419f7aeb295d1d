//! The agent's probes and what it makes of them, over real sockets between namespaces: needs root.

use anyhow::Result;
use lab::{
    netns::{Netns, need_root},
    nft,
};
use std::{
    collections::BTreeMap,
    net::{SocketAddr, TcpListener},
    time::{Duration, Instant},
};
use tokio::{
    sync::{mpsc, watch},
    time::{sleep, timeout},
};
use tombolo::{
    health::{
        Changed, Outcome, Probe, Signs, Used, UsedBackend, UsedCluster, View,
        driver::{Driver, Fact},
        prober,
    },
    model::{ClusterName, Path},
};

/// What is dropped at a cluster that is gone; at the agent, for all clusters to go at the same moment.
const WALL: &str = "table inet wall { chain in { type filter hook input priority 0; meta l4proto tcp drop; }; }";
/// Far longer than anything takes, on a busy machine too.
const PATIENCE: Duration = Duration::from_secs(30);

/// A kernel that saw nothing.
struct Blind;

impl Signs for Blind {
    fn cluster_alive(&self, _: u32) -> Option<Duration> {
        None
    }

    fn backend_alive(&self, _: u32, _: u32) -> Option<Duration> {
        None
    }
}

/// A namespace for the agent, and one a cluster with three addresses and whoever listens there.
struct World {
    agent: Netns,
    clusters: Vec<Netns>,
    _listeners: Vec<TcpListener>,
}

impl World {
    fn new(clusters: u8) -> Result<Self> {
        let mut world = Self { agent: Netns::anonymous()?, clusters: Vec::new(), _listeners: Vec::new() };
        for number in 0..clusters {
            let cluster = Netns::anonymous()?;
            let link = format!("c{number}");
            cluster.veth("eth0", &world.agent, &link)?;
            world.agent.address(&link, format!("10.9.{number}.254/24").parse()?)?;
            for pod in 1..=3 {
                cluster.address("eth0", format!("10.9.{number}.{pod}/24").parse()?)?;
                world._listeners.push(cluster.run(|| TcpListener::bind(address(number, pod)))??);
            }
            world.clusters.push(cluster);
        }
        Ok(world)
    }

    fn used(&self) -> Used {
        let mut used = Used::default();
        for (number, _) in (0_u8..).zip(&self.clusters) {
            let index = u32::from(number);
            let name = name(number);
            used.clusters.insert(index, UsedCluster { name: name.clone(), table_name: name, down: false });
            for pod in 1..=3 {
                let address = address(number, pod);
                let backend = UsedBackend {
                    generation: 1,
                    address,
                    cluster: index,
                    path: Path::Pod,
                    udp: false,
                    local: false,
                    dead: false,
                    serves: true,
                };
                used.backends.insert(index * 10 + u32::from(pod), backend);
            }
        }
        used
    }
}

fn name(number: u8) -> ClusterName {
    ClusterName(["west", "east", "north"][usize::from(number)].to_owned())
}

fn address(cluster: u8, pod: u8) -> SocketAddr {
    SocketAddr::from(([10, 9, cluster, pod], 80))
}

/// Runs `work` in the namespace, on one thread so that all sockets belong there.
fn run_in<T: Send>(netns: &Netns, work: impl AsyncFnOnce() -> Result<T> + Send) -> Result<T> {
    netns.run(|| {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        runtime.block_on(work())
    })?
}

#[test]
fn a_probe_tells_an_answer_from_a_refusal_and_from_silence() -> Result<()> {
    if skipped() {
        return Ok(());
    }
    let world = World::new(1)?;
    let wall =
        "table inet wall { chain in { type filter hook input priority 0; ip daddr 10.9.0.3 tcp flags syn drop; }; }";
    nft::apply(&world.clusters[0], wall)?;
    let probe = |pod: u8, port: u16| {
        let probe =
            Probe { id: 7, address: SocketAddr::from(([10, 9, 0, pod], port)), timeout: Duration::from_millis(300) };
        run_in(&world.agent, async || Ok(prober::run(probe).await))
    };
    let (id, answer) = probe(1, 80)?;
    assert_eq!(id, 7);
    assert!(matches!(answer, Outcome::Open(_)), "{answer:?}");
    let (_, refusal) = probe(2, 81)?;
    assert!(matches!(refusal, Outcome::Refused(_)), "{refusal:?}");
    let began = Instant::now();
    assert_eq!(probe(3, 80)?.1, Outcome::Silent);
    assert!(began.elapsed() >= Duration::from_millis(300));
    // A namespace without any route: nobody is there, either.
    let nowhere = Netns::anonymous()?;
    let probe = Probe { id: 8, address: address(0, 1), timeout: Duration::from_millis(300) };
    assert_eq!(run_in(&nowhere, async || Ok(prober::run(probe).await))?.1, Outcome::Silent);
    Ok(())
}

#[test]
fn a_cluster_that_vanishes_goes_down_and_comes_back_and_if_all_do_nothing_changes() -> Result<()> {
    if skipped() {
        return Ok(());
    }
    let world = World::new(3)?;
    run_in(&world.agent, async || {
        let (facts, received) = mpsc::channel(8);
        let (changed, mut changes) = watch::channel(Changed::default());
        let (views, mut seen) = watch::channel(View::default());
        let driver = tokio::spawn(Driver::new(1, Blind, received, changed, views).run());
        facts.send(Fact::Used(world.used().into())).await?;
        let all_count = |view: &View| {
            let views = &view.clusters;
            let mut canaries = views.iter().flat_map(|view| &view.paths).flat_map(|path| &path.canaries);
            views.len() == 3 && canaries.all(|canary| canary.counts)
        };
        timeout(PATIENCE, seen.wait_for(all_count)).await??;
        let are = |down: [bool; 3]| {
            let expected: BTreeMap<ClusterName, bool> =
                (0..3).map(|number| (name(number), down[usize::from(number)])).collect();
            move |changed: &Changed| {
                let down = changed.clusters.iter().map(|(name, judged)| (name.clone(), judged.down));
                down.collect::<BTreeMap<_, _>>() == expected
            }
        };

        nft::apply(&world.clusters[1], WALL)?;
        let began = Instant::now();
        timeout(PATIENCE, changes.wait_for(are([false, true, false]))).await??;
        println!("down {:?} after it vanished", began.elapsed());
        nft::clear(&world.clusters[1])?;
        let began = Instant::now();
        timeout(PATIENCE, changes.wait_for(are([false; 3]))).await??;
        println!("used {:?} after it was back", began.elapsed());
        assert!(began.elapsed() >= Duration::from_secs(2), "not at once");
        // A share of its own by now, unless the machine stood still until it was whole.
        let share = changes.borrow().ramps.get(&name(1)).copied();
        println!("its share then: {share:?} %");
        assert!(share.is_none_or(|share| share < 100), "{share:?}");

        // Until it is whole again, and nothing is on its way any more.
        timeout(PATIENCE, changes.wait_for(|changed| changed.ramps.is_empty())).await??;
        nft::apply(&world.agent, WALL)?;
        let held = |view: &View| view.clusters.iter().filter(|view| view.held.is_some()).count() == 2;
        let began = Instant::now();
        timeout(PATIENCE, seen.wait_for(held)).await??;
        println!("alarm {:?} after all was dark", began.elapsed());
        sleep(Duration::from_secs(2)).await;
        assert!(are([false; 3])(&changes.borrow()));
        assert!(changes.borrow().dead.is_empty());

        let findings = seen.borrow().findings;
        assert_eq!((findings.clusters_down, findings.backends_dead), (1, 0), "{findings:?}");
        drop(facts);
        timeout(PATIENCE, driver).await??
    })
}

fn skipped() -> bool {
    let skip = need_root().is_err();
    if skip {
        eprintln!("skipped: needs root");
    }
    skip
}
