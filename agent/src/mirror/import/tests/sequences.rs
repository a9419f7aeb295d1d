//! Tests: whatever the way there, what should be is as if all had been known at once, and that is what is written.

use super::*;
use crate::mirror::{
    lease::Standing,
    slices::Placed,
    world::{ImportKey, World},
};
use proptest::prelude::*;
use std::collections::BTreeMap;

const CLUSTERS: [&str; 4] = ["", "east", "east-gw", "north"];
const SERVICES: [&str; 3] = ["a", "b", "later/a"];

/// Something that a watch tells; most of it more than once in a run.
#[derive(Clone, Debug)]
enum Event {
    Service(usize, usize, usize),
    NoService(usize, usize),
    Slice(usize, usize, u8),
    NoSlice(usize, usize),
    Export(usize, usize, i64),
    NoExport(usize, usize),
    Namespace(bool),
    Standing(usize, Standing),
    Link(usize, bool),
    /// A gateway at one of these addresses, if any, that leads to all services.
    Gateway(usize, u8),
    /// The mirror writes all that is to be written.
    Settle,
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn the_way_there_does_not_matter(events in proptest::collection::vec(event(), 1..60)) {
        let mut scene = start();
        for event in &events {
            play(&mut scene, event);
        }
        scene.settle();

        // What every object came to, told once, in another order, to a mirror that knows nothing.
        let mut fresh = start();
        let mut last: BTreeMap<String, &Event> = BTreeMap::new();
        for event in &events {
            if !matches!(event, Event::Settle) {
                last.insert(subject(event), event);
            }
        }
        for event in last.values().rev() {
            play(&mut fresh, event);
        }
        // A link that went took its objects along, which the watch of a new one would list again.
        relist(&mut fresh, &scene.world);
        fresh.settle();
        prop_assert_eq!(scene.all_desired(), fresh.all_desired());
        prop_assert_eq!(contents(&scene), contents(&fresh));
        prop_assert_eq!(services(&scene), services(&fresh));

        // And nothing is left to do, however often one looks.
        scene.written.clear();
        let keys: Vec<ImportKey> = scene.world.imports().cloned().collect();
        keys.into_iter().for_each(|key| scene.world.touch(key));
        scene.settle();
        prop_assert_eq!(&scene.written, &[]);
    }
}

fn start() -> Scene {
    let mut scene = Scene::linked(&CLUSTERS[1..]);
    scene.link("east-gw", |link| {
        link.cluster = cluster("east");
        link.created = 101;
    });
    scene
}

fn play(scene: &mut Scene, event: &Event) {
    let marks = [
        member(),
        flat(),
        json!({"annotations": {"service.cilium.io/global": "true"}}),
        json!({"labels": {"istio.io/global": "true", "mirror.linkerd.io/federated": "member"}}),
        json!({}),
    ];
    match event {
        Event::Service(cluster, service, mark) => {
            let ports = json!([{"name": "http", "port": 80 + mark / 3}]);
            scene.service(CLUSTERS[*cluster], SERVICES[*service], marks[*mark].clone(), ports);
        }
        Event::NoService(cluster, service) => scene.no_service(CLUSTERS[*cluster], SERVICES[*service]),
        Event::Slice(cluster, service, addresses) => {
            // Both links to east lead to the same pods.
            let octet = [100, 108, 108, 116][*cluster];
            let addresses: Vec<String> = (0..*addresses).map(|host| format!("10.{octet}.{service}.{host}")).collect();
            let addresses: Vec<&str> = addresses.iter().map(String::as_str).collect();
            scene.slice(CLUSTERS[*cluster], SERVICES[*service], &addresses, ("http", 8080));
        }
        Event::NoSlice(cluster, service) => scene.no_slice(CLUSTERS[*cluster], SERVICES[*service]),
        Event::Export(cluster, service, created) => {
            scene.export(CLUSTERS[*cluster], SERVICES[*service], *created, json!({}));
        }
        Event::NoExport(cluster, service) => scene.no_export(CLUSTERS[*cluster], SERVICES[*service]),
        Event::Namespace(true) => scene.world.apply(Change::Namespace("later".to_owned(), true)),
        Event::Namespace(false) => scene.no_namespace("later"),
        Event::Standing(link, standing) => {
            scene.world.apply(Change::Standing(LinkName(CLUSTERS[*link].to_owned()), *standing));
        }
        Event::Link(link, is_flat) => {
            let created = 99 + i64::try_from(*link).unwrap();
            scene.link(CLUSTERS[*link], |it| {
                it.created = created;
                it.is_flat = *is_flat;
                // One of them has its gateway to fall back on.
                it.gateway_ranges = if *link == 3 { vec!["198.51.0.0/16".parse().unwrap()] } else { Vec::new() };
                it.cluster = cluster(if *link == 2 { "east" } else { CLUSTERS[*link] });
            });
        }
        Event::Gateway(cluster, 0) => scene.no_service(CLUSTERS[*cluster], "gw/tcp-0"),
        Event::Gateway(cluster, host) => {
            let ports = [("a", 80, 20_000), ("a", 81, 20_001), ("b", 80, 20_002), ("later/a", 80, 20_003)];
            // The same one over both links to east.
            let octet = [0, 20, 20, 30][*cluster];
            scene.gateway(CLUSTERS[*cluster], "gw/tcp-0", &format!("198.51.{octet}.{host}"), &ports);
        }
        Event::Settle => scene.settle(),
    }
}

