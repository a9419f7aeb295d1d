//! A client that dials what it is told to, from the cgroup and the network namespace that it was started in, and says
//! what its sockets saw. One JSON document a line asks, one answers.
//!
//! Where a pod is in its own cgroup, its sockets have to be made and used by a process that is in it: hence a program.

mod probe;

pub use probe::Probed;

use crate::{cgroup::Cgroup, netns::Netns, process::Process};
use anyhow::{Context, Result, bail};
use probe::Probing;
use serde::{Deserialize, Serialize};
use std::{
    collections::BTreeMap,
    ffi::OsStr,
    io::{self, BufRead, BufReader, Read, Write},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream, UdpSocket},
    process::{ChildStdin, ChildStdout, Stdio},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

/// How long a connect, and then an answer, may take.
const PATIENCE: Duration = Duration::from_secs(2);
/// Failures of a loop that are kept with their text.
const KEPT: usize = 5;

/// What to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Order {
    /// Connect by TCP and read what the server says, up to its end.
    Tcp(SocketAddr),
    /// Send a datagram from an unconnected socket, and wait for the answer.
    Udp(SocketAddr),
    /// Likewise from a connected socket.
    ConnectedUdp(SocketAddr),
    /// Ask from one connected socket, which is kept, as resolvers do: only if a send fails is it connected again.
    Resolve(SocketAddr),
    /// Do `Tcp`, and keep the connection open until `Release`.
    Hold(SocketAddr),
    /// Close the connections held.
    Release,
    /// Do `Tcp` again and again until `Stop`, in as many threads.
    Loop(SocketAddr, usize),
    /// End the loop, and say what it saw.
    Stop,
    /// Connect a new UDP socket so many times a second until `EndProbe`, to find out whether that ever fails.
    Probe(SocketAddr, u32),
    /// End the probe, and say what it saw.
    EndProbe,
}

/// What came of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Outcome {
    /// The server answered.
    Answered {
        /// What it said.
        said: String,
        /// The peer that the socket shows, or that the datagram came from.
        peer: SocketAddr,
    },
    /// It did not come to that.
    Failed {
        /// The call, and its error.
        error: String,
        /// The error's number.
        errno: Option<i32>,
    },
    /// The loop or the probe runs.
    Started,
    /// So many connections are closed.
    Released(usize),
    /// The loop has ended.
    Looped(Looped),
    /// The probe has ended.
    Probed(Probed),
}

/// What a loop saw.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Looped {
    /// Connects, failed ones included.
    pub connects: u64,
    /// Failed ones, those that showed another peer included.
    pub failed: u64,
    /// Those that showed another peer than was dialled.
    pub other_peer: u64,
    /// The first failures.
    pub failures: Vec<String>,
    /// Answers by what was said.
    pub answers: BTreeMap<String, u64>,
    /// The longest, from connect to answer.
    pub longest: Duration,
}

/// Follows orders from standard input until it ends.
pub fn serve() -> Result<()> {
    let mut running: Option<Running> = None;
    let mut probing: Option<Probing> = None;
    let mut held = Vec::new();
    let mut resolver: Option<UdpSocket> = None;
    for line in io::stdin().lines() {
        let line = line.context("read an order")?;
        let outcome = match serde_json::from_str(&line).with_context(|| format!("understand the order {line}"))? {
            Order::Tcp(to) => answered(tcp(to).map(|(said, peer, _)| (said, peer))),
            Order::Hold(to) => answered(tcp(to).map(|(said, peer, stream)| {
                held.push(stream);
                (said, peer)
            })),
            Order::Release => Outcome::Released(held.drain(..).count()),
            Order::Udp(to) => answered(udp(to, false)),
            Order::ConnectedUdp(to) => answered(udp(to, true)),
            Order::Resolve(to) => answered(resolve(&mut resolver, to)),
            Order::Loop(to, threads) => {
                running = Some(Running::start(to, threads));
                Outcome::Started
            }
            Order::Stop => Outcome::Looped(running.take().context("no loop runs")?.stop()?),
            Order::Probe(to, rate) => {
                probing = Some(Probing::start(to, rate));
                Outcome::Started
            }
            Order::EndProbe => Outcome::Probed(probing.take().context("no probe runs")?.end()?),
        };
        let mut answer = serde_json::to_string(&outcome).context("write an outcome")?;
        answer.push('\n');
        io::stdout().write_all(answer.as_bytes()).context("write an outcome")?;
    }
    Ok(())
}

fn answered(result: Result<(String, SocketAddr)>) -> Outcome {
    match result {
        Ok((said, peer)) => Outcome::Answered { said, peer },
        Err(error) => {
            let errno = error.downcast_ref::<io::Error>().and_then(io::Error::raw_os_error);
            Outcome::Failed { error: format!("{error:#}"), errno }
        }
    }
}

fn tcp(to: SocketAddr) -> Result<(String, SocketAddr, TcpStream)> {
    let mut stream = TcpStream::connect_timeout(&to, PATIENCE).context("connect")?;
    let peer = stream.peer_addr().context("ask for the peer")?;
    stream.set_read_timeout(Some(PATIENCE)).context("limit the wait")?;
    let mut said = String::new();
    stream.read_to_string(&mut said).context("read")?;
    Ok((said, peer, stream))
}

