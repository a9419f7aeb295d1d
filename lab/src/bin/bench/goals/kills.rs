//! T22: an agent is killed after each of its writes in turn, while it carries out a change; so is the next one, which
//! finds half of it.

use super::{
    Args, Figure,
    node::{BACKEND_PORT, Endpoint, Node, PATIENCE, Reached, SERVICE_PORT, manifest},
};
use anyhow::{Context, Result};
use lab::kills::{Change, Struck, kill_after};
use std::{
    collections::BTreeMap,
    net::{Ipv4Addr, SocketAddrV4},
    thread,
    time::{Duration, Instant},
};

/// The service that is called all the time.
const CALLED: &str = "called";
/// Services that come and go.
const OTHERS: [&str; 4] = ["first", "second", "third", "fourth"];
/// Backends that there are.
const BACKENDS: u8 = 8;
/// Clusters that they are in, one after the other.
const CLUSTERS: [&str; 3] = ["west", "east", "north"];
/// An agent that has written nothing for so long is through: backends that were left are taken out 2 s after a change,
/// at the next tick.
const QUIET: Duration = Duration::from_secs(6);
/// Connects that there have to be in all.
const CONNECTS: u32 = 100_000;
/// How often agents have to be killed for the goal; with fewer, connects don't count.
const KILLS: u32 = 200;
/// How soon after its start the next agent has to have finished.
const CONVERGED_MS: f64 = 5000.0;

/// What there is to be: endpoints by service. A service that isn't named isn't there.
type State = BTreeMap<&'static str, Vec<Endpoint>>;

pub(super) fn play(args: &Args) -> Result<Vec<Figure>> {
    let backends: Vec<Ipv4Addr> = (0..BACKENDS).map(backend).collect();
    let sizes = ["--max-frontends", "1024", "--max-backends", "4096", "--max-slots", "8192"];
    let mut node = Node::new("kills", &backends, &sizes)?;
    let mut random = Random(args.seed.max(1));
    let mut states = [random.state(), random.state()];
    publish(&node, &states[0])?;
    let mut agent = node.start(None)?;
    node.ready(&mut agent)?;
    let mut client = node.client()?;
    client.dialler.begin(SocketAddrV4::new(address(CALLED), SERVICE_PORT).into(), 1)?;

    let mut killed = BTreeMap::<Change, u32>::new();
    let (mut times, mut writes, mut slowest, mut drift) = (0, Vec::new(), Duration::ZERO, 0);
    while times < args.kills {
        // The one change and the other way round, in turns.
        let (mut number, mut starts_write) = (0, true);
        while times < args.kills {
            number += 1;
            states.swap(0, 1);
            let struck = kill_after(agent.id(), number, QUIET, || publish(&node, &states[0]))?;
            let after = match struck {
                Struck::Killed(after) => after,
                Struck::Done(all) => {
                    writes.push(all);
                    break;
                }
            };
            times += 1;
            *killed.entry(after).or_default() += 1;
            agent.kill()?;
            if starts_write && times < args.kills {
                agent = node.start_waiting()?;
                match kill_after(agent.id(), number, QUIET, || node.go())? {
                    Struck::Killed(after) => {
                        times += 1;
                        *killed.entry(after).or_default() += 1;
                    }
                    // A start writes less than a change: it will not come to this number any more.
                    Struck::Done(_) => starts_write = false,
                }
                agent.kill()?;
            }
            let began = Instant::now();
            agent = node.start(None)?;
            node.converges(&reached(&states[0])).with_context(|| format!("after write {number}"))?;
            node.ready(&mut agent)?;
            slowest = slowest.max(began.elapsed());
            drift += node.ask("status")?["drift"].as_u64().context("the agent counts drift")?;
        }
        states[1] = random.state();
    }
    let connects = if args.kills < KILLS { 0 } else { CONNECTS };
    // The rest of the connects, with nothing going on.
    let mut seen = client.dialler.end()?;
    let began = Instant::now();
    while seen.connects < connects.into() && began.elapsed() < PATIENCE {
        client.dialler.begin(SocketAddrV4::new(address(CALLED), SERVICE_PORT).into(), 1)?;
        thread::sleep(Duration::from_secs(5));
        seen.add(client.dialler.end()?);
    }
    agent.kill()?;
    node.unload(None)?;
    println!("  changes of {writes:?} writes were gone through; killed after:");
    for (change, times) in &killed {
        println!("    {times:>4} {change}");
    }
    for failure in &seen.failures {
        println!("    failed: {failure}");
    }
    Ok(vec![
        Figure::count("agents killed right after a write", times.into()).at_least(f64::from(args.kills)),
        Figure::count("connects meanwhile", seen.connects).at_least(f64::from(connects)),
        Figure::count("failed connects and resets", seen.failed).none(),
        Figure::new("slowest start of the next agent until all is right, ms", slowest.as_secs_f64() * 1000.0)
            .at_most(CONVERGED_MS),
        Figure::count("tables found altered by audits", drift).none(),
    ])
}

/// Writes the manifests that make a state.
fn publish(node: &Node, state: &State) -> Result<()> {
    for name in [CALLED].into_iter().chain(OTHERS) {
        let text = state.get(name).map(|endpoints| manifest(name, address(name), endpoints));
        node.write(&format!("{name}.yaml"), text.as_deref())?;
    }
    Ok(())
}

/// What the kernel is to hold in a state.
fn reached(state: &State) -> Reached {
    let reach = |(name, endpoints): (&&'static str, &Vec<Endpoint>)| {
        let at = SocketAddrV4::new(address(name), SERVICE_PORT);
        (at, endpoints.iter().map(|(_, endpoint)| *endpoint).collect())
    };
    state.iter().map(reach).collect()
}

fn address(service: &str) -> Ipv4Addr {
    let number = OTHERS.iter().position(|name| *name == service).map_or(10, |number| 11 + number);
    Ipv4Addr::new(10, 96, 0, u8::try_from(number).expect("there are few services"))
}

fn backend(number: u8) -> Ipv4Addr {
    Ipv4Addr::new(127, 0, 0, 5 + number)
}

/// xorshift64*.
struct Random(u64);

impl Random {
    fn draw(&mut self, below: u8) -> u8 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        let drawn = self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33;
        u8::try_from(drawn % u64::from(below)).expect("it is below a u8")
    }

    /// Some endpoints of the service that is called, and perhaps some of the others'.
    fn state(&mut self) -> State {
        let mut state = State::new();
        for name in [CALLED].into_iter().chain(OTHERS) {
            if name != CALLED && self.draw(3) == 0 {
                continue;
            }
            let chosen = 1 + self.draw(u8::MAX);
            let endpoints = (0..BACKENDS).filter(|number| chosen & (1 << number) != 0);
            let of = |number: u8| CLUSTERS[usize::from(number) % CLUSTERS.len()];
            state.insert(
                name,
                endpoints.map(|number| (of(number), SocketAddrV4::new(backend(number), BACKEND_PORT))).collect(),
            );
        }
        state
    }
}
