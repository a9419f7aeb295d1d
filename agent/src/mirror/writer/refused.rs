//! Steps that an API server refused, and what must not be deleted meanwhile: what was to come in its place isn't there.

use crate::{
    mirror::plan::{Kind, Step},
    model::ClusterName,
};
use std::collections::BTreeSet;

/// A step, and the one cluster that it is about; none where it is about what all members have a part in.
pub(crate) type Sourced = (Option<ClusterName>, Step);

/// A step that was refused.
#[derive(Clone, Debug)]
pub(crate) struct Denial {
    /// What was to be done.
    pub(crate) step: Step,
    /// Why it wasn't, as the API server said it.
    pub(crate) reason: String,
}

/// What was refused of one import's steps.
#[derive(Debug, Default)]
pub(crate) struct Refused {
    /// Clusters for which slices are put in these steps.
    put: BTreeSet<ClusterName>,
    /// Whose steps were refused.
    sources: BTreeSet<Option<ClusterName>>,
}

impl Refused {
    /// Nothing of these steps, so far.
    pub(crate) fn none_of(steps: &[Sourced]) -> Self {
        let put = steps.iter().filter(|(_, step)| matches!(step, Step::Put(Kind::Slice, ..)));
        Self { put: put.filter_map(|(source, _)| source.clone()).collect(), sources: BTreeSet::new() }
    }

    /// A step of this source is.
    pub(crate) fn add(&mut self, source: Option<ClusterName>) {
        self.sources.insert(source);
    }

    /// Whether a step has to wait: a deletion of the same source, and, while what all have a part in is not as it should be, that
    /// of a slice which others come in place of.
    pub(crate) fn has_wait(&self, (source, step): &Sourced) -> bool {
        let is_replaced = || source.as_ref().is_some_and(|source| self.put.contains(source));
        matches!(step, Step::Delete(..))
            && (self.sources.contains(source) || self.sources.contains(&None) && is_replaced())
    }
}

/// What came of a step when it was tried last, if it was refused.
pub(crate) fn known<'a>(known: &'a [Denial], step: &Step) -> Option<&'a Denial> {
    known.iter().find(|denial| denial.step.is_same(step))
}

/// Whether of these steps none is left but those that were refused (`known`), and those that wait for these.
pub(crate) fn is_all_of(steps: &[Sourced], known: &[Denial]) -> bool {
    let mut refused = Refused::none_of(steps);
    steps.iter().all(|sourced| {
        let is_known = self::known(known, &sourced.1).is_some();
        if is_known {
            refused.add(sourced.0.clone());
        }
        is_known || refused.has_wait(sourced)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::ObjectName;
    use serde_json::json;

    #[test]
    fn what_is_refused_of_one_cluster_holds_back_nothing_of_others() {
        let put = |cluster: &str| sourced(cluster, Step::Put(Kind::Slice, name(cluster), json!({})));
        let delete = |cluster: &str| sourced(cluster, Step::Delete(Kind::Slice, name(cluster), None));
        let service = (None, Step::Put(Kind::Service, name("service"), json!({})));
        let no_import = (None, Step::Delete(Kind::Import, name("import"), None));
        let steps = [service, put("east"), put("north"), delete("east"), delete("north"), delete("south"), no_import];
        for (refused, waiting) in [
            (vec![], vec![]),
            (vec![Some("east")], vec![3]),
            (vec![Some("east"), Some("south")], vec![3, 5]),
            // South's goes, since nothing comes in its place.
            (vec![None], vec![3, 4, 6]),
        ] {
            let mut all = Refused::none_of(&steps);
            for source in &refused {
                all.add(source.map(|source| ClusterName(source.to_owned())));
            }
            let held: Vec<usize> = (0..steps.len()).filter(|place| all.has_wait(&steps[*place])).collect();
            assert_eq!(held, waiting, "{refused:?}");
        }
    }

    #[test]
    fn a_status_that_was_refused_is_the_same_whenever_it_is_planned() {
        let status = |time: &str, reason: &str| {
            let condition = json!({"type": "Ready", "status": "False", "reason": reason, "lastTransitionTime": time});
            json!({"clusters": [{"cluster": "east"}], "conditions": [condition]})
        };
        let step = |name: &str, status| Step::PutStatus(Kind::Export, self::name(name), status);
        let denial = Denial {
            step: step("api", status("2026-01-01T00:00:00Z", "Pending")),
            reason: "forbidden (403)".to_owned(),
        };
        for (step, is_known) in [
            (step("api", status("2026-01-01T00:00:00Z", "Pending")), true),
            (step("api", status("2026-01-01T00:00:07Z", "Pending")), true),
            (step("api", status("2026-01-01T00:00:07Z", "Taken")), false),
            (step("cart", status("2026-01-01T00:00:00Z", "Pending")), false),
            (Step::PutStatus(Kind::Import, name("api"), status("2026-01-01T00:00:00Z", "Pending")), false),
            (Step::Put(Kind::Export, name("api"), status("2026-01-01T00:00:00Z", "Pending")), false),
        ] {
            let known = std::slice::from_ref(&denial);
            assert_eq!(self::known(known, &step).is_some(), is_known, "{step:?}");
            assert_eq!(is_all_of(&[(None, step.clone())], known), is_known, "{step:?}");
        }
    }

    fn sourced(cluster: &str, step: Step) -> Sourced {
        (Some(ClusterName(cluster.to_owned())), step)
    }

    fn name(name: &str) -> ObjectName {
        ObjectName { namespace: "shop".to_owned(), name: name.to_owned() }
    }
}
