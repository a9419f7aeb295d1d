//! Programs of others on the hooks that ours want, which are looked at and never touched.

use super::bpf::{ALLOW_MULTI, ALLOW_OVERRIDE, CGROUP2_MAGIC, Occupants, file_system_magic, occupants};
use anyhow::Context;
use std::{
    fs::File,
    os::fd::AsFd,
    path::{Path, PathBuf},
};

/// `enum bpf_attach_type` of each hook, linux/bpf.h.
const ATTACH_TYPES: [(&str, u32); 10] = [
    ("connect4", 10),
    ("connect6", 11),
    ("sendmsg4", 14),
    ("sendmsg6", 15),
    ("recvmsg4", 19),
    ("recvmsg6", 20),
    ("getpeername4", 29),
    ("getpeername6", 30),
    ("sock_ops", 3),
    ("egress", 1),
];

/// What the kernel calls a hook.
pub(super) fn attach_type(hook: &str) -> anyhow::Result<u32> {
    let known = ATTACH_TYPES.iter().find(|(name, _)| *name == hook);
    known.map(|(_, attach_type)| *attach_type).with_context(|| format!("there is no hook {hook}"))
}

/// The most programs that the kernel takes for one hook of one cgroup: `BPF_CGROUP_MAX_PROGS`, linux/bpf-cgroup-defs.h.
const MOST: usize = 64;

/// Why nothing can be attached to this hook of `cgroup` without harm to somebody, in a person's words; none if it can.
///
/// A program that was attached to be alone here or above makes the kernel refuse ours. One that was attached to a cgroup
/// above and may be overridden would let ours in, and would then no longer run below it: that is no better.
pub(super) fn obstacle(cgroup: &Path, hook: &str) -> anyhow::Result<Option<String>> {
    let attach_type = attach_type(hook)?;
    let at = |dir: &Path| -> anyhow::Result<Occupants> {
        let file = File::open(dir).with_context(|| format!("open cgroup {}", dir.display()))?;
        occupants(file.as_fd(), attach_type)
            .with_context(|| format!("ask what is attached to {hook} of cgroup {}", dir.display()))
    };
    let mut runs_besides = false;
    for (height, dir) in cgroups_up(cgroup).iter().enumerate() {
        let found = at(dir)?;
        let allows_multi = found.flags & ALLOW_MULTI != 0;
        if found.programs.is_empty() {
            continue;
        } else if height == 0 && allows_multi {
            if found.programs.len() >= MOST {
                return Ok(Some(full(hook, dir, &found)));
            }
            runs_besides = true;
        } else if allows_multi || runs_besides && found.flags & ALLOW_OVERRIDE != 0 {
            // The kernel asks the next one above only. One that may be overridden is so by those on this cgroup already.
            return Ok(None);
        } else {
            return Ok(Some(held(hook, dir, &found, height > 0)));
        }
    }
    Ok(None)
}

/// Programs of others that run on this hook of `cgroup`, on it or above; `own` is the id of ours. Those of cgroups below are not
/// found.
///
/// # Errors
///
/// The kernel doesn't say what is attached.
pub(super) fn strangers(cgroup: &Path, hook: &str, own: u64) -> anyhow::Result<Vec<(PathBuf, Vec<u32>)>> {
    let attach_type = attach_type(hook)?;
    let mut strangers = Vec::new();
    for dir in cgroups_up(cgroup) {
        let context = || format!("ask what is attached to {hook} of cgroup {}", dir.display());
        let file = File::open(&dir).with_context(context)?;
        let mut programs = occupants(file.as_fd(), attach_type).with_context(context)?.programs;
        programs.retain(|id| u64::from(*id) != own);
        if !programs.is_empty() {
            strangers.push((dir, programs));
        }
    }
    Ok(strangers)
}

