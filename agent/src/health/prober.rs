//! Carries out probes: a TCP connect each, closed again as soon as it is open.
//!
//! The sockets belong to the agent and dial pods' own addresses, which are no frontends, so no hook changes them. A
//! connection is closed in the ordinary way: a server sees one that ends before anything was said, as from a load
//! balancer's check.

use super::{Outcome, Probe};
use std::{
    io::{Error, ErrorKind},
    net::SocketAddr,
    time::{Duration, Instant},
};
use tokio::{
    net::TcpSocket,
    time::{error::Elapsed, timeout},
};

/// Tries one probe; takes its timeout at the most.
pub async fn run(probe: Probe) -> (u64, Outcome) {
    let began = Instant::now();
    let connected = timeout(probe.timeout, connect(probe.address)).await;
    (probe.id, outcome(connected, began.elapsed()))
}

async fn connect(address: SocketAddr) -> Result<(), Error> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() };
    // What can't even begin is our own trouble, whatever the error is.
    let socket = socket.map_err(|error| Error::new(ErrorKind::OutOfMemory, error))?;
    socket.connect(address).await.map(drop)
}

fn outcome(connected: Result<Result<(), Error>, Elapsed>, took: Duration) -> Outcome {
    match connected {
        Ok(Ok(())) => Outcome::Open(took),
        Err(Elapsed { .. }) => Outcome::Silent,
        Ok(Err(error)) => match error.kind() {
            ErrorKind::ConnectionRefused | ErrorKind::ConnectionReset => Outcome::Refused(took),
            // Said by a router, by a neighbour that is gone, or by TCP itself: nobody is there.
            ErrorKind::HostUnreachable | ErrorKind::NetworkUnreachable | ErrorKind::TimedOut => Outcome::Silent,
            // Said by a filter of ours, or for want of ports, descriptors or memory.
            _ => Outcome::NotSent,
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_network_is_blamed_for_silence() {
        let of = |kind: ErrorKind| outcome(Ok(Err(kind.into())), Duration::ZERO);
        assert_eq!(of(ErrorKind::ConnectionRefused), Outcome::Refused(Duration::ZERO));
        assert_eq!(of(ErrorKind::HostUnreachable), Outcome::Silent);
        assert_eq!(of(ErrorKind::PermissionDenied), Outcome::NotSent);
        assert_eq!(of(ErrorKind::AddrNotAvailable), Outcome::NotSent);
        assert_eq!(outcome(Ok(Err(Error::from_raw_os_error(24))), Duration::ZERO), Outcome::NotSent, "EMFILE");
    }
}
