//! Tests: the MCS API.

use super::*;
use crate::mirror::source::{Family, LinkName, McsVersion, McsVersions};

#[test]
fn an_export_becomes_an_import_a_derived_service_and_slices() {
    let mut scene = Scene::linked(&["east"]);
    let spec = json!({
        "ports": [{"name": "tcp", "port": 42, "protocol": "TCP"}, {"name": "udp", "port": 42, "protocol": "UDP"}],
        "sessionAffinity": "ClientIP",
        "sessionAffinityConfig": {"clientIP": {"timeoutSeconds": 10}},
        "internalTrafficPolicy": "Cluster",
        "trafficDistribution": "PreferClose",
    });
    scene.service_with("east", "hello", json!({"labels": {"leaks": "not"}}), spec);
    let ports = json!([{"name": "tcp", "port": 42}, {"name": "udp", "port": 42, "protocol": "UDP"}]);
    scene.slice_with("east", "hello", json!([{"addresses": ["10.108.0.1"], "zone": "z"}]), ports);
    scene.export("east", "hello", 7, json!({}));
    scene.settle();
    let derived = conventions::derived_name(&name("hello")).name;
    let import = scene.get(Kind::Import, "hello");
    let service = scene.get(Kind::Service, &derived);
    assert_eq!(import["spec"]["type"], json!("ClusterSetIP"));
    assert_eq!(import["spec"]["ips"], service["spec"]["clusterIPs"]);
    assert_eq!(import["spec"]["ipFamilies"], json!(["IPv4"]));
    assert_eq!(import["spec"]["ports"][1], json!({"name": "udp", "port": 42, "protocol": "UDP"}));
    assert_eq!(import["spec"]["sessionAffinityConfig"]["clientIP"]["timeoutSeconds"], json!(10));
    assert_eq!(import["spec"]["internalTrafficPolicy"], json!("Cluster"));
    assert_eq!(import["spec"]["trafficDistribution"], json!("PreferClose"));
    assert!(import["metadata"]["labels"]["leaks"].is_null());
    assert_eq!(import["metadata"]["annotations"]["multicluster.kubernetes.io/derived-service"], json!(derived));
    assert_eq!(import["status"]["clusters"], json!([{"cluster": "east"}]));
    assert_eq!(condition(import, "Ready"), ("True".to_owned(), "Ready".to_owned()));
    assert_eq!(service["metadata"]["ownerReferences"][0]["uid"], import["metadata"]["uid"]);
    assert_eq!(scene.endpoints(&derived), ["east 10.108.0.1 tcp=42,udp=42"]);
    let labels = &only_slice(&scene)["metadata"]["labels"];
    assert_eq!(labels["multicluster.kubernetes.io/service-name"], json!("hello"));
    assert_eq!(labels["multicluster.kubernetes.io/source-cluster"], json!("east"));
    assert_eq!(labels["endpointslice.kubernetes.io/managed-by"], json!("mirror.tombolo.io"));
    scene.no_export("east", "hello");
    scene.settle();
    assert_eq!(scene.names(), [""; 0]);
}

#[test]
fn the_own_cluster_is_a_member_as_any_other() {
    let mut scene = both(json!([{"name": "http", "port": 80}]), json!([{"name": "http", "port": 80}]));
    scene.settle();
    let derived = conventions::derived_name(&name("hello")).name;
    assert_eq!(scene.endpoints(&derived), ["east 10.108.0.1 http=8080", "west 10.100.0.1 http=8080"]);
    let service = scene.get(Kind::Service, &derived);
    assert_eq!(service["metadata"]["annotations"]["tombolo.io/local-member"], json!("hello"));
    let export = scene.get(Kind::Export, "hello");
    assert_eq!(condition(export, "Valid"), ("True".to_owned(), "Valid".to_owned()));
    assert_eq!(condition(export, "Ready"), ("True".to_owned(), "Ready".to_owned()));
    assert_eq!(condition(export, "Conflict"), ("False".to_owned(), "NoConflicts".to_owned()));
    // It lives while one exports.
    scene.no_export("", "hello");
    scene.settle();
    assert_eq!(scene.endpoints(&derived), ["east 10.108.0.1 http=8080"]);
    scene.no_export("east", "hello");
    scene.settle();
    assert_eq!(scene.names(), [""; 0]);
}

