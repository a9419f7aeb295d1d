//! Somebody else's programs: a few instructions by hand, attached the way that others attach theirs.
#![expect(unsafe_code, reason = "raw system calls: what is tried here is what no library does any more")]

use std::{
    fs::File,
    io,
    net::Ipv4Addr,
    os::fd::{AsRawFd, FromRawFd, OwnedFd},
    path::Path,
};

/// Hooks and their `enum bpf_attach_type`, linux/bpf.h.
pub(crate) const SOCK_OPS: u32 = 3;
pub(crate) const CONNECT4: u32 = 10;
pub(crate) const CONNECT6: u32 = 11;
pub(crate) const GETPEERNAME6: u32 = 30;

/// Flags of `BPF_PROG_ATTACH`, linux/bpf.h.
pub(crate) const EXCLUSIVE: u32 = 0;
pub(crate) const OVERRIDE: u32 = 1;
pub(crate) const MULTI: u32 = 2;

/// A program attached to a cgroup. Detached when dropped.
#[derive(Debug)]
pub(crate) struct Foreign {
    program: OwnedFd,
    cgroup: File,
    hook: u32,
}

impl Foreign {
    /// Attaches a program that does nothing.
    pub(crate) fn idle(cgroup: &Path, hook: u32, flags: u32) -> io::Result<Self> {
        Self::attach(cgroup, hook, flags, &[MOVE_1_TO_R0, EXIT])
    }

    /// Attaches a program to connect4 that sends those who dial `from` to `to`, at the same port.
    pub(crate) fn redirect(cgroup: &Path, flags: u32, from: Ipv4Addr, to: Ipv4Addr) -> io::Result<Self> {
        let code = [
            // r2 = ctx->user_ip4
            instruction(0x61, 2, 1, 4, 0),
            // The lower half only: the upper one of an immediate is its sign.
            instruction(0x56, 2, 0, 2, word(from)),
            instruction(0xb4, 2, 0, 0, word(to)),
            // ctx->user_ip4 = r2
            instruction(0x63, 1, 2, 4, 0),
            MOVE_1_TO_R0,
            EXIT,
        ];
        Self::attach(cgroup, CONNECT4, flags, &code)
    }

    /// Attaches a program to `sock_ops` that wants callbacks of all sockets, in place of whatever others want of them if `rude`:
    /// at each of these operations, `enum` in linux/bpf.h.
    pub(crate) fn callbacks(cgroup: &Path, flags: u32, wanted: u32, rude: bool, ops: &[u32]) -> io::Result<Self> {
        let count = i16::try_from(ops.len()).unwrap();
        // r6 = ctx, r2 = ctx->op
        let mut code = vec![instruction(0xbf, 6, 1, 0, 0), instruction(0x61, 2, 1, 0, 0)];
        for (at, op) in (0..).zip(ops) {
            // Over the other questions and the way out.
            code.push(instruction(0x15, 2, 0, count - at + 1, op.cast_signed()));
        }
        code.extend([MOVE_1_TO_R0, EXIT]);
        // r2 = ctx->bpf_sock_ops_cb_flags, or nothing; r2 |= wanted
        code.push(if rude { instruction(0xb7, 2, 0, 0, 0) } else { instruction(0x61, 2, 6, CALLBACK_FLAGS, 0) });
        code.push(instruction(0x47, 2, 0, 0, wanted.cast_signed()));
        // bpf_sock_ops_cb_flags_set(ctx, r2)
        code.extend([instruction(0xbf, 1, 6, 0, 0), instruction(0x85, 0, 0, 0, 59), MOVE_1_TO_R0, EXIT]);
        Self::attach(cgroup, SOCK_OPS, flags, &code)
    }

