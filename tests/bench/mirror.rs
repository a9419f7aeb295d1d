//! How long a mirror takes: from what two peers export to what is there, and from a peer's slice to ours.
//!
//! Real API servers, and the program `tombolo mirror` as it runs in a cluster, all on this machine. `cargo xtask bench mirror` builds
//! all of it in release and runs this.

#[path = "../cluster/server.rs"]
#[expect(dead_code, reason = "the tests use all of it")]
mod server;

use anyhow::{Context, bail, ensure};
use futures_util::{StreamExt, TryStreamExt, stream};
use k8s_openapi::api::{
    core::v1::{Namespace, Service},
    discovery::v1::EndpointSlice,
};
use kube::{
    Api, Client, ResourceExt,
    api::{ListParams, Patch, PatchParams, PostParams, WatchEvent, WatchParams},
};
use serde_json::{Value, json};
use server::Server;
use std::{
    collections::BTreeMap,
    env, fs,
    process::{Child, Command, Stdio},
    time::Duration,
};
use tokio::{
    sync::mpsc,
    time::{Instant, MissedTickBehavior, interval, sleep},
};

const NAMESPACE: &str = "shop";
/// Requests that are on their way to a peer at once while it is filled.
const AT_ONCE: usize = 8;
/// After so long without news nothing is on its way any more.
const QUIET: Duration = Duration::from_secs(5);
const PATIENCE: Duration = Duration::from_secs(300);

struct Wanted {
    flat: usize,
    federated: usize,
    rate: u32,
    seconds: u64,
    json: Option<String>,
}

fn main() -> anyhow::Result<()> {
    let wanted = Wanted::of(env::args().skip(1))?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let Some(figures) = runtime.block_on(measure(&wanted))? else { return Ok(()) };
    println!("{figures:#}");
    if let Some(file) = &wanted.json {
        fs::write(file, figures.to_string()).with_context(|| format!("write {file}"))?;
    }
    Ok(())
}

impl Wanted {
    fn of(mut words: impl Iterator<Item = String>) -> anyhow::Result<Self> {
        let mut wanted = Self { flat: 200, federated: 100, rate: 300, seconds: 30, json: None };
        while let Some(word) = words.next() {
            let mut value = || words.next().with_context(|| format!("{word} needs a value"));
            match word.as_str() {
                "--flat" => wanted.flat = value()?.parse()?,
                "--federated" => wanted.federated = value()?.parse()?,
                "--rate" => wanted.rate = value()?.parse()?,
                "--seconds" => wanted.seconds = value()?.parse()?,
                "--json" => wanted.json = Some(value()?),
                // cargo's own.
                "--bench" => {}
                other => bail!("{other} is none of --flat, --federated, --rate, --seconds, --json"),
            }
        }
        Ok(wanted)
    }
}

async fn measure(wanted: &Wanted) -> anyhow::Result<Option<Value>> {
    let mut servers = Vec::new();
    for _ in 0..3 {
        let Some(server) = Server::start().await? else { return Ok(None) };
        let namespaces: Api<Namespace> = Api::all(server.client(0, "admin").await?);
        namespaces
            .create(&PostParams::default(), &serde_json::from_value(json!({"metadata": {"name": NAMESPACE}}))?)
            .await?;
        servers.push(server);
    }
    let [west, east, north] = &servers[..] else { bail!("three servers") };
    let (own, east_api, north_api) =
        (west.client(0, "admin").await?, east.client(0, "admin").await?, north.client(0, "admin").await?);
    fill(&east_api, "flat", wanted.flat, json!({"mirror.linkerd.io/exported": "remote-discovery"}), 108).await?;

    let mirror = Mirror::start(west, east, north)?;
    let began = mirror.leads().await?;
    let listed = until_mirrored(&own, "flat", "-east", wanted.flat, 1, began).await?;

    let began = Instant::now();
    let member = json!({"mirror.linkerd.io/federated": "member"});
    fill(&east_api, "fed", wanted.federated, member.clone(), 109).await?;
    fill(&north_api, "fed", wanted.federated, member, 116).await?;
    let filled = Instant::now();
    let since_first = until_mirrored(&own, "fed", "-federated", wanted.federated, 2, began).await?;
    let since_last = filled.elapsed();

    // Labels that are set on Services which are there already, all at once.
    fill(&east_api, "late", wanted.flat, json!({}), 110).await?;
    let began = Instant::now();
    let services: Api<Service> = Api::namespaced(east_api.clone(), NAMESPACE);
    let label = Patch::Merge(json!({"metadata": {"labels": {"mirror.linkerd.io/exported": "remote-discovery"}}}));
    let names: Vec<String> = (0..wanted.flat).map(|number| format!("late-{number}")).collect();
    stream::iter(&names)
        .map(async |name| anyhow::Ok(services.patch(name, &PatchParams::default(), &label).await.map(drop)?))
        .buffer_unordered(AT_ONCE)
        .try_collect::<Vec<()>>()
        .await?;
    let labelled = began.elapsed();
    let late = until_mirrored(&own, "late", "-east", wanted.flat, 1, began).await?;

    let mut latencies = changes(&own, &east_api, wanted).await?;
    latencies.sort();
    let at = |share: f64| {
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            clippy::cast_precision_loss,
            reason = "a place"
        )]
        let place = (latencies.len() as f64 * share) as usize;
        latencies.get(place.min(latencies.len().saturating_sub(1))).map(|time| milliseconds(*time))
    };
    Ok(Some(json!({
        "flat": {"services": wanted.flat, "listed_ms": milliseconds(listed), "labelled_within_ms": milliseconds(labelled),
            "labelled_ms": milliseconds(late)},
        "federated": {"services": wanted.federated, "links": 2, "since_first_ms": milliseconds(since_first),
            "since_last_ms": milliseconds(since_last)},
        "changes": {"wanted_a_second": wanted.rate, "seconds": wanted.seconds, "made": latencies.len(),
            "p50_ms": at(0.5), "p90_ms": at(0.9), "p99_ms": at(0.99), "worst_ms": at(1.0)},
        "mirror": {"resident_kib": mirror.resident_kib()?},
    })))
}

