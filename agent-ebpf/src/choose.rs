//! Which backend a connection gets, in constant time however many there are.
//!
//! The quick way is one draw: a cluster of the first tier by weight, a backend of it by its alias table. Only if that
//! cluster is down or suspect, or that backend is out, the thorough way looks at what is left. Taken together the shares
//! are exact: a share that falls on a cluster that is down is drawn again among those that are up, which gives each its
//! own weight over the sum of theirs.
//!
//! What user space said (verdicts) and what the programs learned (`health`) differ in strength: if nothing is left, what is
//! merely ejected or suspect is still tried before what is known to be down.

use aya_ebpf::{
    helpers::generated::{bpf_get_prandom_u32, bpf_loop},
    programs::SockAddrContext,
};
use core::ffi::c_void;
use tombolo_ebpf::abi::{Backend, Counter, Group, MAX_GROUPS, MAX_TIER_GROUPS, MAX_TIERS, Service, verdict};

use crate::{
    health::{
        backend::{is_ejected, is_out},
        cluster::{is_suspect, is_suspect_to, is_up, may_be_suspect},
        netns,
    },
    maps::{BACKENDS, Numbered, SERVICES, SLOTS, count},
};

/// Draws in a tier before it is searched in order.
const DRAWS: u32 = 5;
/// Slots that the search in order looks at.
const SCAN: u32 = 16;
/// No backend.
const NONE: u32 = u32::MAX;

/// A backend and its index.
#[derive(Clone, Copy)]
pub struct Chosen {
    /// Index in `BACKENDS`.
    pub index: u32,
    /// The entry.
    pub backend: &'static Backend,
}

/// Draws a backend for a new connection; none only if the service has no endpoint.
#[inline(always)]
pub fn choose(ctx: &SockAddrContext, service: &Service, index: u32) -> Option<Chosen> {
    let group = match service.tier_end[0] {
        0 => return None,
        1 => 0,
        _ => draw_group(index),
    };
    let group = group_at(service, group);
    if is_up(group.cluster) && !is_suspect(ctx, group.cluster) {
        let chosen = draw(group)?;
        if chosen.backend.verdict == verdict::OK && !is_out(ctx, &chosen) {
            return Some(chosen);
        }
    }
    count(Counter::Redrawn);
    let index = search(index, netns(ctx));
    Some(Chosen { index, backend: BACKENDS.at(index)? })
}

/// A group of the first tier, by weight: its number.
///
/// This and what follows below are global functions, which the verifier looks at once, by themselves, and not again on
/// each way that leads to them.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn draw_group(service: u32) -> u32 {
    let Some(service) = SERVICES.at(service) else { return 0 };
    let last = u32::from(service.tier_end[0]).wrapping_sub(1);
    let point = below(group_at(service, last).upto).0;
    for i in 0..MAX_TIER_GROUPS as u32 {
        if i >= last || point < group_at(service, i).upto {
            return i;
        }
    }
    last
}

/// Group `i`; the mask is what shows the verifier that it lies within the array.
///
/// The zero from the map keeps the verifier from knowing `i`: without CAP_PERFMON it refuses an addition to a pointer that is
/// of a known number on one way and of an unknown one on another.
#[inline(always)]
fn group_at(service: &Service, i: u32) -> &Group {
    const { assert!(MAX_GROUPS.is_power_of_two()) };
    &service.groups[(i | service.pad) as usize & (MAX_GROUPS - 1)]
}

/// A uniform number below `n`, and the uniform fraction that is left over, in units of 2⁻³².
#[inline(always)]
fn below(n: u32) -> (u32, u32) {
    // SAFETY: takes nothing, returns an integer.
    let random = unsafe { bpf_get_prandom_u32() };
    let product = u64::from(random) * u64::from(n);
    ((product >> 32) as u32, product as u32)
}

/// A backend of `group`, by its alias table.
#[inline(always)]
fn draw(group: &Group) -> Option<Chosen> {
    let (column, fraction) = below(group.slots);
    let slot = SLOTS.at(group.first_slot.wrapping_add(column))?;
    // Both are read, or the compiler would choose between addresses: an addition to a pointer of one number or another,
    // which the verifier allows to those with CAP_PERFMON only.
    // SAFETY: a field of a value of an array map.
    let backend = unsafe { (&raw const slot.backend).read_volatile() };
    // SAFETY: likewise.
    let alias = unsafe { (&raw const slot.alias).read_volatile() };
    let index = if fraction < slot.threshold { backend } else { alias };
    Some(Chosen { index, backend: BACKENDS.at(index)? })
}

/// Which clusters and backends are looked for, from the most wanted on.
mod wanted {
    /// Clusters that are neither down nor suspect, backends that are not ejected either.
    pub(super) const GOOD: u32 = 0;
    /// Those that user space thinks good.
    pub(super) const OK: u32 = 1;
    /// Any backend of a cluster that isn't down.
    pub(super) const UP: u32 = 2;
}