#[test]
fn ports_are_united_and_each_leads_to_the_clusters_that_have_it() {
    let mut scene = both(json!([{"name": "http", "port": 80}]), json!([{"name": "admin", "port": 81}]));
    scene.slice("east", "hello", &["10.108.0.1"], ("admin", 8081));
    scene.settle();
    let names: Vec<_> = scene.get(Kind::Import, "hello")["spec"]["ports"]
        .as_array()
        .unwrap()
        .iter()
        .map(|port| port["name"].clone())
        .collect();
    assert_eq!(names, ["http", "admin"]);
    let derived = conventions::derived_name(&name("hello")).name;
    assert_eq!(scene.endpoints(&derived), ["east 10.108.0.1 admin=8081", "west 10.100.0.1 http=8080"]);
    assert_eq!(condition(scene.get(Kind::Export, "hello"), "Conflict").1, "PortConflict");
}

#[test]
fn of_two_ports_with_one_name_the_oldest_exports_stands() {
    for (own, ports) in [(1, 80), (9, 81)] {
        let mut scene = both(json!([{"name": "http", "port": 80}]), json!([{"name": "http", "port": 81}]));
        scene.export("", "hello", own, json!({}));
        scene.settle();
        let written = &scene.get(Kind::Import, "hello")["spec"]["ports"];
        assert_eq!(*written, json!([{"name": "http", "port": ports, "protocol": "TCP"}]));
        let derived = conventions::derived_name(&name("hello")).name;
        let expected = if own == 1 { "west 10.100.0.1 http=8080" } else { "east 10.108.0.1 http=8080" };
        assert_eq!(scene.endpoints(&derived), [expected]);
        assert_eq!(condition(scene.get(Kind::Export, "hello"), "Conflict").1, "PortConflict");
    }
}

#[test]
fn every_conflict_has_its_reason_and_the_oldest_export_decides() {
    let conflicts = [
        ("sessionAffinity", json!({"sessionAffinity": "ClientIP"}), "SessionAffinityConflict"),
        ("internalTrafficPolicy", json!({"internalTrafficPolicy": "Local"}), "InternalTrafficPolicyConflict"),
        ("trafficDistribution", json!({"trafficDistribution": "PreferClose"}), "TrafficDistributionConflict"),
        ("ipFamilies", json!({"ipFamilies": ["IPv4", "IPv6"]}), "IPFamilyConflict"),
        ("clusterIP", json!({"clusterIP": "None"}), "TypeConflict"),
        ("ports", json!({"ports": [{"name": "other", "port": 1}]}), "PortConflict"),
    ];
    for (field, spec, reason) in conflicts {
        let mut scene = both(http(), http());
        let mut theirs = json!({"ports": http(), "selector": {"a": "b"}});
        theirs.as_object_mut().unwrap().extend(spec.as_object().unwrap().clone());
        scene.service_with("east", "hello", json!({}), theirs);
        scene.settle();
        assert_eq!(
            condition(scene.get(Kind::Export, "hello"), "Conflict"),
            ("True".to_owned(), reason.to_owned()),
            "{field}"
        );
        assert_eq!(scene.get(Kind::Import, "hello")["spec"]["type"], json!("ClusterSetIP"), "{field}");
    }
}

#[test]
fn timeouts_labels_and_annotations_conflict_too_and_reasons_are_joined() {
    let mut scene = Scene::linked(&["east"]);
    for (origin, seconds, created) in [("", 10, 1), ("east", 20, 2)] {
        let spec = json!({
            "ports": http(), "sessionAffinity": "ClientIP",
            "sessionAffinityConfig": {"clientIP": {"timeoutSeconds": seconds}},
        });
        scene.service_with(origin, "hello", json!({}), spec);
        let exported = json!({"exportedLabels": {"l": origin}, "exportedAnnotations": {"a": origin}});
        scene.export(origin, "hello", created, exported);
    }
    scene.settle();
    let reasons = "SessionAffinityConfigConflict,LabelsConflict,AnnotationsConflict";
    assert_eq!(condition(scene.get(Kind::Export, "hello"), "Conflict").1, reasons);
    let import = scene.get(Kind::Import, "hello");
    assert_eq!(import["metadata"]["labels"]["l"], json!(""));
    assert_eq!(import["metadata"]["annotations"]["a"], json!(""));
    assert_eq!(import["spec"]["sessionAffinityConfig"]["clientIP"]["timeoutSeconds"], json!(10));
}

