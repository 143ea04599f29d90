//! The account of one outage: when, why, and what was done meanwhile.
//!
//! An outage is the link away, or the server silent while the broker is up. The two merge: one outage,
//! one report. The controller says when it begins and ends, and shows each record made meanwhile.
//!
//! A link that is back may be gone again in a moment. So its outage ends only when the link has held
//! (10 s), and then it ended when that session began: what was made since then is not
//! counted. A session that did not hold is part of the outage, with all that was made in it.
//!
//! ```text
//!   none --begin--> under way --link_back--> back --end--> none
//!                        ^                     |
//!                        +------begin----------+
//! ```

mod handover;

use std::time::Duration;

use serde::{Deserialize, Serialize};

pub use handover::KeptOutage;

use super::telemetry::{Body, Event, OutageReport};
use super::time::{Stamp, rfc3339};

/// What was away.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Cause {
    /// The link to the broker.
    Link,
    /// The server, while the broker was there.
    Server,
}

/// The outage that is under way, if any.
#[derive(Debug, Clone)]
pub(crate) struct Outage {
    /// The broker confirms what it has (QoS 1 or 2); else nobody can know what was lost.
    confirms: bool,
    open: Option<Account>,
    last: Option<OutageReport>,
    /// Grows with each change of the open account.
    changes: u64,
}

/// The account so far.
#[derive(Debug, Clone)]
struct Account {
    cause: Cause,
    why: String,
    began: Stamp,
    began_at: Duration,
    made: Made,
    /// Sessions that did not hold.
    short_sessions: u64,
    /// The link is up; the outage ends with this if that holds.
    back: Option<Back>,
}

/// What was made since the link is up again.
#[derive(Debug, Clone)]
struct Back {
    stamp: Stamp,
    at: Duration,
    made: Made,
    /// The server fell silent since then.
    silent: Option<Box<Account>>,
}

/// Records, counted.
#[derive(Debug, Clone, Default)]
struct Made {
    readings: u64,
    events: u64,
    led_changes: u64,
    lost: u64,
}

impl Outage {
    /// None yet. `confirms` says whether publications are confirmed (QoS 1 or 2).
    pub(crate) fn new(confirms: bool) -> Self {
        Self {
            confirms,
            open: None,
            last: None,
            changes: 0,
        }
    }

    /// An outage begins, unless one is under way; a lost link takes over from a silent server. A link
    /// that was back and is lost again has never been back.
    pub(crate) fn begin(&mut self, cause: Cause, why: &str, began: Stamp, now: Duration) {
        let fresh = || Account {
            cause,
            why: why.to_owned(),
            began,
            began_at: now,
            made: Made::default(),
            short_sessions: 0,
            back: None,
        };
        self.changes += 1;
        match (&mut self.open, cause) {
            (None, _) => self.open = Some(fresh()),
            (Some(account), Cause::Link) => {
                if account.cause == Cause::Server {
                    account.cause = Cause::Link;
                    account.why = why.to_owned();
                }
                if let Some(back) = account.back.take() {
                    account.made.add(&back.made);
                    account.short_sessions += 1;
                }
            }
            (Some(account), Cause::Server) => {
                if let Some(back) = &mut account.back {
                    back.silent.get_or_insert_with(|| Box::new(fresh()));
                }
            }
        }
    }

    /// The link is up: from here on, what is made belongs to the outage only if the link does not hold.
    pub(crate) fn link_back(&mut self, stamp: Stamp, now: Duration) {
        self.changes += 1;
        if let Some(account) = &mut self.open
            && account.cause == Cause::Link
        {
            account.back = Some(Back {
                stamp,
                at: now,
                made: Made::default(),
                silent: None,
            });
        }
    }

    /// A record was made.
    pub(crate) fn note(&mut self, body: &Body) {
        let Some(account) = &mut self.open else {
            return;
        };
        self.changes += 1;
        match &mut account.back {
            Some(back) => {
                back.made.note(body);
                if let Some(silent) = &mut back.silent {
                    silent.made.note(body);
                }
            }
            None => account.made.note(body),
        }
    }

    /// Records were given up. Whether they are the first of this outage, or there is none.
    pub(crate) fn note_lost(&mut self, count: u64) -> bool {
        let Some(account) = &mut self.open else {
            return true;
        };
        self.changes += 1;
        let made = match &mut account.back {
            Some(back) => &mut back.made,
            None => &mut account.made,
        };
        made.lost += count;
        made.lost == count
    }

    /// The link has held since it was last back.
    pub(crate) fn link_held(&mut self, claim: impl Fn(Stamp) -> i64) -> Option<OutageReport> {
        let mut account = self.open.take_if(|account| account.back.is_some())?;
        let back = account.back.take()?;
        self.open = back.silent.map(|silent| *silent);
        Some(self.report(account, back.stamp, back.at, claim))
    }

    /// The server is heard again. `claim` gives the wall time that a stamp may claim, in milliseconds.
    pub(crate) fn server_heard(
        &mut self,
        ended: Stamp,
        now: Duration,
        claim: impl Fn(Stamp) -> i64,
    ) -> Option<OutageReport> {
        if let Some(back) = self.open.as_mut().and_then(|open| open.back.as_mut())
            && let Some(silent) = back.silent.take()
        {
            return Some(self.report(*silent, ended, now, claim));
        }
        let account = self
            .open
            .take_if(|account| account.cause == Cause::Server)?;
        Some(self.report(account, ended, now, claim))
    }

    fn report(
        &mut self,
        account: Account,
        ended: Stamp,
        ended_at: Duration,
        claim: impl Fn(Stamp) -> i64,
    ) -> OutageReport {
        let Made {
            readings,
            events,
            led_changes,
            lost,
        } = account.made;
        let report = OutageReport {
            cause: match account.cause {
                Cause::Link => "link".into(),
                Cause::Server => "server".into(),
            },
            began: rfc3339(claim(account.began)),
            ended: rfc3339(claim(ended)),
            seconds: (ended_at.saturating_sub(account.began_at)).as_millis() as f64 / 1000.0,
            readings,
            events,
            led_changes,
            lost: self.confirms.then_some(lost),
            short_sessions: account.short_sessions,
            why: account.why,
        };
        self.changes += 1;
        self.last = Some(report.clone());
        report
    }

    /// The last outage that is over.
    pub(crate) fn last(&self) -> Option<&OutageReport> {
        self.last.as_ref()
    }

    /// Since when an outage is under way, on the boot clock.
    pub(crate) fn since(&self) -> Option<Duration> {
        self.open.as_ref().map(|account| account.began_at)
    }
}

impl Made {
    fn note(&mut self, body: &Body) {
        match body {
            Body::Reading { .. } => self.readings += 1,
            Body::Event(event) => {
                self.events += 1;
                if let Event::Led { led_ok: None, .. } = event {
                    self.led_changes += 1;
                }
            }
        }
    }

    fn add(&mut self, other: &Self) {
        self.readings += other.readings;
        self.events += other.events;
        self.led_changes += other.led_changes;
        self.lost += other.lost;
    }
}
