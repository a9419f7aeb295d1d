//! Tests: what is written when endpoints come, change and go.

use super::*;
use crate::{
    mirror::{source::Transport, world::ImportKind},
    model::ObjectName,
};
use proptest::prelude::*;

#[test]
fn endpoints_are_packed_by_the_hundred() {
    let packed = pack(&key(), Some("shop"), &wanted(0..250), &BTreeMap::new());
    let sizes: BTreeSet<usize> = packed.put.values().map(|placed| placed.endpoints.len()).collect();
    assert_eq!((packed.put.len(), sizes), (3, BTreeSet::from([50, 100])));
    assert!(packed.delete.is_empty());
}

#[test]
fn what_is_as_it_should_be_is_not_written() {
    let there = settled(0..250);
    assert_eq!(pack(&key(), Some("shop"), &wanted(0..250), &there), Packed::default());
}

#[test]
fn one_that_changes_costs_one_write() {
    let there = settled(0..250);
    let mut wanted = wanted(0..250);
    wanted.values_mut().next().unwrap().1.get_mut(&address(170)).unwrap().ready = false;
    let packed = pack(&key(), Some("shop"), &wanted, &there);
    assert_eq!((packed.put.len(), packed.delete.len()), (1, 0));
}

#[test]
fn one_that_comes_goes_where_there_is_room() {
    let there = settled(0..250);
    let packed = pack(&key(), Some("shop"), &wanted(0..251), &there);
    assert_eq!((packed.put.len(), packed.delete.len()), (1, 0));
    assert_eq!(packed.put.values().next().unwrap().endpoints.len(), 51);
}

#[test]
fn new_ones_take_the_places_of_those_that_go_in_the_same_write() {
    let there = settled(0..200);
    let packed = pack(&key(), Some("shop"), &wanted(10..210), &there);
    assert_eq!((packed.put.len(), packed.delete.len()), (1, 0));
}

#[test]
fn an_empty_slice_is_deleted() {
    let there = settled(0..150);
    let (full, rest) = there.iter().partition::<Vec<_>, _>(|(_, placed)| placed.endpoints.len() == 100);
    let left = rest[0].1.endpoints.iter().map(|endpoint| endpoint.address);
    let mut wanted = wanted(0..150);
    wanted.values_mut().next().unwrap().1 = left.map(|address| (address, endpoint(address))).collect();
    let packed = pack(&key(), Some("shop"), &wanted, &there);
    assert_eq!((packed.put.len(), packed.delete), (0, BTreeSet::from([full[0].0.clone()])));
}

#[test]
fn ports_that_change_are_another_slice_and_the_old_one_goes() {
    let there = settled(0..10);
    let wanted: Wanted =
        wanted(0..10).into_iter().map(|(content, it)| (Content { ports: vec![port(9090)], ..content }, it)).collect();
    let packed = pack(&key(), Some("shop"), &wanted, &there);
    assert_eq!((packed.put.len(), packed.delete.len()), (1, 1));
    assert!(packed.put.keys().all(|name| !packed.delete.contains(name)));
}

#[test]
fn a_lost_peer_is_marked_in_place() {
    let there = settled(0..150);
    let mut wanted = wanted(0..150);
    wanted.values_mut().next().unwrap().0.peer = PeerState::Lost;
    let packed = pack(&key(), Some("shop"), &wanted, &there);
    assert_eq!((packed.put.len(), packed.delete.len()), (2, 0));
    for (name, placed) in packed.put {
        assert_eq!(placed.endpoints, there[&name].endpoints);
    }
}

#[test]
fn what_somebody_else_wrote_into_a_slice_is_put_right() {
    let mut there = settled(0..10);
    let placed = there.values_mut().next().unwrap();
    placed.is_whole = false;
    assert_eq!(pack(&key(), Some("shop"), &wanted(0..10), &there).put.len(), 1);
}

#[test]
fn names_fit_and_differ_however_long_the_cluster_is_called() {
    let long = "c".repeat(63);
    let wanted: Wanted = wanted(0..300)
        .into_iter()
        .map(|(content, it)| (Content { cluster: ClusterName(long.clone()), ..content }, it))
        .collect();
    let packed = pack(&key(), Some(&"s".repeat(63)), &wanted, &BTreeMap::new());
    assert_eq!(packed.put.len(), 3);
    assert!(packed.put.keys().all(|name| name.len() <= 253));
}

proptest! {
    /// Whatever came before: all that is wanted is there once, nothing else, and nothing is left to do.
    #[test]
    fn the_way_there_does_not_matter(rounds in proptest::collection::vec((0..400_u16, 0..250_u16), 1..8)) {
        let mut there = BTreeMap::new();
        for (first, count) in rounds {
            let wanted = wanted(first..first + count);
            let packed = pack(&key(), Some("shop"), &wanted, &there);
            apply(&mut there, packed);
            let mut found: Vec<IpAddr> =
                there.values().flat_map(|placed| &placed.endpoints).map(|endpoint| endpoint.address).collect();
            found.sort();
            let expected: Vec<IpAddr> = (first..first + count).map(address).collect();
            prop_assert_eq!(found, expected);
            prop_assert!(there.values().all(|placed| (1..=MAX_ENDPOINTS).contains(&placed.endpoints.len())));
            prop_assert_eq!(pack(&key(), Some("shop"), &wanted, &there), Packed::default());
        }
    }
}

fn settled(numbers: std::ops::Range<u16>) -> BTreeMap<String, Placed> {
    let mut there = BTreeMap::new();
    apply(&mut there, pack(&key(), Some("shop"), &wanted(numbers), &BTreeMap::new()));
    there
}

fn apply(there: &mut BTreeMap<String, Placed>, packed: Packed) {
    there.extend(packed.put);
    for name in packed.delete {
        assert!(there.remove(&name).is_some());
    }
}

fn wanted(numbers: std::ops::Range<u16>) -> Wanted {
    if numbers.is_empty() {
        return Wanted::new();
    }
    let content = Content {
        cluster: ClusterName("east".to_owned()),
        path: Path::Pod,
        family: Family::V4,
        ports: vec![port(8080)],
        is_fallback: false,
    };
    let endpoints = numbers.map(address).map(|address| (address, endpoint(address))).collect();
    Wanted::from([(content, (Marks { peer: PeerState::Fresh, weight: 1 }, endpoints))])
}

fn port(port: u16) -> SlicePort {
    SlicePort { name: "http".to_owned(), port, protocol: Transport::Tcp, app_protocol: None }
}

fn address(number: u16) -> IpAddr {
    let [high, low] = number.to_be_bytes();
    IpAddr::from([10, 108, high, low])
}

fn endpoint(address: IpAddr) -> Endpoint {
    Endpoint {
        address,
        ready: true,
        serving: true,
        terminating: false,
        zone: None,
        node: None,
        hostname: None,
        hints: Vec::new(),
    }
}

fn key() -> ImportKey {
    let object = ObjectName { namespace: "shop".to_owned(), name: "shop".to_owned() };
    ImportKey { kind: ImportKind::Named, object }
}
