//! Tests: what becomes of exports, from a peer's objects to those that an API server holds, and what the agent makes of them.

mod linkerd;
mod mcs;
mod peers;
mod sequences;
mod values;

use super::*;
use crate::{
    mirror::{
        plan::{Kind, Step},
        scene::{Scene, cluster, name, origin},
        world::Change,
    },
    model::ServiceKind,
    sources::objects::{self, Options, Seen},
};
use serde_json::{Value, json};

#[test]
fn what_is_written_is_what_the_agent_reads() {
    let mut scene = demo();
    scene.service("east", "api", flat(), http());
    scene.slice("east", "api", &["10.108.0.20"], ("http", 8080));
    scene.settle();
    let options = Options { cluster: cluster("west"), node: "west-1".to_owned(), all_services: false };
    let service = |name: &str| {
        let object = serde_json::from_value(scene.get(Kind::Service, name).clone()).unwrap();
        objects::service(&object, &options).unwrap().1
    };
    let federated = service("frontend-federated");
    assert!(federated.federated && federated.exclusive && federated.problems.is_empty());
    assert_eq!(federated.local_member.as_deref(), Some("frontend"));
    assert!(service("api-east").federated && service("api-east").exclusive);
    let mut seen = 0;
    for ((kind, _), object) in &scene.objects {
        if *kind == Kind::Slice {
            let Seen::Taken((_, slice)) = objects::slice(&serde_json::from_value(object.clone()).unwrap()).unwrap()
            else {
                panic!("left: {object}");
            };
            assert_eq!(slice.owner.kind, ServiceKind::Service);
            assert!(slice.source_cluster.is_some() && !slice.built_in && slice.problems.is_empty());
            seen += 1;
        }
    }
    assert_eq!(seen, 4);
}

#[test]
fn what_joins_by_mark_joins_only_a_service_that_carries_it_too() {
    for (mark, other) in [
        (json!({"annotations": {"service.cilium.io/global": "true"}}), json!({"labels": {"istio.io/global": "true"}})),
        (json!({"labels": {"istio.io/global": "true"}}), json!({"annotations": {"service.cilium.io/global": "true"}})),
    ] {
        for (local, joined) in [(mark.clone(), true), (other, false), (json!({}), false)] {
            let mut scene = Scene::linked(&["east"]);
            scene.service("", "cart", local.clone(), http());
            scene.service("east", "cart", mark.clone(), http());
            scene.slice("", "cart", &["10.100.0.1"], ("http", 8080));
            scene.slice("east", "cart", &["10.108.0.1"], ("http", 8081));
            scene.settle();
            let expected: &[&str] = if joined { &["east 10.108.0.1 http=8081"] } else { &[] };
            assert_eq!(scene.endpoints("cart"), expected, "{mark} {local}");
            assert!(!scene.has(Kind::Service, "cart"), "it is somebody's own");
        }
    }
}

#[test]
fn a_mark_that_goes_on_either_side_parts_them() {
    let mark = json!({"annotations": {"service.cilium.io/global": "true"}});
    let not_shared = json!({"annotations": {"service.cilium.io/global": "true", "service.cilium.io/shared": "false"}});
    for (origin, meta) in [("", json!({})), ("east", json!({})), ("east", not_shared)] {
        let mut scene = Scene::linked(&["east"]);
        scene.service("", "cart", mark.clone(), http());
        scene.service("east", "cart", mark.clone(), http());
        scene.slice("east", "cart", &["10.108.0.1"], ("http", 8081));
        scene.settle();
        assert_eq!(scene.endpoints("cart").len(), 1);
        scene.service(origin, "cart", meta, http());
        scene.settle();
        assert_eq!(scene.names(), [""; 0]);
    }
}

#[test]
fn a_clusters_own_dns_and_api_server_are_nobody_elses() {
    let marks = json!({
        "annotations": {"service.cilium.io/global": "true"}, "labels": {"istio.io/global": "true"},
    });
    let mut scene = Scene::linked(&["east"]);
    for service in ["kube-system/kube-dns", "default/kubernetes"] {
        scene.world.apply(Change::Namespace(name(service).namespace, true));
        for origin in ["", "east"] {
            scene.service(origin, service, marks.clone(), http());
            scene.slice(origin, service, &["10.108.0.9"], ("http", 53));
            scene.export(origin, service, 1, json!({}));
        }
    }
    scene.settle();
    assert!(scene.objects.keys().all(|(kind, _)| *kind == Kind::Export), "{:?}", scene.names());
}

