//! Faults of what the agent is told: the folder of manifests stands for the API server and its watches.

use super::{
    Fault, Healed,
    ground::{Ground, HERE},
};
use crate::clusters::NAMES;
use anyhow::{Context, Result};
use std::{
    fmt::Write as _,
    fs::{self, File},
    io::Write as _,
    path::PathBuf,
    time::Duration,
};

pub(super) const FAULTS: &[Fault] = &[
    Fault { name: "source-truncated", strikes: "half a list of slices, for 3 s", strike: truncated },
    Fault { name: "source-empty", strikes: "an empty list of slices that is being written, for 1 s", strike: empty },
    Fault { name: "source-slow", strikes: "a list that comes a bit at a time over 3 s", strike: slow },
    Fault { name: "source-garbage", strikes: "bytes that mean nothing, for 3 s", strike: garbage },
    Fault { name: "source-reordered", strikes: "old and new states of north in turns, 40 of them", strike: reordered },
    Fault { name: "source-gone", strikes: "the folder is not there for 5 s", strike: gone },
    Fault { name: "source-gone-at-start", strikes: "the agent restarts half-fed: no slices", strike: gone_at_start },
    Fault { name: "peer-flood", strikes: "a peer's slices of 2,000 endpoints change 50 times in 5 s", strike: flood },
];

fn slices(ground: &Ground) -> PathBuf {
    ground.clusters.cluster(HERE).manifests().join("endpointslices.yaml")
}

fn read(path: &PathBuf) -> Result<String> {
    fs::read_to_string(path).with_context(|| format!("read {}", path.display()))
}

fn write(path: &PathBuf, text: impl AsRef<[u8]>) -> Result<()> {
    fs::write(path, text).with_context(|| format!("write {}", path.display()))
}

fn truncated(ground: &mut Ground) -> Result<Healed> {
    let path = slices(ground);
    let whole = read(&path)?;
    // In the middle of a line.
    let half = whole.len() / 2;
    let cut = whole[..half].rfind(": ").context("YAML has colons")? + 1;
    write(&path, &whole[..cut])?;
    ground.pass(Duration::from_secs(3))?;
    write(&path, &whole)?;
    Ok(Healed::after(ground.follows_changes()?))
}

fn empty(ground: &mut Ground) -> Result<Healed> {
    let path = slices(ground);
    let whole = read(&path)?;
    let mut file = File::create(&path).context("empty the list")?;
    ground.pass(Duration::from_secs(1))?;
    file.write_all(whole.as_bytes()).context("write the list")?;
    drop(file);
    Ok(Healed::after(ground.follows_changes()?))
}

fn slow(ground: &mut Ground) -> Result<Healed> {
    let path = slices(ground);
    let whole = read(&path)?;
    let mut file = File::create(&path).context("empty the list")?;
    for part in whole.as_bytes().chunks(whole.len().div_ceil(30)) {
        file.write_all(part).context("write a part of the list")?;
        ground.pass(Duration::from_millis(100))?;
    }
    drop(file);
    Ok(Healed::after(ground.follows_changes()?))
}

fn garbage(ground: &mut Ground) -> Result<Healed> {
    let path = slices(ground);
    let whole = read(&path)?;
    let bytes: Vec<u8> = (0..=255).cycle().take(4096).collect();
    write(&path, &bytes)?;
    ground.pass(Duration::from_secs(3))?;
    write(&path, &whole)?;
    Ok(Healed::after(ground.follows_changes()?))
}

fn reordered(ground: &mut Ground) -> Result<Healed> {
    for number in 0..40 {
        let withdrawn = &mut ground.clusters.mirroring.withdrawn;
        if number % 2 == 0 {
            withdrawn.insert("north".to_owned());
        } else {
            withdrawn.clear();
        }
        ground.clusters.publish()?;
        ground.pass(Duration::from_millis(20 + number * 3 % 50))?;
    }
    Ok(Healed::after(ground.follows(&NAMES)?))
}

fn gone(ground: &mut Ground) -> Result<Healed> {
    let folder = ground.clusters.cluster(HERE).manifests().to_owned();
    let away = folder.with_extension("away");
    fs::rename(&folder, &away).context("take the folder away")?;
    let waited = ground.pass(Duration::from_secs(5));
    fs::rename(&away, &folder).context("put the folder back")?;
    waited?;
    Ok(Healed::after(ground.follows_changes()?))
}

fn gone_at_start(ground: &mut Ground) -> Result<Healed> {
    let path = slices(ground);
    let whole = read(&path)?;
    let half = whole.len() / 2;
    let cut = whole[..half].rfind(": ").context("YAML has colons")? + 1;
    ground.agent()?.kill()?;
    write(&path, &whole[..cut])?;
    ground.agent()?.start()?;
    ground.pass(Duration::from_secs(4))?;
    write(&path, &whole)?;
    ground.ready()?;
    Ok(Healed::after(ground.follows_changes()?))
}

fn flood(ground: &mut Ground) -> Result<Healed> {
    let path = ground.clusters.cluster(HERE).manifests().join("flood.yaml");
    for number in 0..50 {
        write(&path, flooded(number))?;
        ground.pass(Duration::from_millis(100))?;
    }
    let followed = ground.follows_changes();
    fs::remove_file(&path).with_context(|| format!("remove {}", path.display()))?;
    Ok(Healed::after(followed?).with("time to follow a change in the midst of it"))
}

/// A peer's slices for a service that nobody calls: 20 of 100 endpoints, other ones for another number.
fn flooded(number: u32) -> String {
    let mut text = service("flood-federated", "10.101.200.1");
    for slice in 0..20 {
        let addresses: Vec<String> =
            (1..=100).map(|host| format!("10.62.{}.{host}", 100 + (slice + number) % 100)).collect();
        text += &slice_of("flood-federated", &format!("flood-{slice}"), "east", &addresses);
    }
    text
}

/// So many services that nobody calls, with an endpoint each, which take four frontends together with others of theirs.
pub(super) fn unused(count: usize) -> String {
    let mut text = String::new();
    for number in 0..count {
        let name = format!("unused-{number}-federated");
        text += &service(&name, &format!("10.101.{}.{}", 100 + number / 250, 1 + number % 250));
        text += &slice_of(&name, &name, "east", &["10.62.1.250".to_owned()]);
    }
    text
}

fn service(name: &str, address: &str) -> String {
    format!(
        "---\napiVersion: v1\nkind: Service\nmetadata:\n  name: {name}\n  namespace: faults\n  labels:\n    \
         mirror.linkerd.io/mirrored-service: \"true\"\nspec:\n  clusterIP: {address}\n  clusterIPs: [{address}]\n  \
         ipFamilies: [IPv4]\n  ports:\n  - {{name: http, port: 80, protocol: TCP, targetPort: 8080}}\n"
    )
}

fn slice_of(service: &str, name: &str, cluster: &str, addresses: &[String]) -> String {
    let mut text = format!(
        "---\napiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata:\n  name: {name}\n  namespace: faults\n  \
         labels:\n    kubernetes.io/service-name: {service}\n    multicluster.kubernetes.io/service-name: {service}\n    \
         multicluster.kubernetes.io/source-cluster: {cluster}\naddressType: IPv4\nports:\n- {{name: http, port: 8080, \
         protocol: TCP}}\nendpoints:\n"
    );
    for address in addresses {
        let written = writeln!(text, "- {{addresses: [{address}], conditions: {{ready: true}}}}");
        written.expect("a string takes everything");
    }
    text
}
