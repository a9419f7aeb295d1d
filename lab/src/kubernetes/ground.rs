//! The clusters, with agent, mirror and pods in them.

use super::{
    Options, install,
    kubectl::{Kubectl, eventually, text},
    workloads::{self, CLIENT, FEDERATED, MARKED, NAMESPACE},
};
use crate::{clusters::NAMES, manifests::SERVICE_PORT};
use anyhow::{Context, Result, bail, ensure};
use serde_json::json;
use std::{net::SocketAddr, path::PathBuf};

/// Annotations that scenes put on the federated Service.
const POLICIES: [&str; 3] = ["tombolo.io/weights", "tombolo.io/traffic", "tombolo.io/local-minimum"];

/// All of it.
pub(super) struct Ground {
    clusters: Vec<Kubectl>,
    deploy: PathBuf,
    overlays: PathBuf,
    build: String,
}

impl Ground {
    /// Installs agent and mirror, has the pods run, and waits for all of it.
    pub(super) fn build(options: &Options) -> Result<Self> {
        let cluster = |name: &str| options.clusters.iter().find(|cluster| cluster.name == name);
        let clusters = NAMES.iter().filter_map(|name| Some(Kubectl::new(&options.kubectl, cluster(name)?)));
        let ground = Self {
            clusters: clusters.collect(),
            deploy: options.deploy.clone(),
            overlays: options.overlays.clone(),
            build: options.build.clone(),
        };
        for cluster in &ground.clusters {
            workloads::apply(cluster, &ground.build)?;
            install::crds(cluster, &options.tombolo)?;
        }
        for cluster in &ground.clusters {
            ground.install(cluster)?;
        }
        for cluster in &ground.clusters {
            for peer in ground.clusters.iter().filter(|peer| peer.name != cluster.name) {
                install::link(cluster, peer, &options.tombolo)?;
            }
        }
        for cluster in &ground.clusters {
            install::wait(cluster)?;
            workloads::wait(cluster)?;
        }
        ground.restore()?;
        Ok(ground)
    }

    /// Puts agent and mirror into a cluster, or back.
    pub(super) fn install(&self, cluster: &Kubectl) -> Result<()> {
        install::apply(cluster, &self.deploy, &self.overlays, &self.build)
            .with_context(|| format!("install in {}", cluster.name))
    }

    /// Puts everything back to how a scene expects it: one that failed may have left it otherwise.
    pub(super) fn restore(&self) -> Result<()> {
        for cluster in &self.clusters {
            workloads::apply(cluster, &self.build)?;
            cluster.cluster_ip(NAMESPACE, FEDERATED)?;
            let without: Vec<String> = POLICIES.iter().map(|policy| format!("{policy}-")).collect();
            let mut words = vec!["--namespace", NAMESPACE, "annotate", "service", FEDERATED];
            words.extend(without.iter().map(String::as_str));
            cluster.run(&words)?;
        }
        self.clusters.iter().try_for_each(|cluster| {
            workloads::wait(cluster)?;
            install::wait(cluster)
        })
    }

    pub(super) fn cluster(&self, name: &str) -> &Kubectl {
        self.clusters.iter().find(|cluster| cluster.name == name).expect("there are all three")
    }

    /// A Service's ClusterIP and port in a cluster.
    pub(super) fn address(&self, cluster: &str, service: &str) -> Result<SocketAddr> {
        Ok(SocketAddr::new(self.cluster(cluster).cluster_ip(NAMESPACE, service)?, SERVICE_PORT))
    }

    /// The client's node and address.
    pub(super) fn client(&self, cluster: &str) -> Result<(String, std::net::IpAddr)> {
        let pods = self.cluster(cluster).pods(NAMESPACE, &format!("app={CLIENT}"))?;
        let [pod] = &pods[..] else { bail!("{cluster} has {} clients", pods.len()) };
        let address = text(pod, "/status/podIP")?.parse().context("the client's address")?;
        Ok((text(pod, "/spec/nodeName")?.to_owned(), address))
    }

    /// Removes the pods, and what the mirrors made for them, then agents and mirrors. Returns what is still there: nothing, if
    /// all is well.
    pub(super) fn take_down(&self) -> Result<Vec<String>> {
        // First what is exported: then the mirrors themselves remove what they have made.
        for cluster in &self.clusters {
            for (name, mark) in [("frontend", "mirror.linkerd.io/federated-"), ("api", "mirror.linkerd.io/exported-")] {
                if name == "frontend" || cluster.name != "north" {
                    cluster.run(&["--namespace", NAMESPACE, "label", "service", name, mark])?;
                }
            }
            cluster.run(&["--namespace", NAMESPACE, "annotate", "service", MARKED, "service.cilium.io/global-"])?;
        }
        let mut left = Vec::new();
        for cluster in &self.clusters {
            let selector = "endpointslice.kubernetes.io/managed-by!=endpointslice-controller.k8s.io";
            let removed = eventually("what the mirror made", || {
                let slices = cluster.names(NAMESPACE, "endpointslices", selector)?;
                let services = cluster.names(NAMESPACE, "services", "mirror.linkerd.io/mirrored-service=true")?;
                ensure!(slices.is_empty() && services.is_empty(), "{slices:?} {services:?}");
                Ok(())
            });
            left.extend(removed.err().map(|error| format!("{}: {error:#}", cluster.name)));
        }
        for cluster in &self.clusters {
            install::remove_agents(cluster)?;
            let folder = self.overlays.join(cluster.name).display().to_string();
            cluster.run(&["delete", "--ignore-not-found", "--timeout=120s", "-k", &folder])?;
            for kind in ["clusterrolebinding", "clusterrole"] {
                cluster.run(&["delete", kind, "--ignore-not-found", "tombolo-peer"])?;
            }
            cluster.run(&["delete", "namespace", "--ignore-not-found", "--timeout=120s", NAMESPACE])?;
        }
        Ok(left)
    }

    /// Puts an annotation on the federated Service of every cluster.
    pub(super) fn annotate(&self, annotation: &str, value: &str) -> Result<()> {
        let patch = json!({"metadata": {"annotations": {annotation: value}}}).to_string();
        for cluster in &self.clusters {
            cluster.run(&["--namespace", NAMESPACE, "patch", "service", FEDERATED, "--patch", &patch])?;
        }
        Ok(())
    }

    /// Sets how many pods a Deployment has.
    pub(super) fn scale(&self, cluster: &str, namespace: &str, deployment: &str, replicas: usize) -> Result<()> {
        let (deployment, replicas) = (format!("deployment/{deployment}"), format!("--replicas={replicas}"));
        self.cluster(cluster).run(&["--namespace", namespace, "scale", &deployment, &replicas]).map(drop)
    }
}
