//! When Home Assistant is told of this device, and when that is taken back.
//!
//! - The message is retained, and goes out in each session, again when Home Assistant says that it has started (after
//!   a random moment, since all devices hear that at once), and when readings begin to come at another interval.
//! - The disk remembers the topic on which it lies. Where discovery is off, or on by another name, an empty message
//!   there takes it back, once: the broker's answer ends that. A topic that was never announced on is never touched.
//! - Until the disk has said what it remembers, nothing goes out.

use std::time::Duration;

use super::Controller;
use crate::delivery::Topic;
use crate::home_assistant::{self, Cadence, DiscoverySettings};
use crate::link::Sent;
use crate::telemetry::TelemetrySettings;
use crate::time::Now;
use crate::timers::Timer;
use crate::{Level, Output};

/// When Home Assistant has started, it is told after this, and up to the second later.
const TELL_AFTER: Duration = Duration::from_secs(1);
const TELL_SPREAD: Duration = Duration::from_secs(4);

/// What is announced, and where that stands.
#[derive(Debug, Clone)]
pub(super) struct Discovery {
    /// None: it is off.
    settings: Option<DiscoverySettings>,
    telemetry_interval: Duration,
    is_sparse: bool,
    rng: fastrand::Rng,
    remembered: Remembered,
    under_way: Option<UnderWay>,
    is_due: bool,
    /// In this session the broker does not let us take it back.
    is_refused: bool,
    announced: Option<Cadence>,
}

/// The topic on which a message lies, as far as the disk knows.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Remembered {
    /// The disk has not answered.
    Unknown,
    Nothing,
    Topic(String),
}

/// What the broker has not answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum UnderWay {
    Announcement,
    Withdrawal,
}

impl Discovery {
    pub(super) fn new(
        settings: Option<DiscoverySettings>,
        telemetry: &TelemetrySettings,
        seed: u64,
    ) -> Self {
        Self {
            settings,
            telemetry_interval: telemetry.interval,
            is_sparse: telemetry.deadband > 0.0,
            rng: fastrand::Rng::with_seed(seed.rotate_left(32)),
            remembered: Remembered::Unknown,
            under_way: None,
            is_due: false,
            is_refused: false,
            announced: None,
        }
    }

    /// A session begins: what the last one left unanswered is open again.
    pub(super) fn link_up(&mut self) {
        self.is_due = true;
        self.is_refused = false;
        self.under_way = None;
    }

    /// It is to go out again.
    pub(super) fn expire(&mut self) {
        self.is_due = true;
    }

    /// Whether the server's status is Home Assistant's.
    pub(super) fn is_servers(&self) -> bool {
        let settings = self.settings.as_ref();
        settings.is_some_and(|settings| settings.status_is_servers)
    }
}

impl Controller {
    /// The disk has said on which topic a message of earlier runs lies.
    pub(super) fn announced_found(&mut self, topic: Option<String>) {
        self.discovery.remembered = topic.map_or(Remembered::Nothing, Remembered::Topic);
    }

    /// Something came on Home Assistant's status topic. What the broker kept there is not about now.
    pub(super) fn home_assistant_said(&mut self, payload: &[u8], retained: bool, now: Now) {
        let has_started = payload.eq_ignore_ascii_case(b"online") && !retained;
        if has_started && self.discovery.settings.is_some() {
            let spread = TELL_SPREAD.mul_f64(self.discovery.rng.f64());
            let at = now.boot + TELL_AFTER + spread;
            self.timers.set(Timer::HomeAssistant, at);
        }
    }

    /// Announces, or takes back, what is due; one after the other.
    pub(super) fn tell_home_assistant(&mut self) {
        if let Some(is_taken) = self.delivery.take_discovery_answer()
            && let Some(under_way) = self.discovery.under_way.take()
        {
            self.discovery_answered(under_way, is_taken);
        }
        let is_open = self.delivery.is_up() && self.stopping.is_none();
        if !is_open || self.discovery.under_way.is_some() {
            return;
        }
        let own = self.device.topics.get(&Sent::Publish(Topic::Discovery));
        let own = own.filter(|_| self.discovery.settings.is_some()).cloned();
        match (&self.discovery.remembered, own) {
            (Remembered::Unknown, _) | (Remembered::Nothing, None) => {}
            (Remembered::Topic(old), own) if own.as_ref() != Some(old) => {
                if !self.discovery.is_refused {
                    let old = old.clone();
                    self.discovery.under_way = Some(UnderWay::Withdrawal);
                    self.delivery.withdraw_discovery(old);
                }
            }
            (remembered, Some(own)) => {
                let is_new = *remembered == Remembered::Nothing;
                self.announce_device(own, is_new);
            }
            (Remembered::Topic(_), None) => {}
        }
    }

    fn announce_device(&mut self, topic: String, is_new: bool) {
        let Some(settings) = &self.discovery.settings else {
            return;
        };
        let interval = self.lighting.settings().interval;
        let cadence = Cadence {
            interval: interval.max(self.discovery.telemetry_interval),
            is_sparse: self.discovery.is_sparse,
        };
        if !self.discovery.is_due && self.discovery.announced == Some(cadence) {
            return;
        }
        let version = &self.run_info.version;
        let message = home_assistant::announcement(settings, &self.device, version, cadence);
        self.discovery.is_due = false;
        self.discovery.announced = Some(cadence);
        self.discovery.under_way = Some(UnderWay::Announcement);
        if is_new {
            let text = format!("announced to Home Assistant on {topic}");
            self.log(Level::Info, text);
            // Before it goes out: what nobody remembers is never taken back.
            let kept = Some(topic.clone());
            self.outputs.push_back(Output::KeepAnnounced(kept));
            self.discovery.remembered = Remembered::Topic(topic);
        }
        self.delivery
            .publish_control(Topic::Discovery, message, true);
    }

    fn discovery_answered(&mut self, under_way: UnderWay, is_taken: bool) {
        match (under_way, is_taken) {
            (UnderWay::Announcement, _) => {}
            (UnderWay::Withdrawal, false) => self.discovery.is_refused = true,
            (UnderWay::Withdrawal, true) => {
                if let Remembered::Topic(old) = &self.discovery.remembered {
                    let text = format!("taken back from Home Assistant: nothing lies on {old}");
                    self.log(Level::Info, text);
                }
                self.discovery.remembered = Remembered::Nothing;
                self.outputs.push_back(Output::KeepAnnounced(None));
            }
        }
    }
}
