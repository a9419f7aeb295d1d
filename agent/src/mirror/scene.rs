//! Tests: a cluster with a mirror, and an API server that does what is asked of it.

use super::{
    import::{Fate, Imported, desired},
    links,
    plan::{Kind, Step, steps},
    read,
    source::{Link, LinkName, Origin},
    world::{Change, ImportKey, ImportKind, World},
};
use crate::model::{ClusterName, ObjectName};
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};

pub(super) const NOW: &str = "2026-11-21T12:00:00Z";

/// West, with namespace `shop`, and what its API server holds that the mirror wrote.
#[derive(Clone)]
pub(super) struct Scene {
    pub(super) world: World,
    pub(super) objects: BTreeMap<(Kind, ObjectName), Value>,
    /// All writes, in order.
    pub(super) written: Vec<Step>,
    made: u32,
}

impl Scene {
    pub(super) fn new() -> Self {
        Self::of("west")
    }

    /// Another cluster than west.
    pub(super) fn of(name: &str) -> Self {
        let mut world = World::new(cluster(name));
        world.apply(Change::Namespace("shop".to_owned(), true));
        let mut scene = Self { world, objects: BTreeMap::new(), written: Vec::new(), made: 0 };
        scene.service("", "default/kubernetes", json!({}), json!([{"name": "https", "port": 443}]));
        scene
    }

    /// With flat links to these clusters, the first one the oldest.
    pub(super) fn linked(links: &[&str]) -> Self {
        let mut scene = Self::new();
        for (age, name) in (100..).zip(links) {
            scene.link(name, |link| link.created = age);
            scene.world.apply(Change::Listed(LinkName((*name).to_owned())));
        }
        scene
    }

    pub(super) fn link(&mut self, name: &str, change: impl FnOnce(&mut Link)) {
        let mut link = link(name);
        change(&mut link);
        self.world.apply(Change::Link(LinkName(name.to_owned()), Some(Box::new(link))));
    }

    /// A Service of `origin` (the own cluster if that is empty); `meta` holds its labels, annotations and so on.
    pub(super) fn service(&mut self, origin: &str, name: &str, meta: Value, ports: Value) {
        self.service_with(origin, name, meta, json!({"ports": ports, "selector": {"app": "x"}}));
    }

    pub(super) fn service_with(&mut self, origin: &str, name: &str, meta: Value, spec: Value) {
        let object = service(name, meta, spec);
        let service = read::service(serde_json::from_value(object).unwrap());
        self.world.apply(Change::Service(self::origin(origin), self::name(name), Some(Box::new(service))));
    }

    /// A gateway's Service, at one address of a load balancer, that leads to these Services' ports.
    pub(super) fn gateway(&mut self, origin: &str, name: &str, address: &str, ports: &[(&str, u16, u16)]) {
        let claim = |(service, port, number): &(&str, u16, u16)| {
            (format!("tcp-{number}"), json!({"service": self::name(service).to_string(), "port": port}))
        };
        let claims: serde_json::Map<String, Value> = ports.iter().map(claim).collect();
        let meta = json!({
            "labels": {"tombolo.io/managed-by": "mirror.tombolo.io", "tombolo.io/import": "gateway"},
            "annotations": {"tombolo.io/gateway-ports": json!(claims).to_string()},
        });
        let port = |(_, _, number): &(&str, u16, u16)| json!({"name": format!("tcp-{number}"), "port": number});
        let spec = json!({"type": "LoadBalancer", "ports": ports.iter().map(port).collect::<Vec<_>>()});
        let mut object = service(name, meta, spec);
        object["status"] = json!({"loadBalancer": {"ingress": [{"ip": address}]}});
        self.object(origin, &object);
    }

