//! How many publications may be in flight, as far as this broker lets us.
//!
//! A broker with a limit of its own below ours (mosquitto's default at QoS 2 is 20) ends the session when we
//! go beyond it, and 3.1.1 has no way to say what it is. So a session at QoS 2 that was closed with many
//! publications in flight halves the window. It recovers by a tenth at a time, and more slowly each time it
//! was wrong. A far link that is cut closes sessions so too: a small window is halved only by the third.
//! The same holds for how many records go in one message, where the broker takes only smaller ones.

use std::time::Duration;

/// So many in flight are many, and more than half of the window is.
const MANY: usize = 16;
/// A window of so many or less is halved only by so many sessions in a row.
const SMALL: usize = 8;
const SMALL_SESSIONS: u32 = 3;
/// The first pause between two steps of recovery, and the longest.
const STEP_FIRST: Duration = Duration::from_secs(10);
const MAX_STEP: Duration = Duration::from_secs(3_600);

/// The window in force.
#[derive(Debug, Clone)]
pub(super) struct Window {
    configured: usize,
    size: usize,
    /// Sessions that were closed with many in flight since the window changed.
    sessions: u32,
    step: Duration,
    grow_at: Duration,
}

impl Window {
    pub(super) fn new(configured: usize) -> Self {
        Self {
            configured,
            size: configured,
            sessions: 0,
            step: STEP_FIRST / 2,
            grow_at: Duration::ZERO,
        }
    }

    /// Publications that may be in flight, 1 to the configured number.
    pub(super) fn size(&self) -> usize {
        self.size
    }

    /// A session was closed from the other end with so many in flight. Tells whether that made it smaller.
    pub(super) fn closed_with(&mut self, in_flight: usize, now: Duration) -> bool {
        if in_flight < 2 || in_flight < MANY && 2 * in_flight <= self.size {
            return false;
        }
        self.sessions += 1;
        if self.size <= SMALL && self.sessions < SMALL_SESSIONS {
            return false;
        }
        self.cut(in_flight, now);
        true
    }

    /// So many were too many.
    pub(super) fn cut(&mut self, too_many: usize, now: Duration) {
        self.size = self.size.min(too_many.max(1));
        self.halve(now);
    }

    /// What it allowed was too much, for another reason.
    pub(super) fn halve(&mut self, now: Duration) {
        self.sessions = 0;
        self.size = (self.size / 2).max(1);
        self.step = (self.step * 2).min(MAX_STEP);
        self.grow_at = now + self.step;
    }

    /// Time passes in a session.
    pub(super) fn tick(&mut self, now: Duration) {
        if self.size < self.configured && now >= self.grow_at {
            self.size = (self.size + self.size.div_ceil(10)).min(self.configured);
            self.grow_at = now + self.step;
            self.sessions = 0;
        }
    }
}
