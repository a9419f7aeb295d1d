//! What the tests of the agent stand on: a network namespace, a cgroup, a folder of manifests, and `tombolo agent` as a
//! process of its own, with everything that has a name for this test alone.

use crate::clock::{SOON, patience, until};
use lab::{
    bpffs,
    cgroup::Cgroup,
    cleanup,
    dial::{Dialler, Order, Outcome},
    netns::Netns,
    process::Process,
};
use nix::sys::{
    signal::Signal,
    socket::{Shutdown, shutdown},
};
use serde_json::Value;
use std::{
    env,
    fs::{self, OpenOptions},
    io::Write,
    net::{SocketAddr, TcpListener, UdpSocket},
    os::fd::AsRawFd,
    path::{Path, PathBuf},
    process::{Command, ExitStatus, Stdio},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU32, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};
use tombolo::datapath::{HOOKS, pins::Pins};

/// See the module. In the order in which it is dropped.
pub(crate) struct Site {
    servers: Vec<Server>,
    /// Where the hooks are attached.
    pub(crate) cgroup: Cgroup,
    /// Where agent, clients and servers are. No address but loopback's has a route there.
    pub(crate) netns: Netns,
    /// The agent's pins: a folder that the agent makes.
    pub(crate) pins: PathBuf,
    /// The agent's socket.
    pub(crate) socket: PathBuf,
    /// What the agent watches.
    pub(crate) manifests: PathBuf,
    folder: PathBuf,
    pins_folder: PathBuf,
    starts: AtomicU32,
}

impl Site {
    /// A new site; none, and it says so, where the tests can't run.
    pub(crate) fn new() -> Option<Self> {
        static MADE: AtomicU32 = AtomicU32::new(0);
        if lab::netns::need_root().is_err() {
            println!("skipped: needs root");
            return None;
        }
        for name in ["tombolo", "lab"] {
            let program = program(name);
            assert!(program.exists(), "{} is missing: `cargo build -p tombolo -p lab` makes it", program.display());
        }
        let name = format!("agent-{}", MADE.fetch_add(1, Ordering::Relaxed));
        let folder = cleanup::folder().unwrap().join(&name);
        let manifests = folder.join("manifests");
        fs::create_dir_all(&manifests).unwrap();
        let pins_folder = bpffs::folder().unwrap().join(&name);
        // Other tests remove the folder above when they find it empty.
        let made = until(SOON, || fs::create_dir_all(&pins_folder).is_ok().then_some(()));
        made.expect("a folder for pins");
        Some(Self {
            servers: Vec::new(),
            cgroup: Cgroup::new(&name).unwrap(),
            netns: Netns::anonymous().unwrap(),
            pins: pins_folder.join("pins"),
            socket: folder.join("agent.sock"),
            manifests,
            folder,
            pins_folder,
            starts: AtomicU32::new(0),
        })
    }

    /// A folder for this test's own files.
    pub(crate) fn folder(&self) -> &Path {
        &self.folder
    }

    /// Writes a manifest, whole at once.
    pub(crate) fn write(&self, file: &str, contents: &str) {
        let hidden = self.manifests.join(format!(".{file}"));
        fs::write(&hidden, contents).unwrap();
        fs::rename(&hidden, self.manifests.join(file)).unwrap();
    }

    /// Serves TCP and UDP at `address`: each answer is the address.
    pub(crate) fn serve(&mut self, address: &str) {
        self.servers.push(Server::start(&self.netns, address.parse().unwrap()));
    }

    /// Likewise, in the middle of a test.
    pub(crate) fn serve_more(&self, address: &str) -> impl Drop + use<> {
        Server::start(&self.netns, address.parse().unwrap())
    }

