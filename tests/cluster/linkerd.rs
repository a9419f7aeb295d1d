//! Beside Linkerd: objects that its own programs wrote, replayed into API servers. The mirror makes no Service of theirs, and the endpoints that
//! it fills in are those that Linkerd's discovery would find, each once.

use super::{
    linked::{Mirror, apply, backends, install, until},
    objects::kind,
    server::Server,
};
use anyhow::Context;
use k8s_openapi::api::{core::v1::Service, discovery::v1::EndpointSlice};
use kube::{
    Api, Client,
    api::{ApiResource, DeleteParams, ListParams, Patch, PatchParams},
};
use serde_json::{Value, json};
use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
};
use tombolo::sources::documents::documents;

pub(crate) const NAMESPACE: &str = "mc-demo";
pub(crate) const LINKERD: &str = "linkerd-multicluster";

#[tokio::test]
async fn endpoints_are_the_union_that_linkerds_discovery_uses() -> anyhow::Result<()> {
    let (Some(own), Some(east), Some(third)) = (Server::start().await?, Server::start().await?, Server::start().await?)
    else {
        return Ok(());
    };
    let admin = own.client(0, "admin").await?;
    install(&own)?;
    define_links(&own)?;
    let peers = BTreeMap::from([("east", east.client(0, "admin").await?), ("third", third.client(0, "admin").await?)]);
    for (server, octet) in [(&east, 108), (&third, 116), (&own, 100)] {
        namespaces(server)?;
        apply(server, source(octet)?)?;
    }
    // West links east twice and north once; north links east twice and west once.
    for importer in ["west", "north"] {
        let other = if importer == "west" { "north" } else { "west" };
        let links = BTreeMap::from([("east", "east"), ("east-gw", "east"), (other, "third")]);
        let kubeconfigs = BTreeMap::from([("east", account(&east).await?), ("third", account(&third).await?)]);
        let mut objects = fixture(&format!("{importer}-links.yaml"))?;
        objects.retain(|object| object["metadata"]["namespace"] == LINKERD);
        for object in &mut objects {
            if object["kind"] == "Secret" {
                let link =
                    object["metadata"]["name"].as_str().and_then(|name| name.strip_prefix("cluster-credentials-"));
                object["stringData"]["kubeconfig"] = json!(kubeconfigs[links[link.context("a link's Secret")?]]);
            }
        }
        apply(&own, objects)?;
        let mut mirror = Mirror::start(&own, "own").await?;
        mirror.until("east-gw", "connected", |facts| facts.is_connected).await?;
        mirror.until(other, "connected", |facts| facts.is_connected).await?;
        // Links alone make no Service: that is for Linkerd's mirror.
        assert_eq!(mirrored(&admin).await?, BTreeSet::new());
        let mut services = fixture(&format!("{importer}-mirrored.yaml"))?;
        services.retain(|object| object["kind"] == "Service");
        for service in &mut services {
            // This cluster's own range.
            let spec = service["spec"].as_object_mut().context("a spec")?;
            spec.retain(|field, _| !["clusterIP", "clusterIPs"].contains(&field.as_str()));
        }
        apply(&own, services)?;

        let discovery = Discovery { own: admin.clone(), peers: peers.clone(), links: links.clone() };
        let found = discovery.agrees("as recorded").await?;
        assert_eq!(found["frontend-federated"].len(), 9, "{found:?}");
        assert_eq!(found["api-east"], found["api-east-gw"]);
        assert_eq!(found["api-east"].len(), 2, "{found:?}");

        // A pod that isn't ready, a member that leaves by its label and then by the annotation, one that comes back.
        let slices: Api<EndpointSlice> = Api::namespaced(peers["east"].clone(), NAMESPACE);
        let ready = |ready: bool| {
            Patch::Merge(json!({"endpoints": [
                {"addresses": ["10.108.0.20"], "conditions": {"ready": ready}}, {"addresses": ["10.108.0.21"]},
            ]}))
        };
        slices.patch("api-1", &PatchParams::default(), &ready(false)).await?;
        assert_eq!(discovery.agrees("one not ready").await?["api-east"].len(), 1);
        slices.patch("api-1", &PatchParams::default(), &ready(true)).await?;
        let remote = Api::<Service>::namespaced(peers["third"].clone(), NAMESPACE);
        let federated =
            |value: Value| Patch::Merge(json!({"metadata": {"labels": {"mirror.linkerd.io/federated": value}}}));
        let before = annotation(&admin).await?;
        remote.patch("frontend", &PatchParams::default(), &federated(Value::Null)).await?;
        annotate(&admin, "frontend@east,frontend@east-gw").await?;
        assert_eq!(discovery.agrees("a member left").await?["frontend-federated"].len(), 6);
        remote.patch("frontend", &PatchParams::default(), &federated(json!("member"))).await?;
        annotate(&admin, &before).await?;
        assert_eq!(discovery.agrees("and came back").await?["frontend-federated"].len(), 9);

        // One of two links to east goes: its endpoints stay, for the other has them too.
        annotate(&admin, &before.replace(",frontend@east-gw", "").replace("frontend@east-gw,", "")).await?;
        let of_linkerd = linkerd_links(&admin);
        of_linkerd.delete("east-gw", &DeleteParams::default()).await?;
        Api::<Service>::namespaced(admin.clone(), NAMESPACE).delete("api-east-gw", &DeleteParams::default()).await?;
        assert_eq!(discovery.agrees("one of two links gone").await?["frontend-federated"].len(), 9);

        // The mirror has changed nothing of Linkerd's Services.
        for service in Api::<Service>::namespaced(admin.clone(), NAMESPACE).list(&ListParams::default()).await? {
            let managers = service.metadata.managed_fields.iter().flatten();
            let managers: Vec<_> = managers.filter_map(|entry| entry.manager.as_deref()).collect();
            assert!(!managers.contains(&"mirror.tombolo.io"), "{:?}", service.metadata.name);
        }
        for name in ["east", other] {
            of_linkerd.delete(name, &DeleteParams::default()).await?;
        }
        until("only the local member is left", || async {
            Ok(backends(&admin, NAMESPACE, "frontend-federated").await?.len() == 3
                && backends(&admin, NAMESPACE, "api-east").await?.is_empty())
        })
        .await?;
        drop(mirror);
        for name in mirrored(&admin).await? {
            Api::<Service>::namespaced(admin.clone(), NAMESPACE).delete(&name, &DeleteParams::default()).await?;
        }
        let ours = ListParams::default().labels("endpointslice.kubernetes.io/managed-by=mirror.tombolo.io");
        let slices: Api<EndpointSlice> = Api::namespaced(admin.clone(), NAMESPACE);
        slices.delete_collection(&DeleteParams::default(), &ours).await?;
    }
    Ok(())
}

