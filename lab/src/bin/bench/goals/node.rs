//! One node: a network namespace, a cgroup, manifests, an agent, backends that say at which address they were reached,
//! and clients.

use anyhow::{Context, Result, ensure};
use lab::{bpffs, cgroup::Cgroup, cleanup, dial::Dialler, netns::Netns, process::Process};
use serde_json::Value;
use std::{
    collections::{BTreeMap, BTreeSet},
    env, fs,
    fs::OpenOptions,
    io::Write,
    net::{IpAddr, Ipv4Addr, SocketAddr, SocketAddrV4, TcpListener, UdpSocket},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    thread,
    time::{Duration, Instant},
};
use tombolo::{
    datapath::{KernelMaps, pins::Pins},
    tables::Installed,
};

/// The port that backends listen on, and the one that services are dialled at.
pub(super) const BACKEND_PORT: u16 = 8080;
pub(super) const SERVICE_PORT: u16 = 80;
/// How long anything may take that is not what is measured.
pub(super) const PATIENCE: Duration = Duration::from_secs(120);
/// The agent is started once there is a file of the name given.
const UNTIL: &str = r#"until [ -e "$0" ]; do sleep 0.01; done; exec "$@""#;

/// What each service's frontends lead to: endpoints by the service's address.
pub(super) type Reached = BTreeMap<SocketAddrV4, BTreeSet<SocketAddrV4>>;

/// See the module. In the order in which it is dropped.
pub(super) struct Node {
    /// The agents', below that of the pods.
    agents: Cgroup,
    cgroup: Cgroup,
    netns: Netns,
    /// What agents watch.
    pub(super) manifests: PathBuf,
    pins: PathBuf,
    socket: PathBuf,
    folder: PathBuf,
    lab: PathBuf,
    program: PathBuf,
    flags: Vec<String>,
    clients: u32,
}

/// A client. Killed when dropped.
pub(super) struct Client {
    pub(super) dialler: Dialler,
    _cgroup: Cgroup,
}

