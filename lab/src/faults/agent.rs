//! Faults of the agent and of what it needs from the machine.

use super::{
    Fault, Healed,
    ground::{Ground, HEALED_WITHIN},
};
use crate::clusters::NAMES;
use anyhow::{Context, Result, ensure};
use nix::sys::signal::Signal;
use std::{fs, path::Path, process::Command, time::Duration};

pub(super) const FAULTS: &[Fault] = &[
    Fault { name: "agent-killed", strikes: "SIGKILL, 2 s without an agent, a change missed", strike: killed },
    Fault { name: "agent-killed-again", strikes: "SIGKILL ten times, as soon as it has started", strike: killed_again },
    Fault { name: "agent-stopped", strikes: "SIGSTOP for 5 s, a change meanwhile", strike: stopped },
    Fault { name: "agent-out-of-memory", strikes: "no more memory for it, and a large change", strike: out_of_memory },
    Fault { name: "agent-descriptors", strikes: "no more descriptors for it, a change meanwhile", strike: descriptors },
    Fault { name: "agent-disk-full", strikes: "its log can't be written", strike: disk_full },
    Fault { name: "agent-socket-gone", strikes: "its socket is removed", strike: socket_gone },
    Fault { name: "clock-ahead", strikes: "its clock is an hour ahead after a restart", strike: clock_ahead },
    Fault { name: "clock-behind", strikes: "its clock is two minutes behind after a restart", strike: clock_behind },
];

fn killed(ground: &mut Ground) -> Result<Healed> {
    ground.agent()?.kill()?;
    ground.pass(Duration::from_secs(2))?;
    ground.clusters.mirroring.withdrawn.insert("north".to_owned());
    ground.clusters.publish()?;
    ground.agent()?.start()?;
    let ready = ground.ready()?;
    ground.follows(&["west", "east"])?;
    Ok(Healed::after(ready))
}

fn killed_again(ground: &mut Ground) -> Result<Healed> {
    for number in 0..10 {
        ground.agent()?.kill()?;
        ground.agent()?.start()?;
        // Each time a little further into its start.
        ground.pass(Duration::from_millis(30 * number))?;
    }
    Ok(Healed::after(ground.ready()?))
}

fn stopped(ground: &mut Ground) -> Result<Healed> {
    ground.agent()?.signal(Signal::SIGSTOP)?;
    ground.clusters.mirroring.withdrawn.insert("north".to_owned());
    ground.clusters.publish()?;
    ground.pass(Duration::from_secs(5))?;
    ground.agent()?.signal(Signal::SIGCONT)?;
    Ok(Healed::after(ground.follows(&["west", "east"])?))
}

fn out_of_memory(ground: &mut Ground) -> Result<Healed> {
    let id = ground.agent()?.id()?;
    let size = kib(id, "VmSize")?;
    limit(id, &format!("--as={}", size * 1024))?;
    let large = ground.clusters.cluster(super::ground::HERE).manifests().join("large.yaml");
    fs::write(&large, super::manifests::unused(20_000)).with_context(|| format!("write {}", large.display()))?;
    let died = ground.until("the end of the agent", HEALED_WITHIN, |ground| Ok(!ground.agent()?.is_running()?));
    fs::remove_file(&large).with_context(|| format!("remove {}", large.display()))?;
    let died = died?;
    ground.pass(Duration::from_secs(1))?;
    ground.agent()?.start()?;
    Ok(Healed::after(ground.ready()?).with(format!("ended after {} ms", died.as_millis())))
}

fn descriptors(ground: &mut Ground) -> Result<Healed> {
    let id = ground.agent()?.id()?;
    let before = soft_limit(id)?;
    // What is open stays open; nothing can be opened besides.
    limit(id, "--nofile=3:")?;
    ground.clusters.mirroring.withdrawn.insert("north".to_owned());
    ground.clusters.publish()?;
    ground.pass(Duration::from_secs(4))?;
    ensure!(ground.agent()?.is_running()?, "the agent ended without descriptors");
    let missed = ground.is_ready().is_ok_and(|ready| !ready);
    limit(id, &format!("--nofile={before}:"))?;
    ensure!(missed, "the agent answered without descriptors: it was not struck");
    Ok(Healed::after(ground.follows(&["west", "east"])?))
}

fn disk_full(ground: &mut Ground) -> Result<Healed> {
    ground.agent()?.kill()?;
    // Every write there fails with ENOSPC.
    ground.agent()?.start_by(&[], Path::new("/dev/full"))?;
    let ready = ground.ready()?;
    ground.follows_changes()?;
    ground.agent()?.kill()?;
    ground.agent()?.start()?;
    ground.ready()?;
    Ok(Healed::after(ready))
}

fn socket_gone(ground: &mut Ground) -> Result<Healed> {
    let socket = ground.agent()?.socket().to_owned();
    fs::remove_file(&socket).with_context(|| format!("remove {}", socket.display()))?;
    let took = ground.follows_changes()?;
    ground.agent()?.kill()?;
    ground.agent()?.start()?;
    ground.ready()?;
    Ok(Healed::after(took).with("followed changes all the while; the socket is back after a restart"))
}

fn clock_ahead(ground: &mut Ground) -> Result<Healed> {
    clock(ground, 3600)
}

fn clock_behind(ground: &mut Ground) -> Result<Healed> {
    clock(ground, -120)
}

/// Restarts the agent with a clock that is off by so many seconds from what the kernel's programs read. The clock on
/// the wall can't be moved for one process alone.
fn clock(ground: &mut Ground, seconds: i32) -> Result<Healed> {
    ground.agent()?.kill()?;
    let offset = seconds.to_string();
    let off = ["unshare", "--time", "--monotonic", &offset, "--boottime", &offset, "--fork", "--kill-child"];
    let log = ground.agent()?.log().to_owned();
    ground.agent()?.start_by(&off, &log)?;
    let ready = ground.ready()?;
    ground.follows_changes()?;
    ground.follows(&NAMES)?;
    ground.agent()?.kill()?;
    ground.agent()?.start()?;
    ground.ready()?;
    Ok(Healed::after(ready))
}

/// Limits a process from outside.
fn limit(id: u32, what: &str) -> Result<()> {
    let status = Command::new("prlimit").args(["--pid", &id.to_string(), what]).status().context("run prlimit")?;
    ensure!(status.success(), "prlimit {what}: {status}");
    Ok(())
}

fn soft_limit(id: u32) -> Result<u64> {
    let limits = fs::read_to_string(format!("/proc/{id}/limits")).context("read the agent's limits")?;
    let line =
        limits.lines().find_map(|line| line.strip_prefix("Max open files")).context("no limit of descriptors")?;
    line.split_whitespace().next().context("no soft limit")?.parse().context("read the soft limit")
}

fn kib(id: u32, field: &str) -> Result<u64> {
    let status = fs::read_to_string(format!("/proc/{id}/status")).context("read the agent's status")?;
    let line = status.lines().find_map(|line| line.strip_prefix(field)?.strip_prefix(':'));
    let number = line.and_then(|line| line.split_whitespace().next()).with_context(|| format!("no {field}"))?;
    number.parse().with_context(|| format!("read {field}"))
}