    /// Attaches a program to `sock_ops` that counts in `closes` how many sockets it is told the end of.
    pub(crate) fn watch(cgroup: &Path, flags: u32, closes: &Count) -> io::Result<Self> {
        let code = [
            // r2 = ctx->op, r3 = ctx->args[1]; only changes of state, to TCP_CLOSE
            instruction(0x61, 2, 1, 0, 0),
            instruction(0x61, 3, 1, 8, 0),
            instruction(0x55, 2, 0, 10, 10),
            instruction(0x55, 3, 0, 9, 7),
            // *(u32 *)(fp - 4) = 0; r0 = bpf_map_lookup_elem(map, fp - 4)
            instruction(0x62, 10, 0, -4, 0),
            instruction(0xbf, 2, 10, 0, 0),
            instruction(0x07, 2, 0, 0, -4),
            instruction(0x18, 1, 1, 0, closes.0.as_raw_fd()),
            0,
            instruction(0x85, 0, 0, 0, 1),
            instruction(0x15, 0, 0, 2, 0),
            // *(u32 *)r0 += 1, as one operation
            instruction(0xb7, 1, 0, 0, 1),
            instruction(0xc3, 0, 1, 0, 0),
            MOVE_1_TO_R0,
            EXIT,
        ];
        Self::attach(cgroup, SOCK_OPS, flags, &code)
    }

    fn attach(cgroup: &Path, hook: u32, flags: u32, code: &[u64]) -> io::Result<Self> {
        let program = load(hook, code)?;
        let cgroup = File::open(cgroup)?;
        let mut attach = Attach {
            target_fd: cgroup.as_raw_fd().cast_unsigned(),
            attach_bpf_fd: program.as_raw_fd().cast_unsigned(),
            attach_type: hook,
            attach_flags: flags,
        };
        bpf(8, &mut attach)?;
        Ok(Self { program, cgroup, hook })
    }

    /// Its id, as `bpftool` shows it.
    pub(crate) fn id(&self) -> u32 {
        let info = std::fs::read_to_string(format!("/proc/self/fdinfo/{}", self.program.as_raw_fd())).unwrap();
        let id = info.lines().find_map(|line| line.strip_prefix("prog_id:")).unwrap();
        id.trim().parse().unwrap()
    }
}

impl Drop for Foreign {
    fn drop(&mut self) {
        let mut detach = Attach {
            target_fd: self.cgroup.as_raw_fd().cast_unsigned(),
            attach_bpf_fd: self.program.as_raw_fd().cast_unsigned(),
            attach_type: self.hook,
            attach_flags: 0,
        };
        if let Err(error) = bpf(9, &mut detach) {
            eprintln!("detach a foreign program: {error}");
        }
    }
}

/// The ids of the programs on a hook of this very cgroup, in the order in which they run, and how they were attached.
pub(crate) fn programs_on(cgroup: &Path, hook: u32) -> (Vec<u32>, u32) {
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
    let mut ids = vec![0u32; 64];
    let cgroup = File::open(cgroup).unwrap();
    let mut query = Query {
        target_fd: cgroup.as_raw_fd().cast_unsigned(),
        attach_type: hook,
        query_flags: 0,
        attach_flags: 0,
        prog_ids: ids.as_mut_ptr() as u64,
        prog_cnt: 64,
        pad: 0,
    };
    bpf(16, &mut query).unwrap();
    ids.truncate(usize::try_from(query.prog_cnt).unwrap());
    (ids, query.attach_flags)
}

/// A number that a program counts up.
pub(crate) struct Count(OwnedFd);

impl Count {
    pub(crate) fn new() -> Self {
        Self(array())
    }

    pub(crate) fn get(&self) -> u32 {
        #[repr(C)]
        struct LookUp {
            map_fd: u32,
            pad: u32,
            key: u64,
            value: u64,
            flags: u64,
        }
        let (key, mut value) = (0_u32, 0_u32);
        let map_fd = self.0.as_raw_fd().cast_unsigned();
        let (key, into) = ((&raw const key) as u64, (&raw mut value) as u64);
        bpf(1, &mut LookUp { map_fd, pad: 0, key, value: into, flags: 0 }).unwrap();
        // SAFETY: a local, which the kernel has written behind the compiler's back.
        unsafe { (&raw const value).read_volatile() }
    }
}

/// An array of one element of four bytes.
fn array() -> OwnedFd {
    #[repr(C)]
    struct Create {
        map_type: u32,
        key_size: u32,
        value_size: u32,
        max_entries: u32,
    }
    let map = bpf(0, &mut Create { map_type: 2, key_size: 4, value_size: 4, max_entries: 1 }).unwrap();
    // SAFETY: a descriptor that was just made for us.
    unsafe { OwnedFd::from_raw_fd(i32::try_from(map).unwrap()) }
}

