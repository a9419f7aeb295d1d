//! What serves a frontend, rule by rule.

use crate::world::{ROOMY, World, cases, reached};
use proptest::{prelude::*, test_runner::TestCaseError};
use std::{collections::BTreeMap, net::IpAddr, time::Duration};
use tombolo::{
    model::{
        Change, ClusterName, Endpoint, Model, ObjectName, Order, Path, PeerState, Place, Protocol, Service,
        ServiceKind, ServicePort, ServiceRef, Slice, Traffic,
    },
    resolve::{Conditions, Resolved, resolve},
    tables::{DesiredGroup, DesiredService},
};

#[test]
fn only_federated_services_that_did_not_opt_out_are_translated() {
    let mut model = Model::default();
    add_service(&mut model, "translated", |_| ());
    add_service(&mut model, "plain", |service| service.federated = false);
    add_service(&mut model, "out", |service| service.opted_out = true);
    add_service(&mut model, "headless", |service| service.addresses.clear());
    let names: Vec<String> = resolved(&model).desired.services.into_values().map(|service| service.name.name).collect();
    assert_eq!(names, ["translated"]);
}

#[test]
fn a_frontend_gets_endpoints_of_its_own_family() {
    let mut model = Model::default();
    add_service(&mut model, "api", |service| service.addresses.push("fd00::1".parse().unwrap()));
    add_slice(&mut model, "a", "api", "east", &["10.1.0.1", "::ffff:10.1.0.2"], |_| ());
    add_slice(&mut model, "b", "api", "east", &["fd01::1"], |_| ());
    let services = resolved(&model).desired.services;
    let members = |service: &DesiredService| reached(service).into_iter().map(|end| end.0).collect::<Vec<_>>();
    let by_frontend: Vec<Vec<[u8; 16]>> = services.values().map(members).collect();
    assert_eq!(by_frontend, [vec![octets("10.1.0.1"), octets("10.1.0.2")], vec![octets("fd01::1")]]);
}

#[test]
fn slice_ports_count_by_name_and_protocol() {
    let mut model = Model::default();
    add_service(&mut model, "dns", |service| {
        service.ports =
            vec![port("dns", 53, Protocol::Udp), port("dns", 53, Protocol::Tcp), port("web", 80, Protocol::Tcp)];
    });
    add_slice(&mut model, "a", "dns", "east", &["10.1.0.1"], |slice| {
        slice.ports = vec![port("dns", 1053, Protocol::Udp), port("dns", 2053, Protocol::Tcp)];
    });
    let services = resolved(&model).desired.services;
    let ports: Vec<Vec<u16>> = services
        .values()
        .map(|service| reached(service).into_iter().map(|end| u16::from_be_bytes(end.1)).collect())
        .collect();
    assert_eq!(ports, [vec![2053], vec![1053], vec![]]);
}

#[test]
fn with_a_local_member_the_own_cluster_is_heard_first_hand_only() {
    let mut model = Model::default();
    add_service(&mut model, "api-federated", |service| service.local_member = Some("api".into()));
    add_slice(&mut model, "mirrored", "api-federated", "west", &["10.0.0.1", "10.0.0.2"], |_| ());
    add_slice(&mut model, "nameless", "api-federated", "west", &["10.0.0.3"], |slice| slice.source_cluster = None);
    add_slice(&mut model, "east", "api-federated", "east", &["10.1.0.1"], |_| ());
    add_slice(&mut model, "built-in", "api", "west", &["10.0.0.2"], built_in);
    add_slice(&mut model, "by-hand", "api", "west", &["10.0.0.4"], |_| ());
    assert_eq!(summary(&model), ["west*1[10.0.0.2] east*1[10.1.0.1]"]);
}

