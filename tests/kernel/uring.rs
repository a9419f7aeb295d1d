//! connect() by io_uring: in the submitting call, or on a thread of the kernel's own.
#![expect(unsafe_code, reason = "the ring is shared with the kernel, and no safe form of it is kept up")]

use io_uring::{IoUring, Probe, opcode, squeue::Flags, types::Fd};
use socket2::{SockAddr, Socket};
use std::{io, net::SocketAddr, os::fd::AsRawFd};

/// Why there is no such thing here, if so.
pub(crate) fn missing() -> Option<String> {
    let probe = || -> io::Result<bool> {
        let ring = IoUring::new(2)?;
        let mut probe = Probe::new();
        ring.submitter().register_probe(&mut probe)?;
        Ok(probe.is_supported(opcode::Connect::CODE))
    };
    match probe() {
        Ok(true) => None,
        Ok(false) => Some("this kernel's io_uring has no connect".to_owned()),
        Err(error) => Some(format!("io_uring: {error}")),
    }
}

/// Connects `socket`; `on_worker` leaves it to a thread of the kernel's.
pub(crate) fn connect(socket: &Socket, to: SocketAddr, on_worker: bool) -> io::Result<()> {
    let mut ring = IoUring::new(2)?;
    let address = SockAddr::from(to);
    let flags = if on_worker { Flags::ASYNC } else { Flags::empty() };
    let connect = opcode::Connect::new(Fd(socket.as_raw_fd()), address.as_ptr().cast(), address.len());
    let entry = connect.build().flags(flags);
    // SAFETY: the socket and the address outlive the operation, for which the call below waits.
    unsafe { ring.submission().push(&entry) }.map_err(io::Error::other)?;
    ring.submit_and_wait(1)?;
    let done = ring.completion().next().ok_or_else(|| io::Error::other("nothing was completed"))?;
    if done.result() < 0 { Err(io::Error::from_raw_os_error(-done.result())) } else { Ok(()) }
}
