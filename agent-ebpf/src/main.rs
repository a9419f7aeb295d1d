//! The kernel programs: cgroup hooks that send a socket straight to a backend of the service it dials.
//!
//! A hook is one line; what it found is a value, and one place turns it into a verdict and counters. When in doubt a
//! hook changes nothing and the call takes its ordinary path.
#![no_std]
#![no_main]
// `core` leaves atomic read-modify-write out for this target, which has it since Linux 5.12 (`lock xadd` since 3.18).
#![feature(core_intrinsics)]
// Inline assembly isn't stable for this target.
#![feature(asm_experimental_arch)]
#![expect(internal_features, reason = "there is no other way to an atomic add")]
#![expect(unsafe_code, reason = "contexts and maps are the kernel's memory")]
#![expect(
    clippy::cast_possible_truncation,
    reason = "ports and fractions are the lower halves of words, on purpose; array sizes are small constants"
)]
// The crate is its own documentation's only reader: nothing here can be imported.
#![expect(unreachable_pub, reason = "hooks are found by their symbols")]

/// Logs a message in builds for debugging; in others it is nothing.
macro_rules! say {
    ($ctx:expr, $($message:tt)+) => {{
        #[cfg(feature = "log")]
        aya_log_ebpf::debug!($ctx, $($message)+);
        #[cfg(not(feature = "log"))]
        let _: &SockAddrContext = $ctx;
    }};
}

mod abort;
mod affinity;
mod choose;
mod connect;
mod depth;
mod egress;
mod events;
mod family;
mod flow;
mod frontend;
mod getpeername;
mod health;
mod keepalive;
mod maps;
mod origin;
mod outcome;
mod recvmsg;
mod remembered;
mod sendmsg;
mod sock_ops;
mod udp;

#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}

/// Some helpers are only for programs under a licence that is compatible with the kernel's.
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
