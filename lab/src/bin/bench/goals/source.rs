//! T14: the manifests are not to be had for a while, and once they are again every endpoint is another one, some services
//! are gone and others are new. (Behind a Kubernetes API it is the server that is gone.)

use super::{
    Args, Figure,
    node::{BACKEND_PORT, Endpoint, Node, Reached, SERVICE_PORT, manifest, write},
};
use anyhow::{Context, Result, ensure};
use lab::attempts::ms;
use std::{
    fs,
    net::{Ipv4Addr, SocketAddrV4},
    ops::Range,
    path::Path,
    thread,
    time::Duration,
};

/// Services before and after, of which one is called all the while.
const BEFORE: Range<u8> = 0..220;
const AFTER: Range<u8> = 20..240;
const CALLED: u8 = 100;
/// Hosts of the endpoints before and after.
const HOSTS: [Range<u8>; 2] = [5..9, 9..13];

pub(super) fn play(args: &Args) -> Result<Vec<Figure>> {
    let backends: Vec<Ipv4Addr> = HOSTS.into_iter().flatten().map(backend).collect();
    let mut node = Node::new("source", &backends, &["--max-frontends", "2048"])?;
    publish(&node.manifests, BEFORE, &HOSTS[0])?;
    let mut agent = node.start(None)?;
    node.ready(&mut agent)?;
    node.converges(&reached(BEFORE, &HOSTS[0]))?;
    let mut client = node.client()?;
    client.dialler.begin(SocketAddrV4::new(address(CALLED), SERVICE_PORT).into(), 1)?;

    let away = node.manifests.with_extension("away");
    fs::rename(&node.manifests, &away).context("take the manifests away")?;
    thread::sleep(Duration::from_secs(args.gone_s / 2));
    let gone = BEFORE.start..AFTER.start;
    for number in gone {
        write(&away, &file(number), None)?;
    }
    publish(&away, AFTER, &HOSTS[1])?;
    thread::sleep(Duration::from_secs(args.gone_s - args.gone_s / 2));
    let kept = node.reached()? == reached(BEFORE, &HOSTS[0]);
    let said = node.ask("status")?;
    ensure!(agent.ended()?.is_none(), "the agent ended without manifests");
    fs::rename(&away, &node.manifests).context("put the manifests back")?;
    let took = node.converges(&reached(AFTER, &HOSTS[1]))?;

    node.ready(&mut agent)?;
    // Audits are made every ten seconds.
    thread::sleep(Duration::from_secs(11));
    let drift = node.ask("status")?["drift"].as_u64().context("the agent counts drift")?;
    let seen = client.dialler.end()?;
    agent.kill()?;
    node.unload(None)?;
    println!("  said meanwhile: {}", said["problems"]);
    Ok(vec![
        Figure::count("seconds without manifests", args.gone_s),
        Figure::count("all that was installed stayed meanwhile", u64::from(kept)).at_least(1.0),
        Figure::new("from their return until nothing is missing or left over, ms", ms(took)).at_most(2000.0),
        Figure::count("tables found altered by audits", drift).none(),
        Figure::count("connects", seen.connects),
        Figure::count("failed connects", seen.failed).none(),
    ])
}

fn publish(folder: &Path, services: Range<u8>, hosts: &Range<u8>) -> Result<()> {
    services.into_iter().try_for_each(|number| {
        let text = manifest(&format!("service-{number}"), address(number), &endpoints(hosts));
        write(folder, &file(number), Some(&text))
    })
}

fn reached(services: Range<u8>, hosts: &Range<u8>) -> Reached {
    let endpoints = endpoints(hosts);
    let reach = |number| {
        let to = endpoints.iter().map(|(_, address)| *address).collect();
        (SocketAddrV4::new(address(number), SERVICE_PORT), to)
    };
    services.map(reach).collect()
}

fn endpoints(hosts: &Range<u8>) -> Vec<Endpoint> {
    let of = |host: u8| if host.is_multiple_of(2) { "east" } else { "north" };
    hosts.clone().map(|host| (of(host), SocketAddrV4::new(backend(host), BACKEND_PORT))).collect()
}

fn file(number: u8) -> String {
    format!("service-{number}.yaml")
}

fn address(number: u8) -> Ipv4Addr {
    Ipv4Addr::new(10, 96, 0, number + 1)
}

fn backend(host: u8) -> Ipv4Addr {
    Ipv4Addr::new(127, 0, 0, host)
}