/// What an event is about: the last one of each is how it is.
fn subject(event: &Event) -> String {
    match event {
        Event::Service(cluster, service, _) | Event::NoService(cluster, service) => format!("s{cluster}{service}"),
        Event::Slice(cluster, service, _) | Event::NoSlice(cluster, service) => format!("e{cluster}{service}"),
        Event::Export(cluster, service, _) | Event::NoExport(cluster, service) => format!("x{cluster}{service}"),
        Event::Namespace(_) => "n".to_owned(),
        Event::Standing(link, _) => format!("t{link}"),
        Event::Link(link, _) => format!("l{link}"),
        Event::Gateway(link, _) => format!("g{link}"),
        Event::Settle => String::new(),
    }
}

/// Links never go here, so there is nothing to list again; that they are listed is the same in both.
fn relist(fresh: &mut Scene, world: &World) {
    for link in world.peers.keys() {
        fresh.world.apply(Change::Listed(link.clone()));
    }
}

/// What slices hold, however it is packed.
fn contents(scene: &Scene) -> BTreeMap<&ImportKey, Vec<String>> {
    let line = |placed: &Placed| {
        let of = format!("{:?} {:?} {:?}", placed.content, placed.marks, placed.owner);
        placed.endpoints.iter().map(|endpoint| format!("{of} {endpoint:?}")).collect::<Vec<_>>()
    };
    let all = scene.world.own.placed.iter();
    all.map(|(key, slices)| {
        let mut lines: Vec<String> = slices.values().flat_map(line).collect();
        lines.sort();
        (key, lines)
    })
    .collect()
}

fn services(scene: &Scene) -> Vec<String> {
    let mut lines: Vec<String> = scene
        .objects
        .iter()
        .filter(|((kind, _), _)| matches!(kind, Kind::Service | Kind::Import))
        .map(|((kind, name), object)| {
            let labels = &object["metadata"]["labels"];
            format!("{kind:?} {name} {labels} {}", object["spec"]["ports"])
        })
        .collect();
    lines.sort();
    lines
}

fn event() -> impl Strategy<Value = Event> {
    let (cluster, service, link) = (0..CLUSTERS.len(), 0..SERVICES.len(), 1..CLUSTERS.len());
    let at = (cluster, service);
    prop_oneof![
        4 => (at.clone(), 0..5_usize).prop_map(|((cluster, service), mark)| Event::Service(cluster, service, mark)),
        1 => at.clone().prop_map(|(cluster, service)| Event::NoService(cluster, service)),
        3 => (at.clone(), 1..4_u8).prop_map(|((cluster, service), count)| Event::Slice(cluster, service, count)),
        1 => at.clone().prop_map(|(cluster, service)| Event::NoSlice(cluster, service)),
        2 => (at.clone(), 1..4_i64).prop_map(|((cluster, service), created)| Event::Export(cluster, service, created)),
        1 => at.prop_map(|(cluster, service)| Event::NoExport(cluster, service)),
        1 => any::<bool>().prop_map(Event::Namespace),
        1 => (link.clone(), standing()).prop_map(|(link, standing)| Event::Standing(link, standing)),
        1 => (link.clone(), any::<bool>()).prop_map(|(link, is_flat)| Event::Link(link, is_flat)),
        2 => (link, 0..3_u8).prop_map(|(link, host)| Event::Gateway(link, host)),
        2 => Just(Event::Settle),
    ]
}

fn standing() -> impl Strategy<Value = Standing> {
    prop_oneof![
        Just(Standing::Fresh),
        any::<bool>().prop_map(|silent| Standing::Lost { silent }),
        Just(Standing::Stale),
        Just(Standing::Removed),
    ]
}
