//! The programs that are measured, as processes of their own, and what they use.

use crate::{NAMESPACE, server::Server};
use anyhow::{Context, ensure};
use k8s_openapi::api::core::v1::Service;
use kube::{Api, Client, ResourceExt, api::ListParams};
use lab::{bpffs, cgroup::Cgroup, cleanup, netns::Netns, process::Process};
use nix::{
    sys::signal::{self, Signal},
    unistd::Pid,
};
use serde_json::{Value, json};
use std::{
    collections::{BTreeMap, BTreeSet},
    env, fs,
    net::{IpAddr, Ipv4Addr},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::Duration,
};
use tokio::time::{Instant, sleep};
use tombolo::datapath::pins::Pins;
use tombolo_ebpf::abi::{FrontendKey, TCP};

/// How long anything may take.
pub(crate) const PATIENCE: Duration = Duration::from_secs(300);
/// How long a program may take to end when it is asked to.
const LEAVING: Duration = Duration::from_secs(10);

fn tombolo() -> anyhow::Result<PathBuf> {
    Ok(PathBuf::from(env::var_os("TOMBOLO").context("$TOMBOLO names the program")?))
}

/// A mirror of one cluster.
pub(crate) struct Mirror {
    child: Child,
    log: PathBuf,
}

impl Mirror {
    /// Starts the mirror of `own`, linked with `peers` by their names.
    pub(crate) fn start(own: &Server, peers: &[(&str, &Server)]) -> anyhow::Result<Self> {
        let log = env::temp_dir().join(format!("tombolo-bench-mirror-{}.log", std::process::id()));
        let output = fs::File::create(&log)?;
        let mut command = Command::new(tombolo()?);
        command.args(["mirror", "--cluster=west", &format!("--lease={NAMESPACE}/mirror")]);
        for (name, server) in peers {
            command.arg(format!("--link={name}={}", server.kubeconfig(0, "admin")?.display()));
        }
        let child = command
            .arg("--kubeconfig")
            .arg(own.kubeconfig(0, "admin")?)
            .stdin(Stdio::null())
            .stdout(output.try_clone()?)
            .stderr(output)
            .spawn()
            .context("start the mirror")?;
        Ok(Self { child, log })
    }

    /// Waits until it has its lease: from then on it works.
    pub(crate) async fn leads(&self) -> anyhow::Result<Instant> {
        self.says("leading").await
    }

    /// Waits until its log contains `what`.
    pub(crate) async fn says(&self, what: &str) -> anyhow::Result<Instant> {
        let began = Instant::now();
        loop {
            if fs::read_to_string(&self.log)?.contains(what) {
                return Ok(Instant::now());
            }
            ensure!(began.elapsed() < PATIENCE, "the mirror doesn't say {what:?}: {}", self.log.display());
            sleep(Duration::from_millis(5)).await;
        }
    }

    /// What it uses.
    pub(crate) fn usage(&self) -> anyhow::Result<Usage> {
        Usage::of(self.child.id())
    }

    /// Has it end in order, so that the next one need not wait for its lease.
    pub(crate) fn stop(mut self) -> anyhow::Result<()> {
        let id = Pid::from_raw(i32::try_from(self.child.id())?);
        signal::kill(id, Signal::SIGTERM).context("ask the mirror to end")?;
        self.child.wait().context("wait for the mirror")?;
        Ok(())
    }
}

impl Drop for Mirror {
    fn drop(&mut self) {
        if let Err(error) = self.child.kill().and_then(|()| self.child.wait()).and_then(|_| fs::remove_file(&self.log))
        {
            println!("the mirror was not cleaned up: {error}");
        }
    }
}

/// An agent with maps of its own, on a cgroup of its own.
pub(crate) struct Agent {
    process: Process,
    place: PathBuf,
    pins: PathBuf,
    // Last, with what is attached to it: the one that the agent is in, and the one above.
    _cgroups: [Cgroup; 2],
}

impl Agent {
    /// Starts an agent on `own`, without anything from an earlier one. Needs root.
    pub(crate) fn start(own: &Server) -> anyhow::Result<Self> {
        let cgroup = Cgroup::new("node")?;
        let place = cleanup::folder()?.join("node");
        fs::create_dir_all(&place).with_context(|| format!("create {}", place.display()))?;
        let pins = bpffs::folder()?.join("node");
        let output = fs::File::create(place.join("agent.log"))?;
        let inner = cgroup.child("agent")?;
        let mut command = inner.command(tombolo()?);
        command
            .args(["agent", "--cluster=west", "--node=node-1", "--zone=west-1"])
            .arg("--kubeconfig")
            .arg(own.kubeconfig(0, "admin")?)
            .arg("--cgroup")
            .arg(cgroup.path())
            .arg("--pins")
            .arg(&pins)
            .arg("--socket")
            .arg(place.join("agent.sock"))
            .stdin(Stdio::null())
            .stdout(output.try_clone()?)
            .stderr(output);
        let process = Process::start(&Netns::current()?, command)?.called("tombolo agent");
        Ok(Self { process, place, pins, _cgroups: [inner, cgroup] })
    }

    /// Its pins.
    pub(crate) fn pins(&self) -> Pins {
        Pins::new(&self.pins)
    }

    /// What it has logged.
    pub(crate) fn log(&self) -> anyhow::Result<String> {
        Ok(fs::read_to_string(self.place.join("agent.log"))?)
    }

