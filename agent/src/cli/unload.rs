//! `tombolo unload`: takes the data path away.

use super::say;
use crate::datapath::{pins::Pins, preflight};
use anyhow::Context;
use clap::Args;
use std::path::PathBuf;
use tokio::signal::unix::{Signal, SignalKind, signal};

/// Remove everything that an agent pinned.
#[derive(Args)]
pub(super) struct UnloadArgs {
    /// The folder in which maps and links are pinned.
    #[arg(long, env = "TOMBOLO_PINS", value_name = "DIR", default_value = "/sys/fs/bpf/tombolo")]
    pins: PathBuf,
    /// Then wait to be told to end, so that a DaemonSet can do it once on each node.
    #[arg(long, env = "TOMBOLO_STAY")]
    stay: bool,
}

pub(super) fn run(args: &UnloadArgs) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().context("start the runtime")?;
    // Whoever is told to end while it removes things would leave half of them: it ends when it is done.
    let mut end = runtime.block_on(async { End::listen() })?;
    preflight::check_privileges()?;
    let pins = Pins::new(&args.pins);
    // A running agent would put everything back.
    let locks = pins.lock_all()?;
    let removed = pins.unload()?;
    match removed.len() {
        0 => say(format!("nothing is pinned in {}", args.pins.display()))?,
        n => say(format!("removed {n} pins from {}; connections take their ordinary path", args.pins.display()))?,
    }
    drop(locks);
    if args.stay {
        runtime.block_on(end.told());
    }
    Ok(())
}

/// SIGTERM and SIGINT, from when it is made: one that comes before it is waited for isn't lost, and ends nothing.
struct End {
    terminate: Signal,
    interrupt: Signal,
}

impl End {
    /// Within a runtime.
    fn listen() -> anyhow::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate()).context("listen for SIGTERM")?,
            interrupt: signal(SignalKind::interrupt()).context("listen for SIGINT")?,
        })
    }

    async fn told(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }
}
