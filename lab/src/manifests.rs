//! What `kubectl get services -o yaml` and `kubectl get endpointslices -o yaml` would print in a cluster: the objects
//! that its own controllers wrote, and those that a mirror wrote for services of other clusters, named and labelled as
//! Linkerd's multicluster does it.

use crate::addresses::Dual;
use anyhow::{Context, Result};
use serde_json::{Map, Value, json};
use std::{
    collections::BTreeMap,
    fs,
    net::IpAddr,
    path::{Path, PathBuf},
};

/// The namespace that all objects are in.
pub const NAMESPACE: &str = "demo";
/// What clients dial.
pub const SERVICE_PORT: u16 = 80;
/// What pods listen on.
pub const POD_PORT: u16 = 8080;

/// A Service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Service {
    /// Its name.
    pub name: String,
    /// Its ClusterIPs.
    pub addresses: Dual,
    /// How it came into the cluster.
    pub origin: Origin,
    /// Further annotations.
    pub annotations: BTreeMap<String, String>,
}

/// How a Service came into its cluster, and so whose endpoints it has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origin {
    /// A person made it; the pods are this cluster's.
    Local,
    /// The mirror made it for a service of one other cluster.
    Mirrored {
        /// That cluster.
        cluster: String,
        /// The service's name there.
        service: String,
        /// Whether its endpoints are that cluster's gateway, not the pods.
        gateway: bool,
    },
    /// The mirror made it for all services of the name `service`, this cluster's own one included.
    Federated {
        /// The name.
        service: String,
        /// The other clusters that export it.
        members: Vec<String>,
    },
}

/// The endpoints of a Service in one cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoints {
    /// The Service in this cluster.
    pub service: String,
    /// Who wrote them.
    pub source: Source,
    /// The port that they listen on.
    pub port: u16,
    /// The endpoints.
    pub endpoints: Vec<Endpoint>,
}

/// Who wrote a slice.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// The built-in controller, for the cluster's own pods.
    BuiltIn,
    /// The mirror.
    Mirror {
        /// The cluster that the endpoints are in.
        cluster: String,
        /// The service's name there.
        service: String,
        /// Whether the endpoints are that cluster's gateway, in front of the pods.
        gateway: bool,
    },
}

/// A pod, or a gateway.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoint {
    /// Its addresses.
    pub addresses: Dual,
    /// What may be sent to it.
    pub condition: Condition,
    /// The zone it is in.
    pub zone: Option<String>,
    /// The node and the name of a pod of this cluster; the mirror can't say them of others.
    pub pod: Option<(String, String)>,
}

/// What may be sent to an endpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Condition {
    /// Everything.
    Ready,
    /// Nothing.
    NotReady,
    /// What it has: it still serves, but is about to end.
    Terminating,
}

/// A folder of manifests that an agent watches.
#[derive(Debug)]
pub struct Folder {
    path: PathBuf,
}

