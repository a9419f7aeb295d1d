//! Ending flows to what is known dead, at their retransmission timer, in whatever network namespace.
//!
//! A `TCP_USER_TIMEOUT` has the kernel give a flow up once so much time went by since its first retransmission (for a connect:
//! since its first SYN). So it is set to the time that went by already and a grace of two round trips: a flow whose way is
//! free again gets its answer within that, and its old value back.
//!
//! Known dead is what *others* found: a flow's own timeouts never end it, because at some loss they would end connections that
//! plain TCP completes. For that reason a backend that is ejected is not dead enough either, however many pods said so: SYNs
//! of several pods get lost, too.

use aya_ebpf::programs::SockOpsContext;
use tombolo_ebpf::abi::{Armed, Counter, GRACE_MS, GRACE_SYN_MS, event, verdict};

use crate::{
    events::tell,
    flow::{Flow, callback, change_callbacks, cookie, field, option, set_option},
    health::{
        cluster::{is_silent_to, is_up, rtt_us},
        get, netns, set,
    },
    maps::{ARMED, count},
    origin,
};

const IPPROTO_TCP: i32 = 6;
const TCP_USER_TIMEOUT: i32 = 18;

/// Whether a connect is to be ended whose SYN timed out, having been sent `tries` times; `spared` if its service opted out. To be asked before this timeout itself
/// is counted.
#[inline(always)]
pub fn is_connect_hopeless(flow: &Flow, spared: bool, netns: u64, tries: u32) -> bool {
    let cluster = flow.backend.cluster;
    let is_up = is_up(cluster);
    if spared || !is_allowed(flow, is_up) {
        return false;
    }
    !is_up || flow.backend.verdict == verdict::DEAD && tries > 1 || is_silent_to(cluster, netns) != 0
}

/// Whether an established flow is to be ended whose segment timed out. To be asked at the second time earliest, so that the flow
/// has had the time to show that it is alive.
#[inline(always)]
pub fn is_hopeless(flow: &Flow, spared: bool) -> bool {
    let is_up = is_up(flow.backend.cluster);
    !spared && (flow.backend.verdict == verdict::DEAD || !is_up) && is_allowed(flow, is_up)
}

/// Whether the flow may be ended at all: not if its backend drains, and so is about to end it properly. If probes found its whole cluster down (`is_up` false), the backend won't end anything any more: what it owes is
/// owed in vain, and the flow is like any other.
#[inline(always)]
fn is_allowed(flow: &Flow, is_up: bool) -> bool {
    flow.backend.verdict != verdict::DRAINING || !is_up
}

/// An established flow's timer ran out for the first time since something was acknowledged.
#[inline(always)]
pub fn note(ctx: &SockOpsContext, now: u64) {
    let snd_una = field!(ctx, snd_una).into();
    let noted = Armed { ends_after: 0, snd_una, user_timeout: 0, since_ms: milliseconds(now).into() };
    // Without an entry the flow has less grace, that is all.
    ARMED.insert(&cookie(ctx), &noted, 0).ok();
}

/// Ends a connect unless it is answered within its grace.
#[inline(always)]
pub fn arm_connect(ctx: &SockOpsContext, flow: &Flow, now: u64) {
    let cookie = cookie(ctx);
    let grace = match rtt_us(flow.backend.cluster) {
        0 => GRACE_MS,
        rtt_us => GRACE_SYN_MS + rtt_us / 500,
    };
    arm(ctx, cookie, origin::since_ms(cookie), grace, now);
}

/// Ends an established flow unless something is acknowledged within its grace.
#[inline(always)]
pub fn arm_established(ctx: &SockOpsContext, now: u64) {
    let cookie = cookie(ctx);
    let since = ARMED.get_ptr_mut(&cookie).map_or(0, |noted| get!(noted, since_ms) as u32);
    // Eighths of microseconds, so that this is two of them in milliseconds.
    let grace = GRACE_MS + field!(ctx, srtt_us) / 4_000;
    arm(ctx, cookie, since, grace, now);
}

