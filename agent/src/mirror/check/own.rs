//! What the own cluster says: which kinds it has, its links, their Secrets, its own addresses.

use super::{Finding, Scope, Verdict, chain, found};
use crate::{
    mirror::{
        links::{
            LinkerdLink,
            book::held,
            credentials::Credentials,
            object::{GROUP, LinkObject, VERSION},
            part::{self, Unread},
        },
        world::OwnAddresses,
    },
    model::ObjectName,
};
use ipnet::IpNet;
use k8s_openapi::api::core::v1::{Node, Secret, Service};
use kube::{
    Api, Client,
    api::{ApiResource, DynamicObject, ListParams},
    core::GroupVersionKind,
};
use serde::de::DeserializeOwned;
use std::collections::BTreeMap;

const MCS: &str = "multicluster.x-k8s.io";
const LINKERD: &str = "multicluster.linkerd.io";

/// Link objects, as far as they can be read.
#[derive(Default)]
pub(super) struct Objects {
    pub(super) tombolo: BTreeMap<ObjectName, Result<LinkObject, Unread<LinkObject>>>,
    pub(super) linkerd: BTreeMap<ObjectName, Result<LinkerdLink, Unread<LinkerdLink>>>,
}

/// Which kinds of objects there are.
pub(super) async fn kinds(own: &Client) -> Vec<Finding> {
    let groups = match own.list_api_groups().await {
        Ok(groups) => groups.groups,
        Err(error) => return vec![found(None, "api", Verdict::Problem, chain(&error))],
    };
    let versions = |group: &str| -> Vec<String> {
        let found = groups.iter().find(|it| it.name == group);
        found.into_iter().flat_map(|it| &it.versions).map(|it| it.version.clone()).collect()
    };
    let mut findings = Vec::new();
    let mut say = |verdict, text: String| findings.push(found(None, "kinds", verdict, text));
    match &versions(GROUP)[..] {
        [] => say(Verdict::Problem, "this cluster has no Links: apply deploy/crds/link.yaml".to_owned()),
        served if served.iter().any(|version| version == VERSION) => {}
        served => {
            let served = served.join(", ");
            say(Verdict::Problem, format!("links.tombolo.io are served at {served}, and {VERSION} is needed"));
        }
    }
    match &versions(MCS)[..] {
        [] => say(
            Verdict::Warning,
            "no ServiceExports and ServiceImports (CRDs of the MCS API): that convention isn't used".to_owned(),
        ),
        served if served.iter().any(|version| version == "v1beta1") => {}
        served => {
            let text =
                format!("the CRDs of the MCS API are too old: they serve {}, and not v1beta1", served.join(", "));
            say(Verdict::Warning, text);
        }
    }
    let linkerds = versions(LINKERD);
    if !linkerds.is_empty() && !linkerds.iter().any(|version| version == "v1alpha3" || version == "v1alpha2") {
        let text = "Linkerd's Links are older than v1alpha2: they lack what federated Services are selected by";
        say(Verdict::Warning, text.to_owned());
    }
    if findings.is_empty() {
        findings.push(found(None, "kinds", Verdict::Ok, "Links, ServiceExports and ServiceImports are known"));
    }
    findings
}

/// The Link objects of both kinds, and what kept them from being read.
pub(super) async fn links(own: &Client, scope: &Scope) -> (Objects, Vec<Finding>) {
    let mut findings = Vec::new();
    let mut objects = Objects::default();
    let resource = |group: &str, version: &str| {
        ApiResource::from_gvk_with_plural(&GroupVersionKind::gvk(group, version, "Link"), "links")
    };
    match list(own, &resource(GROUP, VERSION), &scope.namespace).await {
        Ok(found) => objects.tombolo = found,
        Err(reason) => findings.push(found(None, "links", Verdict::Unknown, format!("Links can't be read: {reason}"))),
    }
    for version in ["v1alpha3", "v1alpha2"] {
        match list(own, &resource(LINKERD, version), &scope.linkerd).await {
            Ok(found) if found.is_empty() => {}
            Ok(found) => {
                objects.linkerd = found;
                break;
            }
            Err(reason) => {
                let text = format!("Linkerd's Links can't be read: {reason}");
                findings.push(found(None, "links", Verdict::Unknown, text));
                break;
            }
        }
    }
    (objects, findings)
}

/// Objects of a kind; none if there is no such kind.
async fn list<T: DeserializeOwned + Default>(
    own: &Client,
    resource: &ApiResource,
    namespace: &str,
) -> Result<BTreeMap<ObjectName, Result<T, Unread<T>>>, String> {
    let api: Api<DynamicObject> = Api::namespaced_with(own.clone(), namespace, resource);
    let listed = match api.list(&ListParams::default()).await {
        Ok(listed) => listed.items,
        Err(kube::Error::Api(status)) if status.code == 404 => Vec::new(),
        Err(error) => return Err(chain(&error)),
    };
    let read = |object: DynamicObject| {
        let name = object.metadata.name.clone().unwrap_or_default();
        let value = serde_json::to_value(object);
        let value = value.map_err(|error| Unread { reason: error.to_string(), part: Box::default() });
        let read = value.and_then(part::read);
        (ObjectName { namespace: namespace.to_owned(), name }, read)
    };
    Ok(listed.into_iter().map(read).collect())
}

/// What a Secret holds; none if it isn't there.
pub(super) async fn secret(own: &Client, name: &ObjectName) -> Result<Option<BTreeMap<String, Credentials>>, String> {
    let api: Api<Secret> = Api::namespaced(own.clone(), &name.namespace);
    // The mirror may list this one, and get none.
    match api.list(&ListParams::default().fields(&format!("metadata.name={}", name.name))).await {
        Ok(found) => Ok(found.items.into_iter().next().map(|secret| held(secret.data.unwrap_or_default()))),
        Err(error) => Err(format!("Secret {name} can't be read: {}", chain(&error))),
    }
}

/// The own cluster's addresses: its nodes', their pods' ranges, and one of its Services'.
pub(super) async fn addresses(own: &Client) -> Result<OwnAddresses, String> {
    let nodes = Api::<Node>::all(own.clone()).list(&ListParams::default()).await.map_err(|error| chain(&error))?;
    let mut addresses = OwnAddresses::default();
    for node in nodes.items {
        let status = node.status.unwrap_or_default();
        let hosts = status.addresses.into_iter().flatten();
        addresses.hosts.extend(hosts.filter_map(|host| host.address.parse::<std::net::IpAddr>().ok()));
        let ranges = node.spec.unwrap_or_default().pod_cidrs.unwrap_or_default();
        addresses.pod_ranges.extend(ranges.iter().filter_map(|range| range.parse::<IpNet>().ok()));
    }
    let services = Api::<Service>::namespaced(own.clone(), "default");
    let kubernetes = services.list(&ListParams::default().fields("metadata.name=kubernetes")).await;
    let kubernetes = kubernetes.map_err(|error| chain(&error))?.items.into_iter().next();
    let spec = kubernetes.and_then(|service| service.spec).unwrap_or_default();
    let ips = spec.cluster_ips.unwrap_or_default();
    addresses.service_ranges.extend(ips.iter().filter_map(|ip| ip.parse::<std::net::IpAddr>().ok()).map(IpNet::from));
    Ok(addresses)
}
