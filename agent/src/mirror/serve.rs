//! What the mirror shows over HTTP: metrics for Prometheus, and whether it is ready.
//!
//! One that waits for another's Lease is ready too: a rollout must not wait for it to lead.

use super::links::status::{Facts, state};
use anyhow::Context;
use http::{Method, Request, Response, StatusCode, header};
use http_body_util::Full;
use hyper::{
    body::{Bytes, Incoming},
    server::conn::http1,
    service::service_fn,
};
use hyper_util::rt::{TokioIo, TokioTimer};
use k8s_openapi::jiff::Timestamp;
use socket2::{Domain, Protocol, Socket, Type};
use std::{
    convert::Infallible,
    fmt::Write,
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    sync::Arc,
    time::Duration,
};
use tokio::{
    net::TcpListener,
    sync::{Semaphore, watch},
};
use tracing::{debug, info};

/// How long somebody may take to ask.
const PATIENCE: Duration = Duration::from_secs(10);
/// Connections that are served at once.
const CONNECTIONS: usize = 32;
/// Connections that wait to be.
const BACKLOG: i32 = 128;

/// What is shown.
#[derive(Clone, Debug, Default)]
pub struct View {
    /// Whether this mirror leads.
    pub leads: bool,
    /// Whether links and the own cluster's objects are known, so that it writes.
    pub is_synced: bool,
    /// How many imports the own API server refuses to take, in part or all of it.
    pub denied: usize,
    /// How each link stands.
    pub links: Vec<Facts>,
}

/// Serves what `view` shows at `address` until it fails.
///
/// # Errors
///
/// The address can't be had.
pub async fn serve(address: SocketAddr, view: watch::Receiver<View>) -> anyhow::Result<()> {
    let listener = listen(address).with_context(|| format!("serve metrics at {address}"))?;
    info!(%address, "metrics served");
    let places = Arc::new(Semaphore::new(CONNECTIONS));
    loop {
        let place = Arc::clone(&places).acquire_owned().await.context("places for connections")?;
        let connection = match listener.accept().await {
            Ok((connection, _)) => connection,
            Err(error) => {
                // As when too many files are open.
                debug!(error = %error, "connection not accepted");
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        let view = view.clone();
        tokio::spawn(async move {
            let answer = service_fn(|request: Request<Incoming>| {
                let answer = answer(request.method(), request.uri().path(), &view.borrow());
                async move { Ok::<_, Infallible>(answer) }
            });
            let served = http1::Builder::new()
                .timer(TokioTimer::new())
                .header_read_timeout(PATIENCE)
                .keep_alive(false)
                .serve_connection(TokioIo::new(connection), answer)
                .await;
            if let Err(error) = served {
                debug!(error = %error, "connection failed");
            }
            drop(place);
        });
    }
}

/// Listens at an address; at `[::]` for IPv4 as well, whatever the node's `net.ipv6.bindv6only` says, and for IPv4 alone where
/// there is no IPv6.
fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    let is_any = address.ip() == IpAddr::V6(Ipv6Addr::UNSPECIFIED);
    match bind(address) {
        Err(error) if is_any && is_without_ipv6(&error) => {
            bind(SocketAddr::new(Ipv4Addr::UNSPECIFIED.into(), address.port()))
        }
        bound => bound,
    }
}

fn bind(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    if address.is_ipv6() {
        socket.set_only_v6(!address.ip().is_unspecified())?;
    }
    // As the runtime does it: one that was ended may have left connections behind.
    socket.set_reuse_address(true)?;
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    TcpListener::from_std(socket.into())
}

/// Whether a socket failed for want of IPv6: the kernel has none, or it is off (ipv6(7)).
fn is_without_ipv6(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EAFNOSUPPORT | libc::EADDRNOTAVAIL))
}