#[test]
fn an_address_offered_twice_is_one_endpoint_and_stays_while_any_offers_it() {
    let mut model = Model::default();
    add_service(&mut model, "api", |_| ());
    add_slice(&mut model, "a", "api", "north", &["10.1.0.1"], |slice| slice.path = Path::Gateway);
    add_slice(&mut model, "b", "api", "east", &["10.1.0.1"], |slice| slice.endpoints[0].ready = false);
    assert_eq!(summary(&model), ["east*1[10.1.0.1]"]);
    add_slice(&mut model, "c", "api", "west", &["10.1.0.1"], built_in);
    assert_eq!(summary(&model), ["west*1[10.1.0.1]"]);
    model.apply(Change::Slice(object("b"), None));
    model.apply(Change::Slice(object("c"), None));
    assert_eq!(summary(&model), ["north*1[10.1.0.1/gateway]"]);
}

#[test]
fn endpoints_that_are_about_to_go_are_used_if_nothing_is_ready() {
    let mut model = Model::default();
    add_service(&mut model, "api", |_| ());
    add_slice(&mut model, "a", "api", "west", &["10.0.0.1"], leaving);
    add_slice(&mut model, "b", "api", "east", &["10.1.0.1"], leaving);
    add_slice(&mut model, "c", "api", "east", &["10.1.0.2"], |slice| {
        leaving(slice);
        slice.endpoints[0].serving = false;
    });
    assert_eq!(summary(&model), ["west*1[10.0.0.1] east*1[10.1.0.1]"]);
    add_slice(&mut model, "d", "api", "north", &["10.2.0.1"], |_| ());
    assert_eq!(summary(&model), ["north*1[10.2.0.1]"]);
}

#[test]
fn fallbacks_come_behind_all_others_and_what_is_stale_comes_last() {
    let mut model = Model::default();
    add_service(&mut model, "api", |_| ());
    let unready = |slice: &mut Slice| {
        (slice.endpoints[0].ready, slice.endpoints[0].serving) = (false, false);
    };
    add_slice(&mut model, "fallback", "api", "east", &["192.0.2.1"], |slice| {
        (slice.fallback, slice.path) = (true, Path::Gateway);
        unready(slice);
    });
    add_slice(&mut model, "stale", "api", "north", &["10.2.0.1"], |slice| {
        (slice.fallback, slice.peer) = (true, PeerState::Stale);
        unready(slice);
    });
    add_slice(&mut model, "leaving", "api", "west", &["10.0.0.1"], leaving);
    let tail = ["east*1[192.0.2.1/gateway]", "north*1[10.2.0.1]"];
    assert_eq!(summary(&model), [&["west*1[10.0.0.1]"], &tail[..]].concat());
    add_slice(&mut model, "ready", "api", "east", &["10.1.0.1"], |_| ());
    assert_eq!(summary(&model), [&["east*1[10.1.0.1]"], &tail[..]].concat());
}

#[test]
fn connections_are_spread_by_endpoints_and_by_the_pods_behind_a_gateway() {
    let mut model = Model::default();
    add_service(&mut model, "api", |_| ());
    add_slice(&mut model, "a", "api", "west", &["10.0.0.1", "10.0.0.2"], built_in);
    add_slice(&mut model, "b", "api", "north", &["192.0.2.1"], |slice| (slice.path, slice.weight) = (Path::Gateway, 3));
    assert_eq!(summary(&model), ["west*2[10.0.0.1 10.0.0.2] north*3[192.0.2.1/gateway*3]"]);
}

#[test]
fn per_cent_hold_exactly_and_the_rest_is_shared_by_endpoints() {
    let model = weighted(&[("north", 10)], &[("west", 3), ("east", 2), ("north", 1)]);
    assert_eq!(weights(&model), [vec![("west", 90 * 3), ("east", 90 * 2), ("north", 10 * 5)]]);
}

#[test]
fn if_all_clusters_are_named_their_numbers_are_relative() {
    let model = weighted(&[("north", 300), ("west", 100)], &[("west", 3), ("north", 1)]);
    assert_eq!(weights(&model), [vec![("west", 100), ("north", 300)]]);
}

#[test]
fn a_named_cluster_without_endpoints_leaves_its_part_to_all_others() {
    let model = weighted(&[("north", 10), ("east", 40)], &[("west", 3), ("north", 1)]);
    assert_eq!(weights(&model), [vec![("west", 50 * 3), ("north", 10 * 3)]]);
}