#[test]
fn a_condition_that_stays_as_it_is_keeps_its_time() {
    let mut scene = both(http(), http());
    scene.settle();
    scene.export("east", "hello", 2, json!({"exportedLabels": {"new": "one"}}));
    let key = ImportKey { kind: ImportKind::ServiceImport, object: name("hello") };
    let steps = crate::mirror::plan::steps(&scene.world, &key, "2026-11-21T13:00:00Z").1;
    let [Step::PutStatus(Kind::Export, _, status)] = &steps[..] else { panic!("{steps:?}") };
    let since: Vec<_> =
        status["conditions"].as_array().unwrap().iter().map(|it| it["lastTransitionTime"].clone()).collect();
    assert_eq!(since, ["2026-11-21T12:00:00Z", "2026-11-21T12:00:00Z", "2026-11-21T13:00:00Z"]);
}

#[test]
fn headless_has_no_address_no_derived_service_and_hostnames() {
    let mut scene = Scene::linked(&["east"]);
    scene.service_with("east", "db", json!({}), json!({"clusterIP": "None", "ports": [{"name": "sql", "port": 5432}]}));
    let endpoints = json!([{"addresses": ["10.108.0.1"], "hostname": "db-0"}, {"addresses": ["10.108.0.2"]}]);
    scene.slice_with("east", "db", endpoints, json!([{"name": "sql", "port": 5432}]));
    scene.export("east", "db", 1, json!({}));
    scene.settle();
    let import = scene.get(Kind::Import, "db");
    assert_eq!((&import["spec"]["type"], &import["spec"]["ips"]), (&json!("Headless"), &json!([])));
    assert_eq!(import["spec"]["ipFamilies"], json!(["IPv4"]));
    assert_eq!(condition(import, "Ready").0, "True");
    let slice = only_slice(&scene);
    assert!(slice["metadata"]["labels"]["kubernetes.io/service-name"].is_null());
    assert_eq!(slice["endpoints"][0]["hostname"], json!("db-0"));
    assert_eq!(scene.names().len(), 2, "{:?}", scene.names());
}

#[test]
fn what_can_not_be_exported_says_why_and_is_not() {
    let mut scene = Scene::linked(&["east"]);
    scene.export("", "hello", 1, json!({}));
    scene.settle();
    assert_eq!(condition(scene.get(Kind::Export, "hello"), "Valid"), ("False".to_owned(), "NoService".to_owned()));
    scene.service_with("", "hello", json!({}), json!({"type": "ExternalName", "externalName": "example.org"}));
    scene.settle();
    assert_eq!(condition(scene.get(Kind::Export, "hello"), "Valid").1, "InvalidServiceType");
    assert!(!scene.has(Kind::Import, "hello"));
    scene.service("", "hello", json!({}), http());
    scene.settle();
    assert_eq!(condition(scene.get(Kind::Export, "hello"), "Valid").0, "True");
    assert!(scene.has(Kind::Import, "hello"));
}

#[test]
fn an_import_of_somebody_elses_is_left_alone() {
    let mut scene = Scene::linked(&["east"]);
    let import = crate::mirror::source::Import { uid: "u".to_owned(), ..Default::default() };
    scene.world.apply(Change::Import(name("hello"), Some(import)));
    scene.service("east", "hello", json!({}), http());
    scene.export("east", "hello", 1, json!({}));
    scene.settle();
    assert_eq!(scene.written, []);
    let problems = scene.desired(ImportKind::ServiceImport, "hello").problems;
    assert_eq!(problems, BTreeSet::from([Problem::ImportTaken(name("hello"))]));
}

#[test]
fn a_family_that_this_cluster_lacks_is_a_problem() {
    let mut scene = Scene::linked(&["east"]);
    scene.service_with("east", "hello", json!({}), json!({"ports": http(), "ipFamilies": ["IPv6"]}));
    scene.export("east", "hello", 1, json!({}));
    scene.settle();
    let problems = scene.desired(ImportKind::ServiceImport, "hello").problems;
    assert_eq!(problems, BTreeSet::from([Problem::FamilyNotSupported(Family::V6)]));
}

#[test]
fn a_service_of_no_family_of_this_cluster_is_imported_and_says_why_it_is_not_ready() {
    let mut scene = Scene::linked(&["east"]);
    scene.service_with("east", "hello", json!({}), json!({"ports": http(), "ipFamilies": ["IPv6"]}));
    scene.export("east", "hello", 1, json!({}));
    scene.settle();
    let import = scene.get(Kind::Import, "hello");
    assert_eq!(condition(import, "Ready"), ("False".to_owned(), "IPFamilyNotSupported".to_owned()));
    assert_eq!(scene.names(), ["Import shop/hello"]);
}

