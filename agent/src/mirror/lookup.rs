//! Looks up the host names of peers' gateways, again and again: what is behind a load balancer's name changes.
//!
//! Whoever writes a name may also be the one who answers for it, or doesn't. A look-up takes a thread for as long as the system's
//! resolver waits, which nothing ends earlier, not even that nobody wants the name any more; so each peer has few at once, and all
//! of them together no more than leaves threads to others. Names wait by peer, as long as they are wanted, and each peer that waits
//! has a turn before another one has two.

use super::source::LinkName;
use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    io,
    net::{IpAddr, ToSocketAddrs},
    time::{Duration, Instant},
};
use tokio::task::{JoinSet, spawn_blocking};
use tracing::warn;

/// How often a name is looked up.
const EVERY: Duration = Duration::from_secs(30);
/// Look-ups of one peer that run at once, and of all; the runtime has 512 threads for them and for whatever else blocks.
const OF_ONE: usize = 8;
const OF_ALL: usize = 128;

/// A name, and the peer that wants it: who waits for another's turn must not do so for having the same name.
type Wanted = (LinkName, String);

/// Finds out what a name stands for. Blocks.
type Resolve = fn(&str) -> io::Result<BTreeSet<IpAddr>>;

/// Host names, and when they are looked up next.
pub(super) struct Lookups {
    /// One for each that is running.
    tasks: JoinSet<(Wanted, Result<BTreeSet<IpAddr>, String>)>,
    due: BTreeMap<Wanted, Instant>,
    /// Those that have a thread, wanted or not.
    running: BTreeSet<Wanted>,
    /// Those of `due` that wait for one, by link; whose turn is next comes first.
    waiting: VecDeque<(LinkName, VecDeque<String>)>,
    failed: BTreeSet<Wanted>,
    resolve: Resolve,
}

impl Default for Lookups {
    fn default() -> Self {
        Self {
            tasks: JoinSet::new(),
            due: BTreeMap::new(),
            running: BTreeSet::new(),
            waiting: VecDeque::new(),
            failed: BTreeSet::new(),
            resolve: |host| Ok((host, 0).to_socket_addrs()?.map(|address| address.ip()).collect()),
        }
    }
}

impl Lookups {
    /// Looks up what is due of `hosts`, and says which names of those looked up before are nobody's any more.
    pub(super) fn follow(&mut self, hosts: &BTreeSet<(&LinkName, &str)>, now: Instant) -> Vec<String> {
        let is_wanted = |link: &LinkName, host: &str| hosts.contains(&(link, host));
        let mut gone: BTreeSet<String> = BTreeSet::new();
        for wanted in self.due.keys().filter(|(link, host)| !is_wanted(link, host)).cloned().collect::<Vec<_>>() {
            self.due.remove(&wanted);
            self.failed.remove(&wanted);
            gone.insert(wanted.1);
        }
        if !gone.is_empty() {
            gone.retain(|host| !hosts.iter().any(|(_, wanted)| wanted == host));
            self.waiting.retain_mut(|(link, names)| {
                names.retain(|host| is_wanted(link, host));
                !names.is_empty()
            });
        }
        for (link, host) in hosts {
            let wanted = ((*link).clone(), (*host).to_owned());
            if self.due.get(&wanted).is_some_and(|at| *at > now) {
                continue;
            }
            let was_due = self.due.insert(wanted.clone(), now + EVERY).is_some();
            // One that takes long isn't asked a second time meanwhile.
            if !self.running.contains(&wanted) {
                self.wait(wanted);
            } else if was_due {
                self.fail(wanted, "there is no answer yet");
            }
        }
        self.start();
        gone.into_iter().collect()
    }

    /// Has a name wait for a thread, unless it does already.
    fn wait(&mut self, (link, host): Wanted) {
        match self.waiting.iter_mut().find(|(of, _)| *of == link) {
            Some((_, names)) if names.contains(&host) => {}
            Some((_, names)) => names.push_back(host),
            None => self.waiting.push_back((link, VecDeque::from([host]))),
        }
    }

    /// Looks up as many of those that wait as there are places for.
    fn start(&mut self) {
        while self.running.len() < OF_ALL {
            let has_place = |link| self.running.iter().filter(|(of, _)| of == link).count() < OF_ONE;
            let next = self.waiting.iter().position(|(link, _)| has_place(link));
            let Some((link, mut names)) = next.and_then(|next| self.waiting.remove(next)) else { break };
            let Some(host) = names.pop_front() else { continue };
            if !names.is_empty() {
                self.waiting.push_back((link.clone(), names));
            }
            self.look_up((link, host));
        }
    }