#[test]
fn more_than_all_of_it_is_a_problem_and_endpoints_decide() {
    let model = weighted(&[("north", 60), ("east", 70)], &[("west", 3), ("east", 2), ("north", 1)]);
    assert_eq!(weights(&model), [vec![("west", 3), ("east", 2), ("north", 1)]]);
    let problem = "weights add up to 130 % and leave nothing for west: spread by endpoints instead";
    assert_eq!(problems(&model, "api"), [problem]);
}

#[test]
fn a_cluster_of_weight_0_comes_after_all_that_have_some() {
    let named = weighted(&[("north", 0)], &[("west", 3), ("north", 1)]);
    assert_eq!(weights(&named), [vec![("west", 300)], vec![("north", 1)]]);
    let nothing_left = weighted(&[("north", 100)], &[("west", 3), ("east", 1), ("north", 1)]);
    assert_eq!(weights(&nothing_left), [vec![("north", 400)], vec![("west", 3), ("east", 1)]]);
    let alone = weighted(&[("north", 0)], &[("north", 1)]);
    assert_eq!(weights(&alone), [vec![("north", 1)]]);
}

#[test]
fn gateways_of_clusters_with_a_weight_come_before_clusters_of_weight_0() {
    let mut model = weighted(&[("north", 0)], &[("west", 1), ("east", 1), ("north", 1)]);
    for (name, cluster) in [("a", "east"), ("b", "north")] {
        add_slice(&mut model, name, "api", cluster, &[&format!("192.0.2.{}", name.len() + cluster.len())], |slice| {
            slice.path = Path::Gateway;
        });
    }
    let order: Vec<Vec<&str>> =
        weights(&model).into_iter().map(|tier| tier.into_iter().map(|group| group.0).collect()).collect();
    assert_eq!(order, [vec!["west", "east"], vec!["east"], vec!["north"], vec!["north"]]);
    assert!(summary(&model)[3].contains("gateway"));
}

#[test]
fn local_endpoints_carry_everything_while_five_of_seven_are_ready() {
    let remote = |model: &mut Model| {
        add_slice(model, "east", "api", "east", &["10.1.0.1", "10.1.0.2"], |_| ());
        add_slice(model, "north", "api", "north", &["10.2.0.1"], |_| ());
    };
    let following = vec![("east", 2), ("north", 1)];
    let enough = local_first(5, 2, None, remote);
    assert_eq!(weights(&enough), [vec![("west", 5)], following.clone()]);
    // 1.4 * 4 / 7 = 0.8 stay.
    let too_few = local_first(4, 3, None, remote);
    let first = &weights(&too_few)[0];
    let total: u32 = first.iter().map(|(_, weight)| weight).sum();
    assert_eq!(first[0].1 * 5, total * 4);
    assert_eq!((first[1].0, first[2].0), ("east", "north"));
    assert_eq!((first[1].1 * 15, first[2].1 * 15), (total * 2, total));
    assert_eq!(weights(&too_few)[1], following);
    assert_eq!(weights(&local_first(0, 7, None, remote)), [following]);
    assert_eq!(weights(&local_first(1, 6, None, |_| ())), [vec![("west", 1)]]);
}

#[test]
fn a_minimum_of_local_endpoints_replaces_the_share() {
    let remote = |model: &mut Model| add_slice(model, "east", "api", "east", &["10.1.0.1"], |_| ());
    assert_eq!(weights(&local_first(2, 9, Some(2), remote)), [vec![("west", 2)], vec![("east", 1)]]);
    assert_eq!(weights(&local_first(1, 0, Some(4), remote)), [vec![("west", 1), ("east", 3)], vec![("east", 1)]]);
}

#[test]
fn local_endpoints_that_are_being_taken_away_are_no_lost_capacity() {
    let mut model = local_first(5, 0, None, |model| add_slice(model, "east", "api", "east", &["10.1.0.1"], |_| ()));
    add_slice(&mut model, "old", "api", "west", &["10.0.1.1", "10.0.1.2", "10.0.1.3", "10.0.1.4"], leaving);
    assert_eq!(weights(&model), [vec![("west", 5)], vec![("east", 1)]]);
}

