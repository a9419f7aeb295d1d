//! `marking`: how long it takes until a cluster that is found down gets no new connections, for all services at once.
//!
//! The verdict is written as the agent writes it. Meanwhile sockets connect to one service after the other on another CPU;
//! which cluster they were sent to shows in the address that they got themselves.

use crate::quantiles::Quantiles;
use anyhow::{Context, Result, ensure};
use lab::{attempts::ms, bpffs, cgroup::Cgroup, cleanup, netns::Netns};
use nix::{
    sched::{CpuSet, sched_setaffinity},
    sys::socket::{AddressFamily, SockFlag, SockType, SockaddrIn, connect, getsockname, socket},
    unistd::Pid,
};
use serde::Serialize;
use std::{
    fs,
    net::{Ipv4Addr, SocketAddrV4},
    os::fd::{AsRawFd, OwnedFd},
    path::PathBuf,
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::{Duration, Instant},
};
use tombolo::{
    datapath::{Kernel, apply, pins::Pins},
    model::{ClusterName, ObjectName, Path},
    plan::plan,
    tables::{Capacity, ClusterVerdict, Desired, DesiredGroup, DesiredService, Installed, Member, Verdicts},
};
use tombolo_ebpf::abi::{FrontendKey, UDP, verdict};

/// The cluster that stays, and the one that goes down.
const CLUSTERS: [&str; 2] = ["west", "east"];
/// The address that a socket gets which is sent to each of them, and by which its backends are reached.
const SOURCES: [Ipv4Addr; 2] = [Ipv4Addr::new(10, 61, 0, 1), Ipv4Addr::new(10, 62, 0, 1)];
const PORT: u16 = 80;
/// Connects to each service by which it is seen that none goes to the cluster that is down.
const CONNECTS: usize = 4;
/// How long sockets connect before and after the verdict.
const AROUND: Duration = Duration::from_millis(20);

#[derive(clap::Args)]
pub(crate) struct Args {
    /// Where the figures go as JSON
    #[arg(long)]
    json: Option<PathBuf>,
    /// Services in the tables
    #[arg(long, default_value_t = 5000)]
    services: u32,
    /// Backends of each service, half of them in the cluster that goes down
    #[arg(long, default_value_t = 10)]
    backends: u32,
    /// How often it goes down
    #[arg(long, default_value_t = 200)]
    runs: u32,
}

/// All of it: what `--json` writes.
#[derive(Serialize)]
struct Figures {
    services: u32,
    backends: u32,
    runs: u32,
    /// Writes that a verdict takes.
    writes: usize,
    /// How long they take, in microseconds.
    write_us: Quantiles,
    /// From the beginning of the write until the last connect began that was sent to the cluster, in microseconds; 0 if
    /// it began before.
    last_chosen_us: Quantiles,
    /// Connects after the write, to all services, and how many of them were sent to the cluster.
    connects_after: usize,
    sent_to_it_after: usize,
}

/// What was seen of one verdict.
struct Seen {
    writes: usize,
    write: Duration,
    last_chosen: Duration,
}

pub(crate) fn run(args: &Args) -> Result<()> {
    lab::netns::need_root()?;
    ensure!(args.services > 0 && args.backends >= 2, "each service needs backends in both clusters");
    ensure!(args.services.saturating_mul(args.backends) < 65_000, "more backends than a cluster has addresses for");
    cleanup::remove_dead()?;
    let network = Netns::anonymous()?;
    for source in SOURCES {
        // A prefix on the loopback device is local as a whole, and this is where sockets are sent from to all of it.
        network.address("lo", format!("{source}/16").parse()?)?;
    }
    let figures = network.run(|| measure(args))??;
    figures.print();
    if let Some(file) = &args.json {
        let text = serde_json::to_string_pretty(&figures).context("write the figures as JSON")?;
        fs::write(file, text + "\n").with_context(|| format!("write {}", file.display()))?;
    }
    cleanup::remove_own()
}

fn measure(args: &Args) -> Result<Figures> {
    let group = Cgroup::new("tombolo")?;
    let pins = Pins::new(bpffs::folder()?);
    pins.create()?;
    let (mut kernel, mut installed) = filled(&pins, &group, args)?;
    let _joined = group.join()?;
    let mut seen = Vec::new();
    let mut sent_to_it_after = 0;
    for _ in 0..args.runs {
        seen.push(mark(&mut kernel, &mut installed, args)?);
        for service in (0..args.services).flat_map(|service| [service; CONNECTS]) {
            sent_to_it_after += usize::from(goes_to(&open()?, service)? == 1);
        }
        judge(&mut kernel, &mut installed, verdict::OK)?;
    }
    let us = |time: Duration| ms(time) * 1000.0;
    Ok(Figures {
        services: args.services,
        backends: args.backends,
        runs: args.runs,
        writes: seen.iter().map(|seen| seen.writes).max().unwrap_or(0),
        write_us: Quantiles::of(seen.iter().map(|seen| us(seen.write))),
        last_chosen_us: Quantiles::of(seen.iter().map(|seen| us(seen.last_chosen))),
        connects_after: seen.len() * args.services as usize * CONNECTS,
        sent_to_it_after,
    })
}

