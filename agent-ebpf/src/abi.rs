//! The contract between the agent and the kernel programs: every key and value that lies in a map.
//!
//! Bytes lie as the kernel hands them over: addresses and ports in network byte order, everything else in the
//! machine's own. IPv4 addresses are IPv4-mapped IPv6 addresses (`::ffff:a.b.c.d`), so one set of maps serves both
//! families. Padding is explicit and always zero, because hash keys are compared byte by byte.
//!
//! # What a program sees while the agent writes
//!
//! One writer per map: the maps listed in [`map`] under "written by user space" are read-only for programs.
//!
//! * A change of a service writes *new* entries in [`map::SLOTS`] and [`map::SERVICES`] and then one `u32` in
//!   [`map::CURRENT`]. Nothing that a program can still reach is rewritten, so a program sees the old service or
//!   the new one, never half of each.
//! * That `u32` lies in an array, not in [`map::FRONTENDS`], because the kernel replaces a hash element by putting
//!   a new one at the head of the bucket and then taking the old one out: a look-up that is past the head but has not come to
//!   the old one finds neither.
//! * Indexes are reused only after an RCU grace period, which no run of a program outlives. So an index that a program
//!   holds stays what it was until the program ends.
//! * The kernel recycles hash elements at once: a program that looked up a frontend may read the id of another one. And
//!   an index in `CURRENT` may be seen half written. That is why [`Service`] repeats its key, and the program compares it
//!   and looks again.
//! * Verdicts ([`Backend::verdict`], [`Cluster::verdict`]) and [`Config::active`] change in place. Such a write changes
//!   one byte and rewrites the rest with what was there, so it can't be seen half done. [`Cluster::syn_timeout`] changes
//!   in place too; if a program ever read half of it, one connect would have an odd SYN timeout.
//! * [`map::BACKEND_OF`] names a backend until its open connections are gone ([`BackendState::open`]), whether or not a
//!   service still does. A program that meets a recycled element reads another backend's index, so it compares address and
//!   port with the entry in [`map::BACKENDS`].
//! * What programs remember across connects ([`UdpOrigin`], [`AffinityValue`]) can outlive the backend it names. It is
//!   used only if the service's [`version`](Service::version) is unchanged or the backend is still in [`map::MEMBERS`],
//!   and if the backend's generation is the one remembered.

mod learned;

pub use learned::*;

/// Version of all layouts below. Part of the folder that maps and links are pinned in: another number, another folder.
///
/// A build with `TOMBOLO_LAYOUT` has that number instead, and so takes itself for an agent of another version: upgrades are
/// tried out with it.
pub const LAYOUT: u32 = match option_env!("TOMBOLO_LAYOUT") {
    None => 2,
    Some(number) => match u32::from_str_radix(number, 10) {
        Ok(number) => number,
        Err(_) => panic!("TOMBOLO_LAYOUT is no number"),
    },
};

/// Most tiers a service can have.
pub const MAX_TIERS: usize = 8;
/// Most groups in one tier; further clusters share the last one.
pub const MAX_TIER_GROUPS: usize = 16;
/// Most groups of a service, all tiers together.
pub const MAX_GROUPS: usize = 32;
/// Prefixes that cover all frontends (or all backends) of one family.
pub const MAX_PREFIXES: usize = 4;
/// Clusters that the kernel tables can name: index 0 is the agent's own.
pub const MAX_CLUSTERS: u32 = 512;
/// Entries of [`map::ORIGINS`]; a power of two, because the slot is the socket cookie's low bits.
pub const MAX_ORIGINS: u32 = 262_144;
/// Recent (frontend, backend) pairs that one UDP socket remembers.
pub const UDP_PAIRS: usize = 4;

/// IANA protocol number of TCP.
pub const TCP: u8 = 6;
/// IANA protocol number of UDP.
pub const UDP: u8 = 17;

