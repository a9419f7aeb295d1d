//! The few system calls that aya doesn't make for us.
#![expect(unsafe_code, reason = "raw system calls")]

use anyhow::Context;
use aya::maps::{MapData, RingBuf};
use std::{
    ffi::CString,
    fs, io,
    mem::MaybeUninit,
    os::{
        fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd},
        unix::ffi::OsStrExt,
    },
    path::Path,
};
use tokio::io::{Interest, unix::AsyncFd};

/// `BPF_FS_MAGIC`, linux/magic.h.
pub(super) const BPF_FS_MAGIC: i64 = 0xcafe_4a11;
/// `CGROUP2_SUPER_MAGIC`, linux/magic.h.
pub(super) const CGROUP2_MAGIC: i64 = 0x6367_7270;

/// `BPF_F_ALLOW_OVERRIDE`, linux/bpf.h: a program on a cgroup below takes this one's place there.
pub(super) const ALLOW_OVERRIDE: u32 = 1;
/// `BPF_F_ALLOW_MULTI`, linux/bpf.h: others may run besides.
pub(super) const ALLOW_MULTI: u32 = 2;

/// Commands of `bpf(2)`, linux/bpf.h.
#[derive(Clone, Copy)]
#[repr(i64)]
enum Command {
    MapCreate = 0,
    ObjPin = 6,
    ObjGet = 7,
    ProgQuery = 16,
    MapLookupBatch = 24,
    MapUpdateBatch = 26,
    LinkCreate = 28,
    LinkUpdate = 29,
    LinkDetach = 34,
}

