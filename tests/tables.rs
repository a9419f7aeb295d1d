//! The pure middle as a whole, without privileges: model → tables → writes, against a kernel that is data.

#[path = "tables/conditions.rs"]
mod conditions;
#[path = "tables/departures.rs"]
mod departures;
#[path = "tables/desired.rs"]
mod desired;
#[path = "tables/kept.rs"]
mod kept;
#[path = "tables/kernel.rs"]
mod kernel;
#[path = "tables/overfull.rs"]
mod overfull;
#[path = "tables/peers.rs"]
mod peers;
#[path = "tables/plans.rs"]
mod plans;
#[path = "tables/policy.rs"]
mod policy;
#[path = "tables/sequences.rs"]
mod sequences;
#[path = "tables/speed.rs"]
mod speed;
#[path = "tables/world.rs"]
mod world;
