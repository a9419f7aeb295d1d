//! Start, kill, restart, stop, unload.

use crate::{
    agent_site::{Site, adopted_all, names, program, service},
    clock::{SOON, until},
};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde_json::Value;
use std::{
    collections::BTreeSet,
    fs,
    io::{self, Read, Write},
    os::{fd::AsRawFd, unix::fs::OpenOptionsExt},
    path::PathBuf,
    process::Command,
    time::Duration,
};
use tombolo::datapath::HOOKS;

/// Connects that have to go on through a kill and a restart.
const CONNECTS: u64 = 5_000;

const VIP: &str = "10.96.0.10:80";
const BACKENDS: [&str; 2] = ["127.0.0.5:8080", "127.0.0.6:8080"];

/// A site with one service, whose backends answer.
fn site() -> Option<Site> {
    let mut site = Site::new()?;
    for backend in BACKENDS {
        site.serve(backend);
    }
    site.write("web.yaml", &service("web-federated", VIP, &BACKENDS));
    Some(site)
}

#[test]
fn connections_are_translated_once_the_agent_is_ready() {
    let Some(site) = site() else { return };
    let mut client = site.client();
    assert_eq!(client.tcp(VIP), Err(libc::ENETUNREACH), "nothing is attached yet");
    let mut agent = site.agent().start();
    let took = agent.wait_until_ready();
    println!("ready after {} ms", took.as_millis());
    for _ in 0..20 {
        assert!(BACKENDS.contains(&client.tcp(VIP).unwrap().as_str()));
        assert!(BACKENDS.contains(&client.udp(VIP).unwrap().as_str()));
    }
    let log = agent.log();
    let at = |what: &str| log.find(what).unwrap_or_else(|| panic!("{what} is not in\n{log}"));
    assert!(at("hooks attached") < at("source synced"));
    let (status, ready) = site.json("status");
    assert!(ready && status["ready"] == true && status["agent"] == "running", "{status:#}");
    assert_eq!(status["problems"], Value::Array(Vec::new()));
    assert_eq!(status["hooks"].as_array().unwrap().len(), HOOKS.len());
    assert!(status["hooks"].as_array().unwrap().iter().all(|hook| hook["adopted"] == false));
    assert_eq!(status["frontends"], serde_json::json!({ "desired": 2, "installed": 2 }));
    assert_eq!(status["cgroup"], site.cgroup.path().to_str().unwrap());
}

#[test]
fn what_a_killed_agent_installed_stays_in_force_and_can_be_looked_at() {
    let Some(site) = site() else { return };
    let agent = site.ready_agent();
    let mut client = site.client();
    let before = (site.json("services").0, site.json("backends").0);
    agent.kill();
    for _ in 0..20 {
        client.tcp(VIP).unwrap();
        client.udp(VIP).unwrap();
    }

    let (status, ready) = site.json("status");
    assert!(!ready && status["agent"] == "gone" && status["ready"] == false, "{status:#}");
    assert!(status["problems"][0].as_str().unwrap().starts_with("no agent answers at "), "{status:#}");
    assert_eq!(status["hooks"].as_array().unwrap().len(), HOOKS.len(), "they are still attached: {status:#}");
    assert_eq!(status["cgroup"], site.cgroup.path().to_str().unwrap());

    let (services, ok) = site.json("services");
    assert!(ok && services["agent"] == "gone");
    for (gone, running) in services["services"].as_array().unwrap().iter().zip(before.0["services"].as_array().unwrap())
    {
        assert_eq!(gone["backends"], running["backends"]);
        assert_eq!(gone["backends"].as_array().unwrap().len(), 2);
        assert_eq!(gone["tiers"], running["tiers"]);
        assert_eq!((&gone["desired_backends"], &running["desired_backends"]), (&Value::Null, &Value::from(2)));
    }
    let (backends, ok) = site.json("backends");
    assert!(ok && backends["agent"] == "gone");
    assert_eq!(backends["backends"].as_array().unwrap().len(), before.1["backends"].as_array().unwrap().len());
    let chosen: u64 = backends["backends"].as_array().unwrap().iter().map(|row| row["chosen"].as_u64().unwrap()).sum();
    assert_eq!(chosen, 40);

    for question in ["status", "services", "backends"] {
        let said = site.tombolo(&[question]);
        assert!(said.out.contains("no agent answers"), "{said:?}");
    }
}

