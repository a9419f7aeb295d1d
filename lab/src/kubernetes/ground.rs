//! The clusters, with agent, mirror and pods in them.

use super::{
    Options,
    install::{self, Reach},
    kubectl::{Kubectl, eventually, text},
    workloads::{self, CLIENT, FEDERATED, NAMESPACE},
};
use crate::{clusters::NAMES, manifests::SERVICE_PORT};
use anyhow::{Context, Result, bail, ensure};
use serde_json::json;
use std::{net::SocketAddr, path::PathBuf, process::Command};

/// Annotations that scenes put on the federated Service.
const POLICIES: [&str; 3] = ["tombolo.io/weights", "tombolo.io/traffic", "tombolo.io/local-minimum"];

/// All of it.
pub(super) struct Ground {
    clusters: Vec<Kubectl>,
    deploy: PathBuf,
    overlays: PathBuf,
    tombolo: PathBuf,
    xtask: PathBuf,
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
            tombolo: options.tombolo.clone(),
            xtask: options.xtask.clone(),
            build: options.build.clone(),
        };
        ground.set_up()?;
        ground.restore()?;
        Ok(ground)
    }

    /// Installs what isn't there: at the beginning all of it, later what a scene has removed.
    pub(super) fn set_up(&self) -> Result<()> {
        self.heal()?;
        for cluster in &self.clusters {
            workloads::apply(cluster, &self.build)?;
            install::crds(cluster, &self.tombolo)?;
        }
        for cluster in &self.clusters {
            self.install(cluster)?;
        }
        for cluster in &self.clusters {
            for peer in self.clusters.iter().filter(|peer| peer.name != cluster.name) {
                self.link(cluster.name, peer.name, Reach::Pods)?;
            }
        }
        for cluster in &self.clusters {
            install::wait(cluster)?;
            workloads::wait(cluster)?;
        }
        Ok(())
    }

    /// Has `cluster` import from `peer`.
    pub(super) fn link(&self, cluster: &str, peer: &str, reach: Reach) -> Result<()> {
        install::link(self.cluster(cluster), self.cluster(peer), &self.tombolo, reach)
    }

    /// Has `cluster` vanish from the network, its API server too.
    pub(super) fn cut(&self, cluster: &str) -> Result<()> {
        self.network(&["cut", cluster])
    }

    /// Has pods of `from` know no way to those of `cluster`.
    pub(super) fn cut_from(&self, cluster: &str, from: &str) -> Result<()> {
        self.network(&["cut", cluster, "--from", from])
    }

    /// Has all clusters reach each other again.
    pub(super) fn heal(&self) -> Result<()> {
        self.network(&["heal"])
    }

    fn network(&self, words: &[&str]) -> Result<()> {
        let words = [&["kube"], words].concat();
        let done = Command::new(&self.xtask).args(&words).output();
        let done = done.with_context(|| format!("run {}", self.xtask.display()))?;
        let complaint = String::from_utf8_lossy(&done.stderr);
        ensure!(done.status.success(), "{}: {}", words.join(" "), complaint.trim());
        Ok(())
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
        self.clusters.iter().try_for_each(workloads::withdraw)?;
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