    /// A Service or a slice of `origin`, as its API server has it.
    pub(super) fn object(&mut self, origin: &str, object: &Value) {
        let (meta, object) = (&object["metadata"], object.clone());
        let name = ObjectName {
            namespace: meta["namespace"].as_str().unwrap().to_owned(),
            name: meta["name"].as_str().unwrap().to_owned(),
        };
        let origin = self::origin(origin);
        self.world.apply(if object["addressType"].is_string() {
            Change::Slice(origin, name, read::slice(serde_json::from_value(object).unwrap()))
        } else {
            Change::Service(origin, name, Some(Box::new(read::service(serde_json::from_value(object).unwrap()))))
        });
    }

    pub(super) fn no_service(&mut self, origin: &str, name: &str) {
        self.world.apply(Change::Service(self::origin(origin), self::name(name), None));
    }

    /// The built-in slice of a Service, with one TCP port.
    pub(super) fn slice(&mut self, origin: &str, service: &str, addresses: &[&str], port: (&str, u16)) {
        let ports = json!([{"name": port.0, "port": port.1, "protocol": "TCP"}]);
        let endpoints: Vec<Value> = addresses.iter().map(|address| json!({"addresses": [address]})).collect();
        self.slice_with(origin, service, json!(endpoints), ports);
    }

    pub(super) fn slice_with(&mut self, origin: &str, service: &str, endpoints: Value, ports: Value) {
        let name = self::name(&format!("{service}-x7k2p"));
        let object = json!({
            "metadata": {
                "name": name.name,
                "namespace": name.namespace,
                "labels": {
                    "kubernetes.io/service-name": self::name(service).name,
                    "endpointslice.kubernetes.io/managed-by": "endpointslice-controller.k8s.io",
                },
            },
            "addressType": if endpoints[0]["addresses"][0].as_str().is_some_and(|it| it.contains(':')) { "IPv6" } else { "IPv4" },
            "endpoints": endpoints,
            "ports": ports,
        });
        let written = read::slice(serde_json::from_value(object).unwrap());
        self.world.apply(Change::Slice(self::origin(origin), name, written));
    }

    pub(super) fn no_slice(&mut self, origin: &str, service: &str) {
        let name = self::name(&format!("{service}-x7k2p"));
        self.world.apply(Change::Slice(self::origin(origin), name, None));
    }

    pub(super) fn export(&mut self, origin: &str, name: &str, created: i64, spec: Value) {
        let mut export = read::export(serde_json::from_value(json!({"spec": spec})).unwrap(), origin.is_empty());
        export.created = created;
        let is_own = origin.is_empty();
        let name = self::name(name);
        if is_own {
            self.objects.insert((Kind::Export, name.clone()), json!({"created": created, "spec": spec}));
        }
        self.world.apply(Change::Export(self::origin(origin), name, Some(export)));
    }

    pub(super) fn no_export(&mut self, origin: &str, name: &str) {
        let name = self::name(name);
        if origin.is_empty() {
            self.objects.remove(&(Kind::Export, name.clone()));
        }
        self.world.apply(Change::Export(self::origin(origin), name, None));
    }

    /// Lets the mirror write until nothing is left to do.
    pub(super) fn settle(&mut self) {
        for _ in 0..20 {
            let dirty = self.world.take_dirty();
            if dirty.is_empty() {
                return;
            }
            for key in dirty {
                for step in steps(&self.world, &key, NOW).1 {
                    self.perform(step);
                }
            }
        }
        panic!("never settles: {:#?}", self.written.iter().rev().take(4).collect::<Vec<_>>());
    }