#[test]
fn the_own_zone_comes_before_the_own_cluster() {
    let mut model = Model::default();
    add_service(&mut model, "api", |service| service.traffic.order = Order::ZoneFirst);
    add_slice(&mut model, "a", "api", "west", &["10.0.0.1", "10.0.0.2"], |slice| {
        slice.endpoints[0].zone = Some("a".into());
        slice.endpoints[1].zone = Some("b".into());
    });
    add_slice(&mut model, "b", "api", "east", &["10.1.0.1", "10.1.0.2"], |slice| {
        slice.endpoints[0].zone = Some("a".into())
    });
    let expected = ["west*1[10.0.0.1] east*1[10.1.0.1]", "west*1[10.0.0.2]", "east*1[10.1.0.2]"];
    assert_eq!(summary(&model), expected);
}

#[test]
fn clusters_come_in_the_order_given_and_the_rest_together() {
    let mut model = weighted(&[], &[("west", 1), ("east", 1), ("north", 1), ("south", 2)]);
    let order = ["north", "nowhere", "west", "north"].map(|name| ClusterName(name.into())).to_vec();
    add_service(&mut model, "api", |service| service.traffic.order = Order::Clusters(order.clone()));
    assert_eq!(weights(&model), [vec![("north", 1)], vec![("west", 1)], vec![("east", 1), ("south", 2)]]);
}

#[test]
fn a_gateway_steps_back_only_for_pods_of_its_own_cluster() {
    let mut model = Model::default();
    add_service(&mut model, "api", |_| ());
    let gateway = |slice: &mut Slice| slice.path = Path::Gateway;
    add_slice(&mut model, "a", "api", "east", &["10.1.0.1"], |_| ());
    add_slice(&mut model, "b", "api", "east", &["192.0.2.1"], gateway);
    add_slice(&mut model, "c", "api", "north", &["192.0.2.2"], gateway);
    assert_eq!(summary(&model), ["east*1[10.1.0.1] north*1[192.0.2.2/gateway]", "east*1[192.0.2.1/gateway]"]);
}

#[test]
fn weights_with_another_order_are_a_problem() {
    let mut model = weighted(&[("north", 10)], &[("west", 1), ("north", 1)]);
    let service = model.services.values_mut().next().unwrap();
    service.traffic.order = Order::ZoneFirst;
    assert_eq!(problems(&model, "api"), ["weights are left aside: they go with order spread only"]);
}

#[test]
fn a_service_comes_before_a_service_import_and_then_the_name_decides() {
    let mut model = Model::default();
    let import = ServiceRef { kind: ServiceKind::ServiceImport, object: object("a-import") };
    let mut claiming = service();
    claiming.addresses = vec!["10.96.0.1".parse().unwrap()];
    model.apply(Change::Service(import.clone(), Some(claiming)));
    add_service(&mut model, "later", |service| service.addresses = vec!["10.96.0.1".parse().unwrap()]);
    add_service(&mut model, "first", |service| service.addresses = vec!["10.96.0.1".parse().unwrap()]);
    let resolved = resolved(&model);
    assert_eq!(resolved.desired.services.values().next().unwrap().name, object("first"));
    assert_eq!(problems(&model, "later"), ["10.96.0.1:80/TCP belongs to Service shop/first"]);
    assert_eq!(resolved.problems.get(&import), None, "the MCS API means it so");
    let mut slice = slice("east", &["10.1.0.1"]);
    slice.owner = import.clone();
    model.apply(Change::Slice(object("slice"), Some(slice)));
    let resolved = self::resolved(&model);
    assert_eq!(resolved.problems[&import], ["10.96.0.1:80/TCP belongs to Service shop/first"]);
}

