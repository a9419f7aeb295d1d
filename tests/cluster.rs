//! Tests against a real API server: etcd and kube-apiserver on loopback, of the binaries that `cargo xtask kube` builds.
//!
//! Without these binaries every test says that it skips. They need no root and no node: what the agent would do
//! with what it is told is for the kernel tests. `cargo xtask test` starts them where there is a loopback device and nothing
//! else: some endpoints are nobody's, and nobody is to be dialled there.

#[path = "cluster/admission.rs"]
mod admission;
#[path = "cluster/beside.rs"]
mod beside;
#[path = "cluster/conventions.rs"]
mod conventions;
#[path = "cluster/followed.rs"]
mod followed;
#[path = "cluster/gateway.rs"]
mod gateway;
#[path = "cluster/lifecycle.rs"]
mod lifecycle;
#[path = "cluster/linked.rs"]
mod linked;
#[path = "cluster/linkerd.rs"]
mod linkerd;
#[path = "cluster/links.rs"]
mod links;
#[path = "cluster/mcs.rs"]
mod mcs;
#[path = "cluster/objects.rs"]
mod objects;
#[path = "cluster/outage.rs"]
mod outage;
#[path = "cluster/pair.rs"]
mod pair;
#[path = "cluster/rights.rs"]
mod rights;
#[path = "cluster/server.rs"]
mod server;
#[path = "cluster/sharing.rs"]
mod sharing;
#[path = "cluster/values.rs"]
mod values;
