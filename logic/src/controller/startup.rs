//! The first record of the run. It names the run before, and waits for the store to say which that was, but not
//! longer than 10 s; no other record is delivered before it.

use std::time::Duration;

use uuid::Uuid;

use super::Controller;
use crate::telemetry::{Body, Event};
use crate::time::{Now, Stamp};
use crate::timers::{Timer, Timers};

/// The first record waits so long for the store to name the run before.
const MAX_WAIT: Duration = Duration::from_secs(10);

/// The start of the run, until its first record is finished.
#[derive(Debug, Clone)]
pub(super) struct Startup {
    began: Option<Stamp>,
}

impl Startup {
    pub(super) fn new(began: Stamp, now: Duration, timers: &mut Timers) -> Self {
        timers.set(Timer::FirstRecord, now + MAX_WAIT);
        Self { began: Some(began) }
    }

    /// When the run began, if its first record is not finished.
    pub(super) fn began(&self) -> Option<Stamp> {
        self.began
    }

    fn finish(&mut self, timers: &mut Timers) -> Option<Stamp> {
        timers.stop(Timer::FirstRecord);
        self.began.take()
    }
}

impl Controller {
    /// Finishes the first record, if that is still to be done.
    pub(super) fn finish_first_record(&mut self, previous: Option<(Uuid, u64)>, now: Now) {
        let Some(stamp) = self.startup.finish(&mut self.timers) else {
            return;
        };
        let body = Body::Event(Event::Started {
            version: self.run_info.version.clone(),
            previous_run: previous.map(|(run, _)| run),
            previous_seq: previous.map(|(_, seq)| seq),
        });
        self.counters.record(&body);
        let record = self.recorder.first(body, stamp);
        self.delivery.add(record, now.boot);
    }
}
