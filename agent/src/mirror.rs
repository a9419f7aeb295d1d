//! The controller that brings the peers' endpoints in: `tombolo mirror`.
//!
//! A pure middle with edges around it. Peers' objects become a [`World`](world::World); what an import should be follows from that
//! alone ([`import`]), and what is to be written from that and from what is there ([`plan`]). No clock, no I/O, no kube.
//!
//! The edges carry it out: [`controller`] runs the loop between watches of the API servers and a writer into the own one, [`leader`]
//! sees to it that there is only one.

pub mod check;
pub mod controller;
pub mod conventions;
pub mod crds;
pub mod gateway;
pub mod import;
pub mod leader;
pub mod lease;
pub mod links;
mod lookup;
pub(crate) mod names;
mod peer;
pub mod plan;
mod probe;
mod queue;
mod raw;
pub mod read;
pub mod render;
#[cfg(test)]
mod scene;
pub mod serve;
pub mod slices;
pub mod source;
pub mod validate;
pub mod values;
mod versions;
mod watch;
pub mod world;
mod writer;
