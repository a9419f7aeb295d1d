//! Once a removal is confirmed, nothing that begins afterwards reaches what was removed.

use crate::{
    draws::{draw, draw_tcp, effort, own4},
    ground::Ground,
    sockets::{PATIENCE, recv_from, send_to, udp_socket},
    tables::{backed_by, tcp, udp},
};
use socket2::Socket;
use std::{
    io,
    net::{IpAddr, SocketAddr},
    sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering},
    thread,
    time::Instant,
};

/// Backends that come and go; half of them serve at a time.
const POOL: u8 = 8;
/// Connects that are judged before the next change.
const JUDGED_EACH: usize = 300;
/// Services that change along.
const IN_MOTION: u8 = 6;
/// Which backends may be reached: a bit each, in the lower half; what is above counts the changes.
const MEMBERS: u32 = 16;

/// A way to get to a backend.
#[derive(Clone, Copy)]
enum Way {
    /// A new UDP socket connects.
    Datagrams(SocketAddr),
    /// A new TCP socket connects.
    Stream(SocketAddr),
    /// A socket that never connects talks: it stays with its backend, but no longer than that is there.
    Talk(SocketAddr),
}

impl Way {
    /// The backend that was reached; `socket` is the one that talks.
    fn reach(self, socket: &Socket) -> io::Result<IpAddr> {
        match self {
            Self::Datagrams(frontend) => draw(frontend),
            Self::Stream(frontend) => draw_tcp(frontend),
            Self::Talk(frontend) => {
                send_to(socket, b"?", frontend)?;
                Ok(recv_from(socket)?.0.ip())
            }
        }
    }
}

/// What clients and the one who changes the tables share.
#[derive(Default)]
struct Shared {
    /// Changed before a change begins, to allow everything, and after it is confirmed.
    allowed: AtomicU64,
    /// Connects that began and ended between two changes.
    judged: AtomicUsize,
    /// All of them.
    made: AtomicUsize,
    done: AtomicBool,
}

#[test]
fn no_connect_that_begins_after_a_removal_reaches_the_removed_backend() {
    let Some(mut ground) = Ground::new() else { return };
    let pool = own4(&ground, 1, POOL);
    pool.iter().for_each(|backend| ground.serve(*backend));
    let [plain, sticky, streams]: [SocketAddr; 3] =
        ["10.96.0.10:53", "10.96.0.11:53", "10.96.0.12:80"].map(|frontend| frontend.parse().unwrap());
    let change = |ground: &mut Ground, members: &[SocketAddr]| {
        let mut remembered = backed_by(members);
        remembered.affinity_seconds = Some(3600);
        ground.want(udp(plain), backed_by(members)).want(udp(sticky), remembered);
        ground.want(tcp(streams), backed_by(members));
        // More that nobody dials, so that look-ups meet tables in motion.
        for number in 0..IN_MOTION {
            ground.want(udp(SocketAddr::new([10, 96, 1, number].into(), 53)), backed_by(members));
        }
        ground.install();
    };
    change(&mut ground, &pool[..usize::from(POOL / 2)]);

    let shared = Shared::default();
    shared.allow(u16::MAX);
    let client = ground.client.clone();
    let ways = [Way::Datagrams(plain), Way::Datagrams(sticky), Way::Stream(streams), Way::Talk(plain)];
    thread::scope(|scope| {
        for way in ways {
            let (client, shared, pool) = (&client, &shared, &pool);
            scope.spawn(move || client.run(|| hammer(shared, pool, way)));
        }
        let end = EndOnDrop(&shared);
        let mut members: Vec<usize> = (0..usize::from(POOL / 2)).collect();
        let mut next = members.len();
        while shared.judged.load(Ordering::Relaxed) < effort() {
            // The one that has been there longest goes, another one comes.
            members.remove(0);
            members.push(next);
            next = (next + 1) % usize::from(POOL);
            shared.allow(u16::MAX);
            change(&mut ground, &members.iter().map(|&i| pool[i]).collect::<Vec<_>>());
            shared.allow(members.iter().fold(0, |mask, i| mask | 1 << i));
            shared.wait_for(JUDGED_EACH);
        }
        drop(end);
    });
    let changes = shared.allowed.load(Ordering::Relaxed) >> MEMBERS;
    let (judged, made) = (shared.judged.into_inner(), shared.made.into_inner());
    println!("{judged} of {made} connects lay between two of {changes} changes; 0 reached a backend that was gone");
}

