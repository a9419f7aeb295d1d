//! What peers have, and whether it has come over.

use crate::{NAMESPACE, programs::PATIENCE};
use anyhow::ensure;
use futures_util::{StreamExt, TryStreamExt, stream};
use k8s_openapi::api::{core::v1::Service, discovery::v1::EndpointSlice};
use kube::{
    Api, Client, ResourceExt,
    api::{ListParams, PostParams},
};
use serde_json::{Value, json};
use std::{collections::BTreeMap, net::Ipv4Addr, time::Duration};
use tokio::time::{Instant, sleep};

/// Services that are alike: `<stem>-0` and so on, each with one slice.
#[derive(Clone, Debug)]
pub(crate) struct Batch {
    pub(crate) stem: &'static str,
    pub(crate) services: usize,
    /// Endpoints of each.
    pub(crate) endpoints: usize,
    /// Their labels.
    pub(crate) labels: Value,
    /// Their endpoints are from 10.`octet`.0.1 on.
    pub(crate) octet: u8,
}

impl Batch {
    /// Makes them, with so many requests on their way at once.
    pub(crate) async fn fill(&self, client: &Client, at_once: usize) -> anyhow::Result<()> {
        let services: Api<Service> = Api::namespaced(client.clone(), NAMESPACE);
        let slices: Api<EndpointSlice> = Api::namespaced(client.clone(), NAMESPACE);
        let make = async |number: usize| -> anyhow::Result<()> {
            let name = format!("{}-{number}", self.stem);
            let service = json!({
                "metadata": {"name": name, "labels": self.labels},
                "spec": {"ports": [{"name": "http", "port": 80}], "selector": {"app": name}},
            });
            services.create(&PostParams::default(), &serde_json::from_value(service)?).await?;
            let slice = json!({
                "metadata": {"name": format!("{name}-1"), "labels": {
                    "kubernetes.io/service-name": name,
                    "endpointslice.kubernetes.io/managed-by": "endpointslice-controller.k8s.io",
                }},
                "addressType": "IPv4",
                "endpoints": self.endpoints_of(number, None),
                "ports": [{"name": "http", "port": 8080, "protocol": "TCP"}],
            });
            slices.create(&PostParams::default(), &serde_json::from_value(slice)?).await?;
            Ok(())
        };
        stream::iter(0..self.services).map(make).buffer_unordered(at_once).try_collect::<Vec<()>>().await?;
        Ok(())
    }

    /// The endpoints of a Service as a cluster's own controller writes them, with another address for the first one if
    /// one is given.
    pub(crate) fn endpoints_of(&self, number: usize, first: Option<Ipv4Addr>) -> Value {
        let endpoint = |place: usize| {
            let index = number * self.endpoints + place;
            let address = first.filter(|_| place == 0).unwrap_or_else(|| address(self.octet, index));
            json!({
                "addresses": [address.to_string()],
                "conditions": {"ready": true, "serving": true, "terminating": false},
                "nodeName": format!("node-{}", index % 100),
                "zone": format!("zone-{}", index % 3),
                "targetRef": {"kind": "Pod", "namespace": NAMESPACE, "name": format!("{}-{number}-{place}", self.stem),
                    "uid": format!("{index:08x}-0000-4000-8000-000000000000")},
            })
        };
        (0..self.endpoints).map(endpoint).collect()
    }

    /// Waits until all of them are there with so many endpoints each; how long that was since `began`.
    pub(crate) async fn until_mirrored(
        &self,
        own: &Client,
        suffix: &str,
        endpoints: usize,
        began: Instant,
    ) -> anyhow::Result<Duration> {
        let services: Api<Service> = Api::namespaced(own.clone(), NAMESPACE);
        let slices: Api<EndpointSlice> = Api::namespaced(own.clone(), NAMESPACE);
        let (stem, count) = (self.stem, self.services);
        // A large list costs those that are measured their processor: it is looked at less often.
        let pause = Duration::from_millis(20).max(Duration::from_micros(50) * u32::try_from(count * endpoints)?);
        loop {
            let is_its = |name: &str| name.starts_with(&format!("{stem}-")) && name.ends_with(suffix);
            let found = slices.list(&ListParams::default()).await?;
            let elapsed = began.elapsed();
            let mut by_service: BTreeMap<String, usize> = BTreeMap::new();
            for slice in found {
                let owner = slice.labels().get("kubernetes.io/service-name").cloned().unwrap_or_default();
                if is_its(&owner) {
                    *by_service.entry(owner).or_default() += slice.endpoints.len();
                }
            }
            let whole = by_service.values().filter(|found| **found == endpoints).count();
            if whole == count {
                let found = services.list(&ListParams::default()).await?;
                let there = found.iter().filter(|service| is_its(&service.name_any())).count();
                ensure!(there == count, "{there} Services of {count}");
                return Ok(elapsed);
            }
            ensure!(elapsed < PATIENCE, "{whole} of {count} {stem}{suffix} after {elapsed:?}");
            sleep(pause).await;
        }
    }
}

/// An address of 10.`octet`.0.0 on, 40,000 for each number in its place.
pub(crate) fn address(octet: u8, index: usize) -> Ipv4Addr {
    let part = |number: usize| u8::try_from(number).expect("there are not that many addresses");
    Ipv4Addr::new(10, octet + part(index / 40_000), part(index / 200 % 200), part(index % 200 + 1))
}
