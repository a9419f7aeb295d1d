//! T10: how long an endpoint is still picked once its slice says that it isn't ready, while slices of other services
//! change all the time.

use super::{
    Args, Figure,
    node::{BACKEND_PORT, Client, Endpoint, Node, PATIENCE, SERVICE_PORT, manifest, slice, write},
};
use crate::quantiles::Quantiles;
use anyhow::{Context, Result, bail, ensure};
use lab::{
    attempts::ms,
    dial::{Order, Outcome},
};
use std::{
    net::{Ipv4Addr, SocketAddrV4},
    path::Path,
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::{Duration, Instant},
};

/// The service that is asked, and its endpoints, all in one cluster.
const CALLED: &str = "called";
const ADDRESS: Ipv4Addr = Ipv4Addr::new(10, 96, 0, 10);
const CLUSTER: &str = "east";
const BACKENDS: [Ipv4Addr; 4] = [
    Ipv4Addr::new(127, 0, 0, 5),
    Ipv4Addr::new(127, 0, 0, 6),
    Ipv4Addr::new(127, 0, 0, 7),
    Ipv4Addr::new(127, 0, 0, 8),
];
/// Services whose slices change meanwhile, and the endpoints of each.
const OTHERS: u16 = 500;
const ENDPOINTS: u8 = 10;
/// So many answers without the endpoint, one after the other, are no accident: ¾ to this power is below 10⁻¹⁰.
const GONE: u32 = 80;

pub(super) fn play(args: &Args) -> Result<Vec<Figure>> {
    let sizes = ["--max-frontends", "8192", "--max-backends", "65536", "--max-slots", "131072"];
    let mut node = Node::new("changes", &BACKENDS, &sizes)?;
    let endpoints = BACKENDS.map(|address| (CLUSTER, SocketAddrV4::new(address, BACKEND_PORT)));
    // The slice is a file of its own, as it is an object of its own.
    node.write("called.yaml", Some(&manifest(CALLED, ADDRESS, &[])))?;
    node.write("called-slice.yaml", Some(&slice(CALLED, CLUSTER, &endpoints.map(|(_, at)| (*at.ip(), true)))))?;
    for number in 0..OTHERS {
        let address = Ipv4Addr::from(u32::from(Ipv4Addr::new(10, 96, 1, 0)) + u32::from(number));
        node.write(&format!("{}.yaml", other(number)), Some(&manifest(&other(number), address, &[])))?;
        node.write(&format!("{}-slice.yaml", other(number)), Some(&other_slice(number, 0)))?;
    }
    let mut agent = node.start(None)?;
    node.ready(&mut agent)?;
    let mut client = node.client()?;
    let stop = AtomicBool::new(false);
    let (gone, back, rate) = thread::scope(|scope| -> Result<_> {
        let folder = node.manifests.clone();
        let stop = &stop;
        let background = scope.spawn(move || change_others(&folder, args.background, stop));
        let measured = measure(&node, &mut client, args, endpoints);
        stop.store(true, Ordering::Relaxed);
        let rate = background.join().expect("the background does not panic")?;
        let (gone, back) = measured?;
        Ok((gone, back, rate))
    })?;
    let ready = node.ask("status")?["ready"] == true;
    agent.kill()?;
    node.unload(None)?;
    Ok(vec![
        Figure::new("changes of other slices a second", rate).at_least(0.98 * f64::from(args.background)),
        Figure::count("endpoints that ceased to be ready", gone.count as u64),
        Figure::new("until not picked any more: p50, ms", gone.p50).at_most(200.0),
        Figure::new("until not picked any more: p99, ms", gone.p99).at_most(1000.0),
        Figure::new("until not picked any more: max, ms", gone.max),
        Figure::new("until picked again: p50, ms", back.p50),
        Figure::new("until picked again: p99, ms", back.p99),
        Figure::count("agent ready at the end", u64::from(ready)).at_least(1.0),
    ])
}

/// How long it took until each endpoint was not picked any more, and until it was again, in milliseconds.
fn measure(node: &Node, client: &mut Client, args: &Args, endpoints: [Endpoint; 4]) -> Result<(Quantiles, Quantiles)> {
    let (mut gone, mut back) = (Vec::new(), Vec::new());
    for victim in endpoints.iter().map(|(_, address)| *address).cycle().take(args.changes as usize) {
        let publish = |ready: bool| {
            let state = endpoints.map(|(_, address)| (*address.ip(), ready || address != victim));
            node.write("called-slice.yaml", Some(&slice(CALLED, CLUSTER, &state)))
        };
        let began = Instant::now();
        publish(false)?;
        let (mut last, mut others) = (Duration::ZERO, 0);
        while others < GONE {
            let asked = began.elapsed();
            if ask(client)? == victim {
                (last, others) = (asked, 0);
            } else {
                others += 1;
            }
            ensure!(asked < PATIENCE, "{victim} is picked {} s after it ceased to be ready", asked.as_secs());
        }
        gone.push(ms(last));
        let began = Instant::now();
        publish(true)?;
        while ask(client)? != victim {
            ensure!(began.elapsed() < PATIENCE, "{victim} is not picked after it is ready again");
        }
        back.push(ms(began.elapsed()));
    }
    Ok((Quantiles::of(gone), Quantiles::of(back)))
}

/// Asks by a datagram; who answered.
fn ask(client: &mut Client) -> Result<SocketAddrV4> {
    match client.dialler.order(Order::Udp(SocketAddrV4::new(ADDRESS, SERVICE_PORT).into()))? {
        Outcome::Answered { said, .. } => said.parse().with_context(|| format!("understand the answer {said:?}")),
        other => bail!("no answer: {other:?}"),
    }
}

/// Changes the slice of one other service after the other; how many a second.
fn change_others(folder: &Path, rate: u32, stop: &AtomicBool) -> Result<f64> {
    let (began, mut changes) = (Instant::now(), 0_u32);
    while !stop.load(Ordering::Relaxed) {
        if rate == 0 {
            thread::sleep(Duration::from_millis(50));
            continue;
        }
        let number = u16::try_from(changes % u32::from(OTHERS)).expect("there are fewer");
        let round = changes / u32::from(OTHERS);
        let text = other_slice(number, 1 + u8::try_from(round % u32::from(ENDPOINTS)).expect("there are few"));
        write(folder, &format!("{}-slice.yaml", other(number)), Some(&text))?;
        changes += 1;
        let due = Duration::from_secs(1) * changes / rate;
        thread::sleep(due.saturating_sub(began.elapsed()));
    }
    Ok(f64::from(changes) / began.elapsed().as_secs_f64())
}

fn other(number: u16) -> String {
    format!("other-{number}")
}

/// A slice whose endpoint of this number, counted from 1, isn't ready. Nobody listens there, and nobody asks.
fn other_slice(number: u16, unready: u8) -> String {
    let [high, low] = number.to_be_bytes();
    let endpoints = (1..=ENDPOINTS).map(|host| (Ipv4Addr::new(127, 100 + high, low, host), host != unready));
    slice(&other(number), "north", &endpoints.collect::<Vec<_>>())
}