    /// As an API server does.
    fn perform(&mut self, step: Step) {
        self.written.push(step.clone());
        match step {
            Step::Put(kind, name, mut body) => {
                let old = self.objects.get(&(kind, name.clone()));
                self.made += 1;
                body["metadata"]["uid"] = match old {
                    Some(old) => old["metadata"]["uid"].clone(),
                    None => json!(format!("uid-{}", self.made)),
                };
                if let Some(old) = old {
                    body["status"] = old["status"].clone();
                }
                let is_headless = |object: &Value| object["spec"]["clusterIP"] == json!("None");
                let is_same = old.is_none_or(|old| is_headless(old) == is_headless(&body));
                assert!(kind != Kind::Service || is_same, "{name}: clusterIP is immutable");
                if kind == Kind::Service && !is_headless(&body) {
                    let ip =
                        old.map_or(json!(format!("10.96.1.{}", self.made)), |old| old["spec"]["clusterIP"].clone());
                    body["spec"]["clusterIPs"] = json!([ip]);
                    body["spec"]["clusterIP"] = ip;
                    body["spec"]["ipFamilies"] = json!(["IPv4"]);
                }
                if matches!(body["spec"]["type"].as_str(), Some("NodePort" | "LoadBalancer")) {
                    let before = |port: &Value| {
                        let ports = old.and_then(|old| old["spec"]["ports"].as_array());
                        ports
                            .into_iter()
                            .flatten()
                            .find(|it| it["name"] == port["name"])
                            .map(|it| it["nodePort"].clone())
                    };
                    for (port, free) in body["spec"]["ports"].as_array_mut().unwrap().iter_mut().zip(100 * self.made..)
                    {
                        port["nodePort"] = before(port).unwrap_or_else(|| json!(30_000 + free % 2768));
                    }
                }
                self.objects.insert((kind, name.clone()), body);
                self.show(kind, &name);
            }
            Step::SetPorts(name, ports) => {
                self.objects.get_mut(&(Kind::Service, name.clone())).unwrap()["spec"]["ports"] = ports;
                self.show(Kind::Service, &name);
            }
            Step::PutStatus(kind, name, status) => {
                self.objects.get_mut(&(kind, name.clone())).unwrap()["status"] = status;
                self.show(kind, &name);
            }
            Step::Delete(kind, name, _) => {
                assert!(self.objects.remove(&(kind, name.clone())).is_some(), "{kind:?} {name} isn't there");
                self.show(kind, &name);
            }
        }
    }

    /// A namespace goes, and all that is in it.
    pub(super) fn no_namespace(&mut self, namespace: &str) {
        self.world.apply(Change::Namespace(namespace.to_owned(), false));
        let gone = self.objects.keys().filter(|(kind, name)| *kind != Kind::Export && name.namespace == namespace);
        for (kind, name) in gone.cloned().collect::<Vec<_>>() {
            self.objects.remove(&(kind, name.clone()));
            self.show(kind, &name);
        }
    }

    /// As a watch does.
    fn show(&mut self, kind: Kind, name: &ObjectName) {
        let object = self.objects.get(&(kind, name.clone())).cloned();
        let name = name.clone();
        self.world.apply(match kind {
            Kind::Service => {
                let service = object.map(|it| Box::new(read::service(serde_json::from_value(it).unwrap())));
                Change::Service(Origin::Own, name, service)
            }
            Kind::Slice => {
                let slice = object.and_then(|it| read::slice(serde_json::from_value(it).unwrap()));
                Change::Slice(Origin::Own, name, slice)
            }
            Kind::Import => Change::Import(name, object.map(|it| read::import(serde_json::from_value(it).unwrap()))),
            Kind::Export => {
                let object = object.unwrap();
                let created = object["created"].as_i64().unwrap();
                let mut export = read::export(serde_json::from_value(object).unwrap(), true);
                export.created = created;
                Change::Export(Origin::Own, name, Some(export))
            }
        });
    }

    /// A mirror that starts anew: it knows what the API server holds, and nothing of peers yet.
    pub(super) fn restarted(&self, links: &[&str]) -> Self {
        let mut scene = Self::of(&self.world.own.name.0);
        for (age, name) in (100..).zip(links) {
            scene.link(name, |link| link.created = age);
        }
        scene.objects.clone_from(&self.objects);
        scene.made = self.made;
        let names: Vec<_> = self.objects.keys().cloned().collect();
        for (kind, name) in names {
            scene.show(kind, &name);
        }
        scene
    }

