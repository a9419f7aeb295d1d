//! Where TCP sockets were sent, by socket cookie; and the rewriting itself.
//!
//! An array entry by the cookie's low bits costs a fraction of a hash or of socket storage, and needs no clean-up when the
//! socket closes: the next socket that falls on the entry takes it over.

use aya_ebpf::{helpers::generated::bpf_get_socket_cookie, programs::SockAddrContext};
use core::sync::atomic::{Ordering, compiler_fence};
use tombolo_ebpf::abi::{Counter, MAX_ORIGINS, Origin, origin_flag, service_flag};

use crate::{
    choose::Chosen,
    family::{Family, Words, is_same, port, put, words},
    frontend::Hit,
    health::{backend::count_choice, get, set},
    maps::{Numbered, ORIGINS},
    outcome::Skip,
};

/// Writes the backend's address into the call, and counts the choice.
#[inline(always)]
pub fn redirect<F: Family>(ctx: &SockAddrContext, chosen: &Chosen) -> Result<(), Skip> {
    if !F::set_addr(ctx, words(&chosen.backend.addr)) {
        return Err(Skip::Left(Counter::Recycled));
    }
    set_port(ctx, port(&chosen.backend.port));
    count_choice(chosen);
    say!(ctx, "sent to backend {} of cluster {}", chosen.index, chosen.backend.cluster);
    Ok(())
}

/// Writes `port`, in network byte order, into the call.
#[inline(always)]
pub fn set_port(ctx: &SockAddrContext, port: u16) {
    // SAFETY: a valid context, in which this field may be written.
    unsafe { (*ctx.sock_addr).user_port = u32::from(port) };
}

/// Remembers a TCP socket's frontend and peer.
#[inline(always)]
pub fn remember(ctx: &SockAddrContext, hit: &Hit, chosen: &Chosen) {
    let cookie = cookie(ctx);
    let Some(origin) = ORIGINS.at_mut(cookie as u32 & (MAX_ORIGINS - 1)) else { return };
    // SAFETY: an element of an array map, which is never freed. Another socket may hold the entry: readers compare the
    // cookie, which is 0 while the rest is being written.
    let origin = unsafe { &mut *origin };
    origin.cookie = 0;
    compiler_fence(Ordering::Release);
    put(hit.addr, &mut origin.frontend);
    put(words(&chosen.backend.addr), &mut origin.peer);
    origin.frontend_port = hit.port.to_ne_bytes();
    origin.peer_port = chosen.backend.port;
    origin.backend = chosen.index;
    origin.since_ms = 0;
    let may_abort = hit.service.flags & service_flag::NO_ABORT == 0;
    origin.flags = origin_flag::NEW | if may_abort { 0 } else { origin_flag::NO_ABORT };
    compiler_fence(Ordering::Release);
    origin.cookie = cookie;
}

/// What this TCP socket dialled, if it is connected to `peer` because of that.
#[inline(always)]
pub fn recall(ctx: &SockAddrContext, peer: Words, peer_port: u16) -> Option<(Words, u16)> {
    let cookie = cookie(ctx);
    let origin: &Origin = ORIGINS.at(cookie as u32 & (MAX_ORIGINS - 1))?;
    if origin.cookie != cookie || !is_same(words(&origin.peer), port(&origin.peer_port), peer, peer_port) {
        return None;
    }
    Some((words(&origin.frontend), port(&origin.frontend_port)))
}

/// The flags of the origin of the socket with this cookie, if it connects to `peer` because of that; once for each connect,
/// which begins at `now_ms`.
#[inline(always)]
pub fn take(cookie: u64, peer: Words, peer_port: u16, now_ms: u32) -> Option<u32> {
    let origin = ORIGINS.at_mut(cookie as u32 & (MAX_ORIGINS - 1))?;
    // SAFETY: an element of an array map, which is never freed. If another socket takes the entry right now, its flags may be
    // lost, and it is a flow that nobody watches.
    let origin = unsafe { &mut *origin };
    if origin.cookie != cookie || !is_same(words(&origin.peer), port(&origin.peer_port), peer, peer_port) {
        return None;
    }
    let flags = origin.flags;
    if flags & origin_flag::NEW == 0 {
        return None;
    }
    origin.flags = flags & !origin_flag::NEW;
    origin.since_ms = now_ms;
    Some(flags)
}

/// Whose a TCP flow is.
pub enum Whose {
    /// A program sent it to its peer.
    Ours {
        /// Its service opted out of having its flows ended.
        spared: bool,
        /// It was counted when it was established.
        counted: bool,
    },
    /// The application dialled its peer.
    Others,
    /// A younger socket has taken its entry, if it had one.
    Unknown,
}

/// Whose the flow of the socket with this cookie to `peer` is. Not even a program of others that sets the callbacks of all
/// sockets can make this wrong, as long as the entry lasts.
///
/// Cookies count up, so an entry that is empty or an older socket's was never this one's. (The exception is a socket that is
/// older than the entry it takes because it connects so late: one in [`MAX_ORIGINS`] of those.)
#[inline(always)]
pub fn whose(cookie: u64, peer: Words, peer_port: u16) -> Whose {
    let Some(origin) = ORIGINS.at(cookie as u32 & (MAX_ORIGINS - 1)) else { return Whose::Unknown };
    let holder = get!(origin, cookie);
    if holder != cookie {
        return if holder > cookie { Whose::Unknown } else { Whose::Others };
    }
    let flags = get!(origin, flags);
    if flags & origin_flag::NEW != 0 || !is_same(words(&origin.peer), port(&origin.peer_port), peer, peer_port) {
        return Whose::Others;
    }
    Whose::Ours { spared: flags & origin_flag::NO_ABORT != 0, counted: get!(origin, since_ms) == 0 }
}

/// The flow of the socket with this cookie was counted as established. When it began is of no more interest.
#[inline(always)]
pub fn counted(cookie: u64) {
    if let Some(origin) = own(cookie) {
        set!(origin, since_ms, 0);
    }
}

/// The flow of the socket with this cookie is over. Whatever it connects to next, be it the same peer, isn't this flow.
#[inline(always)]
pub fn end(cookie: u64) {
    if let Some(origin) = own(cookie) {
        set!(origin, peer_port, [0; 2]);
    }
}

/// The entry of the socket with this cookie, if it is still there. If another one takes it right now, what is written may
/// be that one's loss: it is then a flow that nobody watches.
#[inline(always)]
fn own(cookie: u64) -> Option<*mut Origin> {
    ORIGINS.at_mut(cookie as u32 & (MAX_ORIGINS - 1)).filter(|origin| get!(*origin, cookie) == cookie)
}

/// When the connect of the socket with this cookie began; 0 if its origin isn't there any more.
#[inline(always)]
pub fn since_ms(cookie: u64) -> u32 {
    ORIGINS.at_mut(cookie as u32 & (MAX_ORIGINS - 1)).map_or(0, |origin| {
        let since_ms = get!(origin, since_ms);
        if get!(origin, cookie) == cookie { since_ms } else { 0 }
    })
}

#[inline(always)]
fn cookie(ctx: &SockAddrContext) -> u64 {
    // SAFETY: a valid context; returns an integer, and hands out a cookie if the socket had none.
    unsafe { bpf_get_socket_cookie(ctx.sock_addr.cast()) }
}
