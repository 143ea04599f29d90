//! The account of one outage: when, why, and what was done meanwhile.
//!
//! An outage is the link away, or the server silent while the broker is up. The two merge: one outage,
//! one report. The controller says when it begins and ends, and shows each record made meanwhile.

use std::time::Duration;

use super::telemetry::{Body, Event, OutageReport};
use super::time::{Stamp, rfc3339};

/// What was away.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cause {
    /// The link to the broker.
    Link,
    /// The server, while the broker was there.
    Server,
}

/// The outage that is under way, if any.
#[derive(Debug, Default)]
pub struct Outage {
    open: Option<Account>,
    last: Option<OutageReport>,
}

/// The account so far.
#[derive(Debug)]
struct Account {
    cause: Cause,
    why: String,
    began: Stamp,
    began_at: Duration,
    readings: u64,
    events: u64,
    led_changes: u64,
    lost: u64,
}

impl Outage {
    /// An outage begins, unless one is under way; a lost link takes over from a silent server.
    pub fn begin(&mut self, cause: Cause, why: &str, began: Stamp, now: Duration) {
        match &mut self.open {
            Some(account) if account.cause == Cause::Server && cause == Cause::Link => {
                account.cause = Cause::Link;
                account.why = why.to_owned();
            }
            Some(_) => {}
            None => {
                self.open = Some(Account {
                    cause,
                    why: why.to_owned(),
                    began,
                    began_at: now,
                    readings: 0,
                    events: 0,
                    led_changes: 0,
                    lost: 0,
                });
            }
        }
    }

    /// A record was made.
    pub fn note(&mut self, body: &Body) {
        let Some(account) = &mut self.open else {
            return;
        };
        match body {
            Body::Reading { .. } => account.readings += 1,
            Body::Event(event) => {
                account.events += 1;
                match event {
                    Event::Led { led_ok: None, .. } => account.led_changes += 1,
                    Event::Loss(loss) => account.lost += loss.count,
                    _ => {}
                }
            }
        }
    }

    /// What was away is back. `claim` gives the wall time that a stamp may claim, in milliseconds.
    pub fn end(
        &mut self,
        cause: Cause,
        ended: Stamp,
        now: Duration,
        claim: impl Fn(Stamp) -> i64,
    ) -> Option<OutageReport> {
        let account = self.open.take_if(|account| account.cause == cause)?;
        let report = OutageReport {
            cause: match account.cause {
                Cause::Link => "link".into(),
                Cause::Server => "server".into(),
            },
            began: rfc3339(claim(account.began)),
            ended: rfc3339(claim(ended)),
            seconds: (now.saturating_sub(account.began_at)).as_millis() as f64 / 1000.0,
            readings: account.readings,
            events: account.events,
            led_changes: account.led_changes,
            lost: account.lost,
            why: account.why,
        };
        self.last = Some(report.clone());
        Some(report)
    }

    /// The last outage that is over.
    pub fn last(&self) -> Option<&OutageReport> {
        self.last.as_ref()
    }

    /// Since when an outage is under way, on the boot clock.
    pub fn since(&self) -> Option<Duration> {
        self.open.as_ref().map(|account| account.began_at)
    }
}
