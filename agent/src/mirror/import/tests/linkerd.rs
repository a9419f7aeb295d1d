//! Tests: Linkerd's conventions, with objects that Linkerd itself wrote.

use super::*;
use crate::{
    mirror::{links, read, source::Origin},
    sources::documents::documents,
};
use std::fs;

const FEDERATED: [&str; 3] =
    ["east 10.108.0.10 http=8080", "north 10.116.0.10 http=8080", "west 10.100.0.10 http=8080"];

#[test]
fn a_federated_service_unites_all_members_the_own_one_included() {
    let mut scene = demo();
    scene.settle();
    assert_eq!(scene.endpoints("frontend-federated"), FEDERATED);
    let service = scene.get(Kind::Service, "frontend-federated");
    assert_eq!(service["metadata"]["labels"]["app"], json!("frontend"));
    assert!(service["metadata"]["labels"]["mirror.linkerd.io/federated"].is_null(), "it is no member itself");
    assert_eq!(
        service["metadata"]["annotations"]["multicluster.linkerd.io/remote-discovery"],
        json!("frontend@east,frontend@north")
    );
    assert_eq!(service["spec"]["ports"], json!([{"name": "http", "port": 8080, "protocol": "TCP"}]));
}

#[test]
fn members_come_and_go_and_the_last_one_takes_the_service_along() {
    let mut scene = demo();
    scene.settle();
    for (origin, left) in [("", 2), ("north", 1), ("east", 0)] {
        scene.service(origin, "frontend", json!({}), http());
        scene.settle();
        assert_eq!(scene.endpoints("frontend-federated").len(), left);
    }
    assert_eq!(scene.names(), [""; 0]);
}

#[test]
fn a_port_leads_only_to_members_that_have_it_and_to_what_they_lead_it_to() {
    let mut scene = Scene::linked(&["east", "north"]);
    let port = |name: &str, port: u16| json!({"name": name, "port": port});
    scene.service("", "frontend", member(), json!([port("http", 8080), port("admin", 9999)]));
    scene.service("east", "frontend", member(), json!([port("web", 8080)]));
    scene.service("north", "frontend", member(), json!([port("http", 9090)]));
    let slice = |ports: &[(&str, u16)]| {
        json!(ports.iter().map(|(name, port)| json!({"name": name, "port": port})).collect::<Vec<_>>())
    };
    let endpoints = |address: &str| json!([{"addresses": [address]}]);
    scene.slice_with("", "frontend", endpoints("10.100.0.10"), slice(&[("http", 8080), ("admin", 9998)]));
    scene.slice_with("east", "frontend", endpoints("10.108.0.10"), slice(&[("web", 7777)]));
    scene.slice_with("north", "frontend", endpoints("10.116.0.10"), slice(&[("http", 9090)]));
    scene.settle();
    assert_eq!(
        scene.endpoints("frontend-federated"),
        ["east 10.108.0.10 http=7777", "west 10.100.0.10 admin=9998,http=8080"]
    );
    let problems = scene.desired(ImportKind::Named, "frontend-federated").problems;
    let expected = [
        Problem::Port(cluster("east"), "web 8080/TCP".to_owned()),
        Problem::Port(cluster("north"), "http 9090/TCP".to_owned()),
    ];
    assert_eq!(problems, BTreeSet::from(expected));
}

#[test]
fn a_port_that_only_one_member_has_is_the_services_too() {
    let mut scene = demo();
    let ports =
        json!([{"name": "http", "port": 8080}, {"name": "grpc", "port": 50051, "appProtocol": "kubernetes.io/h2c"}]);
    scene.service("north", "frontend", member(), ports.clone());
    scene.slice_with(
        "north",
        "frontend",
        json!([{"addresses": ["10.116.0.10"]}]),
        json!([{"name": "http", "port": 8080}, {"name": "grpc", "port": 50052}]),
    );
    scene.settle();
    let written = &scene.get(Kind::Service, "frontend-federated")["spec"]["ports"];
    assert_eq!(written[1]["port"], json!(50051));
    assert_eq!(written[1]["appProtocol"], json!("kubernetes.io/h2c"));
    assert_eq!(scene.endpoints("frontend-federated")[1], "north 10.116.0.10 grpc=50052,http=8080");
}

