//! Accounts that are published: of which devices they are due, which are asked for, which have come.
//!
//! At most some hundred devices at a time and once a second, so that thousands of devices at work do not make
//! the database read nothing but accounts. Data only; `shell` asks and publishes.

use std::collections::BTreeSet;
use std::time::Duration;

use tokio::time::Instant;

/// Accounts are published so often, and so many at a time.
pub(crate) const PUBLISH_EVERY: Duration = Duration::from_secs(1);
const PUBLISH_MOST: usize = 200;

/// Which accounts are due.
#[derive(Debug)]
pub(crate) struct Accounts {
    /// Devices whose account has changed since it was asked for.
    changed: BTreeSet<String>,
    /// Some are asked for and have not come yet.
    is_asking: bool,
    ask_at: Instant,
}

impl Accounts {
    /// Those of these devices are due.
    pub(crate) fn new(changed: BTreeSet<String>) -> Self {
        Self {
            changed,
            is_asking: false,
            ask_at: Instant::now(),
        }
    }

    /// Those of these devices have changed, or were not told to the broker.
    pub(crate) fn change(&mut self, devices: impl IntoIterator<Item = String>) {
        self.changed.extend(devices);
    }

    /// Which to ask for now.
    pub(crate) fn due(&mut self, now: Instant) -> Option<BTreeSet<String>> {
        if now < self.ask_at {
            return None;
        }
        let some = self.ask();
        if some.is_some() {
            self.ask_at = now + PUBLISH_EVERY;
        }
        some
    }

    /// Which to ask for, if none are asked for, whenever the last ones were.
    pub(crate) fn ask(&mut self) -> Option<BTreeSet<String>> {
        if self.is_asking || self.changed.is_empty() {
            return None;
        }
        let mut devices = BTreeSet::new();
        while devices.len() < PUBLISH_MOST
            && let Some(device) = self.changed.pop_first()
        {
            devices.insert(device);
        }
        self.is_asking = true;
        Some(devices)
    }

    /// What was asked for has been answered.
    pub(crate) fn answered(&mut self) {
        self.is_asking = false;
    }

    /// Whether an answer is still to come.
    pub(crate) fn is_asking(&self) -> bool {
        self.is_asking
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn some_at_a_time_once_a_second_and_one_question_after_the_other() {
        let names = |count: usize| (0..count).map(|n| format!("d{n:03}"));
        let mut accounts = Accounts::new(names(250).collect());
        let now = Instant::now();
        assert_eq!(accounts.due(now).map(|some| some.len()), Some(200));
        assert_eq!(accounts.due(now + PUBLISH_EVERY), None, "not answered yet");
        accounts.answered();
        assert_eq!(accounts.due(now), None, "too soon");
        assert_eq!(
            accounts.due(now + PUBLISH_EVERY).map(|some| some.len()),
            Some(50)
        );
        accounts.answered();
        assert_eq!(
            accounts.due(now + 2 * PUBLISH_EVERY),
            None,
            "none has changed"
        );
        accounts.change(names(1));
        assert_eq!(accounts.ask().map(|some| some.len()), Some(1), "at the end");
    }
}