/// The thorough way, for the pod `netns`: tier after tier, redraws, then a search in order. Returns the index of a backend,
/// even of one that is out, since a try beats a certain refusal; [`NONE`] if the service is gone.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn search(service: u32, netns: u64) -> u32 {
    let found = search_tiers(service, netns, wanted::GOOD);
    if found != NONE {
        return found;
    }
    count(Counter::LastResort);
    let found = search_tiers(service, netns, wanted::OK);
    if found != NONE {
        return found;
    }
    last_resort(service)
}

/// Likewise for what is `wanted`; [`NONE`] if there is none.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn search_tiers(service: u32, netns: u64, wanted: u32) -> u32 {
    for tier in 0..MAX_TIERS as u32 {
        let found = search_tier(service, netns, wanted, tier);
        if found != NONE {
            return found;
        }
    }
    NONE
}

/// Likewise for one tier; [`NONE`] also if there is no such tier.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn search_tier(service: u32, netns: u64, wanted: u32, tier: u32) -> u32 {
    let (start, end) = bounds(service, tier);
    let range = start << 8 | end;
    let total = weigh(service, netns, wanted, range);
    if total == 0 {
        return NONE;
    }
    for _ in 0..DRAWS {
        let drawn = draw_among(service, netns, wanted, range, total);
        if is_good(drawn, netns, wanted) != 0 {
            return drawn;
        }
    }
    scan(service, netns, wanted, range)
}

/// Where the tier's groups begin, and where they end.
#[inline(always)]
fn bounds(service: u32, tier: u32) -> (u32, u32) {
    let Some(service) = SERVICES.at(service) else { return (0, 0) };
    // All ends in one word, tier 0 in the lowest byte: shifts, where an array would have to be indexed.
    const { assert!(MAX_TIERS == size_of::<u64>()) };
    let ends = u64::from_le_bytes(service.tier_end);
    let shift = 8 * (tier & (MAX_TIERS as u32 - 1));
    let byte = |word: u64| (word >> shift) as u32 & 0xff;
    (byte(ends << 8), byte(ends))
}

/// Whether there is such a backend, and the pod `netns` may be sent to it. One for which that is so has to be taken: see
/// [`is_out`].
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn is_good(index: u32, netns: u64, wanted: u32) -> u32 {
    let Some(backend) = BACKENDS.at(index) else { return 0 };
    let is_ok = backend.verdict == verdict::OK;
    u32::from(is_ok && (wanted != wanted::GOOD || is_ejected(index, backend.generation, netns) == 0))
}

/// Whether the cluster is one of those `wanted` for the pod `netns`.
#[inline(always)]
fn is_wanted(cluster: u32, netns: u64, wanted: u32) -> bool {
    let may_be_suspect = wanted == wanted::GOOD && may_be_suspect(cluster);
    is_up(cluster) && !(may_be_suspect && is_suspect_to(cluster, netns) != 0)
}

/// A walk over the groups of a tier whose clusters are wanted, by `bpf_loop`: the verifier goes through its body once or
/// twice instead of sixteen times.
///
/// It lies on the stack, where Linux 6.1 takes whatever fills half of eight bytes for damage to a pointer once it knows
/// the other half, unless the agent has CAP_PERFMON. Hence whole words.
#[repr(C)]
struct Walk {
    /// Whose connection it is.
    netns: u64,
    /// Index of the service.
    service: u64,
    /// See [`among`].
    among: u64,
    /// `upto` of the group before.
    before: u64,
    /// The walk ends in the group in which the sum exceeds this. Between the two that start at zero, which would be
    /// set by a call of `memset` otherwise.
    point: u64,
    /// The sum of the weights so far.
    total: u64,
    /// The group in which it ended, or `NONE`.
    group: u64,
}

/// What is `wanted` and a range of groups, packed into one word: each frame on the way counts, of 512 bytes in all.
#[inline(always)]
const fn among(wanted: u32, range: u32) -> u32 {
    wanted << 16 | range
}

/// What [`among`] packed: what is wanted, the first group, and the one behind the last.
#[inline(always)]
const fn split(among: u64) -> (u32, u32, u32) {
    let among = among as u32;
    (among >> 16, among >> 8 & 0xff, among & 0xff)
}

/// Walks until the sum of the weights exceeds `point`.
#[inline(always)]
fn walk(service: u32, netns: u64, wanted: u32, range: u32, point: u32) -> Walk {
    let [service, among, point] = [service, among(wanted, range), point].map(u64::from);
    let mut walk = Walk { netns, service, among, before: 0, point, total: 0, group: NONE.into() };
    let state = core::ptr::from_mut(&mut walk).cast::<c_void>();
    let body: extern "C" fn(u32, &mut Walk) -> i64 = walk_group;
    // SAFETY: the body takes what the kernel passes: the round's number and this very state, which outlives the loop.
    unsafe { bpf_loop(MAX_TIER_GROUPS as u32, body as *mut c_void, state, 0) };
    walk
}

