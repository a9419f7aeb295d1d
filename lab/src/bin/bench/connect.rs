//! `connect`: what each hook costs per call, contenders taking turns so that the machine's moods hit all of them alike.

use crate::{
    loops::Loop,
    programs::Programs,
    samples::{Quoted, Samples},
};
use anyhow::{Context, Result};
use aya::sys::{Stats, enable_stats};
use lab::{bpffs, cgroup::Cgroup, cleanup, netns::Netns};
use serde::Serialize;
use std::{
    collections::BTreeMap,
    fs,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, UdpSocket},
    path::PathBuf,
    thread,
};
use tombolo::{
    datapath::{Kernel, apply, pins::Pins},
    model::{ClusterName, ObjectName, Path},
    plan::plan,
    tables::{Capacity, Desired, DesiredGroup, DesiredService, Installed, Member},
};
use tombolo_ebpf::abi::{FrontendKey, TCP, UDP};

/// What all backends listen on.
const BACKEND_PORT: u16 = 18080;
/// What all services listen on.
const SERVICE_PORT: u16 = 80;

#[derive(clap::Args)]
pub(crate) struct Args {
    /// The object with the empty programs.
    #[arg(long)]
    floor: PathBuf,
    /// Where the figures go as JSON.
    #[arg(long)]
    json: Option<PathBuf>,
    /// Services in the tables, each for TCP and for UDP.
    #[arg(long, default_value_t = 5000)]
    services: u32,
    /// Backends of each service.
    #[arg(long, default_value_t = 10)]
    backends: u32,
    /// Samples of each contender.
    #[arg(long, default_value_t = 41)]
    samples: usize,
    /// Rounds of a sample.
    #[arg(long, default_value_t = 1000)]
    rounds: usize,
}

/// One row: a loop, the hook it calls, and which programs it meets.
struct Contender {
    name: &'static str,
    family: &'static str,
    hook: &'static str,
    is_floor: bool,
    work: Loop,
    samples: Samples,
}

/// The figures of one kind of loop, in nanoseconds per run, medians; all but the floor are net of it.
#[derive(Debug, Default, Serialize)]
struct Figures(BTreeMap<String, f64>);

pub(crate) fn run(args: &Args) -> Result<()> {
    lab::netns::need_root()?;
    cleanup::remove_dead()?;
    let network = network()?;
    network.run(|| measure(args))??;
    cleanup::remove_own()
}

/// A namespace with nothing but the loopback device: what isn't translated goes nowhere.
fn network() -> Result<Netns> {
    let network = Netns::anonymous()?;
    network.up("lo")?;
    // Misses inside of the service range need a way to go, or connect() ends early.
    network.address("lo", "10.96.0.0/12".parse()?)?;
    network.address("lo", "fd00:96::1/64".parse()?)?;
    network.address("lo", "fd00:127::/64".parse()?)?;
    Ok(network)
}

fn measure(args: &Args) -> Result<()> {
    let floor_group = Cgroup::new("floor")?;
    let group = Cgroup::new("tombolo")?;
    let (_object, floor) = Programs::floor(&args.floor, &floor_group)?;
    let pins = Pins::new(bpffs::folder()?);
    pins.create()?;
    let mut kernel = Kernel::load(&pins, group.path(), &capacity(args))?;
    fill(&mut kernel, args)?;
    let programs = Programs::pinned(&pins)?;
    serve()?;
    let _stats = enable_stats(Stats::RunTime).context("switch run-time statistics on")?;
    let mut contenders = contenders(args);
    for _ in 0..args.samples {
        // Moving to the other cgroup takes tens of milliseconds, so all that meet the same programs follow each other.
        sample(&mut contenders, true, &floor_group, &floor, args.rounds)?;
        sample(&mut contenders, false, &group, &programs, args.rounds)?;
    }
    report(args, &contenders, &kernel)
}

/// One sample of each contender that meets `programs`, from sockets that belong to `cgroup`.
fn sample(all: &mut [Contender], is_floor: bool, cgroup: &Cgroup, programs: &Programs, rounds: usize) -> Result<()> {
    let _joined = cgroup.join()?;
    for contender in all.iter_mut().filter(|contender| contender.is_floor == is_floor) {
        let before = programs.ran(contender.hook)?;
        contender.work.run(rounds).with_context(|| format!("{} {}", contender.family, contender.name))?;
        let ran = programs.ran(contender.hook)?.since(before);
        contender.samples.push(ran.with_context(|| format!("{} did not run", contender.hook))?);
    }
    Ok(())
}

