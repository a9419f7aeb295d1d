//! A service without endpoints refuses at once and by itself: no packet leaves.

use crate::{
    draws::{effort, own4},
    ground::Ground,
    sockets::{ask, send_to, tcp_connect, tcp_socket, udp_socket},
    tables::{backed_by, tcp, udp},
};
use rustix::time::{ClockId, clock_gettime};
use socket2::Socket;
use std::{
    collections::BTreeMap,
    fs, io,
    net::SocketAddr,
    time::{Duration, Instant},
};
use tombolo_ebpf::abi::Counter;

#[test]
fn a_service_without_endpoints_refuses_every_call_without_a_packet() {
    let Some(mut ground) = Ground::new() else { return };
    let dialled: [SocketAddr; 3] =
        ["10.96.0.10:80", "[fd96::10]:80", "[::ffff:10.96.0.10]:80"].map(|frontend| frontend.parse().unwrap());
    for frontend in dialled {
        ground.want(tcp(frontend), backed_by(&[])).want(udp(frontend), backed_by(&[]));
    }
    ground.install();
    // The addresses themselves answer, so a refusal is the programs' and nobody else's.
    for frontend in &dialled[..2] {
        ground.client.netns.address("lo", frontend.ip().into()).unwrap();
        ground.serve(*frontend);
    }
    let calls: [(Open, Call); 3] = [
        (tcp_socket, |socket, frontend| socket.connect(&frontend.into())),
        (udp_socket, |socket, frontend| socket.connect(&frontend.into())),
        (udp_socket, |socket, frontend| send_to(socket, b"?", frontend)),
    ];
    let times = effort() / 100;
    let before = ground.client.run(sent);
    let mut took = Vec::new();
    ground.client.run(|| {
        for _ in 0..times {
            for (open, call) in calls {
                took.extend(dialled.map(|frontend| refused(&open(frontend), frontend, call)));
            }
        }
    });
    assert_eq!(ground.client.run(sent), before, "packets that were sent");
    assert_eq!(ground.count(Counter::Refused), took.len() as u64);
    let (mut wall, mut own): (Vec<Duration>, Vec<Duration>) = took.into_iter().unzip();
    for took in [&mut wall, &mut own] {
        took.sort_unstable();
    }
    let at = |took: &[Duration], thousandths: usize| took[(took.len() - 1) * thousandths / 1000];
    println!(
        "{} refused; median {:?}, p99.9 {:?}, most {:?}; of the thread's own time at most {:?}",
        wall.len(),
        at(&wall, 500),
        at(&wall, 999),
        at(&wall, 1000),
        at(&own, 1000)
    );
}

#[test]
fn a_socket_that_was_refused_can_try_again() {
    let Some(mut ground) = Ground::new() else { return };
    let [empty, served]: [SocketAddr; 2] = ["10.96.0.10:80", "10.96.0.11:80"].map(|frontend| frontend.parse().unwrap());
    let backends = own4(&ground, 1, 1);
    ground.serve(backends[0]);
    ground.want(tcp(empty), backed_by(&[])).want(tcp(served), backed_by(&backends)).install();
    ground.client.run(|| {
        let socket = tcp_socket(empty);
        for _ in 0..3 {
            assert_eq!(socket.connect(&empty.into()).unwrap_err().raw_os_error(), Some(libc::ECONNREFUSED));
        }
        socket.connect(&served.into()).unwrap();
        assert_eq!(ask(&socket).unwrap(), backends[0]);
    });
}

#[test]
fn a_service_that_kube_proxy_serves_too_is_left_to_it() {
    let Some(mut ground) = Ground::new() else { return };
    let frontend: SocketAddr = "10.96.0.10:80".parse().unwrap();
    let mut service = backed_by(&[]);
    service.exclusive = false;
    ground.want(tcp(frontend), service).install();
    ground.client.netns.address("lo", frontend.ip().into()).unwrap();
    ground.serve(frontend);
    let server = ground.client.run(|| ask(&tcp_connect(frontend).unwrap()).unwrap());
    assert_eq!(server, frontend);
    assert_eq!(ground.count(Counter::LeftAlone), 1);
}

type Open = fn(SocketAddr) -> Socket;
type Call = fn(&Socket, SocketAddr) -> io::Result<()>;

/// How long one refusal took: by the clock, and of the thread's own time, in which nobody else got in between.
fn refused(socket: &Socket, frontend: SocketAddr, call: Call) -> (Duration, Duration) {
    let (start, own_start) = (Instant::now(), own_time());
    let result = call(socket, frontend);
    let (took, own) = (start.elapsed(), own_time() - own_start);
    let error = result.expect_err("nobody is there");
    assert_eq!(error.raw_os_error(), Some(libc::ECONNREFUSED), "{frontend}");
    (took, own)
}

fn own_time() -> Duration {
    let now = clock_gettime(ClockId::ThreadCPUTime);
    Duration::try_from(now).expect("time spent is positive")
}

/// What the namespace has sent, by protocol: TCP segments and UDP datagrams of both families.
fn sent() -> BTreeMap<String, String> {
    let v4 = fs::read_to_string("/proc/thread-self/net/snmp").unwrap();
    let v6 = fs::read_to_string("/proc/thread-self/net/snmp6").unwrap();
    let mut sent = BTreeMap::new();
    // Pairs of lines, names and numbers: `Tcp: … ActiveOpens … OutSegs …`.
    let lines: Vec<&str> = v4.lines().collect();
    for pair in lines.chunks(2) {
        for (name, value) in pair[0].split(' ').zip(pair[1].split(' ')) {
            let protocol = pair[0].split(':').next().unwrap_or_default();
            if matches!((protocol, name), ("Tcp", "ActiveOpens" | "OutSegs") | ("Udp", "OutDatagrams")) {
                sent.insert(format!("{protocol}{name}"), value.to_owned());
            }
        }
    }
    for (name, value) in v6.lines().filter_map(|line| line.split_once(char::is_whitespace)) {
        if name == "Udp6OutDatagrams" {
            sent.insert(name.to_owned(), value.trim().to_owned());
        }
    }
    assert_eq!(sent.len(), 4, "{sent:?}");
    sent
}
