//! Istio ambient: a label on the Services of one name in all clusters.

use super::{Convention, Mark};
use crate::mirror::{names, source::Service};

pub(super) const MARK: Mark = Mark { convention: Convention::Istio, carries, shares: carries };

fn carries(service: &Service) -> bool {
    service.labels.get(names::ISTIO_GLOBAL).is_some_and(|value| value == "true")
}
