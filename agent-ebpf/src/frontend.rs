//! From the address that a call names to the service that serves it.

use aya_ebpf::{helpers::generated::bpf_get_current_ancestor_cgroup_id, programs::SockAddrContext};
use tombolo_ebpf::abi::{
    Config, Counter, FrontendKey, MAX_PREFIXES, Prefix4, Prefix6, Ranges, Service, TCP, UDP, service_flag,
};

use crate::{
    family::{Family, Words, halves, is_mapped, is_same, port, words as in_words},
    maps::{CONFIG, CURRENT, FRONTENDS, Numbered, PODS, SERVICES},
    outcome::Skip,
};

/// What a call named, and the service behind it.
pub struct Hit {
    /// The address dialled.
    pub addr: Words,
    /// The port dialled, in network byte order.
    pub port: u16,
    /// TCP or UDP.
    pub proto: u8,
    /// The service's index.
    pub index: u32,
    /// The service.
    pub service: &'static Service,
}

/// The service that this call is for.
#[inline(always)]
pub fn find<F: Family>(ctx: &SockAddrContext) -> Result<Hit, Skip> {
    let addr = F::addr(ctx);
    let config = CONFIG.at(0).ok_or(Skip::NotOurs)?;
    let ranges = active(config);
    if !within(addr, &ranges.frontends4, &ranges.frontends6) {
        return Err(Skip::NotOurs);
    }
    let proto = protocol(ctx).ok_or(Skip::NotOurs)?;
    let dialled = dialled_port(ctx);
    let (index, service) = look_up(addr, dialled, proto)?;
    if config.pod_level != 0 && is_exempt(config.pod_level) {
        return Err(Skip::Left(Counter::Exempt));
    }
    Ok(Hit { addr, port: dialled, proto, index, service })
}

/// How often a look-up is repeated that led to another service.
const LOOK_UPS: u32 = 4;

/// The service of this very key, and its index.
///
/// What was read on the way can be another frontend's, or half written (see `abi`). The key in the service tells, and a
/// second look finds what is right by now.
#[inline(always)]
pub fn look_up(addr: Words, dialled: u16, proto: u8) -> Result<(u32, &'static Service), Skip> {
    const { assert!(size_of::<FrontendKey>() <= size_of::<[u64; 3]>()) };
    let [first, second] = halves(addr);
    let [high, low] = dialled.to_ne_bytes();
    // A `FrontendKey` in whole words, for the reason that `Numbered` gives.
    let words = [first, second, u64::from_ne_bytes([high, low, proto, 0, 0, 0, 0, 0])];
    for _ in 0..LOOK_UPS {
        // SAFETY: of this layout, integers all, and aligned.
        let key = unsafe { &*words.as_ptr().cast::<FrontendKey>() };
        // SAFETY: a plain integer is copied out at once. Whose it is, is checked below.
        let id = *unsafe { FRONTENDS.get(key) }.ok_or(Skip::NotOurs)?;
        let current = CURRENT.at_mut(id).ok_or(Skip::NotOurs)?;
        // SAFETY: an element of an array map, which is never freed; user space writes it at any time, hence volatile.
        let index = unsafe { current.read_volatile() };
        let Some(service) = SERVICES.at(index) else { continue };
        let found = &service.key;
        if is_same(in_words(&found.addr), port(&found.port), addr, dialled) && found.proto == proto {
            return Ok((index, service));
        }
    }
    Err(Skip::Left(Counter::Recycled))
}

/// What to do where a service has no endpoint at all.
#[inline(always)]
pub fn no_backend(service: &Service) -> Skip {
    if service.flags & service_flag::EXCLUSIVE != 0 { Skip::Refused } else { Skip::Left(Counter::LeftAlone) }
}

/// The ranges that hold.
#[inline(always)]
pub fn active(config: &Config) -> &Ranges {
    &config.ranges[(config.active & 1) as usize]
}

/// Whether `addr` lies in one of the prefixes of its family.
#[inline(always)]
pub fn within(addr: Words, v4: &[Prefix4; MAX_PREFIXES], v6: &[Prefix6; MAX_PREFIXES]) -> bool {
    if is_mapped(addr) {
        v4[0].contains(addr[3]) || v4[1].contains(addr[3]) || v4[2].contains(addr[3]) || v4[3].contains(addr[3])
    } else {
        let addr = halves(addr);
        v6[0].contains(addr) || v6[1].contains(addr) || v6[2].contains(addr) || v6[3].contains(addr)
    }
}

/// The port that the call names, in network byte order.
#[inline(always)]
pub fn dialled_port(ctx: &SockAddrContext) -> u16 {
    // SAFETY: the kernel hands over a valid context; the verifier checks the offset. The port fills the lower half.
    (unsafe { (*ctx.sock_addr).user_port }) as u16
}

/// The socket's protocol, if it is one that is translated. Ping sockets, UDP-Lite and SCTP run these hooks too.
#[inline(always)]
pub fn protocol(ctx: &SockAddrContext) -> Option<u8> {
    // SAFETY: the kernel hands over a valid context; the verifier checks the offset.
    match unsafe { (*ctx.sock_addr).protocol } {
        6 => Some(TCP),
        17 => Some(UDP),
        _ => None,
    }
}

/// Whether the calling pod is left alone. Not inlined: rare, and reached only where some pod on this node is exempt.
#[inline(never)]
fn is_exempt(level: u32) -> bool {
    // SAFETY: returns 0 where the task's cgroup isn't that deep; no pointer is handed over.
    let pod = unsafe { bpf_get_current_ancestor_cgroup_id(level as i32) };
    // SAFETY: as above.
    let below = unsafe { bpf_get_current_ancestor_cgroup_id(level as i32 + 1) };
    // SAFETY: only whether there is an element matters, not what is in it.
    let found = unsafe { PODS.get(&pod) };
    // SAFETY: as above.
    found.is_some() || unsafe { PODS.get(&below) }.is_some()
}
