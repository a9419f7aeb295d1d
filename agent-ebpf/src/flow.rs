//! TCP flows as `sock_ops` sees them: fields of its context, options of the socket, and the backend at the other end.
//!
//! A flow of ours is told by its entry in `ORIGINS`. By the time it fails or closes, that may be another socket's; then it is
//! told by its callback flags, which are set when it begins and stay with the socket, but which programs of others may set, too.
//! The backend is found by the peer's address.

use aya_ebpf::{
    helpers::{
        bpf_sock_ops_cb_flags_set,
        generated::{bpf_get_socket_cookie, bpf_getsockopt, bpf_setsockopt},
    },
    programs::SockOpsContext,
};
use tombolo_ebpf::abi::{Backend, BackendKey, TCP};

use crate::{
    family::{MAPPED, Words, halves, is_same, port, words},
    maps::{BACKEND_OF, BACKENDS, Numbered},
    origin::{Whose, whose},
};

const AF_INET6: u32 = 10;

/// Reads a field of the context: each in its own access, since the verifier takes no other.
macro_rules! field {
    ($ctx:expr, $field:ident) => {
        // SAFETY: the kernel hands over a valid context; the verifier checks the offset.
        unsafe { (&raw const (*$ctx.ops).$field).read_volatile() }
    };
}

pub(crate) use field;

/// Callback flags, which the kernel keeps with the socket.
pub mod callback {
    /// Retransmission timeouts.
    pub const TIMEOUT: u32 = 1;
    /// Retransmissions. Not wanted for themselves: the flag marks a flow that is never aborted, once its origin is gone.
    pub const SPARED: u32 = 2;
    /// Changes of state.
    pub const STATE: u32 = 4;
    /// Round-trip times measured.
    pub const RTT: u32 = 8;
    /// All of these.
    pub const OURS: u32 = TIMEOUT | SPARED | STATE | RTT;
}

/// Argument `n` of the callback.
#[inline(always)]
pub fn arg(ctx: &SockOpsContext, n: usize) -> u32 {
    // SAFETY: as in `field`.
    let args = unsafe { &raw const (*ctx.ops).__bindgen_anon_1 }.cast::<u32>();
    // SAFETY: within the four words.
    unsafe { args.wrapping_add(n).read_volatile() }
}

/// Answers the callback.
#[inline(always)]
pub fn reply(ctx: &SockOpsContext, value: u32) {
    // SAFETY: as in `field`; the field may be written.
    let reply = unsafe { &raw mut (*ctx.ops).__bindgen_anon_1 }.cast::<u32>();
    // SAFETY: likewise.
    unsafe { reply.write_volatile(value) };
}

/// Which callbacks this socket has.
#[inline(always)]
pub fn callbacks(ctx: &SockOpsContext) -> u32 {
    field!(ctx, bpf_sock_ops_cb_flags)
}

/// Gives the socket the callbacks `on` and takes `off` from it. Those of other programs stay.
#[inline(always)]
pub fn change_callbacks(ctx: &SockOpsContext, on: u32, off: u32) {
    let flags = callbacks(ctx) & !off | on;
    // SAFETY: a valid context; takes an integer. It fails only for what isn't a full socket, which is never ours.
    unsafe { bpf_sock_ops_cb_flags_set(ctx.ops, flags.cast_signed()) };
}

/// Whether these are callbacks of a flow that a program sent to its peer, or of any flow if somebody else's program sets them.
#[inline(always)]
pub fn is_marked(callbacks: u32) -> bool {
    callbacks & callback::STATE != 0 && callbacks & (callback::TIMEOUT | callback::SPARED) != 0
}

/// Whose this flow is; never [`Whose::Unknown`].
#[inline(always)]
pub fn whose_flow(ctx: &SockOpsContext) -> Whose {
    match whose(cookie(ctx), peer(ctx), peer_port(ctx)) {
        Whose::Unknown => {
            let callbacks = callbacks(ctx);
            // Old enough to have been counted, if it isn't still being established.
            let ours = Whose::Ours { spared: callbacks & callback::SPARED != 0, counted: true };
            if is_marked(callbacks) { ours } else { Whose::Others }
        }
        known => known,
    }
}

