//! Tests: the gateway of one cluster, and what another one makes of it.

use super::*;
use crate::mirror::{
    scene::{Scene, cluster, link, name},
    source::LinkName,
    validate::Refusal,
    world::{Change, OwnAddresses},
};

const SERVICE: &str = "tombolo-system/tombolo-gateway-tcp-0";

#[test]
fn every_exported_service_gets_its_ports_and_no_other() {
    let mut east = exporter(Exposure::LoadBalancer);
    for (name, meta) in [
        ("gateway", json!({"labels": {"mirror.linkerd.io/exported": "true"}})),
        ("flat", json!({"labels": {"mirror.linkerd.io/exported": "remote-discovery"}})),
        ("federated", json!({"labels": {"mirror.linkerd.io/federated": "member"}})),
        ("cilium", json!({"annotations": {"service.cilium.io/global": "true"}})),
        ("istio", json!({"labels": {"istio.io/global": "true"}})),
        ("mcs", json!({})),
        ("plain", json!({})),
        ("unshared", json!({"annotations": {"service.cilium.io/global": "true", "service.cilium.io/shared": "false"}})),
        (
            "imported",
            json!({"labels": {"mirror.linkerd.io/exported": "true", "mirror.linkerd.io/mirrored-service": "true"}}),
        ),
    ] {
        east.service("", name, meta, http());
    }
    east.export("", "mcs", 1, json!({}));
    let exported = json!({"labels": {"mirror.linkerd.io/exported": "true"}});
    east.service_with("", "headless", exported.clone(), json!({"clusterIP": "None", "ports": http()}));
    east.service(
        "",
        "dns",
        exported,
        json!([{"name": "udp", "port": 53, "protocol": "UDP"}, {"name": "s", "port": 1, "protocol": "SCTP"}]),
    );
    east.settle();
    assert_eq!(
        led(&east, SERVICE),
        ["shop/cilium", "shop/federated", "shop/flat", "shop/gateway", "shop/istio", "shop/mcs"]
    );
    assert_eq!(led(&east, "tombolo-system/tombolo-gateway-udp-0"), ["shop/dns"]);
    let spec = &east.get(Kind::Service, SERVICE)["spec"];
    assert_eq!((&spec["type"], &spec["selector"]), (&json!("LoadBalancer"), &json!(null)));
    let ports = spec["ports"].as_array().unwrap();
    assert!(ports.iter().all(|port| port["name"].as_str().unwrap().len() <= 15 && port["protocol"] == "TCP"));
}

#[test]
fn each_port_leads_to_the_pods_of_its_service() {
    let mut east = exporter(Exposure::LoadBalancer);
    east.service("", "api", exported(), json!([{"name": "http", "port": 80}, {"name": "admin", "port": 81}]));
    let endpoints = json!([
        {"addresses": ["10.108.0.1"], "nodeName": "east-1", "zone": "a", "hostname": "x", "hints": {"forZones": [{"name": "a"}]}},
        {"addresses": ["10.108.0.2"], "conditions": {"ready": false, "serving": true, "terminating": true}},
    ]);
    east.slice_with("", "api", endpoints, json!([{"name": "http", "port": 8080}, {"name": "admin", "port": 9090}]));
    east.service("", "web", exported(), http());
    east.slice("", "web", &["10.108.0.3"], ("http", 8080));
    east.settle();
    let number = |service: &str, port: u16| port_of(&east, SERVICE, service, port);
    let slices = slices_of(&east, SERVICE);
    assert_eq!(slices.len(), 2);
    let ports = |slice: &Value| {
        let ports = slice["ports"].as_array().unwrap();
        ports
            .iter()
            .map(|it| (it["name"].as_str().unwrap().to_owned(), it["port"].as_u64().unwrap()))
            .collect::<BTreeSet<_>>()
    };
    let api = slices.iter().find(|slice| slice["ports"].as_array().unwrap().len() == 2).unwrap();
    let tcp = |number: u16| format!("tcp-{number}");
    assert_eq!(ports(api), BTreeSet::from([(tcp(number("api", 80)), 8080), (tcp(number("api", 81)), 9090)]));
    let expected = json!([
        {"addresses": ["10.108.0.1"], "nodeName": "east-1", "zone": "a", "conditions": {"ready": true, "serving": true, "terminating": false}},
        {"addresses": ["10.108.0.2"], "conditions": {"ready": false, "serving": true, "terminating": true}},
    ]);
    assert_eq!(api["endpoints"], expected);
    // No mirror and no agent takes them for another cluster's.
    for slice in slices {
        let labels = slice["metadata"]["labels"].as_object().unwrap();
        assert!(labels.keys().all(|label| !label.starts_with("multicluster.")), "{labels:?}");
    }
    // Pods come and go, and so does the Service.
    east.slice("", "web", &["10.108.0.4"], ("http", 8080));
    east.no_slice("", "api");
    east.settle();
    let left = slices_of(&east, SERVICE);
    assert_eq!(left.len(), 1);
    assert_eq!(left[0]["endpoints"][0]["addresses"], json!(["10.108.0.4"]));
}

