//! `sock_ops`: what becomes of the TCP connections that `connect4` and `connect6` sent to a backend.
//!
//! Every TCP socket in the cgroup runs this a few times, servers' sockets too. What isn't ours is sorted out first: by the
//! operation, by the prefixes that cover all backends when it connects, and by its callbacks and its origin from then on.
//! Sockets of which somebody else's program wants callbacks are left as they are.

use aya_ebpf::{helpers::generated::bpf_ktime_get_ns, macros::sock_ops, programs::SockOpsContext};
use tombolo_ebpf::abi::origin_flag;

use crate::{
    abort,
    flow::{
        Flow, arg, callback, callbacks, change_callbacks, cookie, field, is_marked, peer, peer_port, reply, whose_flow,
    },
    frontend::{active, within},
    health::{backend, cluster, netns},
    keepalive,
    maps::{CLUSTERS, CONFIG, Numbered},
    origin::{self, Whose},
};

/// Operations: what the kernel calls for.
mod op {
    pub(super) const TIMEOUT_INIT: u32 = 1;
    pub(super) const TCP_CONNECT: u32 = 3;
    pub(super) const RTO: u32 = 8;
    pub(super) const STATE: u32 = 10;
    pub(super) const RTT: u32 = 12;
}

/// States of a TCP socket.
mod state {
    pub(super) const ESTABLISHED: u32 = 1;
    pub(super) const SYN_SENT: u32 = 2;
    pub(super) const SYN_RECV: u32 = 3;
    pub(super) const FIN_WAIT2: u32 = 5;
    pub(super) const CLOSE: u32 = 7;
    pub(super) const CLOSE_WAIT: u32 = 8;
    pub(super) const CLOSING: u32 = 11;
}

/// Always 1: there is nothing to refuse.
#[sock_ops]
pub fn sock_ops(ctx: SockOpsContext) -> u32 {
    let op = field!(ctx, op);
    match op {
        op::TCP_CONNECT => {
            begin(&ctx);
        }
        op::RTO | op::STATE => {
            if let Whose::Ours { spared, counted } = whose_flow(&ctx) {
                go_on(&ctx, op, spared, counted);
            }
        }
        // These come for sockets of others, too, and often.
        op::TIMEOUT_INIT if is_marked(callbacks(&ctx)) => time_syn(&ctx),
        op::RTT if is_marked(callbacks(&ctx)) => abort::spare(&ctx, false),
        _ => {}
    }
    1
}

/// A socket is about to send its SYN. If a program has just sent it to its peer, it gets the callbacks that make it ours.
#[inline(always)]
fn begin(ctx: &SockOpsContext) -> Option<()> {
    let peer = peer(ctx);
    let ranges = active(CONFIG.at(0)?);
    if !within(peer, &ranges.backends4, &ranges.backends6) {
        return None;
    }
    let port = peer_port(ctx);
    let flags = origin::take(cookie(ctx), peer, port, abort::milliseconds(now()))?;
    Flow::to(peer, port)?;
    let spared = if flags & origin_flag::NO_ABORT != 0 { callback::SPARED } else { 0 };
    change_callbacks(ctx, callback::STATE | callback::TIMEOUT | spared, 0);
    Some(())
}

/// How long the first SYN of a flow of ours waits.
#[inline(always)]
fn time_syn(ctx: &SockOpsContext) {
    let Whose::Ours { .. } = whose_flow(ctx) else { return };
    let cluster = Flow::of(ctx).and_then(|flow| CLUSTERS.at(flow.backend.cluster));
    if let Some(cluster) = cluster
        && cluster.syn_timeout != 0
    {
        reply(ctx, cluster.syn_timeout);
    }
}

/// Something happened to a flow of ours, for [`Whose::Ours`] see there.
#[inline(always)]
fn go_on(ctx: &SockOpsContext, op: u32, spared: bool, counted: bool) {
    match op {
        op::STATE => change(ctx, arg(ctx, 0), arg(ctx, 1), counted),
        _ => time_out(ctx, spared, arg(ctx, 0).wrapping_add(1), arg(ctx, 1), arg(ctx, 2) != 0),
    }
}

