//! What user space is told as it happens. A full ring loses events and counts them; no program ever waits.

use aya_ebpf::helpers::generated::bpf_ktime_get_ns;
use tombolo_ebpf::abi::{Counter, Event};

use crate::{
    health::set,
    maps::{BACKENDS, EVENTS, Numbered, count},
};

/// Tells that something of this `kind` happened to the backend at `index`, or through it to its cluster. Always 0.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn tell(kind: u32, index: u32, netns: u64, value: u64) -> u32 {
    let Some(backend) = BACKENDS.at(index) else { return 0 };
    // SAFETY: takes nothing, returns an integer.
    let time = unsafe { bpf_ktime_get_ns() };
    let (generation, cluster) = (backend.generation, backend.cluster);
    let Some(mut room) = EVENTS.reserve::<Event>(0) else {
        count(Counter::EventLost);
        return 0;
    };
    // Field by field into the ring: on the stack, older kernels would not take it (see `choose`'s `Walk`).
    let event = room.as_mut_ptr();
    set!(event, time, time);
    set!(event, netns, netns);
    set!(event, value, value);
    set!(event, backend, index);
    set!(event, generation, generation);
    set!(event, cluster, cluster);
    set!(event, kind, kind);
    room.submit(0);
    0
}