/// What somebody else's programs on `sock_ops` may do to our flows, in a person's words; none if there are none.
pub(super) fn sentence_on_sock_ops(strangers: &[(PathBuf, Vec<u32>)]) -> Option<String> {
    let (_, first) = strangers.first()?;
    let at = |(dir, programs): &(PathBuf, Vec<u32>)| {
        let ids: Vec<_> = programs.iter().map(u32::to_string).collect();
        format!("program {} on cgroup {}", ids.join(", "), dir.display())
    };
    let all: Vec<_> = strangers.iter().map(at).collect();
    Some(format!(
        "somebody else's sock_ops ({}) sees our connections too: should it take callback flags off sockets instead of adding \
         its own, their ends are not counted and those to what is dead are not ended; `bpftool prog show id {}` says whose it is",
        all.join("; "),
        first.first().map_or_else(|| "?".to_owned(), u32::to_string),
    ))
}

fn full(hook: &str, cgroup: &Path, found: &Occupants) -> String {
    format!(
        "{} programs are attached to {hook} of cgroup {cgroup}, the most the kernel takes; `bpftool cgroup show {cgroup}` lists \
         them: have one of them removed, or run the agent on another cgroup (--cgroup)",
        found.programs.len(),
        cgroup = cgroup.display(),
    )
}

fn held(hook: &str, cgroup: &Path, found: &Occupants, is_above: bool) -> String {
    let ids: Vec<_> = found.programs.iter().map(u32::to_string).collect();
    let how = match (found.flags & ALLOW_OVERRIDE != 0, is_above) {
        (false, _) => "is attached so that no other may run besides (without BPF_F_ALLOW_MULTI)",
        (true, false) => "is attached so that no other may run on the same cgroup (with BPF_F_ALLOW_OVERRIDE)",
        (true, true) => {
            "is attached with BPF_F_ALLOW_OVERRIDE: it would no longer run for anything below if ours were attached there"
        }
    };
    format!(
        "program {ids} on {hook} of cgroup {cgroup} {how}; `bpftool prog show id {id}` and `bpftool cgroup show {cgroup}` say \
         whose it is. It was left as it is: have its owner attach it as a link or with BPF_F_ALLOW_MULTI, or run the agent on \
         a cgroup that is not at or below that one (--cgroup)",
        ids = ids.join(", "),
        id = ids.first().map_or("?", String::as_str),
        cgroup = cgroup.display(),
    )
}

/// The cgroup and those above it, up to the root of the mount.
fn cgroups_up(cgroup: &Path) -> Vec<PathBuf> {
    let is_cgroup = |dir: &&Path| file_system_magic(dir).is_ok_and(|magic| magic == CGROUP2_MAGIC);
    cgroup.ancestors().take_while(is_cgroup).map(Path::to_owned).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::datapath::{EGRESS, HOOKS};

    #[test]
    fn every_hook_can_be_asked_for() {
        assert_eq!([&HOOKS[..], &[EGRESS]].concat(), ATTACH_TYPES.map(|(hook, _)| hook));
    }

    #[test]
    fn others_on_sock_ops_are_named_with_their_cgroups() {
        assert_eq!(sentence_on_sock_ops(&[]), None);
        let strangers = [(PathBuf::from("/a/b"), vec![7, 9]), (PathBuf::from("/a"), vec![3])];
        let sentence = sentence_on_sock_ops(&strangers).unwrap();
        for part in ["program 7, 9 on cgroup /a/b; program 3 on cgroup /a)", "`bpftool prog show id 7`"] {
            assert!(sentence.contains(part), "{part} in {sentence}");
        }
    }

    #[test]
    fn the_sentence_names_the_program_the_cgroup_and_how_to_find_the_owner() {
        for (flags, is_above) in [(0, false), (0, true), (ALLOW_OVERRIDE, false), (ALLOW_OVERRIDE, true)] {
            let found = Occupants { flags, programs: vec![42] };
            let sentence = held("connect4", Path::new("/sys/fs/cgroup/a"), &found, is_above);
            for part in
                ["program 42", "connect4", "`bpftool prog show id 42`", "`bpftool cgroup show /sys/fs/cgroup/a`"]
            {
                assert!(sentence.contains(part), "{part} in {sentence}");
            }
        }
    }
}