#[test]
fn ports_stay_over_restarts_and_rest_when_nobody_exports_them() {
    let mut east = exporter(Exposure::NodePort);
    for name in ["a", "b", "c"] {
        east.service("", name, exported(), http());
        east.slice("", name, &["10.108.0.1"], ("http", 8080));
    }
    east.settle();
    let before = ["a", "b", "c"].map(|name| port_of(&east, SERVICE, name, 8080));
    let ports = east.get(Kind::Service, SERVICE)["spec"]["ports"].clone();
    // Unlabelled in place, with the mirror away: another leader finds it out.
    let mut again = east.restarted(&[]);
    again.world.apply(Change::Namespace("tombolo-system".to_owned(), true));
    again.world.set_gateway(Some(config(Exposure::NodePort)));
    for (name, meta) in [("a", exported()), ("b", json!({})), ("c", exported()), ("d", exported())] {
        again.service("", name, meta, http());
        again.slice("", name, &["10.108.0.1"], ("http", 8080));
    }
    again.settle();
    assert_eq!(port_of(&again, SERVICE, "a", 8080), before[0]);
    assert_eq!(port_of(&again, SERVICE, "c", 8080), before[2]);
    assert!(!before.contains(&port_of(&again, SERVICE, "d", 8080)));
    let annotation = again.get(Kind::Service, SERVICE)["metadata"]["annotations"]["tombolo.io/gateway-ports"].clone();
    let annotation: Value = serde_json::from_str(annotation.as_str().unwrap()).unwrap();
    assert_eq!(annotation[format!("tcp-{}", before[1])]["released"], json!("2026-11-21T12:00:00Z"));
    let now = again.get(Kind::Service, SERVICE)["spec"]["ports"].as_array().unwrap();
    assert!(ports.as_array().unwrap().iter().all(|port| now.contains(port)), "node ports stay: {ports} {now:?}");
    let names: BTreeSet<String> = slices_of(&again, SERVICE)
        .iter()
        .flat_map(|slice| {
            slice["ports"].as_array().unwrap().iter().map(|port| port["name"].as_str().unwrap().to_owned())
        })
        .collect();
    assert!(!names.contains(&format!("tcp-{}", before[1])), "nobody answers there");
    // And back.
    again.service("", "b", exported(), http());
    again.settle();
    assert_eq!(port_of(&again, SERVICE, "b", 8080), before[1]);
    // A day later what was released is gone.
    again.service("", "c", json!({}), http());
    again.settle();
    let key = root(&config(Exposure::NodePort));
    let (_, steps) = plan::steps(&again.world, &key, "2026-11-22T11:59:59Z");
    assert_eq!(steps, []);
    let (_, steps) = plan::steps(&again.world, &key, "2026-11-22T12:00:00Z");
    let [Step::Put(Kind::Service, _, body)] = &steps[..] else { panic!("{steps:?}") };
    assert_eq!(body["spec"]["ports"].as_array().unwrap().len(), 3);
}

#[test]
fn a_users_own_service_is_neither_taken_for_a_gateways_nor_touched() {
    let mut east = exporter(Exposure::LoadBalancer);
    east.service("", SERVICE, json!({"labels": {"app": "mine"}}), http());
    east.service("", "api", exported(), http());
    east.settle();
    assert!(!east.has(Kind::Service, SERVICE));
    assert_eq!(led(&east, "tombolo-system/tombolo-gateway-tcp-1"), ["shop/api"]);
}

