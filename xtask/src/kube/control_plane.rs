//! The programs that make a cluster without nodes: etcd, API server, controller manager, scheduler.

use super::{
    build,
    certificates::{authority, of_cluster, sign, write_kubeconfig},
    daemon::Daemon,
    kubectl::kubectl,
    layout::{Cluster, MACHINE},
};
use crate::process::output;
use anyhow::{Context, bail};
use std::{
    fs,
    process::Command,
    thread,
    time::{Duration, Instant},
};

/// How long a control plane may take: an API server needs some seconds of processor time, and shares the machine.
const PATIENCE: Duration = Duration::from_secs(300);

/// The programs, in the order in which they are started.
pub(crate) fn daemons(cluster: &Cluster) -> [Daemon; 4] {
    ["etcd", "kube-apiserver", "kube-controller-manager", "kube-scheduler"]
        .map(|name| Daemon::new(cluster.folder(), name))
}

/// Starts those that don't run, with certificates and kubeconfigs; whether there were any.
pub(crate) fn start(cluster: &Cluster) -> anyhow::Result<bool> {
    let pki = cluster.pki();
    authority(cluster)?;
    for subject in of_cluster(cluster) {
        sign(cluster, &pki, &subject)?;
    }
    for user in ["admin", "controller-manager", "scheduler"] {
        write_kubeconfig(cluster, &pki, user, &cluster.kubeconfig(user))?;
    }
    let mut started = false;
    for daemon in daemons(cluster) {
        if daemon.pid()?.is_none() {
            let program = build::folder()?.join(daemon.name());
            let mut command = Command::new(program);
            command.args(arguments(cluster, daemon.name())).current_dir(cluster.folder());
            daemon.start(command)?;
            started = true;
        }
    }
    Ok(started)
}

/// Waits until the API server is ready and the controllers have made what every pod needs: its service account.
pub(crate) fn wait(cluster: &Cluster) -> anyhow::Result<()> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let ready = output(kubectl(cluster)?.args(["get", "--raw", "/readyz"]))
            .and_then(|_| output(kubectl(cluster)?.args(["get", "serviceaccount", "default"])));
        let Err(error) = ready else { return Ok(()) };
        for daemon in daemons(cluster) {
            daemon.check().with_context(|| format!("cluster {}", cluster.name))?;
        }
        if Instant::now() > deadline {
            bail!("cluster {} is not ready after {} s: {error:#}", cluster.name, PATIENCE.as_secs());
        }
        thread::sleep(Duration::from_millis(500));
    }
}

/// Ends all programs and removes what etcd wrote.
pub(crate) fn end(cluster: &Cluster) -> anyhow::Result<()> {
    for daemon in daemons(cluster).iter().rev() {
        daemon.end()?;
    }
    let folder = cluster.folder();
    if folder.exists() {
        fs::remove_dir_all(&folder).with_context(|| format!("remove {}", folder.display()))?;
    }
    Ok(())
}

fn arguments(cluster: &Cluster, program: &str) -> Vec<String> {
    let (port, name) = (cluster.port(), cluster.name);
    let file = |name: &str| format!("pki/{name}");
    let etcd = format!("http://127.0.0.1:{}", port + 1);
    let peers = format!("http://127.0.0.1:{}", port + 2);
    let controller = |user: &str, port: u16| {
        vec![
            format!("--kubeconfig={}", cluster.kubeconfig(user).display()),
            "--bind-address=127.0.0.1".to_owned(),
            format!("--secure-port={port}"),
            "--leader-elect=false".to_owned(),
        ]
    };
    match program {
        "etcd" => vec![
            format!("--name={name}"),
            "--data-dir=etcd".to_owned(),
            // A machine that goes down takes the clusters with it anyway.
            "--unsafe-no-fsync".to_owned(),
            format!("--listen-client-urls={etcd}"),
            format!("--advertise-client-urls={etcd}"),
            format!("--listen-peer-urls={peers}"),
            format!("--initial-advertise-peer-urls={peers}"),
            format!("--initial-cluster={name}={peers}"),
            "--log-level=warn".to_owned(),
        ],
        "kube-apiserver" => vec![
            format!("--etcd-servers={etcd}"),
            format!("--bind-address={MACHINE}"),
            format!("--advertise-address={MACHINE}"),
            format!("--secure-port={port}"),
            format!("--tls-cert-file={}", file("apiserver.crt")),
            format!("--tls-private-key-file={}", file("apiserver.key")),
            format!("--client-ca-file={}", file("ca.crt")),
            "--authorization-mode=Node,RBAC".to_owned(),
            "--allow-privileged".to_owned(),
            "--enable-admission-plugins=NodeRestriction".to_owned(),
            format!("--service-cluster-ip-range={}", cluster.services()),
            "--service-account-issuer=https://kubernetes.default.svc.cluster.local".to_owned(),
            format!("--service-account-key-file={}", file("sa.pub")),
            format!("--service-account-signing-key-file={}", file("sa.key")),
            format!("--kubelet-client-certificate={}", file("kubelet-client.crt")),
            format!("--kubelet-client-key={}", file("kubelet-client.key")),
            "--kubelet-preferred-address-types=InternalIP".to_owned(),
        ],
        "kube-controller-manager" => [
            controller("controller-manager", port + 3),
            vec![
                "--use-service-account-credentials".to_owned(),
                format!("--root-ca-file={}", file("ca.crt")),
                format!("--service-account-private-key-file={}", file("sa.key")),
                format!("--service-cluster-ip-range={}", cluster.services()),
                // For simulated nodes; real ones are created with a range that never changes.
                "--allocate-node-cidrs".to_owned(),
                format!("--cluster-cidr={}", cluster.pods()),
                format!("--cluster-signing-cert-file={}", file("ca.crt")),
                format!("--cluster-signing-key-file={}", file("ca.key")),
            ],
        ]
        .concat(),
        "kube-scheduler" => controller("scheduler", port + 4),
        other => unreachable!("{other} is no program of a control plane"),
    }
}

#[cfg(test)]
mod tests {
    use super::super::layout::CLUSTERS;
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn every_program_listens_at_a_port_of_its_own() {
        let mut listening = BTreeSet::new();
        for cluster in CLUSTERS {
            for daemon in daemons(&cluster) {
                let arguments = arguments(&cluster, daemon.name());
                let ports = arguments.iter().filter_map(|argument| {
                    let value = argument.strip_prefix("--secure-port=");
                    value.or_else(|| argument.strip_prefix("--listen-")?.rsplit_once(':').map(|(_, port)| port))
                });
                for port in ports {
                    assert!(listening.insert(port.to_owned()), "{} of {}: {port}", daemon.name(), cluster.name);
                }
            }
        }
        assert_eq!(listening.len(), 3 * 5);
    }

    #[test]
    fn api_server_and_controllers_agree_on_the_range_of_services() {
        let range = "--service-cluster-ip-range=10.98.0.0/16".to_owned();
        for program in ["kube-apiserver", "kube-controller-manager"] {
            assert!(arguments(&CLUSTERS[2], program).contains(&range), "{program}");
        }
    }
}