fn answer(method: &Method, path: &str, view: &View) -> Response<Full<Bytes>> {
    let (status, text) = match (method, path) {
        (&Method::GET, "/metrics") => (StatusCode::OK, metrics(view, Timestamp::now())),
        (&Method::GET, "/livez") => (StatusCode::OK, "ok\n".to_owned()),
        (&Method::GET, "/readyz") if !view.leads => (StatusCode::OK, "ok: another mirror leads\n".to_owned()),
        (&Method::GET, "/readyz") if view.is_synced => (StatusCode::OK, "ok\n".to_owned()),
        (&Method::GET, "/readyz") => {
            (StatusCode::SERVICE_UNAVAILABLE, "this cluster's links and objects are not listed yet\n".to_owned())
        }
        (&Method::GET, _) => (StatusCode::NOT_FOUND, "there are /metrics, /readyz and /livez\n".to_owned()),
        _ => (StatusCode::METHOD_NOT_ALLOWED, String::new()),
    };
    let kind = if path == "/metrics" { "text/plain; version=0.0.4; charset=utf-8" } else { "text/plain" };
    let mut response = Response::new(Full::new(Bytes::from(text)));
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, header::HeaderValue::from_static(kind));
    response
}

/// The metrics as Prometheus reads them.
fn metrics(view: &View, now: Timestamp) -> String {
    let mut text = Text::default();
    text.head("tombolo_mirror_leader", "Whether this mirror leads.");
    text.line("tombolo_mirror_leader", &[], f64::from(u8::from(view.leads)));
    text.head("tombolo_mirror_synced", "Whether this cluster's links and objects are known.");
    text.line("tombolo_mirror_synced", &[], f64::from(u8::from(view.is_synced)));
    text.head(
        "tombolo_mirror_refused_imports",
        "Imports that this cluster's API server refuses to take as they should be.",
    );
    text.line("tombolo_mirror_refused_imports", &[], number(view.denied));
    type Value = fn(&Facts) -> Option<f64>;
    let gauges: [(&str, &str, Value); 8] = [
        ("tombolo_link_connected", "Whether the peer answers and everything was listed.", |it| {
            Some(f64::from(u8::from(it.is_connected)))
        }),
        ("tombolo_link_exported_services", "What the peer exports, each by each convention counted.", |it| {
            Some(number(it.exported))
        }),
        ("tombolo_link_imported_services", "What here has a part in the peer.", |it| Some(number(it.imported))),
        ("tombolo_link_endpoints", "Endpoints of the peer's cluster in slices here.", |it| Some(number(it.endpoints))),
        (
            "tombolo_link_refused_imports",
            "Imports of the peer's that this cluster's API server refuses to take.",
            |it| Some(number(it.denied.imports)),
        ),
        ("tombolo_link_round_trip_seconds", "How long the peer's API takes to answer.", |it| {
            it.round_trip.map(|time| time.as_secs_f64())
        }),
        ("tombolo_link_last_heard_timestamp_seconds", "When the peer was heard last.", |it| it.heard.map(seconds)),
        ("tombolo_link_credential_expiry_timestamp_seconds", "When the credential ends, if it does.", |it| {
            it.expires.map(|validity| seconds(validity.end))
        }),
    ];
    for (name, help, value) in gauges {
        text.head(name, help);
        for link in &view.links {
            if let Some(value) = value(link) {
                text.line(name, &[("link", &link.name.0), ("cluster", &link.cluster.0)], value);
            }
        }
    }
    text.head("tombolo_link_refused_endpoints", "Endpoints of the peer that are refused now.");
    for link in &view.links {
        for (reason, count) in &link.refused {
            let labels = [("link", link.name.0.as_str()), ("reason", reason.name())];
            text.line("tombolo_link_refused_endpoints", &labels, f64::from(*count));
        }
    }
    text.head("tombolo_link_state", "How the peer stands: one of Fresh, Lost, Stale, Removed.");
    for link in &view.links {
        let labels = [("link", link.name.0.as_str()), ("state", state(link.standing))];
        text.line("tombolo_link_state", &labels, 1.0);
    }
    text.head("tombolo_link_condition", "Whether a condition of the link holds; each is well if it is 1.");
    for link in &view.links {
        for condition in link.conditions(now) {
            let labels = [("link", link.name.0.as_str()), ("type", condition.kind), ("reason", condition.reason)];
            text.line("tombolo_link_condition", &labels, f64::from(u8::from(condition.is_true)));
        }
    }
    text.0
}

/// Counts are far below what is exact.
fn number(count: usize) -> f64 {
    u32::try_from(count).map_or(f64::INFINITY, f64::from)
}

