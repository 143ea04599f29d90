//! The link comes and goes: what that means for the other parts, and what the operator is told of it.

use super::Controller;
use crate::delivery::Topic;
use crate::link::{Ending, HELD};
use crate::outage::Cause;
use crate::telemetry::{Body, Event, OutageReport};
use crate::time::{Now, Stamp};
use crate::{Level, Output, words};

/// More reasons for a lost link are not told in one outage.
const MAX_LINK_REASONS: usize = 8;
/// A link that is up and does not answer is looked at again after this.
const LOOK_AGAIN: std::time::Duration = std::time::Duration::from_secs(1);

impl Controller {
    pub(super) fn link_up(&mut self, now: Now) {
        // Of several sessions in one outage, the first is told; then only that one of them holds.
        if !std::mem::replace(&mut self.link_up_reported, true) {
            self.log(Level::Info, "link up".into());
        }
        self.take_kept();
        self.delivery.link_up(now.boot);
        self.commands.link_up(now.boot);
        self.delivery
            .publish_control(Topic::Status, b"online".to_vec(), true);
        self.announced = None;
        self.outage.link_back(self.clock.stamp(now), now.boot);
        self.held_at = Some(now.boot + HELD);
    }

    pub(super) fn link_down(&mut self, why: &str, ending: Ending, now: Now) {
        self.held_at = None;
        let session = self.delivery.link_down(ending, &self.clock, now.boot);
        let mut why = why.to_owned();
        let mut after = String::new();
        if let Some(session) = session {
            after = format!(" after {:.1} s", session.length.as_secs_f64());
            if ending == Ending::Closed {
                why = format!("{why}; {}", session.in_words(&self.device));
            }
        }
        // Each try of an outage fails for one of a few reasons, in turn: each is told once.
        if !self.link_reported.contains(&why) && self.link_reported.len() < MAX_LINK_REASONS {
            self.log(Level::Warn, format!("link down{after}: {why}"));
            self.link_reported.push(why.clone());
        }
        self.report_pattern();
        if self.stopping.is_none() {
            // A link that never was is an outage since the start.
            let began = match self.starting {
                Some((stamp, _)) => stamp,
                None => self.clock.stamp(now),
            };
            self.outage.begin(Cause::Link, &why, began, now.boot);
            let was = self.lighting.authority();
            let change = self.lighting.link_down(now.boot);
            self.lease_over(was, now);
            self.apply(change);
        }
        self.link_why = why;
    }

    /// Leaves a broker that confirms nothing, and ends the outage of a link that holds.
    pub(super) fn watch_link(&mut self, now: Now) {
        if self.delivery.is_stalled(now.boot) {
            self.outputs.push_back(Output::Disconnect);
            let why = "the broker has not confirmed a publication in time: connecting again";
            self.link_down(why, Ending::Stalled, now);
        }
        if self.held_at.is_some_and(|at| now.boot >= at) && self.stopping.is_none() {
            match self.delivery.is_answered(now.boot) {
                true => self.link_held(now),
                false => self.held_at = Some(now.boot + LOOK_AGAIN),
            }
        }
        self.report_pattern();
    }

    /// The link has held for long enough, or nobody will see whether it does.
    pub(super) fn link_held(&mut self, now: Now) {
        self.held_at = None;
        self.link_up_reported = false;
        self.link_reported.clear();
        self.link_why.clear();
        let boot_id = self.run_info.boot_id;
        let claim = |stamp: Stamp| self.clock.claim(stamp, boot_id).0;
        let report = self.outage.link_held(claim);
        self.outage_over(report, now);
    }

    /// The server gives a sign of life.
    pub(super) fn server_heard(&mut self, now: Now) {
        let ended = self.clock.stamp(now);
        let boot_id = self.run_info.boot_id;
        let claim = |stamp: Stamp| self.clock.claim(stamp, boot_id).0;
        let report = self.outage.server_heard(ended, now.boot, claim);
        self.outage_over(report, now);
    }

    /// What is wrong with the link, in words; empty when nothing is known to be.
    pub(super) fn link_why(&self) -> String {
        let pattern = self.delivery.pattern();
        let pattern = pattern.map(|pattern| pattern.in_words(&self.device));
        match (self.delivery.is_up(), pattern) {
            (true, pattern) => pattern.unwrap_or_default(),
            (false, None) => self.link_why.clone(),
            (false, Some(pattern)) => format!("{}. {pattern}", self.link_why),
        }
    }

    fn outage_over(&mut self, report: Option<OutageReport>, now: Now) {
        let Some(report) = report else {
            return;
        };
        let text = format!(
            "an outage of {} is over: {}, {}, {}; {} did not hold",
            words::span_s(report.seconds),
            words::counted(report.readings, "reading"),
            words::counted(report.led_changes, "LED change"),
            report.lost_in_words(),
            words::counted(report.short_sessions, "session")
        );
        self.log(Level::Info, text);
        self.record(Body::Event(Event::Outage(report)), now);
    }

    /// What several sessions have in common is told when it shows and when it has passed.
    fn report_pattern(&mut self) {
        let pattern = self.delivery.pattern();
        if pattern == self.pattern_reported {
            return;
        }
        match &pattern {
            Some(pattern) => {
                let text = pattern.in_words(&self.device);
                self.log(Level::Warn, text);
            }
            None => self.log(Level::Info, "the link is steady again".into()),
        }
        self.pattern_reported = pattern;
    }
}
