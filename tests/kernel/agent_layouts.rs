//! An agent finds what one of another version pinned: the layout of its maps differs, so they are of no use, but its
//! programs serve on until new maps are filled.

use crate::{
    agent_foreign::{CONNECT4, SOCK_OPS, link_id, pin_map, programs_on},
    agent_site::{Site, adopted_all, names, service},
    clock::{SOON, is_emulated, judges_no_times, until},
};
use std::{fs, path::PathBuf, thread, time::Duration};
use tombolo::datapath::HOOKS;
use tombolo_ebpf::abi::{LAYOUT, map};

const VIP: &str = "10.96.0.10:80";
const OTHER_VIP: &str = "10.96.0.11:80";
const BACKENDS: [&str; 2] = ["127.0.0.5:8080", "127.0.0.6:8080"];

/// Maps that layout 1 had not.
const NEW_MAPS: [&str; 4] = [map::BACKEND_OF, map::CLUSTER_STATE, map::ARMED, map::EVENTS];

fn site() -> Option<Site> {
    if judges_no_times() {
        return None;
    }
    let mut site = Site::new()?;
    for backend in BACKENDS {
        site.serve(backend);
    }
    site.write("web.yaml", &service("web-federated", VIP, &BACKENDS));
    Some(site)
}

/// Makes what is pinned look like what an agent of layout 1 left, which knew no `sock_ops`: programs that serve from maps
/// that ours can't use.
fn age(site: &Site) -> PathBuf {
    let old = site.pins.join("v1");
    fs::rename(site.layout(), &old).unwrap();
    fs::remove_file(old.join("links/sock_ops")).unwrap();
    for name in NEW_MAPS {
        fs::remove_file(old.join("maps").join(name)).unwrap();
    }
    let detached = || programs_on(site.cgroup.path(), SOCK_OPS).0.is_empty().then_some(());
    assert!(until(SOON, detached).is_some(), "a link goes a moment after its pin");
    old
}

/// How many programs are on a hook.
fn count(site: &Site, hook: u32) -> usize {
    programs_on(site.cgroup.path(), hook).0.len()
}

/// What the folder of pins has to hold, and nothing of another layout.
fn check_pins(site: &Site) {
    assert_eq!(names(&site.pins), [format!("v{LAYOUT}")]);
    let mut hooks = HOOKS.map(str::to_owned);
    hooks.sort();
    assert_eq!(names(&site.layout().join("links")), hooks);
    assert_eq!((count(site, CONNECT4), count(site, SOCK_OPS)), (1, 1), "each program is there once");
}

/// Waits until the maps that now serve have sent a hundred connections to backends.
fn wait_for_connects(site: &Site) {
    let chosen = || {
        let document = site.json("backends").0;
        let rows = document["backends"].as_array().unwrap();
        rows.iter().map(|row| row["chosen"].as_u64().unwrap()).sum::<u64>()
    };
    assert!(until(SOON, || (chosen() >= 100).then_some(())).is_some(), "only {} connects", chosen());
}

#[test]
fn all_hooks_are_attached_and_taken_over_together() {
    let Some(site) = site() else { return };
    site.ready_agent().kill();
    check_pins(&site);
    let ids = || HOOKS.map(|hook| link_id(&site.layout().join("links").join(hook)));
    let (links, programs) = (ids(), programs_on(site.cgroup.path(), SOCK_OPS).0);
    let agent = site.ready_agent();
    assert!(agent.log().contains(&adopted_all()), "{}", agent.log());
    assert_eq!(ids(), links, "the links are the same");
    assert_ne!(programs_on(site.cgroup.path(), SOCK_OPS).0, programs, "the programs are the new agent's");
    let hooks = site.json("status").0["hooks"].clone();
    let named: Vec<&str> = hooks.as_array().unwrap().iter().map(|hook| hook["name"].as_str().unwrap()).collect();
    assert_eq!(named, HOOKS);
    agent.kill();
    assert!(site.tombolo(&["unload"]).status.success());
    assert_eq!((count(&site, CONNECT4), count(&site, SOCK_OPS)), (0, 0));
}

#[test]
fn programs_of_another_layout_serve_until_new_maps_are_filled_and_no_connect_fails() {
    let Some(site) = site() else { return };
    site.ready_agent().kill();
    let old = age(&site);
    let connect4 = link_id(&old.join("links/connect4"));
    let mut client = site.client();
    client.dialler().begin(VIP.parse().unwrap(), 1).unwrap();

    let agent = site.ready_agent();
    assert!(agent.log().contains("of another layout"), "{}", agent.log());
    check_pins(&site);
    assert_eq!(link_id(&site.layout().join("links/connect4")), connect4, "never taken off its hook");
    wait_for_connects(&site);
    let seen = client.dialler().end().unwrap();
    println!("{} connects, the longest took {} ms", seen.connects, seen.longest.as_millis());
    // What sockets of the moment of the exchange remembered lies in the old maps, as it does if a pin is missing.
    let is_peer = |failure: &String| failure.starts_with("the peer reads ");
    assert!(seen.failures.iter().all(is_peer) && seen.failed < seen.connects / 10, "{seen:?}");
    agent.kill();
    let agent = site.ready_agent();
    assert!(agent.log().contains(&adopted_all()) && !agent.log().contains("another layout"), "{}", agent.log());
    assert_eq!(site.installed("demo/web-federated"), BACKENDS);
}

