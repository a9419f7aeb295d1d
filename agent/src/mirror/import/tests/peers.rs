//! Tests: peers that are lost, silent, stale, not heard yet, and back.

use super::*;
use crate::mirror::{
    lease::Standing,
    probe,
    source::{LinkName, Understood},
    validate::Refusal,
    world::OwnAddresses,
};
use std::net::IpAddr;

#[test]
fn a_lost_peer_keeps_its_endpoints_ready_and_is_marked() {
    let mut scene = demo();
    scene.settle();
    let before = scene.endpoints("frontend-federated");
    stands(&mut scene, "east", Standing::Lost { silent: false });
    assert_eq!(scene.endpoints("frontend-federated"), before);
    assert_eq!(peer_state_of(&scene, "east"), json!("lost"));
    assert_eq!(peer_state_of(&scene, "north"), json!(null));
    assert_eq!(deletions(&scene), 0);
}

#[test]
fn a_lost_peer_whose_pods_are_silent_is_unready_and_nothing_is_deleted() {
    let mut scene = demo();
    scene.settle();
    stands(&mut scene, "east", Standing::Lost { silent: true });
    assert_eq!(scene.endpoints("frontend-federated")[0], "east 10.108.0.10 http=8080 unready");
    assert_eq!(deletions(&scene), 0);
    stands(&mut scene, "east", Standing::Fresh);
    assert_eq!(scene.endpoints("frontend-federated")[0], "east 10.108.0.10 http=8080");
    assert_eq!(peer_state_of(&scene, "east"), json!(null));
}

#[test]
fn a_stale_peer_is_for_the_agent_only() {
    let mut scene = demo();
    scene.settle();
    stands(&mut scene, "east", Standing::Stale);
    assert_eq!(scene.endpoints("frontend-federated")[0], "!east 10.108.0.10 http=8080 unready");
    assert_eq!(peer_state_of(&scene, "east"), json!("stale"));
}

#[test]
fn a_removed_peers_endpoints_go_and_the_services_stay() {
    let mut scene = demo();
    scene.service("east", "api", flat(), http());
    scene.slice("east", "api", &["10.108.0.20"], ("http", 8080));
    scene.settle();
    stands(&mut scene, "east", Standing::Removed);
    assert_eq!(scene.endpoints("frontend-federated").len(), 2);
    assert_eq!(scene.endpoints("api-east"), [""; 0]);
    assert!(scene.has(Kind::Service, "api-east"), "with its ClusterIP");
    stands(&mut scene, "east", Standing::Fresh);
    assert_eq!(scene.endpoints("api-east"), ["east 10.108.0.20 http=8080"]);
}

#[test]
fn a_mirror_that_starts_takes_nothing_away_before_a_peer_was_listed() {
    let mut scene = demo();
    scene.service("east", "api", flat(), http());
    scene.slice("east", "api", &["10.108.0.20"], ("http", 8080));
    scene.service("east", "orders", json!({}), http());
    scene.slice("east", "orders", &["10.108.0.30"], ("http", 8080));
    scene.export("east", "orders", 1, json!({}));
    scene.settle();
    let mut restarted = restarted(&scene);
    restarted.settle();
    assert_eq!(restarted.written, []);
    // North comes first, and what of it has changed meanwhile is put right, while east hangs.
    restarted.service("north", "frontend", member(), http());
    restarted.slice("north", "frontend", &["10.116.0.11"], ("http", 8080));
    restarted.world.apply(Change::Listed(LinkName("north".to_owned())));
    restarted.settle();
    let derived = conventions::derived_name(&name("orders")).name;
    assert_eq!(restarted.endpoints(&derived), ["east 10.108.0.30 http=8080"]);
    assert_eq!(restarted.endpoints("api-east"), ["east 10.108.0.20 http=8080"]);
    assert_eq!(
        restarted.endpoints("frontend-federated")[..2],
        ["east 10.108.0.10 http=8080", "north 10.116.0.11 http=8080"]
    );
    // East is listed at last: what it no longer has was deleted while the mirror was down.
    restarted.service("east", "frontend", member(), http());
    restarted.slice("east", "frontend", &["10.108.0.10"], ("http", 8080));
    restarted.world.apply(Change::Listed(LinkName("east".to_owned())));
    restarted.settle();
    assert_eq!(
        restarted.names().iter().filter(|name| name.starts_with("Service ")).collect::<Vec<_>>(),
        ["Service shop/frontend-federated"]
    );
    assert!(!restarted.has(Kind::Import, "orders") && !restarted.has(Kind::Service, "api-east"));
}

