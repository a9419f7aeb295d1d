//! Tests: what the objects of each convention become, from the fixtures through to the model.

use super::{Problem, manifests::ManifestSource, objects::Options};
use crate::model::{
    ClusterName, Model, ObjectName, Order, Path, PeerState, Pod, Protocol, Service, ServiceKind, ServiceRef, Slice,
};
use std::{collections::BTreeMap, fs, path::PathBuf, time::Duration};

#[test]
fn a_federated_service_unites_its_local_member_with_slices_of_the_others() {
    let model = load(&["west-federated.yaml"]);
    let federated = service(&model, "mc-demo/frontend-federated");
    assert!(federated.federated && federated.exclusive && !federated.opted_out);
    assert_eq!(federated.local_member.as_deref(), Some("frontend"));
    assert_eq!(federated.problems, [""; 0]);
    let sources: Vec<_> =
        model.slices_of(&named("mc-demo/frontend-federated")).map(|slice| slice.source_cluster.clone()).collect();
    assert_eq!(sources, [Some(cluster("east")), Some(cluster("north"))]);
    assert!(model.slices_of(&named("mc-demo/frontend-federated")).all(|slice| !slice.built_in));
}

#[test]
fn a_local_member_is_not_federated_and_its_slice_speaks_for_the_own_cluster() {
    let model = load(&["west-federated.yaml"]);
    let member = service(&model, "mc-demo/frontend");
    assert!(!member.federated && !member.exclusive);
    let slice = slice(&model, "mc-demo/frontend-x7k2p");
    assert!(slice.built_in);
    assert_eq!((slice.source_cluster.as_ref(), slice.path, slice.weight), (None, Path::Pod, 1));
    let conditions: Vec<_> =
        slice.endpoints.iter().map(|endpoint| (endpoint.ready, endpoint.serving, endpoint.terminating)).collect();
    assert_eq!(conditions, [(true, true, false), (false, true, true)]);
    assert_eq!(slice.endpoints[0].zone.as_deref(), Some("europe-west1-b"));
    assert_eq!(slice.endpoints[1].node.as_deref(), Some("west-2"));
}

#[test]
fn conditions_that_are_left_out_mean_ready_and_serving() {
    let model = load(&["west-federated.yaml"]);
    let endpoint = &slice(&model, "mc-demo/frontend-federated-north").endpoints[0];
    assert_eq!((endpoint.ready, endpoint.serving, endpoint.terminating), (true, true, false));
}

#[test]
fn a_flat_mirror_has_both_families_and_neither_sctp_nor_names() {
    let model = load(&["west-flat.yaml"]);
    let api = service(&model, "mc-demo/api-east");
    assert!(api.federated && api.exclusive);
    assert_eq!(api.addresses, ["10.104.1.20".parse::<std::net::IpAddr>().unwrap(), "fd00:104::14".parse().unwrap()]);
    let ports: Vec<_> = api.ports.iter().map(|port| (port.name.as_str(), port.port, port.protocol)).collect();
    assert_eq!(ports, [("http", 8080, Protocol::Tcp), ("dns", 53, Protocol::Udp)]);
    let slices: Vec<_> = model.slices_of(&named("mc-demo/api-east")).collect();
    assert_eq!(slices.len(), 2);
    assert!(slices.iter().all(|slice| slice.ports.len() == 2 && slice.source_cluster == Some(cluster("east"))));
    assert!(slices[1].endpoints[0].address.is_ipv6());
}

#[test]
fn a_gateway_without_a_proxy_serves_anybody_and_stands_for_its_pods() {
    let model = load(&["west-gateway.yaml", "west-flat.yaml"]);
    assert!(service(&model, "mc-demo/analytics-east").federated);
    let gateway = slice(&model, "mc-demo/analytics-east-gateway");
    assert_eq!((gateway.path, gateway.weight, gateway.fallback), (Path::Gateway, 3, false));
    assert_eq!(gateway.ports[0].port, 31004);
}

