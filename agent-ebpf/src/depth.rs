//! `depth`: which cgroups the calling process lies in, from the root of the machine's hierarchy down. It is attached for a
//! moment only, where that can't be seen from user space.

use aya_ebpf::{
    helpers::generated::bpf_get_current_ancestor_cgroup_id, macros::cgroup_sock_addr, programs::SockAddrContext,
};
use tombolo_ebpf::abi::MAX_DEPTH;

use crate::maps::{ANCESTORS, Numbered};

#[cgroup_sock_addr(connect4)]
pub fn depth(_: SockAddrContext) -> i32 {
    for level in 0..MAX_DEPTH {
        if let Some(ancestor) = ANCESTORS.at_mut(level) {
            // SAFETY: returns 0 where the task's cgroup isn't that deep; no pointer is handed over.
            let id = unsafe { bpf_get_current_ancestor_cgroup_id(level as i32) };
            // SAFETY: an element of an array map, which is never freed; user space reads it afterwards.
            unsafe { ancestor.write_volatile(id) };
        }
    }
    1
}
