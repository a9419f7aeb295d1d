//! A load generator: asks for an answer again and again, each time on a new socket, and counts who gave it.
//!
//! It is a closed loop: each of a few workers asks, waits for the answer, and asks again, no faster than the rate. So a
//! slow server is not flooded, and every request that was begun is counted.

use crate::{
    report::{Report, now},
    server::Answer,
};
use anyhow::{Context, Result, ensure};
use hdrhistogram::Histogram;
use http_body_util::{BodyExt, Empty};
use hyper::{Request, body::Bytes, client::conn::http1, header::HOST};
use hyper_util::rt::TokioIo;
use std::{
    cell::RefCell,
    io::Write,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    pin::pin,
    rc::Rc,
    time::Duration,
};
use tokio::{
    net::{TcpStream, UdpSocket},
    signal::unix::{SignalKind, signal},
    task::LocalSet,
    time::{Instant, MissedTickBehavior, interval, interval_at, timeout},
};

/// How often a report is written.
const REPORT_EVERY: Duration = Duration::from_millis(100);

/// What a load generator has to know.
#[derive(Clone, Debug, clap::Args)]
pub struct Options {
    /// Whom to ask, one after the other
    #[arg(required = true)]
    pub targets: Vec<SocketAddr>,
    /// Ask by UDP: one datagram a request, from a connected and from an unconnected socket in turn
    #[arg(long)]
    pub udp: bool,
    /// Requests a second
    #[arg(long, default_value_t = 100)]
    pub rate: u32,
    /// Requests under way at the same time
    #[arg(long, default_value_t = 4)]
    pub workers: u32,
    /// Milliseconds that a request may take, its connect included
    #[arg(long, default_value_t = 2000)]
    pub timeout_ms: u64,
    /// End after so many requests, instead of at SIGTERM
    #[arg(long)]
    pub requests: Option<u64>,
    /// End when standard input does, too: signals don't reach what runs in a container
    #[arg(long)]
    pub until_eof: bool,
}

/// What has been seen so far, and how many requests have been begun.
struct Seen {
    report: Report,
    begun: u64,
    connects: Histogram<u64>,
}

/// What one request brought.
struct Outcome {
    answer: Answer,
    connect: Duration,
    other_peer: bool,
}

/// Asks until SIGTERM or until the number of requests is reached; writes reports to `out`, one JSON document a line,
/// the last one when every request has ended.
pub async fn run(options: Options, mut out: impl Write) -> Result<()> {
    ensure!(options.rate > 0 && options.workers > 0, "rate and workers have to be at least 1");
    let mut terminate = signal(SignalKind::terminate()).context("listen for SIGTERM")?;
    let connects = Histogram::new(3).context("make a histogram")?;
    let report = Report { started: now()?, ..Report::default() };
    let seen = Rc::new(RefCell::new(Seen { report, begun: 0, connects }));
    let (stop, _) = tokio::sync::watch::channel(false);
    if options.until_eof {
        let stop = stop.clone();
        at_end_of_input(move || {
            stop.send_replace(true);
        });
    }

    let workers = LocalSet::new();
    let asking: Vec<_> = (0..options.workers)
        .map(|number| workers.spawn_local(work(number, options.clone(), seen.clone(), stop.subscribe())))
        .collect();
    workers
        .run_until(async {
            let mut ended = pin!(futures_util::future::try_join_all(asking));
            let mut reports = interval(REPORT_EVERY);
            loop {
                tokio::select! {
                    all = &mut ended => break all.context("a worker panicked")?.into_iter().collect::<Result<Vec<()>>>(),
                    _ = terminate.recv() => { stop.send_replace(true); }
                    _ = reports.tick() => write(&seen, &mut out)?,
                }
            }
        })
        .await?;
    write(&seen, &mut out)
}

/// Does `work` once standard input has ended, beside whatever else goes on.
pub(crate) fn at_end_of_input(work: impl FnOnce() + Send + 'static) {
    // Not awaited: nothing ends a read that is under way.
    std::thread::spawn(move || {
        if let Err(error) = std::io::copy(&mut std::io::stdin(), &mut std::io::sink()) {
            eprintln!("read standard input: {error}");
        }
        work();
    });
}

