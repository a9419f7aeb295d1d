//! Tables that are full, and tables that are large.

use crate::agent_site::{Site, service};
use crate::clock::{SOON, is_emulated, until};
use std::{
    fs,
    time::{Duration, Instant},
};

const BACKEND: &str = "127.0.0.5:8080";

fn site() -> Option<Site> {
    let mut site = Site::new()?;
    site.serve(BACKEND);
    Some(site)
}

fn vip(number: usize) -> String {
    format!("10.96.0.{}:80", 10 + number)
}

#[test]
fn services_that_find_no_room_are_refused_whole_and_installed_once_there_is_some() {
    let Some(site) = site() else { return };
    // Each service takes two frontends, one for TCP and one for UDP.
    for number in 0..3 {
        site.write(&format!("{number}.yaml"), &service(&format!("s{number}-federated"), &vip(number), &[BACKEND]));
    }
    let mut agent = site.agent().with("--max-frontends", "5").start();
    agent.wait_until_ready();
    let mut client = site.client();
    for number in 0..2 {
        assert_eq!(client.tcp(&vip(number)).as_deref(), Ok(BACKEND));
    }
    let (status, ready) = site.json("status");
    assert!(ready, "what has room works: {status:#}");
    assert_eq!(status["frontends"], serde_json::json!({ "desired": 6, "installed": 5 }));
    let problem = site.problem("services refused");
    assert!(problem.contains("no room for 1 more frontends"), "{problem}");
    let services = site.json("services").0;
    let refused: Vec<_> = services["services"]
        .as_array()
        .unwrap()
        .iter()
        .filter(|entry| entry["problems"].to_string().contains("not installed"))
        .collect();
    assert_eq!(refused.len(), 1, "{services:#}");
    assert_eq!((&refused[0]["name"], &refused[0]["backends"]), (&"demo/s2-federated".into(), &serde_json::json!([])));
    assert!(agent.log().contains("service refused"), "{}", agent.log());

    fs::remove_file(site.manifests.join("0.yaml")).unwrap();
    let healed = until(Duration::from_secs(5), || {
        let both = client.tcp(&vip(2)).is_ok() && client.udp(&vip(2)).is_ok();
        (both && client.tcp(&vip(0)).is_err()).then_some(())
    });
    assert!(healed.is_some(), "{:#}", site.json("services").0);
    assert_eq!(site.json("status").0["problems"], serde_json::json!([]));
}

#[test]
fn the_old_version_of_a_service_that_outgrows_the_tables_stays_as_it_is() {
    let Some(site) = site() else { return };
    let small = service("web-federated", &vip(0), &[BACKEND]);
    site.write("web.yaml", &small);
    let mut agent = site.agent().with("--max-backends", "8").start();
    agent.wait_until_ready();
    let many: Vec<String> = (1..40).map(|last| format!("127.0.1.{last}:8080")).collect();
    let many: Vec<&str> = many.iter().map(String::as_str).collect();
    site.write("web.yaml", &service("web-federated", &vip(0), &many));
    let problem = site.problem("services refused");
    assert!(problem.contains("backends"), "{problem}");
    let mut client = site.client();
    for _ in 0..20 {
        assert_eq!(client.tcp(&vip(0)).as_deref(), Ok(BACKEND));
    }
    assert_eq!(site.installed("demo/web-federated"), [BACKEND]);
    site.write("web.yaml", &small);
    let healed =
        until(Duration::from_secs(5), || (site.json("status").0["problems"] == serde_json::json!([])).then_some(()));
    assert!(healed.is_some());
}

#[test]
fn pinned_maps_keep_their_size_and_the_agent_says_so() {
    let Some(site) = site() else { return };
    site.write("web.yaml", &service("web-federated", &vip(0), &[BACKEND]));
    site.ready_agent().kill();
    let mut agent = site.agent().with("--max-frontends", "99").with("--max-slots", "999").start();
    agent.wait_until_ready();
    let log = agent.log();
    assert!(log.contains("the pinned maps keep their size") && log.contains("tombolo unload"), "{log}");
    assert!(site.client().tcp(&vip(0)).is_ok());
    agent.kill();
    assert!(site.tombolo(&["unload"]).status.success());
    let mut agent = site.agent().with("--max-frontends", "99").with("--max-slots", "999").start();
    agent.wait_until_ready();
    assert!(!agent.log().contains("keep their size"));
}

