//! Faults of the network between clusters, and of pods.

use super::{
    Fault, Healed,
    bounds::{Chance, Toll},
    ground::{CALLED, Ground, HERE},
};
use crate::{
    addresses,
    clusters::{GATEWAY_PORT, NAMES, Pod},
    nft,
    report::now,
};
use anyhow::{Context, Result, ensure};
use nix::sys::signal::Signal;
use std::{collections::BTreeSet, process::Command, time::Duration};

pub(super) const FAULTS: &[Fault] = &[
    Fault { name: "peer-dark", strikes: "east's packets vanish both ways, for 10 s", strike: dark },
    Fault { name: "peer-veth-down", strikes: "the links of east's nodes are down, for 10 s", strike: veth_down },
    Fault { name: "peer-answers-lost", strikes: "what east sends vanishes, for 10 s", strike: answers_lost },
    Fault { name: "peer-requests-lost", strikes: "what is sent to east vanishes, for 10 s", strike: requests_lost },
    Fault { name: "peer-loss-30", strikes: "30 % of what east sends is lost, for 10 s", strike: loss },
    Fault { name: "peer-64-kbit", strikes: "64 kbit/s to each of east's nodes, for 10 s", strike: slow },
    Fault { name: "peer-flaps", strikes: "east is dark every other half second, for 10 s", strike: flaps },
    Fault { name: "peers-all-dark", strikes: "east and north are dark, for 10 s", strike: all_dark },
    Fault { name: "uplink-down", strikes: "the callers' own node has no network, for 10 s", strike: uplink },
    Fault {
        name: "gateway-dark",
        strikes: "east's gateway is dark, for 5 s: its callers have no other way",
        strike: gateway_dark,
    },
    Fault { name: "gateway-moved", strikes: "east's gateway gets another address", strike: gateway_moved },
    Fault { name: "pod-killed", strikes: "a server in east ends; its slice says so 3 s later", strike: pod_killed },
    Fault { name: "pod-stopped", strikes: "a server in east hangs for 10 s, its queue fills", strike: pod_stopped },
];

/// How long most of them last.
const LASTS: Duration = Duration::from_secs(10);
/// How likely a retry meets a pod that is dark. Each of them is left out, but tried by one connection after 0.25 s, 0.5 s and
/// so on: 6 times in [`LASTS`], for each of 10 to 12 addresses, by one of some 2,400 connects.
const TRIALS: f64 = 0.03;
/// How likely a retry meets a pod behind a link that is too narrow, and waits too long: what of all requests fails then, one in
/// 15 to 30.
const NARROW: f64 = 0.07;

fn dark(ground: &mut Ground) -> Result<Healed> {
    ground.clusters.black_out("east")?;
    ground.pass(LASTS)?;
    ground.clusters.light_up("east")?;
    let toll = nothing_by_gateway()?;
    Ok(over(ground)?.losing(toll))
}

fn veth_down(ground: &mut Ground) -> Result<Healed> {
    for link in links("east") {
        ground.clusters.fabric().down(&link)?;
    }
    ground.pass(LASTS)?;
    for link in links("east") {
        ground.clusters.fabric().up(&link)?;
    }
    let toll = nothing_by_gateway()?;
    Ok(over(ground)?.losing(toll))
}

fn answers_lost(ground: &mut Ground) -> Result<Healed> {
    filtered(ground, "iifname", "drop")
}

fn requests_lost(ground: &mut Ground) -> Result<Healed> {
    filtered(ground, "oifname", "drop")
}

/// Some requests fail by it, but that is no reason to give a cluster up.
///
/// A datagram's answer is lost by chance, and then that to its repetition. A connection repeats its SYN after 0.2, 0.6 and
/// 1.4 s and its answer about as often, so within [`PATIENCE`](super::ground::PATIENCE) it fails with 2 × 0.3⁴; that the
/// later answer begins later makes it more, not thrice as much.
fn loss(ground: &mut Ground) -> Result<Healed> {
    drop_on_fabric(ground, "iifname", &names(&links("east")), "numgen random mod 100 < 30 drop")?;
    for _ in 0..20 {
        ground.pass(LASTS / 20)?;
        ground.trusts_all()?;
    }
    nft::clear(ground.clusters.fabric())?;
    let pods = pods(ground, |pod| pod.cluster() == "east");
    let fails = 6.0 * 0.3_f64.powi(4);
    let connects = share(ground, &pods) * fails;
    let until = now()?;
    let chance = |likely| Chance { likely, until };
    let (datagrams, by_gateway) = (chance(0.3 * 0.3), chance(fails));
    let toll = Toll { pods, connects: chance(connects), datagrams, by_gateway };
    Ok(over(ground)?.losing(toll))
}

