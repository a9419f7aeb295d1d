//! Which port of which Service of a gateway leads to which exported port.
//!
//! What is allocated stays as it is as long as the port is exported, for importers dial it. A port whose target is exported no more leads
//! nowhere for a day before anybody else can get it: who dials it late is refused, instead of meeting another service.

use crate::{
    mirror::source::{Claim, ExportedPort, GatewayPort, Transport},
    model::ObjectName,
};
use sha2::{Digest, Sha256};
use std::{
    collections::{BTreeMap, BTreeSet},
    ops::RangeInclusive,
};

/// Most ports of one Service: some clouds' load balancers take 50.
pub const MAX_PORTS: usize = 40;
/// The numbers that are given out: below those that Kubernetes gives to nodes, and Linux to clients.
const NUMBERS: RangeInclusive<u16> = 20_000..=29_999;
/// How long a port that was released stays nobody's, in seconds.
pub(super) const REST: i64 = 86_400;

/// The ports of each Service of the gateway, by its name.
pub type Allocations = BTreeMap<String, BTreeMap<GatewayPort, Claim>>;

/// What [`allocate`] came to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Allocated {
    /// Every port that should be there, those that rest too.
    pub ports: Allocations,
    /// Exported ports for which there was no number left.
    pub left_out: BTreeSet<ExportedPort>,
}

/// Gives every port that is `wanted` a port of the gateway, given what is `there` at `now`, in seconds since 1970.
///
/// New Services are called `base-tcp-0` and so on, but not as one that is `taken`.
pub fn allocate(
    there: &Allocations,
    wanted: &BTreeSet<ExportedPort>,
    taken: &BTreeSet<String>,
    base: &str,
    now: i64,
) -> Allocated {
    let mut allocated = Allocated::default();
    let mut missing = wanted.clone();
    let mut numbers: BTreeSet<GatewayPort> = BTreeSet::new();
    for (service, ports) in there {
        for (port, claim) in ports {
            // The first one, if it was ever given out twice.
            let released = if missing.remove(&claim.target) { None } else { Some(claim.released.unwrap_or(now)) };
            if released.is_none_or(|since| now.saturating_sub(since) < REST) {
                let claim = Claim { target: claim.target.clone(), released };
                allocated.ports.entry(service.clone()).or_default().insert(*port, claim);
                numbers.insert(*port);
            }
        }
    }
    for target in missing {
        let Some(port) = free_port(&target, &numbers) else {
            allocated.left_out.insert(target);
            continue;
        };
        let service = roomy(&allocated.ports, &target)
            .unwrap_or_else(|| free_name(base, target.protocol, &allocated.ports, taken));
        numbers.insert(port);
        allocated.ports.entry(service).or_default().insert(port, Claim { target, released: None });
    }
    allocated
}

/// A number that nobody has, the same one for the same port wherever possible: should all that was recorded be lost, most
/// ports are as they were.
fn free_port(target: &ExportedPort, numbers: &BTreeSet<GatewayPort>) -> Option<GatewayPort> {
    let ExportedPort { service, port, protocol } = target;
    let digest = Sha256::digest(format!("{service}:{port}/{}", protocol.name()));
    let (first, last) = (*NUMBERS.start(), *NUMBERS.end());
    let start = first + u16::from_be_bytes([digest[0], digest[1]]) % (last - first + 1);
    let mut ports = (start..=last).chain(first..start).map(|number| GatewayPort { protocol: *protocol, number });
    ports.find(|port| !numbers.contains(port))
}

/// A Service that has room: one that leads to the same service, else the first.
fn roomy(ports: &Allocations, target: &ExportedPort) -> Option<String> {
    let leads_to = |claims: &BTreeMap<GatewayPort, Claim>, service: &ObjectName| {
        claims.values().any(|claim| claim.target.service == *service)
    };
    let roomy = ports
        .iter()
        .filter(|(_, claims)| claims.len() < MAX_PORTS && claims.keys().all(|port| port.protocol == target.protocol));
    let (name, _) = roomy.min_by_key(|(_, claims)| !leads_to(claims, &target.service))?;
    Some(name.clone())
}