fn report(args: &Args, contenders: &[Contender], kernel: &Kernel) -> Result<()> {
    let mut figures: BTreeMap<&str, Figures> = BTreeMap::new();
    println!(
        "{} services x {} backends, {} samples of {} calls, ns per call: median (10th percentile)",
        args.services, args.backends, args.samples, args.rounds
    );
    for contender in contenders {
        let quoted = contender.samples.quoted();
        let quoted = if contender.is_floor { quoted } else { quoted.net_of(floor_of(contenders, contender)?) };
        let what = if contender.is_floor { "the empty program" } else { "net of the floor" };
        println!("{:12} {:14} {:6.1} ({:.1}) {what}", contender.family, contender.name, quoted.median, quoted.p10);
        let family = figures.entry(contender.family).or_default();
        family.0.insert(format!("{}_ns", contender.name), round(quoted.median));
    }
    for (hook, instructions) in &kernel.verified {
        println!("{hook:14} {instructions:6} instructions processed by the verifier");
    }
    if let Some(path) = &args.json {
        let text = serde_json::to_string_pretty(&figures).context("write JSON")?;
        fs::write(path, text + "\n").with_context(|| format!("write {}", path.display()))?;
    }
    Ok(())
}

fn floor_of(contenders: &[Contender], of: &Contender) -> Result<Quoted> {
    let floor = contenders.iter().find(|other| other.is_floor && other.family == of.family);
    Ok(floor.with_context(|| format!("no floor for {}", of.family))?.samples.quoted())
}

fn round(ns: f64) -> f64 {
    (ns * 10.0).round() / 10.0
}

/// Every loop, each family with its floor first.
fn contenders(args: &Args) -> Vec<Contender> {
    let vip = |i: u32| SocketAddr::new(vip4(i).into(), SERVICE_PORT);
    let vip6 = |i: u32| SocketAddr::new(vip6(i).into(), SERVICE_PORT);
    let direct = SocketAddr::from(([127, 0, 0, 1], BACKEND_PORT));
    let direct6 = SocketAddr::new(Ipv6Addr::LOCALHOST.into(), BACKEND_PORT);
    let mapped = |addr: SocketAddr| match addr.ip() {
        IpAddr::V4(ip) => SocketAddr::new(ip.to_ipv6_mapped().into(), addr.port()),
        IpAddr::V6(_) => addr,
    };
    // Odd addresses between the services', which have even ones.
    let inside = SocketAddr::new(Ipv4Addr::from(u32::from(vip4(7)) + 1).into(), SERVICE_PORT);
    let inside_open = SocketAddr::new(inside.ip(), BACKEND_PORT);
    let mut random = 1_u32;
    let random: Vec<_> = (0..args.rounds)
        .map(|_| {
            random = random.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            vip((random >> 8) % args.services)
        })
        .collect();
    let row = |family, name, hook, is_floor, work| Contender {
        name,
        family,
        hook,
        is_floor,
        work,
        samples: Samples::default(),
    };
    let udp = |name, to: Vec<SocketAddr>| row("udp", name, "connect4", false, Loop::UdpConnect(to));
    let tcp = |name, to: Vec<SocketAddr>| row("tcp", name, "connect4", false, Loop::TcpConnect(to));
    vec![
        row("udp", "floor", "connect4", true, Loop::UdpConnect(vec![direct])),
        udp("hit", vec![vip(0)]),
        udp("hit_random", random.clone()),
        row("udp", "new_socket", "connect4", false, Loop::UdpNewSocket(vip(0))),
        udp("miss_inside", vec![inside]),
        udp("miss_outside", vec![direct]),
        row("tcp", "floor", "connect4", true, Loop::TcpConnect(vec![direct])),
        tcp("hit", vec![vip(0)]),
        tcp("hit_random", random),
        // Every TCP connect has a new socket: the same as a hit, measured again.
        tcp("new_socket", vec![vip(1)]),
        tcp("miss_inside", vec![inside_open]),
        tcp("miss_outside", vec![direct]),
        row("udp6", "floor", "connect6", true, Loop::UdpConnect(vec![direct6])),
        row("udp6", "hit", "connect6", false, Loop::UdpConnect(vec![vip6(0)])),
        row("udp6", "hit_mapped", "connect6", false, Loop::UdpConnect(vec![mapped(vip(0))])),
        row("udp6", "miss_outside", "connect6", false, Loop::UdpConnect(vec![direct6])),
        row("udp6", "miss_mapped", "connect6", false, Loop::UdpConnect(vec![mapped(direct)])),
        row("sendmsg4", "floor", "sendmsg4", true, Loop::UdpPingPong(direct)),
        row("sendmsg4", "hit", "sendmsg4", false, Loop::UdpPingPong(vip(0))),
        row("sendmsg4", "miss_outside", "sendmsg4", false, Loop::UdpPingPong(direct)),
        row("recvmsg4", "floor", "recvmsg4", true, Loop::UdpPingPong(direct)),
        row("recvmsg4", "hit", "recvmsg4", false, Loop::UdpPingPong(vip(0))),
        row("recvmsg4", "miss_outside", "recvmsg4", false, Loop::UdpPingPong(direct)),
        row("getpeername4", "floor", "getpeername4", true, Loop::GetPeerName(direct)),
        row("getpeername4", "hit", "getpeername4", false, Loop::GetPeerName(vip(0))),
        row("getpeername4", "miss", "getpeername4", false, Loop::GetPeerName(direct)),
    ]
}

