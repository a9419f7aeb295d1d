//! T23: an agent of another version, whose maps may be of another layout, hands over to this one's, and back. Meanwhile
//! sockets connect ten thousand times a second, which only a translated connect survives: there is no way to the address.

use super::{
    Args, Figure,
    node::{BACKEND_PORT, Node, Reached, SERVICE_PORT, manifest},
};
use anyhow::{Context, Result, ensure};
use aya::{maps::loaded_maps, programs::loaded_programs};
use lab::{attempts::ms, process::Process};
use std::{
    collections::BTreeSet,
    fs,
    net::{Ipv4Addr, SocketAddrV4},
    path::Path,
    thread,
    time::{Duration, Instant},
};

const ADDRESS: Ipv4Addr = Ipv4Addr::new(10, 96, 0, 10);
const BACKENDS: [Ipv4Addr; 2] = [Ipv4Addr::new(127, 0, 0, 5), Ipv4Addr::new(127, 0, 0, 6)];
/// Connects a second that probe.
const RATE: u32 = 10_000;
/// How often it goes there and back.
const ROUNDS: usize = 3;
/// How long the kernel may take to let go of what nobody holds.
const LET_GO: Duration = Duration::from_secs(3);

/// Ids of programs and maps.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Objects {
    programs: BTreeSet<u32>,
    maps: BTreeSet<u32>,
}

pub(super) fn play(args: &Args) -> Result<Vec<Figure>> {
    let mut node = Node::new("upgrade", &BACKENDS, &["--max-frontends", "1024"])?;
    let endpoints = BACKENDS.map(|address| ("east", SocketAddrV4::new(address, BACKEND_PORT)));
    node.write("called.yaml", Some(&manifest("called", ADDRESS, &endpoints)))?;
    let called = SocketAddrV4::new(ADDRESS, SERVICE_PORT);
    let reached = Reached::from([(called, endpoints.map(|(_, address)| address).into())]);

    let other = args.other.as_deref();
    let mut agent = node.start(other)?;
    node.ready(&mut agent)?;
    let mut held = Objects::of(&agent)?;
    let mut all = held.clone();
    let (mut probing, mut calling) = (node.client()?, node.client()?);
    probing.dialler.probe(called.into(), RATE)?;
    calling.dialler.begin(called.into(), 1)?;
    let (mut slowest, mut orphaned) = (Duration::ZERO, 0);
    for program in [None, other].into_iter().cycle().take(2 * ROUNDS) {
        let status = agent.stop(Duration::from_secs(10))?;
        ensure!(status.is_some_and(|status| status.success()), "the agent ended with {status:?}");
        agent = node.start(program)?;
        slowest = slowest.max(node.ready(&mut agent)?);
        let now = Objects::of(&agent)?;
        orphaned += held.without(&now).left_after(LET_GO)?;
        all.add(&now);
        held = now;
        if program.is_none() {
            node.converges(&reached)?;
        }
    }
    let (probed, called) = (probing.dialler.end_probe()?, calling.dialler.end()?);
    agent.kill()?;
    node.unload(other)?;
    orphaned += all.left_after(LET_GO)?;
    for failure in probed.failures.iter().chain(&called.failures).take(5) {
        println!("  failed: {failure}");
    }
    println!("  the other version: {}", other.map_or_else(|| "this one".to_owned(), |file| file.display().to_string()));
    Ok(vec![
        Figure::count("times that the one took over from the other", 2 * ROUNDS as u64),
        Figure::new("slowest until ready, ms", ms(slowest)),
        Figure::count("connects that probed", probed.probes),
        Figure::new("of them a second", probed.rate()),
        Figure::new("longest pause between two of them, ms", ms(probed.longest_pause)),
        Figure::count("of them failed", probed.failed).none(),
        Figure::new("unattached, µs", ms(probed.unattached) * 1000.0).none(),
        Figure::count("connects with an answer", called.connects),
        Figure::count("of them failed", called.failed - called.other_peer).none(),
        Figure::count("of them shown their backend as the peer", called.other_peer),
        Figure::count("programs and maps that nobody holds any more and that stayed", orphaned).none(),
    ])
}

impl Objects {
    /// What a process holds.
    fn of(process: &Process) -> Result<Self> {
        let mut held = Self::default();
        let folder = format!("/proc/{}/fdinfo", process.id());
        for entry in fs::read_dir(Path::new(&folder)).context("list an agent's descriptors")? {
            // One may have been closed meanwhile.
            let Ok(info) = fs::read_to_string(entry.context("list an agent's descriptors")?.path()) else { continue };
            let id = |field: &str| info.lines().find_map(|line| line.strip_prefix(field)?.trim().parse::<u32>().ok());
            held.programs.extend(id("prog_id:"));
            held.maps.extend(id("map_id:"));
        }
        ensure!(!held.programs.is_empty() && !held.maps.is_empty(), "the agent holds nothing: {held:?}");
        Ok(held)
    }

    fn add(&mut self, other: &Self) {
        self.programs.extend(&other.programs);
        self.maps.extend(&other.maps);
    }

    fn without(&self, other: &Self) -> Self {
        Self { programs: &self.programs - &other.programs, maps: &self.maps - &other.maps }
    }

    /// How many of them the kernel still has after a while.
    fn left_after(&self, patience: Duration) -> Result<u64> {
        let began = Instant::now();
        loop {
            let programs: BTreeSet<u32> = loaded_programs().filter_map(|info| Some(info.ok()?.id())).collect();
            let maps: BTreeSet<u32> = loaded_maps().filter_map(|info| Some(info.ok()?.id())).collect();
            let left = Self { programs: &self.programs & &programs, maps: &self.maps & &maps };
            let count = left.programs.len() + left.maps.len();
            if count == 0 || began.elapsed() > patience {
                if count > 0 {
                    println!("  stayed: {left:?}");
                }
                return u64::try_from(count).context("count what stayed");
            }
            thread::sleep(Duration::from_millis(20));
        }
    }
}
