//! What must be so before the kernel is asked for anything, said in a sentence that tells what to do.

use anyhow::{Context, ensure};
use std::fs;

/// Bits of a capability set, linux/capability.h.
const NET_ADMIN: (u32, &str) = (12, "CAP_NET_ADMIN");
const SYS_ADMIN: u32 = 21;
const BPF: (u32, &str) = (39, "CAP_BPF");

/// Fails if this process lacks the rights to load and attach programs.
pub fn check_privileges() -> anyhow::Result<()> {
    let status = fs::read_to_string("/proc/self/status").context("read /proc/self/status")?;
    let set = effective(&status).context("find CapEff in /proc/self/status")?;
    let missing = missing(set);
    ensure!(
        missing.is_empty(),
        "missing {}: run as root, or in Kubernetes give the container securityContext.capabilities.add: [BPF, NET_ADMIN]",
        missing.join(" and ")
    );
    Ok(())
}

fn effective(status: &str) -> Option<u64> {
    let hex = status.lines().find_map(|line| line.strip_prefix("CapEff:"))?;
    u64::from_str_radix(hex.trim(), 16).ok()
}

fn missing(set: u64) -> Vec<&'static str> {
    let has = |bit: u32| set & 1 << bit != 0;
    // CAP_SYS_ADMIN stands for CAP_BPF (linux/capability.h, Linux 5.8).
    [BPF, NET_ADMIN]
        .into_iter()
        .filter(|(bit, _)| !has(*bit) && !(*bit == BPF.0 && has(SYS_ADMIN)))
        .map(|(_, name)| name)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_capabilities_are_enough_and_each_is_missed_by_name() {
        assert!(missing(1 << 39 | 1 << 12).is_empty());
        assert_eq!(missing(1 << 39), ["CAP_NET_ADMIN"]);
        assert_eq!(missing(1 << 12), ["CAP_BPF"]);
        assert_eq!(missing(0), ["CAP_BPF", "CAP_NET_ADMIN"]);
    }

    #[test]
    fn the_effective_set_is_read_not_the_bounding_one() {
        let status = "CapPrm:\t0000000000000000\nCapEff:\t0000008000001000\nCapBnd:\t000001ffffffffff\n";
        assert_eq!(effective(status), Some(1 << 39 | 1 << 12));
    }
}