    /// Fails if it has ended.
    pub(crate) fn check(&mut self) -> anyhow::Result<()> {
        let ended = self.process.ended()?;
        ensure!(ended.is_none(), "the agent ended with {ended:?}: {}", self.log()?);
        Ok(())
    }

    /// What it uses.
    pub(crate) fn usage(&self) -> anyhow::Result<Usage> {
        Usage::of(self.process.id())
    }

    /// How much memory of the kernel its maps take, in KiB, as the kernel counts it.
    pub(crate) fn maps_kib(&self) -> anyhow::Result<u64> {
        let mut bytes_by_map = BTreeMap::new();
        for entry in fs::read_dir(format!("/proc/{}/fdinfo", self.process.id()))? {
            let text = fs::read_to_string(entry?.path()).unwrap_or_default();
            let field = |name: &str| text.lines().find_map(|line| line.strip_prefix(name)?.trim().parse::<u64>().ok());
            if let (Some(id), Some(bytes)) = (field("map_id:"), field("memlock:")) {
                bytes_by_map.insert(id, bytes);
            }
        }
        Ok(bytes_by_map.values().sum::<u64>() / 1024)
    }

    /// Ends it and takes away all that it put into the kernel.
    pub(crate) fn stop(mut self) -> anyhow::Result<()> {
        self.process.signal(Signal::SIGTERM)?;
        self.process.wait(LEAVING)?.context("the agent doesn't end")?;
        Ok(())
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        let mut end = || -> anyhow::Result<()> {
            self.process.kill()?;
            self.pins().unload()?;
            fs::remove_dir_all(&self.place)?;
            // Folders above are this process's alone, and go when they are empty.
            for folder in [self.place.parent(), self.pins.parent()].into_iter().flatten() {
                remove_if_empty(folder);
            }
            Ok(())
        };
        if let Err(error) = end() {
            println!("the agent was not cleaned up: {error:#}");
        }
    }
}

fn remove_if_empty(folder: &Path) {
    fs::remove_dir(folder).ok();
}

/// What a process uses.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Usage {
    id: u32,
    /// What it has in memory, and the most that it ever had or had since [`Self::forget_peak`].
    resident_kib: u64,
    peak_kib: u64,
    /// Processor time in user space and in the kernel, of all its threads.
    cpu: Duration,
}

impl Usage {
    fn of(id: u32) -> anyhow::Result<Self> {
        let status = fs::read_to_string(format!("/proc/{id}/status"))?;
        let field = |name: &str| -> anyhow::Result<u64> {
            let line = status.lines().find_map(|line| line.strip_prefix(name)).context(name.to_owned())?;
            Ok(line.split_whitespace().next().context("a number")?.parse()?)
        };
        let stat = fs::read_to_string(format!("/proc/{id}/stat"))?;
        // After the name, which may contain anything: the state first, which is the third field.
        let (_, fields) = stat.rsplit_once(')').context("a name")?;
        let fields: Vec<&str> = fields.split_whitespace().collect();
        let ticks = |place: usize| -> anyhow::Result<u64> { Ok(fields.get(place - 3).context("a field")?.parse()?) };
        let hz = nix::unistd::sysconf(nix::unistd::SysconfVar::CLK_TCK)?.context("ticks a second")?;
        let cpu = Duration::from_secs(ticks(14)? + ticks(15)?) / u32::try_from(hz)?;
        Ok(Self { id, resident_kib: field("VmRSS:")?, peak_kib: field("VmHWM:")?, cpu })
    }

    /// Processor time since `before`.
    pub(crate) fn cpu_since(&self, before: &Self) -> Duration {
        self.cpu.saturating_sub(before.cpu)
    }

    /// Has the most memory counted from now on.
    pub(crate) fn forget_peak(&self) -> anyhow::Result<()> {
        fs::write(format!("/proc/{}/clear_refs", self.id), "5").context("forget the most memory")
    }

    /// As figures, with the processor time since `before`.
    pub(crate) fn since(&self, before: &Self) -> Value {
        Self { cpu: self.cpu_since(before), ..*self }.figures()
    }

    /// As figures.
    pub(crate) fn figures(&self) -> Value {
        json!({"resident_kib": self.resident_kib, "peak_kib": self.peak_kib, "cpu_s": self.cpu.as_secs_f64()})
    }
}

/// The frontends of all Services of the cluster, by name: their address and port 80.
pub(crate) async fn frontends(own: &Client) -> anyhow::Result<BTreeMap<String, FrontendKey>> {
    let services: Api<Service> = Api::namespaced(own.clone(), NAMESPACE);
    let mut keys = BTreeMap::new();
    for service in services.list(&ListParams::default()).await? {
        let address: Option<IpAddr> = service.spec.as_ref().and_then(|spec| spec.cluster_ip.as_ref()?.parse().ok());
        let Some(IpAddr::V4(address)) = address else { continue };
        keys.insert(service.name_any(), key(address, 80));
    }
    Ok(keys)
}

fn key(address: Ipv4Addr, port: u16) -> FrontendKey {
    FrontendKey { addr: address.to_ipv6_mapped().octets(), port: port.to_be_bytes(), proto: TCP, pad: 0 }
}

/// Whether one of these is `address`.
pub(crate) fn has(reached: &BTreeSet<([u8; 16], [u8; 2])>, address: Ipv4Addr) -> bool {
    reached.iter().any(|(addr, _)| *addr == address.to_ipv6_mapped().octets())
}