    pub(super) fn get(&self, kind: Kind, name: &str) -> &Value {
        self.objects.get(&(kind, self::name(name))).unwrap_or_else(|| panic!("no {kind:?} {name}: {:#?}", self.names()))
    }

    pub(super) fn has(&self, kind: Kind, name: &str) -> bool {
        self.objects.contains_key(&(kind, self::name(name)))
    }

    /// The names of all objects but ServiceExports.
    pub(super) fn names(&self) -> Vec<String> {
        let objects = self.objects.keys().filter(|(kind, _)| *kind != Kind::Export);
        objects.map(|(kind, name)| format!("{kind:?} {name}")).collect()
    }

    /// The slices that name a Service, as `cluster address:port,port name …`, in order; those for the agent alone with `!`.
    pub(super) fn endpoints(&self, service: &str) -> Vec<String> {
        let service = name(service);
        let mut found = Vec::new();
        for ((kind, _), object) in &self.objects {
            let labels = &object["metadata"]["labels"];
            let owner = |label: &str| labels[label].as_str().is_some_and(|owner| owner == service.name);
            let (is_its, is_fallback) = (owner("kubernetes.io/service-name"), owner("tombolo.io/fallback-for"));
            if *kind != Kind::Slice
                || object["metadata"]["namespace"] != json!(service.namespace)
                || !(is_its || is_fallback)
            {
                continue;
            }
            let ports: Vec<String> = object["ports"]
                .as_array()
                .unwrap()
                .iter()
                .map(|port| format!("{}={}", port["name"].as_str().unwrap_or(""), port["port"]))
                .collect();
            for endpoint in object["endpoints"].as_array().unwrap() {
                let cluster = labels["multicluster.kubernetes.io/source-cluster"].as_str().unwrap();
                let address = endpoint["addresses"][0].as_str().unwrap();
                let ready = if endpoint["conditions"]["ready"] == json!(true) { "" } else { " unready" };
                let mark = if is_fallback { "!" } else { "" };
                found.push(format!("{mark}{cluster} {address} {}{ready}", ports.join(",")));
            }
        }
        found.sort();
        found
    }

    pub(super) fn desired(&self, kind: ImportKind, name: &str) -> Imported {
        desired(&self.world, &ImportKey { kind, object: self::name(name) })
    }

    /// What should be, by import, without what the API server chose.
    pub(super) fn all_desired(&self) -> BTreeMap<ImportKey, Imported> {
        let all: BTreeSet<ImportKey> = self.world.imports().cloned().collect();
        let wish = |key: ImportKey| {
            let mut imported = desired(&self.world, &key);
            if let Fate::Put(service) = &mut imported.service
                && let Some(owner) = &mut service.owner
            {
                owner.uid.clear();
            }
            if let Fate::Put(import) = &mut imported.import {
                import.spec.ips.iter_mut().for_each(String::clear);
            }
            (key, imported)
        };
        all.into_iter().map(wish).collect()
    }
}

pub(super) fn link(name: &str) -> Link {
    links::plain(cluster(name), 100)
}

pub(super) fn service(name: &str, mut meta: Value, mut spec: Value) -> Value {
    let name = self::name(name);
    meta["name"] = json!(name.name);
    meta["namespace"] = json!(name.namespace);
    if spec["ipFamilies"].is_null() {
        spec["ipFamilies"] = json!(["IPv4"]);
    }
    json!({"metadata": meta, "spec": spec})
}

/// `namespace/name`, `shop` if there is none.
pub(super) fn name(text: &str) -> ObjectName {
    let (namespace, name) = text.split_once('/').unwrap_or(("shop", text));
    ObjectName { namespace: namespace.to_owned(), name: name.to_owned() }
}

pub(super) fn origin(name: &str) -> Origin {
    if name.is_empty() { Origin::Own } else { Origin::Link(LinkName(name.to_owned())) }
}

pub(super) fn cluster(name: &str) -> ClusterName {
    ClusterName(name.to_owned())
}
