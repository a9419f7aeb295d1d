//! What programs learn about backends and clusters by themselves, and what they tell user space.
//!
//! All of it is written by programs alone, on any CPU and without locks: integers that each stand for themselves.
//! Times are nanoseconds since boot as `bpf_ktime_get_ns` counts them (`CLOCK_MONOTONIC`); pods are told by the cookie of
//! their network namespace (`SO_NETNS_COOKIE`).

/// Cgroups above one another that are told of at most.
pub const MAX_DEPTH: u32 = 32;

/// What programs learn about a backend: one cache line.
///
/// A backend is *out* until `ejected_until`: for the pod that found it failing, and for everybody once a second pod did
/// ([`ejection::SHARED`]). The time doubles with each failure that follows an ejection, from [`EJECTION_FIRST_NS`] to
/// [`EJECTION_MOST_NS`], and an established connection ends it.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct BackendState {
    /// The [`Backend::generation`](super::Backend::generation) that the rest speaks of; a program that finds another one
    /// starts afresh.
    pub generation: u32,
    /// How many ejections followed each other without a connection in between, in the bits of [`ejection::STEPS`]; the
    /// rest are flags of [`ejection`].
    pub ejection: u32,
    /// How often it was chosen: connects, and first datagrams of unconnected sockets.
    pub chosen: u64,
    /// Not for new connections until this time; 0 if it isn't ejected. Once the time has passed, one connection tries it
    /// while it stays out for the others ([`ejection::TRIAL`]).
    pub ejected_until: u64,
    /// The pod whose connection failed.
    pub ejected_by: u64,
    /// TCP connections that were established.
    pub established: u64,
    /// TCP connections that are established and not closed. Those that began before the programs were attached are not
    /// among them.
    pub open: u64,
    /// Connects that were refused, and connects that went unanswered for the first SYN timeout.
    pub failed: u64,
    /// When it last answered a SYN, be it with an RST; 0 if it never did.
    pub last_alive: u64,
}
const _: () = assert!(size_of::<BackendState>() == 64);

/// Bits of [`BackendState::ejection`].
pub mod ejection {
    /// The number of ejections that followed each other.
    pub const STEPS: u32 = 0xff;
    /// A second pod failed as well, with no connection of anybody's in between: it is out for all.
    pub const SHARED: u32 = 1 << 8;
    /// The time of the ejection has passed and one connection is trying; `ejected_until` is when the next one may.
    pub const TRIAL: u32 = 1 << 9;
    /// Some other pod has had an answer since the ejection, so a failure of a third one is a beginning and no confirmation.
    pub const CONTESTED: u32 = 1 << 10;
    /// From this bit on, with [`SHARED`]: the lower half of the other pod's cookie.
    pub const SECOND_POD: u32 = 16;
}

/// How long a backend is out after its first failure.
pub const EJECTION_FIRST_NS: u64 = 250_000_000;
/// How long a backend is out at most.
pub const EJECTION_MOST_NS: u64 = 30_000_000_000;
/// How long the others wait for the outcome of the one connection that tries a backend again.
pub const TRIAL_NS: u64 = 1_000_000_000;
/// How long SYNs that a cluster left unanswered speak against it.
pub const UNANSWERED_NS: u64 = 10_000_000_000;
/// SYNs whose timers ran out within so long of one another count once.
pub const TOGETHER_NS: u64 = 1_000_000;
/// How long a cluster stays suspect.
pub const SUSPECT_NS: u64 = 1_000_000_000;
/// How many different backends have to leave a SYN unanswered for their cluster to be suspect.
pub const SUSPECT_BACKENDS: u32 = 3;
/// How long a flow that was told to give up has to show that it lives, besides two round trips: for a SYN, in milliseconds.
pub const GRACE_SYN_MS: u32 = 10;
/// Likewise for a segment of an established flow, which may be acknowledged with delay; and for a SYN if the round trip isn't
/// known.
pub const GRACE_MS: u32 = 50;
/// How many SYNs a cluster that is suspect has to have left unanswered, one after the other and without a sign of life,
/// before connects to it are aborted. At 30 % loss, 12 in a row get lost once in two million times.
pub const ABORT_UNANSWERED: u32 = 12;