#[test]
fn a_derived_name_that_somebody_has_is_told_and_theirs_stays() {
    let mut scene = both(http(), http());
    let derived = conventions::derived_name(&name("hello"));
    scene.service("", &derived.name, json!({"labels": {"app": "theirs"}}), http());
    scene.settle();
    assert!(!scene.has(Kind::Service, &derived.name), "nothing was written to it");
    let import = scene.get(Kind::Import, "hello");
    assert_eq!(condition(import, "Ready"), ("False".to_owned(), "Pending".to_owned()));
    assert_eq!((&import["spec"]["ips"], scene.endpoints(&derived.name).len()), (&json!([]), 0));
    let export = scene.get(Kind::Export, "hello");
    assert_eq!(condition(export, "Valid").0, "True");
    assert_eq!(condition(export, "Ready"), ("False".to_owned(), "Failed".to_owned()));
    // Once it is gone all is as it should be.
    scene.no_service("", &derived.name);
    scene.settle();
    assert_eq!(condition(scene.get(Kind::Import, "hello"), "Ready").0, "True");
    assert_eq!(condition(scene.get(Kind::Export, "hello"), "Ready").0, "True");
    assert_eq!(scene.endpoints(&derived.name).len(), 2);
}

#[test]
fn a_mark_that_is_taken_off_takes_nothing_from_the_import_of_the_same_name() {
    let mut scene = both(http(), http());
    let derived = conventions::derived_name(&name("hello"));
    scene.service("", &derived.name, json!({"labels": {"app": "theirs"}}), http());
    // North exports nothing, and joins for a while.
    scene.link("north", |_| {});
    scene.world.apply(Change::Listed(LinkName("north".to_owned())));
    let mark = json!({"annotations": {"service.cilium.io/global": "true"}});
    for marked in [mark, json!({})] {
        scene.service("", "hello", marked.clone(), http());
        scene.service("north", "hello", marked, http());
        scene.settle();
    }
    assert_eq!(condition(scene.get(Kind::Import, "hello"), "Ready").0, "False");
    scene.no_service("", &derived.name);
    scene.settle();
    assert_eq!(condition(scene.get(Kind::Import, "hello"), "Ready").0, "True");
}

#[test]
fn what_is_each_clusters_own_is_not_exported_and_says_so() {
    let mut scene = Scene::linked(&["east"]);
    scene.service("", "kube-system/kube-dns", json!({}), http());
    scene.export("", "kube-system/kube-dns", 1, json!({}));
    scene.settle();
    let export = scene.get(Kind::Export, "kube-system/kube-dns");
    assert_eq!(condition(export, "Ready"), ("False".to_owned(), "Failed".to_owned()));
    assert!(!scene.has(Kind::Import, "kube-system/kube-dns"));
}

#[test]
fn conditions_of_others_stay_and_nothing_is_written_for_them() {
    let mut scene = both(http(), http());
    scene.settle();
    scene.written.clear();
    let mut object = scene.get(Kind::Export, "hello").clone();
    let theirs = json!({"type": "Theirs", "status": "True", "reason": "R", "message": "", "lastTransitionTime": "t"});
    object["status"]["conditions"].as_array_mut().unwrap().push(theirs);
    let mut export = crate::mirror::read::export(serde_json::from_value(object).unwrap(), true);
    export.created = 1;
    scene.world.apply(Change::Export(crate::mirror::source::Origin::Own, name("hello"), Some(export)));
    scene.settle();
    assert_eq!(scene.written, []);
}

#[test]
fn what_somebody_changes_in_an_import_is_put_right() {
    let mut scene = both(http(), http());
    scene.settle();
    let mut object = scene.get(Kind::Import, "hello").clone();
    object["spec"]["ips"] = json!(["10.9.9.9"]);
    object["spec"]["type"] = json!("Headless");
    let import = crate::mirror::read::import(serde_json::from_value(object).unwrap());
    scene.world.apply(Change::Import(name("hello"), Some(import)));
    scene.written.clear();
    scene.settle();
    assert!(matches!(&scene.written[..], [Step::Put(Kind::Import, _, _)]), "{:?}", scene.written);
}

#[test]
fn a_port_that_somebody_adds_to_a_service_of_ours_is_taken_out() {
    let mut scene = both(http(), http());
    scene.settle();
    let derived = conventions::derived_name(&name("hello")).name;
    let mut object = scene.get(Kind::Service, &derived).clone();
    // Theirs, so that applying without it would not remove it.
    object["spec"]["ports"] = json!([{"name": "http", "port": 8080}, {"name": "theirs", "port": 81}]);
    let service = crate::mirror::read::service(serde_json::from_value(object).unwrap());
    let origin = crate::mirror::source::Origin::Own;
    scene.world.apply(Change::Service(origin, name(&derived), Some(Box::new(service))));
    scene.written.clear();
    scene.settle();
    let Some(Step::SetPorts(_, ports)) = scene.written.first() else { panic!("{:?}", scene.written) };
    assert_eq!(*ports, json!([{"name": "http", "port": 8080, "protocol": "TCP"}]));
}

