//! The kernel's clock tick: SYN timeouts are handed to it in jiffies.

use std::time::Duration;

/// Jiffies a second.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hz(u32);

impl Hz {
    /// The known value that a tick of this length stands for; none if there is none, and then no timeout may be written.
    ///
    /// The length comes from `clock_getres(CLOCK_MONOTONIC_COARSE)`: a kernel of 300 Hz says 3,333,333 ns.
    pub fn of_tick(tick: Duration) -> Option<Self> {
        let nanos = tick.as_nanos();
        let is_near = |hz: &u32| {
            let exact = 1_000_000_000 / u128::from(*hz);
            nanos.abs_diff(exact) * 100 <= exact
        };
        [100, 250, 300, 1000].into_iter().find(is_near).map(Self)
    }

    /// Jiffies in `time`, rounded up: a timeout must not come early.
    pub fn jiffies(self, time: Duration) -> u32 {
        let jiffies = (time.as_nanos() * u128::from(self.0)).div_ceil(1_000_000_000);
        u32::try_from(jiffies).unwrap_or(u32::MAX)
    }

    /// Ticks a second.
    pub fn get(self) -> u32 {
        self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_known_ticks_are_taken() {
        let of = |nanos| Hz::of_tick(Duration::from_nanos(nanos)).map(Hz::get);
        assert_eq!(of(10_000_000), Some(100));
        assert_eq!(of(4_000_000), Some(250));
        assert_eq!(of(3_333_333), Some(300));
        assert_eq!(of(1_000_000), Some(1000));
        assert_eq!(of(999_848), Some(1000));
        // A kernel with high resolution only, and one of 864 Hz.
        assert_eq!(of(1), None);
        assert_eq!(of(1_157_407), None);
        assert_eq!(of(0), None);
    }

    #[test]
    fn a_timeout_is_rounded_up_to_jiffies() {
        let jiffies =
            |tick, millis| Hz::of_tick(Duration::from_nanos(tick)).unwrap().jiffies(Duration::from_millis(millis));
        assert_eq!(jiffies(4_000_000, 200), 50);
        assert_eq!(jiffies(4_000_000, 201), 51);
        assert_eq!(jiffies(1_000_000, 300), 300);
        assert_eq!(jiffies(3_333_333, 350), 105);
    }
}
