//! A service whose pods can't be reached from here, through its cluster's gateway.

use super::{
    Scene,
    shares::{check, shares},
    stage::Stage,
};
use crate::{addresses, manifests::POD_PORT, netns::Netns};
use anyhow::{Result, bail, ensure};
use std::{
    net::{SocketAddr, TcpStream},
    thread,
    time::Duration,
};

/// How long a direct connect is tried. With IPv6 the kernel believes "no route" only at the second SYN, after 1 s.
const DIRECT_TRY: Duration = Duration::from_secs(3);

pub(super) const SCENE: Scene = Scene {
    name: "gateway",
    shows: "north has no route to the pods of analytics in east, and reaches them through east's gateway",
    play,
};

fn play(stage: &mut Stage<'_>) -> Result<()> {
    let pods = stage.clusters.cluster("east").pods_of("analytics").flat_map(|pod| pod.addresses().both());
    let pods: Vec<SocketAddr> = pods.map(|address| SocketAddr::new(address, POD_PORT)).collect();
    let client = stage.clusters.cluster("north").client().netns();
    let refusals: Result<Vec<String>> = thread::scope(|scope| {
        let tries: Vec<_> = pods.iter().map(|&pod| scope.spawn(move || refusal(client, pod))).collect();
        tries.into_iter().map(|tried| tried.join().expect("a try does not panic")).collect()
    });
    stage.said.fact("direct", refusals?);

    stage.ask("north", "analytics-east", false)?;
    stage.ask("north", "analytics-east", true)?;
    stage.watch(Duration::from_secs(3))?;
    let seen = stage.stop()?;
    let report = &seen["north"];
    check("analytics-east from north", &report.by_cluster, &shares([("east", 1.0)]))?;
    let gateway = addresses::gateway(2).both();
    ensure!(
        report.seen_as.iter().all(|address| gateway.contains(address)),
        "requests came from {:?}, not from the gateway",
        report.seen_as
    );
    ensure!(report.by_pod.len() == 2, "the gateway forwarded to {:?} only", report.by_pod.keys());
    stage.said.note("directly: unreachable; by ClusterIP: both pods, through the gateway");
    Ok(())
}

/// Why a connect from `client` straight to `pod` fails; an error if it doesn't.
fn refusal(client: &Netns, pod: SocketAddr) -> Result<String> {
    match client.run(|| TcpStream::connect_timeout(&pod, DIRECT_TRY))? {
        Ok(_) => bail!("north reaches the private pod {pod} directly"),
        Err(error) => Ok(format!("{pod}: {error}")),
    }
}
