//! Labels and annotations that mean something here, and what a name may be.

use crate::model::ObjectName;

/// On slices: the Service they belong to.
pub(crate) const SERVICE_NAME: &str = "kubernetes.io/service-name";
/// On slices: who writes them.
pub(crate) const MANAGED_BY: &str = "endpointslice.kubernetes.io/managed-by";
/// A value of [`MANAGED_BY`]: made from the pods that a Service selects.
pub(crate) const SLICE_CONTROLLER: &str = "endpointslice-controller.k8s.io";
/// A value of [`MANAGED_BY`]: copied from an Endpoints object that somebody else made.
pub(crate) const SLICE_MIRRORING_CONTROLLER: &str = "endpointslicemirroring-controller.k8s.io";

/// On slices: the ServiceImport they belong to.
pub(crate) const IMPORT_NAME: &str = "multicluster.kubernetes.io/service-name";
/// On slices: the cluster their endpoints are in.
pub(crate) const SOURCE_CLUSTER: &str = "multicluster.kubernetes.io/source-cluster";

/// On everything that a Linkerd mirror makes: `true`.
pub(crate) const LINKERD_MIRRORED: &str = "mirror.linkerd.io/mirrored-service";
/// On what a Linkerd mirror makes for one link: the link's target.
pub(crate) const LINKERD_CLUSTER: &str = "mirror.linkerd.io/cluster-name";
/// Annotation of a mirror Service: the mirror's own book-keeping, so a sign of Linkerd's mirror.
pub(crate) const LINKERD_RESOURCE_VERSION: &str = "mirror.linkerd.io/remote-resource-version";
/// Annotation of Endpoints, copied to slices: the TLS identity that the gateway has.
pub(crate) const LINKERD_GATEWAY_IDENTITY: &str = "mirror.linkerd.io/remote-gateway-identity";
/// Label of a flat mirror (the cluster), annotation of a federated Service (`service@cluster`, comma separated).
pub(crate) const LINKERD_REMOTE_DISCOVERY: &str = "multicluster.linkerd.io/remote-discovery";
/// Annotation of a federated Service: the local member.
pub(crate) const LINKERD_LOCAL_DISCOVERY: &str = "multicluster.linkerd.io/local-discovery";

/// Annotation: shared with the Services of the same name in other clusters.
pub(crate) const CILIUM_GLOBAL: &str = "service.cilium.io/global";
/// Annotation: which clusters' endpoints come first.
pub(crate) const CILIUM_AFFINITY: &str = "service.cilium.io/affinity";
/// Label: shared with the Services of the same name in other clusters.
pub(crate) const ISTIO_GLOBAL: &str = "istio.io/global";
/// Annotation of pods, written by Istio's node agent when it has taken the pod in.
pub(crate) const ISTIO_REDIRECTION: &str = "ambient.istio.io/redirection";

/// Annotation of pods that the kubelet has from a file: the UID that it knows them by.
pub(super) const MIRROR_POD: &str = "kubernetes.io/config.mirror";

/// On slices: the Service whose last resort these endpoints are.
pub(crate) const FALLBACK_FOR: &str = "tombolo.io/fallback-for";
/// On slices: `gateway` or `pod`.
pub(crate) const PATH: &str = "tombolo.io/path";
/// On slices: `fresh`, `lost` while their cluster's API is not heard, `stale` once it has not been for long.
pub(crate) const PEER_STATE: &str = "tombolo.io/peer-state";
/// Annotation of slices: how many pods one endpoint stands for.
pub(crate) const WEIGHT: &str = "tombolo.io/weight";
/// Annotation of Services and pods: `true` to be left alone.
pub(crate) const OPT_OUT: &str = "tombolo.io/opt-out";
/// Annotation of Services: the Service of the same namespace that is the own cluster's member, where Linkerd's would mislead
/// Linkerd.
pub(crate) const LOCAL_MEMBER: &str = "tombolo.io/local-member";
/// Annotation of Services: `false` to leave connections to what is known dead alone.
pub(crate) const ABORT: &str = "tombolo.io/abort";
/// Annotation of Services: which endpoints come first.
pub(crate) const TRAFFIC: &str = "tombolo.io/traffic";
/// Annotation of Services: clusters in their order.
pub(crate) const CLUSTERS: &str = "tombolo.io/clusters";
/// Annotation of Services: per cent for clusters.
pub(crate) const WEIGHTS: &str = "tombolo.io/weights";
/// Annotation of Services: how many local endpoints carry the whole load.
pub(crate) const LOCAL_MINIMUM: &str = "tombolo.io/local-minimum";

/// Whether a Service may never be shared by a mere mark: a cluster's own API server and DNS are nobody else's.
pub fn barred(name: &ObjectName) -> bool {
    name.namespace == "kube-system" || (name.namespace == "default" && name.name == "kubernetes")
}

/// An RFC 1123 label.
pub(crate) fn is_label(text: &str) -> bool {
    text.len() <= 63 && !text.contains('.') && is_subdomain(text)
}

/// An RFC 1123 subdomain.
pub(crate) fn is_subdomain(text: &str) -> bool {
    text.len() <= 253
        && text.split('.').all(|label| {
            !label.starts_with('-')
                && !label.ends_with('-')
                && !label.is_empty()
                && label.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-')
        })
}
