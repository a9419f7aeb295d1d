//! A pod's server: says over HTTP and UDP which cluster and pod answers.
//!
//! HTTP/1.1 and, by prior knowledge, HTTP/2 are served at one port; [`stream`] has what is answered bit by bit.
//!
//! On SIGTERM it drains as a well-behaved pod does: it goes on accepting for a while, for the news that it is leaving
//! has to reach the clients' nodes first, but asks every client to close; then it takes what is still in the queue,
//! stops listening, finishes what it has begun, and ends.

pub(crate) mod stream;

use anyhow::{Context, Result};
use hyper::{
    Request, Response, Version,
    body::{Bytes, Incoming},
    header::{CONNECTION, CONTENT_TYPE},
    service::service_fn,
};
use hyper_util::{
    rt::{TokioExecutor, TokioIo},
    server::conn::auto,
};
use serde::{Deserialize, Serialize};
use std::{
    convert::Infallible,
    io,
    net::SocketAddr,
    pin::pin,
    sync::atomic::{AtomicBool, Ordering},
    time::Duration,
};
use tokio::{
    net::{TcpListener, TcpStream, UdpSocket},
    signal::unix::{SignalKind, signal},
    sync::watch,
    task::JoinSet,
    time::{Instant, sleep, timeout, timeout_at},
};

/// How long the last requests get to be finished.
const GRACE: Duration = Duration::from_secs(10);

/// What a server says, as JSON.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Answer {
    /// The cluster that the pod is in.
    pub cluster: String,
    /// The pod's name.
    pub pod: String,
    /// Who asked, as the pod sees it: the client pod itself, or whatever stands between.
    pub client: SocketAddr,
}

/// What a server has to know.
#[derive(Clone, Debug, clap::Args)]
pub struct Options {
    /// The cluster that it names in its answers
    #[arg(long)]
    pub cluster: String,
    /// The pod that it names in its answers
    #[arg(long)]
    pub pod: String,
    /// Where it listens, for HTTP and for UDP
    #[arg(long, default_value = "[::]:8080")]
    pub listen: SocketAddr,
    /// Milliseconds for which it still accepts connections after SIGTERM
    #[arg(long, default_value_t = 500)]
    pub linger_ms: u64,
}

/// Serves until SIGTERM, then drains. Prints `ready` on a line of its own once it listens.
pub async fn serve(options: &Options) -> Result<()> {
    let at = options.listen;
    let listener = TcpListener::bind(at).await.with_context(|| format!("listen on TCP {at}"))?;
    let datagrams = UdpSocket::bind(at).await.with_context(|| format!("listen on UDP {at}"))?;
    let mut terminate = signal(SignalKind::terminate()).context("listen for SIGTERM")?;
    println!("ready");

    let (leave, leaving) = watch::channel(false);
    let mut connections = JoinSet::new();
    let until_told = async {
        loop {
            take(listener.accept().await, options, &leaving, &mut connections).await;
        }
    };
    tokio::select! {
        () = until_told => {}
        () = echo(&datagrams, options) => {}
        _ = terminate.recv() => {}
    }

    leave.send_replace(true);
    let last = Instant::now() + Duration::from_millis(options.linger_ms);
    let lingering = async {
        while let Ok(accepted) = timeout_at(last, listener.accept()).await {
            take(accepted, options, &leaving, &mut connections).await;
        }
        // Closing a listener resets the connections in its queue.
        while let Ok(accepted) = timeout(Duration::ZERO, listener.accept()).await {
            take(accepted, options, &leaving, &mut connections).await;
        }
    };
    tokio::select! {
        () = lingering => {}
        () = echo(&datagrams, options) => {}
    }
    drop(listener);
    timeout(GRACE, connections.join_all()).await.context("some clients took too long over their last request")?;
    Ok(())
}

/// Serves a connection until the client closes it, or until it is between two requests and the server is `leaving`.
async fn take(
    accepted: io::Result<(TcpStream, SocketAddr)>,
    options: &Options,
    leaving: &watch::Receiver<bool>,
    connections: &mut JoinSet<()>,
) {
    // Those that have ended.
    while connections.try_join_next().is_some() {}
    let (stream, client) = match accepted {
        Ok(accepted) => accepted,
        Err(error) => {
            // The client gave up, or descriptors ran out for now.
            eprintln!("accept: {error}");
            return sleep(Duration::from_millis(10)).await;
        }
    };
    let body = Bytes::from(answer(options, client));
    let leaving = leaving.clone();
    connections.spawn(async move {
        let asked = AtomicBool::new(false);
        let reply = service_fn(|request: Request<Incoming>| {
            asked.store(true, Ordering::Relaxed);
            let mut response = Response::builder().header(CONTENT_TYPE, "application/json");
            // HTTP/2 has a frame for it, which the graceful shutdown sends.
            if *leaving.borrow() && request.version() < Version::HTTP_2 {
                response = response.header(CONNECTION, "close");
            }
            let body = stream::body(request, body.clone(), leaving.clone());
            let response = response.body(body).expect("the headers are well formed");
            async { Ok::<_, Infallible>(response) }
        });
        let server = auto::Builder::new(TokioExecutor::new());
        let mut connection = pin!(server.serve_connection(TokioIo::new(stream), reply));
        let ended = tokio::select! {
            ended = connection.as_mut() => ended,
            () = told(leaving.clone()) => {
                // Not before its first request: that may be on its way, and hyper would close without an answer.
                if asked.load(Ordering::Relaxed) {
                    connection.as_mut().graceful_shutdown();
                }
                connection.await
            }
        };
        if let Err(error) = ended {
            eprintln!("serve {client}: {error}");
        }
    });
}

/// Waits until the server is leaving.
async fn told(mut leaving: watch::Receiver<bool>) {
    leaving.wait_for(|leaving| *leaving).await.expect("the server outlives its connections");
}

/// Answers each datagram, for ever.
async fn echo(socket: &UdpSocket, options: &Options) {
    let mut datagram = [0; 64];
    loop {
        let answered = async {
            let (_, client) = socket.recv_from(&mut datagram).await?;
            socket.send_to(&answer(options, client), client).await
        };
        if let Err(error) = answered.await {
            eprintln!("answer a datagram: {error}");
        }
    }
}

fn answer(options: &Options, client: SocketAddr) -> Vec<u8> {
    let client = SocketAddr::new(client.ip().to_canonical(), client.port());
    let answer = Answer { cluster: options.cluster.clone(), pod: options.pod.clone(), client };
    serde_json::to_vec(&answer).expect("plain strings become JSON")
}