/// Names of the maps, as the object and the pin folder spell them.
pub mod map {
    /// Written by user space: [`FrontendKey`](super::FrontendKey) → [`Service::id`](super::Service::id). An element stays
    /// as it is while its frontend exists.
    pub const FRONTENDS: &str = "FRONTENDS";
    /// Written by user space: array by service id, index in `SERVICES` of the service's current version.
    pub const CURRENT: &str = "CURRENT";
    /// Written by user space: array of [`Service`](super::Service).
    pub const SERVICES: &str = "SERVICES";
    /// Written by user space: array of [`Slot`](super::Slot).
    pub const SLOTS: &str = "SLOTS";
    /// Written by user space: array of [`Backend`](super::Backend).
    pub const BACKENDS: &str = "BACKENDS";
    /// Written by user space: hash, [`BackendKey`](super::BackendKey) → index in `BACKENDS` (`u32`). Where entries of
    /// several clusters or paths have the same address, port and protocol, one of them.
    pub const BACKEND_OF: &str = "BACKEND_OF";
    /// Written by user space: set of [`MemberKey`](super::MemberKey), for services whose choices are remembered.
    pub const MEMBERS: &str = "MEMBERS";
    /// Written by user space: array of [`Cluster`](super::Cluster).
    pub const CLUSTERS: &str = "CLUSTERS";
    /// Written by user space: pod cgroup id (`u64`) → [`exempt`](super::exempt) reason (`u32`).
    pub const PODS: &str = "PODS";
    /// Written by user space, read by people: service id (`u32`) → [`ServiceName`](super::ServiceName).
    pub const NAMES: &str = "NAMES";
    /// Written by user space: one [`Config`](super::Config).
    pub const CONFIG: &str = "CONFIG";
    /// Written by programs: array of [`BackendState`](super::BackendState), same index as `BACKENDS`.
    pub const BACKEND_STATE: &str = "BACKEND_STATE";
    /// Written by programs: array of [`ClusterState`](super::ClusterState), same index as `CLUSTERS`.
    pub const CLUSTER_STATE: &str = "CLUSTER_STATE";
    /// Written by programs: LRU hash, socket cookie (`u64`) → [`Armed`](super::Armed).
    pub const ARMED: &str = "ARMED";
    /// Written by programs: ring buffer of [`Event`](super::Event).
    pub const EVENTS: &str = "EVENTS";
    /// Written by programs: array of [`Origin`](super::Origin), by socket cookie.
    pub const ORIGINS: &str = "ORIGINS";
    /// Written by programs: socket storage of [`UdpOrigin`](super::UdpOrigin).
    pub const UDP_ORIGIN: &str = "UDP_ORIGIN";
    /// Written by programs: LRU hash, [`AffinityKey`](super::AffinityKey) → [`AffinityValue`](super::AffinityValue).
    pub const AFFINITY: &str = "AFFINITY";
    /// Written by programs: per-CPU array of `u64`, by [`Counter`](super::Counter).
    pub const COUNTERS: &str = "COUNTERS";
    /// Written by a program, not pinned: array of cgroup ids (`u64`), [`MAX_DEPTH`](super::MAX_DEPTH) of them.
    pub const ANCESTORS: &str = "ANCESTORS";
}

/// A virtual address as a client dials it, in network byte order; IPv4 as an IPv4-mapped IPv6 address.
///
/// Aligned so that programs read every address in these layouts as four words.
#[repr(C, align(4))]
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FrontendKey {
    /// The ClusterIP.
    pub addr: [u8; 16],
    /// The service's port.
    pub port: [u8; 2],
    /// IANA protocol number: 6 TCP, 17 UDP.
    pub proto: u8,
    /// Always zero: the kernel hashes it too.
    pub pad: u8,
}
const _: () = assert!(size_of::<FrontendKey>() == 20);

/// One version of one service: what the index in [`map::CURRENT`] names.
///
/// Never changed while reachable. Its head and first group fill one cache line.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Service {
    /// The frontend that leads here; a program that finds another one looks again.
    pub key: FrontendKey,
    /// Stays the same while the frontend exists: keys of affinity, membership and names.
    pub id: u32,
    /// Another number for each entry written, so that what was remembered under it is known to be still right.
    pub version: u32,
    /// Bits of [`service_flag`].
    pub flags: u32,
    /// Session affinity's timeout since the last connect, in seconds; read only with [`service_flag::AFFINITY`].
    pub affinity_seconds: u32,
    /// Tier `t` is `groups[tier_end[t - 1]..tier_end[t]]`, the first from 0. Unused tiers repeat the last end.
    /// All zero: no endpoint at all.
    pub tier_end: [u8; MAX_TIERS],
    /// Always zero.
    pub pad: u32,
    /// The groups of all tiers, one after the other; unused ones are zero.
    pub groups: [Group; MAX_GROUPS],
}
const _: () = assert!(size_of::<Service>() == 48 + 16 * MAX_GROUPS);

