//! The map statics. Sizes of those that grow with the tables are set by the agent when it loads the object.
//!
//! What user space writes is read-only for programs, so a fault in a program can't alter the tables.

use aya_ebpf::{
    bindings::{BPF_F_MMAPABLE, BPF_F_NO_PREALLOC, BPF_F_RDONLY_PROG},
    btf_maps::SkStorage,
    helpers::generated::bpf_map_lookup_elem,
    macros::{btf_map, map},
    maps::{Array, HashMap, LruHashMap, PerCpuArray, RingBuf},
};
use core::{
    ffi::c_void,
    intrinsics::{AtomicOrdering, atomic_xadd},
};
use tombolo_ebpf::abi::{
    AffinityKey, AffinityValue, Armed, Backend, BackendKey, BackendState, Cluster, ClusterState, Config, Counter,
    EVENTS_BYTES, FrontendKey, MAX_ARMED, MAX_CLUSTERS, MAX_DEPTH, MAX_ORIGINS, MemberKey, Origin, Service,
    ServiceName, Slot, UdpOrigin,
};

/// A hash that user space alone writes and that takes memory only for what is in it.
const TABLE: u32 = BPF_F_RDONLY_PROG | BPF_F_NO_PREALLOC;

/// An array that programs write. Arrays that can be mapped into memory begin on a page, so that an element of 64 bytes is one
/// cache line; others begin anywhere.
const LINES: u32 = BPF_F_MMAPABLE;

#[map]
pub static FRONTENDS: HashMap<FrontendKey, u32> = HashMap::with_max_entries(1, TABLE);
#[map]
pub static CURRENT: Array<u32> = Array::with_max_entries(1, BPF_F_RDONLY_PROG);
#[map]
pub static SERVICES: Array<Service> = Array::with_max_entries(1, BPF_F_RDONLY_PROG);
#[map]
pub static SLOTS: Array<Slot> = Array::with_max_entries(1, BPF_F_RDONLY_PROG);
#[map]
pub static BACKENDS: Array<Backend> = Array::with_max_entries(1, BPF_F_RDONLY_PROG);
#[map]
pub static BACKEND_OF: HashMap<BackendKey, u32> = HashMap::with_max_entries(1, TABLE);
#[map]
pub static MEMBERS: HashMap<MemberKey, u32> = HashMap::with_max_entries(1, TABLE);
#[map]
pub static CLUSTERS: Array<Cluster> = Array::with_max_entries(MAX_CLUSTERS, BPF_F_RDONLY_PROG);
#[map]
pub static PODS: HashMap<u64, u32> = HashMap::with_max_entries(1, TABLE);
#[map]
pub static NAMES: HashMap<u32, ServiceName> = HashMap::with_max_entries(1, TABLE);
#[map]
pub static CONFIG: Array<Config> = Array::with_max_entries(1, BPF_F_RDONLY_PROG);

#[map]
pub static BACKEND_STATE: Array<BackendState> = Array::with_max_entries(1, LINES);
#[map]
pub static CLUSTER_STATE: Array<ClusterState> = Array::with_max_entries(MAX_CLUSTERS, LINES);
#[map]
pub static ARMED: LruHashMap<u64, Armed> = LruHashMap::with_max_entries(MAX_ARMED, 0);
#[map]
pub static EVENTS: RingBuf = RingBuf::with_byte_size(EVENTS_BYTES, 0);
#[map]
pub static ORIGINS: Array<Origin> = Array::with_max_entries(MAX_ORIGINS, 0);
#[btf_map]
pub static UDP_ORIGIN: SkStorage<UdpOrigin> = SkStorage::new();
#[map]
pub static AFFINITY: LruHashMap<AffinityKey, AffinityValue> = LruHashMap::with_max_entries(1, 0);
#[map]
pub static COUNTERS: PerCpuArray<u64> = PerCpuArray::with_max_entries(Counter::ALL.len() as u32, 0);

#[map]
pub static ANCESTORS: Array<u64> = Array::with_max_entries(MAX_DEPTH, 0);

/// A map whose elements are found by their number.
pub trait Numbered<T> {
    /// Element `index`, if there is one. Elements of an array are never freed; user space or other CPUs may write them at
    /// any time.
    ///
    /// The maps' own look-ups put a key of four bytes on the stack. Linux 6.1 refuses a store of less than eight bytes where a
    /// number that it knew lay before, for without CAP_PERFMON it takes that for damage to a pointer. So the key fills
    /// eight bytes, of which the kernel reads the first four.
    #[inline(always)]
    fn at_mut(&'static self, index: u32) -> Option<*mut T> {
        let key = u64::from(index).to_le();
        let map = core::ptr::from_ref(self).cast::<c_void>().cast_mut();
        // SAFETY: a map with keys of four bytes and values of `T`, as whoever implements this vouches for.
        let found = unsafe { bpf_map_lookup_elem(map, (&raw const key).cast()) };
        if found.is_null() { None } else { Some(found.cast()) }
    }

    /// Likewise, to read.
    #[inline(always)]
    fn at(&'static self, index: u32) -> Option<&'static T> {
        // SAFETY: not null, and aligned as the kernel aligns values. That others write it is what `abi` argues about.
        self.at_mut(index).map(|element| unsafe { &*element })
    }
}

impl<T> Numbered<T> for Array<T> {}
impl<T> Numbered<T> for PerCpuArray<T> {}

/// Counts one `counter`.
#[inline(always)]
pub fn count(counter: Counter) {
    if let Some(n) = COUNTERS.at_mut(counter as u32) {
        // SAFETY: an aligned u64. The entry is this CPU's own, but the kernel may run another program on it in between.
        unsafe { atomic_xadd::<u64, u64, { AtomicOrdering::Relaxed }>(n, 1) };
    }
}
