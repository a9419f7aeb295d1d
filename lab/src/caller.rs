//! Applications of different habits, as they call a service: each attempt is told, one JSON document a line.
//!
//! A request that fails is tried once more, so one stream of requests shows what a client sees that doesn't retry, and
//! what one sees that does. Those that open a connection for each request keep their rate whatever becomes of the
//! earlier ones; the others have one request under way at a time on each of their connections.
//!
//! On SIGUSR1 those under way are told as unfinished so far, and told again when they end. On SIGUSR2 no new ones are begun,
//! and the caller ends with the last one.
//!
//! What the attempts amount to is [`crate::attempts`]'s business.

mod http;
mod stream;
mod udp;

use crate::{load::at_end_of_input, report::now, server::Answer};
use anyhow::{Context, Result, ensure};
use clap::ValueEnum;
use serde::{Deserialize, Serialize};
use std::{
    cell::RefCell,
    collections::BTreeMap,
    fmt::{self, Display},
    future::Future,
    io::{BufWriter, Write},
    net::SocketAddr,
    rc::Rc,
    time::Duration,
};
use tokio::{
    net::TcpStream,
    signal::unix::{SignalKind, signal},
    sync::watch,
    task::{JoinHandle, LocalSet, spawn_local},
    time::{Instant, MissedTickBehavior, interval, interval_at, timeout},
};

/// How often attempts are told.
const TELL_EVERY: Duration = Duration::from_millis(50);

/// What an application does with its connections.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// HTTP/1.1, a new connection for each request.
    NewConnections,
    /// HTTP/1.1, each connection for as long as it works.
    KeepAlive,
    /// HTTP/1.1, all connections opened at the beginning and asked at the same moments, with nothing sent in between.
    Idle,
    /// HTTP/2, one long call on each connection, messages both ways.
    Stream,
    /// HTTP/2, one long call on each connection; only the server sends, one message a second.
    WaitingStream,
    /// UDP from a connected socket, which is opened anew when a send fails, as resolvers do it.
    ConnectedUdp,
    /// UDP from a socket that isn't connected, opened anew likewise.
    UnconnectedUdp,
    /// HTTP/1.1, a new connection for each request, to be answered by a mebibyte.
    LargeAnswers,
}

/// What a caller has to know.
#[derive(Clone, Debug, clap::Args)]
pub struct Options {
    /// Whom to call, one after the other
    #[arg(required = true)]
    pub targets: Vec<SocketAddr>,
    /// What to do with connections
    #[arg(long, value_enum)]
    pub kind: Kind,
    /// Requests a second, all connections together; a waiting stream has the server's pace
    #[arg(long, default_value_t = 100)]
    pub rate: u32,
    /// Connections, where requests share them
    #[arg(long, default_value_t = 10)]
    pub connections: u32,
    /// Milliseconds that an attempt may take, its connect included; a waiting stream waits for ever
    #[arg(long, default_value_t = 5000)]
    pub timeout_ms: u64,
    /// End when standard input does, too: signals don't reach what runs in a container
    #[arg(long)]
    pub until_eof: bool,
}

/// One try of a request.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attempt {
    /// Whether the same request had failed before.
    pub retry: bool,
    /// When it began, by [`now`].
    pub began: Duration,
    /// Its connect; none on a connection that was there already, and with UDP.
    pub connect: Option<Connect>,
    /// How long all of it took.
    pub took: Duration,
    /// The pod that it talked to: the one that answered, or, if nobody did, the one that had answered before on the same
    /// connection or socket. None if that was new.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pod: Option<String>,
    /// What came of it.
    pub end: End,
}

/// A TCP connect.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Connect {
    /// How long it took, or was tried.
    pub took: Duration,
    /// Whether it came to a connection.
    pub done: bool,
}

/// What came of an attempt.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum End {
    /// This cluster answered.
    Answered(String),
    /// A cluster answered, but the socket showed another peer than was dialled.
    OtherPeer(String),
    /// It failed: the call and its error.
    Failed(String),
    /// It had not ended when the caller was asked, or was told to end.
    Unfinished,
}

impl Attempt {
    /// When it ended, by [`now`].
    pub fn ended(&self) -> Duration {
        self.began + self.took
    }
}

impl Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.to_possible_value().expect("no kind is skipped").get_name())
    }
}

/// What an application keeps from request to request.
trait Session {
    /// Sends one request and waits for its answer; first opens what isn't open. It may be dropped half-way.
    async fn call(&mut self, dial: &mut Dial) -> Result<Reply>;

    /// The pod that has answered on what is open.
    fn pod(&self) -> Option<&str>;

