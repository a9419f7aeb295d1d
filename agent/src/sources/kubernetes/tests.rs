//! What watches tell, fed by hand.

mod interleavings;

use super::{
    known::Known,
    news::{Failure, News, Object, Reading, Watch},
};
use crate::{
    model::{
        Change, ClusterName, Model, ObjectName, Path, PeerState, Pod, Service, ServiceKind, ServiceRef, Slice, Traffic,
    },
    sources::key::Key,
};
use std::time::Instant;

#[test]
fn nothing_is_told_before_everything_was_listed() {
    let mut known = Known::new(false);
    list(&mut known, Watch::Services, vec![mirror("shop-east", None)]);
    list(&mut known, Watch::Mirrored, vec![remote("a", "shop-east", 5)]);
    list(&mut known, Watch::Pods, Vec::new());
    list(&mut known, Watch::Imports, Vec::new());
    assert_eq!((known.synced(), known.changes()), (None, Vec::new()));
    begin_round(&mut known, 0);
    assert_eq!((known.synced(), known.changes()), (None, Vec::new()), "slices for fallback are missing");
    list(&mut known, Watch::Fallback, Vec::new());
    assert_eq!((known.synced(), known.changes().len()), (Some(true), 2));
    assert_eq!(known.changes(), []);
}

#[test]
fn what_was_deleted_in_an_outage_is_found_by_the_next_list() {
    let (mut known, mut model) = synced(vec![remote("a", "shop-east", 5), remote("b", "shop-east", 5)]);
    fail(&mut known, Watch::Mirrored, Failure::Expired);
    tell(&mut known, Watch::Mirrored, News::Listing);
    tell(&mut known, Watch::Mirrored, there(remote("b", "shop-east", 9)));
    apply(&mut known, &mut model);
    assert_eq!(slices(&model), ["a", "b"], "half a list says nothing of what it lacks");
    tell(&mut known, Watch::Mirrored, News::Listed);
    apply(&mut known, &mut model);
    assert_eq!(slices(&model), ["b"]);
}

#[test]
fn a_list_that_breaks_off_takes_nothing_away() {
    let (mut known, mut model) = synced(vec![remote("a", "shop-east", 5), remote("b", "shop-east", 5)]);
    for _ in 0..3 {
        tell(&mut known, Watch::Mirrored, News::Listing);
        tell(&mut known, Watch::Mirrored, there(remote("b", "shop-east", 9)));
        fail(&mut known, Watch::Mirrored, Failure::Unreachable("reset".to_owned()));
        apply(&mut known, &mut model);
    }
    let problems: Vec<_> = known.problems().iter().map(ToString::to_string).collect();
    assert_eq!(problems, ["EndpointSlices of other clusters: reset; what was listed before stays"]);
    list(&mut known, Watch::Mirrored, vec![remote("a", "shop-east", 5), remote("b", "shop-east", 9)]);
    apply(&mut known, &mut model);
    assert_eq!(slices(&model), ["a", "b"]);
    assert_eq!(known.problems(), []);
}

#[test]
fn a_slice_stays_as_long_as_one_watch_holds_it_and_the_newest_word_holds() {
    let (mut known, mut model) = synced(vec![remote("a", "shop-east", 5)]);
    list(&mut known, Watch::Fallback, vec![remote("a", "shop-east", 3)]);
    apply(&mut known, &mut model);
    assert_eq!(weight(&model, "a"), 5, "the other watch is behind");
    tell(&mut known, Watch::Mirrored, News::Gone(slice_key("a")));
    apply(&mut known, &mut model);
    assert_eq!(slices(&model), ["a"]);
    tell(&mut known, Watch::Fallback, there(remote("a", "shop-east", 6)));
    apply(&mut known, &mut model);
    assert_eq!(weight(&model, "a"), 6);
    tell(&mut known, Watch::Fallback, News::Gone(slice_key("a")));
    apply(&mut known, &mut model);
    assert_eq!(slices(&model), [""; 0]);
}

#[test]
fn a_cluster_restored_from_a_backup_counts_anew() {
    let (mut known, mut model) = synced(vec![remote("a", "shop-east", 500)]);
    fail(&mut known, Watch::Mirrored, Failure::Expired);
    list(&mut known, Watch::Mirrored, vec![remote("a", "shop-east", 20)]);
    apply(&mut known, &mut model);
    assert_eq!(weight(&model, "a"), 20);
}