#[test]
fn what_joins_and_what_is_headless_is_kept_as_well_until_its_peer_was_listed() {
    let mark = json!({"annotations": {"service.cilium.io/global": "true"}});
    let mut scene = demo();
    scene.service("", "cache", mark.clone(), http());
    scene.service("east", "cache", mark.clone(), http());
    scene.slice("east", "cache", &["10.108.0.40"], ("http", 8080));
    scene.service_with("east", "hello", json!({}), json!({"ports": http(), "clusterIP": "None"}));
    scene.slice("east", "hello", &["10.108.0.50"], ("http", 8080));
    scene.export("east", "hello", 1, json!({}));
    scene.settle();
    let slices = |scene: &Scene| scene.objects.keys().filter(|(kind, _)| *kind == Kind::Slice).count();
    let before = slices(&scene);
    let mut restarted = restarted(&scene);
    restarted.service("", "cache", mark, http());
    restarted.settle();
    assert_eq!(restarted.written, []);
    assert_eq!(slices(&restarted), before);
    // Once east is listed and has neither, both go.
    restarted.world.apply(Change::Listed(LinkName("east".to_owned())));
    restarted.world.apply(Change::Listed(LinkName("north".to_owned())));
    restarted.settle();
    assert!(!restarted.has(Kind::Import, "hello"));
    assert!(slices(&restarted) <= before - 2, "{} of {before}", slices(&restarted));
}

#[test]
fn a_peer_that_shows_its_pods_and_not_its_exports_takes_away_pods_that_are_gone_and_no_more() {
    let mark = json!({"annotations": {"service.cilium.io/global": "true"}});
    let ports = json!([{"name": "http", "port": 8080}]);
    let addresses = ["10.108.0.30", "10.108.0.31", "10.108.0.32"];
    let mut scene = demo();
    scene.service("", "cache", mark.clone(), http());
    for (service, meta) in [("orders", json!({})), ("cache", mark.clone()), ("api", flat()), ("cart", member())] {
        scene.service("east", service, meta, http());
        scene.slice("east", service, &addresses, ("http", 8080));
    }
    scene.export("east", "orders", 1, json!({}));
    scene.settle();
    let derived = conventions::derived_name(&name("orders")).name;
    let imports = [derived.as_str(), "cache", "api-east", "cart-federated"];
    let mut restarted = restarted(&scene);
    restarted.service("", "cache", mark, http());
    let changed = json!([
        {"addresses": ["10.108.0.31"]},
        {"addresses": ["10.108.0.32"], "conditions": {"ready": false, "serving": true, "terminating": true}},
        {"addresses": ["10.108.0.39"]},
    ]);
    // Before all of its slices are known, none is gone.
    restarted.slice_with("east", "orders", changed.clone(), ports.clone());
    restarted.settle();
    assert_eq!(restarted.written, []);
    for service in ["cache", "api", "cart"] {
        restarted.slice_with("east", service, changed.clone(), ports.clone());
    }
    restarted.world.apply(Change::SlicesListed(LinkName("east".to_owned())));
    restarted.settle();
    for import in imports {
        let left = ["east 10.108.0.31 http=8080", "east 10.108.0.32 http=8080 unready"];
        assert_eq!(restarted.endpoints(import), left, "{import}");
    }
    // What changes counts at once, and so does what comes back; another port is another server.
    for (gone, left) in [
        (json!([{"addresses": ["10.108.0.32"]}]), vec!["east 10.108.0.32 http=8080"]),
        (
            json!([{"addresses": ["10.108.0.32"], "conditions": {"ready": false}}]),
            vec!["east 10.108.0.32 http=8080 unready"],
        ),
        (json!([{"addresses": ["10.108.0.32"]}]), vec!["east 10.108.0.32 http=8080"]),
    ] {
        for service in ["orders", "cache", "api", "cart"] {
            restarted.slice_with("east", service, gone.clone(), ports.clone());
        }
        assert!(!restarted.world.clone().take_dirty().is_empty());
        restarted.settle();
        for import in imports {
            assert_eq!(restarted.endpoints(import), left, "{import}");
        }
    }
    stands(&mut restarted, "east", Standing::Lost { silent: true });
    assert_eq!(restarted.endpoints("api-east"), ["east 10.108.0.32 http=8080 unready"]);
    stands(&mut restarted, "east", Standing::Fresh);
    assert_eq!(restarted.endpoints("api-east"), ["east 10.108.0.32 http=8080"]);
    for service in ["orders", "api"] {
        restarted.slice_with("east", service, changed.clone(), json!([{"name": "http", "port": 9090}]));
    }
    for service in ["cache", "cart"] {
        restarted.no_slice("east", service);
    }
    restarted.settle();
    for import in imports {
        assert_eq!(restarted.endpoints(import), [""; 0], "{import}");
    }
    assert!(restarted.has(Kind::Import, "orders") && restarted.has(Kind::Service, &derived));
    assert!(restarted.has(Kind::Service, "api-east") && restarted.has(Kind::Service, "cart-federated"));
}

