//! Other programs on the same cgroup, above and below: they keep working and are never changed, and where ours can't be
//! attached besides, the agent says whose is in the way.

use crate::{
    agent_foreign::{
        CONNECT4, CONNECT6, EXCLUSIVE, Foreign, GETPEERNAME6, MULTI, OVERRIDE, SOCK_OPS, pin_map, programs_on,
    },
    agent_site::{Site, service},
    clock::{SOON, until},
};
use std::{
    fs,
    path::Path,
    time::{Duration, Instant},
};

const VIP: &str = "10.96.0.10:80";
const BACKEND: &str = "127.0.0.5:8080";

/// What a foreign program translates, and to whom.
const THEIRS: &str = "10.99.0.1:9090";
const THEIR_SERVER: &str = "127.0.0.9:9090";

/// Restarts of the agent, as many as there is time for.
const RESTARTS: u32 = 200;
const TIME: Duration = Duration::from_secs(30);

fn site() -> Option<Site> {
    let mut site = Site::new()?;
    site.serve(BACKEND);
    site.serve(THEIR_SERVER);
    site.write("web.yaml", &service("web-federated", VIP, &[BACKEND]));
    Some(site)
}

/// Attaches a program that translates `THEIRS`.
fn theirs(cgroup: &Path, flags: u32) -> Foreign {
    let ip = |address: &str| address.split_once(':').unwrap().0.parse().unwrap();
    Foreign::redirect(cgroup, flags, ip(THEIRS), ip(THEIR_SERVER)).unwrap()
}

#[test]
fn foreign_programs_around_keep_working_and_are_never_changed_by_restarts() {
    let Some(mut site) = site() else { return };
    // Ours is a cgroup below the site's, so that there is one above that is nobody else's either.
    let middle = site.cgroup.child("middle").unwrap();
    let parent = std::mem::replace(&mut site.cgroup, middle);
    let below = site.cgroup.child("below").unwrap();
    let cgroups = [parent.path(), site.cgroup.path(), below.path()];
    let foreign: Vec<Foreign> = cgroups.iter().map(|cgroup| theirs(cgroup, MULTI)).collect();
    let ids: Vec<u32> = foreign.iter().map(Foreign::id).collect();
    let mut clients = [site.client(), site.client_in("below/client")];
    let end = Instant::now() + TIME;
    let mut restarts = 0;
    while restarts < RESTARTS && Instant::now() < end {
        let agent = site.ready_agent();
        for (cgroup, id) in cgroups.iter().zip(&ids) {
            let (on_it, _) = programs_on(cgroup, CONNECT4);
            assert!(on_it.contains(id), "restart {restarts}: {id} of {} is not among {on_it:?}", cgroup.display());
            let ours = usize::from(*cgroup == site.cgroup.path());
            assert_eq!(on_it.len(), 1 + ours, "restart {restarts}");
        }
        if restarts % 10 == 0 {
            for client in &mut clients {
                assert_eq!(client.tcp_unchecked(THEIRS).as_deref(), Some(THEIR_SERVER));
                assert_eq!(client.tcp(VIP).as_deref(), Ok(BACKEND));
            }
        }
        agent.kill();
        restarts += 1;
    }
    println!("{restarts} restarts with programs of others on the same cgroup, above and below");
    assert!(restarts >= 3, "not even three restarts in {TIME:?}");

    assert!(site.tombolo(&["unload"]).status.success());
    for (cgroup, id) in cgroups.iter().zip(&ids) {
        assert_eq!(programs_on(cgroup, CONNECT4), (vec![*id], MULTI));
    }
    drop(foreign);
}

#[test]
fn a_program_that_is_alone_on_our_cgroup_is_named_and_nothing_stays_attached() {
    let Some(site) = site() else { return };
    let hooks = [("getpeername6", GETPEERNAME6), ("sock_ops", SOCK_OPS)];
    for ((name, hook), flags) in hooks.into_iter().flat_map(|hook| [(hook, EXCLUSIVE), (hook, OVERRIDE)]) {
        let foreign = Foreign::idle(site.cgroup.path(), hook, flags).unwrap();
        let said = site.agent().fail();
        let path = site.cgroup.path().display().to_string();
        let id = foreign.id().to_string();
        for part in [
            &format!("attach {name}"),
            &path,
            &format!("program {id}"),
            &format!("bpftool prog show id {id}"),
            "--cgroup",
        ] {
            assert!(said.contains(part), "{part} is not in: {said}");
        }
        assert_eq!(programs_on(site.cgroup.path(), CONNECT4).0, Vec::<u32>::new(), "all hooks or none");
        assert!(!site.pins.exists(), "a first start that fails leaves nothing behind");
        assert!(!site.socket.exists());
        assert_eq!(programs_on(site.cgroup.path(), hook), (vec![foreign.id()], flags));
    }
    let mut agent = site.agent().start();
    agent.wait_until_ready();
}