    /// What an agent of this site is started with.
    pub(crate) fn agent(&self) -> AgentCommand<'_> {
        let path = |path: &Path| path.to_str().unwrap().to_owned();
        let arguments = [
            ("--manifests", path(&self.manifests)),
            ("--cluster", "west".to_owned()),
            ("--node", "west-1".to_owned()),
            ("--cgroup", path(self.cgroup.path())),
            ("--pins", path(&self.pins)),
            ("--socket", path(&self.socket)),
            ("--max-frontends", "1024".to_owned()),
            ("--max-backends", "4096".to_owned()),
            ("--max-slots", "8192".to_owned()),
        ];
        let arguments = arguments.map(|(flag, value)| (flag.to_owned(), value)).to_vec();
        AgentCommand { site: self, arguments, environment: None, wrapper: Vec::new(), prepare: None, outside: false }
    }

    /// An agent that is ready.
    pub(crate) fn ready_agent(&self) -> Agent {
        let mut agent = self.agent().start();
        agent.wait_until_ready();
        agent
    }

    /// A client in the cgroup.
    pub(crate) fn client(&self) -> Client {
        self.client_in(&format!("client-{}", self.starts.fetch_add(1, Ordering::Relaxed)))
    }

    /// A client in a cgroup below ours.
    pub(crate) fn client_in(&self, cgroup: &str) -> Client {
        let cgroup = self.cgroup.child(cgroup).unwrap();
        let dialler = Dialler::start(program("lab"), &cgroup, &self.netns).unwrap();
        Client { dialler, _cgroup: cgroup }
    }

    /// The folder of the pins of this layout.
    pub(crate) fn layout(&self) -> PathBuf {
        Pins::new(&self.pins).dir()
    }

    /// Runs `tombolo` with these arguments and this site's socket and pins.
    pub(crate) fn tombolo(&self, arguments: &[&str]) -> Said {
        let mut command = Command::new(program("tombolo"));
        command.args(arguments).arg("--pins").arg(&self.pins);
        if arguments[0] != "unload" {
            command.arg("--socket").arg(&self.socket);
        }
        Said::by(&mut command)
    }

    /// What `tombolo … -o json` prints, and whether it exited with 0. An agent that is busy, on a machine that is, is
    /// asked again.
    pub(crate) fn json(&self, question: &str) -> (Value, bool) {
        let mut said = self.tombolo(&[question, "-o", "json"]);
        until(Duration::from_secs(10), || {
            if said.err.contains("has not answered within") {
                said = self.tombolo(&[question, "-o", "json"]);
                return None;
            }
            Some(())
        });
        let document = serde_json::from_str(&said.out).unwrap_or_else(|error| panic!("{error}: {said:?}"));
        (document, said.status.success())
    }

    /// Waits until `tombolo status` names a problem that contains `what`; returns it.
    pub(crate) fn problem(&self, what: &str) -> String {
        let mut last = None;
        let found = until(SOON, || {
            last = Some(self.tombolo(&["status", "-o", "json"]));
            let status: Value = serde_json::from_str(&last.as_ref()?.out).ok()?;
            let problems = status["problems"].as_array()?.iter().map(|problem| problem.as_str().unwrap().to_owned());
            problems.into_iter().find(|problem| problem.contains(what))
        });
        found.unwrap_or_else(|| panic!("no problem with {what:?} is told: {last:?}"))
    }

    /// The backends of a service by its `namespace/name`, all its frontends together, as `tombolo services` has them.
    pub(crate) fn installed(&self, service: &str) -> Vec<String> {
        let (document, _) = self.json("services");
        let services = document["services"].as_array().unwrap().iter().filter(|entry| entry["name"] == service);
        let mut backends: Vec<String> = services
            .flat_map(|entry| entry["backends"].as_array().unwrap())
            .map(|backend| backend.as_str().unwrap().to_owned())
            .collect();
        backends.sort();
        backends.dedup();
        backends
    }
}

impl Drop for Site {
    fn drop(&mut self) {
        self.servers.clear();
        for folder in [&self.pins_folder, &self.folder] {
            if let Err(error) = fs::remove_dir_all(folder) {
                eprintln!("remove {}: {error}", folder.display());
            }
        }
        // The last one takes the folders of all along.
        for folder in [self.pins_folder.parent(), self.folder.parent()].into_iter().flatten() {
            fs::remove_dir(folder).ok();
        }
    }
}

/// What is done in the new process before it becomes the agent.
pub(crate) type Prepare = fn(&mut Command);

