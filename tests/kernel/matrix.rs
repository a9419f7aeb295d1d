//! Every kind of socket against every kind of destination: where it really went, what it was told, whom it heard from.

#[path = "matrix/echo.rs"]
mod echo;
#[path = "matrix/kinds.rs"]
mod kinds;
#[path = "matrix/world.rs"]
mod world;

use crate::ground::Ground;
use kinds::{Class, Kind, Place, Seen};
use std::{fs, io, net::SocketAddr, time::Instant};
use world::{CLIENT4, Destination, Expected, HOME};

/// Dials in a cell where a wrong choice could be right by chance.
const DIALS: usize = 8;

#[test]
fn every_kind_of_socket_ends_where_it_should_and_sees_what_it_dialled() {
    let Some(mut ground) = Ground::new() else { return };
    let start = Instant::now();
    let _world = world::build(&mut ground);
    let built = start.elapsed();
    let place = Place { own: CLIENT4, home: HOME, servers: &ground.servers };

    let (mut lines, mut failures, mut cells, mut skipped) = (vec![heading()], vec![], 0, 0);
    for kind in kinds::all() {
        let missing = ground.client.run(kind.missing);
        if let Some(reason) = &missing {
            println!("skipped: {}: {reason}", kind.name);
            skipped += Destination::ALL.len();
        }
        let mut line = format!("{:29}", kind.name);
        for destination in Destination::ALL {
            let shown = if missing.is_some() {
                "-"
            } else {
                cells += 1;
                match ground.client.run(|| check(&kind, destination, &place)) {
                    Ok(()) => "ok",
                    Err(error) => {
                        failures.push(format!("{}, {}: {error}", kind.name, destination.name()));
                        "FAILED"
                    }
                }
            };
            line += &format!("{shown:8}");
        }
        lines.push(line.trim_end().to_owned());
    }
    println!("{}", lines.join("\n"));
    println!("{cells} cells, {skipped} skipped, {:?} (of these {built:?} to build the world)", start.elapsed());
    let fast_opens = ground.client.run(fast_opens);
    println!("MPTCP's getpeername shows the backend: the hook sees the subflow, not the socket that is asked");
    println!("{fast_opens} connections carried data in their first packet");
    assert!(failures.is_empty(), "{} of {cells} cells failed:\n{}", failures.len(), failures.join("\n"));
    assert!(cells >= 120, "only {cells} cells");
    assert!(
        fast_opens > 0 || ground.client.run(kinds::no_fast_open).is_some(),
        "Fast Open fell back to ordinary opens"
    );
}

/// How often this namespace's clients had data taken with a SYN.
fn fast_opens() -> u64 {
    let counters = fs::read_to_string("/proc/thread-self/net/netstat").unwrap();
    // Pairs of lines: names, then numbers.
    let mut lines = counters.lines().filter(|line| line.starts_with("TcpExt:"));
    let (names, numbers) = (lines.next().unwrap(), lines.next().unwrap());
    let mut counters = names.split(' ').zip(numbers.split(' '));
    counters.find(|(name, _)| *name == "TCPFastOpenActive").map_or(0, |(_, number)| number.parse().unwrap())
}

fn heading() -> String {
    let names: String = Destination::ALL.into_iter().map(|destination| format!("{:8}", destination.name())).collect();
    format!("{:29}{}", "", names.trim_end())
}

/// One cell.
fn check(kind: &Kind, destination: Destination, place: &Place<'_>) -> Result<(), String> {
    let dialled = destination.dialled(kind.family);
    let expected = destination.expected(kind.family, kind.class != Class::Untouched);
    let dials = if destination == Destination::Draining { DIALS } else { 1 };
    for _ in 0..dials {
        match (expected, (kind.dial)(place, dialled)) {
            (Expected::Server(server), Ok(seen)) => check_seen(kind, destination, place, server, &seen)?,
            (Expected::Refused, Err(error)) if error.raw_os_error() == Some(libc::ECONNREFUSED) => {}
            (expected, result) => return Err(format!("expected {expected:?}, got {}", show(result))),
        }
    }
    Ok(())
}

fn check_seen(
    kind: &Kind,
    destination: Destination,
    place: &Place<'_>,
    server: SocketAddr,
    seen: &Seen,
) -> Result<(), String> {
    let dialled = destination.dialled(kind.family);
    if seen.server != server {
        return Err(format!("served by {} instead of {server}", seen.server));
    }
    let peer = match kind.class {
        Class::Connected | Class::Untouched => Some(dialled),
        Class::Mptcp => Some(destination.backend(kind.family).unwrap_or(dialled)),
        Class::Unconnected => None,
        Class::Aside => Some(place.home),
    };
    if seen.peer != peer {
        return Err(format!("getpeername says {:?} instead of {peer:?}", seen.peer));
    }
    let source = if kind.class == Class::Aside { place.home } else { dialled };
    match seen.sources.iter().find(|seen| **seen != source) {
        Some(wrong) => Err(format!("an answer came from {wrong} instead of {source}")),
        None => Ok(()),
    }
}

fn show(result: io::Result<Seen>) -> String {
    match result {
        Ok(seen) => format!("{seen:?}"),
        Err(error) => error.to_string(),
    }
}