#[test]
fn no_connect_fails_while_the_agent_is_killed_and_started_again() {
    let Some(site) = site() else { return };
    let mut client = site.client();
    let mut agent = Some(site.ready_agent());
    let before = site.json("backends").0;
    client.dialler().begin(VIP.parse().unwrap(), 2).unwrap();
    let mut connects = 0;
    let mut restarts = 0;
    until(SOON * 3, || {
        agent.take().unwrap().kill();
        agent = Some(site.ready_agent());
        restarts += 1;
        let status = site.json("status").0;
        assert!(status["hooks"].as_array().unwrap().iter().all(|hook| hook["adopted"] == true), "{status:#}");
        let chosen = site.json("backends").0;
        connects = chosen["backends"].as_array().unwrap().iter().map(|row| row["chosen"].as_u64().unwrap()).sum();
        (connects >= CONNECTS && restarts >= 3).then_some(())
    });
    let seen = client.dialler().end().unwrap();
    println!("{} connects, {restarts} restarts, the longest took {} ms", seen.connects, seen.longest.as_millis());
    assert_eq!(seen.failed, 0, "{:?}", seen.failures);
    assert!(seen.connects >= CONNECTS, "{}", seen.connects);
    let answered: BTreeSet<&str> = seen.answers.keys().map(String::as_str).collect();
    assert_eq!(answered, BACKENDS.into());
    // The same tables: nothing was counted anew.
    let after = site.json("backends").0;
    let rows = |document: &Value| {
        let rows = document["backends"].as_array().unwrap().iter();
        rows.map(|row| (row["address"].clone(), row["protocol"].clone(), row["services"].clone())).collect::<Vec<_>>()
    };
    assert_eq!(rows(&before), rows(&after));
}

#[test]
fn a_restart_finds_its_tables_and_writes_nothing() {
    let Some(site) = site() else { return };
    site.ready_agent().kill();
    let agent = site.ready_agent();
    let log = agent.log();
    assert!(log.contains(&adopted_all()), "{log}");
    assert!(log.contains("tables read from the kernel") && log.contains("\"frontends\":4"), "{log}");
    assert!(!log.contains("tables changed"), "{log}");
}

#[test]
fn a_service_that_went_while_no_agent_ran_goes_once_the_source_is_synced() {
    let Some(site) = site() else { return };
    site.write("old.yaml", &service("old-federated", "10.96.0.11:80", &BACKENDS));
    site.ready_agent().kill();
    std::fs::remove_file(site.manifests.join("old.yaml")).unwrap();
    let _agent = site.ready_agent();
    assert!(site.installed("demo/old-federated").is_empty());
    assert_eq!(site.installed("demo/web-federated"), BACKENDS);
}

#[test]
fn what_can_not_be_read_at_a_start_stays_installed_until_it_can() {
    let Some(site) = site() else { return };
    let old = service("old-federated", "10.96.0.11:80", &BACKENDS);
    site.write("old.yaml", &old);
    site.write("gone.yaml", &service("gone-federated", "10.96.0.12:80", &BACKENDS));
    site.ready_agent().kill();
    // Half a document; a new service beside it, and one that is missing for good as far as anybody can know.
    let half = old.len() / 2;
    site.write("old.yaml", &old[..old[..half].rfind(": ").unwrap() + 1]);
    site.write("new.yaml", &service("new-federated", "10.96.0.13:80", &BACKENDS));
    std::fs::remove_file(site.manifests.join("gone.yaml")).unwrap();
    let agent = site.agent().start();
    let follows = || (site.installed("demo/new-federated") == BACKENDS).then_some(());
    assert!(until(SOON, follows).is_some(), "what can be read is put into force: {}", agent.log());
    assert!(agent.log().contains("\"complete\":false"), "{}", agent.log());
    // Past a tick and a look at the folder, too.
    std::thread::sleep(Duration::from_millis(2500));
    let mut client = site.client();
    for (name, address) in [("old", "10.96.0.11:80"), ("gone", "10.96.0.12:80"), ("web", VIP)] {
        assert_eq!(site.installed(&format!("demo/{name}-federated")), BACKENDS, "{name} stays");
        assert!(client.tcp(address).is_ok(), "{name} is translated");
    }

    site.write("old.yaml", &service("old-federated", "10.96.0.11:80", &BACKENDS[..1]));
    let follows = || {
        let is_gone = site.installed("demo/gone-federated").is_empty();
        (is_gone && site.installed("demo/old-federated") == BACKENDS[..1]).then_some(())
    };
    assert!(until(SOON, follows).is_some(), "{}", agent.log());
    assert!(site.json("status").1);
}

#[test]
fn an_agent_that_is_stopped_leaves_the_data_path_and_takes_its_socket_along() {
    let Some(site) = site() else { return };
    let agent = site.ready_agent();
    agent.stop();
    assert!(!site.socket.exists());
    site.client().tcp(VIP).unwrap();
    assert_eq!(site.installed("demo/web-federated"), BACKENDS);
}

