//! What goes wrong under a running agent or between two of them, and how it comes right again.

use crate::{
    agent_foreign::{CONNECT4, programs_on},
    agent_site::{Agent, Site, adopted_all, names, service},
    clock::{SOON, is_emulated, patience, until},
};
use lab::cgroup::Cgroup;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use std::{
    fs,
    path::PathBuf,
    thread,
    time::{Duration, Instant},
};
use tombolo::{
    datapath::{HOOKS, KernelMaps, pins::Pins},
    tables::Step,
};

const VIP: &str = "10.96.0.10:80";
const BACKENDS: [&str; 2] = ["127.0.0.5:8080", "127.0.0.6:8080"];

/// How long until a fault shows, and until it is mended.
const SHOWN: Duration = Duration::from_secs(5);
const MENDED: Duration = Duration::from_secs(10);

fn site() -> Option<Site> {
    let mut site = Site::new()?;
    for backend in BACKENDS {
        site.serve(backend);
    }
    site.write("web.yaml", &service("web-federated", VIP, &BACKENDS));
    Some(site)
}

/// Waits until the agent is ready again, which has to be within `MENDED`.
fn mended(site: &Site) {
    let start = Instant::now();
    assert!(until(MENDED, || site.json("status").1.then_some(())).is_some(), "{:#}", site.json("status").0);
    println!("ready again after {:?}", start.elapsed());
}

/// Waits until the agent says that it isn't ready because of `what`, which has to be within `SHOWN`.
fn shown(site: &Site, what: &str) -> String {
    let start = Instant::now();
    let problem = site.problem(what);
    assert!(start.elapsed() < SHOWN || is_emulated(), "{:?}", start.elapsed());
    assert!(!site.json("status").1, "not ready: {problem}");
    problem
}

#[test]
fn pins_that_somebody_removes_are_put_back_and_no_connect_fails() {
    let Some(site) = site() else { return };
    let agent = site.ready_agent();
    let mut client = site.client();
    client.dialler().begin(VIP.parse().unwrap(), 1).unwrap();
    let all = |folder: &str| names(&site.layout().join(folder));
    let (links, maps) = (all("links"), all("maps"));
    assert_eq!((links.len(), maps.len() > 10), (HOOKS.len(), true));
    fs::remove_file(site.layout().join("links/connect4")).unwrap();
    fs::remove_file(site.layout().join("maps/SLOTS")).unwrap();
    let back = || (all("links") == links && all("maps") == maps).then_some(());
    assert!(until(MENDED, back).is_some());
    // And all of them at once, folders and all.
    fs::remove_dir_all(&site.pins).unwrap();
    let back = || (site.layout().join("links").exists() && all("links") == links && all("maps") == maps).then_some(());
    assert!(until(MENDED, back).is_some());
    let said = site.agent().with("--socket", site.folder().join("other")).fail();
    assert!(said.contains("an agent is running"), "the new folder is locked too: {said}");
    assert!(site.json("status").1);
    agent.kill();
    assert_eq!(site.installed("demo/web-federated"), BACKENDS, "what is pinned is what is used");
    let _agent = site.ready_agent();
    let seen = client.dialler().end().unwrap();
    assert_eq!((seen.failed, seen.connects > 100), (0, true), "{seen:?}");
}

#[test]
fn a_cgroup_that_is_removed_and_made_again_is_attached_to_again() {
    let Some(mut site) = site() else { return };
    let inner = site.cgroup.child("inner").unwrap();
    let outer = std::mem::replace(&mut site.cgroup, inner);
    let mut agent = site.agent().outside().start();
    agent.wait_until_ready();
    let path = site.cgroup.path().to_owned();
    fs::remove_dir(&path).unwrap();
    let problem = shown(&site, "there is no cgroup");
    assert!(problem.contains(&path.display().to_string()), "{problem}");
    fs::create_dir(&path).unwrap();
    mended(&site);
    assert!(site.client().tcp(VIP).is_ok());
    assert_eq!(programs_on(&path, CONNECT4).0.len(), 1);
    drop((agent, site, outer));
}