/// An endpoint's cluster and address.
pub(super) type Endpoint = (&'static str, SocketAddrV4);

impl Node {
    /// A node of cluster west with backends at these addresses of the loopback device. Flags are further ones of agents.
    pub(super) fn new(name: &str, backends: &[Ipv4Addr], flags: &[&str]) -> Result<Self> {
        let beside = env::current_exe().context("find this program")?;
        let (lab, program) = (beside.with_file_name("lab"), beside.with_file_name("tombolo"));
        for needed in [&lab, &program] {
            ensure!(needed.is_file(), "there is no {}: cargo xtask bench builds it", needed.display());
        }
        let folder = cleanup::folder()?.join(name);
        let manifests = folder.join("manifests");
        fs::create_dir_all(&manifests).with_context(|| format!("create {}", manifests.display()))?;
        let pins = bpffs::folder()?.join(name);
        let above = pins.parent().context("pins are in a folder")?;
        fs::create_dir_all(above).with_context(|| format!("create {}", above.display()))?;
        let netns = Netns::anonymous()?;
        for &address in backends {
            serve(&netns, SocketAddrV4::new(address, BACKEND_PORT))?;
        }
        let cgroup = Cgroup::new(name)?;
        Ok(Self {
            agents: cgroup.child("agent")?,
            cgroup,
            netns,
            manifests,
            pins,
            socket: folder.join("agent.sock"),
            folder,
            lab,
            program,
            flags: flags.iter().map(|&flag| flag.to_owned()).collect(),
            clients: 0,
        })
    }

    /// Starts an agent, or that of another version.
    pub(super) fn start(&self, program: Option<&Path>) -> Result<Process> {
        self.start_by(&[], program)
    }

    /// Starts an agent that does nothing before [`go`](Self::go) is called.
    pub(super) fn start_waiting(&self) -> Result<Process> {
        let go = self.folder.join("go");
        match fs::remove_file(&go) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error).context("remove a file"),
            _ => {}
        }
        self.start_by(&["sh", "-c", UNTIL, &go.to_string_lossy()], None)
    }

    /// Has an agent begin that waits.
    pub(super) fn go(&self) -> Result<()> {
        fs::write(self.folder.join("go"), "").context("have an agent begin")
    }

    fn start_by(&self, by: &[&str], program: Option<&Path>) -> Result<Process> {
        let program = program.unwrap_or(&self.program).as_os_str();
        let words: Vec<_> = by.iter().map(|word| word.as_ref()).chain([program, "agent".as_ref()]).collect();
        let mut command = self.agents.command(words[0]);
        command.args(&words[1..]).args(["--cluster", "west", "--node", "west-1", "--manifests"]).arg(&self.manifests);
        command.arg("--cgroup").arg(self.cgroup.path()).arg("--pins").arg(&self.pins);
        command.arg("--socket").arg(&self.socket).args(&self.flags);
        let log = self.folder.join("agent.log");
        let open = || OpenOptions::new().create(true).append(true).open(&log).context("open the agent's log");
        command.stdin(Stdio::null()).stdout(open()?).stderr(open()?);
        Ok(Process::start(&self.netns, command)?.called("tombolo agent"))
    }

    /// Waits until the agent says that it is ready; how long that took.
    pub(super) fn ready(&self, agent: &mut Process) -> Result<Duration> {
        let began = Instant::now();
        loop {
            if let Some(status) = agent.ended()? {
                let log = fs::read_to_string(self.folder.join("agent.log")).unwrap_or_default();
                let last: Vec<&str> = log.lines().rev().take(5).collect();
                anyhow::bail!("the agent ended with {status}: {last:?}");
            }
            if self.ask("status")?["ready"] == true {
                return Ok(began.elapsed());
            }
            ensure!(began.elapsed() < PATIENCE, "the agent does not get ready: {:#}", self.ask("status")?);
            thread::sleep(Duration::from_millis(10));
        }
    }

    /// What `tombolo … -o json` prints.
    pub(super) fn ask(&self, question: &str) -> Result<Value> {
        let mut command = Command::new(&self.program);
        command.args([question, "-o", "json", "--socket"]).arg(&self.socket).arg("--pins").arg(&self.pins);
        let output = command.output().with_context(|| format!("run {}", self.program.display()))?;
        if output.stdout.is_empty() {
            // Before the agent's first word, with nothing pinned.
            return Ok(Value::Null);
        }
        serde_json::from_slice(&output.stdout).with_context(|| format!("understand tombolo {question}"))
    }

    /// Takes everything that agents pinned out of the kernel.
    pub(super) fn unload(&self, program: Option<&Path>) -> Result<()> {
        let mut command = Command::new(program.unwrap_or(&self.program));
        let status = command.arg("unload").arg("--pins").arg(&self.pins).stdout(Stdio::null()).status();
        let status = status.context("run tombolo unload")?;
        ensure!(status.success(), "tombolo unload: {status}");
        Ok(())
    }

    /// What the kernel holds, by the way that connects go.
    pub(super) fn reached(&self) -> Result<Reached> {
        let installed = Installed::from_maps(KernelMaps::open(&Pins::new(&self.pins))?.read()?);
        let mut reached = Reached::new();
        for key in installed.frontends().keys() {
            let (Some(at), Some(backends)) = (v4(key.addr, key.port), installed.lookup(key)) else { continue };
            // The agent's own, by which it proves its hooks, are elsewhere.
            if at.ip().octets()[0] == 10 {
                let backends = backends.into_iter().filter_map(|(addr, port)| v4(addr, port));
                reached.entry(at).or_default().extend(backends);
            }
        }
        Ok(reached)
    }

    /// Waits until the kernel holds just that; how long that took.
    pub(super) fn converges(&self, wanted: &Reached) -> Result<Duration> {
        let began = Instant::now();
        loop {
            // While an agent makes its maps they can't be read.
            let reached = self.reached();
            if reached.as_ref().is_ok_and(|reached| reached == wanted) {
                return Ok(began.elapsed());
            }
            ensure!(began.elapsed() < PATIENCE, "the kernel holds {reached:?} instead of {wanted:?}");
            thread::sleep(Duration::from_millis(2));
        }
    }

    /// A client in a cgroup of its own.
    pub(super) fn client(&mut self) -> Result<Client> {
        self.clients += 1;
        let cgroup = self.cgroup.child(&format!("client-{}", self.clients))?;
        Ok(Client { dialler: Dialler::start(&self.lab, &cgroup, &self.netns)?, _cgroup: cgroup })
    }

    /// Replaces a manifest as a whole, or removes it.
    pub(super) fn write(&self, file: &str, contents: Option<&str>) -> Result<()> {
        write(&self.manifests, file, contents)
    }
}

