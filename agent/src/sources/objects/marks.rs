//! Which Services are federated, by the marks of each convention.
//!
//! | convention | mark on the Service | kind |
//! |---|---|---|
//! | Linkerd, flat | label `mirror.linkerd.io/mirrored-service: "true"` | under a name of its own |
//! | Linkerd, federated | the same label, or a `…/local-discovery` or `…/remote-discovery` annotation | under a name of its own |
//! | MCS API, derived Service | owned by a ServiceImport | under a name of its own |
//! | Cilium | annotation `service.cilium.io/global: "true"` | joined by mark |
//! | Istio ambient | label `istio.io/global: "true"` | joined by mark |
//! | any other | a slice with `multicluster.kubernetes.io/source-cluster`: see [`joined`](crate::sources::joined) | joined by mark |
//!
//! A local member (`mirror.linkerd.io/federated: member`) is exported, not federated: who dials it means the own cluster.

use super::{annotation, label, names};
use crate::model::ObjectName;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

/// How a Service came to be shared between clusters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Shared {
    /// A mirror made it, or a person did in a mirror's way.
    UnderItsOwnName,
    /// A person's own Service, which carries a mark.
    ByMark,
    /// It leads through a Linkerd gateway. That refuses what comes from no Linkerd proxy, and a pod with
    /// a proxy is left alone anyway, so there is nobody to whom we could be of use.
    ByLinkerdGateway,
    /// It isn't.
    No,
}

pub(super) fn shared(name: &ObjectName, meta: &ObjectMeta) -> Shared {
    let linkerd_made = label(meta, names::LINKERD_MIRRORED) == Some("true");
    let discovered = [names::LINKERD_LOCAL_DISCOVERY, names::LINKERD_REMOTE_DISCOVERY]
        .iter()
        .any(|name| annotation(meta, name).is_some());
    // Mirrors that Tombolo makes without Linkerd have the same names and labels, but not this book-keeping.
    let gateway = linkerd_made
        && !discovered
        && label(meta, names::LINKERD_CLUSTER).is_some()
        && label(meta, names::LINKERD_REMOTE_DISCOVERY).is_none()
        && annotation(meta, names::LINKERD_RESOURCE_VERSION).is_some();
    let derived = meta.owner_references.iter().flatten().any(|owner| owner.kind == "ServiceImport");
    let marked =
        annotation(meta, names::CILIUM_GLOBAL) == Some("true") || label(meta, names::ISTIO_GLOBAL) == Some("true");
    if gateway {
        Shared::ByLinkerdGateway
    } else if linkerd_made || discovered || derived {
        Shared::UnderItsOwnName
    } else if marked && !names::barred(name) {
        Shared::ByMark
    } else {
        Shared::No
    }
}