#[test]
fn a_list_that_is_read_again_brings_no_older_word_of_another_watch_back() {
    let (mut known, mut model) = synced(vec![remote("a", "shop-east", 4)]);
    tell(&mut known, Watch::Services, there(mirror("shop-federated", Some("shop-east"))));
    let round = begin_round(&mut known, 1);
    tell(&mut known, round, News::Listing);
    tell(&mut known, Watch::Fallback, there(remote("a", "shop-east", 5)));
    fail(&mut known, Watch::Mirrored, Failure::Expired);
    tell(&mut known, Watch::Mirrored, News::Listing);
    tell(&mut known, round, there(remote("a", "shop-east", 4)));
    apply(&mut known, &mut model);
    assert_eq!(weight(&model, "a"), 5, "the watch of fallbacks will not tell it again");
}

#[test]
fn a_service_waits_for_the_slices_of_its_local_member() {
    let (mut known, mut model) = synced(Vec::new());
    tell(&mut known, Watch::Services, there(mirror("shop-federated", Some("shop"))));
    tell(&mut known, Watch::Mirrored, there(remote("a", "shop-federated", 5)));
    apply(&mut known, &mut model);
    assert_eq!(services(&model), ["shop-east"]);
    let names = known.new_round().unwrap();
    assert_eq!(names.iter().map(|name| name.name.as_str()).collect::<Vec<_>>(), ["shop"]);
    let round = known.begin_round(names, 1);
    assert_eq!(known.new_round(), None);
    list(&mut known, Watch::Local { round, part: 0 }, vec![local("b", "shop", 6)]);
    apply(&mut known, &mut model);
    assert_eq!((services(&model), slices(&model)), (vec!["shop-east", "shop-federated"], vec!["a", "b"]));
}

#[test]
fn a_round_goes_on_until_the_next_one_has_listed() {
    let (mut known, mut model) = synced(Vec::new());
    tell(&mut known, Watch::Services, there(mirror("one-federated", Some("one"))));
    let one = begin_round(&mut known, 1);
    list(&mut known, one, vec![local("a", "one", 5), local("b", "one", 5)]);
    tell(&mut known, Watch::Services, there(mirror("two-federated", Some("two"))));
    let two = begin_round(&mut known, 2);
    tell(&mut known, two, News::Listing);
    tell(&mut known, one, there(local("a", "one", 7)));
    tell(&mut known, one, News::Gone(slice_key("b")));
    apply(&mut known, &mut model);
    assert_eq!((slices(&model), weight(&model, "a")), (vec!["a"], 7), "the round before still tells");
    tell(&mut known, two, there(local("a", "one", 7)));
    tell(&mut known, two, News::Listed);
    apply(&mut known, &mut model);
    assert!(known.is_running(2) && known.is_running(3), "a part has not listed yet");
    let Watch::Local { round, .. } = two else { panic!() };
    list(&mut known, Watch::Local { round, part: 1 }, vec![local("c", "two", 8)]);
    apply(&mut known, &mut model);
    assert_eq!(slices(&model), ["a", "c"]);
    assert!(!known.is_running(2) && known.is_running(3));
    tell(&mut known, one, News::Gone(slice_key("a")));
    apply(&mut known, &mut model);
    assert_eq!(slices(&model), ["a", "c"], "a round that is over tells nothing");
}

#[test]
fn what_a_round_found_that_was_given_up_stays_until_the_next_one_has_listed() {
    let (mut known, mut model) = synced(Vec::new());
    tell(&mut known, Watch::Services, there(mirror("one-federated", Some("one"))));
    let one = begin_round(&mut known, 1);
    tell(&mut known, one, News::Listing);
    tell(&mut known, one, there(local("a", "one", 5)));
    tell(&mut known, one, there(local("b", "one", 5)));
    tell(&mut known, Watch::Services, there(mirror("two-federated", Some("two"))));
    let two = begin_round(&mut known, 1);
    apply(&mut known, &mut model);
    assert_eq!(slices(&model), ["a", "b"]);
    list(&mut known, two, vec![local("a", "one", 5)]);
    apply(&mut known, &mut model);
    assert_eq!(slices(&model), ["a"]);
}