#[test]
fn an_address_over_two_links_is_one_endpoint_while_either_offers_it() {
    for gone in ["east", "east-gw"] {
        let mut scene = Scene::linked(&["east", "east-gw"]);
        for origin in ["east", "east-gw"] {
            scene.link(origin, |link| link.cluster = cluster("east"));
            scene.service(origin, "frontend", member(), http());
            scene.slice(origin, "frontend", &["10.108.0.10"], ("http", 8080));
        }
        scene.settle();
        assert_eq!(scene.endpoints("frontend-federated"), ["east 10.108.0.10 http=8080"]);
        scene.written.clear();
        scene.world.apply(Change::Link(LinkName(gone.to_owned()), None));
        scene.settle();
        assert_eq!(scene.endpoints("frontend-federated"), ["east 10.108.0.10 http=8080"]);
        assert!(scene.written.iter().all(|step| matches!(step, Step::Put(Kind::Service, ..))), "{:?}", scene.written);
    }
}

#[test]
fn a_label_changed_in_place_makes_another_import_of_it() {
    let mut scene = Scene::linked(&["east"]);
    scene.gateway("east", "gw/tcp-0", "198.51.100.20", &[("api", 8080, 31005)]);
    let gateway_mode = json!({"labels": {"mirror.linkerd.io/exported": "true"}});
    scene.service("east", "api", flat(), http());
    scene.slice("east", "api", &["10.108.0.1"], ("http", 8080));
    scene.settle();
    let uid = scene.get(Kind::Service, "api-east")["metadata"]["uid"].clone();
    scene.service("east", "api", gateway_mode, http());
    scene.settle();
    assert_eq!(scene.endpoints("api-east"), ["east 198.51.100.20 http=31005"]);
    let labels = &scene.get(Kind::Service, "api-east")["metadata"]["labels"];
    assert!(labels["multicluster.linkerd.io/remote-discovery"].is_null());
    assert_eq!(labels["mirror.linkerd.io/cluster-name"], json!("east"));
    assert_eq!(scene.get(Kind::Service, "api-east")["metadata"]["uid"], uid, "with the same ClusterIP");
    scene.service("east", "api", json!({"labels": {"mirror.linkerd.io/federated": "member"}}), http());
    scene.settle();
    assert!(!scene.has(Kind::Service, "api-east") && scene.has(Kind::Service, "api-federated"));
    assert_eq!(scene.endpoints("api-federated"), ["east 10.108.0.1 http=8080"]);
    scene.service("east", "api", json!({"labels": {"app": "api"}}), http());
    scene.settle();
    assert_eq!(scene.names(), [""; 0]);
    scene.service("east", "api", flat(), http());
    scene.settle();
    assert_eq!(scene.endpoints("api-east"), ["east 10.108.0.1 http=8080"]);
}

#[test]
fn a_users_own_service_is_neither_taken_over_nor_deleted() {
    for imported in ["frontend-federated", "frontend-east"] {
        let mut scene = Scene::linked(&["east"]);
        let meta = json!({"labels": {
            "mirror.linkerd.io/federated": "member", "mirror.linkerd.io/exported": "remote-discovery",
        }});
        scene.service("", imported, json!({"labels": {"app": "mine"}}), http());
        scene.service("east", "frontend", meta, http());
        scene.slice("east", "frontend", &["10.108.0.10"], ("http", 8080));
        scene.settle();
        assert!(!scene.has(Kind::Service, imported));
        assert_eq!(scene.endpoints(imported), [""; 0]);
        let problems = scene.desired(ImportKind::Named, imported).problems;
        assert_eq!(problems, BTreeSet::from([Problem::Taken(name(imported))]));
        scene.no_service("east", "frontend");
        scene.settle();
        assert_eq!(deletions(&scene), 2, "the other import's slice and Service: {:?}", scene.written);
        // It goes by itself: then the name is free.
        scene.service("east", "frontend", member(), http());
        scene.no_service("", imported);
        scene.settle();
        assert!(scene.has(Kind::Service, "frontend-federated"));
    }
}

