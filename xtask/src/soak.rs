//! `soak`: builds the agent and the lab, and has three clusters go through what wears them out without breaking anything.

use crate::demo::{become_it, lab};
use std::path::PathBuf;

#[derive(clap::Args)]
pub(crate) struct Args {
    /// Minutes during which one packet in a hundred between clusters gets lost; fractions are fine, 0 leaves it out
    #[arg(long, value_name = "NUMBER", default_value = "60")]
    minutes: String,
    /// Minutes during which the CPUs are never idle; fractions are fine, 0 leaves it out
    #[arg(long, value_name = "NUMBER", default_value = "10")]
    saturated_minutes: String,
    /// Write the results to this file, as JSON
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

/// Builds everything and becomes the soak.
pub(crate) fn main(args: &Args) -> anyhow::Result<()> {
    let mut soak = lab("soak", true)?;
    soak.args(["--minutes", &args.minutes, "--saturated-minutes", &args.saturated_minutes]);
    soak.args(args.json.iter().flat_map(|file| ["--json".as_ref(), file.as_os_str()]));
    become_it(soak)
}