#[test]
fn a_mirror_that_starts_changes_nothing_of_an_import_before_the_oldest_exporter_was_listed() {
    // East is older, and has an address where west is headless: what west alone would be must not be seen.
    let mut scene = both(http(), http());
    let headless = json!({"ports": http(), "clusterIP": "None", "selector": {"app": "x"}});
    scene.service_with("", "hello", json!({}), headless.clone());
    scene.export("", "hello", 9, json!({"exportedLabels": {"l": "west"}}));
    scene.export("east", "hello", 1, json!({"exportedLabels": {"l": "east"}}));
    scene.settle();
    assert_eq!(scene.get(Kind::Import, "hello")["spec"]["type"], json!("ClusterSetIP"));
    let reasons = condition(scene.get(Kind::Export, "hello"), "Conflict").1;
    assert_eq!(reasons, "TypeConflict,LabelsConflict");

    let mut restarted = scene.restarted(&["east"]);
    restarted.service_with("", "hello", json!({}), headless);
    restarted.slice("", "hello", &["10.100.0.1"], ("http", 8080));
    restarted.settle();
    assert_eq!(restarted.written, []);
    // A port that is new is added meanwhile.
    let ports = json!([{"name": "http", "port": 80}, {"name": "admin", "port": 81}]);
    let more = json!({"ports": ports, "clusterIP": "None", "selector": {"app": "x"}});
    restarted.service_with("", "hello", json!({}), more);
    restarted.settle();
    let import = restarted.get(Kind::Import, "hello");
    assert_eq!((&import["spec"]["type"], &import["metadata"]["labels"]["l"]), (&json!("ClusterSetIP"), &json!("east")));
    assert_eq!(import["spec"]["ports"].as_array().unwrap().len(), 2);
    assert_eq!(import["status"]["clusters"], json!([{"cluster": "east"}, {"cluster": "west"}]));
    // East is listed, and has it no more.
    restarted.world.apply(Change::Listed(LinkName("east".to_owned())));
    restarted.settle();
    let import = restarted.get(Kind::Import, "hello");
    assert_eq!((&import["spec"]["type"], &import["metadata"]["labels"]["l"]), (&json!("Headless"), &json!("west")));
    assert_eq!(condition(restarted.get(Kind::Export, "hello"), "Conflict").1, "NoConflicts");
}

#[test]
fn an_older_api_server_gets_the_older_version_of_the_same_objects() {
    let mut scene = Scene::linked(&["east"]);
    let old = McsVersions { imports: McsVersion::V1Alpha1, exports: McsVersion::V1Alpha1 };
    scene.world.apply(Change::Versions(old));
    scene.service("east", "hello", json!({}), http());
    scene.export("east", "hello", 1, json!({}));
    scene.settle();
    let version = "multicluster.x-k8s.io/v1alpha1";
    let derived = conventions::derived_name(&name("hello")).name;
    let owner = scene.get(Kind::Service, &derived)["metadata"]["ownerReferences"][0]["apiVersion"].clone();
    assert_eq!((&scene.get(Kind::Import, "hello")["apiVersion"], &owner), (&json!(version), &json!(version)));
    // With the new one only the reference is another: the import is the same object.
    scene.written.clear();
    scene.world.apply(Change::Versions(McsVersions::default()));
    scene.settle();
    assert!(matches!(&scene.written[..], [Step::Put(Kind::Service, _, _)]), "{:?}", scene.written);
}

/// hello, exported from west first and then from east.
fn both(own: Value, theirs: Value) -> Scene {
    let mut scene = Scene::linked(&["east"]);
    for (origin, ports, address, created) in [("", own, "10.100.0.1", 1), ("east", theirs, "10.108.0.1", 2)] {
        let port = ports[0]["name"].as_str().unwrap().to_owned();
        scene.service(origin, "hello", json!({}), ports);
        scene.slice(origin, "hello", &[address], (&port, 8080));
        scene.export(origin, "hello", created, json!({}));
    }
    scene
}

fn condition(object: &Value, kind: &str) -> (String, String) {
    let conditions = object["status"]["conditions"].as_array().unwrap();
    let found = conditions.iter().find(|condition| condition["type"] == json!(kind)).unwrap();
    (found["status"].as_str().unwrap().to_owned(), found["reason"].as_str().unwrap().to_owned())
}