/// The socket's cookie.
#[inline(always)]
pub fn cookie(ctx: &SockOpsContext) -> u64 {
    // SAFETY: a valid context; returns an integer.
    unsafe { bpf_get_socket_cookie(ctx.ops.cast()) }
}

/// The address of the other end.
#[inline(always)]
pub fn peer(ctx: &SockOpsContext) -> Words {
    // All are read, or the compiler would choose between addresses, which the verifier doesn't take for a context.
    let v4 = field!(ctx, remote_ip4);
    // SAFETY: as in `field`.
    let v6 = unsafe { &raw const (*ctx.ops).remote_ip6 }.cast::<u32>();
    // SAFETY: within the four words.
    let v6 = [0, 1, 2, 3].map(|i| unsafe { v6.wrapping_add(i).read_volatile() });
    if field!(ctx, family) == AF_INET6 { v6 } else { [0, 0, MAPPED, v4] }
}

/// The port of the other end, in network byte order.
#[inline(always)]
pub fn peer_port(ctx: &SockOpsContext) -> u16 {
    // It comes in network byte order as the first two bytes of four.
    (field!(ctx, remote_port) >> if cfg!(target_endian = "little") { 16 } else { 0 }) as u16
}

/// The flow's backend.
pub struct Flow {
    /// Index in `BACKENDS`.
    pub index: u32,
    /// The entry.
    pub backend: &'static Backend,
}

impl Flow {
    /// That of this socket, by its peer; none if its peer is no backend, or none any more.
    #[inline(always)]
    pub fn of(ctx: &SockOpsContext) -> Option<Self> {
        Self::to(peer(ctx), peer_port(ctx))
    }

    /// Likewise for a peer.
    #[inline(always)]
    pub fn to(peer: Words, peer_port: u16) -> Option<Self> {
        const { assert!(size_of::<BackendKey>() <= size_of::<[u64; 3]>()) };
        let [first, second] = halves(peer);
        let [high, low] = peer_port.to_ne_bytes();
        // A `BackendKey` in whole words, for the reason that `Numbered` gives.
        let words_of_key = [first, second, u64::from_ne_bytes([high, low, TCP, 0, 0, 0, 0, 0])];
        // SAFETY: of this layout, integers all, and aligned.
        let key = unsafe { &*words_of_key.as_ptr().cast::<BackendKey>() };
        // SAFETY: a plain integer is copied out at once. Whose it is, is checked below.
        let index = *unsafe { BACKEND_OF.get(key) }?;
        let backend = BACKENDS.at(index)?;
        is_same(words(&backend.addr), port(&backend.port), peer, peer_port).then_some(Self { index, backend })
    }
}

/// Reads an option of the socket.
#[inline(always)]
pub fn option(ctx: &SockOpsContext, level: i32, name: i32) -> Option<i32> {
    let mut value = 0_i32;
    let into = &raw mut value;
    // SAFETY: a valid context; the kernel writes the four bytes of `value`.
    let failed = unsafe { bpf_getsockopt(ctx.ops.cast(), level, name, into.cast(), size_of::<i32>() as i32) };
    // SAFETY: a local, which the kernel may have written behind the compiler's back.
    (failed == 0).then_some(unsafe { into.read_volatile() })
}

/// Sets an option of the socket; whether that was possible.
#[inline(always)]
pub fn set_option(ctx: &SockOpsContext, level: i32, name: i32, value: i32) -> bool {
    let mut value = value;
    let from = &raw mut value;
    // SAFETY: a valid context; the kernel reads the four bytes of `value`.
    unsafe { bpf_setsockopt(ctx.ops.cast(), level, name, from.cast(), size_of::<i32>() as i32) == 0 }
}
