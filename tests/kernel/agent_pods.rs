//! Pods of this node whose connections are left alone, found by their cgroups.

use crate::agent_site::{Site, service};
use crate::clock::{patience, until};
use std::{
    fs,
    time::{Duration, Instant},
};

const VIP: &str = "10.96.0.10:80";
const BACKEND: &str = "127.0.0.5:8080";

/// Pods by the last digits of their UID, with what the kubelet calls their cgroups below its folder for pods, and what in
/// their manifest matters.
const PODS: [(&str, &str, &str); 6] = [
    ("01", "burstable/pod{uid}", "spec: {nodeName: west-1, containers: [{name: app}, {name: linkerd-proxy}]}"),
    (
        "02",
        "besteffort/pod{uid}",
        "spec: {nodeName: west-1, initContainers: [{name: istio-proxy, restartPolicy: Always}], containers: [{name: app}]}",
    ),
    ("03", "pod{uid}", "spec: {nodeName: west-1, containers: [{name: linkerd-proxy}]}"),
    ("04", "burstable/pod{uid}", "spec: {nodeName: west-1, containers: [{name: app}]}"),
    ("05", "burstable/pod{uid}", "spec: {nodeName: west-2, containers: [{name: linkerd-proxy}]}"),
    ("06", "burstable/pod{uid}", "spec: {nodeName: west-1, containers: [{name: app}]}"),
];
/// Those whose connections are left alone, 06 by annotation.
const LEFT_ALONE: [&str; 4] = ["01", "02", "03", "06"];

fn uid(number: &str) -> String {
    format!("00000000-0000-4000-8000-0000000000{number}")
}

fn manifests() -> String {
    let pod = |(number, _, spec): &(&str, &str, &str)| {
        let annotations = if *number == "06" { ", annotations: {ambient.istio.io/redirection: enabled}" } else { "" };
        let meta = format!("metadata: {{name: pod-{number}, namespace: demo, uid: {}{annotations}}}", uid(number));
        format!("apiVersion: v1\nkind: Pod\n{meta}\n{spec}\n")
    };
    PODS.iter().map(pod).collect::<Vec<_>>().join("---\n")
}

fn site() -> Option<Site> {
    let mut site = Site::new()?;
    site.serve(BACKEND);
    site.write("web.yaml", &service("web-federated", VIP, &[BACKEND]));
    Some(site)
}

#[test]
fn pods_with_a_mesh_proxy_are_left_alone_and_others_are_not_wherever_the_hooks_are_attached() {
    let Some(site) = site() else { return };
    site.write("pods.yaml", &manifests());
    let cgroup = |name: &str, number: &str| name.replace("{uid}", &uid(number));
    let clients = PODS.map(|(number, name, _)| {
        (number, site.client_in(&format!("kubelet/kubepods/{}/container", cgroup(name, number))))
    });
    let mut clients: Vec<_> = clients.into_iter().collect();
    let mut nobodys = site.client_in("kubelet/kubepods/burstable/pod-of-nobody/container");
    // At the pods' own folder, and at one from which it has to be found.
    for attach_to in ["kubelet/kubepods", ""] {
        let mut agent = site.agent().with("--cgroup", site.cgroup.path().join(attach_to)).outside().start();
        agent.wait_until_ready();
        let status = site.json("status").0;
        assert_eq!(status["exempt_pods"], 4, "{status:#}");
        for (number, client) in &mut clients {
            for answered in [client.tcp(VIP), client.udp(VIP)] {
                let expected =
                    if LEFT_ALONE.contains(number) { Err(libc::ENETUNREACH) } else { Ok(BACKEND.to_owned()) };
                assert_eq!(answered, expected, "pod {number}, attached to {attach_to:?}");
            }
        }
        assert_eq!(nobodys.tcp(VIP).as_deref(), Ok(BACKEND));
        assert!(site.tombolo(&["status"]).out.contains("4 left alone"));
        agent.kill();
    }
}

#[test]
fn a_pod_is_left_alone_as_soon_as_it_has_its_cgroup_and_no_longer_once_it_opts_in_again() {
    let Some(site) = site() else { return };
    let pod = |annotation: &str| {
        format!(
            "apiVersion: v1\nkind: Pod\nmetadata: {{name: late, namespace: demo, uid: {}, annotations: {{{annotation}}}}}\n\
             spec: {{nodeName: west-1, containers: [{{name: app}}]}}\n",
            uid("07")
        )
    };
    site.write("pod.yaml", &pod("tombolo.io/opt-out: \"true\""));
    // The kubelet has made this long before; then it makes the pod's cgroup, then its containers'.
    let _kubepods = site.cgroup.child("kubepods").unwrap();
    let _agent = site.ready_agent();
    assert_eq!(site.json("status").0["exempt_pods"], 0);
    let start = Instant::now();
    let mut client = site.client_in(&format!("kubepods/burstable/pod{}/container", uid("07")));
    let left_alone = until(Duration::from_secs(3), || client.tcp(VIP).is_err().then(|| start.elapsed()));
    println!("a pod was left alone {:?} after it had its cgroup", left_alone.expect("left alone in the end"));
    for _ in 0..10 {
        assert_eq!(client.tcp(VIP), Err(libc::ENETUNREACH));
    }
    site.write("pod.yaml", &pod(""));
    assert!(until(Duration::from_secs(3), || client.tcp(VIP).ok()).is_some());
    assert_eq!(site.json("status").0["exempt_pods"], 0);

    // A pod that is gone takes its cgroup along.
    site.write("pod.yaml", &pod("tombolo.io/opt-out: \"true\""));
    assert!(until(Duration::from_secs(3), || client.tcp(VIP).is_err().then_some(())).is_some());
    let (count, is_gone) = (|| site.json("status").0["exempt_pods"].clone(), patience(Duration::from_secs(5)));
    assert_eq!(count(), 1);
    drop(client);
    let path = site.cgroup.path().join(format!("kubepods/burstable/pod{}", uid("07")));
    until(is_gone, || (fs::remove_dir(&path).is_ok() || !path.exists()).then_some(())).expect("an empty cgroup");
    assert!(until(is_gone, || (count() == 0).then_some(())).is_some());
}

#[test]
fn pods_of_the_systemd_driver_are_found() {
    let Some(site) = site() else { return };
    site.write("pods.yaml", &manifests());
    let name = |class: &str, number: &str| {
        let slice = format!("kubepods-{class}-pod{}.slice", uid(number).replace('-', "_"));
        format!("kubepods.slice/kubepods-{class}.slice/{slice}/cri-containerd-4e.scope")
    };
    let mut meshed = site.client_in(&name("burstable", "01"));
    let mut plain = site.client_in(&name("besteffort", "04"));
    let mut agent = site.agent().with("--cgroup", site.cgroup.path().join("kubepods.slice")).outside().start();
    agent.wait_until_ready();
    assert_eq!(site.json("status").0["exempt_pods"], 1);
    assert_eq!(meshed.tcp(VIP), Err(libc::ENETUNREACH));
    assert_eq!(plain.tcp(VIP).as_deref(), Ok(BACKEND));
}
