//! Two clusters that import from each other: an API server and a mirror each.

use super::{followed::PATIENCE, objects::NAMESPACE, server::Server};
use anyhow::{Context, ensure};
use k8s_openapi::api::{
    core::v1::{Namespace, Service},
    discovery::v1::EndpointSlice,
};
use kube::{
    Api, Client,
    api::{ApiResource, DeleteParams, DynamicObject, ListParams, PostParams},
};
use serde_json::{Value, json};
use std::{future::Future, time::Duration};
use tokio::{
    sync::watch,
    task::JoinHandle,
    time::{Instant, sleep},
};
use tombolo::{
    mirror::{
        controller::{self, PeerConfig, Setup},
        crds,
        lease::Terms,
        links::{self, follow::Shown},
        serve::View,
        source::LinkName,
    },
    model::ClusterName,
    sources::kubernetes::connect,
};

/// One of the two.
pub(crate) struct Side {
    pub(crate) server: Server,
    pub(crate) admin: Client,
    name: &'static str,
    mirror: Option<JoinHandle<anyhow::Result<()>>>,
}

/// Both, with the namespace, and no mirror that runs yet.
pub(crate) struct Pair {
    pub(crate) west: Side,
    pub(crate) east: Side,
}

impl Pair {
    /// Starts the API servers; none, which is said, if their programs aren't there.
    pub(crate) async fn start() -> anyhow::Result<Option<Self>> {
        let (Some(west), Some(east)) = (Server::start().await?, Server::start().await?) else { return Ok(None) };
        Ok(Some(Self { west: Side::new(west, "west").await?, east: Side::new(east, "east").await? }))
    }

    /// Starts both mirrors.
    pub(crate) async fn mirror(&mut self) -> anyhow::Result<()> {
        self.west.mirror(&self.east, Terms::default()).await?;
        self.east.mirror(&self.west, Terms::default()).await
    }
}

/// Runs a mirror that knows of no Link objects.
pub(crate) fn spawn(setup: Setup) -> JoinHandle<anyhow::Result<()>> {
    tokio::spawn(async {
        let (shown, links) = watch::channel(None);
        let (view, _) = watch::channel(View::default());
        shown.send_replace(Some(Shown::default()));
        controller::run(setup, links, view).await
    })
}

impl Side {
    async fn new(server: Server, name: &'static str) -> anyhow::Result<Self> {
        let admin = server.client(0, "admin").await?;
        let side = Self { server, admin, name, mirror: None };
        side.namespace(NAMESPACE).await?;
        Ok(side)
    }

    /// Starts the mirror that brings in what `peer` exports.
    pub(crate) async fn mirror(&mut self, peer: &Self, terms: Terms) -> anyhow::Result<()> {
        let config = PeerConfig {
            name: LinkName(peer.name.to_owned()),
            link: links::plain(ClusterName(peer.name.to_owned()), 0),
            client: connect(Some(&peer.server.kubeconfig(0, "admin")?)).await?,
        };
        let own = connect(Some(&self.server.kubeconfig(0, "admin")?)).await?;
        let cluster = ClusterName(self.name.to_owned());
        self.mirror = Some(spawn(Setup { cluster, own, peers: vec![config], gateway: None, terms }));
        Ok(())
    }

    /// Kills the mirror, which finishes nothing.
    pub(crate) async fn stop_mirror(&mut self) -> anyhow::Result<()> {
        let mirror = self.mirror.take().context("it runs")?;
        ensure!(!mirror.is_finished(), "the mirror of {} ended by itself", self.name);
        mirror.abort();
        ensure!(mirror.await.is_err_and(|error| error.is_cancelled()), "it was told to stop");
        Ok(())
    }

    /// Installs the CRDs; what was done about each.
    pub(crate) async fn install_crds(&self) -> anyhow::Result<Vec<crds::Verdict>> {
        let mut verdicts = Vec::new();
        for crd in crds::ours()? {
            verdicts.push(crds::install(&self.admin, &crd).await?);
        }
        Ok(verdicts)
    }

    pub(crate) async fn namespace(&self, name: &str) -> anyhow::Result<()> {
        let namespace: Namespace = serde_json::from_value(json!({"metadata": {"name": name}}))?;
        Api::all(self.admin.clone()).create(&PostParams::default(), &namespace).await?;
        Ok(())
    }