/// Sets the `TCP_USER_TIMEOUT`. The kernel counts it from `since_ms`; if that is 0, it isn't known, and the flow ends at once.
#[inline(always)]
fn arm(ctx: &SockOpsContext, cookie: u64, since_ms: u32, grace: u32, now: u64) {
    let Some(user_timeout) = option(ctx, IPPROTO_TCP, TCP_USER_TIMEOUT) else { return };
    let ends_after = if since_ms != 0 { milliseconds(now).wrapping_sub(since_ms).wrapping_add(grace) } else { 1 };
    // SAFETY: copied out at once; the socket's own element, or one that was just recycled.
    let was_armed = unsafe { ARMED.get(&cookie) }.is_some_and(|armed| armed.ends_after != 0);
    // An application that waits for less time than that knows what it does.
    let is_sooner = user_timeout != 0 && user_timeout.cast_unsigned() <= ends_after;
    if was_armed || is_sooner || ends_after.cast_signed() <= 0 {
        return;
    }
    let (snd_una, since_ms) = (field!(ctx, snd_una).into(), since_ms.into());
    let user_timeout = user_timeout.cast_unsigned().into();
    let armed = Armed { ends_after: ends_after.into(), user_timeout, snd_una, since_ms };
    // What couldn't be put back isn't taken away.
    if ARMED.insert(&cookie, &armed, 0).is_ok()
        && set_option(ctx, IPPROTO_TCP, TCP_USER_TIMEOUT, ends_after.cast_signed())
    {
        // The next segment that is acknowledged tells that it lives.
        change_callbacks(ctx, callback::RTT, 0);
    }
}

/// The kernel has just given the flow up. Counted if that is our doing.
#[inline(always)]
pub fn ended(ctx: &SockOpsContext, tries: u32) {
    // SAFETY: copied out at once; the socket's own element, or one that was just recycled.
    if !unsafe { ARMED.get(&cookie(ctx)) }.is_some_and(|armed| armed.ends_after != 0) {
        return;
    }
    count(Counter::Aborted);
    if let Some(flow) = Flow::of(ctx) {
        tell(event::ABORTED, flow.index, netns(ctx), u64::from(tries));
    }
}

/// The flow gave a sign of life, or perhaps only `maybe`: then one is that something was acknowledged since. If it was to be
/// ended, it has its old `TCP_USER_TIMEOUT` back.
#[inline(always)]
pub fn spare(ctx: &SockOpsContext, maybe: bool) {
    // The kernel frees no element before this program ends; if one is recycled meanwhile, a wrong timeout is put back, as if
    // it had been forgotten.
    let Some(entry) = ARMED.get_ptr_mut(&cookie(ctx)) else { return };
    let (ends_after, user_timeout) = (get!(entry, ends_after) as u32, get!(entry, user_timeout) as u32);
    if ends_after == 0 || maybe && get!(entry, snd_una) == u64::from(field!(ctx, snd_una)) {
        return;
    }
    // Unless the application has set another one since.
    if option(ctx, IPPROTO_TCP, TCP_USER_TIMEOUT) == Some(ends_after.cast_signed()) {
        set_option(ctx, IPPROTO_TCP, TCP_USER_TIMEOUT, user_timeout.cast_signed());
    }
    set!(entry, ends_after, 0);
    change_callbacks(ctx, 0, callback::RTT);
    count(Counter::Spared);
    if let Some(flow) = Flow::of(ctx) {
        tell(event::SPARED, flow.index, netns(ctx), 0);
    }
}

/// The flow is over.
#[inline(always)]
pub fn forget(cookie: u64) {
    // One that isn't there needn't be taken out.
    ARMED.remove(&cookie).ok();
}

/// A time in the milliseconds that `TCP_USER_TIMEOUT` counts in.
#[inline(always)]
pub fn milliseconds(now: u64) -> u32 {
    (now / 1_000_000) as u32
}
