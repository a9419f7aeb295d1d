//! ClientIP session affinity: a pod keeps its backend until it has not connected for the service's timeout.

use aya_ebpf::{
    bindings::BPF_NOEXIST,
    helpers::generated::{bpf_get_netns_cookie, bpf_ktime_get_ns},
    programs::SockAddrContext,
};
use tombolo_ebpf::abi::{AffinityKey, AffinityValue, service_flag};

use crate::{
    choose::{Chosen, choose},
    frontend::Hit,
    health::set,
    maps::AFFINITY,
    remembered::{Use, still_good},
};

/// The session's backend, else a new one, which becomes the session's.
#[inline(always)]
pub fn choose_with_affinity(ctx: &SockAddrContext, hit: &Hit) -> Option<Chosen> {
    if hit.service.flags & service_flag::AFFINITY == 0 {
        return choose(ctx, hit.service, hit.index);
    }
    // SAFETY: a valid context; returns an integer.
    let netns = unsafe { bpf_get_netns_cookie(ctx.sock_addr.cast()) };
    let key = AffinityKey { netns, service: hit.service.id, pad: 0 };
    // SAFETY: takes nothing, returns an integer.
    let now = unsafe { bpf_ktime_get_ns() };
    let timeout = u64::from(hit.service.affinity_seconds) * 1_000_000_000;
    let known = AFFINITY.get_ptr_mut(&key);
    let is_known = known.is_some();
    if let Some(value) = known {
        // SAFETY: the kernel frees no element before this program ends. If it gives it to another key meanwhile, that key's
        // session is at worst prolonged: the backend is checked to be a member of this service.
        let session = unsafe { &mut *value };
        if now.saturating_sub(session.last_used) < timeout
            && let Some(chosen) =
                still_good(ctx, hit.service, session.backend, session.generation, session.version, Use::Connection)
        {
            // The version stays the one it was chosen under. The members of a new version are settled only after the
            // frontend was switched to it: a backend that is about to leave may still be found among them.
            session.last_used = now;
            return Some(chosen);
        }
    }
    let chosen = choose(ctx, hit.service, hit.index)?;
    let session = AffinityValue {
        last_used: now,
        backend: chosen.index,
        version: hit.service.version,
        generation: chosen.backend.generation,
        pad: 0,
    };
    // Of several first connects at once one makes the session, and the others join it. So whoever found none doesn't write
    // over one that is there by now. One that can't be remembered still gets its connection.
    if is_known && let Some(value) = AFFINITY.get_ptr_mut(&key) {
        overwrite(value, &session);
    } else if AFFINITY.insert(&key, &session, BPF_NOEXIST.into()).is_err()
        && let Some(value) = AFFINITY.get_ptr_mut(&key)
    {
        // SAFETY: as above.
        let other = unsafe { *value };
        return still_good(ctx, hit.service, other.backend, other.generation, other.version, Use::Connection)
            .or(Some(chosen));
    }
    Some(chosen)
}

/// Writes a session over another one: field by field, or the compiler calls `memcpy` (see [`words`](crate::family::words)).
#[inline(always)]
fn overwrite(value: *mut AffinityValue, session: &AffinityValue) {
    set!(value, last_used, session.last_used);
    set!(value, backend, session.backend);
    set!(value, version, session.version);
    set!(value, generation, session.generation);
}
