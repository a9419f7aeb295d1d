//! Clusters made of network namespaces and cgroups, on one machine, for the demo, the kernel tests and the benches.
//!
//! The parts, from the ground up: [`netns`] is the network, links and routes included, [`cgroup`] is where pods live,
//! [`nft`] is what stands in the way of packets, [`process`] is what runs there, and [`cleanup`] takes all of it away
//! again, whatever happens. Everything that has a name on the machine is called `tombolo-lab-<pid>…` after the process
//! that made it; nothing else is ever touched.
//!
//! All of it needs root.

pub mod addresses;
pub mod attempts;
pub mod bpffs;
pub mod caller;
pub mod cgroup;
pub mod cleanup;
pub mod clusters;
pub mod demo;
pub mod dial;
pub mod faults;
pub mod kills;
pub mod kube_proxy;
pub mod kubernetes;
mod links;
pub mod load;
pub mod manifests;
pub mod netns;
pub mod nft;
pub mod process;
pub mod report;
pub mod server;
pub mod soak;
pub mod threads;
mod told;