/// The cluster is alive all the while, so its pods are tried again and again, and some of who try wait too long.
fn slow(ground: &mut Ground) -> Result<Healed> {
    for link in links("east") {
        tc(
            ground,
            &["qdisc", "replace", "dev", &link, "root", "tbf", "rate", "64kbit", "burst", "4kb", "latency", "400ms"],
        )?;
    }
    ground.pass(LASTS)?;
    for link in links("east") {
        tc(ground, &["qdisc", "del", "dev", &link, "root"])?;
    }
    let pods = pods(ground, |pod| pod.cluster() == "east");
    let until = now()?;
    let (connects, datagrams) = (Chance { likely: NARROW, until }, Chance { likely: 1.0, until });
    Ok(over(ground)?.losing(Toll { pods, connects, datagrams, ..nothing_by_gateway()? }))
}

fn flaps(ground: &mut Ground) -> Result<Healed> {
    for _ in 0..10 {
        ground.clusters.black_out("east")?;
        ground.pass(LASTS / 20)?;
        ground.clusters.light_up("east")?;
        ground.pass(LASTS / 20)?;
    }
    let pods = pods(ground, |pod| pod.cluster() == "east");
    // Of a datagram and its repetition, 2.5 s later, each meets one half or the other.
    let datagrams = Chance { likely: 0.5, until: now()? };
    let toll = Toll { pods, datagrams, ..nothing_by_gateway()? };
    Ok(over(ground)?.losing(toll))
}

/// It may as well be the node's own fault, so the last set is kept.
fn all_dark(ground: &mut Ground) -> Result<Healed> {
    let peers = || NAMES.into_iter().filter(|name| *name != HERE);
    for peer in peers() {
        ground.clusters.black_out(peer)?;
    }
    let waited = ground.pass(LASTS);
    let kept = ground.follows(&NAMES);
    for peer in peers() {
        ground.clusters.light_up(peer)?;
    }
    let pods = pods(ground, |pod| pod.cluster() != HERE);
    // North, with its callers, is one of those that nothing reaches.
    let until = now()?;
    let (trials, all) = (Chance { likely: TRIALS, until }, Chance { likely: 1.0, until });
    let toll = Toll { pods, connects: trials, datagrams: all, by_gateway: all };
    waited?;
    kept.context("the tables without peers")?;
    Ok(over(ground)?.losing(toll))
}

/// Whom it can't reach it can't reach; but nothing may be removed for it, and all of it has to be used at once again.
fn uplink(ground: &mut Ground) -> Result<Healed> {
    let link = ground.clusters.cluster(HERE).client().node().to_owned();
    ground.clusters.fabric().down(&link)?;
    let waited = ground.pass(LASTS);
    let kept = ground.follows(&NAMES);
    ground.clusters.fabric().up(&link)?;
    // What is on the node itself goes on.
    let pods = pods(ground, |pod| pod.node() != link);
    let until = now()?;
    let (connects, datagrams) = (Chance { likely: TRIALS, until }, Chance { likely: 1.0, until });
    let toll = Toll { pods, connects, datagrams, ..Toll::default() };
    waited?;
    kept.context("the tables without a network")?;
    Ok(over(ground)?.losing(toll))
}

/// The callers in west have nothing to do with it, and must not notice.
fn gateway_dark(ground: &mut Ground) -> Result<Healed> {
    drop_on_fabric(ground, "oifname", "\"east-gateway\"", "drop")?;
    ground.pass(Duration::from_secs(5))?;
    nft::clear(ground.clusters.fabric())?;
    let toll = nothing_by_gateway()?;
    Ok(over(ground)?.losing(toll))
}

fn gateway_moved(ground: &mut Ground) -> Result<Healed> {
    let (old, new) = (addresses::gateway(2), addresses::node(2, 8));
    for address in addresses::on_fabric(new) {
        ground.clusters.gateway().address("eth0", address)?;
    }
    ground.clusters.mirroring.gateway = Some(new);
    ground.clusters.publish()?;
    ground.pass(Duration::from_secs(1))?;
    let rules = format!(
        "table inet fault {{
            chain in {{
                type filter hook prerouting priority raw
                ip daddr {} meta l4proto {{ tcp, udp }} th dport {GATEWAY_PORT} drop
                ip6 daddr {} meta l4proto {{ tcp, udp }} th dport {GATEWAY_PORT} drop
            }}
        }}",
        old.v4, old.v6
    );
    nft::apply(ground.clusters.gateway(), &rules)?;
    ground.pass_attempts()?;
    nft::remove_table(ground.clusters.gateway(), "inet fault")?;
    Ok(Healed::after(Duration::from_secs(1)).with("the old address was gone 1 s after the slices said so"))
}