#[test]
fn what_somebody_changes_of_it_is_put_right() {
    let mut east = exporter(Exposure::LoadBalancer);
    east.service("", "api", exported(), http());
    east.slice("", "api", &["10.108.0.1"], ("http", 8080));
    east.settle();
    let whole = (led(&east, SERVICE), port_of(&east, SERVICE, "api", 8080));
    let body = east.get(Kind::Service, SERVICE).clone();
    for broken in [
        "/spec/ports/0/port",
        "/metadata/annotations/tombolo.io~1gateway-ports",
        "/metadata/annotations/tombolo.io~1applied",
    ] {
        let mut object = body.clone();
        *object.pointer_mut(broken).unwrap() = if broken.ends_with("port") { json!(1) } else { json!("{}") };
        east.object("", &object);
        east.settle();
        assert_eq!((led(&east, SERVICE), port_of(&east, SERVICE, "api", 8080)), whole, "{broken}");
    }
    east.no_service("", SERVICE);
    east.settle();
    assert_eq!((led(&east, SERVICE), port_of(&east, SERVICE, "api", 8080)), whole, "made again, by the same number");
    let slices: Vec<Value> = slices_of(&east, SERVICE).into_iter().cloned().collect();
    assert_eq!(slices.len(), 1);
}

#[test]
fn a_gateway_that_is_switched_off_goes_with_its_slices() {
    let mut east = exporter(Exposure::LoadBalancer);
    east.service("", "api", exported(), http());
    east.slice("", "api", &["10.108.0.1"], ("http", 8080));
    east.settle();
    assert_eq!(east.names().len(), 2);
    let mut off = east.restarted(&[]);
    off.service("", "api", exported(), http());
    off.settle();
    assert_eq!(off.names(), [""; 0]);
    let mut moved = east.restarted(&[]);
    moved.world.apply(Change::Namespace("edge".to_owned(), true));
    moved.world.set_gateway(Some(Config { namespace: "edge".to_owned(), ..config(Exposure::LoadBalancer) }));
    moved.service("", "api", exported(), http());
    moved.settle();
    assert_eq!(moved.names(), ["Service edge/tombolo-gateway-tcp-0"]);
}

#[test]
fn without_its_namespace_there_is_no_gateway_until_that_comes() {
    let mut east = exporter(Exposure::LoadBalancer);
    east.world.apply(Change::Namespace("tombolo-system".to_owned(), false));
    east.service("", "api", exported(), http());
    east.settle();
    assert_eq!(east.names(), [""; 0]);
    let (imported, _) = plan::steps(&east.world, &root(&config(Exposure::LoadBalancer)), crate::mirror::scene::NOW);
    assert_eq!(imported.problems, BTreeSet::from([Problem::NoGatewayNamespace("tombolo-system".to_owned())]));
    east.world.apply(Change::Namespace("tombolo-system".to_owned(), true));
    east.settle();
    assert_eq!(led(&east, SERVICE), ["shop/api"]);
}

#[test]
fn nodes_that_are_ready_are_published_and_stay_when_none_is() {
    let mut east = exporter(Exposure::NodePort);
    east.service("", "api", exported(), http());
    nodes(&mut east, &["10.89.0.21", "10.89.0.22"]);
    assert_eq!(published_at(&east), json!("10.89.0.21,10.89.0.22"));
    nodes(&mut east, &["10.89.0.22"]);
    assert_eq!(published_at(&east), json!("10.89.0.22"));
    nodes(&mut east, &[]);
    assert_eq!(published_at(&east), json!("10.89.0.22"));
    let many: Vec<String> = (0..40).map(|host| format!("10.89.1.{host}")).collect();
    nodes(&mut east, &many.iter().map(String::as_str).collect::<Vec<_>>());
    assert_eq!(published_at(&east).as_str().unwrap().split(',').count(), MAX_NODES);
    let addresses = BTreeSet::from(["gw.example.com".to_owned()]);
    east.world.set_gateway(Some(Config { addresses, ..config(Exposure::NodePort) }));
    east.settle();
    assert_eq!(published_at(&east), json!("gw.example.com"));
}

