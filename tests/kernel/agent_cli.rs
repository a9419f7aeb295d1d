//! The command line as a person and a program meet it.

use crate::agent_site::{Said, Site, program, service};
use serde_json::Value;
use std::{path::PathBuf, process::Command};

const VIP: &str = "10.96.0.10:80";
const BACKEND: &str = "127.0.0.5:8080";

/// Where the programs can be started at all; without root, too.
fn tombolo(arguments: &[&str]) -> Option<Said> {
    let program: PathBuf = program("tombolo");
    if !program.exists() {
        println!("skipped: {} is missing", program.display());
        return None;
    }
    Some(Said::by(Command::new(program).args(arguments)))
}

#[test]
fn version_and_help_need_nothing() {
    let Some(said) = tombolo(&["version", "-o", "json"]) else { return };
    let document: Value = serde_json::from_str(&said.out).unwrap();
    assert!(document["version"].is_string() && document["layout"].is_u64(), "{said:?}");
    let said = tombolo(&["--help"]).unwrap();
    for subcommand in ["agent", "unload", "status", "services", "backends", "version"] {
        assert!(said.out.contains(subcommand), "{said:?}");
    }
    assert!(!said.out.contains("probe-socket"), "what is for the agent alone isn't shown");
    assert_eq!(tombolo(&["agent"]).unwrap().status.code(), Some(2), "flags are missing");
}

#[test]
fn an_agent_can_be_told_everything_by_its_environment() {
    let Some(mut site) = Site::new() else { return };
    site.serve(BACKEND);
    // Not federated: only --all-services has it translated.
    let plain = service("web", VIP, &[BACKEND]).replace(", labels: {mirror.linkerd.io/mirrored-service: \"true\"}", "");
    site.write("web.yaml", &plain);
    let mut agent = site.agent().by_environment(&[("TOMBOLO_ALL_SERVICES", "true"), ("TOMBOLO_ZONE", "z1")]).start();
    agent.wait_until_ready();
    assert_eq!(site.client().tcp(VIP).as_deref(), Ok(BACKEND));
    let place = site.json("status").0["place"].clone();
    assert_eq!(place, serde_json::json!({ "cluster": "west", "node": "west-1", "zone": "z1" }));

    let ask = |question: &str| {
        let mut command = Command::new(program("tombolo"));
        command.arg(question).env("TOMBOLO_SOCKET", &site.socket).env("TOMBOLO_PINS", &site.pins);
        Said::by(&mut command)
    };
    assert!(ask("status").status.success());
    agent.kill();
    assert!(ask("services").out.contains("demo/web"));
    assert!(ask("unload").status.success());
    assert!(!site.pins.exists());
}

#[test]
fn tables_are_for_people_and_say_whose_truth_they_show() {
    let Some(mut site) = Site::new() else { return };
    site.serve(BACKEND);
    site.write("web.yaml", &service("web-federated", VIP, &[BACKEND]));
    let agent = site.ready_agent();
    let services = site.tombolo(&["services"]).out;
    for part in ["SERVICE", "DESIRED", "INSTALLED", "demo/web-federated", VIP, "TCP", "UDP", "east 100% (1)"] {
        assert!(services.contains(part), "{part} is not in\n{services}");
    }
    let backends = site.tombolo(&["backends"]).out;
    for part in [
        "CLUSTER",
        "EJECTED",
        "CHOSEN",
        "ESTABLISHED",
        "OPEN",
        "FAILED",
        "east",
        BACKEND,
        "pod",
        "ok",
        "demo/web-federated",
    ] {
        assert!(backends.contains(part), "{part} is not in\n{backends}");
    }
    let status = site.tombolo(&["status"]).out;
    for part in ["ready", "cluster west, node west-1", "connect4", "2 installed, 2 desired", "east up"] {
        assert!(status.contains(part), "{part} is not in\n{status}");
    }
    for text in [services, backends, status] {
        assert!(!text.contains("192.0.0.8") && !text.contains("no agent answers"), "{text}");
    }
    agent.stop();
    let services = site.tombolo(&["services"]).out;
    assert!(services.starts_with("no agent answers; this is what the kernel holds"), "{services}");
    assert!(services.contains("demo/web-federated") && services.contains('?'), "{services}");
}

#[test]
fn without_an_agent_and_without_pins_each_question_is_an_error_that_says_where_it_looked() {
    let Some(site) = Site::new() else { return };
    for question in ["status", "services", "backends"] {
        let said = site.tombolo(&[question]);
        assert_eq!(said.status.code(), Some(1), "{said:?}");
        for part in [&site.socket.display().to_string(), &site.pins.display().to_string(), "--socket", "--pins"] {
            assert!(said.err.contains(part), "{part} is not in: {said:?}");
        }
        assert_eq!(said.out, "");
    }
}
