//! Makes Services federated to which another cluster's slices belong.
//!
//! Whatever put them there (any implementation of the MCS API, or Tombolo's mirror for a Service that carries a mark), a
//! Service with slices from a source cluster is shared. An object alone doesn't show that, so this looks at the
//! stream of changes that a source is about to deliver.

use super::objects::barred;
use crate::model::{Change, ObjectName, Service, ServiceKind, ServiceRef, Slice};
use std::collections::BTreeMap;

/// What has passed so far, as far as it matters.
#[derive(Debug, Default)]
pub struct Joined {
    /// Services that are not federated by themselves.
    plain: BTreeMap<ServiceRef, Service>,
    /// How many slices from source clusters belong to each Service that has any.
    slices_by_service: BTreeMap<ServiceRef, usize>,
    /// The Services that these slices belong to.
    service_by_slice: BTreeMap<ObjectName, ServiceRef>,
}

impl Joined {
    /// `changes` with `federated` set where it has to be, and with the Services that they make federated, or no longer so.
    pub fn pass(&mut self, changes: Vec<Change>) -> Vec<Change> {
        let mut passed = Vec::with_capacity(changes.len());
        let mut touched = Touched::new();
        for change in changes {
            match change {
                Change::Service(name, Some(service)) if !service.federated && can_join(&name) => {
                    touched.insert(name.clone(), None);
                    self.plain.insert(name, service);
                    continue;
                }
                Change::Service(ref name, _) => drop(self.plain.remove(name)),
                Change::Slice(ref name, ref slice) => self.note(name, slice.as_ref(), &mut touched),
                Change::Pod(..) => {}
            }
            passed.push(change);
        }
        for (name, delivered) in touched {
            let federated = self.is_joined(&name);
            if let Some(service) = self.plain.get(&name)
                && delivered != Some(federated)
            {
                passed.push(Change::Service(name, Some(Service { federated, ..service.clone() })));
            }
        }
        passed
    }

    fn is_joined(&self, name: &ServiceRef) -> bool {
        self.slices_by_service.contains_key(name)
    }

    fn note(&mut self, name: &ObjectName, slice: Option<&Slice>, touched: &mut Touched) {
        let owner = slice.filter(|slice| slice.source_cluster.is_some()).map(|slice| &slice.owner);
        if self.service_by_slice.get(name) == owner {
            return;
        }
        if let Some(old) = self.service_by_slice.remove(name) {
            touched.entry(old.clone()).or_insert(Some(self.is_joined(&old)));
            if let Some(slices) = self.slices_by_service.get_mut(&old) {
                *slices -= 1;
                if *slices == 0 {
                    self.slices_by_service.remove(&old);
                }
            }
        }
        if let Some(owner) = owner {
            touched.entry(owner.clone()).or_insert(Some(self.is_joined(owner)));
            *self.slices_by_service.entry(owner.clone()).or_default() += 1;
            self.service_by_slice.insert(name.clone(), owner.clone());
        }
    }
}

/// Services that may have to be delivered, with the `federated` that they were delivered with; none if they are new.
type Touched = BTreeMap<ServiceRef, Option<bool>>;

/// A ServiceImport is federated anyhow; kube-system and the API server never are by a mere mark.
fn can_join(name: &ServiceRef) -> bool {
    name.kind == ServiceKind::Service && !barred(&name.object)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{ClusterName, Model, Path, PeerState, Traffic};
    use proptest::prelude::*;

    #[test]
    fn a_service_is_joined_by_its_first_slice_and_parted_by_its_last() {
        let mut joined = Joined::default();
        assert_eq!(joined.pass(vec![put(0, false)]), [put(0, false)]);
        assert_eq!(joined.pass(vec![slice(1, Some(0), true)]), [slice(1, Some(0), true), put(0, true)]);
        assert_eq!(joined.pass(vec![slice(2, Some(0), true)]), [slice(2, Some(0), true)]);
        assert_eq!(joined.pass(vec![slice(1, None, false)]), [slice(1, None, false)]);
        assert_eq!(joined.pass(vec![slice(2, Some(0), false)]), [slice(2, Some(0), false), put(0, false)]);
    }

    #[test]
    fn a_service_that_comes_after_its_slice_is_delivered_once_and_joined() {
        let mut joined = Joined::default();
        let passed = joined.pass(vec![slice(1, Some(0), true), put(0, false)]);
        assert_eq!(passed, [slice(1, Some(0), true), put(0, true)]);
        assert_eq!(joined.pass(vec![put(0, false)]), [put(0, true)]);
    }

    proptest! {
        /// Whatever the order and the batches, the model ends as if it had been looked at as a whole.
        #[test]
        fn the_way_there_does_not_matter(batches in proptest::collection::vec(proptest::collection::vec(change(), 0..6), 0..12)) {
            let (mut joined, mut raw, mut passed) = (Joined::default(), Model::default(), Model::default());
            for batch in batches {
                for change in &batch {
                    raw.apply(change.clone());
                }
                for change in joined.pass(batch) {
                    passed.apply(change);
                }
                let mut whole = raw.clone();
                for (name, service) in &mut whole.services {
                    service.federated |= can_join(name) && raw.slices_of(name).any(|slice| slice.source_cluster.is_some());
                }
                prop_assert_eq!(&passed, &whole);
            }
        }
    }

    fn change() -> impl Strategy<Value = Change> {
        prop_oneof![
            (0..4u8, any::<bool>()).prop_map(|(name, federated)| put(name, federated)),
            (0..4u8).prop_map(|name| Change::Service(service_ref(name), None)),
            (0..5u8, proptest::option::of(0..4u8), any::<bool>())
                .prop_map(|(name, owner, remote)| slice(name, owner, remote)),
        ]
    }

    /// Number 3 is one that can't be joined.
    fn service_ref(number: u8) -> ServiceRef {
        let namespace = if number == 3 { "kube-system" } else { "shop" };
        let object = ObjectName { namespace: namespace.to_owned(), name: format!("service-{number}") };
        ServiceRef { kind: ServiceKind::Service, object }
    }

    fn put(number: u8, federated: bool) -> Change {
        let service = Service {
            addresses: Vec::new(),
            ports: Vec::new(),
            affinity: None,
            federated,
            opted_out: false,
            exclusive: false,
            abort: true,
            local_member: None,
            traffic: Traffic::default(),
            problems: Vec::new(),
        };
        Change::Service(service_ref(number), Some(service))
    }

    fn slice(number: u8, owner: Option<u8>, remote: bool) -> Change {
        let name = ObjectName { namespace: "shop".to_owned(), name: format!("slice-{number}") };
        let slice = owner.map(|owner| Slice {
            owner: service_ref(owner),
            source_cluster: remote.then(|| ClusterName("east".to_owned())),
            built_in: false,
            path: Path::Pod,
            fallback: false,
            peer: PeerState::Fresh,
            problems: Vec::new(),
            weight: 1,
            ports: Vec::new(),
            endpoints: Vec::new(),
        });
        Change::Slice(name, slice)
    }
}
