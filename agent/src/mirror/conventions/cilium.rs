//! Cilium: an annotation on the Services of one name in all clusters.

use super::{Convention, Mark};
use crate::mirror::{names, source::Service};

pub(super) const MARK: Mark = Mark {
    convention: Convention::Cilium,
    carries,
    // Exported unless it says otherwise; `affinity` is for the importing side, where the agent reads it.
    shares: |service| carries(service) && says(service, names::CILIUM_SHARED) != Some("false"),
};

fn carries(service: &Service) -> bool {
    says(service, names::CILIUM_GLOBAL) == Some("true")
}

fn says<'a>(service: &'a Service, annotation: &str) -> Option<&'a str> {
    service.annotations.get(annotation).map(String::as_str)
}
