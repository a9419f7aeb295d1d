//! What was resolved, kept: a change then costs what it concerns, not all there is.
//!
//! Services are resolved one by one, so what one of them is follows from it, its slices and those of its local member
//! alone. Two things don't: who has a frontend that two of them claim, and what a path is called that a cluster has
//! beside another. As soon as either plays a part, all is resolved anew, as it is when anything else changes that all depend on.
//! That a ServiceImport leaves its frontends to the Service derived from it is no such claim.

use super::{Conditions, is_derived, outcome, resolve};
use crate::{
    health::gateways,
    model::{Change, Model, ObjectName, Path, Place, ServiceKind, ServiceRef},
    tables::{Desired, DesiredService, Differing},
};
use std::collections::{BTreeMap, BTreeSet};
use tombolo_ebpf::abi::FrontendKey;

/// See the module.
#[derive(Debug, Default)]
pub struct Kept {
    desired: Desired,
    problems: BTreeMap<ServiceRef, Vec<String>>,
    services: BTreeMap<ServiceRef, Kin>,
    /// Who has each frontend.
    owners: BTreeMap<FrontendKey, ServiceRef>,
    /// Which ServiceImport would have a frontend if its owner had not.
    heirs: BTreeMap<FrontendKey, ServiceRef>,
    /// Whose local member each Service is.
    by_member: BTreeMap<ServiceRef, BTreeSet<ServiceRef>>,
    /// What changed since.
    touched: BTreeSet<ServiceRef>,
    /// The frontends for which something else is desired since that was asked.
    differing: Differing,
    /// Whether what is kept follows service by service.
    is_plain: bool,
}

/// What belongs to a service.
#[derive(Debug, Default)]
struct Kin {
    frontends: Vec<FrontendKey>,
    /// Those that it leaves to its derived Service.
    yielded: Vec<FrontendKey>,
    member: Option<ServiceRef>,
}

impl Kept {
    /// Takes note of a change that is about to be applied to `model`.
    pub fn touch(&mut self, model: &Model, change: &Change) {
        match change {
            Change::Service(name, _) => drop(self.touched.insert(name.clone())),
            Change::Slice(name, slice) => {
                let owners = [model.slices.get(name), slice.as_ref()];
                self.touched.extend(owners.into_iter().flatten().map(|slice| slice.owner.clone()));
            }
            Change::Pod(..) => {}
        }
    }

    /// Takes note of a change that concerns everything.
    pub fn forget(&mut self) {
        self.is_plain = false;
    }

    /// What the tables should hold of services, those of gateways by names of their own, and what people should know about
    /// each: all of `model`, in which nothing has changed but what this was told of.
    pub fn resolve(
        &mut self,
        model: &Model,
        place: &Place,
        conditions: &Conditions,
    ) -> (&mut Desired, &BTreeMap<ServiceRef, Vec<String>>) {
        let touched = std::mem::take(&mut self.touched);
        if !self.is_plain || !self.mend(touched, model, place, conditions) {
            self.begin(model, place, conditions);
        }
        (&mut self.desired, &self.problems)
    }

    /// The frontends for which something else may be desired since this was asked last.
    pub fn take_differing(&mut self) -> Differing {
        std::mem::take(&mut self.differing)
    }

    /// What the tables should hold, as it was resolved last.
    pub fn desired(&self) -> &Desired {
        &self.desired
    }

    /// Resolves everything.
    fn begin(&mut self, model: &Model, place: &Place, conditions: &Conditions) {
        self.differing = Differing::All;
        let resolved = resolve(model, place, conditions, &BTreeMap::new(), 0);
        (self.desired, self.problems) = (resolved.desired, resolved.problems);
        gateways::set_apart(&mut self.desired, &place.cluster);
        self.is_plain = !resolved.is_contested && !self.desired.services.values().any(has_gateway);
        (self.services, self.by_member) = (BTreeMap::new(), BTreeMap::new());
        (self.owners, self.heirs) = (BTreeMap::new(), BTreeMap::new());
        if self.is_plain {
            for (name, keys) in resolved.frontends {
                self.owners.extend(keys.iter().map(|key| (*key, name.clone())));
                self.kin(&name, model).frontends = keys;
            }
            for (name, keys) in resolved.yielded {
                self.heirs.extend(keys.iter().map(|key| (*key, name.clone())));
                self.kin(&name, model).yielded = keys;
            }
        }
    }

