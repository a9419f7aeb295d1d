//! Linkerd: labels on the Service, matched by the link's selectors.

use super::Convention;
use crate::mirror::{
    names,
    source::{Link, Reach, Selector, Selectors, Service},
};

/// What Linkerd's own Links have, unless somebody changed them.
pub(in crate::mirror) fn default_selectors() -> Selectors {
    Selectors {
        gateway: Selector::label(names::LINKERD_EXPORTED, "true"),
        flat: Selector::label(names::LINKERD_EXPORTED, names::EXPORTED_FLAT),
        federated: Selector::label(names::LINKERD_FEDERATED, "member"),
    }
}

/// The conventions that `service` is exported by over `link`, and its name under each.
///
/// What matches both selectors is flat. A headless Service can't join a federated one, and has no gateway mirror either:
/// a gateway has one address, and the clients of a headless Service want to know pods apart.
pub(super) fn exports(name: &str, service: &Service, link: &Link) -> Vec<(Convention, String)> {
    let mut exports = Vec::new();
    if service.ports.is_empty() {
        return exports;
    }
    let is_headless = service.reach == Reach::Headless;
    if link.selectors.flat.matches(&service.labels) {
        exports.push((Convention::LinkerdFlat, mirror_name(name, &link.suffix)));
    } else if link.selectors.gateway.matches(&service.labels) && !is_headless {
        exports.push((Convention::LinkerdGateway, mirror_name(name, &link.suffix)));
    }
    if link.selectors.federated.matches(&service.labels) && !is_headless {
        exports.push((Convention::LinkerdFederated, federated_name(name)));
    }
    exports
}

/// Whether a Service of the own cluster is exported by the usual labels.
pub(super) fn is_exported(service: &Service) -> bool {
    let says = |label: &str| service.labels.get(label).map(String::as_str);
    let is_mirrored = matches!(says(names::LINKERD_EXPORTED), Some("true" | names::EXPORTED_FLAT));
    is_mirrored || says(names::LINKERD_FEDERATED) == Some("member")
}

/// Whether a Service of the own cluster joins the federated one.
pub(super) fn is_member(service: &Service) -> bool {
    let is_headless = service.reach == Reach::Headless;
    default_selectors().federated.matches(&service.labels) && !service.ports.is_empty() && !is_headless
}

pub(super) fn federated_name(name: &str) -> String {
    format!("{name}-federated")
}

pub(super) fn mirror_name(name: &str, suffix: &str) -> String {
    format!("{name}-{suffix}")
}

/// The names of Services that have this name here, as mirrors of a link's or federated.
pub(super) fn named_as<'a>(name: &'a str, suffix: &str) -> impl Iterator<Item = &'a str> {
    let without = |end: &str| name.strip_suffix(end)?.strip_suffix('-');
    [without(suffix), without("federated")].into_iter().flatten()
}
