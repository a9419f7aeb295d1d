//! Whether the API server can be reached: one task tries while it can't, and all watches wait for it.
//!
//! So an agent asks once at a time, however many watches it has, and they all go on at the same moment.

use super::pace;
use kube::Client;
use std::{
    sync::atomic::{AtomicU32, Ordering},
    time::Duration,
};
use tokio::{
    sync::watch,
    time::{Instant, sleep, timeout},
};
use tracing::{info, warn};

/// How long an answer may take.
const PATIENCE: Duration = Duration::from_secs(10);
/// An API server that answers for so long is back; sooner, the tries are counted on.
const STEADY: Duration = Duration::from_secs(10);

/// What is known of the way to the API server.
pub(super) struct Reach {
    client: Client,
    is_up: watch::Sender<bool>,
    nodes: AtomicU32,
}

impl Reach {
    pub(super) fn new(client: Client) -> Self {
        Self { client, is_up: watch::Sender::new(true), nodes: AtomicU32::new(pace::ASSUMED_NODES) }
    }

    /// The cluster has so many nodes, each with an agent.
    pub(super) fn set_nodes(&self, nodes: u32) {
        self.nodes.store(nodes.max(1), Ordering::Relaxed);
    }

    /// Says that the API server could not be reached, and waits until it can.
    pub(super) async fn regain(&self, reason: &str) {
        if self.is_up.send_replace(false) {
            warn!(reason, "API server lost; what is known stays");
        }
        self.is_up.subscribe().wait_for(|is_up| *is_up).await.expect("the sender is ours");
    }

    /// Tries to reach the API server whenever it was lost.
    pub(super) async fn scout(&self) -> ! {
        let mut state = self.is_up.subscribe();
        let (mut attempt, mut regained) = (0, None::<Instant>);
        loop {
            state.wait_for(|is_up| !is_up).await.expect("the sender is ours");
            if regained.is_none_or(|at| at.elapsed() >= STEADY) {
                attempt = 0;
            }
            loop {
                sleep(pace::unreachable(attempt, self.nodes.load(Ordering::Relaxed), pace::chance())).await;
                attempt = attempt.saturating_add(1);
                if self.answers().await {
                    break;
                }
            }
            info!(attempt, "API server answers");
            regained = Some(Instant::now());
            self.is_up.send_replace(true);
        }
    }

    /// Whether it answers anything: whether it does what it is asked for is for who asks to find out.
    async fn answers(&self) -> bool {
        match timeout(PATIENCE, self.client.apiserver_version()).await {
            Ok(Ok(_)) => true,
            Ok(Err(kube::Error::Api(status))) => status.code < 500,
            Ok(Err(_)) | Err(_) => false,
        }
    }
}
