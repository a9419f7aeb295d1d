//! Tests: what the loop does with news, over connections on which nothing comes by itself.

use super::*;
use crate::mirror::{links, source::ServiceExport};

#[tokio::test]
async fn a_peer_that_had_too_much_and_has_less_again_is_listed_anew() {
    let mut controller = controller();
    let (east, now) = (LinkName("east".to_owned()), Instant::now());
    for number in 0..=OBJECTS {
        tell(&mut controller, change(number, true), now);
    }
    let listed: BTreeSet<ObjectName> = (0..=OBJECTS).map(object).collect();
    for (watched, names) in
        [(Watched::Services, BTreeSet::new()), (Watched::Slices, BTreeSet::new()), (Watched::Exports, listed)]
    {
        controller.heard(&Origin::Link(east.clone()), Some(watched), News::Listed(names), now);
    }
    let has_overflowed = |controller: &Controller| controller.peers[&east].overflow.is_some();
    let is_listed = |controller: &Controller| controller.peers[&east].has_listed();
    assert_eq!(controller.world.object_count(&Origin::Link(east.clone())), OBJECTS);
    for number in 0..OBJECTS / 10 {
        controller.judge(now);
        assert!(has_overflowed(&controller) && is_listed(&controller), "{number} fewer are few");
        tell(&mut controller, change(number, false), now);
    }
    tell(&mut controller, change(OBJECTS / 10, false), now);
    controller.judge(now);
    assert!(!has_overflowed(&controller) && !is_listed(&controller), "it is listed anew");
    // The one that was left out is heard now.
    tell(&mut controller, change(OBJECTS, true), now);
    controller.judge(now);
    assert!(!has_overflowed(&controller) && controller.world.knows(&change(OBJECTS, true)));
}

#[tokio::test]
async fn a_peer_that_lists_all_but_its_serviceexports_is_waited_for_with_those_only() {
    let mut controller = controller();
    let (east, now) = (LinkName("east".to_owned()), Instant::now());
    let waits = |controller: &Controller, kind| controller.world.unheard(kind).next().is_some();
    for watched in [Watched::Services, Watched::Slices] {
        assert!(waits(&controller, ImportKind::Named) && waits(&controller, ImportKind::Joined), "{watched:?}");
        controller.heard(&Origin::Link(east.clone()), Some(watched), News::Listed(BTreeSet::new()), now);
    }
    assert!(!waits(&controller, ImportKind::Named) && !waits(&controller, ImportKind::Joined));
    assert!(waits(&controller, ImportKind::ServiceImport));
    controller.heard(&Origin::Link(east), Some(Watched::Exports), News::Absent, now);
    assert!(!waits(&controller, ImportKind::ServiceImport));
}

/// Of west, linked with east.
fn controller() -> Controller {
    let (told, _) = mpsc::unbounded_channel();
    let mut controller = Controller::new(ClusterName("west".to_owned()), silent(), told);
    let name = LinkName("east".to_owned());
    let link = links::plain(ClusterName("east".to_owned()), 100);
    controller.add(PeerConfig { name, link, client: silent() }, Terms::default());
    controller
}

fn silent() -> Client {
    let service = tower::service_fn(|_: http::Request<kube::client::Body>| {
        std::future::pending::<Result<http::Response<kube::client::Body>, kube::Error>>()
    });
    Client::new(service, "default")
}

/// As a watch of east's ServiceExports does.
fn tell(controller: &mut Controller, change: Change, now: Instant) {
    let origin = Origin::Link(LinkName("east".to_owned()));
    let news = News::Change(object(0), None, Box::new(change));
    controller.heard(&origin, Some(Watched::Exports), news, now);
}

fn change(number: usize, is_there: bool) -> Change {
    let origin = Origin::Link(LinkName("east".to_owned()));
    Change::Export(origin, object(number), is_there.then(ServiceExport::default))
}

fn object(number: usize) -> ObjectName {
    ObjectName { namespace: "shop".to_owned(), name: format!("service-{number}") }
}