#[test]
fn a_fallback_belongs_to_its_service_whatever_else_its_labels_say() {
    let model = load(&["west-gateway.yaml", "west-flat.yaml"]);
    let fallback = slice(&model, "mc-demo/api-east-fallback");
    assert_eq!(fallback.owner, named("mc-demo/api-east"));
    assert!(fallback.fallback && fallback.peer == PeerState::Stale);
    assert_eq!(fallback.path, Path::Gateway);
    assert!(!fallback.endpoints[0].ready && !fallback.endpoints[0].serving);
}

#[test]
fn what_leads_through_a_linkerd_gateway_is_left_alone() {
    let model = load(&["linkerd-west.yaml"]);
    assert!(!service(&model, "mc-demo/analytics-east-gw").federated);
    assert!(model.slices.is_empty());
    // Without slices as yet, but for Tombolo's mirror to fill.
    assert!(service(&model, "mc-demo/frontend-federated").federated);
    assert!(service(&model, "mc-demo/api-east-gw").federated);
}

#[test]
fn no_switch_makes_a_linkerd_gateway_translated() {
    let model = load_with(&["linkerd-west.yaml"], &Options { all_services: true, ..options() }).0;
    let gateway = service(&model, "mc-demo/analytics-east-gw");
    assert!(!gateway.federated && !gateway.exclusive);
}

#[test]
fn a_linkerd_gateway_mirror_that_somebody_else_fills_is_federated() {
    let filled = "
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata:
  name: filled
  namespace: mc-demo
  labels: {kubernetes.io/service-name: analytics-east-gw, multicluster.kubernetes.io/source-cluster: east}
addressType: IPv4
endpoints: [{addresses: [10.108.0.9]}]
ports: [{name: http, port: 8080}]
";
    let dir = folder(&["linkerd-west.yaml"]);
    fs::write(dir.path().join("z.yaml"), filled).unwrap();
    let model = load_from(dir.path().into(), &options()).0;
    assert!(service(&model, "mc-demo/analytics-east-gw").federated);
}

#[test]
fn a_headless_mirror_has_no_address() {
    let model = load(&["linkerd-west.yaml"]);
    let headless = service(&model, "mc-demo/db-east-gw");
    assert!(headless.addresses.is_empty());
    assert_eq!(headless.problems, [""; 0]);
}

#[test]
fn a_service_import_is_federated_in_both_versions_of_its_api() {
    let model = load(&["service-imports.yaml"]);
    let orders = &model.services[&imported("shop/orders")];
    assert!(orders.federated && orders.exclusive);
    assert_eq!(orders.affinity, Some(Duration::from_secs(600)));
    assert_eq!(orders.traffic.order, Order::ZoneFirst);
    let billing = &model.services[&imported("shop/billing")];
    assert_eq!((billing.addresses.len(), billing.ports[0].port), (2, 443));
    assert!(model.services[&imported("shop/ledger")].addresses.is_empty());
}

#[test]
fn a_slice_belongs_to_the_derived_service_before_the_service_import() {
    let model = load(&["service-imports.yaml"]);
    assert_eq!(slice(&model, "shop/orders-east").owner, named("shop/derived-8f3k2m9q1z"));
    assert_eq!(slice(&model, "shop/billing-north").owner, imported("shop/billing"));
    let derived = service(&model, "shop/derived-8f3k2m9q1z");
    assert!(derived.federated && derived.exclusive);
}

#[test]
fn marks_of_cilium_and_istio_join_and_leave_kube_proxy_its_part() {
    let model = load(&["marks.yaml"]);
    for name in ["shop/cart", "shop/search", "shop/catalogue"] {
        let service = service(&model, name);
        assert!(service.federated && !service.exclusive, "{name}");
    }
    assert!(!service(&model, "shop/plain").federated);
}

