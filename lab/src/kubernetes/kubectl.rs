//! Talking to a cluster the way people do.

use super::ClusterOption;
use anyhow::{Context, Result, bail, ensure};
use ipnet::IpNet;
use serde_json::{Value, json};
use std::{
    io::Write,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    thread,
    time::{Duration, Instant},
};

/// How long anything may take that pods have to do for it, on a busy machine.
pub(super) const PATIENCE: Duration = Duration::from_secs(180);

/// kubectl as a cluster's administrator.
#[derive(Clone, Debug)]
pub(super) struct Kubectl {
    /// The cluster's name.
    pub(super) name: &'static str,
    /// The range of its pods.
    pub(super) pods: IpNet,
    program: PathBuf,
    /// How it is reached.
    pub(super) kubeconfig: PathBuf,
}

impl Kubectl {
    pub(super) fn new(program: &Path, cluster: &ClusterOption) -> Self {
        let ClusterOption { name, kubeconfig, pods } = cluster.clone();
        Self { name, pods, program: program.to_owned(), kubeconfig }
    }

    /// A command with these arguments.
    pub(super) fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(&self.program);
        command.arg("--kubeconfig").arg(&self.kubeconfig).args(args);
        command
    }

    /// What a command writes.
    pub(super) fn run(&self, args: &[&str]) -> Result<String> {
        self.filter(args, "")
    }

    /// What a command writes when it is given this input.
    pub(super) fn filter(&self, args: &[&str], input: &str) -> Result<String> {
        let words = || format!("kubectl {} in {}", args.join(" "), self.name);
        let mut command = self.command(args);
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .with_context(|| format!("run {}", self.program.display()))?;
        // A pipe holds more than any object here is long.
        let mut stdin = child.stdin.take().expect("it is piped");
        let written = stdin.write_all(input.as_bytes());
        drop(stdin);
        let done = child.wait_with_output().with_context(words)?;
        if !done.status.success() {
            bail!("{}: {}", words(), String::from_utf8_lossy(&done.stderr).trim());
        }
        written.with_context(words)?;
        String::from_utf8(done.stdout).with_context(words)
    }

    /// An object or a list.
    pub(super) fn get(&self, args: &[&str]) -> Result<Value> {
        let answer = self.run(&[&["get"], args, &["-o", "json"]].concat())?;
        serde_json::from_str(&answer).with_context(|| format!("understand kubectl get {}", args.join(" ")))
    }

    /// Creates the objects or makes them like this, as the owner of their fields.
    pub(super) fn apply(&self, objects: &[Value]) -> Result<()> {
        let list = json!({"apiVersion": "v1", "kind": "List", "items": objects}).to_string();
        let apply = ["apply", "--server-side", "--field-manager=tombolo-lab", "--force-conflicts", "-f", "-"];
        self.filter(&apply, &list).map(drop)
    }

    /// Waits until all pods of a workload are new and ready.
    pub(super) fn rolled_out(&self, namespace: &str, workload: &str) -> Result<()> {
        let timeout = format!("--timeout={}s", PATIENCE.as_secs());
        self.run(&["--namespace", namespace, "rollout", "status", workload, &timeout]).map(drop)
    }

    /// The pods with these labels that are not being deleted.
    pub(super) fn pods(&self, namespace: &str, selector: &str) -> Result<Vec<Value>> {
        let list = self.get(&["--namespace", namespace, "pods", "--selector", selector])?;
        let items = list["items"].as_array().context("a list of pods")?;
        Ok(items.iter().filter(|pod| pod["metadata"]["deletionTimestamp"].is_null()).cloned().collect())
    }

    /// The names of objects with these labels.
    pub(super) fn names(&self, namespace: &str, kind: &str, selector: &str) -> Result<Vec<String>> {
        let names = self.run(&["--namespace", namespace, "get", kind, "--selector", selector, "-o", "name"])?;
        Ok(names.lines().map(str::to_owned).collect())
    }

    /// A Service's ClusterIP, once there is one.
    pub(super) fn cluster_ip(&self, namespace: &str, service: &str) -> Result<std::net::IpAddr> {
        eventually(&format!("Service {service} in {}", self.name), || {
            let service = self.get(&["--namespace", namespace, "service", service])?;
            let address = service["spec"]["clusterIP"].as_str().unwrap_or_default();
            address.parse().with_context(|| format!("its ClusterIP is {address:?}"))
        })
    }
}

/// Tries until it works, for as long as pods may take.
pub(super) fn eventually<T>(what: &str, mut check: impl FnMut() -> Result<T>) -> Result<T> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        match check() {
            Err(_) if Instant::now() < deadline => thread::sleep(Duration::from_millis(300)),
            done => return done.with_context(|| what.to_owned()),
        }
    }
}

/// A text of an object, which has to be there.
pub(super) fn text<'a>(object: &'a Value, pointer: &str) -> Result<&'a str> {
    let found = object.pointer(pointer).and_then(Value::as_str);
    let found = found.with_context(|| format!("no {pointer} in {}", object["metadata"]["name"]))?;
    ensure!(!found.is_empty(), "{pointer} is empty in {}", object["metadata"]["name"]);
    Ok(found)
}