/// Marks the cluster down while another CPU connects.
fn mark(kernel: &mut Kernel, installed: &mut Installed, args: &Args) -> Result<Seen> {
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        let connecting = scope.spawn(|| -> Result<Vec<Instant>> {
            pin_to(1)?;
            let mut chosen = Vec::new();
            for service in (0..args.services).cycle() {
                // A new one each time: a socket that connects again keeps its own address.
                let socket = open()?;
                let began = Instant::now();
                if goes_to(&socket, service)? == 1 {
                    chosen.push(began);
                }
                if stop.load(Ordering::Relaxed) {
                    break;
                }
            }
            Ok(chosen)
        });
        pin_to(0)?;
        thread::sleep(AROUND);
        let began = Instant::now();
        let judged = judge(kernel, installed, verdict::DEAD);
        let write = began.elapsed();
        thread::sleep(AROUND);
        stop.store(true, Ordering::Relaxed);
        let chosen = connecting.join().expect("the connecting thread does not panic")?;
        let last = chosen.last().context("nothing was sent to the cluster while it was up")?;
        Ok(Seen { writes: judged?, write, last_chosen: last.saturating_duration_since(began) })
    })
}

/// Puts a verdict on the cluster into force, as the agent does; by how many writes.
fn judge(kernel: &mut Kernel, installed: &mut Installed, verdict: u8) -> Result<usize> {
    let judged = ClusterVerdict { verdict, ..ClusterVerdict::default() };
    let verdicts = Verdicts { clusters: [(ClusterName(CLUSTERS[1].to_owned()), judged)].into(), ..Verdicts::default() };
    let steps = installed.verdict_steps(&verdicts);
    apply(kernel, &steps)?;
    apply(installed, &steps)?;
    Ok(steps.len())
}

/// The tables with all services, and what is known to be in them.
fn filled(pins: &Pins, group: &Cgroup, args: &Args) -> Result<(Kernel, Installed)> {
    let (frontends, backends) = (2 * args.services, 2 * args.services * args.backends);
    let capacity =
        Capacity { frontends, services: 2 * frontends, slots: 2 * backends, backends, members: backends, pods: 16 };
    let mut kernel = Kernel::load(pins, group.path(), &capacity)?;
    let mut desired = Desired::default();
    for number in 0..args.services {
        let groups = CLUSTERS.into_iter().zip(SOURCES).zip(0..).map(|((cluster, source), half)| {
            let members = (0..args.backends).filter(|backend| backend % 2 == half);
            let first = u32::from(source) + 1 + number * args.backends;
            let members = members.map(|backend| Ipv4Addr::from(first + backend));
            let name = ClusterName(cluster.to_owned());
            let member = |addr: Ipv4Addr| Member {
                addr: addr.to_ipv6_mapped().octets(),
                port: PORT.to_be_bytes(),
                path: Path::Pod,
                cluster: name.clone(),
                weight: 1,
            };
            DesiredGroup { cluster: name.clone(), weight: 1, members: members.map(member).collect() }
        });
        let service = DesiredService {
            name: ObjectName { namespace: "bench".to_owned(), name: format!("service-{number}") },
            affinity_seconds: None,
            exclusive: true,
            no_abort: false,
            draining: Vec::new(),
            tiers: vec![groups.collect()],
        };
        let addr = vip(number).to_ipv6_mapped().octets();
        desired.services.insert(FrontendKey { addr, port: PORT.to_be_bytes(), proto: UDP, pad: 0 }, service);
    }
    let mut installed = Installed::from_maps(kernel.maps.read()?);
    let plan = plan(&desired, &installed, &capacity, &ClusterName(CLUSTERS[0].to_owned()), true);
    ensure!(plan.refused.is_empty(), "no room: {:?}", plan.refused.first());
    apply(&mut kernel, &plan.steps)?;
    apply(&mut installed, &plan.steps)?;
    Ok((kernel, installed))
}

fn vip(number: u32) -> Ipv4Addr {
    Ipv4Addr::from(u32::from(Ipv4Addr::new(10, 96, 0, 1)) + number)
}

fn open() -> Result<OwnedFd> {
    socket(AddressFamily::Inet, SockType::Datagram, SockFlag::SOCK_CLOEXEC, None).context("open a socket")
}

/// Connects to a service; the number of the cluster that the socket was sent to.
fn goes_to(socket: &OwnedFd, service: u32) -> Result<usize> {
    let to = SocketAddrV4::new(vip(service), PORT);
    connect(socket.as_raw_fd(), &SockaddrIn::from(to)).with_context(|| format!("connect to {to}"))?;
    let own: SockaddrIn = getsockname(socket.as_raw_fd()).context("ask for the own address")?;
    let own = own.ip();
    SOURCES.iter().position(|source| *source == own).with_context(|| format!("{to} led to neither cluster: {own}"))
}

/// Has the calling thread run on this CPU; on a machine with fewer, wherever it may.
fn pin_to(cpu: usize) -> Result<()> {
    let mut cpus = CpuSet::new();
    cpus.set(cpu).context("name a CPU")?;
    match sched_setaffinity(Pid::from_raw(0), &cpus) {
        Ok(()) | Err(nix::errno::Errno::EINVAL) => Ok(()),
        Err(error) => Err(error).context("choose a CPU"),
    }
}

impl Figures {
    fn print(&self) {
        let Self { services, backends, runs, writes, connects_after, sent_to_it_after, .. } = self;
        println!("{services} services x {backends} backends, a cluster marked down {runs} times, by {writes} write");
        let row = |name: &str, of: &Quantiles| {
            println!("{name:<52}{:>9.1}{:>9.1}{:>9.1}", of.p50, of.p99, of.max);
        };
        println!("{:<52}{:>9}{:>9}{:>9}", "microseconds", "p50", "p99", "max");
        row("the write", &self.write_us);
        row("until the last connect began that was sent there", &self.last_chosen_us);
        println!("{sent_to_it_after} of {connects_after} later connects were sent there");
    }
}
