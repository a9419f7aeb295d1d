//! `sendmsg4` and `sendmsg6`: UDP datagrams that name their destination.
//!
//! A datagram to the backend of a connected IPv4-mapped socket comes by here too; its address is no frontend and passes.

use aya_ebpf::{macros::cgroup_sock_addr, programs::SockAddrContext};

use crate::{
    affinity::choose_with_affinity,
    family::{Family, V4, V6, port, words},
    frontend::{find, no_backend},
    origin,
    outcome::{Skip, verdict},
    udp,
};

#[cgroup_sock_addr(sendmsg4)]
pub fn sendmsg4(ctx: SockAddrContext) -> i32 {
    verdict(&ctx, sendmsg::<V4>(&ctx))
}

#[cgroup_sock_addr(sendmsg6)]
pub fn sendmsg6(ctx: SockAddrContext) -> i32 {
    verdict(&ctx, sendmsg::<V6>(&ctx))
}

/// A socket stays with its backend while that is good: protocols above UDP have conversations, too.
#[inline(always)]
fn sendmsg<F: Family>(ctx: &SockAddrContext) -> Result<(), Skip> {
    let hit = find::<F>(ctx)?;
    if let Some(chosen) = udp::recall_backend(ctx, &hit)
        && F::set_addr(ctx, words(&chosen.backend.addr))
    {
        origin::set_port(ctx, port(&chosen.backend.port));
        return Ok(());
    }
    let chosen = choose_with_affinity(ctx, &hit).ok_or_else(|| no_backend(hit.service))?;
    udp::remember(ctx, &hit, &chosen)?;
    origin::redirect::<F>(ctx, &chosen)
}
