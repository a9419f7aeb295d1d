//! Tests: values of a peer that no API server takes, and that keep nothing from being imported.

use super::*;
use crate::mirror::{source::LinkName, validate::Refusal, values};
use std::collections::BTreeMap;

#[test]
fn a_value_that_no_api_server_takes_is_left_out_and_counted() {
    let long = "x".repeat(64);
    // Where, what, and how often it is said: twice for a port, which slices have too.
    let cases = [
        ("hostname", json!("Not_A_Label"), 1),
        ("hostname", json!("a.b"), 1),
        ("zone", json!("zone one"), 1),
        ("zone", json!(long), 1),
        ("port", json!("HTTP"), 2),
        ("port", json!("a_b"), 2),
        ("port", json!(long), 2),
        ("appProtocol", json!("/x"), 2),
        ("appProtocol", json!("a/b/c"), 2),
        ("trafficDistribution", json!("PreferMine"), 1),
        ("internalTrafficPolicy", json!("Sometimes"), 1),
        ("affinity", json!(86_401), 1),
        ("affinity", json!(-1), 1),
        ("label", json!("not a value"), 1),
        ("labelName", json!("not a name"), 1),
        ("annotationName", json!("a/b/c"), 1),
    ];
    for (place, value, count) in cases {
        let mut scene = Scene::linked(&["east", "north"]);
        for (origin, at) in [("east", place), ("north", "nowhere")] {
            lie(&mut scene, origin, at, &value);
        }
        scene.settle();
        let endpoints = scene.endpoints("frontend-federated");
        // By a port that can't be called so it is not reached, and by the others it is.
        let ports = if place == "port" { "grpc=9090" } else { "grpc=9090,http=8080" };
        let east = format!("east 10.108.0.10 {ports}");
        assert_eq!(endpoints, [&east, "north 10.116.0.10 grpc=9090,http=8080"], "{place} {value}");
        let east = LinkName("east".to_owned());
        let refused = scene.desired(ImportKind::Named, "frontend-federated").refused;
        assert_eq!(refused, BTreeMap::from([((east, Refusal::InvalidValue), count)]), "{place} {value}");
        let written = format!("{:?}", scene.objects);
        assert!(!written.contains(value.as_str().unwrap_or("86401")), "{place} {value}");
    }
}

#[test]
fn what_is_exported_with_labels_that_are_none_is_imported_without_them() {
    let mut scene = Scene::linked(&["east"]);
    scene.service("east", "orders", json!({}), http());
    let spec =
        json!({"exportedLabels": {"team": "a b", "tier": "1"}, "exportedAnnotations": {"a b": "1", "note": "2"}});
    scene.export("east", "orders", 1, spec);
    scene.settle();
    let import = scene.get(Kind::Import, "orders");
    assert_eq!(
        (&import["metadata"]["labels"]["team"], &import["metadata"]["labels"]["tier"]),
        (&json!(null), &json!("1"))
    );
    assert_eq!(import["metadata"]["annotations"]["note"], json!("2"));
    assert!(import["metadata"]["annotations"]["a b"].is_null());
    let refused = scene.desired(ImportKind::ServiceImport, "orders").refused;
    assert_eq!(refused.values().sum::<u32>(), 2);
}

#[test]
fn an_import_never_has_more_labels_annotations_or_ports_than_an_api_server_takes() {
    let mut scene = Scene::linked(&["east"]);
    let mut labels = flat()["labels"].clone();
    let many = labels.as_object_mut().unwrap();
    many.extend((0..5_000).map(|number| (format!("tier-{number:04}"), json!("x".repeat(63)))));
    let annotations: serde_json::Map<String, Value> =
        (0..20).map(|number| (format!("note-{number:02}"), json!("x".repeat(20_000)))).collect();
    let ports: Vec<Value> = (1..5000).map(|port| json!({"name": format!("p{port}"), "port": port})).collect();
    let meta = json!({"labels": labels, "annotations": annotations});
    scene.service("east", "api", meta, json!(ports));
    scene.settle();
    let service = scene.get(Kind::Service, "api-east");
    for place in ["labels", "annotations"] {
        let copied = service["metadata"][place].as_object().unwrap();
        let size: usize = copied.values().map(|it| it.to_string().len()).sum();
        assert!(size < 256 << 10 && size > 64 << 10, "{place}: {size}");
    }
    assert_eq!(service["spec"]["ports"].as_array().unwrap().len(), 1000);
    let refused = scene.desired(ImportKind::Named, "api-east").refused;
    // Each of these labels has 72 bytes; 6 of the annotations fit.
    let labels = 5_000 - values::MAX_COPIED / 72;
    assert_eq!(refused.values().sum::<u32>(), u32::try_from(labels).unwrap() + 14);
}

