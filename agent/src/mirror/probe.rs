//! Whether pods of a peer whose API server isn't heard still answer.

use super::{source::LinkName, watch, world::World};
use crate::model::{ObjectName, Path};
use std::{collections::BTreeSet, net::SocketAddr, time::Duration};
use tokio::{net::TcpStream, task::JoinSet, time::timeout};

/// Endpoints that are dialled at most.
const PROBES: usize = 5;
/// How long an answer may take.
const PATIENCE: Duration = Duration::from_secs(1);

/// Where ready endpoints of a peer are dialled by TCP, a few of different services: of one that wasn't heard yet those that
/// are written.
pub(super) fn targets(world: &World, link: &LinkName) -> Vec<SocketAddr> {
    let exports = world.imports().flat_map(|key| world.exporters(key));
    let exported: BTreeSet<(&ObjectName, Path)> = exports
        .filter(|(exporter, _)| watch::link(&exporter.0) == Some(link))
        .map(|(exporter, export)| (&exporter.1, export.path))
        .collect();
    let heard = exported.into_iter().filter_map(|(service, path)| world.target(link, service, path));
    heard.chain(world.written_targets(link)).take(PROBES).collect()
}

/// Whether any of them answers, were it by a refusal; none if there is nothing to ask.
pub(super) async fn answers(targets: Vec<SocketAddr>) -> Option<bool> {
    let mut dials = JoinSet::new();
    for target in targets {
        dials.spawn(async move {
            match timeout(PATIENCE, TcpStream::connect(target)).await {
                Ok(Ok(_)) => true,
                Ok(Err(error)) => error.kind() == std::io::ErrorKind::ConnectionRefused,
                Err(_) => false,
            }
        });
    }
    let mut found = None;
    while let Some(answered) = dials.join_next().await {
        found = Some(found.unwrap_or(false) || answered.unwrap_or(false));
    }
    found
}