#[test]
fn a_name_that_is_too_long_is_a_problem_and_nothing_else() {
    let mut scene = Scene::linked(&["east"]);
    let long = "s".repeat(59);
    scene.service("east", &long, flat(), http());
    scene.settle();
    assert_eq!(scene.names(), [""; 0]);
    let imported = format!("{long}-east");
    let problems = scene.desired(ImportKind::Named, &imported).problems;
    assert_eq!(problems, BTreeSet::from([Problem::BadName(imported)]));
}

#[test]
fn a_namespace_that_comes_later_gets_what_is_meant_for_it() {
    let mut scene = Scene::linked(&["east"]);
    scene.service("east", "later/api", flat(), http());
    scene.slice("east", "later/api", &["10.108.0.1"], ("http", 8080));
    scene.settle();
    assert_eq!(scene.names(), [""; 0]);
    scene.world.apply(Change::Namespace("later".to_owned(), true));
    scene.settle();
    assert_eq!(scene.endpoints("later/api-east"), ["east 10.108.0.1 http=8080"]);
    // One that is about to go takes nothing new.
    scene.world.apply(Change::Namespace("later".to_owned(), false));
    scene.slice("east", "later/api", &["10.108.0.2"], ("http", 8080));
    let written = scene.written.len();
    scene.world.take_dirty().into_iter().for_each(|key| {
        assert!(
            crate::mirror::plan::steps(&scene.world, &key, crate::mirror::scene::NOW)
                .1
                .iter()
                .all(|step| matches!(step, Step::Delete(..)))
        );
    });
    assert_eq!(scene.written.len(), written);
}

#[test]
fn headless_is_mirrored_flat_with_its_hostnames_and_joins_no_federated_service() {
    let mut scene = Scene::linked(&["east"]);
    let meta = json!({"labels": {
        "mirror.linkerd.io/federated": "member", "mirror.linkerd.io/exported": "remote-discovery",
    }});
    scene.service_with("east", "db", meta, json!({"clusterIP": "None", "ports": [{"name": "sql", "port": 5432}]}));
    let endpoints = json!([{"addresses": ["10.108.0.1"], "hostname": "db-0"}]);
    scene.slice_with("east", "db", endpoints, json!([{"name": "sql", "port": 5432}]));
    scene.settle();
    assert_eq!(scene.get(Kind::Service, "db-east")["spec"]["clusterIP"], json!("None"));
    assert_eq!(only_slice(&scene)["endpoints"][0]["hostname"], json!("db-0"));
    assert!(!scene.has(Kind::Service, "db-federated"));
}

#[test]
fn what_somebody_changes_of_ours_is_put_right() {
    let mut scene = demo();
    scene.settle();
    let mut object = scene.get(Kind::Service, "frontend-federated").clone();
    object["spec"]["ports"] = json!([{"name": "http", "port": 81}]);
    let service = read::service(serde_json::from_value(object).unwrap());
    scene.world.apply(Change::Service(Origin::Own, name("frontend-federated"), Some(Box::new(service))));
    scene.written.clear();
    scene.settle();
    assert!(matches!(&scene.written[..], [Step::SetPorts(..), Step::Put(Kind::Service, ..)]), "{:?}", scene.written);
}

#[test]
fn policies_of_the_exporting_side_are_the_imports_and_marks_are_not() {
    let mut scene = Scene::linked(&["east"]);
    let meta = json!({
        "labels": {"mirror.linkerd.io/federated": "member", "istio.io/global": "true", "team": "x"},
        "annotations": {
            "tombolo.io/traffic": "local-first", "service.cilium.io/global": "true", "note": "kept",
            "kubectl.kubernetes.io/last-applied-configuration": "{}",
        },
    });
    scene.service("east", "frontend", meta, http());
    scene.settle();
    let metadata = &scene.get(Kind::Service, "frontend-federated")["metadata"];
    assert_eq!(metadata["annotations"]["tombolo.io/traffic"], json!("local-first"));
    assert_eq!(metadata["annotations"]["note"], json!("kept"));
    assert_eq!(metadata["labels"]["team"], json!("x"));
    for dropped in ["service.cilium.io/global", "kubectl.kubernetes.io/last-applied-configuration"] {
        assert!(metadata["annotations"][dropped].is_null(), "{dropped}");
    }
    assert!(metadata["labels"]["istio.io/global"].is_null());
}