    /// What belongs to a service, with its local member from the beginning.
    fn kin(&mut self, name: &ServiceRef, model: &Model) -> &mut Kin {
        let by_member = &mut self.by_member;
        self.services.entry(name.clone()).or_insert_with(|| {
            let member = model.services.get(name).and_then(|service| service.local_member.as_ref()).map(|member| {
                let object = ObjectName { namespace: name.object.namespace.clone(), name: member.clone() };
                ServiceRef { kind: ServiceKind::Service, object }
            });
            if let Some(member) = &member {
                by_member.entry(member.clone()).or_default().insert(name.clone());
            }
            Kin { member, ..Kin::default() }
        })
    }

    /// Resolves these services and those that they are members of; whether that was enough.
    fn mend(
        &mut self,
        mut touched: BTreeSet<ServiceRef>,
        model: &Model,
        place: &Place,
        conditions: &Conditions,
    ) -> bool {
        let united: Vec<_> = touched.iter().filter_map(|name| self.by_member.get(name)).flatten().cloned().collect();
        touched.extend(united);
        let left = touched.iter().filter_map(|name| self.services.get(name)).flat_map(|kin| &kin.frontends);
        let heirs: Vec<_> = left.filter_map(|key| self.heirs.get(key)).cloned().collect();
        touched.extend(heirs);
        for name in &touched {
            self.forget_service(name);
        }
        // Services come before ServiceImports.
        for name in &touched {
            let Some(service) = model.services.get(name) else { continue };
            let (frontends, problems) = outcome(model, place, conditions, name, service);
            if !problems.is_empty() {
                self.problems.insert(name.clone(), problems);
            }
            self.kin(name, model);
            for (key, desired) in frontends {
                if has_gateway(&desired) || !self.claim(model, name, key, desired) {
                    return false;
                }
            }
        }
        true
    }

    fn forget_service(&mut self, name: &ServiceRef) {
        self.problems.remove(name);
        let Some(kin) = self.services.remove(name) else { return };
        for key in &kin.frontends {
            self.desired.services.remove(key);
            self.owners.remove(key);
        }
        for key in &kin.yielded {
            self.heirs.remove(key);
        }
        self.differing.extend(kin.frontends);
        if let Some(member) = kin.member
            && let Some(united) = self.by_member.get_mut(&member)
        {
            united.remove(name);
            if united.is_empty() {
                self.by_member.remove(&member);
            }
        }
    }

    /// Gives a service a frontend, or takes note that it leaves it to another one; whether it is clear who has it.
    fn claim(&mut self, model: &Model, name: &ServiceRef, key: FrontendKey, desired: DesiredService) -> bool {
        let owner = self.owners.get(&key).cloned();
        let heir = match &owner {
            None => None,
            Some(owner) if is_derived(model, owner, name) => Some(name.clone()),
            Some(owner) if is_derived(model, name, owner) => Some(owner.clone()),
            Some(_) => return false,
        };
        if let Some(heir) = &heir {
            if self.heirs.insert(key, heir.clone()).is_some() {
                return false;
            }
            let kin = self.kin(heir, model);
            kin.frontends.retain(|other| *other != key);
            kin.yielded.push(key);
        }
        if heir.as_ref() != Some(name) {
            self.differing.extend([key]);
            self.owners.insert(key, name.clone());
            self.desired.services.insert(key, desired);
            self.kin(name, model).frontends.push(key);
        }
        true
    }
}

