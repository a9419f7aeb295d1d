//! Tombolo's node agent: data flows one way, from sources through a pure middle to the kernel.

pub mod alias;
pub mod cli;
pub mod control;
pub mod datapath;
pub mod health;
pub mod mirror;
pub mod model;
pub mod plan;
pub mod prefixes;
pub mod reconcile;
pub mod report;
pub mod resolve;
pub mod sources;
pub mod tables;
pub mod telemetry;