fn vip4(i: u32) -> Ipv4Addr {
    Ipv4Addr::from(u32::from(Ipv4Addr::new(10, 96, 0, 2)) + 2 * i)
}

fn vip6(i: u32) -> Ipv6Addr {
    Ipv6Addr::from(u128::from(Ipv6Addr::new(0xfd00, 0x96, 0, 0, 0, 0, 1, 0)) + u128::from(i))
}

fn capacity(args: &Args) -> Capacity {
    let frontends = 4 * args.services;
    let slots = 4 * frontends * args.backends;
    Capacity { frontends, services: 2 * frontends, slots, backends: slots, members: slots, pods: 16 }
}

/// As many services as asked for, on both protocols, and one on IPv6.
fn fill(kernel: &mut Kernel, args: &Args) -> Result<()> {
    let own = ClusterName("west".to_owned());
    let mut desired = Desired::default();
    for i in 0..args.services {
        let first = u32::from(Ipv4Addr::new(127, 1, 0, 1)) + i * args.backends;
        let members = (0..args.backends).map(|b| Ipv4Addr::from(first + b).to_ipv6_mapped());
        let members: Vec<_> = members.map(|addr| member(addr, &own)).collect();
        for proto in [TCP, UDP] {
            insert(&mut desired, vip4(i).to_ipv6_mapped(), proto, i, members.clone(), &own);
        }
    }
    let backend = Ipv6Addr::new(0xfd00, 0x127, 0, 0, 0, 0, 0, 0);
    let members: Vec<_> = (0..args.backends).map(|_| member(backend, &own)).take(1).collect();
    insert(&mut desired, vip6(0), UDP, 0, members, &own);
    let mut installed = Installed::from_maps(kernel.maps.read()?);
    let plan = plan(&desired, &installed, &capacity(args), &own, true);
    anyhow::ensure!(plan.refused.is_empty(), "no room: {:?}", plan.refused.first());
    apply(kernel, &plan.steps)?;
    apply(&mut installed, &plan.steps)
}

fn insert(desired: &mut Desired, addr: Ipv6Addr, proto: u8, i: u32, members: Vec<Member>, own: &ClusterName) {
    let service = DesiredService {
        name: ObjectName { namespace: "bench".to_owned(), name: format!("service-{i}") },
        affinity_seconds: None,
        exclusive: true,
        no_abort: false,
        draining: Vec::new(),
        tiers: vec![vec![DesiredGroup { cluster: own.clone(), weight: 1, members }]],
    };
    let key = FrontendKey { addr: addr.octets(), port: SERVICE_PORT.to_be_bytes(), proto, pad: 0 };
    desired.services.insert(key, service);
}

fn member(addr: Ipv6Addr, own: &ClusterName) -> Member {
    let port = BACKEND_PORT.to_be_bytes();
    Member { addr: addr.octets(), port, path: Path::Pod, cluster: own.clone(), weight: 1 }
}

/// Takes connections and drops them; answers datagrams from the address that they came to, since each backend has
/// its own.
fn serve() -> Result<()> {
    let listener = TcpListener::bind(("0.0.0.0", BACKEND_PORT)).context("listen")?;
    thread::spawn(move || listener.incoming().for_each(drop));
    let echo = |address: IpAddr| -> Result<()> {
        let socket = UdpSocket::bind((address, BACKEND_PORT)).with_context(|| format!("listen on {address}"))?;
        thread::spawn(move || {
            let mut data = [0; 64];
            while let Ok((length, from)) = socket.recv_from(&mut data) {
                if socket.send_to(&data[..length], from).is_err() {
                    return;
                }
            }
        });
        Ok(())
    };
    echo(Ipv4Addr::LOCALHOST.into())?;
    let first = u32::from(Ipv4Addr::new(127, 1, 0, 1));
    (0..10).try_for_each(|b| echo(Ipv4Addr::from(first + b).into()))
}
