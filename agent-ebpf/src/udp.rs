//! What UDP sockets remember: the last few frontends they used and the backends these stand for.
//!
//! It lies in the socket's own storage, so it is never evicted by other sockets and goes with the socket. Answers need it
//! to come from the address that was asked, and a socket that sends without connect() needs it to stay with its
//! backend.

use aya_ebpf::programs::SockAddrContext;
use core::arch::asm;
use tombolo_ebpf::abi::{Counter, UDP, UDP_PAIRS, UdpOrigin, UdpPair, verdict};

use crate::{
    choose::Chosen,
    family::{Words, difference, port, put, words},
    frontend::{Hit, active, look_up, within},
    health::cluster::is_up,
    maps::{BACKENDS, CONFIG, Numbered, UDP_ORIGIN},
    outcome::Skip,
    remembered::{Use, is_member, still_good},
};

/// Remembers that this socket's frontend stands for `chosen`, in place of the pair that wasn't used for longest if it is a
/// new one.
#[inline(always)]
pub fn remember(ctx: &SockAddrContext, hit: &Hit, chosen: &Chosen) -> Result<(), Skip> {
    let origin = UDP_ORIGIN.get_or_insert_ptr_mut(ctx, None);
    if origin.is_null() {
        return Err(Skip::Left(Counter::NoStorage));
    }
    // SAFETY: the kernel keeps the storage as long as the socket, which this call holds. Threads that share the socket may
    // write a pair at once; each pair that results names addresses that the socket really used.
    let origin = unsafe { &mut *origin };
    let peer = words(&chosen.backend.addr);
    let peer_port = port(&chosen.backend.port);
    let clock = origin.clock.wrapping_add(1);
    origin.clock = clock;
    let [first, second, third, fourth] = &mut origin.pairs;
    let is_it = |pair: &UdpPair| from_peer(pair, peer, peer_port) | from_frontend(pair, hit) == 0;
    let pair = if is_it(first) {
        first
    } else if is_it(second) {
        second
    } else if is_it(third) {
        third
    } else if is_it(fourth) {
        fourth
    } else {
        older(older(first, second, clock), older(third, fourth, clock), clock)
    };
    put(hit.addr, &mut pair.frontend);
    put(peer, &mut pair.peer);
    pair.frontend_port = hit.port.to_ne_bytes();
    pair.peer_port = peer_port.to_ne_bytes();
    pair.backend = chosen.index | last_resort_bit(chosen.index);
    pair.version = hit.service.version;
    pair.generation = chosen.backend.generation;
    pair.used = clock;
    Ok(())
}

/// Forgets that something stood for `peer`, which this socket connects to by its own address.
#[inline(always)]
pub fn forget(ctx: &SockAddrContext, peer: Words, peer_port: u16) {
    // Most of what isn't ours is no backend's address either, and needs no look at the storage.
    let Some(ranges) = CONFIG.at(0).map(active) else { return };
    if !within(peer, &ranges.backends4, &ranges.backends6) {
        return;
    }
    let Some(UdpOrigin { pairs, .. }) = stored(ctx) else { return };
    let [first, second, third, fourth] = pairs.each_mut().map(opaque);
    for pair in [first, second, third, fourth] {
        if from_peer(pair, peer, peer_port) == 0 {
            put([0; 4], &mut pair.frontend);
            put([0; 4], &mut pair.peer);
        }
    }
}

/// The backend that this socket used for the same frontend last, if it is still good. Counts as a use.
#[inline(always)]
pub fn recall_backend(ctx: &SockAddrContext, hit: &Hit) -> Option<Chosen> {
    let UdpOrigin { clock: counted, pairs } = stored(ctx)?;
    let clock = *counted;
    let (pair, age) = newest(pairs, clock, |pair| from_frontend(pair, hit));
    if age == NEVER {
        return None;
    }
    if pair.used != clock {
        // Answers from a backend that serves several of the socket's frontends are for the one asked last.
        pair.used = clock.wrapping_add(1);
        *counted = clock.wrapping_add(1);
    }
    let index = pair.backend & !UdpPair::LAST_RESORT;
    still_good(ctx, hit.service, index, pair.generation, pair.version, Use::Conversation)
}

/// [`UdpPair::LAST_RESORT`] if user space says that the backend at `index` is dead, else 0. A global function: see
/// [`choose`](crate::choose).
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn last_resort_bit(index: u32) -> u32 {
    let Some(backend) = BACKENDS.at(index) else { return 0 };
    if backend.verdict <= verdict::DRAINING && is_up(backend.cluster) { 0 } else { UdpPair::LAST_RESORT }
}

