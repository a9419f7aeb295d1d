//! Programs that do nothing: what the kernel's run-time statistics themselves cost, for `cargo xtask bench`.
#![no_std]
#![no_main]
#![expect(unsafe_code, reason = "sections are named by unsafe attributes")]

use aya_ebpf::{macros::cgroup_sock_addr, programs::SockAddrContext};

/// Lets every call go on.
macro_rules! floor {
    ($($hook:ident),+) => {
        $(
            #[cgroup_sock_addr($hook)]
            fn $hook(_: SockAddrContext) -> i32 {
                1
            }
        )+
    };
}

floor!(connect4, connect6, sendmsg4, recvmsg4, getpeername4);

#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}

#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
