//! What one change costs a mirror that knows thousands of exports, in its pure middle alone: no API server and no writes.
//!
//! A peer may be at the edge of its quota, where each of its changes lets another export in or out, and a link may flap.

use crate::{NAMESPACE, peers::Batch};
use anyhow::{Context, ensure};
use nix::time::{ClockId, clock_gettime};
use serde_json::{Value, json};
use std::time::Duration;
use tombolo::{
    mirror::{
        lease::Standing,
        links,
        plan::{self, Kind, Step},
        read,
        source::{LinkName, Origin},
        world::{Change, World},
    },
    model::{ClusterName, ObjectName},
};

const NOW: &str = "2026-11-21T12:00:00Z";
const CHANGES: usize = 1_000;
const FLAPS: usize = 10;

/// What changes cost, in processor time of one thread.
pub(crate) fn measure(services: usize, endpoints: usize) -> anyhow::Result<Value> {
    let mut scene = Scene::new(services, endpoints)?;
    let (_, filled) = scene.timed(Scene::settle)?;
    let (_, again) = scene.timed(Scene::settle)?;
    ensure!(again < filled, "nothing is left to be written");

    let edit = |scene: &mut Scene| -> anyhow::Result<usize> {
        (0..CHANGES).try_fold(0, |looked, number| {
            let number = number % scene.batch.services;
            let slice = scene.slice(number, 100);
            Ok(looked + scene.take(slice)?)
        })
    };
    let (looked, slices) = scene.timed(edit)?;

    // An export in front of all others comes and goes, which pushes the last one that was let in out, and back in.
    scene.set_quota(services);
    scene.settle()?;
    let at_quota = |scene: &mut Scene| -> anyhow::Result<usize> {
        (0..CHANGES).try_fold(0, |looked, number| {
            let service = scene.service("aaa", number % 2 == 0)?;
            Ok(looked + scene.take(service)?)
        })
    };
    let (pushed, quota) = scene.timed(at_quota)?;
    ensure!(pushed >= 2 * CHANGES - 2, "each change concerns two imports: {pushed}");

    let flap = |scene: &mut Scene| -> anyhow::Result<usize> {
        (0..FLAPS).try_fold(0, |looked, number| {
            let standing = if number % 2 == 0 { Standing::Lost { silent: false } } else { Standing::Fresh };
            Ok(looked + scene.take(Change::Standing(scene.link.clone(), standing))?)
        })
    };
    let (flapped, flaps) = scene.timed(flap)?;
    let each = |time: Duration, count: usize| -> anyhow::Result<f64> {
        Ok((time / u32::try_from(count)?).as_secs_f64() * 1e6)
    };
    Ok(json!({
        "services": services, "filled_cpu_ms": filled.as_secs_f64() * 1e3,
        "slice_change_cpu_us": each(slices, CHANGES)?, "slice_changes_looked_at": looked,
        "change_at_quota_cpu_us": each(quota, CHANGES)?, "changes_at_quota_looked_at": pushed,
        "flap_cpu_ms": each(flaps, FLAPS)? / 1e3, "flaps_looked_at": flapped,
    }))
}

/// A mirror of west, linked with east, whose API server takes whatever is written.
struct Scene {
    world: World,
    link: LinkName,
    batch: Batch,
}

impl Scene {
    fn new(services: usize, endpoints: usize) -> anyhow::Result<Self> {
        let batch = Batch {
            stem: "shop",
            services,
            endpoints,
            labels: json!({"mirror.linkerd.io/federated": "member"}),
            octet: 100,
        };
        let link = LinkName("east".to_owned());
        let mut scene = Self { world: World::new(ClusterName("west".to_owned())), link, batch };
        scene.world.apply(Change::Namespace(NAMESPACE.to_owned(), true));
        scene.set_quota(services);
        for number in 0..services {
            let (service, slice) = (scene.service(&format!("shop-{number}"), true)?, scene.slice(number, 0));
            scene.world.apply(service);
            scene.world.apply(slice);
        }
        scene.world.apply(Change::Listed(scene.link.clone()));
        Ok(scene)
    }

