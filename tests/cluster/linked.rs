//! A mirror of one API server, with no more rights than `deploy/mirror` grants, and links to others.

use super::{followed::PATIENCE, objects::NAMESPACE, server::Server};
use anyhow::Context;
use k8s_openapi::api::{
    core::v1::{Secret, Service},
    discovery::v1::EndpointSlice,
};
use kube::{
    Api, Client,
    api::{DynamicObject, ListParams, Patch, PatchParams},
};
use serde_json::{Value, json};
use std::{collections::BTreeSet, future::Future, time::Duration};
use tokio::{
    sync::watch,
    task::JoinHandle,
    time::{Instant, sleep},
};
use tombolo::{
    mirror::{
        controller::{self, Setup},
        lease::Terms,
        links::{
            book::Book,
            follow::follow,
            manifests::{OwnHalf, PeerHalf},
            object::{GROUP, VERSION},
            status::Facts,
        },
        serve::View,
    },
    model::ClusterName,
};

pub(crate) const SYSTEM: &str = "tombolo-system";

pub(crate) struct Mirror {
    view: watch::Receiver<View>,
    task: JoinHandle<anyhow::Result<()>>,
}

impl Mirror {
    /// Starts one; what [`install`] did is what it may do.
    pub(crate) async fn start(server: &Server, cluster: &str) -> anyhow::Result<Self> {
        let own = server.client_with(&server.token("tombolo-system/tombolo-mirror", 3600).await?).await?;
        let cluster = ClusterName(cluster.to_owned());
        let book = Book::new(cluster.clone(), Terms::default(), BTreeSet::new());
        let (shown, links) = watch::channel(None);
        let (told, view) = watch::channel(View::default());
        let following = follow(own.clone(), SYSTEM.to_owned(), "linkerd-multicluster".to_owned(), book, shown);
        let setup = Setup { cluster, own, peers: Vec::new(), gateway: None, terms: Terms::default() };
        let running = controller::run(setup, links, told);
        let task = tokio::spawn(async move {
            tokio::select! {
                ended = following => ended.context("follow links"),
                ended = running => ended.context("mirror"),
            }
        });
        Ok(Self { view, task })
    }

    /// Waits until a link stands so.
    pub(crate) async fn until(&mut self, link: &str, what: &str, holds: impl Fn(&Facts) -> bool) -> anyhow::Result<()> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            anyhow::ensure!(!self.task.is_finished(), "the mirror ended");
            let found = self.view.borrow().links.iter().find(|facts| facts.name.0 == link).cloned();
            if found.as_ref().is_some_and(&holds) {
                return Ok(());
            }
            anyhow::ensure!(Instant::now() < deadline, "{link} is not {what}: {found:?}");
            sleep(Duration::from_millis(20)).await;
        }
    }
}

impl Drop for Mirror {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// What the mirror needs in its own cluster, and a namespace to import to.
pub(crate) fn install(server: &Server) -> anyhow::Result<()> {
    for namespace in [SYSTEM, NAMESPACE, "linkerd-multicluster", "mc-demo"] {
        server.apply(&format!("{{apiVersion: v1, kind: Namespace, metadata: {{name: {namespace}}}}}"))?;
    }
    for file in ["crds/link.yaml", "mirror/rbac.yaml", "mirror/linkerd.yaml", "mirror/admission.yaml"] {
        server.apply_file(&format!("deploy/{file}"))?;
    }
    Ok(())
}

/// Applies the exporting cluster's half there, and gives a kubeconfig of its account. Nobody fills token Secrets here.
pub(crate) async fn peer_half(peer: &Server, account: &str) -> anyhow::Result<String> {
    apply(peer, PeerHalf { namespace: SYSTEM, account }.objects())?;
    peer.kubeconfig_with(0, &peer.token(&format!("{SYSTEM}/{account}"), 3600).await?)
}

/// Applies the importing cluster's half.
pub(crate) fn own_half(own: &Server, name: &str, kubeconfig: &str, pod_ranges: &[&str]) -> anyhow::Result<()> {
    let pod_ranges: Vec<_> = pod_ranges.iter().map(|range| range.parse()).collect::<Result<_, _>>()?;
    let half = OwnHalf {
        namespace: SYSTEM,
        name,
        cluster: None,
        is_gateway: false,
        pod_ranges: &pod_ranges,
        gateway_ranges: &[],
        kubeconfig,
    };
    apply(own, half.objects())
}

pub(crate) fn apply(server: &Server, objects: Vec<Value>) -> anyhow::Result<()> {
    // The kind may have been defined a moment ago.
    let deadline = std::time::Instant::now() + PATIENCE;
    loop {
        match server.apply(&json!({"apiVersion": "v1", "kind": "List", "items": objects}).to_string()) {
            Err(error)
                if format!("{error:#}").contains("no matches for kind") && std::time::Instant::now() < deadline =>
            {
                std::thread::sleep(Duration::from_millis(200));
            }
            applied => return applied,
        }
    }
}

/// Puts another kubeconfig into a link's Secret.
pub(crate) async fn rotate(own: &Client, link: &str, kubeconfig: &str) -> anyhow::Result<()> {
    let secrets: Api<Secret> = Api::namespaced(own.clone(), SYSTEM);
    let patch = Patch::Merge(json!({"stringData": {"kubeconfig": kubeconfig}}));
    secrets.patch(&format!("tombolo-link-{link}"), &PatchParams::default(), &patch).await?;
    Ok(())
}

/// Links as the API has them.
pub(crate) fn links(own: &Client) -> Api<DynamicObject> {
    Api::namespaced_with(own.clone(), SYSTEM, &super::objects::kind(GROUP, VERSION, "Link", "links"))
}

/// The addresses that slices of a Service hold, ready ones.
pub(crate) async fn backends(own: &Client, namespace: &str, service: &str) -> anyhow::Result<Vec<String>> {
    let slices: Api<EndpointSlice> = Api::namespaced(own.clone(), namespace);
    let of_service = ListParams::default().labels(&format!("kubernetes.io/service-name={service}"));
    let mut found = Vec::new();
    for slice in slices.list(&of_service).await?.items {
        let ports: Vec<i32> = slice.ports.iter().flatten().filter_map(|port| port.port).collect();
        for endpoint in slice.endpoints {
            if endpoint.conditions.and_then(|conditions| conditions.ready).unwrap_or(true) {
                found.extend(ports.iter().map(|port| format!("{}:{port}", endpoint.addresses[0])));
            }
        }
    }
    found.sort();
    Ok(found)
}

/// Whether a Service is there.
pub(crate) async fn has_service(own: &Client, namespace: &str, name: &str) -> anyhow::Result<bool> {
    Ok(Api::<Service>::namespaced(own.clone(), namespace).get_opt(name).await?.is_some())
}

/// Waits until this holds, and says how long it took.
pub(crate) async fn until<F: Future<Output = anyhow::Result<bool>>>(
    what: &str,
    mut holds: impl FnMut() -> F,
) -> anyhow::Result<Duration> {
    let began = Instant::now();
    while !holds().await? {
        anyhow::ensure!(began.elapsed() < PATIENCE, "not so after {PATIENCE:?}: {what}");
        sleep(Duration::from_millis(20)).await;
    }
    Ok(began.elapsed())
}
