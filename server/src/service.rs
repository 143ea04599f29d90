//! What systemd is told: that the server is ready, that its loop turns, that it stops. Without systemd nothing.

use std::time::Duration;

use sd_notify::NotifyState;
use tokio::time::Instant;

/// The watchdog is fed so often within its time.
const BEATS: u32 = 3;

/// The service, as systemd sees it.
#[derive(Debug)]
pub(crate) struct Service {
    every: Option<Duration>,
    next: Instant,
}

impl Service {
    /// The database is open, and the loop begins.
    pub(crate) fn ready() -> Self {
        tell(&NotifyState::Ready);
        Self {
            every: sd_notify::watchdog_enabled().map(|watchdog| watchdog / BEATS),
            next: Instant::now(),
        }
    }

    /// The loop turns.
    pub(crate) fn beat_if_due(&mut self, now: Instant) {
        if let Some(every) = self.every.filter(|_| now >= self.next) {
            tell(&NotifyState::Watchdog);
            self.next = now + every;
        }
    }

    /// The end has begun.
    pub(crate) fn stopping(&self) {
        tell(&NotifyState::Stopping);
    }
}

fn tell(state: &NotifyState<'_>) {
    if let Err(error) = sd_notify::notify(std::slice::from_ref(state)) {
        tracing::debug!("systemd is not told: {error}");
    }
}