#[test]
fn an_importer_follows_the_gateway_wherever_it_goes() {
    let mut east = exporter(Exposure::LoadBalancer);
    east.service("", "analytics", exported(), http());
    east.slice("", "analytics", &["10.108.0.1", "10.108.0.2"], ("http", 8080));
    east.settle();
    let port = port_of(&east, SERVICE, "analytics", 8080);
    let mut west = importer(&["east"]);
    west.service("east", "analytics", exported(), http());
    west.slice("east", "analytics", &["10.108.0.1", "10.108.0.2"], ("http", 8080));
    let show = |west: &mut Scene, ingress: Value| {
        let mut object = east.get(Kind::Service, SERVICE).clone();
        object["status"] = json!({"loadBalancer": {"ingress": ingress}});
        west.object("east", &object);
        west.settle();
        west.endpoints("analytics-east")
    };
    assert_eq!(show(&mut west, json!([])), [""; 0], "the load balancer isn't there yet");
    assert_eq!(
        west.desired(ImportKind::Named, "analytics-east").problems,
        BTreeSet::from([Problem::NoGateway(LinkName("east".to_owned()), name("analytics"))])
    );
    let line = |address: &str| format!("east {address} http={port}");
    assert_eq!(show(&mut west, json!([{"ip": "198.51.100.20"}])), [line("198.51.100.20")]);
    assert_eq!(
        show(&mut west, json!([{"ip": "198.51.100.21"}, {"ip": "198.51.100.22"}])),
        [line("198.51.100.21"), line("198.51.100.22")]
    );
    // Names are looked up elsewhere; until that was done they stand for nothing.
    assert_eq!(show(&mut west, json!([{"hostname": "lb.example.com"}])), [""; 0]);
    let hosts: BTreeSet<&str> = west.world.gateway_hosts().into_iter().map(|(_, host)| host).collect();
    assert_eq!(hosts, BTreeSet::from(["lb.example.com"]));
    for addresses in [&["198.51.100.30"][..], &["198.51.100.31", "198.51.100.32"], &[]] {
        let found = addresses.iter().map(|address| address.parse().unwrap()).collect();
        west.world.apply(Change::Host("lb.example.com".to_owned(), found));
        west.settle();
        assert_eq!(west.endpoints("analytics-east"), addresses.iter().map(|it| line(it)).collect::<Vec<_>>());
    }
    // No pod is ready any more.
    show(&mut west, json!([{"ip": "198.51.100.20"}]));
    west.slice_with(
        "east",
        "analytics",
        json!([{"addresses": ["10.108.0.1"], "conditions": {"ready": false}}]),
        json!([{"name": "http", "port": 8080}]),
    );
    west.settle();
    assert_eq!(west.endpoints("analytics-east"), [format!("{} unready", line("198.51.100.20"))]);
    // The gateway goes.
    west.no_service("east", SERVICE);
    west.settle();
    assert_eq!(west.endpoints("analytics-east"), [""; 0]);
}

#[test]
fn a_port_that_rests_leads_nobody_anywhere() {
    let mut west = importer(&["east"]);
    west.service("east", "analytics", exported(), http());
    west.slice("east", "analytics", &["10.108.0.1"], ("http", 8080));
    west.gateway("east", SERVICE, "198.51.100.20", &[("analytics", 8080, 20_001)]);
    west.settle();
    assert_eq!(west.endpoints("analytics-east"), ["east 198.51.100.20 http=20001"]);
    let annotation = json!({
        "tcp-20001": {"service": "shop/analytics", "port": 8080, "released": "2026-11-21T12:00:00Z"},
        "tcp-20002": {"service": "shop/analytics", "port": 8080},
    });
    let object = json!({
        "metadata": {
            "namespace": "tombolo-system", "name": "tombolo-gateway-tcp-0",
            "labels": {"tombolo.io/managed-by": "mirror.tombolo.io", "tombolo.io/import": "gateway"},
            "annotations": {"tombolo.io/gateway-ports": annotation.to_string()},
        },
        "spec": {"type": "LoadBalancer", "ports": [{"name": "tcp-20001", "port": 20_001}, {"name": "tcp-20002", "port": 20_002}]},
        "status": {"loadBalancer": {"ingress": [{"ip": "198.51.100.20"}]}},
    });
    west.object("east", &object);
    west.settle();
    assert_eq!(west.endpoints("analytics-east"), ["east 198.51.100.20 http=20002"]);
}

