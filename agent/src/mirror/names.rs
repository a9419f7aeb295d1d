//! Labels and annotations that the mirror reads from peers and writes here. Those that the agent reads are the agent's.

pub(crate) use crate::sources::objects::names::*;

/// The mirror, as `endpointslice.kubernetes.io/managed-by`, as field manager, and as the value of [`MANAGED`].
pub(crate) const MIRROR: &str = "mirror.tombolo.io";
/// On every Service and ServiceImport that the mirror made: [`MIRROR`].
pub(crate) const MANAGED: &str = "tombolo.io/managed-by";
/// On every slice and Service that the mirror made: the kind of import that it is a part of.
pub(crate) const IMPORT_KIND: &str = "tombolo.io/import";
/// Annotation of Services and ServiceImports that the mirror made: a digest of what was applied.
pub(crate) const APPLIED: &str = "tombolo.io/applied";
/// Annotation of a gateway's Services: what each port is for, as JSON.
pub(crate) const GATEWAY_PORTS: &str = "tombolo.io/gateway-ports";
/// Annotation of a gateway's Services: the addresses and host names where it is, where its status doesn't say.
pub(crate) const GATEWAY_ADDRESSES: &str = "tombolo.io/gateway-addresses";
/// Prefix of all that is ours, and never copied from a peer but for the policies.
pub(crate) const OURS: &str = "tombolo.io/";

/// Annotation of ServiceImports: the Service that has their address.
pub(crate) const DERIVED: &str = "multicluster.kubernetes.io/derived-service";

/// On Services: exported by Linkerd's conventions, `true` through the gateway, [`EXPORTED_FLAT`] directly.
pub(crate) const LINKERD_EXPORTED: &str = "mirror.linkerd.io/exported";
/// A value of [`LINKERD_EXPORTED`].
pub(crate) const EXPORTED_FLAT: &str = "remote-discovery";
/// On Services: `member` to join the federated Service.
pub(crate) const LINKERD_FEDERATED: &str = "mirror.linkerd.io/federated";
/// On flat mirrors: the name of the Service in its own cluster.
pub(crate) const LINKERD_REMOTE_SERVICE: &str = "multicluster.linkerd.io/remote-service";
/// Annotation of Services: `false` to keep its own endpoints from other clusters.
pub(crate) const CILIUM_SHARED: &str = "service.cilium.io/shared";

/// Annotations of Linkerd's Links: the cluster's id, where its pods may be, where its gateways may be.
pub(crate) const LINK_CLUSTER: &str = "tombolo.io/cluster";
/// As above.
pub(crate) const POD_RANGES: &str = "tombolo.io/pod-ranges";
/// As above.
pub(crate) const GATEWAY_RANGES: &str = "tombolo.io/gateway-ranges";