#[test]
fn links_of_a_cgroup_that_went_while_no_agent_ran_are_made_anew() {
    let Some(mut site) = site() else { return };
    let inner = site.cgroup.child("inner").unwrap();
    let outer = std::mem::replace(&mut site.cgroup, inner);
    site.ready_agent().kill();
    let path = site.cgroup.path().to_owned();
    let gone = || fs::remove_dir(&path).is_ok().then_some(());
    assert!(until(SOON, gone).is_some());
    // The kernel lets go of the cgroup a moment later, hook by hook.
    let off = || (site.json("status").0["hooks"] == serde_json::json!([])).then_some(());
    assert!(until(SOON, off).is_some());
    site.problem("connections take their ordinary path, for nothing is attached to connect4");
    assert!(!site.json("status").1);
    fs::create_dir(&path).unwrap();
    let agent = site.ready_agent();
    assert!(agent.log().contains("pinned link is attached elsewhere"), "{}", agent.log());
    assert!(site.client().tcp(VIP).is_ok());
    drop((agent, site, outer));
}

#[test]
fn an_agent_that_is_told_another_cgroup_moves_its_hooks_there() {
    let Some(site) = site() else { return };
    site.ready_agent().kill();
    let other = site.cgroup.child("other").unwrap();
    let mut agent = site.agent().with("--cgroup", other.path()).start();
    agent.wait_until_ready();
    assert_eq!(programs_on(site.cgroup.path(), CONNECT4).0, Vec::<u32>::new());
    assert_eq!(programs_on(other.path(), CONNECT4).0.len(), 1);
    assert!(site.client_in("other/client").tcp(VIP).is_ok());
    assert_eq!(site.client().tcp(VIP), Err(libc::ENETUNREACH));
    assert_eq!(names(&site.layout().join("links")).len(), HOOKS.len());
}

#[test]
fn a_map_that_is_no_longer_pinned_costs_no_connect_at_a_restart() {
    let Some(site) = site() else { return };
    let agent = site.ready_agent();
    let mut client = site.client();
    client.dialler().begin(VIP.parse().unwrap(), 1).unwrap();
    agent.kill();
    fs::remove_file(site.layout().join("maps/SLOTS")).unwrap();
    let agent = site.ready_agent();
    assert!(agent.log().contains("pinned maps are missing"), "{}", agent.log());
    assert!(site.json("status").0["hooks"].as_array().unwrap().iter().all(|hook| hook["adopted"] == true));
    thread::sleep(patience(Duration::from_millis(200)));
    let seen = client.dialler().end().unwrap();
    // What sockets were sent to is remembered in one of these maps, and the hooks are exchanged one after the other: those
    // of that moment show their backend as the peer. How many that are, the machine's load decides.
    let is_peer = |failure: &String| failure.starts_with("the peer reads ");
    assert!(seen.failures.iter().all(is_peer) && seen.failed < seen.connects / 10 && seen.connects > 100, "{seen:?}");
    agent.kill();
    assert_eq!(site.installed("demo/web-federated"), BACKENDS, "the new maps are pinned");
    let log = site.ready_agent().log();
    assert!(log.contains(&adopted_all()) && !log.contains("pinned maps are missing"), "{log}");
}

#[test]
fn an_agent_that_is_killed_at_any_moment_of_its_first_start_leaves_nothing_that_hinders_the_next() {
    let Some(site) = site() else { return };
    let ready = |agent: &mut Agent| agent.wait_until_ready();
    let took = {
        let mut agent = site.agent().start();
        let took = ready(&mut agent);
        agent.kill();
        took
    };
    let rounds = if is_emulated() { 6 } else { 24 };
    for round in 0..rounds {
        assert!(site.tombolo(&["unload"]).status.success());
        assert_eq!(programs_on(site.cgroup.path(), CONNECT4).0, Vec::<u32>::new(), "round {round}");
        let agent = site.agent().start();
        thread::sleep(took * round / rounds);
        agent.kill();
        let agent = site.ready_agent();
        assert!(site.client().tcp(VIP).is_ok(), "round {round}");
        assert_eq!(programs_on(site.cgroup.path(), CONNECT4).0.len(), 1, "round {round}");
        assert_eq!(names(&site.layout().join("links")).len(), HOOKS.len(), "round {round}");
        agent.kill();
    }
}