/// How an agent is to be started.
pub(crate) struct AgentCommand<'a> {
    site: &'a Site,
    /// Flags and their values.
    arguments: Vec<(String, String)>,
    /// Further variables, if the flags are to be given as variables.
    environment: Option<Vec<(String, String)>>,
    wrapper: Vec<String>,
    prepare: Option<Prepare>,
    outside: bool,
}

impl AgentCommand<'_> {
    /// With this flag, in place of what the site says.
    pub(crate) fn with(mut self, flag: &str, value: impl AsRef<Path>) -> Self {
        self.arguments.retain(|(known, _)| known != flag);
        self.arguments.push((flag.to_owned(), value.as_ref().to_str().unwrap().to_owned()));
        self
    }

    /// With its flags as variables of its environment, and these besides.
    pub(crate) fn by_environment(mut self, further: &[(&str, &str)]) -> Self {
        self.environment = Some(further.iter().map(|&(name, value)| (name.to_owned(), value.to_owned())).collect());
        self
    }

    /// With the command that this one ends with: `sh -c …`.
    pub(crate) fn wrapped(mut self, wrapper: &[&str]) -> Self {
        self.wrapper = wrapper.iter().map(|&word| word.to_owned()).collect();
        self
    }

    /// With something done to the process before.
    pub(crate) fn prepared(mut self, prepare: Prepare) -> Self {
        self.prepare = Some(prepare);
        self
    }

    /// Not in the cgroup that the hooks are attached to, but in that of its maker.
    pub(crate) fn outside(mut self) -> Self {
        self.outside = true;
        self
    }

    /// Starts it.
    pub(crate) fn start(self) -> Agent {
        let site = self.site;
        let socket = self.arguments.iter().find(|(flag, _)| flag == "--socket").map(|(_, value)| PathBuf::from(value));
        let name = format!("agent-{}", site.starts.fetch_add(1, Ordering::Relaxed));
        let log = site.folder.join(format!("{name}.log"));
        let words = [self.wrapper, vec![program("tombolo").to_str().unwrap().to_owned(), "agent".to_owned()]].concat();
        let cgroup = (!self.outside).then(|| site.cgroup.child(&name).unwrap());
        let mut command = match &cgroup {
            Some(cgroup) => cgroup.command(&words[0]),
            None => Command::new(&words[0]),
        };
        command.args(&words[1..]);
        match self.environment {
            None => command.args(self.arguments.iter().flat_map(|(flag, value)| [flag, value])),
            Some(further) => {
                let variable = |flag: &str| flag.replacen("--", "TOMBOLO_", 1).replace('-', "_").to_uppercase();
                command.envs(self.arguments.iter().map(|(flag, value)| (variable(flag), value))).envs(further)
            }
        };
        let open = || OpenOptions::new().create(true).append(true).open(&log).unwrap();
        command.stdin(Stdio::null()).stdout(open()).stderr(open()).env("RUST_BACKTRACE", "0");
        if let Some(prepare) = self.prepare {
            prepare(&mut command);
        }
        let process = Process::start(&site.netns, command).unwrap().called("tombolo agent");
        Agent { process, _cgroup: cgroup, log, socket: socket.unwrap_or_default() }
    }

    /// Starts it, expects it to give up, and returns what it said last.
    pub(crate) fn fail(self) -> String {
        let log = self.ends_with(1);
        let last = log.lines().last().unwrap_or_default();
        assert!(last.starts_with("error: "), "{log}");
        last.to_owned()
    }

    /// Starts it, expects it not to take its flags, and returns what it said.
    pub(crate) fn refused(self) -> String {
        self.ends_with(2)
    }

    fn ends_with(self, code: i32) -> String {
        let mut agent = self.start();
        let status = agent.process.wait(patience(SOON)).unwrap();
        let status = status.unwrap_or_else(|| panic!("the agent goes on:\n{}", agent.log()));
        assert_eq!(status.code(), Some(code), "{}", agent.log());
        agent.log()
    }
}

/// A running agent. Killed when dropped.
pub(crate) struct Agent {
    process: Process,
    _cgroup: Option<Cgroup>,
    log: PathBuf,
    socket: PathBuf,
}