#[test]
fn a_service_without_endpoints_is_there_without_tiers() {
    let mut model = Model::default();
    add_service(&mut model, "api", |service| {
        (service.exclusive, service.affinity) = (true, Some(Duration::from_millis(1500)));
        service.problems = vec!["annotation x: not a number".into()];
    });
    let service = resolved(&model).desired.services.into_values().next().unwrap();
    assert!(service.tiers.is_empty() && service.exclusive);
    assert_eq!(service.affinity_seconds, Some(2));
    assert_eq!(problems(&model, "api"), ["annotation x: not a number"]);
}

#[test]
fn clusters_beyond_the_limit_share_a_group_and_keep_their_shares() {
    let names: Vec<String> = (0..20).map(|number| format!("c{number:02}")).collect();
    let endpoints: Vec<(&str, u8)> = names.iter().map(|name| (name.as_str(), 2)).collect();
    let per_cent = [("c00", 5), ("c18", 30), ("c19", 0)];
    let model = weighted(&per_cent, &endpoints);
    let tiers = only(&model).tiers;
    assert_eq!(tiers[0].len(), 16);
    let last = &tiers[0][15];
    assert_eq!(last.cluster.0, "c15");
    // c15, c16, c17 have 65 % * 1/17 each, c18 has 30 %: 65 : 65 : 65 : 510.
    assert_eq!(last.weight, 65 * 2 * 3 + 30 * 34);
    let of = |name: &str| last.members.iter().filter(|m| m.cluster.0 == name).map(|m| f64::from(m.weight)).sum::<f64>();
    assert!((of("c18") / of("c16") - 510.0 / 65.0).abs() < 1e-6);
    assert_eq!(tiers[1][0].cluster.0, "c19");
    let problem = "19 clusters in one tier, at most 16 are possible: c15, c16, c17, c18 share one group";
    assert_eq!(problems(&model, "api"), [problem]);
}

#[test]
fn tiers_beyond_the_limit_are_joined() {
    let names: Vec<String> = (0..12).map(|number| format!("c{number:02}")).collect();
    let endpoints: Vec<(&str, u8)> = names.iter().map(|name| (name.as_str(), 1)).collect();
    let mut model = weighted(&[], &endpoints);
    let order = names[..10].iter().map(|name| ClusterName(name.clone())).collect();
    model.services.values_mut().next().unwrap().traffic.order = Order::Clusters(order);
    let weights = weights(&model);
    assert_eq!(weights.len(), 8);
    assert_eq!(weights[7], [("c07", 1), ("c08", 1), ("c09", 1), ("c10", 1), ("c11", 1)]);
    assert_eq!(problems(&model, "api"), ["11 tiers, at most 8 are possible: the last ones are joined"]);
}

#[test]
fn weights_too_large_for_the_tables_are_made_smaller_together() {
    let mut model = weighted(&[("west", 50)], &[("west", 1), ("east", 1), ("north", 1)]);
    for (name, slice) in &mut model.slices {
        slice.weight = if name.name == "slice-north" { 1 } else { u32::MAX };
    }
    let tier = weights(&model).remove(0);
    let total: u64 = tier.iter().map(|(_, weight)| u64::from(*weight)).sum();
    assert!(total <= u64::from(u32::MAX));
    assert!((tier[0].1 as f64 / total as f64 - 0.5).abs() < 1e-6, "{tier:?}");
    assert_eq!((tier[2].0, tier[2].1), ("north", 1));
}

