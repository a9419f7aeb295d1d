//! Tests against a real API server: etcd and kube-apiserver on loopback, of the binaries that `cargo xtask kube` builds.
//!
//! Without these binaries every test says that it skips. They need no root and no node: what the agent would do
//! with what it is told is for the kernel tests.

#[path = "cluster/followed.rs"]
mod followed;
#[path = "cluster/objects.rs"]
mod objects;
#[path = "cluster/outage.rs"]
mod outage;
#[path = "cluster/rights.rs"]
mod rights;
#[path = "cluster/server.rs"]
mod server;
#[path = "cluster/sharing.rs"]
mod sharing;