#[test]
fn a_size_that_makes_no_sense_is_refused() {
    let Some(site) = site() else { return };
    for size in ["0", "many", "4294967296"] {
        let said = site.agent().with("--max-slots", size).refused();
        assert!(said.contains("--max-slots") && said.contains(size), "{said}");
    }
}

#[test]
fn thousands_of_services_are_loaded_taken_over_and_listed() {
    let Some(site) = site() else { return };
    let services = if is_emulated() { 200 } else { 5_000 };
    let backends: u32 = 10;
    let address =
        |first: u32, number: u32| std::net::Ipv4Addr::from(u32::from_be_bytes([10, 96, 0, 0]) + (first << 16) + number);
    for chunk in 0..10 {
        let one = |number: u32| {
            let endpoints: Vec<String> =
                (0..backends).map(|i| format!("{}:8080", address(1, number * backends + i))).collect();
            let endpoints: Vec<&str> = endpoints.iter().map(String::as_str).collect();
            service(&format!("s{number}-federated"), &format!("{}:80", address(0, number + 256)), &endpoints)
        };
        let size = services / 10;
        let documents: Vec<String> = (chunk * size..(chunk + 1) * size).map(one).collect();
        site.write(&format!("{chunk}.yaml"), &documents.join("---\n"));
    }
    site.write("web.yaml", &service("web-federated", &vip(0), &[BACKEND]));
    let start = |limit: Duration| {
        let agent = site.agent().with("--max-frontends", "16384").with("--max-backends", "262144");
        let mut agent = agent.with("--max-slots", "1048576").start();
        let begin = Instant::now();
        let ready = until(limit, || site.tombolo(&["status"]).status.success().then(|| begin.elapsed()));
        (ready.unwrap_or_else(|| panic!("not ready:\n{}", agent.log())), agent.memory(), agent)
    };
    let frontends = u64::from(2 * services + 2);

    let (first, memory, agent) = start(SOON * 6);
    println!("{services} services x {backends} backends, TCP and UDP: ready after {first:?}, {memory} MiB");
    assert_eq!(site.json("status").0["frontends"]["installed"], frontends);
    let mut client = site.client();
    assert_eq!(client.tcp(&vip(0)).as_deref(), Ok(BACKEND));

    // One change among many.
    let _server = site.serve_more("127.0.0.6:8080");
    let begin = Instant::now();
    site.write("web.yaml", &service("web-federated", &vip(0), &["127.0.0.6:8080"]));
    let effect = until(SOON * 3, || (client.tcp(&vip(0)).as_deref() == Ok("127.0.0.6:8080")).then(|| begin.elapsed()));
    println!("a change among them took effect after {:?}", effect.expect("it takes effect"));

    let timed = |question: &str| {
        let begin = Instant::now();
        let (document, _) = site.json(question);
        (document, begin.elapsed())
    };
    let running = timed("services").1;
    let installed = services * backends * 2 + 2;
    // What was replaced stays for a moment.
    let cleared = || (site.json("status").0["backends"] == installed).then_some(());
    assert!(until(SOON * 3, cleared).is_some(), "{:#}", site.json("status").0);
    agent.kill();
    let (gone, took) = timed("services");
    assert_eq!(gone["services"].as_array().unwrap().len() as u64, frontends);
    let (rows, backends_took) = timed("backends");
    assert_eq!(u32::try_from(rows["backends"].as_array().unwrap().len()), Ok(installed));
    println!("listing services: {running:?}; from the pins: {took:?}, backends: {backends_took:?}");

    let (again, memory, agent) = start(SOON * 6);
    println!("taken over after {again:?}, {memory} MiB");
    assert!(!agent.log().contains("tables changed"), "nothing had to be written");
}