    /// Drops what an attempt has left that failed.
    fn reset(&mut self);
}

/// An answer.
struct Reply {
    answer: Answer,
    /// Whether the socket showed another peer than was dialled.
    other_peer: bool,
}

/// The one connect that an attempt may make.
struct Dial {
    target: SocketAddr,
    began: Option<Instant>,
    ended: Option<Connect>,
}

/// A task that ends with its owner.
struct Task(JoinHandle<()>);

/// Where attempts are told.
struct Log<W: Write> {
    out: RefCell<BufWriter<W>>,
    /// When attempts began that are under way, and whether they are retries.
    under_way: RefCell<BTreeMap<u64, (Duration, bool)>>,
    stop: watch::Receiver<bool>,
    /// Whether nothing new is to be begun; a stop is that too.
    enough: watch::Receiver<bool>,
}

/// Calls until SIGTERM, or until standard input ends; tells of each attempt on `out`, the last ones unfinished.
pub async fn run(options: Options, out: impl Write + 'static) -> Result<()> {
    ensure!(options.rate > 0 && options.connections > 0, "rate and connections have to be at least 1");
    let mut terminate = signal(SignalKind::terminate()).context("listen for SIGTERM")?;
    let mut asked = signal(SignalKind::user_defined1()).context("listen for SIGUSR1")?;
    let mut told_enough = signal(SignalKind::user_defined2()).context("listen for SIGUSR2")?;
    let (ended, mut at_end) = watch::channel(false);
    if options.until_eof {
        let ended = ended.clone();
        at_end_of_input(move || {
            ended.send_replace(true);
        });
    }
    let (stop, stopped) = watch::channel(false);
    let (enough, had_enough) = watch::channel(false);
    let out = RefCell::new(BufWriter::new(out));
    let log = Rc::new(Log { out, under_way: RefCell::default(), stop: stopped, enough: had_enough });
    let calling = LocalSet::new();
    calling.spawn_local(call_all(options, log.clone()));
    let telling = log.clone();
    calling
        .run_until(async move {
            let mut tell = interval(TELL_EVERY);
            loop {
                tokio::select! {
                    _ = terminate.recv() => break,
                    _ = at_end.wait_for(|ended| *ended) => break,
                    _ = asked.recv() => telling.note_under_way()?,
                    _ = told_enough.recv() => { enough.send_replace(true); }
                    _ = tell.tick() => telling.flush()?,
                }
                if *enough.borrow() && telling.under_way.borrow().is_empty() {
                    break;
                }
            }
            enough.send_replace(true);
            stop.send_replace(true);
            anyhow::Ok(())
        })
        .await?;
    // Each sees the stop and tells what it leaves unfinished.
    calling.await;
    log.flush()
}

async fn call_all<W: Write + 'static>(options: Options, log: Rc<Log<W>>) {
    match options.kind {
        Kind::NewConnections => open_loop(options, log, http::KeepAlive::default).await,
        Kind::LargeAnswers => open_loop(options, log, http::KeepAlive::large).await,
        Kind::KeepAlive | Kind::Idle => sessions(options, log, http::KeepAlive::default),
        Kind::Stream => sessions(options, log, stream::Stream::sending),
        Kind::WaitingStream => sessions(options, log, stream::Stream::waiting),
        Kind::ConnectedUdp => sessions(options, log, udp::Socket::connected),
        Kind::UnconnectedUdp => sessions(options, log, udp::Socket::unconnected),
    }
}

/// Begins requests at the rate, each in a session of its own.
async fn open_loop<W: Write + 'static>(options: Options, log: Rc<Log<W>>, open: fn() -> http::KeepAlive) {
    let mut pace = interval(Duration::from_secs(1) / options.rate);
    pace.set_missed_tick_behavior(MissedTickBehavior::Burst);
    let mut enough = log.enough.clone();
    for &target in options.targets.iter().cycle() {
        tokio::select! {
            _ = pace.tick() => {}
            _ = enough.wait_for(|enough| *enough) => return,
        }
        let (log, limit) = (log.clone(), Duration::from_millis(options.timeout_ms));
        spawn_local(async move { request(&mut open(), target, limit, &log).await });
    }
}