/// The program that is measured.
struct Mirror {
    child: Child,
    log: std::path::PathBuf,
}

impl Mirror {
    fn start(west: &Server, east: &Server, north: &Server) -> anyhow::Result<Self> {
        let program = env::var_os("TOMBOLO").context("$TOMBOLO names the program")?;
        let log = env::temp_dir().join(format!("tombolo-bench-mirror-{}.log", std::process::id()));
        let output = fs::File::create(&log)?;
        let link = |name: &str, server: &Server| -> anyhow::Result<String> {
            Ok(format!("--link={name}={}", server.kubeconfig(0, "admin")?.display()))
        };
        let child = Command::new(program)
            .args([
                "mirror",
                "--cluster=west",
                &format!("--lease={NAMESPACE}/mirror"),
                &link("east", east)?,
                &link("north", north)?,
            ])
            .arg("--kubeconfig")
            .arg(west.kubeconfig(0, "admin")?)
            .stdin(Stdio::null())
            .stdout(output.try_clone()?)
            .stderr(output)
            .spawn()
            .context("start the mirror")?;
        Ok(Self { child, log })
    }

    /// Waits until it has its lease: from then on it works.
    async fn leads(&self) -> anyhow::Result<Instant> {
        let began = Instant::now();
        loop {
            if fs::read_to_string(&self.log)?.contains("leading") {
                return Ok(Instant::now());
            }
            ensure!(began.elapsed() < PATIENCE, "the mirror doesn't lead: {}", self.log.display());
            sleep(Duration::from_millis(5)).await;
        }
    }