#[test]
fn ciliums_affinity_keeps_its_meaning() {
    let model = load(&["marks.yaml"]);
    let local = &service(&model, "shop/cart").traffic;
    assert_eq!((&local.order, local.local_minimum), (&Order::LocalFirst, Some(1)));
    let remote = &service(&model, "shop/search").traffic;
    assert_eq!(remote.weights, BTreeMap::from([(cluster("west"), 0)]));
}

#[test]
fn another_clusters_slice_makes_a_service_federated() {
    let model = load(&["marks.yaml"]);
    assert!(service(&model, "shop/stock").federated);
}

#[test]
fn neither_mark_nor_slice_nor_switch_shares_dns_or_the_api_server() {
    let model = load_with(&["marks.yaml"], &Options { all_services: true, ..options() }).0;
    assert!(!service(&model, "kube-system/kube-dns").federated);
    assert!(!service(&model, "default/kubernetes").federated);
}

#[test]
fn the_switch_makes_every_other_service_translated_and_ours_alone() {
    let model = load_with(&["marks.yaml"], &Options { all_services: true, ..options() }).0;
    let plain = service(&model, "shop/plain");
    assert!(plain.federated && plain.exclusive);
}

#[test]
fn pods_of_this_node_are_known_by_what_they_are_exempt_for() {
    let model = load(&["pods.yaml"]);
    let exempt: Vec<_> =
        model.pods.values().map(|Pod { name, meshed, opted_out }| (name.name.as_str(), *meshed, *opted_out)).collect();
    assert_eq!(
        exempt,
        [
            ("client", false, false),
            ("meshed", true, false),
            ("meshed-first", true, false),
            ("ambient", true, false),
            ("opted-out", false, true)
        ]
    );
}

#[test]
fn a_dump_of_a_cluster_is_read_in_either_form() {
    let yaml = load(&["dump-west.yaml"]);
    assert_eq!(yaml, load(&["dump-west.json"]));
    assert_eq!((yaml.services.len(), yaml.slices.len()), (3, 2));
    assert!(service(&yaml, "mc-demo/frontend-federated").federated);
}

fn options() -> Options {
    Options { cluster: cluster("west"), node: "west-1".to_owned(), all_services: false }
}

fn cluster(name: &str) -> ClusterName {
    ClusterName(name.to_owned())
}

fn object(name: &str) -> ObjectName {
    let (namespace, name) = name.split_once('/').unwrap();
    ObjectName { namespace: namespace.to_owned(), name: name.to_owned() }
}

fn named(name: &str) -> ServiceRef {
    ServiceRef { kind: ServiceKind::Service, object: object(name) }
}

fn imported(name: &str) -> ServiceRef {
    ServiceRef { kind: ServiceKind::ServiceImport, object: object(name) }
}

fn service<'a>(model: &'a Model, name: &str) -> &'a Service {
    &model.services[&named(name)]
}

fn slice<'a>(model: &'a Model, name: &str) -> &'a Slice {
    &model.slices[&object(name)]
}

/// The model that these fixtures give, which must be without problems.
fn load(fixtures: &[&str]) -> Model {
    let (model, problems) = load_with(fixtures, &options());
    assert_eq!(problems, []);
    model
}

fn load_with(fixtures: &[&str], options: &Options) -> (Model, Vec<Problem>) {
    let dir = folder(fixtures);
    load_from(dir.path().into(), options)
}

fn load_from(dir: PathBuf, options: &Options) -> (Model, Vec<Problem>) {
    let loaded = ManifestSource::new(dir, options.clone()).load().unwrap();
    let mut model = Model::default();
    for change in loaded.changes {
        assert!(model.apply(change));
    }
    (model, loaded.problems)
}

fn folder(fixtures: &[&str]) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    for name in fixtures {
        let fixture = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures").join(name);
        fs::copy(fixture, dir.path().join(name)).unwrap();
    }
    dir
}
