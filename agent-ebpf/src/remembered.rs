//! Whether a choice that was remembered may be made again.

use tombolo_ebpf::abi::{MemberKey, Service, verdict};

use crate::{
    choose::{Chosen, is_up},
    maps::{BACKENDS, MEMBERS, Numbered},
};

/// What a choice is made again for.
#[derive(Clone, Copy)]
pub enum Use {
    /// A new connection, which a draining backend doesn't take.
    Connection,
    /// The next datagram of a conversation, which a draining backend keeps.
    Conversation,
}

/// The backend at `index`, if it is the one remembered, still belongs to `service` and is fit for this use.
///
/// A service of the same version has the same backends; of another one, membership is looked up.
#[inline(always)]
pub fn still_good(service: &Service, index: u32, generation: u32, version: u32, next: Use) -> Option<Chosen> {
    let backend = BACKENDS.at(index)?;
    let fit = match next {
        Use::Connection => backend.verdict == verdict::OK,
        Use::Conversation => backend.verdict <= verdict::DRAINING,
    };
    if backend.generation != generation || !fit || !is_up(backend.cluster) {
        return None;
    }
    let member = MemberKey { service: service.id, backend: index };
    // SAFETY: only whether there is an element matters, not what is in it.
    if version != service.version && unsafe { MEMBERS.get(&member) }.is_none() {
        return None;
    }
    Some(Chosen { index, backend })
}
