//! The programs measured: how long they ran, and the empty ones they are measured against.

use anyhow::{Context, Result};
use aya::{
    Ebpf,
    programs::{CgroupAttachMode, CgroupSockAddr, ProgramFd, links::PinnedLink, loaded_programs},
};
use lab::cgroup::Cgroup;
use std::{
    collections::BTreeMap,
    fs::{self, File},
    os::fd::{AsFd, AsRawFd},
    path::Path,
};
use tombolo::datapath::{HOOKS, pins::Pins};

/// Programs by hook.
pub(crate) struct Programs(BTreeMap<String, ProgramFd>);

impl Programs {
    /// Those behind Tombolo's pinned links.
    pub(crate) fn pinned(pins: &Pins) -> Result<Self> {
        let mut programs = BTreeMap::new();
        for hook in HOOKS {
            let link = PinnedLink::from_pin(pins.link(hook)).with_context(|| format!("open the link of {hook}"))?;
            let id = aya::programs::links::FdLink::from(link).info()?.program_id();
            let info = loaded_programs().filter_map(Result::ok).find(|info| info.id() == id);
            programs.insert(hook.to_owned(), info.with_context(|| format!("find the program of {hook}"))?.fd()?);
        }
        Ok(Self(programs))
    }

    /// Loads the empty programs in the file `floor` and attaches them to `cgroup`. They stay while `Ebpf` does.
    pub(crate) fn floor(floor: &Path, cgroup: &Cgroup) -> Result<(Ebpf, Self)> {
        let mut object = Ebpf::load_file(floor).with_context(|| format!("load {}", floor.display()))?;
        let folder = File::open(cgroup.path())?;
        let mut programs = BTreeMap::new();
        for (hook, program) in object.programs_mut() {
            let program: &mut CgroupSockAddr = program.try_into()?;
            program.load().with_context(|| format!("load the empty {hook}"))?;
            program.attach(&folder, CgroupAttachMode::Single).with_context(|| format!("attach the empty {hook}"))?;
            programs.insert(hook.to_owned(), program.fd()?.try_clone()?);
        }
        Ok((object, Self(programs)))
    }

    /// How often the program of `hook` has run, and for how many nanoseconds in all.
    pub(crate) fn ran(&self, hook: &str) -> Result<Ran> {
        let program = self.0.get(hook).with_context(|| format!("no program for {hook}"))?;
        let path = format!("/proc/self/fdinfo/{}", program.as_fd().as_raw_fd());
        let info = fs::read_to_string(&path).with_context(|| format!("read {path}"))?;
        let field = |name: &str| -> Result<u64> {
            let value = info.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
            Ok(value.with_context(|| format!("no {name} in {path}"))?.trim().parse()?)
        };
        Ok(Ran { times: field("run_cnt")?, ns: field("run_time_ns")? })
    }
}

/// A program's run-time statistics.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Ran {
    times: u64,
    ns: u64,
}

impl Ran {
    /// Nanoseconds per run since `before`; none if it did not run.
    #[expect(clippy::cast_precision_loss, reason = "a sample's counts are far below 2^53")]
    pub(crate) fn since(self, before: Self) -> Option<f64> {
        let times = self.times.checked_sub(before.times).filter(|times| *times > 0)?;
        Some((self.ns - before.ns) as f64 / times as f64)
    }
}
