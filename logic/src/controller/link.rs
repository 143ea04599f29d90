//! The link comes and goes: what that means for the other parts, and what the operator is told of it.

use super::Controller;
use crate::delivery::Topic;
use crate::link::{Ending, HELD, Pattern};
use crate::outage::Cause;
use crate::telemetry::{Body, Event, OutageReport};
use crate::time::{Now, Stamp, rfc3339};
use crate::timers::Timer;
use crate::{Level, Output, words};

/// More reasons for a lost link are not told in one outage.
const MAX_LINK_REASONS: usize = 8;
/// Outages that wait for somebody to take note of them.
const MAX_OUTAGES_OVER: usize = 8;
/// A link that is up and does not answer is looked at again after this.
const LOOK_AGAIN: std::time::Duration = std::time::Duration::from_secs(1);

/// What was said of the link, so that each thing is said once.
#[derive(Debug, Clone)]
pub(super) struct LinkReports {
    /// Why the last session ended, or there was none; empty once a link has held.
    why: String,
    /// Reasons reported in this outage.
    reasons: Vec<String>,
    /// It was reported that the link is up again.
    up: bool,
    pattern: Option<Pattern>,
    /// Since when nobody listens to the readings, as was reported.
    unheard_since: Option<Stamp>,
}

impl LinkReports {
    pub(super) fn new() -> Self {
        Self {
            why: "not connected yet".into(),
            reasons: Vec::new(),
            up: false,
            pattern: None,
            unheard_since: None,
        }
    }

    /// Whether to report that the link is up: of several sessions in one outage, only the first.
    fn up(&mut self) -> bool {
        !std::mem::replace(&mut self.up, true)
    }

    /// Whether to report why it is down. Each try of an outage fails for one of a few reasons, in turn.
    fn down(&mut self, why: String) -> bool {
        let is_new = !self.reasons.contains(&why) && self.reasons.len() < MAX_LINK_REASONS;
        if is_new {
            self.reasons.push(why.clone());
        }
        self.why = why;
        is_new
    }

    /// The link has held: the next outage is reported afresh.
    fn held(&mut self) {
        self.up = false;
        self.reasons.clear();
        self.why.clear();
    }

    /// Whether to report what the last sessions have in common, or that it has passed.
    fn pattern(&mut self, pattern: Option<&Pattern>) -> bool {
        let is_new = self.pattern.as_ref() != pattern;
        if is_new {
            self.pattern = pattern.cloned();
        }
        is_new
    }
}

impl Controller {
    pub(super) fn link_up(&mut self, now: Now) {
        if self.link.up() {
            self.log(Level::Info, "link up".into());
        }
        self.counters.sessions += 1;
        self.record_kept();
        self.delivery.link_up(now.boot, &mut self.timers);
        self.commands.link_up(now.boot, &mut self.timers);
        self.delivery
            .publish_control(Topic::Status, b"online".to_vec(), true);
        self.announcer.expire();
        self.discovery.link_up();
        self.outage.link_back(self.clock.stamp(now), now.boot);
        self.timers.set(Timer::LinkHeld, now.boot + HELD);
    }

    pub(super) fn link_down(&mut self, why: &str, ending: Ending, now: Now) {
        self.timers.stop(Timer::LinkHeld);
        let session = self
            .delivery
            .link_down(ending, &self.clock, now.boot, &mut self.timers);
        let mut why = why.to_owned();
        let mut after = String::new();
        if let Some(session) = session {
            after = format!(" after {:.1} s", session.length.as_secs_f64());
            if ending == Ending::Closed {
                why = format!("{why}; {}", session.in_words(&self.device));
            }
        }
        if self.link.down(why.clone()) {
            self.log(Level::Warn, format!("link down{after}: {why}"));
        }
        self.report_pattern();
        if self.stopping.is_none() {
            // A link that never was is an outage since the start.
            let began = self.startup.began();
            let began = began.unwrap_or_else(|| self.clock.stamp(now));
            self.outage.begin(Cause::Link, &why, began, now.boot);
            self.decide(now, |lighting, timers| lighting.link_down(now.boot, timers));
        }
    }

    /// A broker that confirms nothing is left.
    pub(super) fn look_for_answers(&mut self, now: Now) {
        if !self.delivery.is_stalled(now.boot) {
            return;
        }
        self.outputs.push_back(Output::Disconnect);
        let why = "the broker has not confirmed a publication in time: connecting again";
        self.link_down(why, Ending::Stalled, now);
    }

    /// That nobody listens is told once, and that it is over.
    pub(super) fn report_hearing(&mut self, now: Now) {
        let unheard_since = self.link.unheard_since;
        let heard = match self.delivery.heard() {
            Some(heard) if heard == unheard_since.is_some() => heard,
            _ => return,
        };
        let boot_id = self.run_info.boot_id;
        let stamp = unheard_since.unwrap_or_else(|| self.clock.stamp(now));
        let since = rfc3339(self.clock.claim(stamp, boot_id).0);
        let (level, text) = match heard {
            false => (
                Level::Warn,
                "nobody listens to the readings: the broker takes them and hands them to no one"
                    .into(),
            ),
            true => (
                Level::Info,
                format!("somebody listens to the readings again; nobody did since {since}"),
            ),
        };
        self.log(level, text);
        self.link.unheard_since = (!heard).then_some(stamp);
        self.record(Body::Event(Event::Heard { heard, since }), now);
    }

    /// The link has been up for long enough: it has held, if the broker answers.
    pub(super) fn look_at_link(&mut self, now: Now) {
        match self.delivery.is_answered(now.boot) {
            true => self.link_held(now),
            false => self.timers.set(Timer::LinkHeld, now.boot + LOOK_AGAIN),
        }
    }

    /// The link has held, or nobody will see whether it does.
    pub(super) fn link_held(&mut self, now: Now) {
        self.timers.stop(Timer::LinkHeld);
        self.link.held();
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
            (false, None) => self.link.why.clone(),
            (false, Some(pattern)) => format!("{}; {pattern}", self.link.why),
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
        self.counters.outage(&report);
        if self.outages_over.len() >= MAX_OUTAGES_OVER {
            self.outages_over.remove(0);
        }
        self.outages_over.push(report.clone());
        self.record(Body::Event(Event::Outage(Box::new(report))), now);
    }

    /// What several sessions have in common is reported when it shows and when it has passed.
    pub(super) fn report_pattern(&mut self) {
        let pattern = self.delivery.pattern();
        if !self.link.pattern(pattern.as_ref()) {
            return;
        }
        match pattern {
            Some(pattern) => self.log(Level::Warn, pattern.in_words(&self.device)),
            None => self.log(Level::Info, "the link is steady again".into()),
        }
    }
}
