//! An agent is killed right after one of its writes, wherever that leaves the tables. `cargo xtask bench goals` does it
//! after every single one.

use crate::{
    agent_site::{Agent, Site, service},
    clock::{is_emulated, patience, until},
};
use lab::kills::{Struck, kill_after};
use std::{
    collections::BTreeMap,
    fs,
    path::Path,
    time::{Duration, Instant},
};
use tombolo_ebpf::abi::map;

const VIP: &str = "10.96.0.10:80";
const BACKENDS: [&str; 4] = ["127.0.0.5:8080", "127.0.0.6:8080", "127.0.0.7:8080", "127.0.0.8:8080"];
/// Once an agent has written nothing for so long, it is through with a change.
const QUIET: Duration = Duration::from_millis(500);
/// How soon after its start the next agent is to have finished.
const CONVERGED: Duration = Duration::from_secs(5);
/// Every how many writes an agent is killed.
const STRIDE: u32 = 6;
/// What an agent waits for until there is a file of this name.
const UNTIL: &str = r#"until [ -e "$0" ]; do sleep 0.01; done; exec "$@""#;

/// One of two states that have few things in common.
fn change(site: &Site, state: usize) {
    let backends = if state == 0 { &BACKENDS[..2] } else { &BACKENDS[1..] };
    site.write("web.yaml", &service("web-federated", VIP, backends));
    let (old, new) = (format!("other-{}", 1 - state), format!("other-{state}"));
    site.write(&format!("{new}.yaml"), &service(&format!("{new}-federated"), &vip(state), &BACKENDS));
    fs::remove_file(site.manifests.join(format!("{old}.yaml"))).ok();
}

fn vip(state: usize) -> String {
    format!("10.96.0.{}:80", 11 + state)
}

/// Whether what is installed is that state.
fn is_installed(site: &Site, state: usize) -> bool {
    let backends = if state == 0 { &BACKENDS[..2] } else { &BACKENDS[1..] };
    let (this, other) = (format!("demo/other-{state}-federated"), format!("demo/other-{}-federated", 1 - state));
    site.installed("demo/web-federated") == backends
        && site.installed(&this) == BACKENDS
        && site.installed(&other).is_empty()
}

/// An agent that does nothing before `go` is there.
fn waiting(site: &Site, go: &Path) -> Agent {
    fs::remove_file(go).ok();
    site.agent().wrapped(&["sh", "-c", UNTIL, go.to_str().unwrap()]).start()
}

#[test]
fn an_agent_that_is_killed_right_after_any_write_costs_no_connect_and_the_next_one_goes_on() {
    let Some(mut site) = Site::new() else { return };
    for backend in BACKENDS {
        site.serve(backend);
    }
    let mut state = 0;
    change(&site, state);
    let go = site.folder().join("go");
    let mut agent = site.ready_agent();
    let mut client = site.client();
    client.dialler().begin(VIP.parse().unwrap(), 1).unwrap();
    let mut killed = BTreeMap::new();
    let mut slowest = Duration::ZERO;
    for number in (1..).step_by(if is_emulated() { 40 } else { STRIDE as usize }) {
        state = 1 - state;
        let struck = kill_after(agent.id(), number, patience(QUIET), || {
            change(&site, state);
            Ok(())
        });
        let Struck::Killed(after) = struck.unwrap() else { break };
        *killed.entry(after.to_string()).or_insert(0) += 1;
        agent.kill();
        // The next one finds half a change, and is killed in the middle of it too.
        agent = waiting(&site, &go);
        let struck = kill_after(agent.id(), number, patience(QUIET), || Ok(fs::write(&go, "")?));
        if let Struck::Killed(after) = struck.unwrap() {
            *killed.entry(after.to_string()).or_insert(0) += 1;
        }
        agent.kill();
        agent = site.agent().start();
        let began = Instant::now();
        assert!(until(CONVERGED, || is_installed(&site, state).then_some(())).is_some(), "write {number}");
        agent.wait_until_ready();
        slowest = slowest.max(began.elapsed());
    }
    let seen = client.dialler().end().unwrap();
    println!(
        "{} connects, killed after {killed:?}; all as it should be at most {slowest:?} after a start",
        seen.connects
    );
    assert_eq!((seen.failed, seen.connects > 100), (0, true), "{seen:?}");
    let maps = [map::BACKENDS, map::SLOTS, map::SERVICES, map::CURRENT];
    assert!(is_emulated() || maps.iter().any(|map| killed.contains_key(&format!("update {map}"))), "{killed:?}");
    assert_eq!(site.json("status").0["drift"], 0);
}