#[test]
fn beside_linkerd_only_slices_are_written_and_they_are_the_union_that_its_discovery_uses() {
    let mut scene = Scene::new();
    scene.world.apply(Change::Namespace("mc-demo".to_owned(), true));
    let mut linked = 0;
    for object in objects("west-links.yaml", "Link") {
        let (link, parsed) = links::linkerd(&serde_json::from_value(object).unwrap()).unwrap().unwrap();
        scene.world.apply(Change::Link(link.clone(), Some(Box::new(parsed))));
        // North has frontend only; what `east-gw` leads to is east.
        for (origin, octet) in [("east", 108), ("east-gw", 108), ("north", 116)] {
            if link.0 == origin {
                source(&mut scene, origin, octet);
            }
        }
        scene.world.apply(Change::Listed(link));
        linked += 1;
    }
    assert_eq!(linked, 3);
    for object in objects("west-mirrored.yaml", "Service") {
        put(&mut scene, "", object);
    }
    scene.settle();
    assert!(scene.objects.keys().all(|(kind, _)| *kind == Kind::Slice), "{:?}", scene.names());
    let east = ["10.108.0.10", "10.108.0.11", "10.108.0.12"].map(|address| format!("east {address} http=8080"));
    let north = ["10.116.0.10", "10.116.0.11", "10.116.0.12"].map(|address| format!("north {address} http=8080"));
    assert_eq!(scene.endpoints("mc-demo/frontend-federated"), [east, north].concat());
    // Linkerd's gateway refuses who has no Linkerd proxy: nothing leads there, and its Service is for its own proxies, even
    // where there is another gateway.
    assert_eq!(scene.endpoints("mc-demo/analytics-east-gw"), [""; 0]);
    scene.gateway("east-gw", "gw/tcp-0", "198.51.100.20", &[("mc-demo/analytics", 8080, 31005)]);
    scene.settle();
    assert_eq!(scene.endpoints("mc-demo/analytics-east-gw"), [""; 0]);
}

#[test]
fn a_service_over_linkerds_link_is_linkerds_to_make_and_whatever_is_there_is_only_filled() {
    let mut scene = Scene::linked(&["east", "north"]);
    scene.link("east", |link| link.is_linkerds = true);
    let both = json!({"labels": {
        "mirror.linkerd.io/federated": "member", "mirror.linkerd.io/exported": "remote-discovery",
    }});
    scene.service("east", "api", both, http());
    scene.slice("east", "api", &["10.108.0.1"], ("http", 8080));
    scene.service("north", "api", member(), http());
    scene.slice("north", "api", &["10.116.0.1"], ("http", 8080));
    scene.settle();
    assert_eq!(scene.names(), [""; 0], "nothing before Linkerd's mirror has made them");
    let made = json!({"labels": {"mirror.linkerd.io/mirrored-service": "true"}});
    for name in ["api-federated", "api-east"] {
        scene.service_with("", name, made.clone(), json!({"ports": http()}));
    }
    scene.settle();
    assert!(scene.objects.keys().all(|(kind, _)| *kind == Kind::Slice), "{:?}", scene.names());
    assert_eq!(scene.endpoints("api-federated"), ["east 10.108.0.1 http=8080", "north 10.116.0.1 http=8080"]);
    assert_eq!(scene.endpoints("api-east"), ["east 10.108.0.1 http=8080"]);
    // A member that leaves is gone from the slices, whatever Linkerd's Service still says.
    scene.service("east", "api", json!({}), http());
    scene.settle();
    assert_eq!(scene.endpoints("api-federated"), ["north 10.116.0.1 http=8080"]);
    assert_eq!(scene.endpoints("api-east"), [""; 0]);
}