proptest! {
    #![proptest_config(cases(30))]

    #[test]
    fn whatever_the_policy_the_tables_can_hold_it(
        clusters in prop::collection::btree_map(0..40u8, (1..4u8, any::<bool>(), 1..=u32::MAX, 0..4u8), 1..40),
        order in prop::collection::vec(0..40u8, 0..14),
        per_cent in prop::collection::btree_map(0..40u8, any::<u32>(), 0..5),
        policy in 0..4u8,
        minimum in prop::option::of(any::<u32>()),
    ) {
        let name = |number: u8| if number == 0 { "west".to_owned() } else { format!("c{number:02}") };
        let mut model = Model::default();
        let order = order.into_iter().map(|number| ClusterName(name(number))).collect();
        add_service(&mut model, "api", |service| service.traffic = Traffic {
            order: [Order::Spread, Order::LocalFirst, Order::ZoneFirst, Order::Clusters(order)][usize::from(policy)].clone(),
            weights: per_cent.into_iter().map(|(number, weight)| (ClusterName(name(number)), weight)).collect(),
            local_minimum: minimum,
        });
        let mut expected = Vec::new();
        for (number, (count, gateway, weight, special)) in clusters {
            let addresses: Vec<String> = (0..count).map(|host| format!("10.{number}.0.{host}")).collect();
            let addresses: Vec<&str> = addresses.iter().map(String::as_str).collect();
            add_slice(&mut model, &name(number), "api", &name(number), &addresses, |slice| {
                if gateway {
                    (slice.path, slice.weight) = (Path::Gateway, weight);
                }
                slice.fallback = special == 1;
                slice.peer = if special == 2 { PeerState::Stale } else { PeerState::Fresh };
                slice.endpoints[0].zone = Some("a".into());
            });
            expected.extend(addresses.into_iter().map(octets));
        }
        let desired = resolved(&model).desired;
        let mut world = World::new(ROOMY);
        let plan = world.settle(&desired).map_err(TestCaseError::fail)?;
        prop_assert_eq!(plan.refused, []);
        let service = desired.services.values().next().unwrap();
        let got: Vec<[u8; 16]> = reached(service).into_iter().map(|end| end.0).collect();
        prop_assert_eq!(got, expected);
    }
}

/// A model of one service spread over clusters with so many endpoints each.
fn weighted(per_cent: &[(&str, u32)], endpoints: &[(&str, u8)]) -> Model {
    let mut model = Model::default();
    let weights: BTreeMap<ClusterName, u32> =
        per_cent.iter().map(|(name, weight)| (ClusterName((*name).into()), *weight)).collect();
    add_service(&mut model, "api", |service| service.traffic.weights = weights.clone());
    for (number, (cluster, count)) in endpoints.iter().enumerate() {
        let addresses: Vec<String> = (1..=*count).map(|host| format!("10.{number}.0.{host}")).collect();
        let addresses: Vec<&str> = addresses.iter().map(String::as_str).collect();
        add_slice(&mut model, &format!("slice-{cluster}"), "api", cluster, &addresses, |_| ());
    }
    model
}

fn local_first(ready: u8, unready: u8, minimum: Option<u32>, remote: impl Fn(&mut Model)) -> Model {
    let mut model = Model::default();
    add_service(&mut model, "api", |service| {
        (service.traffic.order, service.traffic.local_minimum) = (Order::LocalFirst, minimum);
    });
    let addresses: Vec<String> = (0..ready + unready).map(|host| format!("10.0.0.{host}")).collect();
    let addresses: Vec<&str> = addresses.iter().map(String::as_str).collect();
    add_slice(&mut model, "local", "api", "west", &addresses, |slice| {
        built_in(slice);
        for endpoint in &mut slice.endpoints[usize::from(ready)..] {
            (endpoint.ready, endpoint.serving) = (false, false);
        }
    });
    remote(&mut model);
    model
}

pub(crate) fn add_service(model: &mut Model, name: &str, change: impl FnOnce(&mut Service)) {
    let mut service = service();
    // Each service has an address of its own.
    let number = u8::try_from(model.services.len()).unwrap();
    service.addresses = vec![IpAddr::from([10, 96, 0, number + 1])];
    change(&mut service);
    model.apply(Change::Service(ServiceRef { kind: ServiceKind::Service, object: object(name) }, Some(service)));
}

fn service() -> Service {
    Service {
        addresses: Vec::new(),
        ports: vec![port("http", 80, Protocol::Tcp)],
        affinity: None,
        federated: true,
        opted_out: false,
        exclusive: false,
        abort: true,
        local_member: None,
        traffic: Traffic::default(),
        problems: Vec::new(),
    }
}

pub(crate) fn add_slice(
    model: &mut Model,
    name: &str,
    owner: &str,
    cluster: &str,
    addresses: &[&str],
    change: impl FnOnce(&mut Slice),
) {
    let mut slice = slice(cluster, addresses);
    slice.owner.object = object(owner);
    change(&mut slice);
    model.apply(Change::Slice(object(name), Some(slice)));
}

