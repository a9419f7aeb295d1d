//! One datagram a request, from one socket for as long as it has no error: a lost answer is none, to resolvers.

use super::{Dial, Reply, Session, answer};
use anyhow::{Context, Result};
use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
};
use tokio::net::UdpSocket;

/// What a request says.
const QUERY: &[u8] = b"?";

/// A socket that is kept, and opened anew when it fails to send or is told of an error while it waits.
pub(super) struct Socket {
    connects: bool,
    open: Option<UdpSocket>,
    /// Who has answered on it.
    pod: Option<String>,
}

impl Socket {
    /// Connects, then sends and receives.
    pub(super) fn connected() -> Self {
        Self { connects: true, open: None, pod: None }
    }

    /// Names the target with each datagram.
    pub(super) fn unconnected() -> Self {
        Self { connects: false, open: None, pod: None }
    }

    async fn send(&mut self, target: SocketAddr) -> Result<&UdpSocket> {
        if let Some(socket) = self.open.take_if(|socket| forget_late_answers(socket).is_ok())
            && self.send_by(&socket, target).await.is_ok()
        {
            return Ok(self.open.insert(socket));
        }
        self.pod = None;
        let any: IpAddr = if target.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
        let socket = UdpSocket::bind((any, 0)).await.context("bind")?;
        if self.connects {
            socket.connect(target).await.context("connect")?;
        }
        self.send_by(&socket, target).await.context("send")?;
        Ok(self.open.insert(socket))
    }

    async fn send_by(&self, socket: &UdpSocket, target: SocketAddr) -> io::Result<usize> {
        if self.connects { socket.send(QUERY).await } else { socket.send_to(QUERY, target).await }
    }
}

impl Session for Socket {
    async fn call(&mut self, dial: &mut Dial) -> Result<Reply> {
        let connects = self.connects;
        let socket = self.send(dial.target).await?;
        let mut datagram = [0; 1024];
        let (length, from) = match socket.recv_from(&mut datagram).await {
            Ok(received) => received,
            Err(error) => {
                self.open = None;
                return Err(error).context("receive");
            }
        };
        let from = if connects { socket.peer_addr().context("ask for the peer's address")? } else { from };
        let answer = answer(&datagram[..length])?;
        self.pod = Some(answer.pod.clone());
        Ok(Reply { answer, other_peer: from != dial.target })
    }

    fn pod(&self) -> Option<&str> {
        self.pod.as_deref()
    }

    /// Nothing: an attempt that is given up leaves the socket as it is.
    fn reset(&mut self) {}
}

/// Takes what came after its request was given up, so that it isn't taken for the answer to the next.
fn forget_late_answers(socket: &UdpSocket) -> io::Result<()> {
    let mut datagram = [0; 1024];
    loop {
        match socket.try_recv_from(&mut datagram) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
            done => done.map(drop)?,
        }
    }
}
