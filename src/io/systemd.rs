//! Tells systemd how the daemon is: ready, alive, stopping, and one line about it. All of it does
//! nothing when the daemon was not started by systemd. Called by the daemon's loop only: a watchdog
//! fed from anywhere else would live on when the loop is dead. Whether the backlog's thread is alive is
//! for the loop to find out.

use std::time::Duration;

use sd_notify::NotifyState;

/// The daemon decides about the light now; ordered units may start.
pub fn ready() {
    tell(NotifyState::Ready);
}

/// The daemon has begun to stop.
pub fn stopping() {
    tell(NotifyState::Stopping);
}

/// How often to call [`feed`]: half of the unit's `WatchdogSec=`, as sd_watchdog_enabled(3) advises.
/// `None` when systemd does not watch this process.
pub fn watchdog_interval() -> Option<Duration> {
    sd_notify::watchdog_enabled()
        .map(|limit| limit / 2)
        .filter(|interval| !interval.is_zero())
}

/// All is well.
pub fn feed() {
    tell(NotifyState::Watchdog);
}

/// The line that `systemctl status` shows.
pub fn status(text: &str) {
    tell(NotifyState::Status(&one_line(text)));
}

/// The protocol has one assignment a line: what follows a line break would be another one.
fn one_line(text: &str) -> String {
    text.replace(|c: char| c.is_control(), " ")
}

fn tell(state: NotifyState<'_>) {
    if let Err(error) = sd_notify::notify(&[state]) {
        // Nothing to be done, and no reason to disturb the light; the watchdog notices if it lasts.
        tracing::debug!(%error, "systemd was not told");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_status_cannot_say_more_than_a_status() {
        assert_eq!(
            one_line("dark\nWATCHDOG=trigger\0"),
            "dark WATCHDOG=trigger "
        );
    }
}