fn free_name(base: &str, protocol: Transport, ports: &Allocations, taken: &BTreeSet<String>) -> String {
    let protocol = protocol.name().to_lowercase();
    let mut names = (0..).map(|number: u32| format!("{base}-{protocol}-{number}"));
    names.find(|name| !ports.contains_key(name) && !taken.contains(name)).expect("there are more numbers than Services")
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const NOW: i64 = 1_800_000_000;

    #[test]
    fn ports_of_one_protocol_share_services_of_forty_at_most() {
        let wanted: BTreeSet<_> = (0..100).map(|n| target(&format!("s{n}"), 80, Transport::Tcp)).collect();
        let wanted: BTreeSet<_> = wanted.into_iter().chain([target("dns", 53, Transport::Udp)]).collect();
        let allocated = allocate(&Allocations::new(), &wanted, &BTreeSet::new(), "gw", NOW);
        let sizes: Vec<_> = allocated.ports.iter().map(|(name, ports)| (name.as_str(), ports.len())).collect();
        assert_eq!(sizes, [("gw-tcp-0", 40), ("gw-tcp-1", 40), ("gw-tcp-2", 20), ("gw-udp-0", 1)]);
        assert!(allocated.left_out.is_empty());
    }

    #[test]
    fn a_port_rests_for_a_day_and_comes_back_to_its_own_until_then() {
        let (a, b) = (target("a", 80, Transport::Tcp), target("b", 80, Transport::Tcp));
        let both = run(&Allocations::new(), &[&a, &b], NOW);
        let without = run(&both, &[&b], NOW + 60);
        assert_eq!(claim(&without, &a), Some(Some(NOW + 60)));
        assert_eq!(claim(&without, &b), Some(None));
        assert_eq!(run(&without, &[&b], NOW + 7200), without, "since when it rests is kept");
        assert_eq!(run(&without, &[&a, &b], NOW + 7200), both);
        let later = run(&without, &[&b], NOW + 60 + REST);
        assert_eq!(claim(&later, &a), None);
        assert_eq!(run(&without, &[], NOW + 60 + REST).values().map(BTreeMap::len).sum::<usize>(), 1);
        assert_eq!(run(&without, &[], NOW + 60 + 3 * REST).values().map(BTreeMap::len).sum::<usize>(), 1);
        let rested = run(&run(&without, &[], NOW + 60 + REST), &[], NOW + 60 + 2 * REST);
        assert_eq!(rested, Allocations::new());
    }

    #[test]
    fn a_number_that_is_anothers_or_rests_is_not_given_out() {
        let a = target("a", 80, Transport::Tcp);
        let port = *run(&Allocations::new(), &[&a], NOW)["gw-tcp-0"].keys().next().unwrap();
        for released in [None, Some(NOW - 5)] {
            let other = Claim { target: target("b", 80, Transport::Tcp), released };
            let there = Allocations::from([("gw-tcp-0".to_owned(), BTreeMap::from([(port, other.clone())]))]);
            let b = target("b", 80, Transport::Tcp);
            let wanted: &[&ExportedPort] = if released.is_none() { &[&a, &b] } else { &[&a] };
            let after = run(&there, wanted, NOW);
            assert_eq!(after["gw-tcp-0"][&port], other);
            assert_eq!(claim(&after, &a), Some(None));
            assert_eq!(after["gw-tcp-0"].len(), 2);
        }
    }

    #[test]
    fn a_users_own_service_keeps_its_name() {
        let wanted = BTreeSet::from([target("a", 80, Transport::Tcp)]);
        let taken = BTreeSet::from(["gw-tcp-0".to_owned()]);
        let allocated = allocate(&Allocations::new(), &wanted, &taken, "gw", NOW);
        assert_eq!(allocated.ports.keys().collect::<Vec<_>>(), ["gw-tcp-1"]);
    }

    #[test]
    fn ports_of_one_service_stay_together_where_there_is_room() {
        let many: Vec<_> = (0..41).map(|n| target(&format!("s{n:02}"), 80, Transport::Tcp)).collect();
        let mut there = run(&Allocations::new(), &many.iter().collect::<Vec<_>>(), NOW);
        // Room in the first one, and the last service is in the second.
        let first = *there["gw-tcp-0"].keys().next().unwrap();
        let freed = there.get_mut("gw-tcp-0").unwrap().remove(&first).unwrap().target;
        let more = target("s40", 81, Transport::Tcp);
        let wanted: Vec<_> = many.iter().filter(|it| **it != freed).chain([&more]).collect();
        let after = run(&there, &wanted, NOW);
        assert!(after["gw-tcp-1"].values().any(|claim| claim.target == more), "{after:?}");
    }

    #[test]
    fn when_all_numbers_are_given_out_the_rest_is_left_out() {
        let wanted: BTreeSet<_> = (1..=10_001)
            .map(|port| target("a", port, Transport::Tcp))
            .chain([target("a", 1, Transport::Udp)])
            .collect();
        let allocated = allocate(&Allocations::new(), &wanted, &BTreeSet::new(), "gw", NOW);
        assert_eq!(allocated.left_out, BTreeSet::from([target("a", 10_001, Transport::Tcp)]));
        assert_eq!(allocated.ports.len(), 251);
    }

    proptest! {
        #[test]
        fn whatever_comes_and_goes(steps in proptest::collection::vec((proptest::collection::btree_set(0..90_u16, 0..90), 0..200_000_i64), 1..12)) {
            let mut there = Allocations::new();
            let mut now = NOW;
            // By whom each port was held last, and until when.
            let mut last: BTreeMap<GatewayPort, (ExportedPort, i64)> = BTreeMap::new();
            for (wanted, pause) in steps {
                now += pause;
                let protocol = |n: u16| if n.is_multiple_of(3) { Transport::Udp } else { Transport::Tcp };
                let wanted: BTreeSet<_> = wanted.into_iter().map(|n| target(&format!("s{}", n / 2), 80 + n, protocol(n))).collect();
                let allocated = allocate(&there, &wanted, &BTreeSet::new(), "gw", now);
                prop_assert!(allocated.left_out.is_empty());
                let again = allocate(&allocated.ports, &wanted, &BTreeSet::new(), "gw", now);
                prop_assert_eq!(&again, &allocated, "nothing is left to do");
                let mut live = BTreeMap::new();
                let mut seen = BTreeSet::new();
                for (service, ports) in &allocated.ports {
                    prop_assert!((1..=MAX_PORTS).contains(&ports.len()));
                    prop_assert_eq!(ports.keys().map(|port| port.protocol).collect::<BTreeSet<_>>().len(), 1);
                    for (port, claim) in ports {
                        prop_assert!(seen.insert(*port), "a number is given out once");
                        prop_assert_eq!(port.protocol, claim.target.protocol);
                        if let Some((holder, until)) = last.get(port) {
                            prop_assert!(*holder == claim.target || now - until >= REST, "{:?} took {:?}", claim, last[port]);
                        }
                        if claim.released.is_none() {
                            prop_assert!(live.insert(claim.target.clone(), (service.clone(), *port)).is_none());
                            last.insert(*port, (claim.target.clone(), now));
                        }
                    }
                }
                prop_assert_eq!(live.keys().cloned().collect::<BTreeSet<_>>(), wanted);
                for (service, ports) in &there {
                    for (port, claim) in ports.iter().filter(|(_, claim)| claim.released.is_none()) {
                        if let Some(kept) = live.get(&claim.target) {
                            prop_assert_eq!(kept, &(service.clone(), *port), "what is exported stays where it is");
                        }
                    }
                }
                there = allocated.ports;
            }
        }
    }

    fn run(there: &Allocations, wanted: &[&ExportedPort], now: i64) -> Allocations {
        let wanted = wanted.iter().copied().cloned().collect();
        allocate(there, &wanted, &BTreeSet::new(), "gw", now).ports
    }

    /// Whether there is a port for `target`, and since when it rests.
    fn claim(ports: &Allocations, target: &ExportedPort) -> Option<Option<i64>> {
        let mut claims = ports.values().flat_map(BTreeMap::values);
        Some(claims.find(|claim| claim.target == *target)?.released)
    }

    fn target(service: &str, port: u16, protocol: Transport) -> ExportedPort {
        let service = ObjectName { namespace: "shop".to_owned(), name: service.to_owned() };
        ExportedPort { service, port, protocol }
    }
}