/// One step of a walk; 1 ends it.
extern "C" fn walk_group(i: u32, walk: &mut Walk) -> i64 {
    let Some(service) = SERVICES.at(walk.service as u32) else { return 1 };
    let (wanted, start, end) = split(walk.among);
    let number = start.wrapping_add(i);
    if number >= end {
        return 1;
    }
    let group = group_at(service, number);
    let upto = u64::from(group.upto);
    if is_wanted(group.cluster, walk.netns, wanted) {
        walk.total = walk.total.wrapping_add(upto.wrapping_sub(walk.before));
        if walk.total > walk.point {
            // SAFETY: a field. Volatile, or the compiler makes one store with a chosen address of this and the one below.
            unsafe { (&raw mut walk.group).write_volatile(number.into()) };
            return 1;
        }
    }
    walk.before = upto;
    0
}

/// The sum of the weights of those groups whose clusters are wanted. `range` is the first group in its second byte, and the
/// one behind the last in its first.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn weigh(service: u32, netns: u64, wanted: u32, range: u32) -> u32 {
    walk(service, netns, wanted, range, u32::MAX).total as u32
}

/// A backend by weight from these groups, as if they lay one after the other; `total` is the sum of their weights. [`NONE`] if
/// one ceased to be wanted since that was summed up.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn draw_among(service: u32, netns: u64, wanted: u32, range: u32, total: u32) -> u32 {
    let group = walk(service, netns, wanted, range, below(total).0).group as u32;
    let Some(service) = SERVICES.at(service) else { return NONE };
    if group == NONE {
        return NONE;
    }
    draw(group_at(service, group)).map_or(NONE, |chosen| chosen.index)
}

/// A look at slots one after the other, by `bpf_loop` as in [`Walk`].
#[repr(C)]
struct Scan {
    /// Whose connection it is.
    netns: u64,
    /// Index of the service.
    service: u64,
    /// See [`among`].
    among: u64,
    /// Which group is looked at first, counted from the first one.
    group: u64,
    /// Which slot of it, counted round and round.
    column: u64,
    /// Index of the backend found, or `NONE`.
    found: u64,
}

/// The first good backend among the slots that follow a random one, taking the groups whose clusters are wanted in turn; or
/// [`NONE`].
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn scan(service: u32, netns: u64, wanted: u32, range: u32) -> u32 {
    let (start, end) = (range >> 8, range & 0xff);
    if start >= end {
        return NONE;
    }
    let (group, column) = (below(end - start).0, below(1 << 24).0);
    let [service, among, group, column] = [service, among(wanted, range), group, column].map(u64::from);
    let mut scan = Scan { netns, service, among, group, column, found: NONE.into() };
    let state = core::ptr::from_mut(&mut scan).cast::<c_void>();
    let body: extern "C" fn(u32, &mut Scan) -> i64 = scan_slot;
    // SAFETY: the body takes what the kernel passes: the round's number and this very state, which outlives the loop.
    unsafe { bpf_loop(SCAN, body as *mut c_void, state, 0) };
    scan.found as u32
}

/// One slot; 1 ends the scan.
extern "C" fn scan_slot(i: u32, scan: &mut Scan) -> i64 {
    let Some(service) = SERVICES.at(scan.service as u32) else { return 1 };
    let (wanted, start, end) = split(scan.among);
    let groups = end.wrapping_sub(start);
    if groups == 0 {
        return 1;
    }
    let at = (scan.group as u32).wrapping_add(i);
    let group = group_at(service, start.wrapping_add(at % groups));
    if group.slots == 0 || !is_wanted(group.cluster, scan.netns, wanted) {
        return 0;
    }
    let column = (scan.column as u32).wrapping_add(at / groups) % group.slots;
    let Some(slot) = SLOTS.at(group.first_slot.wrapping_add(column)) else { return 1 };
    if is_good(slot.backend, scan.netns, wanted) == 0 {
        return 0;
    }
    scan.found = slot.backend.into();
    1
}

/// A backend that is out, since no other is left: of a cluster that is up, if there is one.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn last_resort(service: u32) -> u32 {
    for tier in 0..MAX_TIERS as u32 {
        let (start, end) = bounds(service, tier);
        let range = start << 8 | end;
        let total = weigh(service, 0, wanted::UP, range);
        if total != 0 {
            let drawn = draw_among(service, 0, wanted::UP, range, total);
            if drawn != NONE {
                return drawn;
            }
        }
    }
    let group = draw_group(service);
    let Some(service) = SERVICES.at(service) else { return NONE };
    draw(group_at(service, group)).map_or(NONE, |chosen| chosen.index)
}
