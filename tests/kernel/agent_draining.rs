//! Endpoints on their way out: they take nothing new, and what they have is watched for as long as it lasts.

use crate::agent_site::{Client, Site, service};
use crate::clock::{SOON, judges_no_times, until};
use serde_json::Value;
use std::{thread, time::Duration};

const VIP: &str = "10.96.0.10:80";
const STAYS: &str = "127.0.0.5:8080";
const GOES: &str = "127.0.0.6:8080";

/// Longer than an idle backend stays.
const LINGERED: Duration = Duration::from_secs(6);

fn site() -> Option<Site> {
    if judges_no_times() {
        return None;
    }
    let mut site = Site::new()?;
    for backend in [STAYS, GOES] {
        site.serve(backend);
    }
    site.write("web.yaml", &service("web-federated", VIP, &[STAYS, GOES]));
    Some(site)
}

/// The slice as it is while the second pod terminates.
fn terminating(serving: bool) -> String {
    let ready = r#"{addresses: ["127.0.0.6"]}"#;
    let text = service("web-federated", VIP, &[STAYS, GOES]);
    assert!(text.contains(ready));
    let conditions = format!("conditions: {{ready: false, serving: {serving}, terminating: true}}");
    text.replace(ready, &format!(r#"{{addresses: ["127.0.0.6"], {conditions}}}"#))
}

/// The row of a backend's TCP side; none if it isn't installed.
fn row(site: &Site, address: &str) -> Option<Value> {
    let (document, _) = site.json("backends");
    let rows = document["backends"].as_array().unwrap();
    rows.iter().find(|row| row["address"] == address && row["protocol"] == "TCP").cloned()
}

/// Holds connections until each of both backends has some.
fn hold_both(client: &mut Client) -> usize {
    let mut to_goes = 0;
    let mut to_stays = 0;
    while to_goes < 3 || to_stays < 1 {
        match client.hold(VIP).unwrap().as_str() {
            GOES => to_goes += 1,
            _ => to_stays += 1,
        }
        assert!(to_goes + to_stays < 200, "one backend takes everything");
    }
    to_goes
}

fn drains(site: &Site) {
    let drains = || row(site, GOES).filter(|row| row["verdict"] == "draining");
    assert!(until(SOON, drains).is_some(), "{:#}", site.json("backends").0);
}

#[test]
fn a_pod_that_terminates_takes_nothing_new_and_is_watched_until_its_last_connection_is_closed() {
    let Some(site) = site() else { return };
    let agent = site.ready_agent();
    let mut client = site.client();
    let open = hold_both(&mut client);
    let counted = |row: &Value| (row["open"].clone(), row["established"].clone());
    assert_eq!(counted(&row(&site, GOES).unwrap()), (open.into(), open.into()));

    for serving in [true, false] {
        site.write("web.yaml", &terminating(serving));
        drains(&site);
        let services = site.json("services").0;
        assert_eq!(services["services"][0]["draining"], serde_json::json!([GOES]), "{services:#}");
        for _ in 0..20 {
            assert_eq!(client.tcp(VIP).as_deref(), Ok(STAYS), "nothing new is sent there");
        }
    }
    thread::sleep(LINGERED);
    assert_eq!(row(&site, GOES).unwrap()["open"], open, "it stays as long as it is in the slices");

    site.write("web.yaml", &service("web-federated", VIP, &[STAYS]));
    thread::sleep(LINGERED);
    assert_eq!(row(&site, GOES).unwrap()["open"], open, "and for as long as it has connections");
    agent.kill();
    let agent = site.ready_agent();
    thread::sleep(LINGERED);
    assert_eq!(row(&site, GOES).unwrap()["open"], open, "the next agent knows of them");

    client.release();
    let gone = || row(&site, GOES).is_none().then_some(());
    assert!(until(SOON, gone).is_some(), "{:#}\n{}", site.json("backends").0, agent.log());
    assert_eq!(row(&site, STAYS).unwrap()["open"], 0);
    assert_eq!(site.json("status").0["drift"], 0);
}

#[test]
fn a_pod_that_is_gone_at_once_and_has_no_connections_is_cleared() {
    let Some(site) = site() else { return };
    let _agent = site.ready_agent();
    let mut client = site.client();
    site.write("web.yaml", &service("web-federated", VIP, &[STAYS]));
    drains(&site);
    let gone = || row(&site, GOES).is_none().then_some(());
    assert!(until(SOON, gone).is_some(), "{:#}", site.json("backends").0);
    for _ in 0..20 {
        assert_eq!(client.tcp(VIP).as_deref(), Ok(STAYS));
    }
}

#[test]
fn a_pod_that_comes_back_takes_connections_again() {
    let Some(site) = site() else { return };
    let _agent = site.ready_agent();
    let mut client = site.client();
    let open = hold_both(&mut client);
    site.write("web.yaml", &service("web-federated", VIP, &[STAYS]));
    drains(&site);
    site.write("web.yaml", &service("web-federated", VIP, &[STAYS, GOES]));
    assert!(until(SOON, || (client.tcp(VIP).unwrap() == GOES).then_some(())).is_some());
    let row = row(&site, GOES).unwrap();
    assert_eq!(row["verdict"], "ok");
    assert!(row["open"].as_u64().unwrap() >= open as u64, "it is still the same: {row:#}");
}
