//! Tests: what a hostile peer tries (T29), each refused for its own reason, and what is well is let in.

use super::*;
use crate::mirror::{
    plan::Kind,
    scene::{Scene, cluster},
    world::{Change, OwnAddresses},
};
use serde_json::{Value, json};

/// What east may not offer, with pods in 10.108.0.0/14 and fd00:108::/48.
const HOSTILE: &[(&str, Refusal)] = &[
    ("0.0.0.0", Refusal::Unspecified),
    ("0.0.0.1", Refusal::Unspecified),
    ("0.255.255.255", Refusal::Unspecified),
    ("::", Refusal::Unspecified),
    ("127.0.0.1", Refusal::Loopback),
    ("127.0.0.53", Refusal::Loopback),
    ("127.255.255.254", Refusal::Loopback),
    ("::1", Refusal::Loopback),
    ("169.254.169.254", Refusal::LinkLocal),
    ("169.254.170.2", Refusal::LinkLocal),
    ("169.254.169.253", Refusal::LinkLocal),
    ("169.254.20.10", Refusal::LinkLocal),
    ("169.254.0.1", Refusal::LinkLocal),
    ("fe80::1", Refusal::LinkLocal),
    ("fe80::a9fe:a9fe", Refusal::LinkLocal),
    ("febf::1", Refusal::LinkLocal),
    ("100.100.100.200", Refusal::Metadata),
    ("192.0.0.192", Refusal::Metadata),
    ("168.63.129.16", Refusal::Metadata),
    ("fd00:ec2::254", Refusal::Metadata),
    ("fd00:ec2::23", Refusal::Metadata),
    ("fd20:ce::254", Refusal::Metadata),
    ("fd00:42::42", Refusal::Metadata),
    ("224.0.0.1", Refusal::Multicast),
    ("224.0.0.251", Refusal::Multicast),
    ("239.255.255.250", Refusal::Multicast),
    ("ff02::1", Refusal::Multicast),
    ("ff05::2", Refusal::Multicast),
    ("ff0e::1", Refusal::Multicast),
    ("240.0.0.1", Refusal::Reserved),
    ("255.255.255.255", Refusal::Reserved),
    ("192.0.0.8", Refusal::Reserved),
    ("fec0::1", Refusal::Reserved),
    ("100::1", Refusal::Reserved),
    ("::ffff:10.108.0.1", Refusal::Embedded),
    ("::ffff:127.0.0.1", Refusal::Embedded),
    ("::ffff:169.254.169.254", Refusal::Embedded),
    ("::ffff:0:10.108.0.1", Refusal::Embedded),
    ("::10.108.0.1", Refusal::Embedded),
    ("::127.0.0.1", Refusal::Embedded),
    ("64:ff9b::10.108.0.1", Refusal::Embedded),
    ("64:ff9b::a9fe:a9fe", Refusal::Embedded),
    ("64:ff9b:1::7f00:1", Refusal::Embedded),
    ("2002:7f00:1::1", Refusal::Embedded),
    ("2002:a9fe:a9fe::1", Refusal::Embedded),
    ("2001:0:7f00:1::1", Refusal::Embedded),
    ("fd00:108::5efe:a9fe:a9fe", Refusal::Embedded),
    ("fd00:108::200:5efe:a6c:1", Refusal::Embedded),
    ("10.89.0.11", Refusal::OwnHost),
    ("10.89.0.1", Refusal::OwnHost),
    ("fd00:89::11", Refusal::OwnHost),
    ("10.108.255.7", Refusal::OwnHost),
    ("10.108.255.8", Refusal::OwnHost),
    ("10.96.0.1", Refusal::OwnService),
    ("10.96.0.10", Refusal::OwnService),
    ("10.96.255.254", Refusal::OwnService),
    ("fd00:96::a", Refusal::OwnService),
    ("10.108.77.77", Refusal::OwnService),
    ("10.100.0.10", Refusal::OwnPod),
    ("10.103.255.255", Refusal::OwnPod),
    ("fd00:100::10", Refusal::OwnPod),
    ("10.116.0.10", Refusal::OutsidePodRanges),
    ("10.107.255.255", Refusal::OutsidePodRanges),
    ("10.112.0.0", Refusal::OutsidePodRanges),
    ("10.89.0.21", Refusal::OutsidePodRanges),
    ("198.51.100.20", Refusal::OutsidePodRanges),
    ("8.8.8.8", Refusal::OutsidePodRanges),
    ("fd00:109::1", Refusal::OutsidePodRanges),
    ("2001:4860:4860::8888", Refusal::OutsidePodRanges),
    ("10.111.7.7", Refusal::OtherPeer),
    ("fd00:108:0:77::1", Refusal::OtherPeer),
];