#[test]
fn ports_without_a_name_get_one_that_nobody_else_has() {
    let mut scene = Scene::linked(&["east", "north"]);
    scene.service("east", "frontend", member(), json!([{"port": 80}]));
    let ports =
        json!([{"name": "tcp-80", "port": 81}, {"name": "tcp-80-1", "port": 82}, {"name": "tcp-80-x", "port": 83}]);
    scene.service("north", "frontend", member(), ports);
    scene.settle();
    let ports = &scene.get(Kind::Service, "frontend-federated")["spec"]["ports"];
    let names: BTreeSet<&str> = ports.as_array().unwrap().iter().map(|port| port["name"].as_str().unwrap()).collect();
    assert_eq!(names, BTreeSet::from(["tcp-80", "tcp-80-1", "tcp-80-2", "tcp-80-x"]));
}

#[test]
fn an_older_api_server_is_asked_for_nearness_by_the_name_that_it_knows() {
    for (wish, knows, written) in [
        ("PreferClose", false, "PreferClose"),
        ("PreferSameZone", false, "PreferClose"),
        ("PreferSameNode", false, "PreferClose"),
        ("PreferSameZone", true, "PreferSameZone"),
        ("PreferSameNode", true, "PreferSameNode"),
    ] {
        let mut scene = Scene::linked(&["east"]);
        let spec = json!({"trafficDistribution": wish, "ports": http()});
        scene.service_with("east", "api", flat(), spec.clone());
        scene.service_with("east", "orders", json!({}), spec);
        scene.export("east", "orders", 1, json!({}));
        scene.settle();
        scene.world.apply(Change::KnowsSameNode(knows));
        scene.settle();
        let derived = conventions::derived_name(&name("orders")).name;
        for service in ["api-east", &derived] {
            assert_eq!(scene.get(Kind::Service, service)["spec"]["trafficDistribution"], json!(written), "{wish}");
        }
        assert_eq!(scene.get(Kind::Import, "orders")["spec"]["trafficDistribution"], json!(wish));
    }
}

#[test]
fn a_name_that_no_service_can_have_is_a_problem_and_not_tried() {
    for (exported, is_good) in [("api", true), ("a.b", false), ("1api", false), ("Api", false)] {
        let mut scene = Scene::linked(&["east"]);
        scene.service("east", exported, flat(), http());
        scene.settle();
        assert_eq!(scene.names().len() == 1, is_good, "{exported}: {:?}", scene.names());
        assert_eq!(values::is_service_name(exported), is_good);
    }
}

/// A member of a federated Service with `value` in this place.
fn lie(scene: &mut Scene, origin: &str, place: &str, value: &Value) {
    let mut meta = member();
    let mut port = json!({"name": "http", "port": 8080});
    let mut endpoint = json!({"addresses": [if origin == "east" { "10.108.0.10" } else { "10.116.0.10" }]});
    let mut spec = json!({});
    match place {
        "hostname" | "zone" => endpoint[place] = value.clone(),
        "port" => port["name"] = value.clone(),
        "appProtocol" => port["appProtocol"] = value.clone(),
        "trafficDistribution" | "internalTrafficPolicy" => spec[place] = value.clone(),
        "affinity" => {
            spec["sessionAffinity"] = json!("ClientIP");
            spec["sessionAffinityConfig"] = json!({"clientIP": {"timeoutSeconds": value}});
        }
        "label" => meta["labels"]["team"] = value.clone(),
        "labelName" => meta["labels"][value.as_str().unwrap()] = json!("x"),
        "annotationName" => meta["annotations"] = json!({value.as_str().unwrap(): "x"}),
        _ => {}
    }
    let ports = json!([port, {"name": "grpc", "port": 9090}]);
    spec["ports"] = ports.clone();
    scene.service_with(origin, "frontend", meta, spec);
    scene.slice_with(origin, "frontend", json!([endpoint]), ports);
}
