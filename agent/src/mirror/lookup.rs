//! Looks up the host names of peers' gateways, again and again: what is behind a load balancer's name changes.
//!
//! Whoever writes a name may also be the one who answers for it, or doesn't. A look-up takes a thread for as long as the system's
//! resolver waits, which nothing ends earlier; so each peer has few at once, and all of them together no more than leaves threads
//! to others. Of those that wait for a thread, the one that waits longest is next, whoever's it is.

use super::source::LinkName;
use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    net::{IpAddr, ToSocketAddrs},
    sync::Arc,
    time::{Duration, Instant},
};
use tokio::{
    sync::Semaphore,
    task::{JoinSet, spawn_blocking},
    time::timeout,
};
use tracing::warn;

/// How often a name is looked up, and how long that may take.
const EVERY: Duration = Duration::from_secs(30);
const PATIENCE: Duration = Duration::from_secs(10);
/// Look-ups of one peer that run at once, and of all; the runtime has 512 threads for them and for whatever else blocks.
const OF_ONE: usize = 8;
const OF_ALL: usize = 128;

/// A name, and the peer that wants it: who waits for another's turn must not do so for having the same name.
type Wanted = (LinkName, String);

/// Finds out what a name stands for. Blocks.
type Resolve = fn(&str) -> io::Result<BTreeSet<IpAddr>>;

/// Host names, and when they are looked up next.
pub(super) struct Lookups {
    tasks: JoinSet<(Wanted, Result<BTreeSet<IpAddr>, String>)>,
    due: BTreeMap<Wanted, Instant>,
    /// Those that are being looked up, or wait for it.
    running: BTreeSet<Wanted>,
    failed: BTreeSet<Wanted>,
    places: Arc<Semaphore>,
    places_by_link: BTreeMap<LinkName, Arc<Semaphore>>,
    resolve: Resolve,
}

impl Default for Lookups {
    fn default() -> Self {
        Self {
            tasks: JoinSet::new(),
            due: BTreeMap::new(),
            running: BTreeSet::new(),
            failed: BTreeSet::new(),
            places: Arc::new(Semaphore::new(OF_ALL)),
            places_by_link: BTreeMap::new(),
            resolve: |host| Ok((host, 0).to_socket_addrs()?.map(|address| address.ip()).collect()),
        }
    }
}

impl Lookups {
    /// Looks up what is due of `hosts`, and says which names of those looked up before are nobody's any more.
    pub(super) fn follow(&mut self, hosts: &BTreeSet<(&LinkName, &str)>, now: Instant) -> Vec<String> {
        let is_wanted = |(link, host): &Wanted| hosts.contains(&(link, host.as_str()));
        let mut gone: BTreeSet<String> = BTreeSet::new();
        for wanted in self.due.keys().filter(|wanted| !is_wanted(wanted)).cloned().collect::<Vec<_>>() {
            self.due.remove(&wanted);
            self.failed.remove(&wanted);
            gone.insert(wanted.1);
        }
        if !gone.is_empty() {
            gone.retain(|host| !hosts.iter().any(|(_, wanted)| wanted == host));
            self.places_by_link.retain(|link, _| hosts.iter().any(|(of, _)| *of == link));
        }
        for (link, host) in hosts {
            let wanted = ((*link).clone(), (*host).to_owned());
            if self.due.get(&wanted).is_some_and(|at| *at > now) {
                continue;
            }
            self.due.insert(wanted.clone(), now + EVERY);
            // One that takes long isn't asked a second time meanwhile.
            if self.running.insert(wanted.clone()) {
                self.look_up(wanted);
            }
        }
        gone.into_iter().collect()
    }

    fn look_up(&mut self, wanted: Wanted) {
        let of_all = Arc::clone(&self.places);
        let of_one = self.places_by_link.entry(wanted.0.clone()).or_insert_with(|| Arc::new(Semaphore::new(OF_ONE)));
        let (of_one, resolve, host) = (Arc::clone(of_one), self.resolve, wanted.1.clone());
        self.tasks.spawn(async move {
            let (Ok(one), Ok(all)) = (of_one.acquire_owned().await, of_all.acquire_owned().await) else {
                return (wanted, Err("look-ups have ended".to_owned()));
            };
            let answer = spawn_blocking(move || {
                let found = resolve(&host);
                // Its places are taken until its thread is free, whoever still waits for the answer.
                drop((one, all));
                found
            });
            let found = match timeout(PATIENCE, answer).await {
                Ok(Ok(found)) => found.map_err(|error| error.to_string()),
                Ok(Err(error)) => Err(error.to_string()),
                Err(_) => Err(format!("no answer within {PATIENCE:?}")),
            };
            (wanted, found)
        });
    }

    /// When the next name is due.
    pub(super) fn next(&self) -> Option<Instant> {
        self.due.values().min().copied()
    }