    fn resident_kib(&self) -> anyhow::Result<u64> {
        let status = fs::read_to_string(format!("/proc/{}/status", self.child.id()))?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("VmRSS")?;
        Ok(line.split_whitespace().next().context("a number")?.parse()?)
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

/// Makes Services with a slice each, of one endpoint.
async fn fill(client: &Client, stem: &str, count: usize, labels: Value, octet: u8) -> anyhow::Result<()> {
    let services: Api<Service> = Api::namespaced(client.clone(), NAMESPACE);
    let slices: Api<EndpointSlice> = Api::namespaced(client.clone(), NAMESPACE);
    let make = async |number: usize| -> anyhow::Result<()> {
        let name = format!("{stem}-{number}");
        let service =
            json!({"metadata": {"name": name, "labels": labels}, "spec": {"ports": [{"name": "http", "port": 80}]}});
        services.create(&PostParams::default(), &serde_json::from_value(service)?).await?;
        let address = format!("10.{octet}.{}.{}", number / 200, number % 200 + 1);
        let slice = json!({
            "metadata": {"name": format!("{name}-1"), "labels": {
                "kubernetes.io/service-name": name,
                "endpointslice.kubernetes.io/managed-by": "endpointslice-controller.k8s.io",
            }},
            "addressType": "IPv4", "endpoints": [{"addresses": [address]}], "ports": [{"name": "http", "port": 8080}],
        });
        slices.create(&PostParams::default(), &serde_json::from_value(slice)?).await?;
        Ok(())
    };
    stream::iter(0..count).map(make).buffer_unordered(AT_ONCE).try_collect::<Vec<()>>().await?;
    Ok(())
}

/// Waits until all Services of `stem` are there with so many endpoints each; how long that was since `began`.
async fn until_mirrored(
    own: &Client,
    stem: &str,
    suffix: &str,
    count: usize,
    endpoints: usize,
    began: Instant,
) -> anyhow::Result<Duration> {
    let services: Api<Service> = Api::namespaced(own.clone(), NAMESPACE);
    let slices: Api<EndpointSlice> = Api::namespaced(own.clone(), NAMESPACE);
    loop {
        let is_its = |name: &str| name.starts_with(&format!("{stem}-")) && name.ends_with(suffix);
        let found = slices.list(&ListParams::default()).await?;
        let elapsed = began.elapsed();
        let mut by_service: BTreeMap<String, usize> = BTreeMap::new();
        for slice in found {
            let owner = slice.labels().get("kubernetes.io/service-name").cloned().unwrap_or_default();
            if is_its(&owner) {
                *by_service.entry(owner).or_default() += slice.endpoints.len();
            }
        }
        let whole = by_service.values().filter(|found| **found == endpoints).count();
        if whole == count {
            let found = services.list(&ListParams::default()).await?;
            let there = found.iter().filter(|service| is_its(&service.name_any())).count();
            ensure!(there == count, "{there} Services of {count}");
            return Ok(elapsed);
        }
        ensure!(elapsed < PATIENCE, "{whole} of {count} {stem}{suffix} after {elapsed:?}");
        sleep(Duration::from_millis(20)).await;
    }
}

/// Changes slices of the peer, and watches ours: how long each change took, from the answer to the peer's write on.
///
/// A change that a later one of the same slice overtakes has come when that one has.
async fn changes(own: &Client, peer: &Client, wanted: &Wanted) -> anyhow::Result<Vec<Duration>> {
    let (seen, mut news) = mpsc::unbounded_channel();
    let watched: Api<EndpointSlice> = Api::namespaced(own.clone(), NAMESPACE);
    let version =
        watched.list(&ListParams::default().limit(1)).await?.metadata.resource_version.context("a version")?;
    let watching = tokio::spawn(async move {
        let mut events = watched.watch(&WatchParams::default(), &version).await?.boxed();
        while let Some(event) = events.try_next().await? {
            if let WatchEvent::Added(slice) | WatchEvent::Modified(slice) = event {
                let owner = slice.labels().get("kubernetes.io/service-name").cloned().unwrap_or_default();
                for endpoint in slice.endpoints {
                    drop(seen.send((owner.clone(), endpoint.addresses[0].clone(), Instant::now())));
                }
            }
        }
        anyhow::Ok(())
    });
    let (made, mut writes) = mpsc::unbounded_channel();
    let slices: Api<EndpointSlice> = Api::namespaced(peer.clone(), NAMESPACE);
    let total = u64::from(wanted.rate) * wanted.seconds;
    let mut tick = interval(Duration::from_secs(1) / wanted.rate);
    tick.set_missed_tick_behavior(MissedTickBehavior::Burst);
    let mut pending: BTreeMap<String, Vec<(String, Instant)>> = BTreeMap::new();
    let mut early: BTreeMap<(String, String), Instant> = BTreeMap::new();
    let mut latencies = Vec::new();
    let mut started = 0;
    let mut settled =
        |owner: String, address: &str, at: Instant, pending: &mut BTreeMap<String, Vec<(String, Instant)>>| {
            let waiting = pending.entry(owner).or_default();
            let Some(place) = waiting.iter().position(|(known, _)| known == address) else { return false };
            latencies.extend(waiting.drain(..=place).map(|(_, written)| at.saturating_duration_since(written)));
            true
        };
    let deadline = Instant::now() + Duration::from_secs(wanted.seconds) + PATIENCE;
    let mut written = 0;
    let mut last = Instant::now();
    while written < total || pending.values().any(|waiting| !waiting.is_empty()) {
        // Answers may come in another order than their writes were done: what was overtaken so is never seen.
        if written == total && last.elapsed() > QUIET {
            break;
        }
        ensure!(
            Instant::now() < deadline,
            "{written} of {total} written, {} on their way",
            pending.values().map(Vec::len).sum::<usize>()
        );
        ensure!(!watching.is_finished(), "the watch ended");
        tokio::select! {
            _ = tick.tick(), if started < total => {
                let service = usize::try_from(started).context("a number")? % wanted.flat;
                let address = format!("10.{}.{}.{}", 111 + started / 65_025, started / 255 % 255, started % 255);
                started += 1;
                let (slices, made) = (slices.clone(), made.clone());
                tokio::spawn(async move {
                    let patch = Patch::Merge(json!({"endpoints": [{"addresses": [address]}]}));
                    let done = slices.patch(&format!("flat-{service}-1"), &PatchParams::default(), &patch).await;
                    drop(made.send((format!("flat-{service}-east"), address, Instant::now(), done.map(drop))));
                });
            }
            Some((owner, address, at, done)) = writes.recv() => {
                done?;
                written += 1;
                // Ours may be seen before the answer is.
                pending.entry(owner.clone()).or_default().push((address.clone(), at));
                if let Some(seen) = early.remove(&(owner.clone(), address.clone())) {
                    settled(owner, &address, seen, &mut pending);
                }
            }
            Some((owner, address, at)) = news.recv() => {
                last = at;
                if !settled(owner.clone(), &address, at, &mut pending) {
                    early.insert((owner, address), at);
                }
            }
            () = sleep(Duration::from_secs(1)) => {}
        }
    }
    watching.abort();
    Ok(latencies)
}

fn milliseconds(time: Duration) -> f64 {
    (time.as_secs_f64() * 10_000.0).round() / 10.0
}