impl Agent {
    /// Waits until `tombolo status` exits with 0; how long that took.
    pub(crate) fn wait_until_ready(&mut self) -> Duration {
        let start = Instant::now();
        let ready = until(SOON, || {
            if let Some(status) = self.process.ended().unwrap() {
                panic!("the agent ended with {status}:\n{}", self.log());
            }
            self.status().then_some(())
        });
        assert!(ready.is_some(), "the agent does not get ready:\n{}\n{:?}", self.log(), self.ask());
        start.elapsed()
    }

    fn status(&self) -> bool {
        self.ask().status.success()
    }

    fn ask(&self) -> Said {
        Said::by(
            Command::new(program("tombolo")).arg("status").arg("--socket").arg(&self.socket).args(["--pins", "/none"]),
        )
    }

    /// What it has logged so far.
    pub(crate) fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap()
    }

    /// Its process id.
    pub(crate) fn id(&self) -> u32 {
        self.process.id()
    }

    /// How much memory it has, in MiB.
    pub(crate) fn memory(&mut self) -> u64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.id())).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
        line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() / 1024
    }

    /// Ends it by SIGKILL.
    pub(crate) fn kill(mut self) {
        self.process.kill().unwrap();
    }

    /// Ends it by SIGTERM; it has to exit with 0 soon.
    pub(crate) fn stop(mut self) {
        self.process.signal(Signal::SIGTERM).unwrap();
        let status = self.process.wait(patience(SOON)).unwrap();
        assert!(status.is_some_and(|status| status.success()), "{status:?}\n{}", self.log());
    }
}

/// A client process.
pub(crate) struct Client {
    dialler: Dialler,
    _cgroup: Cgroup,
}

impl Client {
    /// Dials by TCP: who answered, or the error's number.
    pub(crate) fn tcp(&mut self, to: &str) -> Result<String, i32> {
        self.said(Order::Tcp(to.parse().unwrap()), to)
    }

    /// Sends a datagram from an unconnected socket: who answered, or the error's number.
    pub(crate) fn udp(&mut self, to: &str) -> Result<String, i32> {
        self.said(Order::Udp(to.parse().unwrap()), to)
    }

    /// Asks from a connected UDP socket that is kept, and connected again only if a send fails: who answered.
    pub(crate) fn resolve(&mut self, to: &str) -> Result<String, i32> {
        self.said(Order::Resolve(to.parse().unwrap()), to)
    }

    /// Dials by TCP what somebody else translates, whoever is then shown as the peer: who answered, if anyone did.
    pub(crate) fn tcp_unchecked(&mut self, to: &str) -> Option<String> {
        match self.dialler.order(Order::Tcp(to.parse().unwrap())).unwrap() {
            Outcome::Answered { said, .. } => Some(said),
            _ => None,
        }
    }

    fn said(&mut self, order: Order, to: &str) -> Result<String, i32> {
        match self.dialler.order(order).unwrap() {
            Outcome::Answered { said, peer } => {
                // Who is dialled is who is shown, wherever the connection went.
                assert_eq!(peer, to.parse().unwrap());
                Ok(said)
            }
            Outcome::Failed { errno: Some(errno), .. } => Err(errno),
            other => panic!("{order:?}: {other:?}"),
        }
    }

    /// Connects, keeps the connection open until [`release`](Self::release), and says which backend answered.
    pub(crate) fn hold(&mut self, to: &str) -> Result<String, i32> {
        self.said(Order::Hold(to.parse().unwrap()), to)
    }

    /// Closes the connections held.
    pub(crate) fn release(&mut self) {
        assert!(matches!(self.dialler.order(Order::Release).unwrap(), Outcome::Released(_)));
    }

    /// The dialler itself.
    pub(crate) fn dialler(&mut self) -> &mut Dialler {
        &mut self.dialler
    }
}

/// What a command printed, and its status.
#[derive(Debug)]
pub(crate) struct Said {
    pub(crate) status: ExitStatus,
    pub(crate) out: String,
    pub(crate) err: String,
}

