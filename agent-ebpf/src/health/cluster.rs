//! Suspicion: a cluster that leaves SYNs to several of its backends unanswered, and gives no sign of life, gets no new
//! connections for a second. Only user space says that it is down.
//!
//! As with backends, the word of a single pod holds for that pod, for a policy may drop all it sends to that cluster. The own
//! cluster is never suspected.

use aya_ebpf::{
    helpers::generated::{bpf_jiffies64, bpf_ktime_get_ns},
    programs::SockAddrContext,
};
use tombolo_ebpf::abi::{ABORT_UNANSWERED, SUSPECT_BACKENDS, SUSPECT_NS, TOGETHER_NS, UNANSWERED_NS, event, verdict};

use super::netns;
use crate::{
    events::tell,
    flow::Flow,
    maps::{CLUSTER_STATE, CLUSTERS, Numbered},
};

/// The agent's own cluster.
const OWN: u32 = 0;

/// Whether user space says that it is up.
#[inline(always)]
pub fn is_up(cluster: u32) -> bool {
    CLUSTERS.at(cluster).is_some_and(|cluster| cluster.verdict == verdict::OK)
}

/// Whether this pod's new connections avoid it.
#[inline(always)]
pub fn is_suspect(ctx: &SockAddrContext, cluster: u32) -> bool {
    may_be_suspect(cluster) && is_suspect_to(cluster, netns(ctx)) != 0
}

/// Whether there is a suspicion at all, which can be past.
#[inline(always)]
pub fn may_be_suspect(cluster: u32) -> bool {
    cluster != OWN && CLUSTER_STATE.at_mut(cluster).is_some_and(|state| get!(state, suspect_until) != 0)
}

/// 1 if the pod `netns` avoids it.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn is_suspect_to(cluster: u32, netns: u64) -> u32 {
    let Some(state) = CLUSTER_STATE.at_mut(cluster) else { return 0 };
    let until = get!(state, suspect_until);
    let concerned = get!(state, unanswered_shared) != 0 || get!(state, unanswered_by) == netns;
    // SAFETY: takes nothing, returns an integer.
    u32::from(until != 0 && concerned && unsafe { bpf_ktime_get_ns() } < until)
}

/// 1 if it is so surely silent that connects of the pod `netns` to it are ended at their first SYN timeout.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn is_silent_to(cluster: u32, netns: u64) -> u32 {
    let Some(state) = CLUSTER_STATE.at_mut(cluster) else { return 0 };
    if get!(state, unanswered) < ABORT_UNANSWERED {
        return 0;
    }
    is_suspect_to(cluster, netns)
}

/// A segment came from the cluster at `now`.
#[inline(always)]
pub fn alive(cluster: u32, now: u64) {
    let Some(state) = CLUSTER_STATE.at_mut(cluster) else { return };
    // SAFETY: takes nothing, returns an integer.
    let jiffies = unsafe { bpf_jiffies64() };
    // The line is shared by all CPUs: it is written once a tick, not once a connection.
    if get!(state, last_alive_jiffies) != jiffies {
        set!(state, last_alive, now);
        set!(state, last_alive_jiffies, jiffies);
    }
    if get!(state, unanswered) != 0 {
        set!(state, suspect_until, 0);
        set!(state, unanswered, 0);
        set!(state, unanswered_backends, 0);
        set!(state, unanswered_shared, 0);
    }
}

/// A SYN was answered after `rtt_us` microseconds.
#[inline(always)]
pub fn measured(cluster: u32, rtt_us: u32) {
    let Some(state) = CLUSTER_STATE.at_mut(cluster) else { return };
    let old = get!(state, rtt_us);
    set!(state, rtt_us, if old == 0 { rtt_us } else { old - old / 8 + rtt_us / 8 });
}

/// How long a round trip to the cluster takes, in microseconds; 0 if that isn't known.
#[inline(always)]
pub fn rtt_us(cluster: u32) -> u32 {
    CLUSTER_STATE.at_mut(cluster).map_or(0, |state| get!(state, rtt_us))
}

/// A SYN to the backend timed out that was sent `waited` jiffies ago; the backend had answered this node before.
///
/// It speaks against the cluster only if that gave no sign of life since: at any loss some SYNs get through.
#[inline(always)]
pub fn unanswered(flow: &Flow, netns: u64, now: u64, waited: u32) {
    if flow.backend.cluster != OWN {
        suspect(flow.index, flow.backend.cluster, netns, now, waited);
    }
}

#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn suspect(backend: u32, cluster: u32, netns: u64, now: u64, waited: u32) -> u32 {
    let Some(state) = CLUSTER_STATE.at_mut(cluster) else { return 0 };
    // SAFETY: takes nothing, returns an integer.
    let sent = unsafe { bpf_jiffies64() }.wrapping_sub(u64::from(waited));
    if get!(state, last_alive_jiffies) >= sent {
        return 0;
    }
    let mut unanswered = get!(state, unanswered);
    if unanswered == 0 || now.saturating_sub(get!(state, unanswered_last)) > UNANSWERED_NS {
        set!(state, unanswered_by, netns);
        set!(state, unanswered_shared, 0);
        set!(state, unanswered_backends, 0);
        unanswered = 0;
    } else if get!(state, unanswered_by) != netns {
        set!(state, unanswered_shared, 1);
    }
    let backends = get!(state, unanswered_backends) | 1 << (backend & 63);
    set!(state, unanswered_backends, backends);
    // Timers that run out together are one word: they all do so before what answers the SYNs that they repeat is looked at.
    if unanswered == 0 || now.saturating_sub(get!(state, unanswered_last)) >= TOGETHER_NS {
        set!(state, unanswered_last, now);
        set!(state, unanswered, unanswered.saturating_add(1));
    }
    // All but one bit fewer for each different backend.
    const { assert!(SUSPECT_BACKENDS == 3) };
    let but_one = backends & backends.wrapping_sub(1);
    if but_one & but_one.wrapping_sub(1) == 0 {
        return 0;
    }
    let was_until = get!(state, suspect_until);
    let until = now + SUSPECT_NS;
    set!(state, suspect_until, until);
    if was_until > now {
        return 0;
    }
    tell(event::SUSPECT, backend, netns, until)
}
