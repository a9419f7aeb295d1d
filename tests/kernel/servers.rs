//! Servers that say who they are: whatever they get, they answer with the address they listen at.
//!
//! They run on one thread, outside the cgroup, until they are dropped.

use lab::netns::Netns;
use socket2::{Domain, Protocol, Socket, Type};
use std::{
    collections::BTreeMap,
    io,
    net::SocketAddr,
    sync::{Arc, Condvar, Mutex},
    thread::{self, JoinHandle},
    time::Duration,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream, UdpSocket},
    sync::mpsc,
};

/// See the module.
pub(crate) struct Servers {
    new: Option<mpsc::UnboundedSender<Socket>>,
    heard: Arc<Heard>,
    thread: Option<JoinHandle<()>>,
}

/// Which datagrams came where: the last server that got each payload.
#[derive(Default)]
struct Heard {
    by_payload: Mutex<BTreeMap<Vec<u8>, SocketAddr>>,
    more: Condvar,
}

impl Servers {
    /// Starts the thread.
    pub(crate) fn start() -> Self {
        let (new, sockets) = mpsc::unbounded_channel();
        let heard = Arc::<Heard>::default();
        let shared = heard.clone();
        let thread = thread::Builder::new().name("servers".to_owned()).spawn(move || serve_all(sockets, shared));
        Self { new: Some(new), heard, thread: Some(thread.unwrap()) }
    }

    /// Serves TCP at `address` of `netns` from now on.
    pub(crate) fn tcp(&self, netns: &Netns, address: SocketAddr) {
        self.add(open(netns, address, Type::STREAM, None));
    }

    /// Serves UDP at `address` of `netns` from now on.
    pub(crate) fn udp(&self, netns: &Netns, address: SocketAddr) {
        self.add(open(netns, address, Type::DGRAM, None));
    }

    /// Serves another protocol, of streams or of datagrams.
    pub(crate) fn other(&self, netns: &Netns, address: SocketAddr, kind: Type, protocol: Protocol) {
        self.add(open(netns, address, kind, Some(protocol)));
    }

    /// The server that got a datagram with this payload; none if none did within `patience`.
    pub(crate) fn heard(&self, payload: &[u8], patience: Duration) -> Option<SocketAddr> {
        let heard = self.heard.by_payload.lock().unwrap();
        let missing = |heard: &mut BTreeMap<Vec<u8>, SocketAddr>| !heard.contains_key(payload);
        let (heard, _) = self.heard.more.wait_timeout_while(heard, patience, missing).unwrap();
        heard.get(payload).copied()
    }

    fn add(&self, socket: Socket) {
        self.new.as_ref().and_then(|new| new.send(socket).ok()).expect("the thread runs until this is dropped");
    }
}

impl Drop for Servers {
    fn drop(&mut self) {
        self.new = None;
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
            && !thread::panicking()
        {
            panic!("the servers' thread panicked");
        }
    }
}

fn open(netns: &Netns, address: SocketAddr, kind: Type, protocol: Option<Protocol>) -> Socket {
    let open = || {
        let socket = Socket::new(Domain::for_address(address), kind, protocol)?;
        if address.is_ipv6() {
            socket.set_only_v6(true)?;
        }
        socket.set_reuse_address(true)?;
        socket.set_nonblocking(true)?;
        socket.bind(&address.into())?;
        if kind == Type::STREAM {
            // A burst of clients that come and go must not fill it.
            socket.listen(4096)?;
        }
        io::Result::Ok(socket)
    };
    netns.run(open).unwrap().unwrap_or_else(|error| panic!("serve at {address}: {error}"))
}

fn serve_all(mut sockets: mpsc::UnboundedReceiver<Socket>, heard: Arc<Heard>) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build().unwrap();
    runtime.block_on(async move {
        while let Some(socket) = sockets.recv().await {
            if socket.r#type().unwrap() == Type::STREAM {
                tokio::spawn(serve_tcp(TcpListener::from_std(socket.into()).unwrap()));
            } else {
                tokio::spawn(serve_udp(UdpSocket::from_std(socket.into()).unwrap(), heard.clone()));
            }
        }
    });
}

async fn serve_tcp(listener: TcpListener) {
    let own = listener.local_addr().unwrap();
    loop {
        // A client that has gone before it was accepted is none of our business.
        if let Ok((client, _)) = listener.accept().await {
            tokio::spawn(serve_client(client, own));
        }
    }
}

/// Answers each piece that arrives with one line, until the client goes.
async fn serve_client(mut client: TcpStream, own: SocketAddr) {
    let mut buffer = [0; 64];
    while let Ok(1..) = client.read(&mut buffer).await {
        if client.write_all(format!("{own}\n").as_bytes()).await.is_err() {
            break;
        }
    }
}

async fn serve_udp(socket: UdpSocket, heard: Arc<Heard>) {
    let own = socket.local_addr().unwrap();
    let mut buffer = [0; 64];
    loop {
        // An ICMP error for an answer to a client that has gone comes up here.
        let Ok((length, client)) = socket.recv_from(&mut buffer).await else { continue };
        heard.by_payload.lock().unwrap().insert(buffer[..length].to_vec(), own);
        heard.more.notify_all();
        socket.send_to(own.to_string().as_bytes(), client).await.ok();
    }
}
