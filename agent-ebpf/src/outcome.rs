//! What a call came to, and what the kernel is told.

use aya_ebpf::{helpers::generated::bpf_set_retval, programs::SockAddrContext};
use tombolo_ebpf::abi::Counter;

use crate::maps::count;

/// `connect(2)`'s "nobody is listening".
const ECONNREFUSED: i32 = 111;

/// Why a call was not sent to a backend.
pub enum Skip {
    /// Nothing of ours. The commonest case by far, so it isn't counted.
    NotOurs,
    /// Ours, but left as it is.
    Left(Counter),
    /// Refused here and now.
    Refused,
}

/// The hook's return value: 1 lets the call go on, 0 ends it with the error set.
#[inline(always)]
pub fn verdict(ctx: &SockAddrContext, outcome: Result<(), Skip>) -> i32 {
    match outcome {
        Ok(()) | Err(Skip::NotOurs) => 1,
        Err(Skip::Left(why)) => {
            count(why);
            say!(ctx, "left alone: {}", why.name());
            1
        }
        Err(Skip::Refused) => {
            count(Counter::Refused);
            say!(ctx, "refused: no backend");
            // SAFETY: sets the call's return value, a plain integer; allowed in connect and sendmsg hooks.
            unsafe { bpf_set_retval(-ECONNREFUSED) };
            0
        }
    }
}
