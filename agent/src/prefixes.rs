//! The few prefixes that cover a set of addresses with as little else as possible.
//!
//! Programs compare an address with these before any look-up, so what isn't ours costs next to nothing. One code for
//! both families: an IPv4 address is its IPv4-mapped IPv6 address until the very last conversion.

use std::{net::Ipv6Addr, ops::RangeInclusive};
use tombolo_ebpf::abi::{MAX_PREFIXES, Prefix4, Prefix6};

/// The IPv4-mapped addresses.
const MAPPED: RangeInclusive<u128> = 0xffff_0000_0000..=0xffff_ffff_ffff;

/// Prefixes that cover a set of addresses; unused ones are `NONE`, used ones come first, in the order of addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cover {
    /// Cover the IPv4-mapped addresses.
    pub v4: [Prefix4; MAX_PREFIXES],
    /// Cover all others.
    pub v6: [Prefix6; MAX_PREFIXES],
}

impl Cover {
    /// Covers nothing.
    pub const NONE: Self = Self { v4: [Prefix4::NONE; MAX_PREFIXES], v6: [Prefix6::NONE; MAX_PREFIXES] };

    /// Whether `addr` lies in one of the prefixes; IPv4 as an IPv4-mapped IPv6 address.
    pub fn contains(&self, addr: [u8; 16]) -> bool {
        match Ipv6Addr::from(addr).to_ipv4_mapped() {
            Some(v4) => self.v4.iter().any(|prefix| prefix.contains(v4.to_bits().to_be())),
            None => self.v6.iter().any(|prefix| prefix.contains(halves(u128::from_be_bytes(addr)))),
        }
    }
}

/// Returns the at most [`MAX_PREFIXES`] prefixes per family that cover `addresses` and the fewest others.
///
/// Addresses are in network byte order, IPv4 as IPv4-mapped IPv6 addresses; order and duplicates don't matter.
pub fn cover(addresses: impl IntoIterator<Item = [u8; 16]>) -> Cover {
    let mut addresses: Vec<[u8; 16]> = addresses.into_iter().collect();
    addresses.sort_unstable();
    cover_ordered(|range| span(&addresses, range))
}

/// Likewise for addresses that are not walked through: `span` tells the first and the last one in a range, none if there
/// is none. It is asked some fifty times, however many there are.
pub fn cover_ordered(span: impl Fn(RangeInclusive<[u8; 16]>) -> Option<([u8; 16], [u8; 16])>) -> Cover {
    let span = |range: RangeInclusive<u128>| {
        let (first, last) = span(range.start().to_be_bytes()..=range.end().to_be_bytes())?;
        Some((u128::from_be_bytes(first), u128::from_be_bytes(last)))
    };
    let span4 = |range: RangeInclusive<u128>| span(intersection(range, MAPPED)?);
    let span6 = |range: RangeInclusive<u128>| {
        let below = intersection(range.clone(), 0..=*MAPPED.start() - 1).and_then(span);
        let above = intersection(range, *MAPPED.end() + 1..=u128::MAX).and_then(span);
        Some((below.or(above)?.0, above.or(below)?.1))
    };
    let mut cover = Cover::NONE;
    for (entry, prefix) in cover.v4.iter_mut().zip(least(&span4, 0..=u128::MAX, MAX_PREFIXES).prefixes) {
        *entry = Prefix4 { net: low(prefix.net).to_be(), mask: low(prefix.mask).to_be() };
    }
    for (entry, prefix) in cover.v6.iter_mut().zip(least(&span6, 0..=u128::MAX, MAX_PREFIXES).prefixes) {
        *entry = Prefix6 { net: halves(prefix.net), mask: halves(prefix.mask) };
    }
    cover
}

/// The first and the last address of a range, of addresses in order.
pub fn span(ordered: &[[u8; 16]], range: RangeInclusive<[u8; 16]>) -> Option<([u8; 16], [u8; 16])> {
    let from = ordered.partition_point(|addr| addr < range.start());
    let end = ordered.partition_point(|addr| addr <= range.end());
    let inside = ordered.get(from..end)?;
    Some((*inside.first()?, *inside.last()?))
}