fn udp(to: SocketAddr, connected: bool) -> Result<(String, SocketAddr)> {
    let any: IpAddr = if to.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
    let socket = UdpSocket::bind((any, 0)).context("bind")?;
    socket.set_read_timeout(Some(PATIENCE)).context("limit the wait")?;
    let mut datagram = [0; 256];
    let (length, from) = if connected {
        socket.connect(to).context("connect")?;
        socket.send(b"?").context("send")?;
        (socket.recv(&mut datagram).context("receive")?, socket.peer_addr().context("ask for the peer")?)
    } else {
        socket.send_to(b"?", to).context("send")?;
        socket.recv_from(&mut datagram).context("receive")?
    };
    Ok((String::from_utf8_lossy(&datagram[..length]).into_owned(), from))
}

/// Asks from the socket that there is, or from a new one.
fn resolve(socket: &mut Option<UdpSocket>, to: SocketAddr) -> Result<(String, SocketAddr)> {
    let socket = match socket {
        Some(socket) => socket,
        None => {
            let any: IpAddr = if to.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
            let new = UdpSocket::bind((any, 0)).context("bind")?;
            new.set_read_timeout(Some(PATIENCE)).context("limit the wait")?;
            new.connect(to).context("connect")?;
            socket.insert(new)
        }
    };
    if socket.send(b"?").is_err() {
        socket.connect(to).context("connect again")?;
        socket.send(b"?").context("send again")?;
    }
    let mut datagram = [0; 256];
    let length = socket.recv(&mut datagram).context("receive")?;
    let peer = socket.peer_addr().context("ask for the peer")?;
    Ok((String::from_utf8_lossy(&datagram[..length]).into_owned(), peer))
}

/// A loop of connects.
struct Running {
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<Looped>>,
}

impl Running {
    fn start(to: SocketAddr, threads: usize) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let run = |stop: Arc<AtomicBool>| move || Looped::until(&stop, to);
        Self { threads: (0..threads).map(|_| thread::spawn(run(stop.clone()))).collect(), stop }
    }

    fn stop(self) -> Result<Looped> {
        self.stop.store(true, Ordering::Relaxed);
        let mut all = Looped::default();
        for thread in self.threads {
            let Ok(part) = thread.join() else { bail!("a thread panicked") };
            all.add(part);
        }
        Ok(all)
    }
}

impl Looped {
    fn until(stop: &AtomicBool, to: SocketAddr) -> Self {
        let mut seen = Self::default();
        while !stop.load(Ordering::Relaxed) {
            let began = Instant::now();
            seen.connects += 1;
            match tcp(to) {
                Ok((said, peer, _)) if peer == to => *seen.answers.entry(said).or_default() += 1,
                Ok((_, peer, _)) => {
                    seen.other_peer += 1;
                    seen.fail(format!("the peer reads {peer}"));
                }
                Err(error) => seen.fail(format!("{error:#}")),
            }
            seen.longest = seen.longest.max(began.elapsed());
        }
        seen
    }

    fn fail(&mut self, failure: String) {
        self.failed += 1;
        if self.failures.len() < KEPT {
            self.failures.push(failure);
        }
    }

    /// Adds what another one saw.
    pub fn add(&mut self, other: Self) {
        self.connects += other.connects;
        self.failed += other.failed;
        self.other_peer += other.other_peer;
        self.failures.extend(other.failures);
        self.failures.truncate(KEPT);
        for (said, times) in other.answers {
            *self.answers.entry(said).or_default() += times;
        }
        self.longest = self.longest.max(other.longest);
    }
}

/// A running client, as its owner sees it.
#[derive(Debug)]
pub struct Dialler {
    orders: ChildStdin,
    outcomes: BufReader<ChildStdout>,
    // Dropped last: it is killed then.
    _process: Process,
}

impl Dialler {
    /// Starts the client, the program `lab`, in `cgroup` and `netns`.
    pub fn start(lab: impl AsRef<OsStr>, cgroup: &Cgroup, netns: &Netns) -> Result<Self> {
        let mut command = cgroup.command(lab);
        command.arg("dial").stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut process = Process::start(netns, command)?;
        let orders = process.stdin().context("the client's standard input is piped")?;
        let outcomes = BufReader::new(process.stdout().context("the client's standard output is piped")?);
        Ok(Self { orders, outcomes, _process: process })
    }

    /// Gives an order and waits for what comes of it.
    pub fn order(&mut self, order: Order) -> Result<Outcome> {
        let mut line = serde_json::to_string(&order).context("write an order")?;
        line.push('\n');
        self.orders.write_all(line.as_bytes()).context("give an order to the client")?;
        let mut outcome = String::new();
        self.outcomes.read_line(&mut outcome).context("read what came of an order")?;
        serde_json::from_str(&outcome).with_context(|| format!("understand what came of {order:?}: {outcome:?}"))
    }

    /// Begins a loop of connects.
    pub fn begin(&mut self, to: SocketAddr, threads: usize) -> Result<()> {
        let outcome = self.order(Order::Loop(to, threads))?;
        anyhow::ensure!(outcome == Outcome::Started, "the client's loop did not start: {outcome:?}");
        Ok(())
    }

    /// Ends the loop; what it saw.
    pub fn end(&mut self) -> Result<Looped> {
        match self.order(Order::Stop)? {
            Outcome::Looped(seen) => Ok(seen),
            other => bail!("the client's loop ended with {other:?}"),
        }
    }

    /// Begins to probe, so many times a second.
    pub fn probe(&mut self, to: SocketAddr, rate: u32) -> Result<()> {
        let outcome = self.order(Order::Probe(to, rate))?;
        anyhow::ensure!(outcome == Outcome::Started, "the client's probe did not start: {outcome:?}");
        Ok(())
    }

    /// Ends the probe; what it saw.
    pub fn end_probe(&mut self) -> Result<Probed> {
        match self.order(Order::EndProbe)? {
            Outcome::Probed(seen) => Ok(seen),
            other => bail!("the client's probe ended with {other:?}"),
        }
    }
}