/// `bpf(2)` on `attributes`, which are laid out as the part of `union bpf_attr` that `command` reads.
///
/// # Safety
///
/// Addresses in `attributes` are of memory that the kernel may read, or write where the command answers there, as much
/// of it as `attributes` say, until the call returns.
unsafe fn bpf<T>(command: Command, attributes: &mut T) -> io::Result<i64> {
    // SAFETY: the kernel reads and writes as many bytes as it is told; for what they point at, see above.
    let result = unsafe { libc::syscall(libc::SYS_bpf, command as i64, &raw mut *attributes, size_of::<T>()) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

/// A descriptor that the kernel has just made.
fn owned(fd: i64) -> io::Result<OwnedFd> {
    let fd = i32::try_from(fd).map_err(io::Error::other)?;
    // SAFETY: just made for us, so nobody else closes it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

fn c_path(path: &Path) -> io::Result<CString> {
    Ok(CString::new(path.as_os_str().as_bytes())?)
}

/// Attributes of `BPF_OBJ_PIN` and `BPF_OBJ_GET`.
#[repr(C)]
struct Object {
    pathname: u64,
    bpf_fd: u32,
    file_flags: u32,
}

/// Opens what is pinned at `path`.
pub(super) fn open_pin(path: &Path) -> io::Result<OwnedFd> {
    let path = c_path(path)?;
    let mut attributes = Object { pathname: path.as_ptr() as u64, bpf_fd: 0, file_flags: 0 };
    // SAFETY: the path ends with NUL and lives until the call returns.
    owned(unsafe { bpf(Command::ObjGet, &mut attributes) }?)
}

/// Pins a map or a link at `path`.
pub(super) fn pin(object: BorrowedFd<'_>, path: &Path) -> io::Result<()> {
    let path = c_path(path)?;
    let bpf_fd = object.as_raw_fd().cast_unsigned();
    let mut attributes = Object { pathname: path.as_ptr() as u64, bpf_fd, file_flags: 0 };
    // SAFETY: the path ends with NUL and lives until the call returns.
    unsafe { bpf(Command::ObjPin, &mut attributes) }.map(drop)
}

/// Attaches a program to a cgroup by a new link, beside others. It goes with its last descriptor or pin.
///
/// # Errors
///
/// EPERM: a program above holds the hook for itself.
pub(super) fn create_link(program: BorrowedFd<'_>, cgroup: BorrowedFd<'_>, attach_type: u32) -> io::Result<OwnedFd> {
    #[repr(C)]
    struct Create {
        prog_fd: u32,
        target_fd: u32,
        attach_type: u32,
        /// A link is always one of several: `BPF_F_ALLOW_MULTI` gets EINVAL.
        flags: u32,
    }
    let prog_fd = program.as_raw_fd().cast_unsigned();
    let target_fd = cgroup.as_raw_fd().cast_unsigned();
    // SAFETY: no addresses in it.
    owned(unsafe { bpf(Command::LinkCreate, &mut Create { prog_fd, target_fd, attach_type, flags: 0 }) }?)
}

/// Exchanges the program behind a link for one of the same kind: whatever runs the hook finds the one or the other.
///
/// # Errors
///
/// ENOLINK: the link's cgroup is gone.
pub(super) fn update_link(link: BorrowedFd<'_>, program: BorrowedFd<'_>) -> io::Result<()> {
    #[repr(C)]
    struct Update {
        link_fd: u32,
        new_prog_fd: u32,
        flags: u32,
        old_prog_fd: u32,
    }
    let link_fd = link.as_raw_fd().cast_unsigned();
    let new_prog_fd = program.as_raw_fd().cast_unsigned();
    // SAFETY: no addresses in it.
    unsafe { bpf(Command::LinkUpdate, &mut Update { link_fd, new_prog_fd, flags: 0, old_prog_fd: 0 }) }.map(drop)
}

/// What the kernel says of a link: `link_id`, or of one to a cgroup its `cgroup_id`.
pub(super) fn link_field(link: BorrowedFd<'_>, field: &str) -> anyhow::Result<u64> {
    let info = fs::read_to_string(format!("/proc/self/fdinfo/{}", link.as_raw_fd()));
    let info = info.context("read what is known of a link")?;
    let value = info.lines().find_map(|line| line.strip_prefix(field)?.strip_prefix(':'));
    let value = value.with_context(|| format!("find {field} in what is known of a link"))?.trim();
    value.parse().with_context(|| format!("understand {field} {value:?}"))
}

/// Takes the program behind a link off its hook, at once: a link that is just let go of is detached a moment later.
pub(super) fn detach(link: BorrowedFd<'_>) -> io::Result<()> {
    #[repr(C)]
    struct Detach {
        link_fd: u32,
    }
    // SAFETY: no addresses in it.
    unsafe { bpf(Command::LinkDetach, &mut Detach { link_fd: link.as_raw_fd().cast_unsigned() }) }.map(drop)
}

/// The programs on one hook of one cgroup.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Occupants {
    /// [`ALLOW_OVERRIDE`], [`ALLOW_MULTI`], or 0: alone, here and below.
    pub(super) flags: u32,
    /// Their ids. At most 64, the most that the kernel takes.
    pub(super) programs: Vec<u32>,
}

/// Asks which programs are attached to this very cgroup. Takes CAP_NET_ADMIN.
pub(super) fn occupants(cgroup: BorrowedFd<'_>, attach_type: u32) -> io::Result<Occupants> {
    #[repr(C)]
    struct Query {
        target_fd: u32,
        attach_type: u32,
        query_flags: u32,
        attach_flags: u32,
        prog_ids: u64,
        prog_cnt: u32,
        pad: u32,
    }
    let mut programs = vec![0u32; 64];
    let mut query = Query {
        target_fd: cgroup.as_raw_fd().cast_unsigned(),
        attach_type,
        query_flags: 0,
        attach_flags: 0,
        prog_ids: programs.as_mut_ptr() as u64,
        prog_cnt: 64,
        pad: 0,
    };
    // SAFETY: there is room for as many ids as the query says.
    unsafe { bpf(Command::ProgQuery, &mut query) }?;
    programs.truncate(query.prog_cnt as usize);
    Ok(Occupants { flags: query.attach_flags, programs })
}

/// Makes an array with one element of 4 bytes; if `inner` is given, the element holds maps like that one.
pub(super) fn create_array(inner: Option<BorrowedFd<'_>>) -> io::Result<OwnedFd> {
    /// `BPF_MAP_TYPE_ARRAY`, linux/bpf.h.
    const ARRAY: u32 = 2;
    /// `BPF_MAP_TYPE_ARRAY_OF_MAPS`, linux/bpf.h.
    const ARRAY_OF_MAPS: u32 = 12;
    #[repr(C)]
    struct Create {
        map_type: u32,
        key_size: u32,
        value_size: u32,
        max_entries: u32,
        map_flags: u32,
        inner_map_fd: u32,
    }
    let map_type = if inner.is_some() { ARRAY_OF_MAPS } else { ARRAY };
    let inner_map_fd = inner.map_or(0, |inner| inner.as_raw_fd().cast_unsigned());
    let mut create = Create { map_type, key_size: 4, value_size: 4, max_entries: 1, map_flags: 0, inner_map_fd };
    // SAFETY: no addresses in it.
    owned(unsafe { bpf(Command::MapCreate, &mut create) }?)
}

/// Attributes of the batch commands.
#[repr(C)]
struct Batch {
    in_batch: u64,
    out_batch: u64,
    keys: u64,
    values: u64,
    count: u32,
    map_fd: u32,
    elem_flags: u64,
    flags: u64,
}

/// Reads the `count` elements of an array that begin at `first`. They have to be there.
pub(super) fn read_array<V: aya::Pod>(array: BorrowedFd<'_>, first: u32, count: u32) -> io::Result<Vec<V>> {
    let mut values: Vec<MaybeUninit<V>> = Vec::with_capacity(count as usize);
    let mut keys = vec![0u32; count as usize];
    // The kernel begins behind the key it is given, and at the start without any.
    let before = first.wrapping_sub(1);
    let mut last = 0u32;
    let mut batch = Batch {
        in_batch: if first == 0 { 0 } else { &raw const before as u64 },
        out_batch: &raw mut last as u64,
        keys: keys.as_mut_ptr() as u64,
        values: values.as_mut_ptr() as u64,
        count,
        map_fd: array.as_raw_fd().cast_unsigned(),
        elem_flags: 0,
        flags: 0,
    };
    // SAFETY: there is room for `count` keys and values: the caller's `V` is the map's, as `Table` has it checked by aya.
    unsafe { bpf(Command::MapLookupBatch, &mut batch) }?;
    if batch.count != count {
        return Err(io::Error::other(format!("{} of {count} elements were read", batch.count)));
    }
    // SAFETY: the kernel has filled `count` elements.
    Ok(unsafe { filled(values, count as usize) })
}

/// What a batch command has read.
///
/// # Safety
///
/// The first `count` elements are filled, from a map of such elements.
unsafe fn filled<V: aya::Pod>(mut values: Vec<MaybeUninit<V>>, count: usize) -> Vec<V> {
    // SAFETY: there are as many, says the caller.
    unsafe { values.set_len(count) };
    // SAFETY: whatever lies in a map of `V` is one: it is plain data.
    values.into_iter().map(|value| unsafe { value.assume_init() }).collect()
}

/// Hands all elements of a hash to `take`, a part of them after the other. Those that are written meanwhile may be missed, or
/// come twice.
pub(super) fn each_of_hash<K: aya::Pod, V: aya::Pod>(
    hash: BorrowedFd<'_>,
    mut take: impl FnMut(K, V),
) -> io::Result<()> {
    /// Elements read by one call: enough that the call itself costs nothing.
    const CHUNK: u32 = 2048;
    let mut chunk = CHUNK;
    // Where to go on: a bucket, which the kernel reads whole.
    let (mut from, mut to) = (None, 0u32);
    loop {
        let mut keys: Vec<MaybeUninit<K>> = Vec::with_capacity(chunk as usize);
        let mut values: Vec<MaybeUninit<V>> = Vec::with_capacity(chunk as usize);
        let mut batch = Batch {
            in_batch: from.as_ref().map_or(0, |from: &u32| &raw const *from as u64),
            out_batch: &raw mut to as u64,
            keys: keys.as_mut_ptr() as u64,
            values: values.as_mut_ptr() as u64,
            count: chunk,
            map_fd: hash.as_raw_fd().cast_unsigned(),
            elem_flags: 0,
            flags: 0,
        };
        // SAFETY: there is room for `chunk` keys and values: the caller's `K` and `V` are the map's, as `Hash` has it checked
        // by aya.
        let read = unsafe { bpf(Command::MapLookupBatch, &mut batch) };
        let is_last = match read {
            Ok(_) => false,
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => true,
            // A single bucket with more elements than there is room for.
            Err(error) if error.raw_os_error() == Some(libc::ENOSPC) => {
                chunk *= 2;
                continue;
            }
            Err(error) => return Err(error),
        };
        let count = batch.count.min(chunk) as usize;
        // SAFETY: the kernel has filled as many.
        let keys = unsafe { filled(keys, count) };
        // SAFETY: likewise.
        let values = unsafe { filled(values, count) };
        keys.into_iter().zip(values).for_each(|(key, value)| take(key, value));
        if is_last {
            return Ok(());
        }
        from = Some(to);
    }
}

/// Writes elements of an array, from `first` on, in order.
pub(super) fn write_array<V: aya::Pod>(array: BorrowedFd<'_>, first: u32, values: &[V]) -> io::Result<()> {
    let keys: Vec<u32> = (first..).take(values.len()).collect();
    let count = u32::try_from(values.len()).map_err(io::Error::other)?;
    let mut batch = Batch {
        in_batch: 0,
        out_batch: 0,
        keys: keys.as_ptr() as u64,
        values: values.as_ptr() as u64,
        count,
        map_fd: array.as_raw_fd().cast_unsigned(),
        elem_flags: 0,
        flags: 0,
    };
    // SAFETY: there are `count` keys and values: the caller's `V` is the map's, as `Table` has it checked by aya.
    unsafe { bpf(Command::MapUpdateBatch, &mut batch) }?;
    Ok(())
}

/// Waits for a ring buffer to have something to read. Has to be called within a runtime.
pub(super) fn readable(ring: RingBuf<MapData>) -> io::Result<AsyncFd<RingBuf<MapData>>> {
    // SAFETY: the ring buffer owns its descriptor and never gives out another one, and `AsyncFd` owns the ring buffer.
    Ok(unsafe { AsyncFd::register_with_interest(ring, Interest::READABLE) }?)
}

/// `membarrier(MEMBARRIER_CMD_GLOBAL)`, which waits for an RCU grace period (kernel/sched/membarrier.c).
pub(super) fn membarrier() -> io::Result<()> {
    /// linux/membarrier.h
    const GLOBAL: i64 = 1;
    // SAFETY: takes integers only.
    let result = unsafe { libc::syscall(libc::SYS_membarrier, GLOBAL, 0, 0) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// The file system type of `path`, as in linux/magic.h.
pub(super) fn file_system_magic(path: &Path) -> io::Result<i64> {
    let path = c_path(path)?;
    let mut stat = MaybeUninit::<libc::statfs>::uninit();
    // SAFETY: a string that ends with NUL, and room for the answer.
    if unsafe { libc::statfs(path.as_ptr(), stat.as_mut_ptr()) } < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: filled, since the call succeeded.
    let stat = unsafe { stat.assume_init() };
    #[allow(clippy::unnecessary_cast, reason = "musl has another type for it than glibc")]
    Ok(stat.f_type as i64)
}