/// Whether the backend is gone or dead to which the socket with this storage was sent when it connected to `peer`.
///
/// Gone is what is no backend any more, or none of the service that was dialled. What was already known to be dead when
/// it was chosen is tried for as long as it is there, for there was no better one.
#[inline(always)]
pub fn is_lost(origin: &'static mut UdpOrigin, peer: Words, peer_port: u16) -> bool {
    let UdpOrigin { clock, pairs } = origin;
    let (pair, age) = newest(pairs, *clock, |pair| from_peer(pair, peer, peer_port));
    if age == NEVER {
        return false;
    }
    let index = pair.backend & !UdpPair::LAST_RESORT;
    let Some(backend) = BACKENDS.at(index) else { return true };
    if backend.generation != pair.generation {
        return true;
    }
    if pair.backend == index && last_resort_bit(index) != 0 {
        return true;
    }
    // A service that isn't ours any more is none of our business.
    let found = look_up(words(&pair.frontend), port(&pair.frontend_port), UDP);
    found.is_ok_and(|(_, service)| !is_member(service, index, pair.version))
}

/// What this socket dialled to reach `peer`.
#[inline(always)]
pub fn recall_frontend(ctx: &SockAddrContext, peer: Words, peer_port: u16) -> Option<(Words, u16)> {
    let UdpOrigin { clock, pairs } = stored(ctx)?;
    let (pair, age) = newest(pairs, *clock, |pair| from_peer(pair, peer, peer_port));
    if age == NEVER {
        return None;
    }
    Some((words(&pair.frontend), port(&pair.frontend_port)))
}

#[inline(always)]
fn stored(ctx: &SockAddrContext) -> Option<&'static mut UdpOrigin> {
    // SAFETY: null or the socket's storage, which lives as long as the socket, which this call holds. For threads that share
    // the socket see `remember`.
    unsafe { UDP_ORIGIN.get_ptr_mut(ctx).as_mut() }
}

/// The pair used last among those that don't differ, and how long ago that was; [`NEVER`] if all differ.
///
/// Not an option: without CAP_PERFMON Linux 6.1 goes on, as the processor might, with the null of no pair as a pair.
#[inline(always)]
fn newest(pairs: &mut [UdpPair; UDP_PAIRS], clock: u32, difference: impl Fn(&UdpPair) -> u32) -> (&mut UdpPair, u32) {
    let age = |pair: &UdpPair| if difference(pair) == 0 { clock.wrapping_sub(pair.used) } else { NEVER };
    let [first, second, third, fourth] = pairs.each_mut().map(opaque);
    let mut least = age(first);
    let mut best = first;
    for pair in [second, third, fourth] {
        let age = age(pair);
        if age < least {
            (best, least) = (pair, age);
        }
    }
    (best, least)
}

/// The same reference, of which the compiler doesn't know that it belongs to an array.
///
/// Of a choice between two elements it would make an addition of a chosen number, which takes CAP_PERFMON.
#[inline(always)]
fn opaque<T>(reference: &mut T) -> &mut T {
    let mut pointer = core::ptr::from_mut(reference);
    // SAFETY: the pointer stays what it was. An instruction there has to be: none of its own has line information.
    unsafe { asm!("{0} = {0}", inout(reg) pointer, options(pure, readonly, nostack)) };
    // SAFETY: a reference just now, which nobody else has.
    unsafe { &mut *pointer }
}

/// Longer ago than any use.
const NEVER: u32 = u32::MAX;

/// The one that wasn't used for longer.
#[inline(always)]
fn older<'a>(one: &'a mut UdpPair, other: &'a mut UdpPair, clock: u32) -> &'a mut UdpPair {
    if clock.wrapping_sub(one.used) >= clock.wrapping_sub(other.used) { one } else { other }
}

/// What differs between the pair's frontend and what was dialled; 0 if nothing does.
#[inline(always)]
fn from_frontend(pair: &UdpPair, hit: &Hit) -> u32 {
    difference(words(&pair.frontend), port(&pair.frontend_port), hit.addr, hit.port)
}

/// What differs between the pair's peer and this one; 0 if nothing does.
#[inline(always)]
fn from_peer(pair: &UdpPair, peer: Words, peer_port: u16) -> u32 {
    difference(words(&pair.peer), port(&pair.peer_port), peer, peer_port)
}