fn has_gateway(service: &DesiredService) -> bool {
    let members = service.tiers.iter().flatten().flat_map(|group| &group.members);
    members.chain(&service.draining).any(|member| member.path == Path::Gateway)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{ClusterName, Endpoint, PeerState, Protocol, Service, ServicePort, Slice, Traffic};
    use proptest::prelude::*;
    use std::net::{IpAddr, Ipv4Addr};

    /// Two pairs of a ServiceImport and the Service derived from it, and a Service by itself, with slices of either.
    const NAMES: [(ServiceKind, u8); 5] = [
        (ServiceKind::Service, 1),
        (ServiceKind::ServiceImport, 1),
        (ServiceKind::Service, 2),
        (ServiceKind::ServiceImport, 2),
        (ServiceKind::Service, 3),
    ];

    #[test]
    fn a_service_import_does_not_have_all_resolved_anew() {
        let (mut model, mut kept) = (Model::default(), Kept::default());
        for name in 0..NAMES.len() {
            take(&mut model, &mut kept, service(name, true));
        }
        take(&mut model, &mut kept, slice(0, 1));
        look(&model, &mut kept);
        assert_eq!(kept.take_differing(), Differing::All);
        for (owner, number) in [(0, 1), (4, 3)] {
            take(&mut model, &mut kept, slice(owner, 2));
            look(&model, &mut kept);
            assert_eq!(kept.take_differing(), Differing::Only([frontend(number)].into()));
        }
        // The derived Service goes, and the frontend is the import's own.
        take(&mut model, &mut kept, service(0, false));
        look(&model, &mut kept);
        assert_eq!(kept.take_differing(), Differing::Only([frontend(1)].into()));
        assert!(kept.desired().services.contains_key(&frontend(1)));
    }

    proptest! {
        #[test]
        fn imports_and_derived_services_are_what_all_objects_together_give(
            changes in prop::collection::vec((0..NAMES.len(), 0..6u8, any::<bool>()), 1..40),
        ) {
            let (mut model, mut kept) = (Model::default(), Kept::default());
            for (name, endpoints, is_looked_at) in changes {
                let change = match endpoints {
                    0 => service(name, false),
                    1..=3 => service(name, true),
                    // A slice of the import's own makes the two rivals.
                    _ if name % 2 == 0 || endpoints == 5 => slice(name, endpoints),
                    _ => Change::Slice(slice_name(name), None),
                };
                take(&mut model, &mut kept, change);
                if is_looked_at {
                    let (desired, problems) = look(&model, &mut kept);
                    let whole = resolve(&model, &place(), &Conditions::default(), &BTreeMap::new(), 0);
                    prop_assert_eq!(desired, whole.desired);
                    prop_assert_eq!(problems, whole.problems);
                }
            }
        }
    }

    fn take(model: &mut Model, kept: &mut Kept, change: Change) {
        kept.touch(model, &change);
        model.apply(change);
    }

    fn look(model: &Model, kept: &mut Kept) -> (Desired, BTreeMap<ServiceRef, Vec<String>>) {
        let (desired, problems) = kept.resolve(model, &place(), &Conditions::default());
        (desired.clone(), problems.clone())
    }

    fn place() -> Place {
        Place { cluster: ClusterName("west".into()), node: "node".into(), zone: None }
    }

    fn service_ref(name: usize) -> ServiceRef {
        let (kind, number) = NAMES[name];
        ServiceRef { kind, object: ObjectName { namespace: "shop".into(), name: format!("{kind:?}-{number}") } }
    }

    fn slice_name(owner: usize) -> ObjectName {
        ObjectName { namespace: "shop".into(), name: format!("slice-{owner}") }
    }

    fn port(port: u16) -> Vec<ServicePort> {
        vec![ServicePort { name: String::new(), port, protocol: Protocol::Tcp }]
    }

    fn frontend(number: u8) -> FrontendKey {
        let addr = Ipv4Addr::new(10, 96, 0, number).to_ipv6_mapped().octets();
        FrontendKey { addr, port: [0, 80], proto: tombolo_ebpf::abi::TCP, pad: 0 }
    }

    fn service(name: usize, is_there: bool) -> Change {
        let service = Service {
            addresses: vec![IpAddr::from([10, 96, 0, NAMES[name].1])],
            ports: port(80),
            affinity: None,
            federated: true,
            opted_out: false,
            exclusive: true,
            abort: true,
            local_member: None,
            traffic: Traffic::default(),
            problems: Vec::new(),
        };
        Change::Service(service_ref(name), is_there.then_some(service))
    }

    fn slice(owner: usize, host: u8) -> Change {
        let slice = Slice {
            owner: service_ref(owner),
            source_cluster: Some(ClusterName("east".into())),
            built_in: false,
            path: Path::Pod,
            fallback: false,
            peer: PeerState::Fresh,
            weight: 1,
            ports: port(8080),
            endpoints: vec![Endpoint {
                address: IpAddr::from([10, 62, 1, host]),
                ready: true,
                serving: true,
                terminating: false,
                zone: None,
                node: None,
            }],
            problems: Vec::new(),
        };
        Change::Slice(slice_name(owner), Some(slice))
    }
}
