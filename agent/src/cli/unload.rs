//! `tombolo unload`: takes the data path away.

use super::say;
use crate::datapath::{pins::Pins, preflight};
use clap::Args;
use std::path::PathBuf;

/// Remove everything that an agent pinned.
#[derive(Args)]
pub(super) struct UnloadArgs {
    /// The folder in which maps and links are pinned.
    #[arg(long, env = "TOMBOLO_PINS", value_name = "DIR", default_value = "/sys/fs/bpf/tombolo")]
    pins: PathBuf,
}

pub(super) fn run(args: &UnloadArgs) -> anyhow::Result<()> {
    preflight::check_privileges()?;
    let pins = Pins::new(&args.pins);
    // A running agent would put everything back.
    let _locks = pins.lock_all()?;
    let removed = pins.unload()?;
    match removed.len() {
        0 => say(format!("nothing is pinned in {}", args.pins.display())),
        n => say(format!("removed {n} pins from {}; connections take their ordinary path", args.pins.display())),
    }
}
