//! What was resolved, kept: a change then costs what it concerns, not all there is.
//!
//! Services are resolved one by one, so what one of them is follows from it, its slices and those of its local member
//! alone. Two things don't: who has a frontend that two of them claim, and what a path is called that a cluster has
//! beside another. As soon as either plays a part, all is resolved anew, as it is when anything else changes that all depend on.

use super::{Conditions, outcome, resolve};
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
        if self.is_plain {
            for (name, frontends) in resolved.frontends {
                self.keep(&name, model, frontends);
            }
        }
    }

    fn keep(&mut self, name: &ServiceRef, model: &Model, frontends: Vec<FrontendKey>) {
        let member = model.services.get(name).and_then(|service| service.local_member.as_ref()).map(|member| {
            let object = ObjectName { namespace: name.object.namespace.clone(), name: member.clone() };
            ServiceRef { kind: ServiceKind::Service, object }
        });
        if let Some(member) = &member {
            self.by_member.entry(member.clone()).or_default().insert(name.clone());
        }
        self.services.insert(name.clone(), Kin { frontends, member });
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
        for name in &touched {
            self.problems.remove(name);
            let Some(kin) = self.services.remove(name) else { continue };
            for key in &kin.frontends {
                self.desired.services.remove(key);
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
        for name in &touched {
            let Some(service) = model.services.get(name) else { continue };
            let (frontends, problems) = outcome(model, place, conditions, name, service);
            if !problems.is_empty() {
                self.problems.insert(name.clone(), problems);
            }
            let keys: Vec<FrontendKey> = frontends.keys().copied().collect();
            self.differing.extend(keys.iter().copied());
            for (key, desired) in frontends {
                if has_gateway(&desired) || self.desired.services.insert(key, desired).is_some() {
                    return false;
                }
            }
            self.keep(name, model, keys);
        }
        true
    }
}

fn has_gateway(service: &DesiredService) -> bool {
    let members = service.tiers.iter().flatten().flat_map(|group| &group.members);
    members.chain(&service.draining).any(|member| member.path == Path::Gateway)
}