    /// Exports a Service; `spec` has exported labels and annotations.
    pub(crate) async fn export(&self, name: &str, spec: Value) -> anyhow::Result<()> {
        let export = json!({
            "apiVersion": "multicluster.x-k8s.io/v1beta1", "kind": "ServiceExport", "metadata": {"name": name}, "spec": spec,
        });
        self.mcs("ServiceExport").create(&PostParams::default(), &serde_json::from_value(export)?).await?;
        Ok(())
    }

    pub(crate) async fn unexport(&self, name: &str) -> anyhow::Result<()> {
        self.mcs("ServiceExport").delete(name, &DeleteParams::default()).await?;
        Ok(())
    }

    /// The kind of the MCS API, in v1beta1.
    pub(crate) fn mcs(&self, kind: &str) -> Api<DynamicObject> {
        self.mcs_in("v1beta1", kind)
    }

    /// The same, in any version.
    pub(crate) fn mcs_in(&self, version: &str, kind: &str) -> Api<DynamicObject> {
        let plural = format!("{}s", kind.to_lowercase());
        let resource: ApiResource = super::objects::kind("multicluster.x-k8s.io", version, kind, &plural);
        Api::namespaced_with(self.admin.clone(), NAMESPACE, &resource)
    }

    /// Status and reason of a condition, empty if there is none.
    pub(crate) async fn condition(&self, kind: &str, name: &str, condition: &str) -> anyhow::Result<[String; 2]> {
        let Some(object) = self.mcs(kind).get_opt(name).await? else { return Ok(Default::default()) };
        let conditions = object.data["status"]["conditions"].as_array().cloned().unwrap_or_default();
        let found = conditions.into_iter().find(|it| it["type"] == condition).unwrap_or_default();
        Ok(["status", "reason"].map(|field| found[field].as_str().unwrap_or_default().to_owned()))
    }

    pub(crate) async fn service(&self, name: &str) -> anyhow::Result<Option<Service>> {
        Ok(Api::namespaced(self.admin.clone(), NAMESPACE).get_opt(name).await?)
    }

    /// The slices that a mirror wrote, by the name of what they are of.
    pub(crate) async fn slices(&self, import: &str) -> anyhow::Result<Vec<EndpointSlice>> {
        let ours = format!(
            "endpointslice.kubernetes.io/managed-by=mirror.tombolo.io,multicluster.kubernetes.io/service-name={import}"
        );
        let api: Api<EndpointSlice> = Api::namespaced(self.admin.clone(), NAMESPACE);
        Ok(api.list(&ListParams::default().labels(&ours)).await?.items)
    }

    /// What these slices hold, as `cluster address:port`, and ` unready` if it isn't.
    pub(crate) async fn endpoints(&self, import: &str) -> anyhow::Result<Vec<String>> {
        let mut found = Vec::new();
        for slice in self.slices(import).await? {
            let labels = slice.metadata.labels.unwrap_or_default();
            let cluster = &labels["multicluster.kubernetes.io/source-cluster"];
            let ports: Vec<i32> = slice.ports.iter().flatten().filter_map(|port| port.port).collect();
            for endpoint in slice.endpoints {
                let ready = endpoint.conditions.and_then(|conditions| conditions.ready).unwrap_or(true);
                let mark = if ready { "" } else { " unready" };
                found.extend(ports.iter().map(|port| format!("{cluster} {}:{port}{mark}", endpoint.addresses[0])));
            }
        }
        found.sort();
        Ok(found)
    }
}

impl Drop for Side {
    fn drop(&mut self) {
        if let Some(mirror) = &self.mirror {
            mirror.abort();
        }
    }
}

/// Waits until this is what is found.
pub(crate) async fn eventually<T, F>(what: &str, expected: T, mut look: impl FnMut() -> F) -> anyhow::Result<()>
where
    T: PartialEq + std::fmt::Debug,
    F: Future<Output = anyhow::Result<T>>,
{
    let deadline = Instant::now() + PATIENCE;
    loop {
        let found = look().await?;
        if found == expected {
            return Ok(());
        }
        ensure!(Instant::now() < deadline, "{what}: it is {found:?}, and should be {expected:?}");
        sleep(Duration::from_millis(50)).await;
    }
}
