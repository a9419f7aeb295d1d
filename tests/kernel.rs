//! Real sockets through the programs in the real kernel. Needs root, and says so without.
//!
//! Tests run side by side in one process. Each has a ground of its own (`kernel/ground.rs`), and its clients are threads in
//! a cgroup of their own; so no test may move the whole process to another cgroup or namespace.

#[path = "kernel/abort.rs"]
mod abort;
#[path = "kernel/affinity.rs"]
mod affinity;
#[path = "kernel/agent_cli.rs"]
mod agent_cli;
#[path = "kernel/agent_draining.rs"]
mod agent_draining;
#[path = "kernel/agent_egress.rs"]
mod agent_egress;
#[path = "kernel/agent_foreign.rs"]
mod agent_foreign;
#[path = "kernel/agent_healing.rs"]
mod agent_healing;
#[path = "kernel/agent_kills.rs"]
mod agent_kills;
#[path = "kernel/agent_layouts.rs"]
mod agent_layouts;
#[path = "kernel/agent_lifecycle.rs"]
mod agent_lifecycle;
#[path = "kernel/agent_manifests.rs"]
mod agent_manifests;
#[path = "kernel/agent_pods.rs"]
mod agent_pods;
#[path = "kernel/agent_privileges.rs"]
mod agent_privileges;
#[path = "kernel/agent_programs.rs"]
mod agent_programs;
#[path = "kernel/agent_resolvers.rs"]
mod agent_resolvers;
#[path = "kernel/agent_site.rs"]
mod agent_site;
#[path = "kernel/agent_sizes.rs"]
mod agent_sizes;
#[path = "kernel/agent_unprivileged.rs"]
mod agent_unprivileged;
#[path = "kernel/chi.rs"]
mod chi;
#[path = "kernel/clock.rs"]
mod clock;
#[path = "kernel/company.rs"]
mod company;
#[path = "kernel/conversations.rs"]
mod conversations;
#[path = "kernel/draws.rs"]
mod draws;
#[path = "kernel/egress.rs"]
mod egress;
#[path = "kernel/ejection.rs"]
mod ejection;
#[path = "kernel/events.rs"]
mod events;
#[path = "kernel/flows.rs"]
mod flows;
#[path = "kernel/ground.rs"]
mod ground;
#[path = "kernel/losses.rs"]
mod losses;
#[path = "kernel/matrix.rs"]
mod matrix;
#[path = "kernel/pods.rs"]
mod pods;
#[path = "kernel/ranges.rs"]
mod ranges;
#[path = "kernel/refusal.rs"]
mod refusal;
#[path = "kernel/removal.rs"]
mod removal;
#[path = "kernel/scene.rs"]
mod scene;
#[path = "kernel/servers.rs"]
mod servers;
#[path = "kernel/shares.rs"]
mod shares;
#[path = "kernel/sockets.rs"]
mod sockets;
#[path = "kernel/suspicion.rs"]
mod suspicion;
#[path = "kernel/symmetry.rs"]
mod symmetry;
#[path = "kernel/tables.rs"]
mod tables;
#[path = "kernel/uring.rs"]
mod uring;
#[path = "kernel/verifier.rs"]
mod verifier;