#[test]
fn plain_services_are_kept_back_until_a_slice_from_another_cluster_joins_them() {
    let (mut known, mut model) = synced(Vec::new());
    tell(&mut known, Watch::Services, there(plain("shop", 5)));
    apply(&mut known, &mut model);
    assert_eq!((services(&model), known.new_round()), (vec!["shop-east"], None));
    tell(&mut known, Watch::Mirrored, there(remote("a", "shop", 6)));
    let round = begin_round(&mut known, 1);
    list(&mut known, round, vec![local("b", "shop", 4)]);
    apply(&mut known, &mut model);
    assert_eq!((services(&model), slices(&model)), (vec!["shop", "shop-east"], vec!["a", "b"]));
    tell(&mut known, Watch::Mirrored, News::Gone(slice_key("a")));
    begin_round(&mut known, 0);
    apply(&mut known, &mut model);
    assert_eq!((services(&model), slices(&model)), (vec!["shop-east"], vec![]));
}

#[test]
fn an_api_server_without_service_imports_has_none_and_a_refusal_is_something_else() {
    for (failure, synced) in [
        (Failure::Absent, Some(true)),
        (Failure::Refused("RBAC".to_owned()), Some(false)),
        (Failure::Unreachable("reset".to_owned()), None),
    ] {
        let mut known = Known::new(false);
        for watch in [Watch::Services, Watch::Mirrored, Watch::Fallback, Watch::Pods] {
            list(&mut known, watch, Vec::new());
        }
        begin_round(&mut known, 0);
        fail(&mut known, Watch::Imports, failure);
        assert_eq!(known.synced(), synced);
        list(&mut known, Watch::Imports, Vec::new());
        assert_eq!(known.synced(), Some(true));
    }
}

#[test]
fn without_the_nodes_pods_nothing_is_told() {
    let mut known = Known::new(false);
    for watch in [Watch::Services, Watch::Mirrored, Watch::Fallback, Watch::Imports] {
        list(&mut known, watch, Vec::new());
    }
    begin_round(&mut known, 0);
    fail(&mut known, Watch::Pods, Failure::Refused("RBAC".to_owned()));
    assert_eq!(known.synced(), None, "one of them may have a mesh proxy");
}

#[test]
fn a_bad_object_is_named_and_its_last_good_state_stays() {
    let (mut known, mut model) = synced(vec![remote("a", "shop-east", 5)]);
    let bad = Object { key: slice_key("a"), version: 6, reading: Reading::Bad("addressType: no".to_owned()) };
    tell(&mut known, Watch::Mirrored, there(bad));
    apply(&mut known, &mut model);
    assert_eq!(weight(&model, "a"), 5);
    let problems: Vec<_> = known.problems().iter().map(ToString::to_string).collect();
    assert_eq!(problems, ["EndpointSlice shop/a: addressType: no; its last good state stays, if it had one"]);
    tell(&mut known, Watch::Mirrored, there(remote("a", "shop-east", 7)));
    apply(&mut known, &mut model);
    assert_eq!((weight(&model, "a"), known.problems()), (7, Vec::new()));
}

#[test]
fn a_pod_of_the_same_name_is_another_one() {
    let (mut known, mut model) = synced(Vec::new());
    list(&mut known, Watch::Pods, vec![pod("1-1", "web-0")]);
    fail(&mut known, Watch::Pods, Failure::Expired);
    list(&mut known, Watch::Pods, vec![pod("2-2", "web-0")]);
    apply(&mut known, &mut model);
    assert_eq!(model.pods.keys().collect::<Vec<_>>(), ["2-2"]);
}

#[test]
fn with_all_services_every_slice_is_watched_at_once() {
    let mut known = Known::new(true);
    list(&mut known, Watch::Services, vec![mirror("shop-federated", Some("shop"))]);
    list(&mut known, Watch::Mirrored, vec![local("a", "shop", 5)]);
    for watch in [Watch::Fallback, Watch::Imports, Watch::Pods] {
        list(&mut known, watch, Vec::new());
    }
    assert_eq!((known.new_round(), known.synced()), (None, Some(true)));
    assert_eq!(known.changes().len(), 2);
}

#[test]
fn a_watch_is_shown_with_what_it_has_and_what_is_wrong() {
    let (mut known, _) = synced(vec![remote("a", "shop-east", 5)]);
    fail(&mut known, Watch::Pods, Failure::Refused("RBAC".to_owned()));
    let shown = known.states();
    let of = |name: &str| shown.iter().find(|(shown, ..)| *shown == name).unwrap();
    assert_eq!(of("EndpointSlices of other clusters").2, 1);
    let (_, pods, count) = of("Pods of this node");
    assert!(pods.listed.is_some() && pods.failure == Some(Failure::Refused("RBAC".to_owned())) && *count == 0);
    tell(&mut known, Watch::Pods, News::Resumed);
    assert_eq!(known.problems(), []);
}

