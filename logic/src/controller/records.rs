//! What is made known: records, and lines for the operator.

use std::time::Duration;

use super::Controller;
use crate::telemetry::{Body, Event};
use crate::time::Now;
use crate::{Level, Output};

impl Controller {
    /// Makes a record.
    pub(super) fn record(&mut self, body: Body, now: Now) {
        self.outage.note(&body);
        self.counters.record(&body);
        let record = self.recorder.record(body, self.clock.stamp(now));
        self.delivery.add(record, now.boot);
    }

    /// Makes a record of a reading, or with `keep = "latest"` and no link keeps it in place of the one before.
    pub(super) fn record_reading(&mut self, body: Body, now: Now) {
        if self.recorder.keeps_latest() && !self.delivery.is_up() {
            self.recorder.keep(body, self.clock.stamp(now));
        } else {
            self.record(body, now);
        }
    }

    /// The kept reading of an outage becomes a record.
    pub(super) fn record_kept(&mut self) {
        if let Some(record) = self.recorder.take_kept() {
            self.outage.note(&record.body);
            self.counters.record(&record.body);
            let made_at = Duration::from_millis(record.stamp.boot_ms);
            self.delivery.add_replayed(record, made_at);
        }
    }

    /// Records were given up. Each is in a gap that is delivered; the log has one line for an outage.
    pub(super) fn note_lost(&mut self, count: u64, why: &str) {
        if count > 0 && self.outage.note_lost(count) {
            let text = format!("records are given up, which is reported to the server: {why}");
            self.log(Level::Warn, text);
        }
    }

    pub(super) fn observe_clock(&mut self, now: Now) {
        if let Some(set) = self.clock.observe(now) {
            let moved_s = set.moved_ms as f64 / 1000.0;
            self.log(Level::Info, format!("the clock was set by {moved_s} s"));
            let state = self.clock.state();
            let event = Event::Clock { moved_s, state };
            self.record(Body::Event(event), now);
        }
    }

    pub(super) fn log(&mut self, level: Level, text: String) {
        self.outputs.push_back(Output::Log(level, text));
    }
}