/// Starts the sessions, each with the next target and its part of the rate.
fn sessions<W: Write + 'static, S: Session + 'static>(options: Options, log: Rc<Log<W>>, open: impl Fn() -> S) {
    let pause = Duration::from_secs(1) * options.connections / options.rate;
    for (number, &target) in (0..options.connections).zip(options.targets.iter().cycle()) {
        let turn = if options.kind == Kind::Idle { Duration::ZERO } else { pause * number / options.connections };
        let mut pace = interval_at(Instant::now() + turn, pause);
        pace.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut session = open();
        let (log, mut enough) = (log.clone(), log.enough.clone());
        let waits = options.kind == Kind::WaitingStream;
        let limit = if waits { Duration::MAX } else { Duration::from_millis(options.timeout_ms) };
        spawn_local(async move {
            loop {
                tokio::select! {
                    _ = pace.tick(), if !waits => {}
                    () = std::future::ready(()), if waits => {}
                    _ = enough.wait_for(|enough| *enough) => return,
                }
                if !request(&mut session, target, limit, &log).await {
                    return;
                }
            }
        });
    }
}

/// Makes a request, twice if it fails; whether to go on.
async fn request<W: Write>(session: &mut impl Session, target: SocketAddr, limit: Duration, log: &Log<W>) -> bool {
    for retry in [false, true] {
        let began = now().expect("the monotonic clock can be read");
        let number = log.begin(began, retry);
        let attempt = attempt(session, target, limit, (began, retry), log.stop.clone()).await;
        log.end(number, &attempt).expect("the owner reads");
        match attempt.end {
            End::Answered(_) | End::OtherPeer(_) => return true,
            End::Failed(_) => session.reset(),
            End::Unfinished => return false,
        }
    }
    true
}

async fn attempt(
    session: &mut impl Session,
    target: SocketAddr,
    limit: Duration,
    (began, retry): (Duration, bool),
    mut stop: watch::Receiver<bool>,
) -> Attempt {
    let begin = Instant::now();
    let mut dial = Dial { target, began: None, ended: None };
    let ended = tokio::select! {
        ended = timeout(limit, session.call(&mut dial)) => Some(ended),
        _ = stop.wait_for(|stop| *stop) => None,
    };
    let end = match ended {
        Some(Ok(Ok(reply))) if reply.other_peer => End::OtherPeer(reply.answer.cluster),
        Some(Ok(Ok(reply))) => End::Answered(reply.answer.cluster),
        Some(Ok(Err(error))) => End::Failed(format!("{target}: {error:#}")),
        Some(Err(_)) => End::Failed(format!("{target}: no answer within {} ms", limit.as_millis())),
        None => End::Unfinished,
    };
    let given_up = |began: Instant| Connect { took: began.elapsed(), done: false };
    let connect = dial.began.map(|began| dial.ended.unwrap_or_else(|| given_up(began)));
    let pod = session.pod().map(str::to_owned);
    Attempt { retry, began, connect, took: begin.elapsed(), pod, end }
}

impl Dial {
    /// Connects by TCP; the stream, and whether it shows another peer than the target.
    async fn tcp(&mut self) -> Result<(TcpStream, bool)> {
        let began = *self.began.insert(Instant::now());
        let stream = TcpStream::connect(self.target).await;
        self.ended = Some(Connect { took: began.elapsed(), done: stream.is_ok() });
        let stream = stream.context("connect")?;
        let other_peer = stream.peer_addr().context("ask for the peer's address")? != self.target;
        Ok((stream, other_peer))
    }
}

impl Task {
    /// Starts what an application's library does behind its back.
    fn start(work: impl Future<Output = ()> + 'static) -> Self {
        Self(spawn_local(work))
    }
}

impl Drop for Task {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl<W: Write> Log<W> {
    /// An attempt's number.
    fn begin(&self, began: Duration, retry: bool) -> u64 {
        let mut under_way = self.under_way.borrow_mut();
        let number = under_way.last_key_value().map_or(0, |(last, _)| last + 1);
        under_way.insert(number, (began, retry));
        number
    }

    fn end(&self, number: u64, attempt: &Attempt) -> Result<()> {
        self.under_way.borrow_mut().remove(&number);
        self.note(attempt)
    }

    fn note_under_way(&self) -> Result<()> {
        let now = now()?;
        for &(began, retry) in self.under_way.borrow().values() {
            let (took, end) = (now - began, End::Unfinished);
            self.note(&Attempt { retry, began, connect: None, took, pod: None, end })?;
        }
        self.flush()
    }

    fn note(&self, attempt: &Attempt) -> Result<()> {
        let mut out = self.out.borrow_mut();
        serde_json::to_writer(&mut *out, attempt).context("tell of an attempt")?;
        writeln!(out).context("tell of an attempt")
    }

    fn flush(&self) -> Result<()> {
        self.out.borrow_mut().flush().context("tell of attempts")
    }
}

fn answer(json: &[u8]) -> Result<Answer> {
    serde_json::from_slice(json).context("understand the answer")
}