#[test]
fn a_service_that_was_made_before_linkerd_came_is_handed_over() {
    let mut scene = demo();
    scene.settle();
    assert!(scene.has(Kind::Service, "frontend-federated"));
    scene.link("east", |link| link.is_linkerds = true);
    scene.written.clear();
    scene.service("north", "frontend", member(), json!([{"name": "http", "port": 8080}, {"name": "x", "port": 9}]));
    scene.settle();
    assert!(!scene.written.iter().any(|step| matches!(step, Step::Put(Kind::Service, ..))), "{:?}", scene.written);
    assert_eq!(scene.endpoints("frontend-federated"), FEDERATED, "it is filled as it is");
    // Linkerd's mirror replaces labels and annotations, and with them the mark.
    let taken = json!({"labels": {"mirror.linkerd.io/mirrored-service": "true"}});
    scene.service_with("", "frontend-federated", taken, json!({"ports": http()}));
    scene.settle();
    assert!(!scene.written.iter().any(|step| matches!(step, Step::Put(Kind::Service, ..))), "{:?}", scene.written);
    assert_eq!(scene.endpoints("frontend-federated"), FEDERATED);
}

/// The Services of east that Linkerd exports, at another link's addresses.
fn source(scene: &mut Scene, origin: &str, octet: u8) {
    for object in objects("east-source.yaml", "Service") {
        if origin != "north" || object["metadata"]["name"] == json!("frontend") {
            put(scene, origin, object);
        }
    }
    for mut object in objects("east-source.yaml", "EndpointSlice") {
        for endpoint in object["endpoints"].as_array_mut().unwrap() {
            let address = endpoint["addresses"][0].as_str().unwrap().replace("10.108.", &format!("10.{octet}."));
            endpoint["addresses"] = json!([address]);
        }
        let slice = name(&format!("mc-demo/{}", object["metadata"]["name"].as_str().unwrap()));
        let written = read::slice(serde_json::from_value(object).unwrap());
        scene.world.apply(Change::Slice(crate::mirror::scene::origin(origin), slice, written));
    }
}

fn put(scene: &mut Scene, origin: &str, object: Value) {
    let metadata = &object["metadata"];
    let service = name(&format!("{}/{}", metadata["namespace"].as_str().unwrap(), metadata["name"].as_str().unwrap()));
    let read = read::service(serde_json::from_value(object).unwrap());
    scene.world.apply(Change::Service(crate::mirror::scene::origin(origin), service, Some(Box::new(read))));
}

fn objects(file: &str, kind: &str) -> Vec<Value> {
    let path = format!("{}/../tests/fixtures/linkerd/{file}", env!("CARGO_MANIFEST_DIR"));
    let text = fs::read(&path).unwrap_or_else(|error| panic!("{path}: {error}"));
    let found = documents(&text).into_iter().map(|document| document.unwrap().value);
    found.filter(|value| value["kind"] == json!(kind)).collect()
}

#[test]
fn a_mirror_that_gets_or_loses_its_address_is_made_anew_and_its_slices_stay() {
    let mut scene = Scene::linked(&["east"]);
    let spec = |headless: bool| {
        if headless { json!({"ports": http(), "clusterIP": "None"}) } else { json!({"ports": http()}) }
    };
    scene.service_with("east", "api", flat(), spec(false));
    scene.slice("east", "api", &["10.108.0.1"], ("http", 8080));
    scene.settle();
    for is_headless in [true, false] {
        scene.written.clear();
        scene.service_with("east", "api", flat(), spec(is_headless));
        scene.settle();
        let is_slice = |step: &Step| matches!(step, Step::Put(Kind::Slice, ..) | Step::Delete(Kind::Slice, ..));
        assert!(!scene.written.iter().any(is_slice), "{:?}", scene.written);
        let has_none = scene.get(Kind::Service, "api-east")["spec"]["clusterIP"] == json!("None");
        assert_eq!((has_none, scene.written.len()), (is_headless, 2));
        assert_eq!(scene.endpoints("api-east"), ["east 10.108.0.1 http=8080"]);
    }
}