/// Bits of [`Service::flags`].
pub mod service_flag {
    /// ClientIP session affinity.
    pub const AFFINITY: u32 = 1;
    /// Nobody else serves this frontend: without any endpoint a connect is refused at once (ECONNREFUSED); else it
    /// is left to kube-proxy.
    pub const EXCLUSIVE: u32 = 2;
    /// Its connections are never aborted.
    pub const NO_ABORT: u32 = 4;
}

/// The backends of one cluster within one tier, as a range of [`map::SLOTS`].
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Group {
    /// Sum of the weights of this tier's groups up to and including this one. The group's own weight is the difference
    /// to its predecessor in the tier; the tier's last group holds the tier's total. Never zero in a group in use.
    pub upto: u32,
    /// Index in [`map::CLUSTERS`].
    pub cluster: u32,
    /// First entry in [`map::SLOTS`].
    pub first_slot: u32,
    /// Number of slots, at least 1.
    pub slots: u32,
}
const _: () = assert!(size_of::<Group>() == 16);

/// One entry of an alias table (Vose): with a uniform fraction below `threshold` it stands for `backend`, else for `alias`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Slot {
    /// In units of 2⁻³² of one slot. A slot that is all `backend` has `alias == backend`.
    pub threshold: u32,
    /// Index in [`map::BACKENDS`].
    pub backend: u32,
    /// Index in [`map::BACKENDS`].
    pub alias: u32,
    /// Always zero.
    pub pad: u32,
}
const _: () = assert!(size_of::<Slot>() == 16);

/// An endpoint that connections can be sent to.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Backend {
    /// Where the packets go, in network byte order; IPv4 as an IPv4-mapped IPv6 address.
    pub addr: [u8; 16],
    /// In network byte order.
    pub port: [u8; 2],
    /// IANA protocol number: 6 TCP, 17 UDP.
    pub proto: u8,
    /// A value of [`path`].
    pub path: u8,
    /// Index in [`map::CLUSTERS`].
    pub cluster: u32,
    /// Another number whenever the index is given to another backend; 0 in a free entry.
    pub generation: u32,
    /// A value of [`verdict`]. Changes in place.
    pub verdict: u8,
    /// Always zero.
    pub pad: [u8; 3],
}
const _: () = assert!(size_of::<Backend>() == 32);

/// What a TCP connection's peer is compared with, to find its backend.
#[repr(C, align(4))]
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BackendKey {
    /// [`Backend::addr`].
    pub addr: [u8; 16],
    /// [`Backend::port`].
    pub port: [u8; 2],
    /// [`Backend::proto`].
    pub proto: u8,
    /// Always zero: the kernel hashes it too.
    pub pad: u8,
}
const _: () = assert!(size_of::<BackendKey>() == 20);

/// Values of [`Backend::path`].
pub mod path {
    /// The pod's own address.
    pub const POD: u8 = 0;
    /// The address of the cluster's gateway, which forwards to a pod.
    pub const GATEWAY: u8 = 1;
}

/// Values of [`Backend::verdict`] and [`Cluster::verdict`]; all but `OK` mean: not for new connections.
pub mod verdict {
    /// Takes connections.
    pub const OK: u8 = 0;
    /// Keeps what it has, takes nothing new.
    pub const DRAINING: u8 = 1;
    /// Doesn't answer (a cluster: down).
    pub const DEAD: u8 = 2;
}