/// Linkerd's discovery by its rules: members by annotation or label, each asked in its own cluster; a port by its number in
/// the member's Service and its name in the member's slices; endpoints that are not ready left out.
pub(crate) struct Discovery {
    pub(crate) own: Client,
    pub(crate) peers: BTreeMap<&'static str, Client>,
    /// The peer that each link leads to.
    pub(crate) links: BTreeMap<&'static str, &'static str>,
}

impl Discovery {
    /// Waits until the slices that the mirror wrote hold what this finds, for each federated and flat Service, and gives it.
    pub(crate) async fn agrees(&self, when: &str) -> anyhow::Result<BTreeMap<String, BTreeSet<String>>> {
        let result = until(when, || async { Ok(self.found().await? == self.filled().await?) }).await;
        let found = self.found().await?;
        result.with_context(|| format!("found {found:?}"))?;
        Ok(found)
    }

    /// What slices hold, with duplicates.
    async fn filled(&self) -> anyhow::Result<BTreeMap<String, BTreeSet<String>>> {
        let mut filled = BTreeMap::new();
        for service in self.found().await?.into_keys() {
            let all = backends(&self.own, NAMESPACE, &service).await?;
            let once: BTreeSet<String> = all.iter().cloned().collect();
            // A duplicate is as wrong as a missing one.
            if once.len() == all.len() {
                filled.insert(service, once);
            }
        }
        Ok(filled)
    }