#[test]
fn a_change_is_safe_after_every_single_write_of_it() {
    let Some(mut ground) = Ground::new() else { return };
    let pool = own4(&ground, 1, POOL);
    pool.iter().for_each(|backend| ground.serve(*backend));
    let [plain, sticky, other]: [SocketAddr; 3] =
        ["10.96.0.10:53", "10.96.0.11:53", "10.96.0.12:53"].map(|frontend| frontend.parse().unwrap());
    // Another service has all backends all the time, as when it selects the same pods: none is ever forgotten.
    ground.want(udp(other), backed_by(&pool)).install();
    let want = |ground: &mut Ground, members: &[SocketAddr]| {
        let mut remembered = backed_by(members);
        remembered.affinity_seconds = Some(3600);
        ground.want(udp(plain), backed_by(members)).want(udp(sticky), remembered);
    };
    let mut members = pool[..2].to_vec();
    want(&mut ground, &members);
    ground.install();
    let talker = ground.client.run(|| udp_socket(plain));
    let dial = |ground: &Ground| {
        let ways = [Way::Datagrams(plain), Way::Datagrams(sticky), Way::Talk(plain)];
        ground.client.run(|| ways.map(|way| way.reach(&talker).expect("there are always backends")))
    };
    let among = |reached: IpAddr, members: &[SocketAddr]| members.iter().any(|member| member.ip() == reached);
    let mut writes = 0;
    for round in 0..40 {
        // The backend of the session goes, or that of the conversation, and another one comes.
        let leaving = dial(&ground)[1 + round % 2];
        let old = members.clone();
        members.retain(|member| member.ip() != leaving);
        let newcomer = pool.iter().cycle().skip(round).find(|backend| !old.contains(backend));
        members.extend(newcomer);
        want(&mut ground, &members);
        let both = [&old[..], &members[..]].concat();
        ground.install_stepwise(|ground, step| {
            writes += 1;
            for reached in dial(ground) {
                assert!(among(reached, &both), "round {round}: reached {reached} after {step:?}");
            }
        });
        for (reached, way) in dial(&ground).into_iter().zip(["connect", "session", "conversation"]) {
            assert!(among(reached, &members), "round {round}: a {way} reached {reached}, which is gone");
        }
    }
    println!("{writes} writes");
}

impl Shared {
    fn allow(&self, members: u16) {
        let changes = self.allowed.load(Ordering::SeqCst) >> MEMBERS;
        self.allowed.store((changes + 1) << MEMBERS | u64::from(members), Ordering::SeqCst);
    }

    /// Waits until so many more connects were judged.
    fn wait_for(&self, more: usize) {
        let (enough, deadline) = (self.judged.load(Ordering::SeqCst) + more, Instant::now() + 3 * PATIENCE);
        while self.judged.load(Ordering::SeqCst) < enough {
            assert!(Instant::now() < deadline && !self.done.load(Ordering::SeqCst), "clients stopped");
            thread::yield_now();
        }
    }
}

/// Has the clients end, also when the one who changes the tables panics.
struct EndOnDrop<'a>(&'a Shared);

impl Drop for EndOnDrop<'_> {
    fn drop(&mut self) {
        self.0.done.store(true, Ordering::SeqCst);
    }
}

/// Reaches for backends until told to end, and checks each that was reached.
fn hammer(shared: &Shared, pool: &[SocketAddr], way: Way) {
    // Another client's failure ends all of them.
    let _end = EndOnDrop(shared);
    let socket = udp_socket(pool[0]);
    while !shared.done.load(Ordering::SeqCst) {
        let before = shared.allowed.load(Ordering::SeqCst);
        let reached = way.reach(&socket).expect("there are always backends");
        let after = shared.allowed.load(Ordering::SeqCst);
        shared.made.fetch_add(1, Ordering::SeqCst);
        let index = pool.iter().position(|backend| backend.ip() == reached).expect("a backend of the pool");
        if before == after {
            assert!(before >> index & 1 == 1, "reached backend {index} of {:08b}", before & 0xff);
            if before & u64::from(u16::MAX) != u64::from(u16::MAX) {
                shared.judged.fetch_add(1, Ordering::SeqCst);
            }
        }
    }
}
