//! Packet filters of a namespace, in the words of the `nft` program.

use crate::netns::Netns;
use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;
use std::{
    collections::BTreeMap,
    io::{ErrorKind, Write},
    process::{Command, Stdio},
};

/// Applies a rule set (what `nft -f` takes) to the namespace, in one transaction.
pub fn apply(netns: &Netns, rules: &str) -> Result<()> {
    let mut command = Command::new("nft");
    command.args(["-f", "-"]).stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped());
    let mut nft = match netns.run(|| command.spawn())? {
        Err(error) if error.kind() == ErrorKind::NotFound => bail!("nft is not installed: cargo xtask setup"),
        started => started.context("start nft")?,
    };
    let mut input = nft.stdin.take().expect("stdin is piped");
    // nft wants a line's end after the last rule.
    input.write_all(format!("{rules}\n").as_bytes()).context("hand rules to nft")?;
    drop(input);
    let output = nft.wait_with_output().context("wait for nft")?;
    let complaint = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "nft refused rules for {}: {}", netns.label(), complaint.trim());
    Ok(())
}

/// Removes all rules of the namespace.
pub fn clear(netns: &Netns) -> Result<()> {
    apply(netns, "flush ruleset")
}

/// Removes the table `table` (its family and name: `inet filter`); none there is fine.
pub fn remove_table(netns: &Netns, table: &str) -> Result<()> {
    // Adding first makes sure that there is something to delete.
    apply(netns, &format!("add table {table}\ndelete table {table}"))
}

/// Packets that the named counters of the table `table` (its family and name) have seen.
pub fn counters(netns: &Netns, table: &str) -> Result<BTreeMap<String, u64>> {
    let mut command = Command::new("nft");
    command.args(["-j", "list", "counters", "table"]).args(table.split(' '));
    let output = netns.run(|| command.output())?.context("run nft")?;
    let complaint = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "nft lists no counters of {table} in {}: {}", netns.label(), complaint.trim());
    let listed: Value = serde_json::from_slice(&output.stdout).context("understand what nft lists")?;
    let counters = listed["nftables"].as_array().into_iter().flatten().filter_map(|entry| entry.get("counter"));
    let counter = |entry: &Value| Some((entry["name"].as_str()?.to_owned(), entry["packets"].as_u64()?));
    Ok(counters.filter_map(counter).collect())
}