#[test]
fn what_a_peers_services_do_not_export_any_more_goes_though_its_serviceexports_are_never_shown() {
    let cilium = json!({"annotations": {"service.cilium.io/global": "true"}});
    let istio = json!({"labels": {"istio.io/global": "true"}});
    let services = [
        ("orders", json!({})),
        ("cache", cilium.clone()),
        ("mail", istio.clone()),
        ("api", flat()),
        ("cart", member()),
    ];
    let own = |scene: &mut Scene| {
        scene.service("", "cache", cilium.clone(), http());
        scene.service("", "mail", istio.clone(), http());
    };
    let derived = conventions::derived_name(&name("orders")).name;
    let imports = [derived.as_str(), "cache", "mail", "api-east", "cart-federated"];
    let left = ["east 10.108.0.30 http=8080"];
    for marked in [true, false] {
        let mut scene = demo();
        own(&mut scene);
        for (service, meta) in services.clone() {
            scene.service("east", service, meta, http());
            scene.slice("east", service, &["10.108.0.30"], ("http", 8080));
        }
        scene.export("east", "orders", 1, json!({}));
        scene.settle();
        for services_first in [true, false] {
            let mut restarted = restarted(&scene);
            own(&mut restarted);
            for (service, meta) in services.clone() {
                restarted.service("east", service, if marked { meta } else { json!({}) }, http());
                restarted.slice("east", service, &["10.108.0.30"], ("http", 8080));
            }
            restarted.service("east", "frontend", member(), http());
            restarted.slice("east", "frontend", &["10.108.0.10"], ("http", 8080));
            // As long as either is not known to be all that there is, nothing goes.
            let mut listed = [Change::ServicesListed as fn(LinkName) -> Change, Change::SlicesListed];
            if !services_first {
                listed.reverse();
            }
            restarted.world.apply(listed[0](LinkName("east".to_owned())));
            restarted.settle();
            for import in imports {
                assert_eq!(restarted.endpoints(import), left, "{import}");
            }
            restarted.world.apply(listed[1](LinkName("east".to_owned())));
            restarted.settle();
            for import in imports {
                let stays = marked || import == derived;
                assert_eq!(restarted.endpoints(import), if stays { &left[..] } else { &[] }, "{import}");
            }
            assert!(restarted.has(Kind::Import, "orders") && restarted.has(Kind::Service, &derived));
            for service in ["api-east", "cart-federated"] {
                assert_eq!(restarted.has(Kind::Service, service), marked, "{service}");
            }
            assert!(restarted.endpoints("frontend-federated")[0].starts_with("east 10.108.0.10"));
        }
    }
}

