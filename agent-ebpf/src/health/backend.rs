//! Ejection: a backend that failed gets no new connections for a while, from the pod that met the failure; from nobody once
//! a second pod confirmed it.
//!
//! One pod's word is not enough because a pod can have a policy that drops what it sends. For the same reason a confirmation
//! counts only if no third pod had an answer in between.
//!
//! When the time of an ejection has passed, a single connection tries the backend. The others wait for the outcome: at
//! hundreds of connects a second, a dead backend would otherwise swallow all those of a SYN timeout. If the ejection is
//! everybody's, the pods that failed leave the first try to the others, which may not share their trouble.

use aya_ebpf::{helpers::generated::bpf_ktime_get_ns, programs::SockAddrContext};
use core::intrinsics::{AtomicOrdering, atomic_xadd};
use tombolo_ebpf::abi::{
    BackendState, EJECTION_FIRST_NS, EJECTION_MOST_NS, TRIAL_NS,
    ejection::{CONTESTED, SECOND_POD, SHARED, STEPS, TRIAL},
    event,
};

use super::netns;
use crate::{
    choose::Chosen,
    events::tell,
    flow::Flow,
    maps::{BACKEND_STATE, Numbered},
};

/// What is known of the backend at `index`, begun afresh if it was of another generation.
#[inline(always)]
fn state(index: u32, generation: u32) -> Option<*mut BackendState> {
    let state = BACKEND_STATE.at_mut(index)?;
    if get!(state, generation) != generation {
        // First what leads to decisions, last what says that the rest is right.
        set!(state, ejected_until, 0);
        set!(state, ejection, 0);
        set!(state, ejected_by, 0);
        set!(state, last_alive, 0);
        set!(state, chosen, 0);
        set!(state, established, 0);
        set!(state, open, 0);
        set!(state, failed, 0);
        set!(state, generation, generation);
    }
    Some(state)
}

/// Counts that a new connection goes to `chosen`.
#[inline(always)]
pub fn count_choice(chosen: &Chosen) {
    let Some(state) = state(chosen.index, chosen.backend.generation) else { return };
    add!(state, chosen, 1);
}

/// Whether this pod's new connections leave `chosen` out.
///
/// To be asked only about a backend that is taken if it isn't out: the first one after an ejection is the one that tries.
#[inline(always)]
pub fn is_out(ctx: &SockAddrContext, chosen: &Chosen) -> bool {
    let Some(state) = BACKEND_STATE.at_mut(chosen.index) else { return false };
    get!(state, ejected_until) != 0 && is_ejected(chosen.index, chosen.backend.generation, netns(ctx)) != 0
}

/// The thorough part of [`is_out`], for the pod `netns`: 1 if it is.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn is_ejected(index: u32, generation: u32, netns: u64) -> u32 {
    let Some(state) = BACKEND_STATE.at_mut(index) else { return 0 };
    let (until, word) = (get!(state, ejected_until), get!(state, ejection));
    let concerned = word & SHARED != 0 || get!(state, ejected_by) == netns;
    if until == 0 || get!(state, generation) != generation || !concerned {
        return 0;
    }
    // SAFETY: takes nothing, returns an integer.
    let now = unsafe { bpf_ktime_get_ns() };
    if now < until {
        return 1;
    }
    let passed = now - until;
    let has_failed = get!(state, ejected_by) == netns || word >> SECOND_POD == mark(netns);
    if word & SHARED != 0 && has_failed && passed < TRIAL_NS {
        return 1;
    }
    if passed < EJECTION_MOST_NS {
        set!(state, ejection, word | TRIAL);
        set!(state, ejected_until, now + TRIAL_NS);
    }
    0
}

/// What tells a pod from most others.
#[inline(always)]
const fn mark(netns: u64) -> u32 {
    netns as u32 & (u32::MAX >> SECOND_POD)
}

/// A connection to the backend was established: it is alive, and back if it was ejected.
#[inline(always)]
pub fn established(flow: &Flow, netns: u64, now: u64) {
    let Some(state) = state(flow.index, flow.backend.generation) else { return };
    add!(state, established, 1);
    add!(state, open, 1);
    set!(state, last_alive, now);
    if get!(state, ejected_until) != 0 {
        vindicate(flow.index, netns, now);
    }
}

