//! `recvmsg4` and `recvmsg6`: a UDP answer comes from the address that was asked.

use aya_ebpf::{macros::cgroup_sock_addr, programs::SockAddrContext};
use tombolo_ebpf::abi::UDP;

use crate::{
    family::{Family, V4, V6},
    frontend::{active, dialled_port, protocol, within},
    maps::{CONFIG, Numbered},
    origin, udp,
};

#[cgroup_sock_addr(recvmsg4)]
pub fn recvmsg4(ctx: SockAddrContext) -> i32 {
    recvmsg::<V4>(&ctx)
}

#[cgroup_sock_addr(recvmsg6)]
pub fn recvmsg6(ctx: SockAddrContext) -> i32 {
    recvmsg::<V6>(&ctx)
}

/// Always 1: the kernel takes nothing else here.
#[inline(always)]
fn recvmsg<F: Family>(ctx: &SockAddrContext) -> i32 {
    let source = F::addr(ctx);
    let Some(config) = CONFIG.at(0) else { return 1 };
    let ranges = active(config);
    if within(source, &ranges.backends4, &ranges.backends6)
        && protocol(ctx) == Some(UDP)
        && let Some((addr, port)) = udp::recall_frontend(ctx, source, dialled_port(ctx))
        && F::set_addr(ctx, addr)
    {
        origin::set_port(ctx, port);
    }
    1
}
