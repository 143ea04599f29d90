//! What a restart keeps of the account of an outage, so that its report has all of it.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::{Account, Cause, Made, Outage};
use crate::time::Stamp;

/// An outage that is not over.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeptOutage {
    /// What was away.
    pub cause: Cause,
    /// Why, in words.
    pub why: String,
    /// When it began.
    pub began: Stamp,
    /// The same, on the boot clock.
    pub began_at: Duration,
    /// Records made meanwhile: readings, events, and how many of those are LED changes.
    pub readings: u64,
    /// See `readings`.
    pub events: u64,
    /// See `readings`.
    pub led_changes: u64,
    /// Records given up meanwhile.
    pub lost: u64,
    /// Sessions that did not hold. One that was up in this moment counts: it ended with the run.
    pub short_sessions: u64,
}

impl KeptOutage {
    /// Whether it can be what a run wrote at `written`.
    pub(crate) fn is_sound(&self, written: Duration) -> bool {
        self.began_at <= written && self.led_changes <= self.events
    }
}

impl Outage {
    /// Goes on with the outage that an earlier run of the same boot left.
    pub(crate) fn take_over(&mut self, kept: KeptOutage) {
        self.open = Some(Account {
            cause: kept.cause,
            why: kept.why,
            began: kept.began,
            began_at: kept.began_at,
            made: Made {
                readings: kept.readings,
                events: kept.events,
                led_changes: kept.led_changes,
                lost: kept.lost,
            },
            short_sessions: kept.short_sessions,
            back: None,
        });
    }

    /// What the next run of this boot goes on with.
    pub(crate) fn hand_over(&self) -> Option<KeptOutage> {
        let account = self.open.as_ref()?;
        let mut made = account.made.clone();
        if let Some(back) = &account.back {
            made.add(&back.made);
        }
        Some(KeptOutage {
            cause: account.cause,
            why: account.why.clone(),
            began: account.began,
            began_at: account.began_at,
            readings: made.readings,
            events: made.events,
            led_changes: made.led_changes,
            lost: made.lost,
            short_sessions: account.short_sessions + u64::from(account.back.is_some()),
        })
    }

    /// Changes when there is something new to hand over.
    pub(crate) fn stamp(&self) -> u64 {
        self.changes
    }
}