/// A cluster of the ClusterSet, as this node sees it.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cluster {
    /// A value of [`verdict`]. Changes in place: this one byte takes the cluster out of every service.
    pub verdict: u8,
    /// Keepalive of its connections that have none of their own: how long one is idle before the first probe, in seconds.
    /// 0: none is set, as for the own cluster.
    pub keepalive_idle: u8,
    /// The time between two probes, in seconds, at least 1.
    pub keepalive_interval: u8,
    /// How many probes go unanswered before the connection is given up, at least 1.
    pub keepalive_count: u8,
    /// The first SYN timeout of its connections in jiffies; 0 leaves it to the kernel. Changes in place.
    pub syn_timeout: u32,
    /// Its id in the ClusterSet, zero-filled; all zero in a free entry.
    pub name: [u8; 64],
}
const _: () = assert!(size_of::<Cluster>() == 72);

/// The name of a service, `namespace/name` in UTF-8, zero-filled, for people who read the maps.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ServiceName {
    /// At most 127 bytes in use: two DNS labels and a slash.
    pub bytes: [u8; 128],
}
const _: () = assert!(size_of::<ServiceName>() == 128);

/// Says that a backend belongs to a service. Only for services with affinity, and for UDP.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct MemberKey {
    /// [`Service::id`].
    pub service: u32,
    /// Index in [`map::BACKENDS`].
    pub backend: u32,
}
const _: () = assert!(size_of::<MemberKey>() == 8);

/// Why a pod's connections are left alone: values of [`map::PODS`].
pub mod exempt {
    /// It has a mesh proxy, which must see the ClusterIP.
    pub const MESHED: u32 = 1;
    /// It asked for it.
    pub const OPTED_OUT: u32 = 2;
    /// Nothing is known of it yet.
    pub const UNKNOWN: u32 = 3;
}

/// What programs are told besides the tables.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Config {
    /// Which of `ranges` holds: 0 or 1. The other one is written first, then this byte is flipped.
    pub active: u32,
    /// How many cgroups lie above a pod's own one at the least, or 0: [`map::PODS`] is empty, nothing is to be looked
    /// up. The pod is looked for there and one level further down (`kubepods/burstable/pod…`).
    pub pod_level: u32,
    /// Prefixes, the active ones and those being prepared.
    pub ranges: [Ranges; 2],
}
const _: () = assert!(size_of::<Config>() == 8 + 2 * size_of::<Ranges>());

/// The least prefixes that cover all frontends, and all backends.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ranges {
    /// Cover the IPv4 frontends.
    pub frontends4: [Prefix4; MAX_PREFIXES],
    /// Cover the IPv4 backends, of TCP and of UDP.
    pub backends4: [Prefix4; MAX_PREFIXES],
    /// Cover the IPv6 frontends.
    pub frontends6: [Prefix6; MAX_PREFIXES],
    /// Cover the IPv6 backends, of TCP and of UDP.
    pub backends6: [Prefix6; MAX_PREFIXES],
}
const _: () = assert!(size_of::<Ranges>() == 2 * MAX_PREFIXES * (8 + 32));

/// Matches `addr` if `addr & mask == net`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Prefix4 {
    /// In network byte order, as the kernel hands it over.
    pub net: u32,
    /// Likewise.
    pub mask: u32,
}
const _: () = assert!(size_of::<Prefix4>() == 8);

impl Prefix4 {
    /// Matches no address.
    pub const NONE: Self = Self { net: u32::MAX, mask: 0 };

    /// Whether `addr`, in network byte order, lies within.
    #[inline(always)]
    pub const fn contains(&self, addr: u32) -> bool {
        addr & self.mask == self.net
    }
}

/// Matches `addr` if `addr & mask == net`, in both halves.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Prefix6 {
    /// The two halves, each in network byte order.
    pub net: [u64; 2],
    /// Likewise.
    pub mask: [u64; 2],
}
const _: () = assert!(size_of::<Prefix6>() == 32);

impl Prefix6 {
    /// Matches no address.
    pub const NONE: Self = Self { net: [u64::MAX; 2], mask: [0; 2] };

    /// Whether `addr`, its two halves in network byte order, lies within.
    #[inline(always)]
    pub const fn contains(&self, addr: [u64; 2]) -> bool {
        addr[0] & self.mask[0] == self.net[0] && addr[1] & self.mask[1] == self.net[1]
    }
}

