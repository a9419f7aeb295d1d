//! Resolvers that people have, c-ares, glibc's and nginx's, in a pod whose name server goes: each of them connects its
//! socket again when a send is refused, and has its next answer at once.
//!
//! They are tried where they are installed: nginx, and a `python3` (or what the variable PYTHON names), for c-ares with
//! `pycares`. Before 1.20, c-ares went on with the socket whose send was refused, as long as it had questions: it has
//! nothing to connect again for.

use crate::{
    agent_site::{Site, service},
    clock::{SOON, judges_no_times, patience, until},
};
use lab::{cgroup::Cgroup, netns::Netns, process::Process};
use std::{
    env, fs,
    io::{BufRead, BufReader, Read, Write},
    net::{SocketAddr, TcpStream, UdpSocket},
    path::Path,
    process::{Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
        mpsc,
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

const VIP: &str = "10.96.0.10:53";
const STAYS: &str = "127.0.0.5:5353";
const GOES: &str = "127.0.0.6:5353";
const NGINX: &str = "/usr/sbin/nginx";

/// How long a name server answers after its endpoint was withdrawn, as a pod does that is told to end.
const GRACE: Duration = Duration::from_millis(300);
/// Within what the next answer has to come.
const NEXT: Duration = Duration::from_secs(1);

/// Asks for one name after the other by c-ares, whose channel keeps its connected socket, and prints each answer.
const C_ARES: &str = r#"
import pycares, select, time
channel = pycares.Channel(servers=["10.96.0.10"], timeout=5, tries=2, flags=pycares.ARES_FLAG_STAYOPEN)
def told(result, error):
    print(error if error else result[0].host, flush=True)
for n in range(3000):
    channel.query("n%d.demo" % n, pycares.QUERY_TYPE_A, told)
    while any(channel.getsock()):
        reads, writes = channel.getsock()
        if not reads and not writes or not channel.timeout():
            break
        ready = select.select(reads, writes, [], channel.timeout())
        if not any(ready):
            channel.process_fd(pycares.ARES_SOCKET_BAD, pycares.ARES_SOCKET_BAD)
        for fd in ready[0]:
            channel.process_fd(fd, pycares.ARES_SOCKET_BAD)
        for fd in ready[1]:
            channel.process_fd(pycares.ARES_SOCKET_BAD, fd)
    time.sleep(0.02)
"#;

/// Likewise by the C library.
const GLIBC: &str = r#"
import socket, time
for n in range(3000):
    try:
        print(socket.gethostbyname("n%d.demo" % n), flush=True)
    except OSError as error:
        print(error, flush=True)
    time.sleep(0.02)
"#;

#[test]
fn c_ares_has_its_next_answer_from_another_name_server_within_a_second() {
    let Some(scene) = Scene::new() else { return };
    let Some(version) = print("import pycares; print(pycares.ARES_VERSION)") else {
        return println!("skipped: {} has no pycares", python());
    };
    let number = |part: &str| part.trim().parse::<u32>().unwrap();
    if version.split('.').take(2).map(number).collect::<Vec<_>>() < vec![1, 20] {
        return println!("skipped: c-ares {version} keeps a socket whose sends fail");
    }
    println!("c-ares {version}");
    scene.lose(|answers| scene.python(C_ARES, None, answers));
}

#[test]
fn glibc_has_its_next_answer_from_another_name_server_within_a_second() {
    let Some(scene) = Scene::new() else { return };
    if print("print()").is_none() {
        return println!("skipped: no {}", python());
    }
    let resolv_conf = scene.site.folder().join("resolv.conf");
    fs::write(&resolv_conf, "nameserver 10.96.0.10\n").unwrap();
    scene.lose(|answers| scene.python(GLIBC, Some(&resolv_conf), answers));
}

#[test]
fn nginx_has_its_next_answer_from_another_name_server_within_a_second() {
    let Some(scene) = Scene::new() else { return };
    if !Path::new(NGINX).exists() {
        return println!("skipped: no {NGINX}");
    }
    scene.lose(|answers| scene.nginx(answers));
}

/// An answer, or what a resolver says else, and when it said so.
type Answer = (Instant, String);

/// Two name servers behind one ClusterIP, and an agent.
struct Scene {
    site: Site,
    _stays: NameServer,
    goes: NameServer,
}

impl Scene {
    fn new() -> Option<Self> {
        if judges_no_times() {
            return None;
        }
        let site = Site::new()?;
        let [_stays, goes] = [STAYS, GOES].map(|address| NameServer::start(&site, address.parse().unwrap()));
        site.write("dns.yaml", &service("dns-federated", VIP, &[GOES]));
        Some(Self { site, _stays, goes })
    }

    /// Has the endpoint go that `resolver` gets its answers from, which tells each of them.
    fn lose(&self, resolver: impl FnOnce(mpsc::Sender<Answer>) -> Resolver) {
        let agent = self.site.ready_agent();
        let (tell, answers) = mpsc::channel();
        let _resolver = resolver(tell);
        let (stays, goes) = (ip(STAYS), ip(GOES));
        let next = || answers.recv_timeout(patience(SOON)).unwrap_or_else(|error| panic!("no answer: {error}"));
        for _ in 0..10 {
            assert_eq!(next().1, goes, "{}", agent.log());
        }
        self.site.write("dns.yaml", &service("dns-federated", VIP, &[STAYS]));
        let began = Instant::now();
        assert!(until(SOON, || (self.site.installed("demo/dns-federated") == [STAYS]).then_some(())).is_some());
        thread::sleep(GRACE);
        self.goes.silent.store(true, Ordering::Relaxed);
        let (mut before, mut others) = (0, Vec::new());
        let moved = loop {
            match next() {
                (at, answer) if answer == stays => break at.saturating_duration_since(began),
                (_, answer) if answer == goes => before += 1,
                (_, other) => others.push(other),
            }
        };
        println!("answered by the other name server after {moved:?}; {before} answers by the one that went");
        assert_eq!(others, [""; 0], "every question was answered");
        assert!(moved < patience(NEXT), "{moved:?}, {before} answers by the one that went");
        for _ in 0..10 {
            assert_eq!(next().1, stays);
        }
        let refused = self.site.json("status").0["counters"]["udp_refused"].as_u64();
        println!("{refused:?} datagrams were refused");
    }

    /// Runs a script in a pod, with another resolv.conf if there is one.
    fn python(&self, script: &str, resolv_conf: Option<&Path>, answers: mpsc::Sender<Answer>) -> Resolver {
        let cgroup = self.site.cgroup.child("resolver").unwrap();
        let mut command = cgroup.command("unshare");
        let mount =
            resolv_conf.map_or_else(String::new, |it| format!("mount --bind {} /etc/resolv.conf; ", it.display()));
        command.args(["--mount", "sh", "-ec", &format!("{mount}exec {} -c \"$1\"", python()), "sh", script]);
        let mut process = Process::start(&self.site.netns, piped(command)).unwrap().called("resolver");
        let lines = BufReader::new(process.stdout().unwrap()).lines();
        let thread = thread::spawn(move || {
            lines.map_while(Result::ok).try_for_each(|line| answers.send((Instant::now(), line))).ok()
        });
        Resolver { process, stop: Arc::default(), thread: Some(thread), _cgroup: cgroup }
    }

    /// Runs nginx in a pod, which looks up the host of each request, and asks it for one host after the other.
    fn nginx(&self, answers: mpsc::Sender<Answer>) -> Resolver {
        let folder = self.site.folder().join("nginx");
        fs::create_dir_all(&folder).unwrap();
        let configuration = format!(
            "daemon off; master_process off; worker_processes 1; user root; pid {0}/pid; error_log {0}/error.log;
             events {{ worker_connections 64; }}
             http {{
                 access_log off; resolver 10.96.0.10 ipv6=off; resolver_timeout 10s;
                 client_body_temp_path {0}/body; proxy_temp_path {0}/proxy; fastcgi_temp_path {0}/fastcgi;
                 uwsgi_temp_path {0}/uwsgi; scgi_temp_path {0}/scgi;
                 server {{
                     listen 127.0.0.1:8080;
                     location / {{ proxy_pass http://$host:9/; add_header upstream $upstream_addr always; }}
                 }}
             }}",
            folder.display()
        );
        let file = folder.join("nginx.conf");
        fs::write(&file, configuration).unwrap();
        let cgroup = self.site.cgroup.child("resolver").unwrap();
        let mut command = cgroup.command(NGINX);
        command.arg("-c").arg(&file);
        let process = Process::start(&self.site.netns, piped(command)).unwrap().called("nginx");
        let netns = Netns::at(&self.site.netns.path()).unwrap();
        let stop = Arc::<AtomicBool>::default();
        let stopped = stop.clone();
        let ask = move || {
            for number in 0.. {
                if stopped.load(Ordering::Relaxed) {
                    break;
                }
                if let Some(answer) = upstream(number)
                    && answers.send((Instant::now(), answer)).is_err()
                {
                    break;
                }
                thread::sleep(Duration::from_millis(20));
            }
        };
        let thread = thread::spawn(move || netns.run(ask).ok());
        Resolver { process, stop, thread: Some(thread), _cgroup: cgroup }
    }
}

fn piped(mut command: Command) -> Command {
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::inherit());
    command
}

fn python() -> String {
    env::var("PYTHON").unwrap_or_else(|_| "python3".to_owned())
}

/// What a script prints; none if it can't run.
fn print(script: &str) -> Option<String> {
    let output = Command::new(python()).args(["-c", script]).output().ok()?;
    output.status.success().then(|| String::from_utf8(output.stdout).unwrap().trim().to_owned())
}

/// The address that nginx found for a name, or what it answered else; none if it doesn't serve yet.
fn upstream(number: u32) -> Option<String> {
    let mut stream = TcpStream::connect("127.0.0.1:8080").ok()?;
    write!(stream, "GET / HTTP/1.0\r\nHost: n{number}.demo\r\n\r\n").ok()?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).ok()?;
    let upstream = answer.lines().find_map(|line| line.strip_prefix("upstream: "));
    let status = answer.lines().next()?.to_owned();
    Some(upstream.and_then(|upstream| upstream.strip_suffix(":9")).map_or(status, str::to_owned))
}

fn ip(address: &str) -> String {
    address.parse::<SocketAddr>().unwrap().ip().to_string()
}

/// A resolver at work, and who listens to it.
struct Resolver {
    process: Process,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<Option<()>>>,
    _cgroup: Cgroup,
}

impl Drop for Resolver {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        // Ends its output, too.
        self.process.kill().ok();
        if let Some(thread) = self.thread.take() {
            thread.join().ok();
        }
    }
}

/// A name server that says its own address is that of every name.
struct NameServer {
    /// Whether it answers no more.
    silent: Arc<AtomicBool>,
    end: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl NameServer {
    fn start(site: &Site, address: SocketAddr) -> Self {
        let socket = site.netns.run(|| UdpSocket::bind(address)).unwrap().unwrap();
        socket.set_read_timeout(Some(Duration::from_millis(50))).unwrap();
        let (silent, end) = (Arc::<AtomicBool>::default(), Arc::<AtomicBool>::default());
        let (is_silent, has_ended) = (silent.clone(), end.clone());
        let serve = move || {
            let mut question = [0; 512];
            while !has_ended.load(Ordering::Relaxed) {
                let Ok((length, from)) = socket.recv_from(&mut question) else { continue };
                if !is_silent.load(Ordering::Relaxed) {
                    socket.send_to(&answer(&question[..length], address), from).ok();
                }
            }
        };
        Self { silent, end, thread: Some(thread::spawn(serve)) }
    }
}

impl Drop for NameServer {
    fn drop(&mut self) {
        self.end.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            thread.join().ok();
        }
    }
}

/// The question, with this address as the answer if an IPv4 one is asked for, by RFC 1035.
fn answer(question: &[u8], address: SocketAddr) -> Vec<u8> {
    let name = question[12..].iter().position(|&length| length == 0).unwrap();
    let asked = 12 + name + 1;
    let SocketAddr::V4(v4) = address else { panic!("{address} is not of IPv4") };
    let is_a = question[asked..asked + 2] == [0, 1];
    // An answer to a question like this one, that has what it asks for.
    let mut answer =
        [&question[..2], &[0x84, 0, 0, 1, 0, u8::from(is_a), 0, 0, 0, 0], &question[12..asked + 4]].concat();
    if is_a {
        // The name at byte 12, an address, of the Internet, to be kept for no time, four bytes.
        answer.extend([0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 0, 0, 4]);
        answer.extend(v4.ip().octets());
    }
    answer
}
