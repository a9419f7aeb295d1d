//! What happens to the manifests while the agent runs.

use crate::agent_site::{Client, Site, service};
use crate::clock::{SOON, is_emulated, until};
use std::{
    fs,
    time::{Duration, Instant},
};

const A: &str = "127.0.0.5:8080";
const B: &str = "127.0.0.6:8080";
const C: &str = "127.0.0.7:8080";

/// How long a change of a file may take to have its effect.
const EFFECT: Duration = Duration::from_secs(1);

fn site() -> Option<Site> {
    let mut site = Site::new()?;
    for server in [A, B, C] {
        site.serve(server);
    }
    Some(site)
}

/// Waits until dialling `address` always gives one of `expected`, or always fails if there are none.
fn takes_effect(client: &mut Client, address: &str, expected: &[&str]) -> Duration {
    let start = Instant::now();
    let settled = until(SOON, || {
        let all = (0..16).all(|_| match client.tcp(address) {
            Ok(said) => expected.contains(&said.as_str()),
            Err(_) => expected.is_empty(),
        });
        all.then(|| start.elapsed())
    });
    let took = settled.unwrap_or_else(|| panic!("{address} does not go to {expected:?}"));
    assert!(took < EFFECT || is_emulated(), "it took {took:?}");
    took
}

#[test]
fn a_change_of_a_file_takes_effect_within_a_second() {
    let Some(site) = site() else { return };
    site.write("first.yaml", &service("first-federated", "10.96.0.10:80", &[A]));
    let _agent = site.ready_agent();
    let mut client = site.client();
    assert_eq!(client.tcp("10.96.0.10:80").as_deref(), Ok(A));

    site.write("second.yaml", &service("second-federated", "10.96.0.11:80", &[A, B]));
    let added = takes_effect(&mut client, "10.96.0.11:80", &[A, B]);
    site.write("second.yaml", &service("second-federated", "10.96.0.11:80", &[C]));
    let changed = takes_effect(&mut client, "10.96.0.11:80", &[C]);
    fs::remove_file(site.manifests.join("second.yaml")).unwrap();
    let removed = takes_effect(&mut client, "10.96.0.11:80", &[]);
    println!("effect of a service added: {added:?}, changed: {changed:?}, removed: {removed:?}");
    assert_eq!(client.tcp("10.96.0.10:80").as_deref(), Ok(A), "the other one is as it was");
    assert_eq!(client.tcp("10.96.0.11:80"), Err(libc::ENETUNREACH), "it takes its ordinary path");
}

#[test]
fn a_service_of_ipv6_is_translated_like_any_other() {
    let Some(mut site) = Site::new() else { return };
    site.serve("[::1]:8080");
    site.write("six.yaml", &service("six-federated", "[fd00:96::10]:80", &["[::1]:8080"]));
    let _agent = site.ready_agent();
    let mut client = site.client();
    assert_eq!(client.tcp("[fd00:96::10]:80").as_deref(), Ok("[::1]:8080"));
    assert_eq!(client.udp("[fd00:96::10]:80").as_deref(), Ok("[::1]:8080"));
}

#[test]
fn a_bad_document_is_named_and_its_last_good_state_stays_while_the_rest_goes_on() {
    let Some(site) = site() else { return };
    let good = service("web-federated", "10.96.0.10:80", &[A]);
    site.write("web.yaml", &good);
    let agent = site.ready_agent();
    let mut client = site.client();

    // The port of the Service, on its seventh line, becomes one that there can't be; the slice in the same file changes.
    let bad = good.replacen("port: 80,", "port: 99999,", 1).replace("127.0.0.5", "127.0.0.6");
    site.write("web.yaml", &bad);
    takes_effect(&mut client, "10.96.0.10:80", &[B]);
    let place = format!("{}:7: ", site.manifests.join("web.yaml").display());
    let problem = site.problem(&place);
    assert!(problem.contains("Service demo/web-federated") && problem.contains("99999"), "{problem}");
    assert!(problem.contains("its last good state stays"), "{problem}");
    let log = agent.log();
    let (origin, reason) = problem.split_once(": ").unwrap();
    assert!(log.contains(origin) && log.contains(reason), "{problem} is not in\n{log}");
    assert_eq!(log.matches(reason).count(), 1, "it is said once:\n{log}");
    assert!(site.json("status").1, "the agent stays ready");

    // What isn't YAML at all, beside a new file.
    site.write("web.yaml", "kind: [Service\n");
    site.write("other.yaml", &service("other-federated", "10.96.0.11:80", &[C]));
    takes_effect(&mut client, "10.96.0.11:80", &[C]);
    takes_effect(&mut client, "10.96.0.10:80", &[B]);

    site.write("web.yaml", &good);
    takes_effect(&mut client, "10.96.0.10:80", &[A]);
    assert!(until(SOON, || (site.json("status").0["problems"] == serde_json::json!([])).then_some(())).is_some());
}

#[test]
fn what_kubectl_prints_as_a_list_is_read() {
    let Some(site) = site() else { return };
    let documents = service("web-federated", "10.96.0.10:80", &[A]);
    let items: String = documents
        .split("---\n")
        .map(|item| format!("- {}", item.replace('\n', "\n  ").trim_end()))
        .fold(String::new(), |all, item| all + &item + "\n");
    site.write("dump.yaml", &format!("apiVersion: v1\nkind: List\nitems:\n{items}"));
    let _agent = site.ready_agent();
    assert_eq!(site.client().tcp("10.96.0.10:80").as_deref(), Ok(A));
}

#[test]
fn an_endpoint_that_ends_takes_no_more_connections_and_the_last_one_of_a_service_leaves_it_to_kube_proxy() {
    let Some(site) = site() else { return };
    site.write("web.yaml", &service("web-federated", "10.96.0.10:80", &[A, B]));
    let _agent = site.ready_agent();
    let mut client = site.client();
    let two = service("web-federated", "10.96.0.10:80", &[A, B]);
    site.write(
        "web.yaml",
        &two.replace("addresses: [\"127.0.0.6\"]", "addresses: [\"127.0.0.6\"], conditions: {ready: false}"),
    );
    takes_effect(&mut client, "10.96.0.10:80", &[A]);
    site.write("web.yaml", &service("web-federated", "10.96.0.10:80", &[]));
    takes_effect(&mut client, "10.96.0.10:80", &[]);
}

#[test]
fn a_folder_that_is_not_there_is_named_and_nothing_is_attached() {
    let Some(site) = site() else { return };
    let said = site.agent().with("--manifests", "/no/such/folder").fail();
    assert!(said.contains("list manifests in /no/such/folder") && said.contains("--manifests"), "{said}");
    assert!(!site.pins.exists());
}