impl Ranges {
    /// Covers nothing.
    pub const NONE: Self = Self {
        frontends4: [Prefix4::NONE; MAX_PREFIXES],
        backends4: [Prefix4::NONE; MAX_PREFIXES],
        frontends6: [Prefix6::NONE; MAX_PREFIXES],
        backends6: [Prefix6::NONE; MAX_PREFIXES],
    };
}

/// Where a TCP socket was sent, at its cookie's low bits. Serves getpeername and the moment at which a flow begins: after
/// [`MAX_ORIGINS`] younger sockets another one may have taken the entry.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Origin {
    /// The socket's cookie, which makes the entry its own; 0 while it is being written.
    pub cookie: u64,
    /// What the client dialled.
    pub frontend: [u8; 16],
    /// Where it was sent; an origin counts only while this is the socket's peer, since sockets reconnect.
    pub peer: [u8; 16],
    /// The frontend's port, in network byte order.
    pub frontend_port: [u8; 2],
    /// The peer's port, in network byte order.
    pub peer_port: [u8; 2],
    /// Index in [`map::BACKENDS`] when it was chosen.
    pub backend: u32,
    /// When its SYN was sent first: milliseconds since boot, wrapped around.
    pub since_ms: u32,
    /// Bits of [`origin_flag`].
    pub flags: u32,
}
const _: () = assert!(size_of::<Origin>() == 56);

/// Bits of [`Origin::flags`].
pub mod origin_flag {
    /// The connect that it was written for hasn't sent its SYN yet. So a socket that is disconnected, and then connected
    /// to the same pod by the pod's own address, isn't taken for one that was sent there.
    pub const NEW: u32 = 1;
    /// [`service_flag::NO_ABORT`](super::service_flag::NO_ABORT) of the service it was sent for.
    pub const NO_ABORT: u32 = 2;
}

/// One frontend that a UDP socket used, and the backend it stands for.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct UdpPair {
    /// What the client dialled; all zero in an unused pair.
    pub frontend: [u8; 16],
    /// Where it was sent.
    pub peer: [u8; 16],
    /// The frontend's port, in network byte order.
    pub frontend_port: [u8; 2],
    /// The peer's port, in network byte order.
    pub peer_port: [u8; 2],
    /// Index in [`map::BACKENDS`] when it was chosen, and [`LAST_RESORT`](Self::LAST_RESORT).
    pub backend: u32,
    /// [`Service::version`] under which the choice is known to be right.
    pub version: u32,
    /// [`Backend::generation`] when it was chosen.
    pub generation: u32,
    /// [`UdpOrigin::clock`] when it was used last.
    pub used: u32,
}
const _: () = assert!(size_of::<UdpPair>() == 52);

impl UdpPair {
    /// Bit of [`backend`](Self::backend): it was known to be dead when it was chosen, for want of a better one.
    pub const LAST_RESORT: u32 = 1 << 31;
}

/// What a UDP socket remembers, in its socket storage: the pairs it used last.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct UdpOrigin {
    /// Counts changes of which pair was used last; wraps around.
    pub clock: u32,
    /// The pairs, in no order.
    pub pairs: [UdpPair; UDP_PAIRS],
}
const _: () = assert!(size_of::<UdpOrigin>() == 4 + 52 * UDP_PAIRS);

/// Whose session it is: a client is a pod, which its network namespace tells.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct AffinityKey {
    /// Cookie of the client's network namespace.
    pub netns: u64,
    /// [`Service::id`].
    pub service: u32,
    /// Always zero.
    pub pad: u32,
}
const _: () = assert!(size_of::<AffinityKey>() == 16);

/// The backend of a session.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct AffinityValue {
    /// Time of the last connect: nanoseconds since boot, as `bpf_ktime_get_ns` counts them.
    pub last_used: u64,
    /// Index in [`map::BACKENDS`].
    pub backend: u32,
    /// [`Service::version`] under which the choice is known to be right.
    pub version: u32,
    /// [`Backend::generation`] when it was chosen.
    pub generation: u32,
    /// Always zero.
    pub pad: u32,
}
const _: () = assert!(size_of::<AffinityValue>() == 24);

