//! Keepalive for flows to other clusters: a flow that only waits for an answer sends nothing that could time out, and would
//! wait for ever for a cluster that is gone.

use aya_ebpf::programs::SockOpsContext;
use tombolo_ebpf::abi::Cluster;

use crate::flow::{option, set_option};

const SOL_SOCKET: i32 = 1;
const SO_KEEPALIVE: i32 = 9;
const IPPROTO_TCP: i32 = 6;
const TCP_KEEPIDLE: i32 = 4;
const TCP_KEEPINTVL: i32 = 5;
const TCP_KEEPCNT: i32 = 6;
const TCP_USER_TIMEOUT: i32 = 18;

/// Sets the cluster's keepalive, unless the application keeps time itself. If it turns keepalive on later, the times are
/// still these until it sets its own.
#[inline(always)]
pub fn set(ctx: &SockOpsContext, cluster: &Cluster) {
    if cluster.keepalive_idle == 0
        || option(ctx, SOL_SOCKET, SO_KEEPALIVE) != Some(0)
        || option(ctx, IPPROTO_TCP, TCP_USER_TIMEOUT) != Some(0)
    {
        return;
    }
    // Switched on last, so that the timer starts with the right times; and only if these could be set.
    let is_set = set_option(ctx, IPPROTO_TCP, TCP_KEEPIDLE, i32::from(cluster.keepalive_idle))
        && set_option(ctx, IPPROTO_TCP, TCP_KEEPINTVL, i32::from(cluster.keepalive_interval))
        && set_option(ctx, IPPROTO_TCP, TCP_KEEPCNT, i32::from(cluster.keepalive_count));
    if is_set {
        set_option(ctx, SOL_SOCKET, SO_KEEPALIVE, 1);
    }
}