fn intersection(one: RangeInclusive<u128>, other: RangeInclusive<u128>) -> Option<RangeInclusive<u128>> {
    let both = *one.start().max(other.start())..=*one.end().min(other.end());
    (!both.is_empty()).then_some(both)
}

#[derive(Clone, Copy)]
struct Prefix {
    net: u128,
    mask: u128,
}

#[derive(Clone)]
struct Least {
    prefixes: Vec<Prefix>,
    /// How many addresses the prefixes hold, at most `u128::MAX`.
    held: u128,
}

/// The best cover, by at most `most` prefixes, of the addresses in `range`, of which `span` tells the first and the last.
///
/// The narrowest single prefix has one half that starts with a 0 bit and one that starts with a 1 bit after it; a better
/// cover can only be one for each half. So each call looks at every way to share out `most` between the halves; with
/// `most` = 4 that is a handful of calls.
fn least(
    span: &impl Fn(RangeInclusive<u128>) -> Option<(u128, u128)>,
    range: RangeInclusive<u128>,
    most: usize,
) -> Least {
    let Some((first, last)) = span(range) else {
        return Least { prefixes: Vec::new(), held: 0 };
    };
    let differing = 128 - (first ^ last).leading_zeros();
    let rest = 1u128.checked_shl(differing).map_or(u128::MAX, |size| size - 1);
    let single = Least { prefixes: vec![Prefix { net: first & !rest, mask: !rest }], held: rest.saturating_add(1) };
    if most < 2 || differing == 0 {
        return single;
    }
    let branch = 1u128 << (differing - 1);
    let one = (first & !rest) | branch;
    (1..most)
        .map(|share| join(least(span, first..=one - 1, share), least(span, one..=last, most - share)))
        .fold(single, |best, next| if next.held < best.held { next } else { best })
}

fn join(mut left: Least, right: Least) -> Least {
    left.prefixes.extend(right.prefixes);
    Least { prefixes: left.prefixes, held: left.held.saturating_add(right.held) }
}

/// The lower 32 bits.
fn low(value: u128) -> u32 {
    u32::try_from(value & u128::from(u32::MAX)).expect("32 bits are left")
}

