//! Pods that are left alone: their own sockets, nobody else's.

use crate::{
    draws::{draw, own4},
    ground::{Client, Ground},
    tables::{backed_by, udp},
};
use lab::threads::ThreadCgroup;
use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr},
    sync::Arc,
};
use tombolo::datapath::cgroup;
use tombolo_ebpf::abi::{Counter, exempt};

#[test]
fn a_pod_that_is_exempt_is_left_alone_with_all_its_containers_and_no_other_pod_is() {
    let Some(mut ground) = Ground::new() else { return };
    let frontend: SocketAddr = "10.96.0.10:53".parse().unwrap();
    // Whoever is left alone gets there.
    ground.client.netns.address("lo", frontend.ip().into()).unwrap();
    let backends = own4(&ground, 1, 1);
    ground.want(udp(frontend), backed_by(&backends)).install();

    // As the kubelet arranges them: pods in the folder of all, or in that of their class, containers below.
    let pods = &ground.client.cgroup;
    let make = |above: &ThreadCgroup, name: &str| Arc::new(above.child(name).unwrap());
    let class = make(pods, "burstable");
    let [guaranteed, other] = ["podguaranteed", "podother"].map(|name| make(pods, name));
    let [burstable, neighbour] = ["podburstable", "podneighbour"].map(|name| make(&class, name));
    let [in_guaranteed, in_burstable, in_neighbour] =
        [&guaranteed, &burstable, &neighbour].map(|pod| make(pod, "container"));
    let deeper = make(&in_burstable, "nested");

    let from = |ground: &Ground, cgroup: &Arc<ThreadCgroup>| {
        let client = Client { cgroup: cgroup.clone(), ..ground.client.clone() };
        client.run(|| draw(frontend).unwrap())
    };
    let check = |ground: &Ground, left_alone: &[&Arc<ThreadCgroup>], translated: &[&Arc<ThreadCgroup>]| {
        let exempt = ground.count(Counter::Exempt);
        for cgroup in left_alone {
            assert_eq!(from(ground, cgroup), frontend.ip(), "{} is exempt", cgroup.path().display());
        }
        assert_eq!(ground.count(Counter::Exempt) - exempt, left_alone.len() as u64);
        let backend: IpAddr = backends[0].ip();
        for cgroup in translated {
            assert_eq!(from(ground, cgroup), backend, "{} is not exempt", cgroup.path().display());
        }
    };
    let exempt_ones = [&guaranteed, &in_guaranteed, &burstable, &in_burstable, &deeper];
    let others = [&ground.client.cgroup.clone(), &other, &class, &neighbour, &in_neighbour];
    let all = [&exempt_ones[..], &others[..]].concat();
    check(&ground, &[], &all);

    let id = |cgroup: &Arc<ThreadCgroup>| cgroup.id().unwrap();
    ground.desired.pods = BTreeMap::from([(id(&guaranteed), exempt::MESHED), (id(&burstable), exempt::OPTED_OUT)]);
    ground.desired.pod_level = cgroup::level_below_mount(ground.client.cgroup.path()).unwrap() + 1;
    ground.install();
    check(&ground, &exempt_ones, &others);

    ground.desired.pods.remove(&id(&guaranteed));
    ground.install();
    check(&ground, &exempt_ones[2..], &[&exempt_ones[..2], &others[..]].concat());

    ground.desired.pods.clear();
    ground.desired.pod_level = 0;
    ground.install();
    check(&ground, &[], &all);
}
