//! What the programs learn by themselves about backends and clusters, and how it decides where new connections go.
//!
//! It is written on all CPUs without locks, in maps that only programs write. Every value is read and written as a whole, and
//! whatever two CPUs make of a failure at the same moment is one of the two outcomes or a count that is off by one; nothing
//! here can stay wrong, since every ejection and every suspicion ends by itself.

use aya_ebpf::{EbpfContext, helpers::generated::bpf_get_netns_cookie};

/// Reads a field behind a pointer into a map that other CPUs write too.
macro_rules! get {
    ($state:expr, $field:ident) => {
        // SAFETY: an element of a map, which the kernel doesn't free before this program ends; an aligned integer.
        unsafe { (&raw const (*$state).$field).read_volatile() }
    };
}

/// Writes such a field.
macro_rules! set {
    ($state:expr, $field:ident, $value:expr) => {{
        let value = $value;
        // SAFETY: as above; nobody else's value is lost that couldn't have been overwritten a moment later.
        unsafe { (&raw mut (*$state).$field).write_volatile(value) }
    }};
}

/// Adds to such a field, an `u64`, as one operation; `u64::MAX` takes one off.
macro_rules! add {
    ($state:expr, $field:ident, $number:expr) => {{
        // SAFETY: as above.
        let field = unsafe { &raw mut (*$state).$field };
        // SAFETY: as above.
        unsafe { atomic_xadd::<u64, u64, { AtomicOrdering::Relaxed }>(field, $number) };
    }};
}

pub(crate) use {get, set};

// Below the macros, which they use.

pub mod backend;
pub mod cluster;

/// Which pod the socket belongs to.
#[inline(always)]
pub fn netns(ctx: &impl EbpfContext) -> u64 {
    // SAFETY: the kernel's own context; returns an integer.
    unsafe { bpf_get_netns_cookie(ctx.as_ptr()) }
}