#[test]
fn an_agent_that_is_killed_at_any_moment_of_a_change_costs_no_connect() {
    let Some(site) = site() else { return };
    let mut client = site.client();
    let mut agent = site.agent().start();
    let took = agent.wait_until_ready();
    client.dialler().begin(VIP.parse().unwrap(), 1).unwrap();
    let rounds = if is_emulated() { 6 } else { 40 };
    for round in 0..rounds {
        let backends = if round % 2 == 0 { &BACKENDS[..1] } else { &BACKENDS };
        site.write("web.yaml", &service("web-federated", VIP, backends));
        site.write("other.yaml", &service("other-federated", &format!("10.96.0.{}:80", 11 + round % 3), &BACKENDS));
        // Some die while they take the change in, some while they start with it.
        thread::sleep(took * round / rounds);
        agent.kill();
        agent = site.agent().start();
    }
    agent.wait_until_ready();
    let seen = client.dialler().end().unwrap();
    println!("{} connects, {rounds} agents killed", seen.connects);
    assert_eq!((seen.failed, seen.connects > 100), (0, true), "{seen:?}");
    let expected = if rounds % 2 == 0 { &BACKENDS[..] } else { &BACKENDS[..1] };
    assert_eq!(site.installed("demo/web-federated"), expected);
}

#[test]
fn a_table_that_somebody_altered_is_mended_and_counted() {
    let Some(site) = site() else { return };
    let _agent = site.ready_agent();
    let mut client = site.client();
    let pins = Pins::new(&site.pins);
    let mut maps = KernelMaps::open(&pins).unwrap();
    let read = maps.read().unwrap();
    for key in read.frontends.keys() {
        maps.apply(&Step::DropFrontend(*key)).unwrap();
    }
    assert!(client.tcp(VIP).is_err());
    let back = until(Duration::from_secs(15), || client.tcp(VIP).ok());
    assert!(back.is_some(), "{:#}", site.json("status").0);
    let (status, ready) = site.json("status");
    assert!(ready && status["drift"] == 1, "{status:#}");
    assert!(site.tombolo(&["status"]).out.contains("altered by somebody else"));
    assert_eq!(maps.read().unwrap().frontends.len(), read.frontends.len());
}

#[test]
fn a_bpffs_that_is_unmounted_is_said_to_be_missing_and_used_again_when_it_is_back() {
    let Some(site) = site() else { return };
    let bpffs = Mount::new(site.folder().join("bpf"));
    let pins = bpffs.0.join("pins");
    let mut agent = site.agent().with("--pins", &pins).start();
    agent.wait_until_ready();
    let mut client = site.client();
    client.dialler().begin(VIP.parse().unwrap(), 1).unwrap();
    bpffs.unmount();
    let problem = shown(&site, "is not on a BPF file system");
    assert!(problem.contains(&pins.display().to_string()), "{problem}");
    bpffs.mount();
    mended(&site);
    assert_eq!(names(&Pins::new(&pins).dir().join("links")).len(), HOOKS.len());
    let seen = client.dialler().end().unwrap();
    assert_eq!((seen.failed, seen.connects > 100), (0, true), "{seen:?}");
    agent.stop();
}

#[test]
fn an_agent_outside_of_its_cgroup_proves_the_hooks_by_a_process_inside() {
    let Some(site) = site() else { return };
    let mut agent = site.agent().outside().start();
    agent.wait_until_ready();
    assert!(agent.log().contains("hooks proven by a probe socket"), "{}", agent.log());
    let left =
        |site: &Site| names(site.cgroup.path()).into_iter().filter(|name| name.starts_with("tombolo-probe")).count();
    assert_eq!(left(&site), 0, "the process' cgroup is gone");
    agent.stop();
    // One that was ended while it probed left its cgroup behind.
    let left_over: Cgroup = site.cgroup.child("tombolo-probe-1").unwrap();
    let mut agent = site.agent().outside().start();
    agent.wait_until_ready();
    assert_eq!(left(&site), 0);
    drop(left_over);
}

/// A bpffs of this test's own.
struct Mount(PathBuf);

impl Mount {
    fn new(at: PathBuf) -> Self {
        fs::create_dir(&at).unwrap();
        let made = Self(at);
        made.mount();
        made
    }

    fn mount(&self) {
        mount(Some("bpf"), &self.0, Some("bpf"), MsFlags::empty(), None::<&str>).unwrap();
    }

    fn unmount(&self) {
        umount2(&self.0, MntFlags::MNT_DETACH).unwrap();
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        self.unmount();
    }
}