impl Said {
    pub(crate) fn by(command: &mut Command) -> Self {
        let output = command.stdin(Stdio::null()).output().unwrap();
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
        Self { status: output.status, out: text(output.stdout), err: text(output.stderr) }
    }
}

/// A server that says at which address it was reached.
struct Server {
    stop: Arc<AtomicBool>,
    listener: Arc<TcpListener>,
    threads: Vec<JoinHandle<()>>,
}

impl Server {
    fn start(netns: &Netns, address: SocketAddr) -> Self {
        let made = netns.run(|| (TcpListener::bind(address).unwrap(), UdpSocket::bind(address).unwrap())).unwrap();
        let (listener, datagrams) = (Arc::new(made.0), made.1);
        datagrams.set_read_timeout(Some(Duration::from_millis(50))).unwrap();
        let stop = Arc::new(AtomicBool::new(false));
        let (accepting, answering, stopped) = (listener.clone(), stop.clone(), stop.clone());
        let by_tcp = move || {
            while let Ok((mut stream, _)) = accepting.accept() {
                if stopped.load(Ordering::Relaxed) {
                    break;
                }
                // A client that is gone is none of ours.
                write!(stream, "{address}").ok();
            }
        };
        let by_udp = move || {
            let mut datagram = [0; 64];
            while !answering.load(Ordering::Relaxed) {
                if let Ok((_, from)) = datagrams.recv_from(&mut datagram) {
                    datagrams.send_to(address.to_string().as_bytes(), from).ok();
                }
            }
        };
        Self { stop, listener, threads: vec![thread::spawn(by_tcp), thread::spawn(by_udp)] }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        // Ends the wait for a connection.
        shutdown(self.listener.as_raw_fd(), Shutdown::Both).ok();
        for thread in self.threads.drain(..) {
            thread.join().ok();
        }
    }
}

/// A federated service of cluster east, in a manifest: TCP and UDP at `address`, with these endpoints for both.
pub(crate) fn service(name: &str, address: &str, endpoints: &[&str]) -> String {
    let address: SocketAddr = address.parse().unwrap();
    let port = address.port();
    let endpoints: Vec<SocketAddr> = endpoints.iter().map(|endpoint| endpoint.parse().unwrap()).collect();
    let mut text = format!(
        r#"apiVersion: v1
kind: Service
metadata: {{name: {name}, namespace: demo, labels: {{mirror.linkerd.io/mirrored-service: "true"}}}}
spec:
  clusterIP: "{ip}"
  clusterIPs: ["{ip}"]
  ports: [{{name: tcp, port: {port}, protocol: TCP}}, {{name: udp, port: {port}, protocol: UDP}}]
"#,
        ip = address.ip()
    );
    let family = if address.is_ipv4() { "IPv4" } else { "IPv6" };
    let mut ports: Vec<u16> = endpoints.iter().map(SocketAddr::port).collect();
    ports.dedup();
    for port in ports {
        let addresses: Vec<String> = endpoints
            .iter()
            .filter(|endpoint| endpoint.port() == port)
            .map(|endpoint| format!("{{addresses: [\"{}\"]}}", endpoint.ip()))
            .collect();
        text += &format!(
            r#"---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata:
  name: {name}-{port}
  namespace: demo
  labels: {{kubernetes.io/service-name: {name}, multicluster.kubernetes.io/source-cluster: east}}
addressType: {family}
ports: [{{name: tcp, port: {port}, protocol: TCP}}, {{name: udp, port: {port}, protocol: UDP}}]
endpoints: [{}]
"#,
            addresses.join(", ")
        );
    }
    text
}

/// A program of ours, in the folder above this test's own, as in cargo's target folder.
pub(crate) fn program(name: &str) -> PathBuf {
    let test = env::current_exe().unwrap();
    test.parent().and_then(Path::parent).unwrap().join(name)
}

/// What an agent logs that took over all hooks.
pub(crate) fn adopted_all() -> String {
    format!("\"adopted\":{}", HOOKS.len())
}

/// The names in a folder.
pub(crate) fn names(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
    let mut names: Vec<String> = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}
