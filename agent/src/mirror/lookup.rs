//! Looks up the host names of peers' gateways, again and again: what is behind a load balancer's name changes.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    time::{Duration, Instant},
};
use tokio::{net::lookup_host, task::JoinSet, time::timeout};
use tracing::warn;

/// How often a name is looked up, and how long that may take.
const EVERY: Duration = Duration::from_secs(30);
const PATIENCE: Duration = Duration::from_secs(10);

/// Host names, and when they are looked up next.
#[derive(Default)]
pub(super) struct Lookups {
    tasks: JoinSet<(String, Result<BTreeSet<IpAddr>, String>)>,
    due: BTreeMap<String, Instant>,
    failed: BTreeSet<String>,
}

impl Lookups {
    /// Looks up what is due of `hosts`, and says which of those looked up before are none of them any more.
    pub(super) fn follow(&mut self, hosts: &BTreeSet<&str>, now: Instant) -> Vec<String> {
        let gone: Vec<String> = self.due.keys().filter(|host| !hosts.contains(host.as_str())).cloned().collect();
        for host in &gone {
            self.due.remove(host);
            self.failed.remove(host);
        }
        for host in hosts {
            if self.due.get(*host).is_some_and(|at| *at > now) {
                continue;
            }
            let host = (*host).to_owned();
            self.due.insert(host.clone(), now + EVERY);
            self.tasks.spawn(async move {
                let found = match timeout(PATIENCE, lookup_host((host.as_str(), 0))).await {
                    Ok(Ok(found)) => Ok(found.map(|address| address.ip()).collect()),
                    Ok(Err(error)) => Err(error.to_string()),
                    Err(_) => Err(format!("no answer within {PATIENCE:?}")),
                };
                (host, found)
            });
        }
        gone
    }

    /// When the next name is due.
    pub(super) fn next(&self) -> Option<Instant> {
        self.due.values().min().copied()
    }

    /// Waits for what a name stands for; none while none is being looked up. What a name stood for stays while it can't be looked up.
    pub(super) async fn answered(&mut self) -> Option<(String, BTreeSet<IpAddr>)> {
        while let Some(ended) = self.tasks.join_next().await {
            match ended {
                // A name that is none any more meanwhile.
                Ok((host, _)) if !self.due.contains_key(&host) => {}
                Ok((host, Ok(addresses))) if !addresses.is_empty() => {
                    self.failed.remove(&host);
                    return Some((host, addresses));
                }
                Ok((host, answer)) => {
                    let reason = answer.err().unwrap_or_else(|| "it has no address".to_owned());
                    if self.failed.insert(host.clone()) {
                        warn!(host, reason, "a gateway's name can't be looked up; what it stood for stays");
                    }
                }
                Err(error) => warn!(error = %error, "look-up ended"),
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_name_is_looked_up_again_and_again_while_it_is_wanted() {
        let (mut lookups, start) = (Lookups::default(), Instant::now());
        let hosts = BTreeSet::from(["localhost"]);
        assert_eq!(lookups.follow(&hosts, start), [""; 0]);
        let (host, addresses) = lookups.answered().await.unwrap();
        assert!(host == "localhost" && !addresses.is_empty() && addresses.iter().all(IpAddr::is_loopback));
        assert_eq!(lookups.answered().await, None, "once");
        assert_eq!(lookups.next(), Some(start + EVERY));
        lookups.follow(&hosts, start + EVERY - Duration::from_millis(1));
        assert_eq!(lookups.answered().await, None);
        lookups.follow(&hosts, start + EVERY);
        assert!(lookups.answered().await.is_some());
        assert_eq!(lookups.follow(&BTreeSet::new(), start + EVERY), ["localhost"]);
        assert_eq!(lookups.next(), None);
    }

    #[tokio::test]
    async fn a_name_that_is_none_tells_nothing() {
        let mut lookups = Lookups::default();
        // By RFC 6761 it never is one.
        lookups.follow(&BTreeSet::from(["gateway.invalid"]), Instant::now());
        assert_eq!(lookups.answered().await, None);
    }
}