/// The flow goes from one state to another.
#[inline(always)]
fn change(ctx: &SockOpsContext, from: u32, to: u32, counted: bool) {
    match to {
        state::ESTABLISHED => establish(ctx),
        state::CLOSE => close(ctx, from, counted),
        _ => {
            // These were brought about by a segment from the peer.
            let is_alive = matches!(to, state::CLOSE_WAIT | state::FIN_WAIT2 | state::CLOSING);
            if is_alive && let Some(flow) = Flow::of(ctx) {
                cluster::alive(flow.backend.cluster, now());
            }
            if field!(ctx, total_retrans) != 0 {
                abort::spare(ctx, !is_alive);
            }
        }
    }
}

#[inline(always)]
fn establish(ctx: &SockOpsContext) {
    let retransmitted = field!(ctx, total_retrans) != 0;
    if retransmitted {
        abort::spare(ctx, false);
    }
    let Some(flow) = Flow::of(ctx) else {
        // Its backend went while it was connecting: what isn't counted here must not be counted when it closes.
        origin::end(cookie(ctx));
        return change_callbacks(ctx, 0, callback::OURS);
    };
    let now = now();
    backend::established(&flow, netns(ctx), now);
    origin::counted(cookie(ctx));
    cluster::alive(flow.backend.cluster, now);
    if !retransmitted {
        // The kernel keeps it in eighths.
        cluster::measured(flow.backend.cluster, field!(ctx, srtt_us) >> 3);
    }
    if let Some(cluster) = CLUSTERS.at(flow.backend.cluster) {
        keepalive::set(ctx, cluster);
    }
}

#[inline(always)]
fn close(ctx: &SockOpsContext, from: u32, counted: bool) {
    // The socket may connect again, and to whatever it likes.
    change_callbacks(ctx, 0, callback::OURS);
    origin::end(cookie(ctx));
    if field!(ctx, total_retrans) != 0 {
        abort::forget(cookie(ctx));
    }
    let Some(flow) = Flow::of(ctx) else { return };
    if from == state::SYN_SENT {
        // Without a segment from the peer it was the application that closed, or an ICMP error: neither good nor bad.
        if field!(ctx, segs_in) != 0 {
            let now = now();
            cluster::alive(flow.backend.cluster, now);
            backend::refused(&flow, netns(ctx), now);
        }
    } else if from != state::SYN_RECV && counted {
        backend::closed(&flow);
    }
}

/// What was sent `tries` times, the last time `waited` jiffies ago, is still not acknowledged.
#[inline(always)]
fn time_out(ctx: &SockOpsContext, spared: bool, tries: u32, waited: u32, gives_up: bool) {
    if gives_up {
        return abort::ended(ctx, tries);
    }
    let now = now();
    if field!(ctx, state) != state::SYN_SENT {
        if tries == 1 {
            // The kernel counts from 1 again once something was acknowledged.
            abort::spare(ctx, false);
            abort::note(ctx, now);
        } else if Flow::of(ctx).is_some_and(|flow| abort::is_hopeless(&flow, spared)) {
            abort::arm_established(ctx, now);
        }
        return;
    }
    let Some(flow) = Flow::of(ctx) else { return };
    let netns = netns(ctx);
    // Others' word only, so before this one is added.
    if abort::is_connect_hopeless(&flow, spared, netns, tries) {
        abort::arm_connect(ctx, &flow, now);
    }
    if backend::has_answered(&flow) {
        cluster::unanswered(&flow, netns, now, waited);
    }
    backend::unanswered(&flow, netns, now, tries);
}

/// The time, as events and ejections have it.
#[inline(always)]
fn now() -> u64 {
    // SAFETY: takes nothing, returns an integer.
    unsafe { bpf_ktime_get_ns() }
}