#[test]
fn unloading_takes_everything_away_and_nothing_else() {
    let Some(site) = site() else { return };
    let agent = site.ready_agent();
    let said = site.tombolo(&["unload"]);
    assert!(!said.status.success() && said.err.contains("an agent is running"), "{said:?}");
    assert!(said.err.contains("stop it first"), "{said:?}");
    agent.kill();
    let mut client = site.client();
    client.tcp(VIP).unwrap();

    let said = site.tombolo(&["unload"]);
    assert!(said.status.success(), "{said:?}");
    assert!(!site.pins.exists());
    let gone = until(Duration::from_secs(2), || (client.tcp(VIP) == Err(libc::ENETUNREACH)).then_some(()));
    assert!(gone.is_some(), "connections take their ordinary path");

    let said = site.tombolo(&["unload"]);
    assert!(said.status.success() && said.out.contains("nothing is pinned"), "{said:?}");
    let said = site.tombolo(&["services"]);
    assert!(!said.status.success(), "{said:?}");
    assert!(said.err.contains("none left its tables"), "{said:?}");
}

#[test]
fn unloading_that_is_told_to_end_in_the_middle_ends_when_it_is_done() {
    let Some(site) = Site::new() else { return };
    for arguments in [&["unload", "--stay"][..], &["unload"]] {
        // It can't say what it did while nobody reads, so it is in the middle of it as long as we like.
        let (mut reader, writer) = io::pipe().unwrap();
        let filled = fill(&writer);
        let mut command = Command::new(program("tombolo"));
        let mut child = command.args(arguments).arg("--pins").arg(&site.pins).stdout(writer).spawn().unwrap();
        drop(command);
        let waits = PathBuf::from(format!("/proc/{}/wchan", child.id()));
        let is_waiting = || fs::read_to_string(&waits).unwrap().contains("pipe_write").then_some(());
        assert!(until(SOON, is_waiting).is_some(), "{:?}", fs::read_to_string(&waits));
        kill(Pid::from_raw(child.id().try_into().unwrap()), Signal::SIGTERM).unwrap();
        let mut said = Vec::new();
        reader.read_to_end(&mut said).unwrap();
        let status = child.wait().unwrap();
        assert!(status.success(), "{arguments:?}: {status:?}");
        assert!(String::from_utf8_lossy(&said[filled..]).contains("nothing is pinned"), "{arguments:?}");
    }
}

/// Writes until a pipe takes no more, and says how much that was.
fn fill(writer: &io::PipeWriter) -> usize {
    let path = format!("/proc/self/fd/{}", writer.as_raw_fd());
    let mut again = fs::OpenOptions::new().write(true).custom_flags(libc::O_NONBLOCK).open(path).unwrap();
    let mut filled = 0;
    loop {
        match again.write(&[b'.'; 4096]) {
            Ok(written) => filled += written,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return filled,
            Err(error) => panic!("{error}"),
        }
    }
}

#[test]
fn an_agent_starts_afresh_after_it_was_unloaded() {
    let Some(site) = site() else { return };
    for _ in 0..2 {
        let agent = site.ready_agent();
        site.client().tcp(VIP).unwrap();
        agent.stop();
        assert!(site.tombolo(&["unload"]).status.success());
    }
    assert_eq!(names(site.pins.parent().unwrap()), Vec::<String>::new());
}

#[test]
fn a_second_agent_on_the_same_pins_refuses_and_changes_nothing() {
    let Some(site) = site() else { return };
    let _agent = site.ready_agent();
    let other = site.folder().join("other.sock");
    let said = site.agent().with("--socket", &other).fail();
    assert!(said.contains("an agent is running that has its maps in") && said.contains("--pins"), "{said}");
    assert!(!other.exists());
    let said = site.agent().with("--pins", site.pins.with_file_name("others")).fail();
    assert!(said.contains("another agent answers at") && said.contains("--socket"), "{said}");
    assert!(!site.pins.with_file_name("others").exists());
    site.client().tcp(VIP).unwrap();
    assert!(site.json("status").1);
}

#[test]
fn a_socket_that_a_killed_agent_left_is_replaced() {
    let Some(site) = site() else { return };
    site.ready_agent().kill();
    assert!(site.socket.exists());
    let _agent = site.ready_agent();
    assert!(site.json("status").1);
}

#[test]
fn many_who_ask_at_once_and_one_who_says_nothing_are_all_served() {
    let Some(site) = site() else { return };
    let _agent = site.ready_agent();
    let silent = std::os::unix::net::UnixStream::connect(&site.socket).unwrap();
    std::thread::scope(|scope| {
        let ask = || assert!(site.json("status").1);
        let asking: Vec<_> = (0..8).map(|_| scope.spawn(ask)).collect();
        asking.into_iter().for_each(|thread| thread.join().unwrap());
    });
    drop(silent);
}