#[test]
fn neither_is_a_gateway_ready_whose_pods_are_gone() {
    let mut scene = Scene::linked(&["east"]);
    scene.link("east", |link| link.is_flat = false);
    scene.gateway("east", "tombolo-gateway", "198.51.100.7", &[("orders", 8080, 30_080)]);
    scene.service("east", "orders", json!({}), http());
    scene.slice("east", "orders", &["10.108.0.30"], ("http", 8080));
    scene.export("east", "orders", 1, json!({}));
    scene.settle();
    let derived = conventions::derived_name(&name("orders")).name;
    let before = scene.endpoints(&derived);
    assert!(before.len() == 1 && before[0].contains("198.51.100.7"), "{before:?}");
    let mut restarted = scene.restarted(&["east"]);
    restarted.link("east", |link| link.is_flat = false);
    restarted.world.apply(Change::SlicesListed(LinkName("east".to_owned())));
    restarted.settle();
    assert_eq!(restarted.endpoints(&derived), [format!("{} unready", before[0])]);
    restarted.slice("east", "orders", &["10.108.0.31"], ("http", 8080));
    restarted.settle();
    assert_eq!(restarted.endpoints(&derived), before);
}

#[test]
fn of_a_peer_that_is_not_heard_nothing_is_kept_that_its_link_does_not_let_in_any_more() {
    for shows_pods in [false, true] {
        let mut scene = demo();
        let addresses = ["10.108.0.30", "10.108.0.31", "10.108.0.32"];
        for (service, meta) in [("orders", json!({})), ("api", flat())] {
            scene.service("east", service, meta, http());
            scene.slice("east", service, &addresses, ("http", 8080));
        }
        scene.export("east", "orders", 1, json!({}));
        scene.settle();
        let mut restarted = restarted(&scene);
        if shows_pods {
            restarted.slice("east", "frontend", &["10.108.0.10"], ("http", 8080));
            for service in ["orders", "api"] {
                restarted.slice("east", service, &addresses, ("http", 8080));
            }
            restarted.world.apply(Change::SlicesListed(LinkName("east".to_owned())));
        }
        restarted.settle();
        assert_eq!(restarted.written, []);
        let derived = conventions::derived_name(&name("orders")).name;
        let has = |scene: &mut Scene, left: &[&str], refused: &[(&str, Refusal)]| {
            let refused: Vec<_> =
                refused.iter().map(|(link, reason)| ((LinkName((*link).to_owned()), *reason), 1)).collect();
            let imports = [(ImportKind::ServiceImport, "orders"), (ImportKind::Named, "api-east")];
            for (kind, import) in imports {
                assert_eq!(scene.desired(kind, import).refused.into_iter().collect::<Vec<_>>(), refused, "{import}");
            }
            scene.settle();
            for import in [derived.as_str(), "api-east"] {
                assert_eq!(scene.endpoints(import), left, "{import}");
            }
            assert!(scene.has(Kind::Import, "orders") && scene.has(Kind::Service, "api-east"));
        };
        let ranges = |ranges: &[&str]| ranges.iter().map(|range| range.parse().unwrap()).collect::<Vec<_>>();
        restarted.link("east", |link| link.pod_ranges = ranges(&["10.108.0.31/32", "10.108.0.32/32"]));
        let left = ["east 10.108.0.31 http=8080", "east 10.108.0.32 http=8080"];
        has(&mut restarted, &left, &[("east", Refusal::OutsidePodRanges)]);
        // A node of this cluster gets the address of one.
        let hosts = [IpAddr::from([10, 108, 0, 31])].into();
        restarted.world.apply(Change::Addresses(OwnAddresses { hosts, ..OwnAddresses::default() }));
        has(&mut restarted, &left[1..], &[("east", Refusal::OwnHost)]);
        // Another link that leads there may let it in.
        restarted.link("e2", |link| link.cluster = cluster("east"));
        restarted.link("east", |link| link.pod_ranges = ranges(&["10.108.1.0/24"]));
        has(&mut restarted, &left[1..], &[]);
        restarted.link("e2", |link| (link.cluster, link.pod_ranges) = (cluster("east"), ranges(&["10.108.2.0/24"])));
        has(&mut restarted, &[], &[("e2", Refusal::OutsidePodRanges), ("east", Refusal::OutsidePodRanges)]);
    }
}

