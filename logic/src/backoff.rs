//! Waits between two tries, for whoever tries again: the first one soon, then twice as long each time, up to a
//! bound. Each is cut short at random, so that many who wait for the same thing do not come back in step.

use std::time::Duration;

/// The waits of somebody who tries the same thing again.
#[derive(Debug, Clone)]
pub struct Backoff {
    first: Duration,
    longest: Duration,
    tries: u32,
}

impl Backoff {
    /// The first wait is at most `first`, and none is longer than `longest`.
    pub fn new(first: Duration, longest: Duration) -> Self {
        Self {
            first,
            longest,
            tries: 0,
        }
    }

    /// It was good: the waits begin with the first one again.
    pub fn reset(&mut self) {
        self.tries = 0;
    }

    /// How long to wait before the next try; `random` is in 0..1.
    pub fn next(&mut self, random: f64) -> Duration {
        let wait = doubled(self.first, self.tries, self.longest);
        self.tries = self.tries.saturating_add(1);
        jittered(wait, random)
    }
}

/// `first`, doubled so many times, but not longer than `longest`.
pub(crate) fn doubled(first: Duration, times: u32, longest: Duration) -> Duration {
    let factor = 1_u32.checked_shl(times).unwrap_or(u32::MAX);
    first.saturating_mul(factor).min(longest)
}

/// Half of `longest` to all of it; `random` is in 0..1.
pub fn jittered(longest: Duration, random: f64) -> Duration {
    longest.mul_f64(0.5 + random / 2.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_double_up_to_their_bound_and_begin_again_when_it_was_good() {
        let s = Duration::from_secs;
        let mut backoff = Backoff::new(s(1), s(5));
        let waits = [(); 5].map(|()| backoff.next(1.0));
        assert_eq!(waits, [s(1), s(2), s(4), s(5), s(5)]);
        backoff.reset();
        assert_eq!(backoff.next(0.0), s(1) / 2);
        for times in [31, 32, 40, u32::MAX] {
            assert_eq!(doubled(s(1), times, s(5)), s(5));
        }
    }
}