#[test]
fn a_program_that_is_alone_above_our_cgroup_is_named() {
    let Some(mut site) = site() else { return };
    let below = site.cgroup.child("a/b").unwrap();
    let above = std::mem::replace(&mut site.cgroup, below);
    let foreign = Foreign::idle(above.path(), CONNECT6, EXCLUSIVE).unwrap();
    let said = site.agent().fail();
    for part in ["attach connect6", &format!("program {}", foreign.id()), &above.path().display().to_string()] {
        assert!(said.contains(part), "{part} is not in: {said}");
    }
    assert!(!site.pins.exists());
    assert_eq!(programs_on(site.cgroup.path(), CONNECT4).0, Vec::<u32>::new());
}

#[test]
fn a_program_above_that_ours_would_switch_off_is_left_running() {
    let Some(mut site) = site() else { return };
    let below = site.cgroup.child("below").unwrap();
    let above = std::mem::replace(&mut site.cgroup, below);
    let foreign = theirs(above.path(), OVERRIDE);
    let said = site.agent().fail();
    for part in ["attach connect4", &format!("program {}", foreign.id()), "BPF_F_ALLOW_OVERRIDE", "no longer run"] {
        assert!(said.contains(part), "{part} is not in: {said}");
    }
    assert_eq!(site.client().tcp_unchecked(THEIRS).as_deref(), Some(THEIR_SERVER), "it still runs");
}

#[test]
fn a_hook_with_as_many_programs_as_the_kernel_takes_is_said_to_be_full() {
    let Some(site) = site() else { return };
    let attach = || Foreign::idle(site.cgroup.path(), CONNECT4, MULTI);
    let foreign: Vec<Foreign> = (0..64).map(|_| attach().unwrap()).collect();
    assert_eq!(attach().unwrap_err().raw_os_error(), Some(libc::E2BIG));
    let said = site.agent().fail();
    for part in ["attach connect4", "64 programs", "bpftool cgroup show"] {
        assert!(said.contains(part), "{part} is not in: {said}");
    }
    let ids: Vec<u32> = foreign.iter().map(Foreign::id).collect();
    assert_eq!(programs_on(site.cgroup.path(), CONNECT4).0, ids);
}

#[test]
fn an_exclusive_program_below_ours_hinders_nobody() {
    let Some(site) = site() else { return };
    let below = site.cgroup.child("below").unwrap();
    let _foreign = theirs(below.path(), EXCLUSIVE);
    let _agent = site.ready_agent();
    let mut client = site.client_in("below/client");
    assert_eq!(client.tcp(VIP).as_deref(), Ok(BACKEND));
    assert_eq!(client.tcp_unchecked(THEIRS).as_deref(), Some(THEIR_SERVER));
}

#[test]
fn unloading_leaves_the_pins_and_programs_of_others() {
    let Some(site) = site() else { return };
    let foreign = theirs(site.cgroup.path(), MULTI);
    let agent = site.ready_agent();
    let neighbour = site.pins.parent().unwrap().join("theirs");
    pin_map(&neighbour);
    let inside = site.layout().join("maps/theirs");
    pin_map(&inside);
    let beside = site.pins.join("notes");
    fs::create_dir(&beside).unwrap();
    agent.kill();

    let said = site.tombolo(&["unload"]);
    assert_eq!(said.status.code(), Some(1), "{said:?}");
    for path in [&inside, &beside] {
        assert!(said.err.contains(&path.display().to_string()), "{said:?}");
        assert!(path.exists());
    }
    assert!(neighbour.exists());
    assert_eq!(programs_on(site.cgroup.path(), CONNECT4), (vec![foreign.id()], MULTI), "ours is gone, theirs is not");
    assert_eq!(site.client().tcp(VIP), Err(libc::ENETUNREACH));

    fs::remove_file(&inside).unwrap();
    fs::remove_dir(&beside).unwrap();
    let said = site.tombolo(&["unload"]);
    assert!(said.status.success(), "{said:?}");
    assert!(!site.pins.exists() && neighbour.exists());
    fs::remove_file(neighbour).unwrap();
}

#[test]
fn who_comes_first_and_undoes_the_address_keeps_the_agent_from_being_ready() {
    let Some(site) = site() else { return };
    // A program on the same cgroup that was there before ours sees the address first.
    let probe = "192.0.0.8".parse().unwrap();
    let foreign = Foreign::redirect(site.cgroup.path(), MULTI, probe, "127.0.0.77".parse().unwrap()).unwrap();
    let _agent = site.agent().start();
    let said = site.problem("was not translated");
    assert!(said.contains("192.0.0.8") && said.contains("another program comes first"), "{said}");
    assert!(!site.tombolo(&["status"]).status.success());
    drop(foreign);
    let ready = until(SOON, || site.json("status").1.then_some(()));
    assert!(ready.is_some(), "{:#}", site.json("status").0);
}