/// The two halves, each in network byte order.
fn halves(value: u128) -> [u64; 2] {
    let half = |value: u128| u64::try_from(value & u128::from(u64::MAX)).expect("64 bits are left").to_be();
    [half(value >> 64), half(value)]
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::net::IpAddr;

    fn address() -> impl Strategy<Value = [u8; 16]> {
        let v4 = prop_oneof![Just([10u8, 96]), Just([10, 97]), any::<[u8; 2]>()];
        let v4 = (v4, any::<[u8; 2]>()).prop_map(|(net, host)| mapped([net[0], net[1], host[0], host[1]]));
        let v6 = prop_oneof![Just([0xfdu8; 8]), any::<[u8; 8]>()];
        let v6 = (v6, any::<[u8; 8]>()).prop_map(|(net, host)| [net, host].concat().try_into().unwrap());
        prop_oneof![v4, v6]
    }

    proptest! {
        #[test]
        fn every_address_is_covered(addresses in prop::collection::vec(address(), 0..80)) {
            let cover = cover(addresses.clone());
            for addr in addresses {
                prop_assert!(cover.contains(addr));
            }
        }

        #[test]
        fn no_prefix_is_wider_than_what_it_holds_needs(addresses in prop::collection::vec(address(), 0..80)) {
            let cover = cover(addresses.clone());
            let numbers: Vec<u128> = addresses.iter().map(|addr| u128::from_be_bytes(*addr)).collect();
            for prefix in used(&cover) {
                let held: Vec<u128> = numbers.iter().copied().filter(|addr| addr & prefix.mask == prefix.net).collect();
                let all_ones = held.iter().fold(u128::MAX, |bits, addr| bits & addr);
                let any_one = held.iter().fold(0, |bits, addr| bits | addr);
                prop_assert!(!held.is_empty());
                let common = (all_ones ^ any_one).leading_zeros();
                prop_assert_eq!(prefix.mask.leading_ones(), common);
                prop_assert_eq!(prefix.mask.count_ones(), common);
            }
        }

        /// Bits of a small universe, so that every cover can be tried.
        #[test]
        fn no_other_cover_holds_less(bits in prop::collection::btree_set(0..32u128, 0..12), most in 1..4usize) {
            let addresses: Vec<u128> = bits.into_iter().collect();
            let ordered: Vec<[u8; 16]> = addresses.iter().map(|address| address.to_be_bytes()).collect();
            let span = |range: RangeInclusive<u128>| {
                let (first, last) = span(&ordered, range.start().to_be_bytes()..=range.end().to_be_bytes())?;
                Some((u128::from_be_bytes(first), u128::from_be_bytes(last)))
            };
            prop_assert_eq!(least(&span, 0..=u128::MAX, most).held, tried_out(&addresses, most));
        }
    }

    #[test]
    fn nothing_to_cover_needs_no_prefix() {
        assert_eq!(cover([]), Cover::NONE);
        assert!(!Cover::NONE.contains(mapped([0, 0, 0, 0])));
        assert!(!Cover::NONE.contains([0xff; 16]));
    }

    #[test]
    fn neighbours_share_a_prefix_in_network_byte_order() {
        let cover =
            cover(["192.168.7.7", "10.96.0.1", "10.97.0.1", "10.96.0.10", "172.20.0.1", "fd00::1"].map(address_of));
        let [first, ..] = cover.v4;
        assert_eq!(first.net.to_ne_bytes(), [10, 96, 0, 0]);
        assert_eq!(first.mask.to_ne_bytes(), [255, 255, 255, 240]);
        assert_eq!(cover.v4[1].net.to_ne_bytes(), [10, 97, 0, 1]);
        assert_eq!(cover.v4[1].mask, u32::MAX);
        assert_eq!(cover.v4[3].net.to_ne_bytes(), [192, 168, 7, 7]);
        assert_eq!(cover.v6[0].net[0].to_ne_bytes(), [0xfd, 0, 0, 0, 0, 0, 0, 0]);
        assert_eq!(cover.v6[0].mask, [u64::MAX; 2]);
        assert_eq!(cover.v6[1], Prefix6::NONE);
    }

    fn mapped(v4: [u8; 4]) -> [u8; 16] {
        std::net::Ipv4Addr::from(v4).to_ipv6_mapped().octets()
    }

    fn address_of(text: &str) -> [u8; 16] {
        match text.parse().unwrap() {
            IpAddr::V4(v4) => v4.to_ipv6_mapped().octets(),
            IpAddr::V6(v6) => v6.octets(),
        }
    }

    fn used(cover: &Cover) -> Vec<Prefix> {
        let number = |halves: [u64; 2]| u128::from(u64::from_be(halves[0])) << 64 | u128::from(u64::from_be(halves[1]));
        let v4 = cover.v4.iter().filter(|prefix| **prefix != Prefix4::NONE).map(|prefix| Prefix {
            net: 0xffff << 32 | u128::from(u32::from_be(prefix.net)),
            mask: u128::MAX << 32 | u128::from(u32::from_be(prefix.mask)),
        });
        let v6 = cover.v6.iter().filter(|prefix| **prefix != Prefix6::NONE);
        v4.chain(v6.map(|prefix| Prefix { net: number(prefix.net), mask: number(prefix.mask) })).collect()
    }

    /// The size of the best cover: cuts the sorted addresses into at most `most` runs in every possible way.
    fn tried_out(addresses: &[u128], most: usize) -> u128 {
        let (Some(first), true) = (addresses.first(), most > 0) else {
            return if addresses.is_empty() { 0 } else { u128::MAX };
        };
        (1..=addresses.len())
            .map(|cut| {
                let size = 1u128 << (128 - (first ^ addresses[cut - 1]).leading_zeros());
                size.saturating_add(tried_out(&addresses[cut..], most - 1))
            })
            .min()
            .expect("there is at least one way to cut")
    }
}
