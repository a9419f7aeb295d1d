//! A short soak, from the outside: needs root, and the agent's program beside this crate's.

use anyhow::{Context, Result};
use lab::{
    netns::{Netns, need_root},
    nft,
};
use serde_json::Value;
use std::{
    env, fs,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    thread::sleep,
    time::{Duration, Instant},
};

/// How long the clusters get to be there, on a busy machine.
const BUILT_WITHIN: Duration = Duration::from_secs(180);

/// The soak must be able to fail: somebody has east go dark while it runs, and agents take it for what it is.
#[test]
fn a_cluster_that_is_taken_for_dead_makes_a_soak_fail() -> Result<()> {
    let Some(agent) = agent() else { return Ok(()) };
    let json = env::temp_dir().join(format!("soak-ill-{}.json", std::process::id()));
    let mut soak = soak(&agent, "0.35", "0", &json)?;
    let fabric = PathBuf::from(format!("/run/netns/tombolo-lab-{}-fabric", soak.id()));
    let begun = Instant::now();
    let dark = "table bridge dark { chain forward { type filter hook forward priority 0; \
                iifname \"east-*\" meta protocol { ip, ip6 } drop; }; }";
    // The strain's own table says that it has begun.
    while !is_strained(&fabric) {
        assert!(soak.try_wait()?.is_none(), "the soak ended before it began");
        assert!(begun.elapsed() < BUILT_WITHIN, "the soak does not begin");
        sleep(Duration::from_millis(200));
    }
    nft::apply(&Netns::at(&fabric)?, dark)?;
    let status = soak.wait().context("wait for the soak")?;
    let summary = read(&json)?;
    assert_eq!(status.code(), Some(1), "{summary:#}");
    assert_eq!(summary["passed"], false);
    let found = summary["phases"][0]["false_positives"].as_array().context("false positives")?;
    let is_down = |found: &Value| found["what"].as_str().is_some_and(|what| what.contains("clusters down"));
    assert!(found.iter().any(is_down), "{found:?}");
    Ok(())
}

fn soak(agent: &Path, minutes: &str, saturated: &str, json: &Path) -> Result<Child> {
    let mut soak = Command::new(env!("CARGO_BIN_EXE_lab"));
    soak.args(["soak", "--minutes", minutes, "--saturated-minutes", saturated, "--json"]).arg(json);
    soak.arg("--agent").arg(agent).stdin(Stdio::null()).spawn().context("start a soak")
}

fn is_strained(fabric: &Path) -> bool {
    let Ok(fabric) = Netns::at(fabric) else { return false };
    nft::counters(&fabric, "bridge soak").is_ok_and(|counters| !counters.is_empty())
}

fn read(json: &Path) -> Result<Value> {
    let text = fs::read_to_string(json).with_context(|| format!("read {}", json.display()))?;
    fs::remove_file(json).with_context(|| format!("remove {}", json.display()))?;
    serde_json::from_str(&text).context("understand what the soak wrote")
}

/// The agent, which `cargo xtask test` builds along with this test; none without it, or without root.
fn agent() -> Option<PathBuf> {
    let agent = Path::new(env!("CARGO_BIN_EXE_lab")).with_file_name("tombolo");
    if need_root().is_err() {
        eprintln!("skipped: needs root");
        return None;
    }
    if !agent.is_file() {
        eprintln!("skipped: there is no agent at {}", agent.display());
        return None;
    }
    Some(agent)
}
