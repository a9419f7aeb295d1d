//! What time means where the tests run: a processor that is emulated is slow, and in real time says nothing about times.

use std::{
    env, fs,
    sync::LazyLock,
    thread,
    time::{Duration, Instant},
};

/// How long an agent may take to get ready, and anything else that should be a matter of a second: more than that only on
/// a machine that hardly gets to it.
pub(crate) const SOON: Duration = Duration::from_secs(30);

/// Asks again and again until there is an answer, or none within `limit`.
pub(crate) fn until<T>(limit: Duration, mut ask: impl FnMut() -> Option<T>) -> Option<T> {
    let end = Instant::now() + patience(limit);
    loop {
        if let Some(answer) = ask() {
            return Some(answer);
        }
        if Instant::now() >= end {
            return None;
        }
        // An emulated processor has better things to do than to ask.
        thread::sleep(Duration::from_millis(if is_emulated() { 100 } else { 10 }));
    }
}

/// As long as that on a real processor, and longer on one that is emulated.
pub(crate) fn patience(time: Duration) -> Duration {
    match (is_emulated(), is_in_virtual_time()) {
        (false, _) => time,
        (true, true) => time * 4,
        (true, false) => time * 12,
    }
}

/// Whether this machine's processor is an emulated one, which is slow, and in real time says nothing about times.
pub(crate) fn is_emulated() -> bool {
    static IS_EMULATED: LazyLock<bool> =
        LazyLock::new(|| fs::read_to_string("/proc/cpuinfo").is_ok_and(|info| info.contains("QEMU TCG")));
    *IS_EMULATED
}

/// Whether an emulated processor's clock counts its instructions, so that it stands still whenever the emulator does: who
/// started it says so.
fn is_in_virtual_time() -> bool {
    env::var("TOMBOLO_TEST_CLOCK").is_ok_and(|clock| clock == "virtual")
}

/// Whether a test that depends on how long things take can't be run here; says so.
pub(crate) fn judges_no_times() -> bool {
    let says_nothing = is_emulated() && !is_in_virtual_time();
    if says_nothing {
        println!("skipped: on an emulated processor in real time, times say nothing");
    }
    says_nothing
}
