//! The agent's source on an API server, and the model that it feeds.

use super::server::Server;
use anyhow::Context;
use std::time::Duration;
use tokio::{
    sync::{mpsc, watch},
    task::JoinHandle,
    time::{Instant, timeout_at},
};
use tombolo::{
    model::{ClusterName, Model},
    report,
    sources::{
        Event, Problem,
        kubernetes::{KubernetesSource, connect},
        objects::Options,
    },
};

/// How long anything may take on a machine that may be busy.
pub(crate) const PATIENCE: Duration = Duration::from_secs(120);
/// The agent's node.
pub(crate) const NODE: &str = "node-1";

pub(crate) struct Followed {
    pub(crate) model: Model,
    pub(crate) synced: Option<bool>,
    pub(crate) pods_known: bool,
    pub(crate) zone: Option<String>,
    pub(crate) problems: Vec<Problem>,
    pub(crate) watches: watch::Receiver<Vec<report::Watch>>,
    events: mpsc::Receiver<Event>,
    task: JoinHandle<anyhow::Result<()>>,
}

impl Followed {
    /// Follows one of the API servers with a user's rights.
    pub(crate) async fn start(server: &Server, which: usize, user: &str) -> anyhow::Result<Self> {
        let client = connect(Some(&server.kubeconfig(which, user)?)).await?;
        let options = Options { cluster: ClusterName("west".to_owned()), node: NODE.to_owned(), all_services: false };
        let (told, events) = mpsc::channel(64);
        let (shown, watches) = watch::channel(Vec::new());
        let task = tokio::spawn(KubernetesSource::new(client, options, true, shown).run(told));
        Ok(Self {
            model: Model::default(),
            synced: None,
            pods_known: false,
            zone: None,
            problems: Vec::new(),
            watches,
            events,
            task,
        })
    }

    /// Takes in what is told until this holds.
    pub(crate) async fn until(&mut self, what: &str, holds: impl Fn(&Self) -> bool) -> anyhow::Result<()> {
        let deadline = Instant::now() + PATIENCE;
        while !holds(self) {
            let event = timeout_at(deadline, self.events.recv()).await;
            let event = event.with_context(|| format!("{what}: {:?} {:?}", self.model, self.problems))?;
            let Some(event) = event else {
                let ended = (&mut self.task).await?;
                anyhow::bail!("the source ended: {ended:?}");
            };
            self.take(event);
        }
        Ok(())
    }

    /// Takes in what is told in this time; whether that changed the model.
    pub(crate) async fn watch_for(&mut self, time: Duration) -> bool {
        let (deadline, before) = (Instant::now() + time, self.model.clone());
        while let Ok(Some(event)) = timeout_at(deadline, self.events.recv()).await {
            self.take(event);
        }
        self.model != before
    }

    pub(crate) fn services(&self) -> Vec<String> {
        self.model.services.keys().map(ToString::to_string).collect()
    }

    pub(crate) fn slices(&self) -> Vec<String> {
        self.model.slices.keys().map(ToString::to_string).collect()
    }

    fn take(&mut self, event: Event) {
        match event {
            Event::Changes(changes) => {
                for change in changes {
                    self.model.apply(change);
                }
            }
            Event::Synced { complete } => self.synced = Some(complete),
            Event::PodsKnown => self.pods_known = true,
            Event::Zone(zone) => self.zone = zone,
            Event::Problems(problems) => self.problems = problems,
        }
    }
}

impl Drop for Followed {
    fn drop(&mut self) {
        self.task.abort();
    }
}
