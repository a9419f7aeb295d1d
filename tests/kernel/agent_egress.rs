//! Connected UDP sockets whose backend goes: the agent has them connect again, and looks at their packets only as long
//! as it has to.

use crate::agent_site::{Agent, Client, Site, service};
use crate::clock::{SOON, is_emulated, judges_no_times, patience, until};
use std::{
    thread,
    time::{Duration, Instant},
};

const VIP: &str = "10.96.0.10:53";
const STAYS: &str = "127.0.0.5:5353";
const GOES: &str = "127.0.0.6:5353";

/// How long the agent is told to watch, in seconds: longer than its restart takes.
fn watch() -> u64 {
    if is_emulated() { 12 } else { 6 }
}

/// A site with an agent, and a client that is connected to the endpoint that goes.
fn site() -> Option<(Site, Client)> {
    if judges_no_times() {
        return None;
    }
    let mut site = Site::new()?;
    for backend in [STAYS, GOES] {
        site.serve(backend);
    }
    site.write("dns.yaml", &service("dns-federated", VIP, &[GOES]));
    let client = site.client();
    Some((site, client))
}

fn ready(site: &Site) -> Agent {
    let mut agent = site.agent().with("--udp-refusal", watch().to_string()).start();
    agent.wait_until_ready();
    agent
}

/// How the hook is attached: whether it was taken over; none if it isn't.
fn hook(site: &Site) -> Option<bool> {
    let (status, _) = site.json("status");
    let hooks = status["hooks"].as_array().unwrap();
    hooks.iter().find(|hook| hook["name"] == "egress").map(|hook| hook["adopted"] == true)
}

/// The endpoint goes, and the socket's next datagrams get their answers from the other one.
fn lose(site: &Site, client: &mut Client) {
    assert_eq!(client.resolve(VIP).as_deref(), Ok(GOES));
    site.write("dns.yaml", &service("dns-federated", VIP, &[STAYS]));
    let began = Instant::now();
    let moved = until(SOON, || (client.resolve(VIP).unwrap() == STAYS).then_some(()));
    assert!(moved.is_some(), "{:#}", site.json("status").0);
    let took = began.elapsed();
    println!("answered by the other endpoint after {took:?}");
    assert!(took < patience(Duration::from_secs(1)), "{took:?}");
}

#[test]
fn a_resolver_whose_endpoint_goes_is_answered_by_another_one_within_a_second() {
    let Some((site, mut client)) = site() else { return };
    let mut other = site.client();
    let agent = ready(&site);
    assert_eq!(hook(&site), None, "nothing was lost yet");
    assert_eq!(other.udp(VIP).as_deref(), Ok(GOES));
    lose(&site, &mut client);
    assert_eq!(hook(&site), Some(false), "{}", agent.log());
    let pin = site.layout().join("links/egress");
    assert!(pin.exists());
    assert_eq!(other.udp(VIP).as_deref(), Ok(STAYS));
    assert!(site.json("status").0["counters"]["udp_refused"].as_u64() > Some(0));

    let began = Instant::now();
    let gone = until(3 * SOON, || hook(&site).is_none().then_some(()));
    assert!(gone.is_some(), "{}", agent.log());
    println!("detached after {:?}", began.elapsed());
    assert!(!pin.exists());
    assert_eq!(client.resolve(VIP).as_deref(), Ok(STAYS));
    assert!(site.json("status").1, "its absence is no fault");
}

#[test]
fn the_next_agent_takes_the_hook_over_and_unloading_removes_it() {
    let Some((site, mut client)) = site() else { return };
    let agent = ready(&site);
    lose(&site, &mut client);
    assert_eq!(hook(&site), Some(false), "{}", agent.log());
    agent.kill();
    assert_eq!(hook(&site), Some(false), "it stays without an agent");
    let agent = ready(&site);
    assert_eq!(hook(&site), Some(true), "{}", agent.log());
    let gone = until(3 * SOON, || hook(&site).is_none().then_some(()));
    assert!(gone.is_some(), "{}", agent.log());

    site.write("dns.yaml", &service("dns-federated", VIP, &[GOES]));
    let back = until(SOON, || (client.resolve(VIP).unwrap() == GOES).then_some(()));
    assert!(back.is_some() && hook(&site) == Some(false), "{}", agent.log());
    agent.stop();
    site.tombolo(&["unload"]);
    assert!(!site.pins.exists());
}

#[test]
fn an_endpoint_that_terminates_keeps_its_sockets_and_one_of_tcp_alone_needs_no_hook() {
    let Some((site, mut client)) = site() else { return };
    let text = service("dns-federated", VIP, &[GOES, STAYS]);
    let only_tcp = |text: &str| {
        text.replace(", {name: udp, port: 53, protocol: UDP}", "")
            .replace(", {name: udp, port: 5353, protocol: UDP}", "")
    };
    let agent = ready(&site);
    assert_eq!(client.resolve(VIP).as_deref(), Ok(GOES));
    let address = r#"{addresses: ["127.0.0.6"]}"#;
    assert!(text.contains(address));
    let conditions = "conditions: {ready: false, serving: true, terminating: true}";
    site.write("dns.yaml", &text.replace(address, &format!(r#"{{addresses: ["127.0.0.6"], {conditions}}}"#)));
    assert!(until(SOON, || (site.installed("demo/dns-federated") == [STAYS]).then_some(())).is_some());
    for _ in 0..20 {
        assert_eq!(client.resolve(VIP).as_deref(), Ok(GOES));
        thread::sleep(Duration::from_millis(10));
    }
    assert_eq!(hook(&site), None, "{}", agent.log());
    drop(agent);

    let Some((site, _)) = self::site() else { return };
    site.write("dns.yaml", &only_tcp(&text));
    let agent = ready(&site);
    site.write("dns.yaml", &only_tcp(&service("dns-federated", VIP, &[STAYS])));
    assert!(until(SOON, || (site.installed("demo/dns-federated") == [STAYS]).then_some(())).is_some());
    assert_eq!(hook(&site), None, "{}", agent.log());
}
