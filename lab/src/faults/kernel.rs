//! Faults of what the agent has in the kernel.

use super::{
    Fault, Healed,
    ground::{FRONTENDS, Ground, HEALED_WITHIN, HERE},
    manifests::unused,
};
use crate::{bpffs, cgroup::Cgroup, cleanup, netns::Netns, process::Process};
use anyhow::{Context, Result, ensure};
use aya::{
    Ebpf,
    programs::{CgroupAttachMode, CgroupSockAddr, ProgramFd},
    sys::{Stats, enable_stats},
};
use std::{
    fs::{self, File},
    os::fd::{AsFd, AsRawFd},
    path::Path,
    process::{Command, Stdio},
    time::Duration,
};

pub(super) const FAULTS: &[Fault] = &[
    Fault { name: "map-full", strikes: "a fifth more services than fit", strike: map_full },
    Fault { name: "pin-deleted", strikes: "the pins of a link and of a map are removed", strike: pin_deleted },
    Fault { name: "pins-deleted", strikes: "all pins are removed, folders and all", strike: pins_deleted },
    Fault { name: "bpffs-unmounted", strikes: "the pins' file system is unmounted for 5 s", strike: bpffs_unmounted },
    Fault {
        name: "cgroup-removed",
        strikes: "the cgroup of a second agent goes, and is made again",
        strike: cgroup_removed,
    },
    Fault { name: "foreign-program", strikes: "somebody else's program on our hook and cgroup", strike: foreign },
];

fn map_full(ground: &mut Ground) -> Result<Healed> {
    let path = ground.clusters.cluster(HERE).manifests().join("full.yaml");
    fs::write(&path, unused(FRONTENDS + FRONTENDS / 5)).with_context(|| format!("write {}", path.display()))?;
    let shown = ground.until("frontends that don't fit", HEALED_WITHIN, |ground| {
        let (desired, installed) = (ground.number("/frontends/desired")?, ground.number("/frontends/installed")?);
        Ok(desired > FRONTENDS as u64 && installed < desired)
    });
    let changes = ground.follows_changes();
    fs::remove_file(&path).with_context(|| format!("remove {}", path.display()))?;
    let shown = shown?;
    changes.context("with full maps")?;
    let healed = ground.until("room again", HEALED_WITHIN, |ground| {
        let (desired, installed) = (ground.number("/frontends/desired")?, ground.number("/frontends/installed")?);
        Ok(desired < FRONTENDS as u64 && installed == desired && ground.is_ready()?)
    });
    Ok(Healed::after(healed?).shown(shown))
}

fn pin_deleted(ground: &mut Ground) -> Result<Healed> {
    let folder = layout(ground.bpffs())?;
    let gone = [folder.join("links/connect4"), folder.join("maps/SLOTS")];
    for pin in &gone {
        fs::remove_file(pin).with_context(|| format!("remove {}", pin.display()))?;
    }
    let back = ground.until("both pins", HEALED_WITHIN, |_| Ok(gone.iter().all(|pin| pin.exists())))?;
    ground.ready()?;
    Ok(Healed::after(back))
}

fn pins_deleted(ground: &mut Ground) -> Result<Healed> {
    let folder = layout(ground.bpffs())?;
    let before = pins(&folder)?;
    fs::remove_dir_all(&folder).with_context(|| format!("remove {}", folder.display()))?;
    let back = ground.until("all pins", HEALED_WITHIN, |_| Ok(pins(&folder).is_ok_and(|now| now == before)))?;
    ground.ready()?;
    Ok(Healed::after(back))
}

fn bpffs_unmounted(ground: &mut Ground) -> Result<Healed> {
    let at = ground.bpffs().clone();
    bpffs::unmount(&at)?;
    let shown = ground.not_ready();
    let waited = ground.pass(Duration::from_secs(5));
    bpffs::mount_at(&at)?;
    let shown = shown?;
    waited?;
    Ok(Healed::after(ground.ready()?).shown(shown))
}

