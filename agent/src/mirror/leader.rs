//! One of several mirrors leads: whoever holds a Lease, and renews it in time.
//!
//! A holder that doesn't renew is judged by this machine's clock and by the Lease's changes, never by the other's clock.

use anyhow::{Context, bail};
use k8s_openapi::{
    api::coordination::v1::{Lease, LeaseSpec},
    apimachinery::pkg::apis::meta::v1::MicroTime,
    jiff::Timestamp,
};
use kube::{
    Api, Client,
    api::{ObjectMeta, PostParams},
};
use std::time::Duration;
use tokio::time::{Instant, sleep, timeout};
use tracing::{info, warn};

/// How long a Lease holds that isn't renewed.
const TERM: Duration = Duration::from_secs(15);
/// How often it is renewed, and how often others look.
const RENEW: Duration = Duration::from_secs(3);
/// Without a renewal for so long a leader stops: before another one may begin.
const GIVE_UP: Duration = Duration::from_secs(10);

/// Who wants to lead.
pub struct Candidate {
    api: Api<Lease>,
    name: String,
    identity: String,
}

/// Who leads.
pub struct Leading(Candidate);

impl Candidate {
    /// A candidate for the Lease `namespace`/`name`.
    pub fn new(client: Client, namespace: &str, name: &str) -> Self {
        let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
        let identity = format!("{}_{}_{}", host.trim(), std::process::id(), Timestamp::now().as_microsecond());
        Self { api: Api::namespaced(client, namespace), name: name.to_owned(), identity }
    }

    /// Waits until it leads.
    ///
    /// # Errors
    ///
    /// The namespace isn't there, or the Lease may not be read or written.
    pub async fn win(self) -> anyhow::Result<Leading> {
        // The state that was seen last, and since when.
        let mut seen: Option<(String, Instant)> = None;
        loop {
            let found = match self.api.get_opt(&self.name).await {
                Ok(found) => found,
                Err(kube::Error::Api(status)) if status.code == 403 => {
                    bail!("read lease {}: {}", self.name, status.message)
                }
                Err(error) => {
                    warn!(error = %error, "lease can't be read");
                    sleep(RENEW).await;
                    continue;
                }
            };
            let is_free = match &found {
                None => true,
                Some(lease) => {
                    let version = lease.metadata.resource_version.clone().unwrap_or_default();
                    let is_same = seen.as_ref().is_some_and(|(known, _)| *known == version);
                    if !is_same {
                        seen = Some((version, Instant::now()));
                    }
                    let held = lease.spec.as_ref().and_then(|spec| spec.holder_identity.as_deref()).unwrap_or_default();
                    held.is_empty() || seen.as_ref().is_some_and(|(_, since)| since.elapsed() > TERM)
                }
            };
            if is_free {
                match self.take(found).await {
                    Ok(()) => {
                        info!(lease = self.name, identity = self.identity, "leading");
                        return Ok(Leading(self));
                    }
                    // Another one was faster.
                    Err(kube::Error::Api(status)) if status.code == 409 => {}
                    Err(error @ kube::Error::Api(_)) => {
                        return Err(error).with_context(|| format!("write lease {}", self.name));
                    }
                    Err(error) => warn!(error = %error, "lease can't be written"),
                }
            }
            sleep(RENEW).await;
        }
    }

    /// Writes the Lease as its holder; refused if it isn't as it was `found` any more.
    async fn take(&self, found: Option<Lease>) -> Result<(), kube::Error> {
        let now = MicroTime(Timestamp::now());
        let is_new = found.is_none();
        let mut lease = found.unwrap_or_else(|| Lease {
            metadata: ObjectMeta { name: Some(self.name.clone()), ..ObjectMeta::default() },
            spec: None,
        });
        let spec = lease.spec.get_or_insert_with(LeaseSpec::default);
        if spec.holder_identity.as_ref() != Some(&self.identity) {
            spec.lease_transitions = Some(spec.lease_transitions.unwrap_or(0) + i32::from(!is_new));
            spec.acquire_time = Some(now.clone());
        }
        spec.holder_identity = Some(self.identity.clone());
        spec.lease_duration_seconds = Some(15);
        spec.renew_time = Some(now);
        if is_new {
            self.api.create(&PostParams::default(), &lease).await?;
        } else {
            self.api.replace(&self.name, &PostParams::default(), &lease).await?;
        }
        Ok(())
    }

    async fn give_back(&self) -> anyhow::Result<()> {
        let mut lease = self.api.get(&self.name).await?;
        let Some(spec) = lease.spec.as_mut().filter(|spec| spec.holder_identity.as_ref() == Some(&self.identity))
        else {
            bail!(Lost);
        };
        spec.holder_identity = None;
        self.api.replace(&self.name, &PostParams::default(), &lease).await?;
        Ok(())
    }

    async fn renew(&self) -> anyhow::Result<()> {
        let found = self.api.get(&self.name).await?;
        let holder = found.spec.as_ref().and_then(|spec| spec.holder_identity.clone());
        if holder.as_ref() != Some(&self.identity) {
            bail!(Lost);
        }
        Ok(self.take(Some(found)).await?)
    }
}

impl Leading {
    /// Renews the Lease as long as that works.
    ///
    /// # Errors
    ///
    /// It is another one's, or could not be renewed in time.
    pub async fn hold(&self) -> anyhow::Result<()> {
        let mut renewed = Instant::now();
        loop {
            sleep(RENEW).await;
            match timeout(RENEW, self.0.renew()).await {
                Ok(Ok(())) => renewed = Instant::now(),
                Ok(Err(error)) if error.is::<Lost>() => return Err(error),
                Ok(Err(error)) => warn!(error = %error, "lease not renewed"),
                Err(_) => warn!("lease not renewed in time"),
            }
            if renewed.elapsed() > GIVE_UP {
                bail!("the lease could not be renewed for {} s", renewed.elapsed().as_secs());
            }
        }
    }

    /// Gives the Lease back, so that another one needn't wait until it runs out.
    pub async fn release(self) {
        match timeout(RENEW, self.0.give_back()).await {
            Ok(Ok(())) => info!(lease = self.0.name, "lease given back"),
            Ok(Err(error)) => warn!(error = %error, "lease not given back"),
            Err(_) => warn!("lease not given back in time"),
        }
    }
}

/// The lease is another one's.
#[derive(Debug)]
struct Lost;

impl std::fmt::Display for Lost {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("another mirror holds the lease")
    }
}

impl std::error::Error for Lost {}
