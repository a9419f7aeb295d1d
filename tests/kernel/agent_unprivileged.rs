//! Takes rights and system calls away from a process that is about to be started.
#![expect(unsafe_code, reason = "what runs between fork and exec, and prctl")]

use std::{io, os::unix::process::CommandExt, process::Command};

const NET_ADMIN: u32 = 12;
const BPF: u32 = 39;

/// Root with CAP_BPF and CAP_NET_ADMIN, as a container with `capabilities: {drop: [ALL], add: [BPF, NET_ADMIN]}` has it.
pub(crate) fn bpf_and_net_admin(command: &mut Command) {
    keep(command, &[BPF, NET_ADMIN]);
}

/// Root with CAP_BPF only.
pub(crate) fn bpf_only(command: &mut Command) {
    keep(command, &[BPF]);
}

/// Root with CAP_NET_ADMIN only.
pub(crate) fn net_admin_only(command: &mut Command) {
    keep(command, &[NET_ADMIN]);
}

/// Root without any capability.
pub(crate) fn nothing(command: &mut Command) {
    keep(command, &[]);
}

/// Somebody else.
pub(crate) fn nobody(command: &mut Command) {
    command.uid(65_534).gid(65_534);
}

/// Has membarrier(2) fail as on a kernel with nohz_full.
pub(crate) fn no_membarrier(command: &mut Command) {
    const LOAD: u16 = 0x20;
    const JUMP_IF_EQUAL: u16 = 0x15;
    const RETURN: u16 = 0x06;
    let membarrier = u32::try_from(libc::SYS_membarrier).unwrap();
    let einval = libc::SECCOMP_RET_ERRNO | libc::EINVAL.cast_unsigned();
    let step = |code, jt, jf, k| libc::sock_filter { code, jt, jf, k };
    // The number of the system call comes first in `struct seccomp_data`.
    let filter = [
        step(LOAD, 0, 0, 0),
        step(JUMP_IF_EQUAL, 0, 1, membarrier),
        step(RETURN, 0, 0, einval),
        step(RETURN, 0, 0, libc::SECCOMP_RET_ALLOW),
    ];
    let install = move || {
        let program = libc::sock_fprog { len: 4, filter: filter.as_ptr().cast_mut() };
        // SAFETY: takes integers only.
        check(unsafe { libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) })?;
        // SAFETY: the kernel copies the four steps that `program` points at.
        check(unsafe { libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_FILTER, &raw const program) })
    };
    // SAFETY: system calls only: nothing is allocated and no lock is taken.
    unsafe { command.pre_exec(install) };
}

/// Takes all capabilities but these out of the bounding set: a program that root starts has no others then.
fn keep(command: &mut Command, kept: &'static [u32]) {
    let drop = move || {
        for capability in (0..=63).filter(|capability| !kept.contains(capability)) {
            // SAFETY: takes integers only.
            if unsafe { libc::prctl(libc::PR_CAPBSET_DROP, capability, 0, 0, 0) } < 0 {
                let error = io::Error::last_os_error();
                // Beyond the last one that this kernel knows.
                return if error.raw_os_error() == Some(libc::EINVAL) { Ok(()) } else { Err(error) };
            }
        }
        Ok(())
    };
    // SAFETY: system calls only: nothing is allocated and no lock is taken.
    unsafe { command.pre_exec(drop) };
}

fn check(result: i32) -> io::Result<()> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}