/// What programs learn about a cluster: one cache line. Same index as [`map::CLUSTERS`](super::map::CLUSTERS). The own
/// cluster, at index 0, is never suspected.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ClusterState {
    /// New connections avoid it until this time; 0 if there was a sign of life since it was suspect.
    pub suspect_until: u64,
    /// The pod whose SYNs went unanswered; others avoid the cluster only if `unanswered_shared` is set.
    pub unanswered_by: u64,
    /// SYNs left unanswered since the last sign of life, by backends that had answered this node before: those within
    /// [`TOGETHER_NS`] as one.
    pub unanswered: u32,
    /// 1 if those SYNs were of more than one pod.
    pub unanswered_shared: u32,
    /// The backends that they went to: bit `index % 64` of each.
    pub unanswered_backends: u64,
    /// When the last of them timed out. They are forgotten once that is [`UNANSWERED_NS`] ago.
    pub unanswered_last: u64,
    /// The last sign of life: a segment that answered a SYN (an RST is one too) or closed a connection.
    pub last_alive: u64,
    /// The same in jiffies.
    pub last_alive_jiffies: u64,
    /// Round-trip time of its SYNs in microseconds, smoothed over about eight connections; 0 if there was none.
    pub rtt_us: u32,
    /// Always zero.
    pub pad: u32,
}
const _: () = assert!(size_of::<ClusterState>() == 64);

/// An established flow whose retransmission timer ran out, or any that was told to give up, by its socket's cookie.
///
/// Wide fields, because programs make it on their stack, where older kernels don't take halves;
/// and no two neighbours that can both begin as 0, which would be a call of `memset`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Armed {
    /// The `TCP_USER_TIMEOUT` that ends it, in milliseconds; 0 as long as it wasn't told to give up.
    pub ends_after: u64,
    /// Its first unacknowledged sequence number when it was told: another one means that it lives.
    pub snd_una: u64,
    /// The `TCP_USER_TIMEOUT` that it had before; put back if the flow turns out alive.
    pub user_timeout: u64,
    /// When its timer ran out first: milliseconds since boot, wrapped around.
    pub since_ms: u64,
}
const _: () = assert!(size_of::<Armed>() == 32);

/// Entries of [`map::ARMED`](super::map::ARMED). The oldest go first, and are ended at once if they have to be.
pub const MAX_ARMED: u32 = 16_384;
/// Bytes of [`map::EVENTS`](super::map::EVENTS): some 4,600 events that nobody has read yet.
pub const EVENTS_BYTES: u32 = 262_144;

/// Something that programs tell user space, in [`map::EVENTS`](super::map::EVENTS).
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Event {
    /// When it happened.
    pub time: u64,
    /// The pod whose connection told it.
    pub netns: u64,
    /// By `kind`: until when a backend is ejected or a cluster is suspect; how often its SYN or segment timed out, for
    /// [`event::UNANSWERED`] and [`event::ABORTED`]; else 0.
    pub value: u64,
    /// Index in [`map::BACKENDS`](super::map::BACKENDS).
    pub backend: u32,
    /// [`Backend::generation`](super::Backend::generation) at that index.
    pub generation: u32,
    /// Index in [`map::CLUSTERS`](super::map::CLUSTERS).
    pub cluster: u32,
    /// A value of [`event`].
    pub kind: u32,
}
const _: () = assert!(size_of::<Event>() == 40);

/// Values of [`Event::kind`].
pub mod event {
    /// A backend answered a SYN with an RST.
    pub const REFUSED: u32 = 1;
    /// A connect's first SYN timed out.
    pub const UNANSWERED: u32 = 2;
    /// A backend is out for the pod that found it failing.
    pub const EJECTED: u32 = 3;
    /// A second pod confirmed it: the backend is out for all.
    pub const CONFIRMED: u32 = 4;
    /// A connection to a backend that was ejected was established: it is back.
    pub const RECOVERED: u32 = 5;
    /// A cluster is suspect. The backend is the last one that didn't answer.
    pub const SUSPECT: u32 = 6;
    /// A flow to what is known dead was ended.
    pub const ABORTED: u32 = 7;
    /// A flow that was to be ended turned out alive; it has its old `TCP_USER_TIMEOUT` again.
    pub const SPARED: u32 = 8;

    /// The name in logs and JSON of a value above.
    pub const fn name(kind: u32) -> &'static str {
        match kind {
            REFUSED => "refused",
            UNANSWERED => "unanswered",
            EJECTED => "ejected",
            CONFIRMED => "confirmed",
            RECOVERED => "recovered",
            SUSPECT => "suspect",
            ABORTED => "aborted",
            SPARED => "spared",
            _ => "unknown",
        }
    }
}
