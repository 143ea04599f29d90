//! How late the loop wakes: the largest delay of the last one to two minutes.
//!
//! A loop that is late at its own deadlines was busy, or did not run; that is the first thing to look at when
//! the light waits. Pure; fed by `daemon`.

use std::time::Duration;

const WINDOW: Duration = Duration::from_secs(60);

/// The largest delays of this window and the one before it.
#[derive(Debug, Default)]
pub(crate) struct Lag {
    window: u64,
    now: Duration,
    before: Duration,
}

impl Lag {
    /// The loop woke by so much too late, at `now` of the boot clock.
    pub(crate) fn late(&mut self, by: Duration, now: Duration) {
        self.turn(now);
        self.now = self.now.max(by);
    }

    /// The largest delay of the last one to two minutes.
    pub(crate) fn largest(&mut self, now: Duration) -> Duration {
        self.turn(now);
        self.now.max(self.before)
    }

    fn turn(&mut self, now: Duration) {
        let window = now.as_secs() / WINDOW.as_secs();
        if window != self.window {
            let is_next = window == self.window + 1;
            self.before = if is_next { self.now } else { Duration::ZERO };
            self.now = Duration::ZERO;
            self.window = window;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_delay_is_shown_for_a_minute_and_then_forgotten() {
        let (mut lag, at) = (Lag::default(), Duration::from_secs);
        lag.late(Duration::from_millis(30), at(59));
        lag.late(Duration::from_millis(2), at(61));
        assert_eq!(lag.largest(at(61)), Duration::from_millis(30));
        assert_eq!(lag.largest(at(119)), Duration::from_millis(30));
        assert_eq!(lag.largest(at(120)), Duration::from_millis(2));
        assert_eq!(lag.largest(at(1_000)), Duration::ZERO);
    }
}