#[test]
fn nothing_that_a_peer_must_not_offer_comes_in() {
    assert!(HOSTILE.len() >= 60, "{}", HOSTILE.len());
    let scene = scene();
    for (text, refusal) in HOSTILE {
        assert_eq!(checked(&scene, "east", Path::Pod, text), Err(*refusal), "{text}");
    }
}

#[test]
fn without_declared_ranges_all_else_is_still_refused() {
    let mut scene = scene();
    scene.link("east", |_| {});
    for (text, refusal) in HOSTILE {
        let expected = match refusal {
            // Declared by another peer: that is enough to tell whose it is.
            Refusal::OutsidePodRanges if text.starts_with("10.116.") => Err(Refusal::OtherPeer),
            Refusal::OutsidePodRanges if *text == "198.51.100.20" => Ok(()),
            Refusal::OutsidePodRanges => Ok(()),
            other => Err(*other),
        };
        assert_eq!(checked(&scene, "east", Path::Pod, text), expected, "{text}");
    }
}

#[test]
fn what_a_peer_may_offer_comes_in() {
    let scene = scene();
    for text in ["10.108.0.1", "10.111.255.254", "fd00:108::1", "fd00:108::ffff:a9fe:a9fe"] {
        assert_eq!(checked(&scene, "east", Path::Pod, text), Ok(()), "{text}");
    }
    // The other link to the same cluster declares the same pods.
    assert_eq!(checked(&scene, "east-gw", Path::Pod, "10.108.0.1"), Ok(()));
    assert_eq!(checked(&scene, "north", Path::Pod, "10.111.7.7"), Ok(()), "the narrower range is north's");
}

#[test]
fn gateways_are_held_to_ranges_of_their_own() {
    let scene = scene();
    assert_eq!(checked(&scene, "east", Path::Gateway, "198.51.100.20"), Ok(()));
    assert_eq!(checked(&scene, "east", Path::Gateway, "10.108.0.1"), Err(Refusal::OutsideGatewayRanges));
    assert_eq!(checked(&scene, "east", Path::Gateway, "127.0.0.1"), Err(Refusal::Loopback));
    assert_eq!(checked(&scene, "east", Path::Pod, "198.51.100.20"), Err(Refusal::OutsidePodRanges));
}

#[test]
fn what_is_refused_reaches_no_slice_and_is_counted() {
    let mut scene = scene();
    let meta = json!({"labels": {"mirror.linkerd.io/exported": "remote-discovery"}});
    scene.service("east", "api", meta, json!([{"name": "http", "port": 80}]));
    let is_v4 = |text: &&str| !text.contains(':');
    let hostile: Vec<&str> = HOSTILE.iter().map(|(text, _)| *text).filter(is_v4).collect();
    let addresses: Vec<&str> = hostile.iter().copied().chain(["10.108.0.1"]).collect();
    scene.slice("east", "api", &addresses, ("http", 8080));
    scene.settle();
    assert_eq!(scene.endpoints("api-east"), ["east 10.108.0.1 http=8080"]);
    let imported = scene.desired(crate::mirror::world::ImportKind::Named, "api-east");
    let counted: u32 = imported.refused.values().sum();
    assert_eq!(usize::try_from(counted).unwrap(), hostile.len());
}