async fn work(
    number: u32,
    options: Options,
    seen: Rc<RefCell<Seen>>,
    mut stop: tokio::sync::watch::Receiver<bool>,
) -> Result<()> {
    let pause = Duration::from_secs(1) * options.workers / options.rate;
    let mut pace = interval_at(Instant::now() + pause * number / options.workers, pause);
    pace.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            _ = pace.tick() => {}
            _ = stop.wait_for(|stop| *stop) => return Ok(()),
        }
        let turn = {
            let mut seen = seen.borrow_mut();
            if options.requests.is_some_and(|most| seen.begun >= most) {
                return Ok(());
            }
            seen.begun += 1;
            usize::try_from(seen.begun).context("count requests")?
        };
        let target = options.targets[turn % options.targets.len()];
        let began = now()?;
        let ask = async {
            if options.udp {
                ask_by_udp(target, (turn / options.targets.len()).is_multiple_of(2)).await
            } else {
                ask_by_http(target).await
            }
        };
        let outcome = match timeout(Duration::from_millis(options.timeout_ms), ask).await {
            Ok(outcome) => outcome.map_err(|error| format!("{target}: {error:#}")),
            Err(_) => Err(format!("{target}: no answer within {} ms", options.timeout_ms)),
        };
        let mut seen = seen.borrow_mut();
        match outcome {
            Ok(outcome) => {
                seen.report.count(&outcome.answer, began);
                seen.report.other_peer += u64::from(outcome.other_peer);
                let connect = u64::try_from(outcome.connect.as_micros()).context("a connect took too long")?;
                seen.connects.record(connect).context("record a connect")?;
            }
            Err(error) => seen.report.count_failure(began, error),
        }
    }
}

async fn ask_by_http(target: SocketAddr) -> Result<Outcome> {
    let begin = Instant::now();
    let stream = TcpStream::connect(target).await.context("connect")?;
    let connect = begin.elapsed();
    let other_peer = stream.peer_addr().context("ask for the peer's address")? != target;
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.context("begin HTTP")?;
    let exchange = async {
        let request = Request::get("/").header(HOST, target.to_string()).body(Empty::<Bytes>::new())?;
        let response = sender.send_request(request).await.context("ask")?;
        let status = response.status();
        ensure!(status.is_success(), "answered {status}");
        let body = response.into_body().collect().await.context("read the answer")?.to_bytes();
        serde_json::from_slice(&body).context("understand the answer")
    };
    let mut exchange = pin!(exchange);
    let answer = tokio::select! {
        biased;
        answer = &mut exchange => answer?,
        // Normal if the server wants no second request; what it sent is on its way to `exchange`.
        end = connection => match (exchange.await, end) {
            (Err(_), Err(cause)) => return Err(cause).context("connection"),
            (answer, _) => answer?,
        },
    };
    Ok(Outcome { answer, connect, other_peer })
}

async fn ask_by_udp(target: SocketAddr, connected: bool) -> Result<Outcome> {
    let any: IpAddr = if target.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
    let socket = UdpSocket::bind((any, 0)).await.context("bind")?;
    let mut datagram = [0; 1024];
    let begin = Instant::now();
    let (length, from, connect) = if connected {
        socket.connect(target).await.context("connect")?;
        let connect = begin.elapsed();
        let peer = socket.peer_addr().context("ask for the peer's address")?;
        socket.send(b"?").await.context("send")?;
        (socket.recv(&mut datagram).await.context("receive")?, peer, connect)
    } else {
        socket.send_to(b"?", target).await.context("send")?;
        let connect = begin.elapsed();
        let (length, from) = socket.recv_from(&mut datagram).await.context("receive")?;
        (length, from, connect)
    };
    let answer = serde_json::from_slice(&datagram[..length]).context("understand the answer")?;
    Ok(Outcome { answer, connect, other_peer: from != target })
}

fn write(seen: &RefCell<Seen>, out: &mut impl Write) -> Result<()> {
    let mut seen = seen.borrow_mut();
    seen.report.at = now()?;
    let connects = &seen.connects;
    seen.report.connect_us = [connects.value_at_quantile(0.5), connects.value_at_quantile(0.99), connects.max()];
    serde_json::to_writer(&mut *out, &seen.report).context("write a report")?;
    writeln!(out).context("write a report")?;
    out.flush().context("write a report")
}
