//! The clusters themselves, without agents: needs root.

use anyhow::Result;
use lab::{
    addresses::Network,
    cleanup,
    clusters::{Clusters, Load, NAMES, Pod, Programs},
    manifests::POD_PORT,
    netns::need_root,
    report::Report,
};
use std::{
    net::{IpAddr, SocketAddr, TcpStream},
    time::Duration,
};

#[test]
fn pods_reach_each_other_across_clusters_except_private_ones_and_nothing_is_left() -> Result<()> {
    if need_root().is_err() {
        eprintln!("skipped: needs root");
        return Ok(());
    }
    let mut clusters =
        Clusters::build(Programs { lab: env!("CARGO_BIN_EXE_lab").into(), agent: None, agent_flags: Vec::new() })?;
    let flat = NAMES.map(|cluster| (cluster, "frontend", Network::Flat, 2));
    clusters.start_pods(&flat)?;
    clusters.start_pods(&[("east", "analytics", Network::Private, 2)])?;
    clusters.publish()?;

    let frontends: Vec<SocketAddr> =
        NAMES.iter().flat_map(|cluster| sockets(clusters.cluster(cluster).pods_of("frontend"))).collect();
    assert_eq!(frontends.len(), 3 * 2 * 2, "two pods in each cluster, of two families");
    for cluster in NAMES {
        for udp in [false, true] {
            let report = ask(&clusters, cluster, &frontends, udp)?;
            assert_eq!((report.failed, report.failures.as_slice()), (0, [].as_slice()));
            assert_eq!(report.by_pod.len(), 6, "{cluster} reaches every pod");
        }
    }

    let analytics: Vec<SocketAddr> = sockets(clusters.cluster("east").pods_of("analytics")).collect();
    let report = ask(&clusters, "east", &analytics, false)?;
    assert_eq!((report.failed, report.by_pod.len()), (0, 2), "east reaches its private pods");
    for cluster in ["west", "north"] {
        for &address in &analytics {
            let client = clusters.cluster(cluster).client().netns();
            let error = client.run(|| TcpStream::connect_timeout(&address, Duration::from_secs(2)))?.unwrap_err();
            assert!(error.to_string().contains("unreachable"), "{cluster} to {address}: {error}");
        }
    }

    let gateway: Vec<SocketAddr> =
        lab::addresses::gateway(2).both().map(|address| SocketAddr::new(address, 31_001)).to_vec();
    for udp in [false, true] {
        let report = ask(&clusters, "north", &gateway, udp)?;
        assert_eq!((report.failed, report.failures.as_slice()), (0, [].as_slice()));
        assert_eq!(report.by_pod.len(), 2, "the gateway forwards to both pods");
    }

    let pod = clusters.cluster("west").client();
    let cgroup = pod.cgroup().path().to_owned();
    let of_node = format!("{}/west-1/kubepods/burstable/pod", cleanup::prefix());
    assert!(cgroup.to_string_lossy().contains(&of_node), "{}", cgroup.display());
    assert!(pod.enter().contains(&*cgroup.to_string_lossy()));

    drop(clusters);
    cleanup::remove_own()?;
    assert_eq!(cleanup::left_by_own()?, [""; 0]);
    Ok(())
}

fn sockets<'a>(pods: impl Iterator<Item = &'a Pod>) -> impl Iterator<Item = SocketAddr> {
    pods.flat_map(|pod| pod.addresses().both()).map(|address: IpAddr| SocketAddr::new(address, POD_PORT))
}

/// Asks each of `targets` several times from the client of `cluster`.
fn ask(clusters: &Clusters, cluster: &str, targets: &[SocketAddr], udp: bool) -> Result<Report> {
    let requests = Some(u64::try_from(16 * targets.len())?);
    let mut client = clusters.load(cluster, &Load { targets: targets.to_vec(), udp, rate: 1000, requests })?;
    while !client.ended()? {
        std::thread::sleep(Duration::from_millis(5));
    }
    client.stop()
}