/// Replaces a manifest in `folder` as a whole, or removes it.
pub(super) fn write(folder: &Path, file: &str, contents: Option<&str>) -> Result<()> {
    let path = folder.join(file);
    match contents {
        Some(contents) => {
            let draft = folder.join(format!(".{file}"));
            fs::write(&draft, contents).with_context(|| format!("write {}", draft.display()))?;
            fs::rename(&draft, &path).with_context(|| format!("replace {}", path.display()))
        }
        None if path.exists() => fs::remove_file(&path).with_context(|| format!("remove {}", path.display())),
        None => Ok(()),
    }
}

/// A federated service, and a slice of each cluster's endpoints, for TCP and UDP.
pub(super) fn manifest(name: &str, address: Ipv4Addr, endpoints: &[Endpoint]) -> String {
    let ports =
        |port: u16| format!("[{{name: tcp, port: {port}, protocol: TCP}}, {{name: udp, port: {port}, protocol: UDP}}]");
    let mut text = format!(
        "apiVersion: v1\nkind: Service\nmetadata: {{name: {name}, namespace: goals, labels: \
         {{mirror.linkerd.io/mirrored-service: \"true\"}}}}\nspec: {{clusterIP: {address}, clusterIPs: [{address}], \
         ports: {}}}\n",
        ports(SERVICE_PORT)
    );
    let clusters: BTreeSet<&str> = endpoints.iter().map(|(cluster, _)| *cluster).collect();
    for cluster in clusters {
        let ready = endpoints.iter().filter(|(of, _)| *of == cluster).map(|(_, address)| (*address.ip(), true));
        text += "---\n";
        text += &slice(name, cluster, &ready.collect::<Vec<_>>());
    }
    text
}

/// A slice of a cluster's endpoints, each ready or not.
pub(super) fn slice(service: &str, cluster: &str, endpoints: &[(Ipv4Addr, bool)]) -> String {
    let endpoints = endpoints.iter().map(|(address, ready)| {
        format!("{{addresses: [{address}], conditions: {{ready: {ready}, serving: {ready}, terminating: false}}}}")
    });
    format!(
        "apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata: {{name: {service}-{cluster}, namespace: goals, \
         labels: {{kubernetes.io/service-name: {service}, multicluster.kubernetes.io/source-cluster: \
         {cluster}}}}}\naddressType: IPv4\nports: [{{name: tcp, port: {BACKEND_PORT}, protocol: TCP}}, {{name: udp, \
         port: {BACKEND_PORT}, protocol: UDP}}]\nendpoints: [{}]\n",
        endpoints.collect::<Vec<_>>().join(", ")
    )
}

fn v4(addr: [u8; 16], port: [u8; 2]) -> Option<SocketAddrV4> {
    match IpAddr::from(addr).to_canonical() {
        IpAddr::V4(ip) => Some(SocketAddrV4::new(ip, u16::from_be_bytes(port))),
        IpAddr::V6(_) => None,
    }
}

/// Answers by TCP and UDP at `address`, with the address, for as long as this process runs.
fn serve(netns: &Netns, address: SocketAddrV4) -> Result<()> {
    let (listener, datagrams) = netns.run(|| -> Result<_> {
        let at = SocketAddr::from(address);
        Ok((TcpListener::bind(at)?, UdpSocket::bind(at)?))
    })??;
    thread::spawn(move || {
        while let Ok((mut stream, _)) = listener.accept() {
            // A client that is gone is none of ours.
            write!(stream, "{address}").ok();
        }
    });
    thread::spawn(move || {
        let mut datagram = [0; 64];
        while let Ok((_, from)) = datagrams.recv_from(&mut datagram) {
            datagrams.send_to(address.to_string().as_bytes(), from).ok();
        }
    });
    Ok(())
}
