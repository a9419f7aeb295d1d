//! What programs tell, as user space reads it.

use crate::{
    scene::{Scene, now, only},
    sockets::tcp_connect,
};
use std::{io::ErrorKind, time::Duration};
use tombolo::datapath::Events;
use tombolo_ebpf::abi::{Event, event};

/// Waits for events until `enough` of them are there.
async fn wait_for(events: &mut Events, enough: usize) -> Vec<Event> {
    let mut told = Vec::new();
    while told.len() < enough {
        let next = tokio::time::timeout(Duration::from_secs(10), events.next()).await;
        told.extend(next.expect("events come in time").unwrap());
    }
    told
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap()
}

#[test]
fn who_waits_for_events_gets_each_once_and_in_order() {
    let Some(scene) = Scene::new(1, 0) else { return };
    let (pod, bad) = (scene.pod(), scene.local[0]);
    let refuse = || {
        let error = pod.run(|| tcp_connect(only(bad))).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::ConnectionRefused);
    };
    runtime().block_on(async {
        let mut events = scene.ground.kernel.events().unwrap();
        let before = now();
        // It waits first: what comes then wakes it.
        let waiting = async { wait_for(&mut events, 2).await };
        let acting = async {
            tokio::time::sleep(Duration::from_millis(50)).await;
            refuse();
        };
        let (told, ()) = tokio::join!(waiting, acting);
        let state = scene.state(bad);
        let kinds: Vec<u32> = told.iter().map(|event| event.kind).collect();
        assert_eq!(kinds, [event::REFUSED, event::EJECTED], "{told:?}");
        for event in &told {
            assert!((before..=now()).contains(&event.time), "{event:?}");
            assert_eq!((event.generation, event.cluster), (state.generation, 0));
            assert_eq!(event.netns, state.ejected_by);
        }
        assert_eq!(told[1].value, state.ejected_until);

        // What comes while nobody waits is there afterwards, and nothing twice.
        (0..3).for_each(|_| refuse());
        let mut more = wait_for(&mut events, 3).await;
        while let Ok(next) = tokio::time::timeout(Duration::from_millis(100), events.next()).await {
            more.extend(next.unwrap());
        }
        assert!(more.iter().all(|event| event.time > told[1].time), "{more:?}");
        assert!(more.is_sorted_by_key(|event| event.time), "{more:?}");
        let (refused, ejected): (Vec<&Event>, Vec<_>) = more.iter().partition(|event| event.kind == event::REFUSED);
        assert_eq!(refused.len(), 3, "{more:?}");
        // It is ejected again only on a machine so slow that its time had passed.
        let mut until = told[1].value;
        for event in ejected {
            assert!(event.kind == event::EJECTED && event.time >= until, "{more:?}");
            until = event.value;
        }
    });
}

#[test]
fn a_reader_goes_on_where_the_one_before_stopped_even_after_more_than_the_ring_holds() {
    let Some(scene) = Scene::new(1, 0) else { return };
    let (pod, bad) = (scene.pod(), scene.local[0]);
    let refuse = |times: usize| pod.run(|| (0..times).for_each(|_| drop(tcp_connect(only(bad)).unwrap_err())));
    refuse(2);
    let first = runtime().block_on(async { wait_for(&mut scene.ground.kernel.events().unwrap(), 2).await });
    // Far more than there is room for.
    refuse(6_000);
    let counts = scene.ground.kernel.maps.counts().unwrap();
    assert!(counts["event_lost"] > 0, "{counts:?}");
    runtime().block_on(async {
        let mut events = scene.ground.kernel.events().unwrap();
        let told = wait_for(&mut events, 4_000).await;
        assert!(told.iter().all(|event| event.time > first[0].time), "what was read is gone");
        assert!(told.is_sorted_by_key(|event| event.time));
        // There is room again.
        while tokio::time::timeout(Duration::from_millis(100), events.next()).await.is_ok() {}
        let after = now();
        refuse(1);
        let told = wait_for(&mut events, 1).await;
        assert!(told[0].time > after, "{told:?}");
    });
}