#[test]
fn all_conventions_live_beside_each_other_on_one_service() {
    let mut scene = Scene::linked(&["east"]);
    let meta = json!({
        "labels": {
            "mirror.linkerd.io/exported": "remote-discovery", "mirror.linkerd.io/federated": "member",
            "istio.io/global": "true",
        },
        "annotations": {"service.cilium.io/global": "true"},
    });
    scene.service("", "cart", json!({"labels": {"istio.io/global": "true"}}), http());
    scene.service("east", "cart", meta, http());
    scene.slice("east", "cart", &["10.108.0.1"], ("http", 8081));
    scene.export("east", "cart", 7, json!({}));
    scene.settle();
    let derived = conventions::derived_name(&name("cart")).name;
    for service in ["cart", "cart-east", "cart-federated", &derived] {
        assert_eq!(scene.endpoints(service), ["east 10.108.0.1 http=8081"], "{service}");
    }
    let meta = json!({"labels": {"istio.io/global": "true"}, "annotations": {}});
    scene.service("east", "cart", meta, http());
    scene.no_export("east", "cart");
    scene.settle();
    assert_eq!(scene.names().len(), 1, "{:?}", scene.names());
    scene.no_service("east", "cart");
    scene.settle();
    assert_eq!(scene.names(), [""; 0]);
}

#[test]
fn what_leads_through_the_gateway_stands_for_its_pods() {
    let mut scene = Scene::linked(&["east"]);
    scene.service("east", "analytics", json!({"labels": {"mirror.linkerd.io/exported": "true"}}), http());
    scene.slice("east", "analytics", &["10.108.0.1", "10.108.0.2", "10.108.0.3"], ("http", 8080));
    scene.settle();
    let problems = scene.desired(ImportKind::Named, "analytics-east").problems;
    assert_eq!(problems, BTreeSet::from([Problem::NoGateway(LinkName("east".to_owned()), name("analytics"))]));
    assert_eq!(scene.endpoints("analytics-east"), [""; 0]);
    scene.gateway("east", "gw/tcp-0", "198.51.100.20", &[("analytics", 8080, 31004)]);
    scene.settle();
    assert_eq!(scene.endpoints("analytics-east"), ["east 198.51.100.20 http=31004"]);
    let slice = only_slice(&scene);
    assert_eq!(slice["metadata"]["labels"]["tombolo.io/path"], json!("gateway"));
    assert_eq!(slice["metadata"]["annotations"]["tombolo.io/weight"], json!("3"));
    // Its address changes; no pod is ready any more.
    scene.gateway("east", "gw/tcp-0", "198.51.100.21", &[("analytics", 8080, 31004)]);
    scene.no_slice("east", "analytics");
    scene.settle();
    assert_eq!(scene.endpoints("analytics-east"), ["east 198.51.100.21 http=31004 unready"]);
}

#[test]
fn a_flat_link_with_a_gateway_has_it_to_fall_back_on_where_only_the_agent_finds_it() {
    let mut scene = Scene::linked(&["east"]);
    scene.gateway("east", "gw/tcp-0", "198.51.100.20", &[("api", 8080, 31005)]);
    scene.service("east", "api", flat(), http());
    scene.slice("east", "api", &["10.108.0.1"], ("http", 8080));
    scene.settle();
    assert_eq!(scene.endpoints("api-east"), ["east 10.108.0.1 http=8080"], "the link names no gateway");
    scene.link("east", |link| link.gateway_ranges = vec!["198.51.100.0/24".parse().unwrap()]);
    scene.settle();
    assert_eq!(scene.endpoints("api-east"), ["!east 198.51.100.20 http=31005 unready", "east 10.108.0.1 http=8080"]);
    for object in scene
        .objects
        .values()
        .filter(|object| object["metadata"]["labels"]["tombolo.io/fallback-for"] == json!("api-east"))
    {
        assert!(object["metadata"]["labels"]["kubernetes.io/service-name"].is_null());
    }
}

#[test]
fn a_link_that_is_not_flat_leads_through_the_gateway_whatever_the_convention() {
    let mut scene = Scene::linked(&["east", "north"]);
    scene.link("east", |link| link.is_flat = false);
    scene.gateway("east", "gw/tcp-0", "198.51.100.20", &[("frontend", 8080, 31000)]);
    for origin in ["east", "north"] {
        scene.service(origin, "frontend", member(), http());
    }
    scene.slice("east", "frontend", &["10.108.0.10"], ("http", 8080));
    scene.slice("north", "frontend", &["10.116.0.10"], ("http", 8080));
    scene.settle();
    assert_eq!(scene.endpoints("frontend-federated"), ["east 198.51.100.20 http=31000", "north 10.116.0.10 http=8080"]);
}