    async fn found(&self) -> anyhow::Result<BTreeMap<String, BTreeSet<String>>> {
        let mut found = BTreeMap::new();
        let services = Api::<Service>::namespaced(self.own.clone(), NAMESPACE).list(&ListParams::default()).await?;
        for service in services.items {
            let meta = &service.metadata;
            let annotation = |name: &str| meta.annotations.as_ref().and_then(|all| all.get(name));
            let label = |name: &str| meta.labels.as_ref().and_then(|all| all.get(name));
            let mut members: Vec<(&Client, String)> = Vec::new();
            for member in
                annotation("multicluster.linkerd.io/remote-discovery").into_iter().flat_map(|it| it.split(','))
            {
                let Some((name, link)) = member.split_once('@') else { continue };
                members.extend(self.peer(link).map(|peer| (peer, name.to_owned())));
            }
            if let Some(local) = annotation("multicluster.linkerd.io/local-discovery") {
                members.push((&self.own, local.clone()));
            }
            if let (true, Some(link), Some(name)) = (
                members.is_empty(),
                label("multicluster.linkerd.io/remote-discovery"),
                label("multicluster.linkerd.io/remote-service"),
            ) {
                members.extend(self.peer(link).map(|peer| (peer, name.clone())));
            }
            if members.is_empty() {
                continue;
            }
            let ports: Vec<i32> = service
                .spec
                .into_iter()
                .flat_map(|spec| spec.ports.unwrap_or_default())
                .map(|port| port.port)
                .collect();
            let mut union = BTreeSet::new();
            for (cluster, name) in members {
                union.extend(endpoints(cluster, &name, &ports).await?);
            }
            found.insert(meta.name.clone().context("a name")?, union);
        }
        Ok(found)
    }

    fn peer(&self, link: &str) -> Option<&Client> {
        self.peers.get(self.links.get(link)?)
    }
}

async fn endpoints(cluster: &Client, name: &str, ports: &[i32]) -> anyhow::Result<BTreeSet<String>> {
    let Some(service) = Api::<Service>::namespaced(cluster.clone(), NAMESPACE).get_opt(name).await? else {
        return Ok(BTreeSet::new());
    };
    let of_member: BTreeMap<i32, String> = service
        .spec
        .into_iter()
        .flat_map(|spec| spec.ports.unwrap_or_default())
        .map(|port| (port.port, port.name.unwrap_or_default()))
        .collect();
    let slices: Api<EndpointSlice> = Api::namespaced(cluster.clone(), NAMESPACE);
    let of_service = ListParams::default().labels(&format!("kubernetes.io/service-name={name}"));
    let mut found = BTreeSet::new();
    for slice in slices.list(&of_service).await?.items {
        for port in ports.iter().filter_map(|port| of_member.get(port)) {
            let named = slice.ports.iter().flatten().find(|it| it.name.as_deref().unwrap_or_default() == port);
            let Some(number) = named.and_then(|port| port.port) else { continue };
            for endpoint in &slice.endpoints {
                let conditions = endpoint.conditions.as_ref();
                if conditions.and_then(|conditions| conditions.ready) != Some(false) {
                    found.insert(format!("{}:{number}", endpoint.addresses[0]));
                }
            }
        }
    }
    Ok(found)
}

/// The Services of the namespace that Linkerd's mirror made.
pub(crate) async fn mirrored(client: &Client) -> anyhow::Result<BTreeSet<String>> {
    let made = ListParams::default().labels("mirror.linkerd.io/mirrored-service=true");
    let services = Api::<Service>::namespaced(client.clone(), NAMESPACE).list(&made).await?;
    Ok(services.items.into_iter().filter_map(|service| service.metadata.name).collect())
}

async fn annotation(client: &Client) -> anyhow::Result<String> {
    let service = Api::<Service>::namespaced(client.clone(), NAMESPACE).get("frontend-federated").await?;
    let annotations = service.metadata.annotations.unwrap_or_default();
    Ok(annotations.get("multicluster.linkerd.io/remote-discovery").context("members")?.clone())
}

async fn annotate(client: &Client, members: &str) -> anyhow::Result<()> {
    let patch =
        Patch::Merge(json!({"metadata": {"annotations": {"multicluster.linkerd.io/remote-discovery": members}}}));
    let services = Api::<Service>::namespaced(client.clone(), NAMESPACE);
    services.patch("frontend-federated", &PatchParams::default(), &patch).await?;
    Ok(())
}

fn linkerd_links(client: &Client) -> Api<kube::api::DynamicObject> {
    let resource: ApiResource = kind("multicluster.linkerd.io", "v1alpha3", "Link", "links");
    Api::namespaced_with(client.clone(), LINKERD, &resource)
}