/// Pins a map that is of no use to anybody at `path`.
pub(crate) fn pin_map(path: &Path) {
    let map = array();
    let path = std::ffi::CString::new(path.to_str().unwrap()).unwrap();
    let bpf_fd = map.as_raw_fd().cast_unsigned();
    bpf(6, &mut Pin { pathname: path.as_ptr() as u64, bpf_fd, file_flags: 0 }).unwrap();
}

/// The kernel's id of the link that is pinned at `path`.
pub(crate) fn link_id(path: &Path) -> u32 {
    let path = std::ffi::CString::new(path.to_str().unwrap()).unwrap();
    let fd = bpf(7, &mut Pin { pathname: path.as_ptr() as u64, bpf_fd: 0, file_flags: 0 }).unwrap();
    // SAFETY: a descriptor that was just made for us.
    let link = unsafe { OwnedFd::from_raw_fd(i32::try_from(fd).unwrap()) };
    let info = std::fs::read_to_string(format!("/proc/self/fdinfo/{}", link.as_raw_fd())).unwrap();
    let id = info.lines().find_map(|line| line.strip_prefix("link_id:")).unwrap();
    id.trim().parse().unwrap()
}

/// Attributes of `BPF_OBJ_PIN` and `BPF_OBJ_GET`.
#[repr(C)]
struct Pin {
    pathname: u64,
    bpf_fd: u32,
    file_flags: u32,
}

/// Attributes of `BPF_PROG_ATTACH` and `BPF_PROG_DETACH`.
#[repr(C)]
struct Attach {
    target_fd: u32,
    attach_bpf_fd: u32,
    attach_type: u32,
    attach_flags: u32,
}

/// Where `struct bpf_sock_ops` has `bpf_sock_ops_cb_flags`.
const CALLBACK_FLAGS: i16 = 80;
const MOVE_1_TO_R0: u64 = instruction(0xb7, 0, 0, 0, 1);
const EXIT: u64 = instruction(0x95, 0, 0, 0, 0);

/// `struct bpf_insn` as a number, on a little-endian machine.
const fn instruction(code: u8, to: u8, from: u8, offset: i16, immediate: i32) -> u64 {
    let (code, registers) = (code as u64, (to | from << 4) as u64);
    code | registers << 8 | (offset.cast_unsigned() as u64) << 16 | (immediate.cast_unsigned() as u64) << 32
}

/// An address as contexts hold it: in network byte order.
fn word(address: Ipv4Addr) -> i32 {
    i32::from_ne_bytes(address.octets())
}

fn load(hook: u32, code: &[u64]) -> io::Result<OwnedFd> {
    /// `BPF_PROG_TYPE_CGROUP_SOCK_ADDR`, linux/bpf.h.
    const SOCK_ADDR: u32 = 18;
    /// `BPF_PROG_TYPE_SOCK_OPS`, linux/bpf.h.
    const SOCK_OPS_TYPE: u32 = 13;
    #[repr(C)]
    struct Load {
        prog_type: u32,
        insn_cnt: u32,
        insns: u64,
        license: u64,
        log_level: u32,
        log_size: u32,
        log_buf: u64,
        kern_version: u32,
        prog_flags: u32,
        prog_name: [u8; 16],
        prog_ifindex: u32,
        expected_attach_type: u32,
    }
    let license = c"GPL";
    let mut load = Load {
        prog_type: if hook == SOCK_OPS { SOCK_OPS_TYPE } else { SOCK_ADDR },
        insn_cnt: u32::try_from(code.len()).unwrap(),
        insns: code.as_ptr() as u64,
        license: license.as_ptr() as u64,
        log_level: 0,
        log_size: 0,
        log_buf: 0,
        kern_version: 0,
        prog_flags: 0,
        prog_name: *b"somebody_elses\0\0",
        prog_ifindex: 0,
        expected_attach_type: if hook == SOCK_OPS { 0 } else { hook },
    };
    let fd = bpf(5, &mut load)?;
    // SAFETY: a descriptor that was just made for us.
    Ok(unsafe { OwnedFd::from_raw_fd(i32::try_from(fd).unwrap()) })
}

/// `bpf(2)`. Whatever the attributes point at lives until it returns: all callers see to that.
fn bpf<T>(command: i64, attributes: &mut T) -> io::Result<i64> {
    // SAFETY: the kernel reads and writes as many bytes as it is told.
    let result = unsafe { libc::syscall(libc::SYS_bpf, command, &raw mut *attributes, size_of::<T>()) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}