#[test]
fn a_link_that_is_not_understood_may_have_narrower_ranges_than_others() {
    let mut scene = Scene::linked(&["east"]);
    scene.link("east", |link| link.pod_ranges = vec!["10.108.0.0/16".parse().unwrap()]);
    scene.link("north", |link| link.pod_ranges = vec!["10.0.0.0/8".parse().unwrap()]);
    scene.service("east", "api", flat(), http());
    scene.slice("east", "api", &["10.108.0.20", "10.108.0.21"], ("http", 8080));
    scene.settle();
    for understood in [Understood::Cluster, Understood::Nothing] {
        let mut restarted = scene.restarted(&[]);
        restarted.link("east", |link| link.understood = understood);
        restarted.link("north", |link| link.pod_ranges = vec!["10.0.0.0/8".parse().unwrap()]);
        restarted.settle();
        assert_eq!(restarted.written, [], "{understood:?}");
        // What is this cluster's own is nobody's else, whatever ranges say.
        let hosts = [IpAddr::from([10, 108, 0, 21])].into();
        restarted.world.apply(Change::Addresses(OwnAddresses { hosts, ..OwnAddresses::default() }));
        restarted.settle();
        assert_eq!(restarted.endpoints("api-east"), ["east 10.108.0.20 http=8080"], "{understood:?}");
    }
}

#[test]
fn a_link_that_is_not_understood_brings_nothing_in_and_takes_nothing_away() {
    for understood in [Understood::Cluster, Understood::Nothing] {
        let mut scene = demo();
        scene.link("e", |link| {
            link.cluster = cluster("east");
            link.created = 100;
        });
        scene.world.apply(Change::Link(LinkName("east".to_owned()), None));
        scene.world.apply(Change::Listed(LinkName("e".to_owned())));
        scene.service("e", "api", flat(), http());
        scene.slice("e", "api", &["10.108.0.20"], ("http", 8080));
        scene.service("e", "orders", json!({}), http());
        scene.slice("e", "orders", &["10.108.0.30"], ("http", 8080));
        scene.export("e", "orders", 1, json!({}));
        scene.settle();
        let derived = conventions::derived_name(&name("orders")).name;
        assert_eq!(scene.endpoints("api-e"), ["east 10.108.0.20 http=8080"]);
        let mut restarted = scene.restarted(&["north"]);
        restarted.link("e", |link| {
            link.cluster = cluster(if understood == Understood::Cluster { "east" } else { "e" });
            link.understood = understood;
        });
        // All that it has is heard, and more than before.
        for link in ["e", "north"] {
            restarted.world.apply(Change::Listed(LinkName(link.to_owned())));
        }
        restarted.service("e", "api", flat(), http());
        restarted.slice("e", "api", &["10.108.0.21"], ("http", 8080));
        restarted.service("e", "new", flat(), http());
        restarted.settle();
        assert_eq!(restarted.endpoints("api-e"), ["east 10.108.0.20 http=8080"], "{understood:?}");
        assert_eq!(restarted.endpoints(&derived), ["east 10.108.0.30 http=8080"], "{understood:?}");
        assert!(!restarted.has(Kind::Service, "new-e"));
        // Understood again, it is what its peer says that counts.
        restarted.link("e", |link| link.cluster = cluster("east"));
        restarted.settle();
        assert_eq!(restarted.endpoints("api-e"), ["east 10.108.0.21 http=8080"]);
        assert!(restarted.has(Kind::Service, "new-e") && !restarted.has(Kind::Import, "orders"));
    }
}

