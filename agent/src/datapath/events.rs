//! What the programs tell, as it comes.

use super::bpf;
use anyhow::{Context, ensure};
use aya::maps::{Map, MapData, RingBuf};
use tokio::io::unix::AsyncFd;
use tombolo_ebpf::abi::{Event, map};

/// The most that is taken out at a time, so that who reads it gets to other things in between.
const MOST: usize = 1024;

/// Reads [`map::EVENTS`], whose reader there can be one of. What nobody reads stays there until it is full, across
/// restarts too; then programs count [`EventLost`](tombolo_ebpf::abi::Counter::EventLost) and go on.
pub struct Events(AsyncFd<RingBuf<MapData>>);

impl Events {
    /// Takes over what another reader left. Has to be called within a runtime.
    pub(super) fn new(map: MapData) -> anyhow::Result<Self> {
        let wrong = || format!("map {} does not have the layout of abi", map::EVENTS);
        let ring = RingBuf::try_from(Map::RingBuf(map)).with_context(wrong)?;
        Ok(Self(bpf::readable(ring).context("wait for events")?))
    }

    /// Waits until there is something to read; returns it in order. Nothing is lost if the future is dropped.
    ///
    /// # Errors
    ///
    /// The map can't be waited for, or holds what no program of ours wrote.
    pub async fn next(&mut self) -> anyhow::Result<Vec<Event>> {
        loop {
            let mut guard = self.0.readable_mut().await.context("wait for events")?;
            let events = drain(guard.get_inner_mut())?;
            if events.len() < MOST {
                guard.clear_ready();
            }
            if !events.is_empty() {
                return Ok(events);
            }
        }
    }
}

fn drain(ring: &mut RingBuf<MapData>) -> anyhow::Result<Vec<Event>> {
    let mut events = Vec::new();
    while events.len() < MOST {
        let Some(item) = ring.next() else { break };
        events.push(event(&item)?);
    }
    Ok(events)
}

fn event(bytes: &[u8]) -> anyhow::Result<Event> {
    ensure!(bytes.len() == size_of::<Event>(), "an event of {} bytes", bytes.len());
    let long = |at: usize| u64::from_ne_bytes(bytes[at..at + 8].try_into().expect("8 bytes"));
    let word = |at: usize| u32::from_ne_bytes(bytes[at..at + 4].try_into().expect("4 bytes"));
    Ok(Event {
        time: long(0),
        netns: long(8),
        value: long(16),
        backend: word(24),
        generation: word(28),
        cluster: word(32),
        kind: word(36),
    })
}