fn seconds(time: Timestamp) -> f64 {
    time.as_duration().as_secs_f64()
}

#[derive(Default)]
struct Text(String);

impl Text {
    fn head(&mut self, name: &str, help: &str) {
        self.push(format_args!("# HELP {name} {help}\n# TYPE {name} gauge\n"));
    }

    fn line(&mut self, name: &str, labels: &[(&str, &str)], value: f64) {
        let escaped = |text: &str| text.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n");
        let labels: Vec<String> = labels.iter().map(|(name, value)| format!("{name}=\"{}\"", escaped(value))).collect();
        if labels.is_empty() {
            self.push(format_args!("{name} {value}\n"));
        } else {
            self.push(format_args!("{name}{{{}}} {value}\n", labels.join(",")));
        }
    }

    fn push(&mut self, text: std::fmt::Arguments<'_>) {
        self.0.write_fmt(text).expect("a String takes all that is written");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mirror::{links::status::tests::facts, validate::Refusal};

    #[test]
    fn each_link_has_its_figures() {
        let mut link = facts();
        link.refused = [(Refusal::OwnPod, 2)].into();
        link.round_trip = Some(Duration::from_millis(12));
        link.denied.imports = 2;
        let view = View { leads: true, is_synced: true, denied: 3, links: vec![link] };
        let text = metrics(&view, Timestamp::from_second(1_800_000_000).unwrap());
        for line in [
            "tombolo_mirror_leader 1",
            "tombolo_mirror_refused_imports 3",
            "tombolo_link_refused_imports{link=\"east\",cluster=\"east\"} 2",
            "tombolo_link_connected{link=\"east\",cluster=\"east\"} 1",
            "tombolo_link_endpoints{link=\"east\",cluster=\"east\"} 9",
            "tombolo_link_round_trip_seconds{link=\"east\",cluster=\"east\"} 0.012",
            "tombolo_link_refused_endpoints{link=\"east\",reason=\"OwnPod\"} 2",
            "tombolo_link_state{link=\"east\",state=\"Fresh\"} 1",
            "tombolo_link_condition{link=\"east\",type=\"EndpointsAccepted\",reason=\"Refused\"} 0",
        ] {
            assert!(text.lines().any(|it| it == line), "{line}: {text}");
        }
        assert!(!text.contains("expiry_timestamp_seconds{"), "a credential without an end has none: {text}");
    }

    #[test]
    fn one_that_waits_is_ready_and_one_that_leads_once_it_knows_its_links() {
        let status = |leads, is_synced| {
            answer(&Method::GET, "/readyz", &View { leads, is_synced, ..View::default() }).status().as_u16()
        };
        assert_eq!((status(false, false), status(true, false), status(true, true)), (200, 503, 200));
        assert_eq!(answer(&Method::GET, "/x", &View::default()).status(), 404);
        assert_eq!(answer(&Method::POST, "/metrics", &View::default()).status(), 405);
    }

    #[tokio::test]
    async fn whoever_asks_by_ipv4_or_ipv6_is_answered() {
        let any: SocketAddr = "[::]:0".parse().unwrap();
        let listener = listen(any).unwrap();
        let bound = listener.local_addr().unwrap();
        let mut targets = vec![SocketAddr::new(Ipv4Addr::LOCALHOST.into(), bound.port())];
        if bound.is_ipv6() {
            targets.push(SocketAddr::new(Ipv6Addr::LOCALHOST.into(), bound.port()));
        } else {
            eprintln!("skipped: this machine has no IPv6");
        }
        for target in targets {
            tokio::net::TcpStream::connect(target).await.unwrap();
        }
        let one: SocketAddr = "127.0.0.1:0".parse().unwrap();
        assert_eq!(listen(one).unwrap().local_addr().unwrap().ip(), one.ip());
    }

    #[test]
    fn only_the_want_of_ipv6_makes_it_ipv4() {
        for (error, expected) in
            [(libc::EAFNOSUPPORT, true), (libc::EADDRNOTAVAIL, true), (libc::EADDRINUSE, false), (libc::EACCES, false)]
        {
            assert_eq!(is_without_ipv6(&io::Error::from_raw_os_error(error)), expected, "{error}");
        }
    }
}