#[test]
fn a_link_that_is_never_understood_is_as_a_peer_that_is_not_heard() {
    for understood in [Understood::Cluster, Understood::Nothing] {
        let mut scene = Scene::linked(&["east"]);
        scene.service("east", "api", flat(), http());
        scene.slice("east", "api", &["10.108.0.20"], ("http", 8080));
        scene.service("east", "orders", json!({}), http());
        scene.slice("east", "orders", &["10.108.0.30"], ("http", 8080));
        scene.export("east", "orders", 1, json!({}));
        scene.settle();
        let mut restarted = scene.restarted(&["east"]);
        restarted.link("east", |link| link.understood = understood);
        for change in [Change::SlicesListed as fn(LinkName) -> Change, Change::Listed] {
            restarted.world.apply(change(LinkName("east".to_owned())));
        }
        restarted.settle();
        assert_eq!(restarted.written, [], "nothing goes because of it");
        stands(&mut restarted, "east", Standing::Lost { silent: false });
        assert_eq!(restarted.endpoints("api-east"), ["east 10.108.0.20 http=8080"], "{understood:?}");
        stands(&mut restarted, "east", Standing::Stale);
        assert_eq!(restarted.endpoints("api-east"), ["!east 10.108.0.20 http=8080 unready"], "{understood:?}");
        stands(&mut restarted, "east", Standing::Removed);
        assert_eq!(restarted.names(), [""; 0], "{understood:?}");
    }
}

#[test]
fn a_peer_that_is_not_heard_for_very_long_is_given_up_even_if_it_was_never_listed() {
    let mut scene = demo();
    scene.settle();
    let mut restarted = restarted(&scene);
    restarted.settle();
    stands(&mut restarted, "east", Standing::Lost { silent: false });
    assert_eq!(peer_state_of(&restarted, "east"), json!("lost"));
    stands(&mut restarted, "east", Standing::Stale);
    assert!(restarted.endpoints("frontend-federated")[0].starts_with("!east "));
    stands(&mut restarted, "east", Standing::Removed);
    assert!(restarted.endpoints("frontend-federated").iter().all(|it| !it.contains("east")));
}

#[test]
fn a_peer_that_is_never_listed_keeps_only_what_may_be_its() {
    let mut scene = demo();
    scene.link("hung", |_| {});
    for link in ["east", "hung"] {
        for service in ["api", "orders"] {
            let service = format!("{service}-of-{link}");
            scene.service(link, &service, flat(), http());
            scene.slice(link, &service, &["10.108.0.20"], ("http", 8080));
            scene.export(link, &service, 1, json!({}));
        }
    }
    scene.service("east", "cart", member(), http());
    scene.service("hung", "mail", member(), http());
    scene.settle();
    let mut restarted = scene.restarted(&["east", "north", "hung"]);
    restarted.settle();
    let kinds = |scene: &Scene, text: &str| scene.names().iter().filter(|name| name.contains(text)).count();
    assert_eq!(kinds(&restarted, "-of-east"), kinds(&scene, "-of-east"));
    // East and north have nothing any more; the other one is never listed.
    for link in ["east", "north"] {
        restarted.world.apply(Change::Listed(LinkName(link.to_owned())));
    }
    restarted.settle();
    assert_eq!(kinds(&restarted, "-of-east"), 0, "{:?}", restarted.names());
    assert!(!restarted.has(Kind::Service, "cart-federated"));
    assert_eq!(kinds(&restarted, "-of-hung"), kinds(&scene, "-of-hung"));
    assert!(restarted.has(Kind::Service, "mail-federated"));
    restarted.world.apply(Change::GivenUp(LinkName("hung".to_owned())));
    restarted.settle();
    assert_eq!(restarted.names(), [""; 0]);
}

