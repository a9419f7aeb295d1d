//! `egress`: what connected UDP sockets send to backends that are gone or dead.
//!
//! Such a socket was sent to its backend when it connected, and its send() runs no other hook. Refused here, send() fails
//! with EPERM in whatever network namespace, upon which resolvers open another socket or connect again, and that chooses
//! anew. Sockets that aren't connected choose with each datagram and never get here with a backend that isn't good.
//!
//! Every packet that leaves a socket in the cgroup runs this, so it is attached only while there may be such sockets.

use aya_ebpf::{
    EbpfContext,
    bindings::{__sk_buff, bpf_sock},
    helpers::generated::{bpf_sk_fullsock, bpf_sk_storage_get, bpf_skb_load_bytes},
    macros::cgroup_skb,
    programs::SkBuffContext,
};
use core::mem::MaybeUninit;
use tombolo_ebpf::abi::{Counter, UDP, UdpOrigin};

use crate::{
    family::{MAPPED, Words, is_same},
    maps::{UDP_ORIGIN, count},
    udp,
};

/// The state of a UDP socket that is connected, and of a TCP socket that is established.
const ESTABLISHED: u32 = 1;
/// `ETH_P_IP` as `skb->protocol` has it.
const IPV4: u32 = (0x0800_u16).to_be() as u32;
/// `ETH_P_IPV6`, likewise.
const IPV6: u32 = (0x86dd_u16).to_be() as u32;

/// 1 lets the packet go, 0 has the call that sent it fail with EPERM.
#[cgroup_skb(egress)]
pub fn egress(ctx: SkBuffContext) -> i32 {
    if is_lost(ctx.as_ptr().cast()) != Some(true) {
        return 1;
    }
    count(Counter::UdpRefused);
    0
}

/// Reads a field of the context or of a socket: each in its own access, since the verifier takes no other.
macro_rules! field {
    ($of:expr, $field:ident) => {
        // SAFETY: the kernel hands over a valid pointer; the verifier checks the offset.
        unsafe { (&raw const (*$of).$field).read_volatile() }
    };
}

/// Whether the packet is of a connected UDP socket and goes to a peer that is lost; none if it is another one's.
#[inline(always)]
fn is_lost(skb: *mut __sk_buff) -> Option<bool> {
    // SAFETY: as in `field`.
    let sk = unsafe { &raw const (*skb).__bindgen_anon_2 }.cast::<*mut bpf_sock>();
    // SAFETY: likewise; a union with this one member.
    let sk = unsafe { sk.read_volatile() };
    // Of most sockets this is all that is looked at: of those that listen or aren't connected.
    if sk.is_null() || field!(sk, state) != ESTABLISHED {
        return None;
    }
    // SAFETY: not null. Returns the same socket, with more of its fields to be seen, or null.
    let sk = unsafe { bpf_sk_fullsock(sk) };
    if sk.is_null() || field!(sk, protocol) != u32::from(UDP) {
        return None;
    }
    let map = core::ptr::from_ref(&UDP_ORIGIN).cast_mut().cast();
    // SAFETY: a map and a full socket; without a value and the flag to create it, that finds what is there or returns null.
    let origin = unsafe { bpf_sk_storage_get(map, sk.cast(), core::ptr::null_mut(), 0) };
    // SAFETY: null or the socket's storage, which lives as long as the socket, which the packet holds. For threads that
    // share the socket see `udp::remember`.
    let origin = unsafe { origin.cast::<UdpOrigin>().as_mut() }?;
    // A connected socket may send elsewhere by sendto(), which has chosen anew if it had to.
    let (to, port) = destination(skb)?;
    let (peer, peer_port) = peer(sk, field!(skb, protocol) == IPV4);
    Some(is_same(to, port, peer, peer_port) && udp::is_lost(origin, peer, peer_port))
}

/// Whom the socket is connected to.
#[inline(always)]
fn peer(sk: *mut bpf_sock, is_v4: bool) -> (Words, u16) {
    // All are read, or the compiler would choose between addresses, which the verifier doesn't take for a socket.
    let v4 = field!(sk, dst_ip4);
    // SAFETY: as in `field`.
    let v6 = unsafe { &raw const (*sk).dst_ip6 }.cast::<u32>();
    // SAFETY: within the four words.
    let v6 = [0, 1, 2, 3].map(|i| unsafe { v6.wrapping_add(i).read_volatile() });
    (if is_v4 { [0, 0, MAPPED, v4] } else { v6 }, field!(sk, dst_port))
}

/// Where a UDP packet goes to; none if its header is not at its usual place, behind an extension header.
#[inline(always)]
fn destination(skb: *mut __sk_buff) -> Option<(Words, u16)> {
    // Both headers, and that of UDP behind them, in whole words: see `Numbered`.
    let mut packet = MaybeUninit::<[u64; 6]>::uninit();
    let packet = packet.as_mut_ptr();
    let word = |offset: usize| {
        // SAFETY: within what the kernel has written, and aligned; volatile since it did that behind the compiler's back.
        unsafe { packet.cast::<u32>().wrapping_byte_add(offset).read_volatile() }
    };
    match field!(skb, protocol) {
        IPV4 => {
            load(skb, packet.cast(), 24)?;
            let (first, to, ports) = (word(0), word(16), word(20));
            // Version 4, and five words of header.
            (u32::from_be(first) >> 24 == 0x45).then_some(([0, 0, MAPPED, to], second_half(ports)))
        }
        IPV6 => {
            load(skb, packet.cast(), 48)?;
            let (next, ports) = (word(4), word(40));
            let is_udp = u32::from_be(next) >> 8 & 0xff == u32::from(UDP);
            is_udp.then_some(([word(24), word(28), word(32), word(36)], second_half(ports)))
        }
        _ => None,
    }
}

/// The second two bytes in memory of four: the destination among two ports.
#[inline(always)]
const fn second_half(word: u32) -> u16 {
    (word >> if cfg!(target_endian = "little") { 16 } else { 0 }) as u16
}

/// Copies the first `length` bytes of the packet, from its network header on.
#[inline(always)]
fn load(skb: *mut __sk_buff, into: *mut core::ffi::c_void, length: u32) -> Option<()> {
    // SAFETY: there is room for as many bytes, as the callers show; fails if the packet is shorter.
    (unsafe { bpf_skb_load_bytes(skb.cast(), 0, into, length) } == 0).then_some(())
}
