//! What is shown, each scene a file.

mod agent_killed;
mod agent_removed;
mod cluster_back;
mod cluster_leaves;
mod cluster_loss;
mod exported;
mod federated;
mod flat;
mod gateway;
mod local_first;
mod marked;
mod meshed;
mod mirror_stopped;
mod rolling_update;
mod weights;

use super::stage::Stage;
use anyhow::Result;

/// Something to show.
pub(super) struct Play {
    pub(super) name: &'static str,
    /// Whether it is one of the demo's; the others are for the tests.
    pub(super) is_demo: bool,
    /// Plays it. An error fails the scene; so does a request that failed, an address that was not hidden, or no request.
    pub(super) play: fn(&mut Stage<'_>) -> Result<()>,
}

/// All scenes, in the order in which they are played.
pub(super) const SCENES: &[Play] = &[
    Play { name: "federated", is_demo: true, play: federated::play },
    Play { name: "flat", is_demo: true, play: flat::play },
    Play { name: "gateway", is_demo: true, play: gateway::play },
    Play { name: "marked", is_demo: false, play: marked::play },
    Play { name: "exported", is_demo: false, play: exported::play },
    Play { name: "meshed", is_demo: false, play: meshed::play },
    Play { name: "weights", is_demo: true, play: weights::play },
    Play { name: "local-first", is_demo: true, play: local_first::play },
    Play { name: "rolling-update", is_demo: true, play: rolling_update::play },
    Play { name: "mirror-stopped", is_demo: true, play: mirror_stopped::play },
    Play { name: "cluster-leaves", is_demo: true, play: cluster_leaves::play },
    Play { name: "agent-killed", is_demo: true, play: agent_killed::play },
    Play { name: "agent-removed", is_demo: true, play: agent_removed::play },
    Play { name: "cluster-loss", is_demo: true, play: cluster_loss::play },
    Play { name: "cluster-back", is_demo: true, play: cluster_back::play },
];
