//! All that differs between IPv4 and IPv6, and nothing else: how a context's address is read and written.
//!
//! Everywhere else an address is four words in network byte order, IPv4 in its IPv4-mapped form; so an IPv6 socket that
//! dials `::ffff:a.b.c.d` meets the same frontends as an IPv4 socket.

use aya_ebpf::programs::SockAddrContext;

/// An address as four words in network byte order.
pub type Words = [u32; 4];

/// The third word of an IPv4-mapped address, `00 00 ff ff`.
pub const MAPPED: u32 = u32::from_ne_bytes([0, 0, 0xff, 0xff]);

/// How a hook's context holds the address that the call names.
pub trait Family {
    /// Reads it.
    fn addr(ctx: &SockAddrContext) -> Words;
    /// Writes it; false, and nothing is written, if this family can't express `addr`.
    fn set_addr(ctx: &SockAddrContext, addr: Words) -> bool;
}

/// Hooks of AF_INET sockets, and of IPv6 sockets where the kernel treats a mapped address as IPv4.
pub struct V4;

/// Hooks of AF_INET6 sockets.
pub struct V6;

impl Family for V4 {
    #[inline(always)]
    fn addr(ctx: &SockAddrContext) -> Words {
        // SAFETY: the kernel hands over a valid context; the verifier checks the offset.
        [0, 0, MAPPED, unsafe { (*ctx.sock_addr).user_ip4 }]
    }

    #[inline(always)]
    fn set_addr(ctx: &SockAddrContext, addr: Words) -> bool {
        if !is_mapped(addr) {
            return false;
        }
        // SAFETY: as above; the field may be written in all hooks of this kind.
        unsafe { (*ctx.sock_addr).user_ip4 = addr[3] };
        true
    }
}

impl Family for V6 {
    #[inline(always)]
    fn addr(ctx: &SockAddrContext) -> Words {
        // SAFETY: the kernel hands over a valid context; the verifier checks the offset.
        let addr = unsafe { &raw const (*ctx.sock_addr).user_ip6 }.cast::<u32>();
        // SAFETY: within the four words. Word by word and volatile, since the verifier takes no other access to a context.
        [0, 1, 2, 3].map(|i| unsafe { addr.wrapping_add(i).read_volatile() })
    }

    #[inline(always)]
    fn set_addr(ctx: &SockAddrContext, addr: Words) -> bool {
        // SAFETY: as above; the field may be written in all hooks of this kind.
        let field = unsafe { &raw mut (*ctx.sock_addr).user_ip6 }.cast::<u32>();
        for (i, word) in addr.into_iter().enumerate() {
            // SAFETY: as in `addr`.
            unsafe { field.wrapping_add(i).write_volatile(word) };
        }
        true
    }
}

/// Whether `addr` is an IPv4 address in its mapped form.
#[inline(always)]
pub const fn is_mapped(addr: Words) -> bool {
    addr[0] | addr[1] | (addr[2] ^ MAPPED) == 0
}

/// Bits in which two addresses and two ports differ, all together: 0 if they are the same. One comparison in all, since each
/// further one would be another way through the program, for the verifier to follow and the processor to guess.
#[inline(always)]
pub const fn difference(addr: Words, port: u16, other: Words, other_port: u16) -> u32 {
    (addr[0] ^ other[0])
        | (addr[1] ^ other[1])
        | (addr[2] ^ other[2])
        | (addr[3] ^ other[3])
        | (port ^ other_port) as u32
}

/// Whether two addresses and two ports are the same.
#[inline(always)]
pub const fn is_same(addr: Words, port: u16, other: Words, other_port: u16) -> bool {
    difference(addr, port, other, other_port) == 0
}

/// The two halves of an address, as [`Prefix6`](tombolo_ebpf::abi::Prefix6) compares them.
#[inline(always)]
pub const fn halves(addr: Words) -> [u64; 2] {
    let [a, b, c, d] = addr;
    [join(a, b), join(c, d)]
}

/// Two words that lie one after the other in memory, as one.
const fn join(first: u32, second: u32) -> u64 {
    if cfg!(target_endian = "little") {
        (second as u64) << 32 | first as u64
    } else {
        (first as u64) << 32 | second as u64
    }
}

/// An address of the layouts in [`abi`](tombolo_ebpf::abi) as words.
///
/// Every address in these layouts lies on a multiple of four bytes; without that the verifier refuses the program. Reading
/// byte by byte would cost 16 loads, since BPF has no unaligned ones. Reads and writes are volatile because the compiler
/// makes calls of `memcpy` and `memset` out of others, whose pointer arithmetic needs CAP_PERFMON.
#[inline(always)]
pub fn words(addr: &[u8; 16]) -> Words {
    let words = core::ptr::from_ref(addr).cast::<u32>();
    // SAFETY: within the 16 bytes, and aligned.
    [0, 1, 2, 3].map(|i| unsafe { words.wrapping_add(i).read_volatile() })
}

/// A port of the layouts as a half word, its bytes in the same order.
#[inline(always)]
pub const fn port(port: &[u8; 2]) -> u16 {
    u16::from_ne_bytes(*port)
}

/// Writes an address into one of the layouts; see [`words`].
#[inline(always)]
pub fn put(addr: Words, into: &mut [u8; 16]) {
    let words = core::ptr::from_mut(into).cast::<u32>();
    for (i, word) in addr.into_iter().enumerate() {
        // SAFETY: within the 16 bytes, and aligned.
        unsafe { words.wrapping_add(i).write_volatile(word) };
    }
}