#[test]
fn a_peer_that_was_never_heard_and_is_silent_is_unready_and_ready_again_when_its_pods_answer() {
    let mut scene = demo();
    let endpoints = json!([
        {"addresses": ["10.108.0.10"]},
        {"addresses": ["10.108.0.11"], "conditions": {"ready": false, "serving": false}},
        {"addresses": ["10.108.0.12"], "conditions": {"ready": false, "serving": true, "terminating": true}},
    ]);
    scene.slice_with("east", "frontend", endpoints, json!([{"name": "http", "port": 8080}]));
    scene.settle();
    let before = scene.endpoints("frontend-federated");
    let mut restarted = restarted(&scene);
    restarted.settle();
    let east = LinkName("east".to_owned());
    let targets = |scene: &Scene| probe::targets(&scene.world, &east);
    assert_eq!(targets(&restarted), ["10.108.0.10:8080".parse().unwrap()]);
    for gone in [Standing::Lost { silent: true }, Standing::Stale] {
        stands(&mut restarted, "east", gone);
        let east = restarted.endpoints("frontend-federated");
        let east: Vec<_> = east.iter().filter(|it| it.contains("east")).collect();
        assert!(east.len() == 3 && east.iter().all(|it| it.ends_with("unready")), "{east:?}");
        assert_eq!(targets(&restarted), ["10.108.0.10:8080".parse().unwrap()], "{gone:?}");
        stands(&mut restarted, "east", Standing::Lost { silent: false });
        assert_eq!(restarted.endpoints("frontend-federated"), before, "{gone:?}");
    }
    assert_eq!(deletions(&restarted), 2, "slices that were for the agent only, and back");
}

#[test]
fn what_is_known_of_a_peer_already_is_told_from_what_is_new() {
    let mut scene = demo();
    scene.export("east", "frontend", 1, json!({}));
    let east = || origin("east");
    let knows = |change: Change| scene.world.knows(&change);
    for (known, service) in [(true, "frontend"), (false, "new")] {
        assert_eq!(knows(Change::Service(east(), name(service), None)), known);
        assert_eq!(knows(Change::Slice(east(), name(&format!("{service}-x7k2p")), None)), known);
        assert_eq!(knows(Change::Export(east(), name(service), None)), known);
    }
    assert!(!knows(Change::Export(origin("north"), name("frontend"), None)));
}

#[test]
fn a_link_that_goes_takes_along_what_only_it_brought() {
    let mut scene = demo();
    scene.service("east", "api", flat(), http());
    scene.slice("east", "api", &["10.108.0.20"], ("http", 8080));
    scene.settle();
    scene.world.apply(Change::Link(LinkName("east".to_owned()), None));
    scene.settle();
    assert!(!scene.has(Kind::Service, "api-east"));
    assert_eq!(scene.endpoints("frontend-federated"), ["north 10.116.0.10 http=8080", "west 10.100.0.10 http=8080"]);
}

#[test]
fn what_a_mirror_made_in_a_peer_is_not_passed_on() {
    let mut scene = Scene::linked(&["east"]);
    let meta = json!({
        "labels": {
            "mirror.linkerd.io/mirrored-service": "true", "mirror.linkerd.io/exported": "remote-discovery",
            "mirror.linkerd.io/federated": "member", "istio.io/global": "true",
        },
    });
    scene.service("east", "api", meta, http());
    scene.slice("east", "api", &["10.116.0.1"], ("http", 8080));
    scene.settle();
    assert_eq!(scene.names(), [""; 0]);
}

/// The own cluster is listed before anything is written.
fn restarted(scene: &Scene) -> Scene {
    let mut restarted = scene.restarted(&["east", "north"]);
    restarted.service("", "frontend", member(), http());
    restarted.slice("", "frontend", &["10.100.0.10"], ("http", 8080));
    restarted
}

fn stands(scene: &mut Scene, link: &str, standing: Standing) {
    scene.world.apply(Change::Standing(LinkName(link.to_owned()), standing));
    scene.settle();
}

fn peer_state_of(scene: &Scene, cluster: &str) -> Value {
    let labels = |object: &Value| object["metadata"]["labels"].clone();
    let slice = scene.objects.iter().find(|((kind, _), object)| {
        *kind == Kind::Slice && labels(object)["multicluster.kubernetes.io/source-cluster"] == json!(cluster)
    });
    labels(slice.unwrap().1)["tombolo.io/peer-state"].clone()
}