/// A request that is cut off by the end of its pod tells nobody that the pod is gone. Its retry may be the first that is refused;
/// those after it avoid the pod.
fn pod_killed(ground: &mut Ground) -> Result<Healed> {
    let name = victim(ground)?;
    ground.clusters.cluster_mut("east").pod_mut(&name)?.signal(Signal::SIGKILL)?;
    let until = now()?;
    let pods = BTreeSet::from([name]);
    let connects = Chance { likely: share(ground, &pods), until };
    ground.pass(Duration::from_secs(3))?;
    ground.clusters.cluster_mut("east").remove_ended_pods()?;
    ground.clusters.start_pod("east", "frontend", addresses::Network::Flat)?;
    ground.clusters.publish()?;
    let healed = ground.follows(&NAMES)?;
    let datagrams = Chance { likely: 1.0, until: now()? };
    let toll = Toll { pods, connects, datagrams, ..Toll::default() };
    ground.pass_attempts()?;
    Ok(Healed::after(healed).losing(toll))
}

/// Its node goes on accepting connections for it, so its callers wait; its cluster must not be given up for it. The other
/// pods' callers must not notice, and who tries again meets it only by chance.
fn pod_stopped(ground: &mut Ground) -> Result<Healed> {
    let name = victim(ground)?;
    ground.clusters.cluster_mut("east").pod_mut(&name)?.signal(Signal::SIGSTOP)?;
    let waited = ground.pass(LASTS).and_then(|()| ground.trusts_all());
    ground.clusters.cluster_mut("east").pod_mut(&name)?.signal(Signal::SIGCONT)?;
    let pods = BTreeSet::from([name]);
    let until = now()?;
    let (connects, datagrams) = (Chance { likely: share(ground, &pods), until }, Chance { likely: 1.0, until });
    let toll = Toll { pods, connects, datagrams, ..Toll::default() };
    waited?;
    Ok(over(ground)?.losing(toll))
}

/// The network is as before: until all is used again, and until what began before has ended.
fn over(ground: &mut Ground) -> Result<Healed> {
    let begin = std::time::Instant::now();
    ground.well()?;
    let healed = begin.elapsed();
    ground.pass_attempts()?;
    Ok(Healed::after(healed))
}

fn filtered(ground: &mut Ground, side: &str, verdict: &str) -> Result<Healed> {
    drop_on_fabric(ground, side, &names(&links("east")), verdict)?;
    ground.pass(LASTS)?;
    nft::clear(ground.clusters.fabric())?;
    let toll = nothing_by_gateway()?;
    Ok(over(ground)?.losing(toll))
}

/// Until now those had no way who have none but east's gateway, to its pods.
fn nothing_by_gateway() -> Result<Toll> {
    Ok(Toll { by_gateway: Chance { likely: 1.0, until: now()? }, ..Toll::default() })
}

fn drop_on_fabric(ground: &Ground, side: &str, links: &str, verdict: &str) -> Result<()> {
    let rules = format!(
        "table bridge fault {{
            chain forward {{
                type filter hook forward priority 0
                icmpv6 type {{ nd-neighbor-solicit, nd-neighbor-advert }} accept
                {side} {{ {links} }} meta protocol {{ ip, ip6 }} {verdict}
            }}
        }}"
    );
    nft::apply(ground.clusters.fabric(), &rules)
}

fn tc(ground: &Ground, arguments: &[&str]) -> Result<()> {
    let mut command = Command::new("tc");
    let status = ground.clusters.fabric().spawn(command.args(arguments))?.wait().context("wait for tc")?;
    ensure!(status.success(), "tc {}: {status}", arguments.join(" "));
    Ok(())
}

/// The links of a cluster's nodes, on the fabric.
fn links(cluster: &str) -> [String; 2] {
    [format!("{cluster}-1"), format!("{cluster}-2")]
}

/// Links as nft lists them.
fn names(links: &[String]) -> String {
    links.iter().map(|link| format!("\"{link}\"")).collect::<Vec<_>>().join(", ")
}

/// The names of the pods that are called and are such.
fn pods(ground: &Ground, are: impl Fn(&Pod) -> bool) -> BTreeSet<String> {
    let called = ground.clusters.iter().flat_map(|cluster| cluster.pods_of(app()));
    called.filter(|pod| are(pod)).map(|pod| pod.name().to_owned()).collect()
}

/// The part of the called pods that these are.
#[expect(clippy::cast_precision_loss, reason = "counts of pods are small")]
fn share(ground: &Ground, these: &BTreeSet<String>) -> f64 {
    these.len() as f64 / pods(ground, |_| true).len() as f64
}

/// What the called pods are pods of.
fn app() -> &'static str {
    CALLED.strip_suffix("-federated").unwrap_or(CALLED)
}

/// A pod in east.
fn victim(ground: &Ground) -> Result<String> {
    let pod = ground.clusters.cluster("east").pods_of(app()).next().context("east has pods")?;
    Ok(pod.name().to_owned())
}
