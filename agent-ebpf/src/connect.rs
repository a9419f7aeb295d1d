//! `connect4` and `connect6`: TCP, and UDP that calls connect().

use aya_ebpf::{macros::cgroup_sock_addr, programs::SockAddrContext};
use tombolo_ebpf::abi::{TCP, UDP};

use crate::{
    affinity::choose_with_affinity,
    family::{Family, V4, V6},
    frontend::{dialled_port, find, no_backend, protocol},
    origin,
    outcome::{Skip, verdict},
    udp,
};

#[cgroup_sock_addr(connect4)]
pub fn connect4(ctx: SockAddrContext) -> i32 {
    verdict(&ctx, connect::<V4>(&ctx))
}

#[cgroup_sock_addr(connect6)]
pub fn connect6(ctx: SockAddrContext) -> i32 {
    verdict(&ctx, connect::<V6>(&ctx))
}

#[inline(always)]
fn connect<F: Family>(ctx: &SockAddrContext) -> Result<(), Skip> {
    let hit = match find::<F>(ctx) {
        Ok(hit) => hit,
        Err(skip) => {
            if protocol(ctx) == Some(UDP) {
                udp::forget(ctx, F::addr(ctx), dialled_port(ctx));
            }
            return Err(skip);
        }
    };
    let chosen = choose_with_affinity(ctx, &hit).ok_or_else(|| no_backend(hit.service))?;
    if hit.proto == TCP {
        origin::remember(ctx, &hit, &chosen);
    } else {
        udp::remember(ctx, &hit, &chosen)?;
    }
    origin::redirect::<F>(ctx, &chosen)
}