/// The callers' cgroup can't be removed while they live, so another agent on the same node loses its own.
fn cgroup_removed(ground: &mut Ground) -> Result<Healed> {
    let folder = cleanup::folder()?.join("second");
    fs::create_dir_all(&folder).with_context(|| format!("create {}", folder.display()))?;
    let (socket, pins) = (folder.join("agent.sock"), bpffs::folder()?.join("second"));
    let make = || Cgroup::new("second/pods");
    let cgroup = make()?;
    let log = File::create(folder.join("agent.log")).context("create a log")?;
    let mut command = Command::new(ground.agent()?.program());
    command.arg("agent").arg("--manifests").arg(ground.clusters.cluster(HERE).manifests());
    command.args(["--cluster", HERE, "--node", "second", "--cgroup"]).arg(cgroup.path());
    command.arg("--pins").arg(&pins).arg("--socket").arg(&socket).stdin(Stdio::null()).stderr(log);
    let netns = Netns::at(&ground.clusters.cluster(HERE).nodes()[0].netns().path())?;
    let _agent = Process::start(&netns, command)?.called("the second agent");
    let program = ground.agent()?.program().to_owned();
    let ready = |_: &mut Ground| -> Result<bool> {
        let mut status = Command::new(&program);
        status.arg("status").arg("--socket").arg(&socket).arg("--pins").arg(&pins);
        let status = status.stdout(Stdio::null()).stderr(Stdio::null()).status();
        Ok(status.context("ask the second agent")?.success())
    };
    ground.until("a second agent that is ready", HEALED_WITHIN, ready)?;
    cgroup.remove()?;
    let shown = ground.until("a second agent that isn't ready", HEALED_WITHIN, |ground| Ok(!ready(ground)?))?;
    let _cgroup = make()?;
    let healed = ground.until("the second agent ready again", HEALED_WITHIN, ready)?;
    Ok(Healed::after(healed).shown(shown))
}

/// Empty programs, attached as another CNI would attach them; through three restarts of the agent.
fn foreign(ground: &mut Ground) -> Result<Healed> {
    let floor = &ground.floor;
    ensure!(floor.is_file(), "there are no empty programs at {}: cargo xtask build-ebpf", floor.display());
    let cgroup = ground.agent()?.status()?["cgroup"].as_str().context("the agent is attached nowhere")?.to_owned();
    let mut object = Ebpf::load_file(&ground.floor).context("load the empty programs")?;
    let folder = File::open(&cgroup).with_context(|| format!("open {cgroup}"))?;
    let mut links = Vec::new();
    for (hook, program) in object.programs_mut().filter(|(hook, _)| hook.starts_with("connect")) {
        let program: &mut CgroupSockAddr = program.try_into()?;
        program.load().with_context(|| format!("load the empty {hook}"))?;
        let link = program.attach(&folder, CgroupAttachMode::Single).with_context(|| format!("attach {hook}"))?;
        links.push((program.fd()?.try_clone()?, program.take_link(link)?));
    }
    ensure!(!links.is_empty(), "no empty programs for connect");
    let _counting = enable_stats(Stats::RunTime).context("have programs counted")?;
    let mut longest = Duration::ZERO;
    for _ in 0..3 {
        ground.agent()?.kill()?;
        ground.agent()?.start()?;
        longest = longest.max(ground.ready()?);
    }
    let ran = |links: &[(ProgramFd, _)]| -> Result<Vec<u64>> {
        let times = links.iter().map(|(program, _)| run_count(program));
        times.collect()
    };
    let before = ran(&links)?;
    ground.pass(Duration::from_secs(1))?;
    let after = ran(&links)?;
    ensure!(
        before.iter().zip(&after).all(|(before, after)| after > before),
        "foreign programs no longer run: {after:?}"
    );
    Ok(Healed::after(longest).with(format!("{} foreign programs ran on", links.len())))
}

/// How often a program has run.
fn run_count(program: &ProgramFd) -> Result<u64> {
    let path = format!("/proc/self/fdinfo/{}", program.as_fd().as_raw_fd());
    let info = fs::read_to_string(&path).with_context(|| format!("read {path}"))?;
    let count =
        info.lines().find_map(|line| line.strip_prefix("run_cnt:")).with_context(|| format!("no count in {path}"))?;
    count.trim().parse().with_context(|| format!("read the count in {path}"))
}

/// The folder of the layout that is in use.
fn layout(pins: &Path) -> Result<std::path::PathBuf> {
    let entries = fs::read_dir(pins).with_context(|| format!("list {}", pins.display()))?;
    let mut layouts = entries.filter_map(|entry| Some(entry.ok()?.path()));
    layouts.find(|path| path.join("links").is_dir()).with_context(|| format!("no layout in {}", pins.display()))
}

/// Names of all pins of a layout.
fn pins(layout: &Path) -> Result<Vec<std::ffi::OsString>> {
    let mut names = Vec::new();
    for folder in ["links", "maps"] {
        let entries = fs::read_dir(layout.join(folder)).with_context(|| format!("list {}", layout.display()))?;
        names.extend(entries.filter_map(|entry| Some(entry.ok()?.file_name())));
    }
    names.sort();
    Ok(names)
}
