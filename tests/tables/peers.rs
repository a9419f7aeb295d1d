//! What a mirror says of peers, and endpoints that are on their way out: who is used, who keeps what it has.

use crate::policy::{add_service, add_slice, leaving, octets, only, problems, resolved, summary};
use std::collections::BTreeMap;
use tombolo::model::{ClusterName, Model, Path, PeerState, Slice};

/// Found silent by the mirror.
fn silent(slice: &mut Slice) {
    slice.peer = PeerState::Lost;
    slice.endpoints.iter_mut().for_each(|endpoint| (endpoint.ready, endpoint.serving) = (false, false));
}

fn stale(slice: &mut Slice) {
    slice.peer = PeerState::Stale;
}

fn draining(model: &Model) -> Vec<[u8; 16]> {
    only(model).draining.iter().map(|member| member.addr).collect()
}

#[test]
fn a_peer_whose_api_is_lost_stays_in_its_place_as_long_as_its_endpoints_are_ready() {
    let mut model = Model::default();
    add_service(&mut model, "api", |_| ());
    add_slice(&mut model, "west", "api", "west", &["10.0.0.1"], |_| ());
    add_slice(&mut model, "east", "api", "east", &["10.1.0.1"], |_| ());
    let before = summary(&model);
    add_slice(&mut model, "east", "api", "east", &["10.1.0.1"], |slice| slice.peer = PeerState::Lost);
    assert_eq!(summary(&model), before, "that is for health to decide");
}

#[test]
fn what_the_mirror_found_silent_is_tried_only_where_all_else_is_missing() {
    let mut model = Model::default();
    add_service(&mut model, "api", |_| ());
    add_slice(&mut model, "east", "api", "east", &["10.1.0.1"], silent);
    assert_eq!(summary(&model), ["east*1[10.1.0.1]"], "a try beats a certain refusal");
    add_slice(&mut model, "north", "api", "north", &["10.2.0.1"], stale);
    add_slice(&mut model, "fallback", "api", "south", &["192.0.2.1"], |slice| {
        silent(slice);
        (slice.fallback, slice.path) = (true, Path::Gateway);
    });
    add_slice(&mut model, "west", "api", "west", &["10.0.0.1"], |_| ());
    let tiers = ["west*1[10.0.0.1]", "south*1[192.0.2.1/gateway]", "north*1[10.2.0.1]", "east*1[10.1.0.1]"];
    assert_eq!(summary(&model), tiers);
}

#[test]
fn a_stale_peers_endpoints_come_last_and_those_not_serving_not_at_all() {
    let mut model = Model::default();
    add_service(&mut model, "api", |_| ());
    add_slice(&mut model, "west", "api", "west", &["10.0.0.1"], leaving);
    add_slice(&mut model, "east", "api", "east", &["10.1.0.1", "10.1.0.2"], |slice| {
        stale(slice);
        (slice.endpoints[1].ready, slice.endpoints[1].serving) = (false, false);
    });
    assert_eq!(summary(&model), ["west*1[10.0.0.1]", "east*1[10.1.0.1]"]);
}

#[test]
fn a_peer_is_as_bad_as_the_worst_that_is_said_of_it() {
    let mut model = Model::default();
    for (name, cluster, peer) in
        [("a", "east", PeerState::Fresh), ("b", "east", PeerState::Lost), ("c", "north", PeerState::Stale)]
    {
        add_slice(&mut model, name, "api", cluster, &["10.1.0.1"], |slice| slice.peer = peer);
    }
    let (east, north) = (ClusterName("east".into()), ClusterName("north".into()));
    let expected = BTreeMap::from([(&east, PeerState::Lost), (&north, PeerState::Stale)]);
    assert_eq!(model.peer_states(), expected);
}

#[test]
fn a_word_for_a_peer_that_is_not_known_is_a_problem_of_the_service() {
    let mut model = Model::default();
    add_service(&mut model, "api", |_| ());
    for name in ["a", "b"] {
        add_slice(&mut model, name, "api", "east", &["10.1.0.1"], |slice| slice.problems.push("odd".to_owned()));
    }
    assert_eq!(problems(&model, "api"), ["odd"], "once");
    assert_eq!(summary(&model), ["east*1[10.1.0.1]"]);
}

#[test]
fn an_endpoint_that_terminates_drains_whether_it_still_serves_or_not() {
    let mut model = Model::default();
    add_service(&mut model, "api", |_| ());
    add_slice(&mut model, "ready", "api", "west", &["10.0.0.1"], |_| ());
    add_slice(&mut model, "serving", "api", "west", &["10.0.0.2"], leaving);
    add_slice(&mut model, "ending", "api", "east", &["10.1.0.3"], |slice| {
        leaving(slice);
        slice.endpoints[0].serving = false;
    });
    assert_eq!(summary(&model), ["west*1[10.0.0.1]"], "neither takes connections");
    assert_eq!(draining(&model), [octets("10.0.0.2"), octets("10.1.0.3")]);
    // Without anybody who is ready, the one that serves takes connections after all.
    add_slice(&mut model, "ready", "api", "west", &["10.0.0.1"], |slice| slice.endpoints[0].ready = false);
    assert_eq!(summary(&model), ["west*1[10.0.0.2]"]);
    assert_eq!(draining(&model), [octets("10.1.0.3")]);
}

#[test]
fn what_is_not_ready_and_does_not_terminate_drains_not() {
    let mut model = Model::default();
    add_service(&mut model, "api", |_| ());
    add_slice(&mut model, "a", "api", "west", &["10.0.0.1", "10.0.0.2"], |slice| slice.endpoints[1].ready = false);
    assert_eq!(draining(&model), [[0u8; 16]; 0]);
}

#[test]
fn a_service_opts_out_of_aborts_alone() {
    let mut model = Model::default();
    add_service(&mut model, "api", |_| ());
    add_service(&mut model, "queue", |service| service.abort = false);
    let aborts: Vec<bool> = resolved(&model).desired.services.values().map(|service| !service.no_abort).collect();
    assert_eq!(aborts, [true, false]);
}