    fn set_quota(&mut self, exports: usize) {
        let mut link = links::plain(ClusterName("east".to_owned()), 1);
        link.quota.exports = exports;
        self.world.apply(Change::Link(self.link.clone(), Some(Box::new(link))));
    }

    /// That a Service of the peer is exported, or no longer.
    fn service(&self, name: &str, is_exported: bool) -> anyhow::Result<Change> {
        let labels = if is_exported { self.batch.labels.clone() } else { json!({}) };
        let service = json!({
            "metadata": {"name": name, "namespace": NAMESPACE, "labels": labels},
            "spec": {"ports": [{"name": "http", "port": 80}], "selector": {"app": name}},
        });
        let service = read::service(serde_json::from_value(service)?);
        Ok(Change::Service(Origin::Link(self.link.clone()), object(name), Some(Box::new(service))))
    }

    /// A slice of the peer, whose first endpoint is the one of this place.
    fn slice(&self, number: usize, first: usize) -> Change {
        let first = crate::peers::address(crate::changes::NEW, number + first);
        let slice = json!({
            "metadata": {"name": format!("shop-{number}-1"), "namespace": NAMESPACE, "labels": {
                "kubernetes.io/service-name": format!("shop-{number}"),
                "endpointslice.kubernetes.io/managed-by": "endpointslice-controller.k8s.io",
            }},
            "addressType": "IPv4", "endpoints": self.batch.endpoints_of(number, Some(first)),
            "ports": [{"name": "http", "port": 8080, "protocol": "TCP"}],
        });
        let slice = read::slice(serde_json::from_value(slice).expect("it is one"));
        Change::Slice(Origin::Link(self.link.clone()), object(&format!("shop-{number}-1")), slice)
    }

    /// Takes a change in, and has done what follows from it; how many imports were looked at.
    fn take(&mut self, change: Change) -> anyhow::Result<usize> {
        self.world.apply(change);
        self.settle()
    }

    /// Has everything written that should be; how many imports were looked at.
    fn settle(&mut self) -> anyhow::Result<usize> {
        let mut looked = 0;
        loop {
            let dirty = self.world.take_dirty();
            let mut written = 0;
            for key in &dirty {
                let (_, steps) = plan::steps(&self.world, key, NOW);
                written += steps.len();
                for step in steps {
                    self.write(step)?;
                }
            }
            looked += dirty.len();
            if written == 0 {
                return Ok(looked);
            }
        }
    }

    fn write(&mut self, step: Step) -> anyhow::Result<()> {
        let change = match step {
            Step::Put(Kind::Service, name, body) => {
                Change::Service(Origin::Own, name, Some(Box::new(read::service(serde_json::from_value(body)?))))
            }
            Step::Put(Kind::Slice, name, body) => {
                Change::Slice(Origin::Own, name, read::slice(serde_json::from_value(body)?))
            }
            Step::Delete(Kind::Service, name, _) => Change::Service(Origin::Own, name, None),
            Step::Delete(Kind::Slice, name, _) => Change::Slice(Origin::Own, name, None),
            other => anyhow::bail!("{other:?} is not what these exports ask for"),
        };
        self.world.apply(change);
        Ok(())
    }

    fn timed<T>(&mut self, work: impl FnOnce(&mut Self) -> anyhow::Result<T>) -> anyhow::Result<(T, Duration)> {
        let now = || clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID).map(Duration::from).context("processor time");
        let before = now()?;
        let done = work(self)?;
        Ok((done, now()?.saturating_sub(before)))
    }
}

fn object(name: &str) -> ObjectName {
    ObjectName { namespace: NAMESPACE.to_owned(), name: name.to_owned() }
}