#[test]
fn a_federated_service_unites_flat_members_with_the_gateways_of_the_others() {
    let member = json!({"labels": {"mirror.linkerd.io/federated": "member"}});
    let mut west = Scene::linked(&["east", "north"]);
    west.link("north", |link| (link.is_flat, link.created) = (false, 101));
    for (origin, address) in [("", "10.100.0.1"), ("east", "10.108.0.1"), ("north", "10.116.0.1")] {
        west.service(origin, "frontend", member.clone(), http());
        west.slice(origin, "frontend", &[address, &format!("{address}0")], ("http", 8080));
        if origin.is_empty() {
            continue;
        }
        west.gateway(origin, SERVICE, "198.51.100.20", &[("frontend", 8080, 20_001)]);
    }
    west.settle();
    assert_eq!(
        west.endpoints("frontend-federated"),
        [
            "east 10.108.0.1 http=8080",
            "east 10.108.0.10 http=8080",
            "north 198.51.100.20 http=20001",
            "west 10.100.0.1 http=8080",
            "west 10.100.0.10 http=8080",
        ]
    );
    let gateway = west.objects.values().find(|it| it["metadata"]["labels"]["tombolo.io/path"] == "gateway").unwrap();
    assert_eq!(gateway["metadata"]["annotations"]["tombolo.io/weight"], json!("2"));
    assert_eq!(gateway["metadata"]["labels"]["kubernetes.io/service-name"], json!("frontend-federated"));
}

#[test]
fn ports_that_are_at_two_services_of_the_gateway_lead_by_the_addresses_of_each() {
    let mut west = importer(&["east"]);
    let ports = json!([{"name": "http", "port": 80}, {"name": "dns", "port": 53, "protocol": "UDP"}, {"name": "more", "port": 81}]);
    west.service("east", "api", exported(), ports);
    west.slice("east", "api", &["10.108.0.1"], ("http", 8080));
    west.gateway("east", "gw/tcp-0", "198.51.100.20", &[("api", 80, 20_001)]);
    west.gateway("east", "gw/tcp-1", "198.51.100.21", &[("api", 81, 20_002)]);
    west.settle();
    assert_eq!(west.endpoints("api-east"), ["east 198.51.100.20 http=20001", "east 198.51.100.21 more=20002"]);
}

#[test]
fn a_gateway_is_let_in_from_its_ranges_only() {
    let mut west = importer(&["east"]);
    west.link("east", |link| {
        link.is_flat = false;
        link.gateway_ranges = vec!["198.51.100.0/24".parse().unwrap()];
    });
    west.service("east", "api", exported(), http());
    west.slice("east", "api", &["10.108.0.1"], ("http", 8080));
    for (address, refusal) in [
        ("203.0.113.1", Refusal::OutsideGatewayRanges),
        ("127.0.0.1", Refusal::Loopback),
        ("169.254.169.254", Refusal::LinkLocal),
        ("10.108.0.1", Refusal::OutsideGatewayRanges),
    ] {
        west.gateway("east", SERVICE, address, &[("api", 8080, 20_001)]);
        west.settle();
        assert_eq!(west.endpoints("api-east"), [""; 0], "{address}");
        let refused = west.desired(ImportKind::Named, "api-east").refused;
        assert_eq!(refused, [((LinkName("east".to_owned()), refusal), 1)].into(), "{address}");
    }
    west.gateway("east", SERVICE, "198.51.100.20", &[("api", 8080, 20_001)]);
    west.settle();
    assert_eq!(west.endpoints("api-east"), ["east 198.51.100.20 http=20001"]);
}

