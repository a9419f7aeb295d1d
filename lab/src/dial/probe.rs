//! Connects at a high rate that cost next to nothing: a moment without translation shows as one that fails.

use super::KEPT;
use anyhow::{Result, bail};
use nix::unistd::gettid;
use serde::{Deserialize, Serialize};
use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket},
    process::{Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

/// What a probe saw.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Probed {
    /// Connects, failed ones included.
    pub probes: u64,
    /// Failed ones.
    pub failed: u64,
    /// The first failures.
    pub failures: Vec<String>,
    /// How long it probed.
    pub took: Duration,
    /// Time between the last connect that was well and the first one again, wherever one failed in between.
    pub unattached: Duration,
    /// The longest time between two connects: what the machine's load made of the rate.
    pub longest_pause: Duration,
}

/// A probe that runs.
pub(super) struct Probing {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<Probed>,
}

impl Probing {
    pub(super) fn start(to: SocketAddr, rate: u32) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = stop.clone();
        Self { stop, thread: thread::spawn(move || Probed::until(&stopped, to, rate)) }
    }

    pub(super) fn end(self) -> Result<Probed> {
        self.stop.store(true, Ordering::Relaxed);
        let Ok(probed) = self.thread.join() else { bail!("a thread panicked") };
        Ok(probed)
    }
}

impl Probed {
    /// Connects a second.
    pub fn rate(&self) -> f64 {
        #[expect(clippy::cast_precision_loss, reason = "counts are far below 2⁵³")]
        let probes = self.probes as f64;
        probes / self.took.as_secs_f64().max(f64::MIN_POSITIVE)
    }

    fn until(stop: &AtomicBool, to: SocketAddr, rate: u32) -> Self {
        let goes_first = go_first();
        let mut seen = Self::default();
        let pause = Duration::from_secs(1) / rate.max(1);
        let began = Instant::now();
        let (mut last, mut well, mut due) = (began, began, began);
        let mut is_well = true;
        while !stop.load(Ordering::Relaxed) {
            let connected = connect(to);
            let now = Instant::now();
            seen.probes += 1;
            seen.longest_pause = seen.longest_pause.max(now - last);
            last = now;
            match connected {
                Ok(()) => {
                    if !is_well {
                        seen.unattached += now - well;
                    }
                    (is_well, well) = (true, now);
                }
                Err(error) => {
                    is_well = false;
                    seen.failed += 1;
                    if seen.failures.len() < KEPT {
                        seen.failures.push(error.to_string());
                    }
                }
            }
            // What was missed isn't made up for by a burst.
            due = now.max(due + pause);
            if goes_first {
                thread::sleep(due.saturating_duration_since(Instant::now()));
            }
            // Sleeping would take longer than it may where others go first.
            while !goes_first && Instant::now() < due && !stop.load(Ordering::Relaxed) {
                thread::yield_now();
            }
        }
        seen.took = began.elapsed();
        seen
    }
}

/// Has the kernel run this thread before all others, or the rate would be what they leave; whether it does.
fn go_first() -> bool {
    let mut chrt = Command::new("chrt");
    chrt.args(["--fifo", "--pid", "1"]).arg(gettid().to_string()).stdin(Stdio::null()).stderr(Stdio::null());
    chrt.status().is_ok_and(|status| status.success())
}

fn connect(to: SocketAddr) -> io::Result<()> {
    let any: IpAddr = if to.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
    UdpSocket::bind((any, 0))?.connect(to)
}