/// A backend that is ejected answered the pod `netns`.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn vindicate(index: u32, netns: u64, now: u64) -> u32 {
    let Some(state) = BACKEND_STATE.at_mut(index) else { return 0 };
    let (until, word) = (get!(state, ejected_until), get!(state, ejection));
    let is_old = now >= until && now - until >= EJECTION_MOST_NS;
    if word & SHARED == 0 && get!(state, ejected_by) != netns && !is_old {
        // It is the pod that ejected it which has a problem, and keeps it to itself.
        set!(state, ejection, word | CONTESTED);
        return 0;
    }
    set!(state, ejected_until, 0);
    set!(state, ejection, 0);
    tell(event::RECOVERED, index, netns, 0)
}

/// An established connection was closed, by whomever.
#[inline(always)]
pub fn closed(flow: &Flow) {
    let Some(state) = state(flow.index, flow.backend.generation) else { return };
    // It is 0 only if the address changed hands while it had connections, against the rule.
    if get!(state, open) != 0 {
        add!(state, open, u64::MAX);
    }
}

/// Whether the backend ever answered this node.
#[inline(always)]
pub fn has_answered(flow: &Flow) -> bool {
    state(flow.index, flow.backend.generation).is_some_and(|state| get!(state, last_alive) != 0)
}

/// The backend answered a SYN with an RST.
#[inline(always)]
pub fn refused(flow: &Flow, netns: u64, now: u64) {
    let Some(state) = state(flow.index, flow.backend.generation) else { return };
    add!(state, failed, 1);
    set!(state, last_alive, now);
    tell(event::REFUSED, flow.index, netns, 0);
    eject(flow.index, netns, now);
}

/// A SYN to the backend timed out, having been sent `tries` times.
#[inline(always)]
pub fn unanswered(flow: &Flow, netns: u64, now: u64, tries: u32) {
    let Some(state) = state(flow.index, flow.backend.generation) else { return };
    if tries == 1 {
        add!(state, failed, 1);
        tell(event::UNANSWERED, flow.index, netns, 1);
    }
    eject(flow.index, netns, now);
}

/// Takes the backend out because a connection of the pod `netns` failed.
///
/// While it is out already, a failure only tells whether a second pod confirms it: connects that were on their way together
/// fail together, and are one failure.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn eject(index: u32, netns: u64, now: u64) -> u32 {
    let Some(state) = BACKEND_STATE.at_mut(index) else { return 0 };
    let (until, word) = (get!(state, ejected_until), get!(state, ejection));
    let is_on = now < until && word & TRIAL == 0;
    let is_past = until == 0 || now >= until && now - until >= EJECTION_MOST_NS;
    let is_mine = get!(state, ejected_by) == netns;
    let is_shared = word & SHARED != 0;
    if is_on && (is_shared || is_mine) {
        return 0;
    }
    if is_past || !is_shared && !is_mine && word & CONTESTED != 0 {
        set!(state, ejected_by, netns);
        set!(state, ejection, 1);
        let until = now + EJECTION_FIRST_NS;
        set!(state, ejected_until, until);
        return tell(event::EJECTED, index, netns, until);
    }
    let shared = match (is_mine, is_shared) {
        (false, _) => SHARED | mark(netns) << SECOND_POD,
        (true, true) => SHARED | word >> SECOND_POD << SECOND_POD,
        (true, false) => 0,
    };
    if is_on {
        set!(state, ejection, word | shared);
        return tell(event::CONFIRMED, index, netns, until);
    }
    let steps = word & STEPS;
    // Seven doublings are beyond the most.
    let doubled = EJECTION_FIRST_NS << (steps & 7);
    let time = if steps > 6 || doubled > EJECTION_MOST_NS { EJECTION_MOST_NS } else { doubled };
    let steps = if steps < 7 { steps + 1 } else { 7 };
    let until = now + time;
    set!(state, ejection, steps | shared);
    set!(state, ejected_until, until);
    let kind = if shared != 0 && !is_shared { event::CONFIRMED } else { event::EJECTED };
    tell(kind, index, netns, until)
}