/// What happened to calls that met a frontend, other than being sent to their first choice, and to their connections.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Counter {
    /// No endpoint at all, refused with ECONNREFUSED.
    Refused = 0,
    /// No endpoint at all, left to kube-proxy.
    LeftAlone = 1,
    /// The pod is in [`map::PODS`].
    Exempt = 2,
    /// The look-up led to other services again and again; the call was left alone.
    Recycled = 3,
    /// The first draw was out (backend or cluster), another one was taken.
    Redrawn = 4,
    /// All backends were out; one was taken all the same.
    LastResort = 5,
    /// The socket's storage could not be made; a UDP call was left alone.
    NoStorage = 6,
    /// A flow to what is known dead was ended.
    Aborted = 7,
    /// A flow that was to be ended turned out alive.
    Spared = 8,
    /// An event found no room in [`map::EVENTS`].
    EventLost = 9,
    /// A datagram of a connected UDP socket to a backend that is gone or dead was refused with EPERM.
    UdpRefused = 10,
}

impl Counter {
    /// All of them, in the order of their indexes.
    pub const ALL: [Self; 11] = [
        Self::Refused,
        Self::LeftAlone,
        Self::Exempt,
        Self::Recycled,
        Self::Redrawn,
        Self::LastResort,
        Self::NoStorage,
        Self::Aborted,
        Self::Spared,
        Self::EventLost,
        Self::UdpRefused,
    ];

    /// The name in metrics, logs and JSON.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Refused => "refused",
            Self::LeftAlone => "left_alone",
            Self::Exempt => "exempt",
            Self::Recycled => "recycled",
            Self::Redrawn => "redrawn",
            Self::LastResort => "last_resort",
            Self::NoStorage => "no_storage",
            Self::Aborted => "aborted",
            Self::Spared => "spared",
            Self::EventLost => "event_lost",
            Self::UdpRefused => "udp_refused",
        }
    }
}

#[cfg(feature = "user")]
mod user {
    //! aya's `Pod`: may be copied to and from the kernel byte by byte. Holds for each type here, because each is
    //! `repr(C)`, has only integers and arrays of them, and has no implicit padding (its size is asserted above).
    #![expect(unsafe_code, reason = "`Pod` is an unsafe trait")]

    use super::{
        AffinityKey, AffinityValue, Armed, Backend, BackendKey, BackendState, Cluster, ClusterState, Config, Event,
        FrontendKey, MemberKey, Origin, Service, ServiceName, Slot,
    };

    // SAFETY: see above; 20 bytes.
    unsafe impl aya::Pod for FrontendKey {}
    // SAFETY: see above; 560 bytes.
    unsafe impl aya::Pod for Service {}
    // SAFETY: see above; 16 bytes.
    unsafe impl aya::Pod for Slot {}
    // SAFETY: see above; 32 bytes.
    unsafe impl aya::Pod for Backend {}
    // SAFETY: see above; 8 bytes.
    unsafe impl aya::Pod for MemberKey {}
    // SAFETY: see above; 72 bytes.
    unsafe impl aya::Pod for Cluster {}
    // SAFETY: see above; 128 bytes.
    unsafe impl aya::Pod for ServiceName {}
    // SAFETY: see above; 648 bytes.
    unsafe impl aya::Pod for Config {}
    // SAFETY: see above; 20 bytes.
    unsafe impl aya::Pod for BackendKey {}
    // SAFETY: see above; 64 bytes.
    unsafe impl aya::Pod for BackendState {}
    // SAFETY: see above; 64 bytes.
    unsafe impl aya::Pod for ClusterState {}
    // SAFETY: see above; 32 bytes.
    unsafe impl aya::Pod for Armed {}
    // SAFETY: see above; 40 bytes.
    unsafe impl aya::Pod for Event {}
    // SAFETY: see above; 56 bytes.
    unsafe impl aya::Pod for Origin {}
    // SAFETY: see above; 16 bytes.
    unsafe impl aya::Pod for AffinityKey {}
    // SAFETY: see above; 24 bytes.
    unsafe impl aya::Pod for AffinityValue {}
}
