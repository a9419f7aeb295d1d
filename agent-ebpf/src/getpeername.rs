//! `getpeername4` and `getpeername6`: a socket's peer is what it dialled.

use aya_ebpf::{macros::cgroup_sock_addr, programs::SockAddrContext};
use tombolo_ebpf::abi::TCP;

use crate::{
    family::{Family, V4, V6},
    frontend::{dialled_port, protocol},
    origin, udp,
};

#[cgroup_sock_addr(getpeername4)]
pub fn getpeername4(ctx: SockAddrContext) -> i32 {
    getpeername::<V4>(&ctx)
}

#[cgroup_sock_addr(getpeername6)]
pub fn getpeername6(ctx: SockAddrContext) -> i32 {
    getpeername::<V6>(&ctx)
}

/// Always 1: the kernel takes nothing else here.
#[inline(always)]
fn getpeername<F: Family>(ctx: &SockAddrContext) -> i32 {
    let (peer, port) = (F::addr(ctx), dialled_port(ctx));
    let dialled = match protocol(ctx) {
        Some(TCP) => origin::recall(ctx, peer, port),
        Some(_) => udp::recall_frontend(ctx, peer, port),
        None => None,
    };
    if let Some((addr, port)) = dialled
        && F::set_addr(ctx, addr)
    {
        origin::set_port(ctx, port);
    }
    1
}