#[test]
fn what_is_no_address_is_refused_and_the_rest_comes_in() {
    let mut scene = scene();
    let meta = json!({"labels": {"mirror.linkerd.io/exported": "remote-discovery"}});
    scene.service("east", "api", meta, json!([{"name": "http", "port": 80}]));
    let mut endpoints: Vec<Value> =
        ["10.108.0.1", "10.108.0", "", "0x0a.108.0.1", "010.108.0.1", "fd00:108::1", "metadata.internal"]
            .iter()
            .map(|address| json!({"addresses": [address]}))
            .collect();
    endpoints.push(json!({"addresses": []}));
    scene.slice_with("east", "api", json!(endpoints), json!([{"name": "http", "port": 8080}]));
    scene.settle();
    assert_eq!(scene.endpoints("api-east"), ["east 10.108.0.1 http=8080"]);
    let refused = scene.desired(crate::mirror::world::ImportKind::Named, "api-east").refused;
    assert_eq!(refused.into_values().collect::<Vec<_>>(), [7]);
}

#[test]
fn quotas_always_let_the_same_ones_in() {
    let mut scene = scene();
    scene.link("east", |link| (link.quota.exports, link.quota.endpoints) = (2, 3));
    let meta = json!({"labels": {"mirror.linkerd.io/exported": "remote-discovery"}});
    for name in ["d", "a", "c", "b"] {
        scene.service("east", name, meta.clone(), json!([{"name": "http", "port": 80}]));
        scene.slice("east", name, &["10.108.0.5", "10.108.0.1", "10.108.0.3", "10.108.0.2"], ("http", 80));
    }
    scene.settle();
    let services: Vec<_> = scene.names().into_iter().filter(|name| name.starts_with("Service ")).collect();
    assert_eq!(services, ["Service shop/a-east", "Service shop/b-east"]);
    assert_eq!(
        scene.endpoints("a-east"),
        ["east 10.108.0.1 http=80", "east 10.108.0.2 http=80", "east 10.108.0.3 http=80"]
    );
    scene.no_service("east", "a");
    scene.settle();
    assert!(!scene.has(Kind::Service, "a-east") && scene.has(Kind::Service, "c-east"), "{:?}", scene.names());
}

fn checked(scene: &Scene, name: &str, path: Path, address: &str) -> Result<(), Refusal> {
    let name = LinkName(name.to_owned());
    check(&scene.world, &name, &scene.world.peers[&name].link, path, address.parse().unwrap())
}

/// West, linked with east twice and with north, whose ranges are narrower in places.
fn scene() -> Scene {
    let mut scene = Scene::linked(&["east", "east-gw", "north"]);
    let ranges = |texts: &[&str]| texts.iter().map(|text| range(text).unwrap()).collect::<Vec<_>>();
    scene.link("east", |link| {
        link.pod_ranges = ranges(&["10.108.0.0/14", "fd00:108::/48"]);
        link.gateway_ranges = ranges(&["198.51.100.0/24"]);
    });
    scene.link("east-gw", |link| {
        link.cluster = cluster("east");
        link.pod_ranges = ranges(&["10.108.0.0/14"]);
    });
    scene.link("north", |link| link.pod_ranges = ranges(&["10.116.0.0/14", "10.111.7.0/24", "fd00:108:0:77::/64"]));
    scene.world.apply(Change::Addresses(OwnAddresses {
        pod_ranges: ranges(&["10.100.0.0/14", "fd00:100::/48"]),
        service_ranges: ranges(&["10.96.0.0/16", "fd00:96::/112"]),
        hosts: ["10.89.0.11", "10.89.0.1", "fd00:89::11", "10.108.255.7"]
            .iter()
            .map(|it| it.parse().unwrap())
            .collect(),
        ..OwnAddresses::default()
    }));
    scene.slice("", "default/kubernetes", &["10.108.255.8"], ("https", 6443));
    scene.service_with("", "own", json!({}), json!({"clusterIP": "10.108.77.77", "ports": [{"port": 80}]}));
    scene
}