    /// Waits for what a name stands for; none while none is being looked up. What a name stood for stays while it can't be looked up.
    pub(super) async fn answered(&mut self) -> Option<(String, BTreeSet<IpAddr>)> {
        while let Some(ended) = self.tasks.join_next().await {
            let (wanted, answer) = match ended {
                Ok(answered) => answered,
                Err(error) => {
                    warn!(error = %error, "look-up ended");
                    continue;
                }
            };
            self.running.remove(&wanted);
            match answer {
                // A name that is none any more meanwhile.
                _ if !self.due.contains_key(&wanted) => {}
                Ok(addresses) if !addresses.is_empty() => {
                    self.failed.remove(&wanted);
                    return Some((wanted.1, addresses));
                }
                answer => {
                    let reason = answer.err().unwrap_or_else(|| "it has no address".to_owned());
                    if self.failed.insert(wanted.clone()) {
                        let (link, host) = wanted;
                        warn!(%link, host, reason, "a gateway's name can't be looked up; what it stood for stays");
                    }
                }
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{
        net::Ipv4Addr,
        sync::{
            Condvar, Mutex,
            atomic::{AtomicUsize, Ordering},
        },
    };

    #[tokio::test]
    async fn a_name_is_looked_up_again_and_again_while_it_is_wanted() {
        let (mut lookups, start) = (Lookups::default(), Instant::now());
        let (east, e2) = (link("east"), link("e2"));
        let hosts = BTreeSet::from([(&east, "localhost")]);
        assert_eq!(lookups.follow(&hosts, start), [""; 0]);
        let (host, addresses) = lookups.answered().await.unwrap();
        assert!(host == "localhost" && !addresses.is_empty() && addresses.iter().all(IpAddr::is_loopback));
        assert_eq!(lookups.answered().await, None, "once");
        assert_eq!(lookups.next(), Some(start + EVERY));
        lookups.follow(&hosts, start + EVERY - Duration::from_millis(1));
        assert_eq!(lookups.answered().await, None);
        lookups.follow(&hosts, start + EVERY);
        assert!(lookups.answered().await.is_some());
        // While another link still leads there, it stands for what it stood for.
        lookups.follow(&BTreeSet::from([(&east, "localhost"), (&e2, "localhost")]), start + EVERY);
        assert_eq!(lookups.follow(&BTreeSet::from([(&e2, "localhost")]), start + EVERY), [""; 0]);
        assert_eq!(lookups.follow(&BTreeSet::new(), start + EVERY), ["localhost"]);
        assert_eq!(lookups.next(), None);
    }

    #[tokio::test]
    async fn a_name_that_is_none_tells_nothing() {
        let mut lookups = Lookups::default();
        // By RFC 6761 it never is one.
        lookups.follow(&BTreeSet::from([(&link("east"), "gateway.invalid")]), Instant::now());
        assert_eq!(lookups.answered().await, None);
    }

    #[tokio::test]
    async fn names_that_are_never_answered_delay_no_other_peers() {
        static RUNNING: AtomicUsize = AtomicUsize::new(0);
        static IS_OVER: Mutex<bool> = Mutex::new(false);
        static OVER: Condvar = Condvar::new();
        /// A runtime waits for its threads, even that of a test that failed.
        struct End;
        impl Drop for End {
            fn drop(&mut self) {
                *IS_OVER.lock().unwrap() = true;
                OVER.notify_all();
            }
        }
        let end = End;
        let mut lookups = Lookups {
            resolve: |host| {
                if host.starts_with("slow") {
                    RUNNING.fetch_add(1, Ordering::SeqCst);
                    drop(OVER.wait_while(IS_OVER.lock().unwrap(), |is_over| !*is_over).unwrap());
                }
                Ok(BTreeSet::from([Ipv4Addr::LOCALHOST.into()]))
            },
            ..Lookups::default()
        };
        let names: Vec<String> = (0..256).map(|number| format!("slow-{number}.example")).collect();
        let hostile: Vec<LinkName> = (0..4).map(|number| link(&format!("a-{number}"))).collect();
        let mut hosts: BTreeSet<(&LinkName, &str)> = BTreeSet::new();
        hosts.extend(hostile.iter().flat_map(|link| names.iter().map(move |name| (link, name.as_str()))));
        let now = Instant::now();
        lookups.follow(&hosts, now);
        // It has the same names, too, and one that nobody else has.
        let east = link("east");
        hosts.extend([(&east, "gateway.example"), (&east, "slow-0.example")]);
        for turn in 0..3 {
            lookups.follow(&hosts, now + turn * EVERY);
            let answer = timeout(Duration::from_secs(60), lookups.answered()).await;
            assert_eq!(answer.unwrap().unwrap().0, "gateway.example", "{turn}");
        }
        let running = RUNNING.load(Ordering::SeqCst);
        assert!(running <= hostile.len() * OF_ONE + 1, "{running} at once");
        drop(end);
        let mut answered = 0;
        while timeout(Duration::from_secs(60), lookups.answered()).await.unwrap().is_some() {
            answered += 1;
        }
        // Nobody waits for good for those that ran at first.
        assert!(answered + running >= hosts.len() - 1, "{answered} and {running} of {}", hosts.len());
    }

    fn link(name: &str) -> LinkName {
        LinkName(name.to_owned())
    }
}