impl Folder {
    /// Makes the folder `path`. What is being written lies beside it until it is complete.
    pub fn new(path: PathBuf) -> Result<Self> {
        fs::create_dir_all(&path).with_context(|| format!("create {}", path.display()))?;
        Ok(Self { path })
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Puts these objects there, instead of what was there. Each file is replaced as a whole, Services and slices in
    /// one file each; a file that would not change is left alone.
    pub fn write(&self, services: &[Service], slices: &[Endpoints]) -> Result<()> {
        self.replace("services.yaml", services.iter().map(service).collect())?;
        self.replace("endpointslices.yaml", slices.iter().flat_map(slices_of).collect())
    }

    fn replace(&self, name: &str, items: Vec<Value>) -> Result<()> {
        let list = json!({"apiVersion": "v1", "kind": "List", "items": items});
        let text = serde_saphyr::to_string(&list).with_context(|| format!("write {name} as YAML"))?;
        let path = self.path.join(name);
        if fs::read_to_string(&path).is_ok_and(|old| old == text) {
            return Ok(());
        }
        let draft = self.path.with_extension(format!("{name}.new"));
        fs::write(&draft, text).with_context(|| format!("write {}", draft.display()))?;
        fs::rename(&draft, &path).with_context(|| format!("replace {}", path.display()))
    }
}

fn service(service: &Service) -> Value {
    let mut labels = Map::new();
    let mut annotations: Map<String, Value> =
        service.annotations.iter().map(|(key, value)| (key.clone(), json!(value))).collect();
    match &service.origin {
        Origin::Local => {}
        Origin::Mirrored { cluster, service, gateway } => {
            if !gateway {
                labels.insert("multicluster.linkerd.io/remote-discovery".to_owned(), json!(cluster));
                labels.insert("multicluster.linkerd.io/remote-service".to_owned(), json!(service));
            }
            labels.insert("mirror.linkerd.io/mirrored-service".to_owned(), json!("true"));
            labels.insert("mirror.linkerd.io/cluster-name".to_owned(), json!(cluster));
            let full_name = format!("{service}.{NAMESPACE}.svc.cluster.local");
            annotations.insert("mirror.linkerd.io/remote-svc-fq-name".to_owned(), json!(full_name));
        }
        Origin::Federated { service, members } => {
            labels.insert("mirror.linkerd.io/mirrored-service".to_owned(), json!("true"));
            let members: Vec<String> = members.iter().map(|cluster| format!("{service}@{cluster}")).collect();
            annotations.insert("multicluster.linkerd.io/local-discovery".to_owned(), json!(service));
            annotations.insert("multicluster.linkerd.io/remote-discovery".to_owned(), json!(members.join(",")));
        }
    }
    let port = |name: &str, protocol: &str| json!({"name": name, "port": SERVICE_PORT, "protocol": protocol, "targetPort": POD_PORT});
    json!({
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": service.name, "namespace": NAMESPACE, "labels": labels, "annotations": annotations},
        "spec": {
            "type": "ClusterIP",
            "clusterIP": service.addresses.v4,
            "clusterIPs": service.addresses.both(),
            "ipFamilies": ["IPv4", "IPv6"],
            "ipFamilyPolicy": "RequireDualStack",
            "internalTrafficPolicy": "Cluster",
            "sessionAffinity": "None",
            "ports": [port("http", "TCP"), port("echo", "UDP")],
        },
        "status": {"loadBalancer": {}},
    })
}

/// A slice for each family.
fn slices_of(endpoints: &Endpoints) -> [Value; 2] {
    ["IPv4", "IPv6"].map(|family| slice(endpoints, family))
}

fn slice(slice: &Endpoints, family: &str) -> Value {
    let mut labels = Map::new();
    labels.insert("kubernetes.io/service-name".to_owned(), json!(slice.service));
    let (manager, from) = match &slice.source {
        Source::BuiltIn => ("endpointslice-controller.k8s.io", "local"),
        Source::Mirror { cluster, service, gateway } => {
            labels.insert("multicluster.kubernetes.io/service-name".to_owned(), json!(service));
            labels.insert("multicluster.kubernetes.io/source-cluster".to_owned(), json!(cluster));
            if *gateway {
                labels.insert("tombolo.io/path".to_owned(), json!("gateway"));
            }
            ("mirror.tombolo.io", cluster.as_str())
        }
    };
    labels.insert("endpointslice.kubernetes.io/managed-by".to_owned(), json!(manager));
    let port = |name: &str, protocol: &str| json!({"name": name, "port": slice.port, "protocol": protocol});
    json!({
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "metadata": {
            "name": format!("{}-{from}-{}", slice.service, family.to_lowercase()),
            "namespace": NAMESPACE,
            "labels": labels,
        },
        "addressType": family,
        "ports": [port("http", "TCP"), port("echo", "UDP")],
        "endpoints": slice.endpoints.iter().map(|each| endpoint(each, family)).collect::<Vec<_>>(),
    })
}

fn endpoint(endpoint: &Endpoint, family: &str) -> Value {
    let address: IpAddr = if family == "IPv4" { endpoint.addresses.v4.into() } else { endpoint.addresses.v6.into() };
    let (ready, serving, terminating) = match endpoint.condition {
        Condition::Ready => (true, true, false),
        Condition::NotReady => (false, false, false),
        Condition::Terminating => (false, true, true),
    };
    let mut value = json!({
        "addresses": [address],
        "conditions": {"ready": ready, "serving": serving, "terminating": terminating},
    });
    if let Some(zone) = &endpoint.zone {
        value["zone"] = json!(zone);
    }
    if let Some((node, pod)) = &endpoint.pod {
        value["nodeName"] = json!(node);
        value["targetRef"] = json!({"kind": "Pod", "name": pod, "namespace": NAMESPACE});
    }
    value
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::addresses;

    #[test]
    fn a_federated_service_names_its_local_member_and_the_others() {
        let object = service(&Service {
            name: "frontend-federated".to_owned(),
            addresses: addresses::service(1, 20),
            origin: Origin::Federated {
                service: "frontend".to_owned(),
                members: vec!["east".to_owned(), "north".to_owned()],
            },
            annotations: BTreeMap::from([("tombolo.io/weights".to_owned(), "north=10".to_owned())]),
        });
        assert_eq!(
            object["metadata"]["annotations"],
            json!({
                "multicluster.linkerd.io/local-discovery": "frontend",
                "multicluster.linkerd.io/remote-discovery": "frontend@east,frontend@north",
                "tombolo.io/weights": "north=10",
            })
        );
        assert_eq!(object["spec"]["clusterIPs"], json!(["10.101.0.20", "fd00:101::20"]));
    }

    #[test]
    fn a_slice_of_the_mirror_says_where_its_endpoints_are_but_not_on_which_node() {
        let [v4, v6] = slices_of(&Endpoints {
            service: "api-east".to_owned(),
            source: Source::Mirror { cluster: "east".to_owned(), service: "api".to_owned(), gateway: false },
            port: POD_PORT,
            endpoints: vec![Endpoint {
                addresses: addresses::pod(addresses::Network::Flat, 2, 1, 5),
                condition: Condition::Terminating,
                zone: Some("east-a".to_owned()),
                pod: None,
            }],
        });
        assert_eq!(v4["metadata"]["labels"]["multicluster.kubernetes.io/source-cluster"], "east");
        assert_eq!((&v4["addressType"], &v4["endpoints"][0]["addresses"][0]), (&json!("IPv4"), &json!("10.62.1.5")));
        assert_eq!(
            (&v6["addressType"], &v6["endpoints"][0]["addresses"][0]),
            (&json!("IPv6"), &json!("fd62:0:0:1::5"))
        );
        let conditions = json!({"ready": false, "serving": true, "terminating": true});
        assert_eq!(v4["endpoints"][0]["conditions"], conditions);
        assert_eq!(v4["endpoints"][0].get("nodeName"), None);
    }

    #[test]
    fn files_are_replaced_as_a_whole() -> Result<()> {
        let path = std::env::temp_dir().join(format!("tombolo-lab-test-{}", std::process::id()));
        let folder = Folder::new(path.clone())?;
        folder.write(&[], &[])?;
        let mut names: Vec<_> = fs::read_dir(&path)?.map(|entry| entry.unwrap().file_name()).collect();
        names.sort();
        assert_eq!(names, ["endpointslices.yaml", "services.yaml"]);
        let text = fs::read_to_string(path.join("services.yaml"))?;
        assert_eq!(text, "apiVersion: v1\nitems: []\nkind: List\n");
        fs::remove_dir_all(path)?;
        Ok(())
    }
}