#[test]
fn programs_of_another_layout_give_way_although_a_document_cannot_be_read_but_not_at_once() {
    let Some(site) = site() else { return };
    site.write("api.yaml", &service("api-federated", OTHER_VIP, &BACKENDS[..1]));
    site.ready_agent().kill();
    let old = age(&site);
    // Neither its Service nor whose endpoints the slice has can be told.
    site.write("api.yaml", "kind: [Service");
    let agent = site.agent().with("--take-over-after", "3").start();
    let waits = "the programs of an earlier agent still serve";
    site.problem(waits);
    let mut client = site.client();
    assert!(client.tcp(OTHER_VIP).is_ok(), "the old tables have it");
    assert!(old.join("links/connect4").exists());
    let told = site.problem("of another layout and were given up after 3 s");
    assert!(told.contains("left to kube-proxy"), "{told}");
    check_pins(&site);
    assert!(agent.log().contains("took over without what could not be read"), "{}", agent.log());
    assert!(site.json("status").1, "ready");
    assert!(client.tcp(VIP).is_ok());
    assert!(client.tcp(OTHER_VIP).is_err(), "there is no kube-proxy here");
    site.write("api.yaml", &service("api-federated", OTHER_VIP, &BACKENDS[..1]));
    assert!(until(SOON, || client.tcp(OTHER_VIP).is_ok().then_some(())).is_some());
    let problems = site.json("status").0["problems"].clone();
    assert_eq!(problems, serde_json::json!([]));
}

#[test]
fn programs_of_another_layout_serve_on_if_nothing_at_all_can_be_read() {
    let Some(site) = site() else { return };
    site.ready_agent().kill();
    let old = age(&site);
    site.write("web.yaml", "kind: [Service");
    let agent = site.agent().with("--take-over-after", "0").start();
    site.problem("some of the source could not be read");
    thread::sleep(Duration::from_secs(5));
    assert!(old.join("links/connect4").exists(), "{}", agent.log());
    assert!(site.client().tcp(VIP).is_ok());
    site.write("web.yaml", &service("web-federated", VIP, &BACKENDS));
    assert!(until(SOON, || (!old.exists()).then_some(())).is_some(), "{}", agent.log());
    assert!(site.client().tcp(VIP).is_ok());
}

#[test]
fn an_agent_that_is_killed_while_it_takes_over_another_layout_leaves_the_rest_to_the_next() {
    let Some(site) = site() else { return };
    let mut client = site.client();
    let took = {
        let mut agent = site.agent().start();
        let took = agent.wait_until_ready();
        agent.kill();
        took
    };
    client.dialler().begin(VIP.parse().unwrap(), 1).unwrap();
    let rounds = if is_emulated() { 6 } else { 16 };
    for round in 0..rounds {
        age(&site);
        let agent = site.agent().start();
        thread::sleep(took * round / rounds);
        agent.kill();
        assert_eq!(count(&site, CONNECT4), 1, "round {round}: never without, never twice");
        site.ready_agent().kill();
        check_pins(&site);
    }
    let agent = site.ready_agent();
    wait_for_connects(&site);
    let seen = client.dialler().end().unwrap();
    drop(agent);
    let is_peer = |failure: &String| failure.starts_with("the peer reads ");
    println!("{} connects, {rounds} agents killed, {} saw their peer", seen.connects, seen.failed);
    assert!(seen.failures.iter().all(is_peer), "{seen:?}");
}

#[test]
fn links_that_an_agent_moved_halfway_stay_attached() {
    let Some(site) = site() else { return };
    site.ready_agent().kill();
    // As it is between pinning a link in the new folder and removing it from the old one: it is in both.
    let old = site.pins.join("v1");
    fs::create_dir_all(old.join("links")).unwrap();
    fs::hard_link(site.layout().join("links/connect4"), old.join("links/connect4")).unwrap();
    fs::rename(site.layout().join("links/connect6"), old.join("links/connect6")).unwrap();
    let agent = site.ready_agent();
    check_pins(&site);
    assert!(agent.log().contains(&adopted_all()), "{}", agent.log());
    assert!(site.client().tcp(VIP).is_ok());
}

#[test]
fn an_agent_of_another_layout_that_is_running_keeps_ours_off() {
    let Some(site) = site() else { return };
    site.ready_agent().kill();
    let old = age(&site);
    let folder = fs::File::open(&old).unwrap();
    folder.lock().unwrap();
    let said = site.agent().fail();
    assert!(said.contains("an agent is running") && said.contains("v1"), "{said}");
    drop(folder);
    let _agent = site.ready_agent();
    check_pins(&site);
}

#[test]
fn what_others_put_into_an_old_layout_is_left_alone() {
    let Some(site) = site() else { return };
    site.ready_agent().kill();
    let old = age(&site);
    pin_map(&old.join("maps/theirs"));
    let agent = site.ready_agent();
    assert!(agent.log().contains("left alone what no agent of this version pins"), "{}", agent.log());
    assert_eq!(names(&old.join("maps")), ["theirs"]);
    assert!(!old.join("links").exists());
    fs::remove_file(old.join("maps/theirs")).unwrap();
}