/// Linkerd's Links, at the versions that it serves.
pub(crate) fn define_links(server: &Server) -> anyhow::Result<()> {
    let schema = json!({"openAPIV3Schema": {"type": "object", "x-kubernetes-preserve-unknown-fields": true}});
    let version = |name: &str| json!({"name": name, "served": true, "storage": name == "v1alpha3", "schema": schema, "subresources": {"status": {}}});
    let definition = json!({
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": "links.multicluster.linkerd.io"},
        "spec": {
            "group": "multicluster.linkerd.io",
            "scope": "Namespaced",
            "names": {"kind": "Link", "plural": "links", "singular": "link"},
            "versions": [version("v1alpha2"), version("v1alpha3")],
        },
    });
    apply(server, vec![definition])
}

pub(crate) fn namespaces(server: &Server) -> anyhow::Result<()> {
    let namespace = |name: &str| json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}});
    apply(server, vec![namespace(NAMESPACE), namespace(LINKERD)])
}

/// A kubeconfig of the account that Linkerd's own links use, with its rights: ServiceExports are not among them.
pub(crate) async fn account(peer: &Server) -> anyhow::Result<String> {
    let name = "linkerd-service-mirror-remote-access-default";
    let rbac = "rbac.authorization.k8s.io";
    let rule = |group: &str, resources: Value| json!({"apiGroups": [group], "resources": resources, "verbs": ["get", "list", "watch"]});
    let role = json!({
        "apiVersion": format!("{rbac}/v1"), "kind": "ClusterRole", "metadata": {"name": name},
        "rules": [
            rule("", json!(["pods", "endpoints", "services"])),
            rule("discovery.k8s.io", json!(["endpointslices"])),
            rule("apps", json!(["replicasets"])),
        ],
    });
    let binding = json!({
        "apiVersion": format!("{rbac}/v1"), "kind": "ClusterRoleBinding", "metadata": {"name": name},
        "roleRef": {"apiGroup": rbac, "kind": "ClusterRole", "name": name},
        "subjects": [{"kind": "ServiceAccount", "name": name, "namespace": LINKERD}],
    });
    apply(peer, vec![role, binding])?;
    peer.kubeconfig_with(0, &peer.token(&format!("{LINKERD}/{name}"), 3600).await?)
}

/// The exporting side as it was recorded in east, at a cluster's addresses; `api` got no slice in the record.
pub(crate) fn source(octet: u8) -> anyhow::Result<Vec<Value>> {
    let text = serde_json::to_string(&fixture("east-source.yaml")?)?.replace("10.108.", &format!("10.{octet}."));
    let mut objects: Vec<Value> = serde_json::from_str(&text)?;
    for object in &mut objects {
        if let Some(spec) = object.get_mut("spec").and_then(Value::as_object_mut) {
            spec.retain(|field, _| !["clusterIP", "clusterIPs"].contains(&field.as_str()));
        }
        let meta = object["metadata"].as_object_mut().context("metadata")?;
        // The owner has no UID in the record.
        meta.remove("ownerReferences");
        meta.remove("generateName");
        if let Some(object) = object.as_object_mut() {
            object.remove("status");
        }
    }
    objects.retain(|object| octet != 100 || object["metadata"]["name"] != "api");
    if octet != 100 {
        objects.push(json!({
            "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
            "metadata": {
                "name": "api-1", "namespace": NAMESPACE,
                "labels": {
                    "kubernetes.io/service-name": "api",
                    "endpointslice.kubernetes.io/managed-by": "endpointslice-controller.k8s.io",
                },
            },
            "endpoints": [{"addresses": [format!("10.{octet}.0.20")]}, {"addresses": [format!("10.{octet}.0.21")]}],
            "ports": [{"name": "http", "port": 8080, "protocol": "TCP"}],
        }));
    }
    Ok(objects)
}

pub(crate) fn fixture(file: &str) -> anyhow::Result<Vec<Value>> {
    let path = format!("{}/fixtures/linkerd/{file}", env!("CARGO_MANIFEST_DIR"));
    let text = fs::read(&path).context(path)?;
    documents(&text)
        .into_iter()
        .map(|document| Ok(document.map_err(|error| anyhow::anyhow!("{error:?}"))?.value))
        .collect()
}