/// With one mirrored Service, and these slices from other clusters.
fn synced(mirrored: Vec<Object>) -> (Known, Model) {
    let (mut known, mut model) = (Known::new(false), Model::default());
    list(&mut known, Watch::Services, vec![mirror("shop-east", None)]);
    list(&mut known, Watch::Mirrored, mirrored);
    for watch in [Watch::Fallback, Watch::Imports, Watch::Pods] {
        list(&mut known, watch, Vec::new());
    }
    assert_eq!(begin_round(&mut known, 0), Watch::Local { round: 1, part: 0 });
    apply(&mut known, &mut model);
    (known, model)
}

/// Begins the round that is due and returns its first watch.
fn begin_round(known: &mut Known, parts: u8) -> Watch {
    let names = known.new_round().expect("a round is due");
    Watch::Local { round: known.begin_round(names, parts), part: 0 }
}

fn list(known: &mut Known, watch: Watch, objects: Vec<Object>) {
    tell(known, watch, News::Listing);
    for object in objects {
        tell(known, watch, there(object));
    }
    tell(known, watch, News::Listed);
}

fn tell(known: &mut Known, watch: Watch, news: News) {
    known.take(watch, news, Instant::now());
}

fn fail(known: &mut Known, watch: Watch, failure: Failure) {
    tell(known, watch, News::Failed(failure));
}

fn there(object: Object) -> News {
    News::There(object)
}

fn apply(known: &mut Known, model: &mut Model) {
    for change in known.changes() {
        model.apply(change);
    }
}

fn services(model: &Model) -> Vec<&str> {
    model.services.keys().map(|name| name.object.name.as_str()).collect()
}

fn slices(model: &Model) -> Vec<&str> {
    model.slices.keys().map(|name| name.name.as_str()).collect()
}

/// What tells one version of a slice from another, here.
fn weight(model: &Model, slice: &str) -> u32 {
    model.slices[&object_name(slice)].weight
}

fn object_name(name: &str) -> ObjectName {
    ObjectName { namespace: "shop".to_owned(), name: name.to_owned() }
}

fn service_ref(name: &str) -> ServiceRef {
    ServiceRef { kind: ServiceKind::Service, object: object_name(name) }
}

fn slice_key(name: &str) -> Key {
    Key::Slice(object_name(name))
}

/// What a mirror made, with a local member perhaps.
fn mirror(name: &str, local_member: Option<&str>) -> Object {
    let local_member = local_member.map(str::to_owned);
    service(name, 1, Service { federated: true, exclusive: true, local_member, ..plain_service() })
}

/// A person's own, which nobody marked.
fn plain(name: &str, version: u64) -> Object {
    service(name, version, plain_service())
}

fn service(name: &str, version: u64, service: Service) -> Object {
    let change = Change::Service(service_ref(name), Some(service));
    Object { key: Key::of(&change), version, reading: Reading::Taken(Box::new(change)) }
}

fn plain_service() -> Service {
    Service {
        addresses: Vec::new(),
        ports: Vec::new(),
        affinity: None,
        federated: false,
        opted_out: false,
        exclusive: false,
        abort: true,
        local_member: None,
        traffic: Traffic::default(),
        problems: Vec::new(),
    }
}

fn remote(name: &str, owner: &str, version: u32) -> Object {
    slice(name, owner, version, true, false)
}

fn local(name: &str, owner: &str, version: u32) -> Object {
    slice(name, owner, version, false, false)
}

fn slice(name: &str, owner: &str, version: u32, is_remote: bool, fallback: bool) -> Object {
    let slice = Slice {
        owner: service_ref(owner),
        source_cluster: is_remote.then(|| ClusterName("east".to_owned())),
        built_in: !is_remote,
        path: Path::Pod,
        fallback,
        peer: PeerState::Fresh,
        weight: version,
        ports: Vec::new(),
        endpoints: Vec::new(),
        problems: Vec::new(),
    };
    let change = Change::Slice(object_name(name), Some(slice));
    Object { key: Key::of(&change), version: version.into(), reading: Reading::Taken(Box::new(change)) }
}

fn pod(uid: &str, name: &str) -> Object {
    let change = Change::Pod(uid.to_owned(), Some(Pod { name: object_name(name), meshed: false, opted_out: false }));
    Object { key: Key::of(&change), version: 1, reading: Reading::Taken(Box::new(change)) }
}