#[test]
fn who_prefers_a_zone_gets_hints_on_every_endpoint_that_has_one() {
    let mut scene = Scene::linked(&["east"]);
    let spec = json!({"trafficDistribution": "PreferClose", "ports": http()});
    scene.service_with("east", "api", flat(), spec);
    let endpoints = json!([
        {"addresses": ["10.108.0.1"], "zone": "a", "nodeName": "east-1", "targetRef": {"kind": "Pod", "name": "x"}},
        {"addresses": ["10.108.0.2"], "zone": "b", "conditions": {"ready": false, "serving": true, "terminating": true}},
    ]);
    scene.slice_with("east", "api", endpoints, json!([{"name": "http", "port": 8080}]));
    scene.settle();
    assert_eq!(scene.get(Kind::Service, "api-east")["spec"]["trafficDistribution"], json!("PreferClose"));
    let expected = json!([
        {
            "addresses": ["10.108.0.1"], "zone": "a", "hints": {"forZones": [{"name": "a"}]},
            "conditions": {"ready": true, "serving": true, "terminating": false},
        },
        {
            "addresses": ["10.108.0.2"], "zone": "b", "hints": {"forZones": [{"name": "b"}]},
            "conditions": {"ready": false, "serving": true, "terminating": true},
        },
    ]);
    assert_eq!(only_slice(&scene)["endpoints"], expected);
}

#[test]
fn what_joins_gets_hints_when_the_local_service_prefers_a_zone_and_its_own_endpoints_are_left_alone() {
    let mark = json!({"annotations": {"service.cilium.io/global": "true"}});
    for (distribution, hints) in
        [(json!("PreferClose"), json!({"forZones": [{"name": "a"}]})), (json!(null), json!(null))]
    {
        let mut scene = Scene::linked(&["east"]);
        let spec = json!({"trafficDistribution": distribution, "ports": http(), "selector": {"app": "cart"}});
        scene.service_with("", "cart", mark.clone(), spec);
        scene.slice("", "cart", &["10.100.0.1"], ("http", 8080));
        scene.service("east", "cart", mark.clone(), http());
        let endpoints = json!([{"addresses": ["10.108.0.1"], "zone": "a", "nodeName": "east-1"}]);
        scene.slice_with("east", "cart", endpoints, json!([{"name": "http", "port": 8080}]));
        scene.settle();
        let endpoint = &only_slice(&scene)["endpoints"][0];
        assert_eq!(endpoint["addresses"], json!(["10.108.0.1"]));
        assert_eq!(
            (&endpoint["hints"], &endpoint["nodeName"], &endpoint["targetRef"]),
            (&hints, &json!(null), &json!(null))
        );
    }
}

#[test]
fn what_joins_by_mark_over_a_link_that_is_not_flat_is_the_gateway() {
    for mark in
        [json!({"annotations": {"service.cilium.io/global": "true"}}), json!({"labels": {"istio.io/global": "true"}})]
    {
        let mut scene = Scene::linked(&["east"]);
        scene.link("east", |link| link.is_flat = false);
        scene.gateway("east", "gw/tcp-0", "198.51.100.20", &[("cart", 8080, 20_001)]);
        scene.service("", "cart", mark.clone(), http());
        scene.service("east", "cart", mark.clone(), http());
        scene.slice("east", "cart", &["10.108.0.1"], ("http", 8081));
        scene.settle();
        assert_eq!(scene.endpoints("cart"), ["east 198.51.100.20 http=20001"]);
        scene.service("", "cart", json!({}), http());
        scene.settle();
        assert_eq!(scene.names(), [""; 0]);
    }
}

/// Labels of a member of a federated Service.
fn member() -> Value {
    json!({"labels": {"app": "frontend", "mirror.linkerd.io/federated": "member"}})
}

fn flat() -> Value {
    json!({"labels": {"mirror.linkerd.io/exported": "remote-discovery"}})
}

fn http() -> Value {
    json!([{"name": "http", "port": 8080}])
}

/// frontend, federated over west, east and north.
fn demo() -> Scene {
    let mut scene = Scene::linked(&["east", "north"]);
    for (origin, address) in [("", "10.100.0.10"), ("east", "10.108.0.10"), ("north", "10.116.0.10")] {
        scene.service(origin, "frontend", member(), http());
        scene.slice(origin, "frontend", &[address], ("http", 8080));
    }
    scene
}

fn only_slice(scene: &Scene) -> &Value {
    let mut slices = scene.objects.iter().filter(|((kind, _), _)| *kind == Kind::Slice);
    let slice = slices.next().unwrap().1;
    assert!(slices.next().is_none());
    slice
}

fn deletions(scene: &Scene) -> usize {
    scene.written.iter().filter(|step| matches!(step, Step::Delete(..))).count()
}