#[test]
fn a_peer_that_is_lost_is_probed_the_way_it_is_reached() {
    let mut west = importer(&["east"]);
    west.service("east", "api", exported(), http());
    west.slice("east", "api", &["10.108.0.1"], ("http", 8080));
    west.gateway("east", SERVICE, "198.51.100.20", &[("api", 8080, 20_001)]);
    let target = |path: Path| west.world.target(&LinkName("east".to_owned()), &name("api"), path);
    assert_eq!(target(Path::Gateway), Some("198.51.100.20:20001".parse().unwrap()));
    assert_eq!(target(Path::Pod), Some("10.108.0.1:8080".parse().unwrap()));
}

/// East, with a gateway.
fn exporter(exposure: Exposure) -> Scene {
    let mut scene = Scene::of("east");
    scene.world.apply(Change::Namespace("tombolo-system".to_owned(), true));
    scene.world.set_gateway(Some(config(exposure)));
    scene
}

/// West, whose links lead to gateways only.
fn importer(links: &[&str]) -> Scene {
    let mut scene = Scene::linked(links);
    for name in links {
        scene
            .link(name, |it| *it = super::super::source::Link { is_flat: false, cluster: cluster(name), ..link(name) });
    }
    scene
}

fn config(exposure: Exposure) -> Config {
    Config {
        namespace: "tombolo-system".to_owned(),
        exposure,
        annotations: BTreeMap::new(),
        addresses: BTreeSet::new(),
    }
}

fn exported() -> Value {
    json!({"labels": {"mirror.linkerd.io/exported": "true"}})
}

fn http() -> Value {
    json!([{"name": "http", "port": 8080}])
}

fn nodes(scene: &mut Scene, ready: &[&str]) {
    let ready_nodes = ready.iter().map(|address| address.parse().unwrap()).collect();
    scene.world.apply(Change::Addresses(OwnAddresses { ready_nodes, ..OwnAddresses::default() }));
    scene.settle();
}

fn published_at(scene: &Scene) -> Value {
    scene.get(Kind::Service, SERVICE)["metadata"]["annotations"]["tombolo.io/gateway-addresses"].clone()
}

fn known<'a>(scene: &'a Scene, gateway: &str) -> &'a Gateway {
    scene.world.own.cluster.services[&name(gateway)].gateway.as_deref().unwrap()
}

/// The services that a gateway's Service leads to.
fn led(scene: &Scene, gateway: &str) -> Vec<String> {
    let mut led: Vec<_> = known(scene, gateway).claims.values().map(|claim| claim.target.service.to_string()).collect();
    led.sort();
    led
}

fn port_of(scene: &Scene, gateway: &str, service: &str, port: u16) -> u16 {
    let target = ExportedPort { service: name(service), port, protocol: Transport::Tcp };
    let mut claims = known(scene, gateway).claims.iter();
    claims.find(|(_, claim)| claim.target == target && claim.released.is_none()).unwrap().0.number
}

fn slices_of<'a>(scene: &'a Scene, gateway: &str) -> Vec<&'a Value> {
    let slices = scene.objects.iter().filter(|((kind, _), object)| {
        *kind == Kind::Slice && object["metadata"]["labels"]["kubernetes.io/service-name"] == json!(name(gateway).name)
    });
    slices.map(|(_, object)| object).collect()
}

#[test]
fn host_names_are_bounded_for_each_peer_by_itself() {
    let mut scene = Scene::linked(&["east", "north"]);
    for (link, number) in (0..5).map(|number| ("east", number)).chain([("north", 9)]) {
        let host = |host| json!({"hostname": format!("{link}-{number}-{host}.example.com")});
        let ingress: Vec<Value> = (0..if link == "east" { 64 } else { 1 }).map(host).collect();
        let mut object = super::super::scene::service(
            &format!("gw/tcp-{number}"),
            json!({
                "labels": {"tombolo.io/managed-by": "mirror.tombolo.io", "tombolo.io/import": "gateway"},
                "annotations": {"tombolo.io/gateway-ports": "{}"},
            }),
            json!({"type": "LoadBalancer", "ports": [{"name": "tcp-1", "port": 1}]}),
        );
        object["status"] = json!({"loadBalancer": {"ingress": ingress}});
        scene.object(link, &object);
    }
    let hosts = scene.world.gateway_hosts();
    assert!(hosts.len() == 257 && hosts.iter().any(|(_, host)| *host == "north-9-0.example.com"), "{}", hosts.len());
}