    fn look_up(&mut self, wanted: Wanted) {
        self.running.insert(wanted.clone());
        let (resolve, host) = (self.resolve, wanted.1.clone());
        self.tasks.spawn(async move {
            let found = match spawn_blocking(move || resolve(&host)).await {
                Ok(found) => found.map_err(|error| error.to_string()),
                Err(error) => Err(error.to_string()),
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
            self.start();
            match answer {
                // A name that is none any more meanwhile.
                _ if !self.due.contains_key(&wanted) => {}
                Ok(addresses) if !addresses.is_empty() => {
                    self.failed.remove(&wanted);
                    return Some((wanted.1, addresses));
                }
                Ok(_) => self.fail(wanted, "it has no address"),
                Err(reason) => self.fail(wanted, &reason),
            }
        }
        None
    }

    /// Says once why a name isn't known.
    fn fail(&mut self, wanted: Wanted, reason: &str) {
        if self.failed.insert(wanted.clone()) {
            let (link, host) = wanted;
            warn!(%link, host, reason, "a gateway's name can't be looked up; what it stood for stays");
        }
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
    use tokio::time::timeout;

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
        static HANGING: Hanging = Hanging::new();
        let end = End(&HANGING);
        let mut lookups = Lookups { resolve: |host| HANGING.resolve(host), ..Lookups::default() };
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
        let running = HANGING.begun.load(Ordering::SeqCst);
        assert!(running <= hostile.len() * OF_ONE + 1, "{running} at once");
        drop(end);
        let mut answered = 0;
        while timeout(Duration::from_secs(60), lookups.answered()).await.unwrap().is_some() {
            answered += 1;
        }
        // Nobody waits for good for those that ran at first.
        assert!(answered + running >= hosts.len() - 1, "{answered} and {running} of {}", hosts.len());
    }

    #[tokio::test]
    async fn a_peer_that_has_other_names_all_the_time_gets_no_more_places() {
        static HANGING: Hanging = Hanging::new();
        let end = End(&HANGING);
        let mut lookups = Lookups { resolve: |host| HANGING.resolve(host), ..Lookups::default() };
        let (hostile, east, now) = (link("a"), link("east"), Instant::now());
        for turn in 0..2 * OF_ALL {
            let names: Vec<String> = (0..2 * OF_ONE).map(|number| format!("slow-{turn}-{number}.example")).collect();
            lookups.follow(&names.iter().map(|name| (&hostile, name.as_str())).collect(), now);
            // What can start does, before all of them go.
            for _ in 0..4 {
                tokio::task::yield_now().await;
            }
            lookups.follow(&BTreeSet::new(), now);
        }
        lookups.follow(&BTreeSet::from([(&east, "gateway.example"), (&hostile, "slow.example")]), now);
        let answer = timeout(Duration::from_secs(60), lookups.answered()).await;
        assert_eq!(answer.unwrap().unwrap().0, "gateway.example");
        assert!(lookups.tasks.len() <= OF_ONE, "{} are held", lookups.tasks.len());
        let begun = HANGING.begun.load(Ordering::SeqCst);
        assert!(begun <= OF_ONE, "{begun} at once");
        // Once they end, what is wanted has its turn, and what isn't any more is never asked.
        drop(end);
        let answer = timeout(Duration::from_secs(60), lookups.answered()).await;
        assert_eq!(answer.unwrap().unwrap().0, "slow.example");
        assert_eq!(lookups.answered().await, None);
        assert_eq!(HANGING.begun.load(Ordering::SeqCst), OF_ONE + 1);
    }

    #[tokio::test]
    async fn peers_that_wait_take_turns() {
        static HANGING: Hanging = Hanging::new();
        let end = End(&HANGING);
        let mut lookups = Lookups { resolve: |host| HANGING.resolve(host), ..Lookups::default() };
        let hostile: Vec<LinkName> = (0..2 * OF_ALL).map(|number| link(&format!("a-{number}"))).collect();
        let names: Vec<String> = (0..4).map(|number| format!("slow-{number}.example")).collect();
        let east = link("east");
        let mut hosts: BTreeSet<(&LinkName, &str)> = BTreeSet::from([(&east, "gateway.example")]);
        hosts.extend(hostile.iter().flat_map(|link| names.iter().map(move |name| (link, name.as_str()))));
        lookups.follow(&hosts, Instant::now());
        assert_eq!(lookups.tasks.len(), OF_ALL);
        drop(end);
        let mut before = 0;
        while timeout(Duration::from_secs(60), lookups.answered()).await.unwrap().unwrap().0 != "gateway.example" {
            before += 1;
        }
        // Each of the others had one turn before, and what runs beside it may be answered first.
        assert!(before <= hostile.len() + OF_ALL, "{before} before it");
    }

    /// A resolver that answers for names that are called slow when it is over only.
    struct Hanging {
        begun: AtomicUsize,
        is_over: Mutex<bool>,
        over: Condvar,
    }

    impl Hanging {
        const fn new() -> Self {
            Self { begun: AtomicUsize::new(0), is_over: Mutex::new(false), over: Condvar::new() }
        }

        fn resolve(&self, host: &str) -> io::Result<BTreeSet<IpAddr>> {
            if host.starts_with("slow") {
                self.begun.fetch_add(1, Ordering::SeqCst);
                drop(self.over.wait_while(self.is_over.lock().unwrap(), |is_over| !*is_over).unwrap());
            }
            Ok(BTreeSet::from([Ipv4Addr::LOCALHOST.into()]))
        }
    }

    /// A runtime waits for its threads, even that of a test that failed.
    struct End(&'static Hanging);

    impl Drop for End {
        fn drop(&mut self) {
            *self.0.is_over.lock().unwrap() = true;
            self.0.over.notify_all();
        }
    }

    fn link(name: &str) -> LinkName {
        LinkName(name.to_owned())
    }
}