fn slice(cluster: &str, addresses: &[&str]) -> Slice {
    let endpoint = |address: &&str| Endpoint {
        address: address.parse().unwrap(),
        ready: true,
        serving: true,
        terminating: false,
        zone: None,
        node: None,
    };
    Slice {
        owner: ServiceRef { kind: ServiceKind::Service, object: object("owner") },
        source_cluster: Some(ClusterName(cluster.into())),
        built_in: false,
        path: Path::Pod,
        fallback: false,
        peer: PeerState::Fresh,
        problems: Vec::new(),
        weight: 1,
        ports: vec![port("http", 8080, Protocol::Tcp)],
        endpoints: addresses.iter().map(endpoint).collect(),
    }
}

fn built_in(slice: &mut Slice) {
    (slice.built_in, slice.source_cluster) = (true, None);
}

pub(crate) fn leaving(slice: &mut Slice) {
    for endpoint in &mut slice.endpoints {
        (endpoint.ready, endpoint.serving, endpoint.terminating) = (false, true, true);
    }
}

fn port(name: &str, port: u16, protocol: Protocol) -> ServicePort {
    ServicePort { name: name.to_owned(), port, protocol }
}

fn object(name: &str) -> ObjectName {
    ObjectName { namespace: "shop".into(), name: name.into() }
}

pub(crate) fn octets(address: &str) -> [u8; 16] {
    match address.parse().unwrap() {
        IpAddr::V4(v4) => v4.to_ipv6_mapped().octets(),
        IpAddr::V6(v6) => v6.octets(),
    }
}

pub(crate) fn resolved(model: &Model) -> Resolved {
    resolved_in(model, &Conditions::default())
}

fn resolved_in(model: &Model, conditions: &Conditions) -> Resolved {
    let place = Place { cluster: ClusterName("west".into()), node: "node".into(), zone: Some("a".into()) };
    resolve(model, &place, conditions, &BTreeMap::new(), 0)
}

pub(crate) fn problems(model: &Model, name: &str) -> Vec<String> {
    let name = ServiceRef { kind: ServiceKind::Service, object: object(name) };
    resolved(model).problems.remove(&name).unwrap_or_default()
}

/// The only service of the model.
pub(crate) fn only(model: &Model) -> DesiredService {
    let mut services = resolved(model).desired.services.into_values();
    let service = services.next().unwrap();
    assert_eq!(services.next(), None);
    service
}

/// The clusters and weights of each tier.
fn weights(model: &Model) -> Vec<Vec<(&str, u32)>> {
    let name = |group: &DesiredGroup| {
        let names = model.slices.values().filter_map(|slice| slice.source_cluster.as_ref()).map(|name| name.0.as_str());
        names.chain(["west"]).find(|name| *name == group.cluster.0).unwrap()
    };
    only(model).tiers.iter().map(|tier| tier.iter().map(|group| (name(group), group.weight)).collect()).collect()
}

/// One line a tier: cluster*weight[members].
pub(crate) fn summary(model: &Model) -> Vec<String> {
    summary_in(model, &Conditions::default())
}

pub(crate) fn summary_in(model: &Model, conditions: &Conditions) -> Vec<String> {
    let group = |group: &DesiredGroup| {
        let member = |member: &tombolo::tables::Member| {
            let path = if member.path == Path::Gateway { "/gateway" } else { "" };
            let weight = if member.weight == 1 { String::new() } else { format!("*{}", member.weight) };
            assert_eq!(member.cluster, group.cluster);
            format!("{}{path}{weight}", IpAddr::from(member.addr).to_canonical())
        };
        let members: Vec<String> = group.members.iter().map(member).collect();
        format!("{}*{}[{}]", group.cluster, group.weight, members.join(" "))
    };
    let service = resolved_in(model, conditions).desired.services.into_values().next().unwrap();
    service.tiers.iter().map(|tier| tier.iter().map(group).collect::<Vec<_>>().join(" ")).collect()
}
