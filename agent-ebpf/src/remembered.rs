//! Whether a choice that was remembered may be made again.

use aya_ebpf::programs::SockAddrContext;
use tombolo_ebpf::abi::{MemberKey, Service, verdict};

use crate::{
    choose::Chosen,
    health::{
        backend::is_out,
        cluster::{is_suspect, is_up},
    },
    maps::{BACKENDS, MEMBERS, Numbered},
};

/// What a choice is made again for.
#[derive(Clone, Copy)]
pub enum Use {
    /// A new connection, which a draining or ejected backend and a suspect cluster don't take.
    Connection,
    /// The next datagram of a conversation, which these keep.
    Conversation,
}

/// The backend at `index`, if it is the one remembered, still belongs to `service` and is fit for this use.
///
/// A service of the same version has the same backends; of another one, membership is looked up.
#[inline(always)]
pub fn still_good(
    ctx: &SockAddrContext,
    service: &Service,
    index: u32,
    generation: u32,
    version: u32,
    next: Use,
) -> Option<Chosen> {
    let backend = BACKENDS.at(index)?;
    let fit = match next {
        Use::Connection => backend.verdict == verdict::OK,
        Use::Conversation => backend.verdict <= verdict::DRAINING,
    };
    if backend.generation != generation || !fit || !is_up(backend.cluster) {
        return None;
    }
    if !is_member(service, index, version) {
        return None;
    }
    let chosen = Chosen { index, backend };
    match next {
        // The last question of all, since the answer may be that this connection is the one that tries.
        Use::Connection if is_suspect(ctx, backend.cluster) || is_out(ctx, &chosen) => None,
        _ => Some(chosen),
    }
}

/// Whether the backend at `index`, which was one of the service's backends under `version`, still is.
#[inline(always)]
pub fn is_member(service: &Service, index: u32, version: u32) -> bool {
    let member = MemberKey { service: service.id, backend: index };
    // SAFETY: only whether there is an element matters, not what is in it.
    version == service.version || unsafe { MEMBERS.get(&member) }.is_some()
}
