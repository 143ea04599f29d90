//! What decides, joined to its inputs: the newest live readings and the switches by hand in, commands out.
//!
//! Of a burst of readings that waited at the broker only the newest of each device counts. The shell hands
//! readings in, asks when a decision is due, and publishes the commands.

use std::collections::HashMap;
use std::time::Duration;

use tokio::time::Instant;
use uuid::Uuid;

use nightlight_common::config::values::in_words;
use nightlight_logic::time::{Now, rfc3339};

use crate::decision::{Decider, Decision, Moment, Reading, Switches};
use crate::wire;

/// Devices whose newest reading waits to be decided about.
const MAX_READINGS: usize = 100_000;
/// A reading is decided about when nothing newer is there, and after this time in any case.
const DECIDE_WITHIN: Duration = Duration::from_millis(50);

/// Decides about the LEDs.
#[derive(Debug)]
pub(crate) struct Control {
    decider: Decider,
    readings: HashMap<String, Reading>,
    since: Option<Instant>,
    issued_ms: i64,
    expiry_ms: i64,
}

/// What is decided about a device.
#[derive(Debug)]
pub(crate) struct Decided {
    /// The device.
    pub device: String,
    /// The LED; none while its group is in two minds.
    pub led_on: Option<bool>,
    /// The command, as JSON; there is none without a decision.
    pub command: Option<String>,
}

impl Control {
    /// Commands may be on their way for `expiry`.
    pub(crate) fn new(decider: Decider, expiry: Duration) -> Self {
        Self {
            decider,
            readings: HashMap::new(),
            since: None,
            issued_ms: 0,
            expiry_ms: i64::try_from(expiry.as_millis()).unwrap_or(i64::MAX),
        }
    }

    /// A live reading came.
    pub(crate) fn reading(&mut self, device: &str, reading: Reading) {
        if self.readings.len() < MAX_READINGS || self.readings.contains_key(device) {
            self.readings.insert(device.to_owned(), reading);
            self.since.get_or_insert_with(Instant::now);
        }
    }

    /// Whether the sensor of a device works, as it says.
    pub(crate) fn sensor(&mut self, device: &str, works: bool) {
        self.decider.sensor(device, works);
    }

    /// The session is over: what was read in it is of the past.
    pub(crate) fn clear(&mut self) {
        self.readings.clear();
        self.since = None;
    }

    /// Whether it is time to decide; `is_idle` when nothing more has come so far.
    pub(crate) fn is_due(&self, is_idle: bool) -> bool {
        self.since
            .is_some_and(|since| is_idle || since.elapsed() >= DECIDE_WITHIN)
    }

    /// When it will be.
    pub(crate) fn deadline(&self) -> Option<Instant> {
        self.since.map(|since| since + DECIDE_WITHIN)
    }

    /// Decides about the newest readings; commands are for those devices that this server `may` decide about, by
    /// the name of the group, or of the device where it has none.
    pub(crate) fn decide(&mut self, now: Now, may: impl Fn(&str) -> bool) -> Vec<Decided> {
        self.since = None;
        let decided: Vec<(String, Decision)> = std::mem::take(&mut self.readings)
            .into_iter()
            .map(|(device, reading)| {
                let decision = self.decider.read(&device, reading, moment(now));
                (device, decision)
            })
            .collect();
        self.commands(decided, now, may)
    }

    /// Decides again about the devices that were heard of lately, as far as this server `may` from now on.
    pub(crate) fn again(&mut self, now: Now, may: impl Fn(&str) -> bool) -> Vec<Decided> {
        let decided = self.decider.again(moment(now));
        self.commands(decided, now, may)
    }

    /// The name by which it is settled who decides about a device.
    pub(crate) fn subject_of<'a>(&'a self, device: &'a str) -> &'a str {
        self.decider.group_of(device).unwrap_or(device)
    }

    /// How long a command may be on its way, in whole seconds.
    pub(crate) fn expiry_s(&self) -> u32 {
        let seconds = self.expiry_ms.max(0) as u64 / 1_000;
        seconds.clamp(1, u32::MAX.into()) as u32
    }

    /// These are switched by hand from now on, and no others.
    pub(crate) fn switch(
        &mut self,
        switches: Switches,
        now: Now,
        may: impl Fn(&str) -> bool,
    ) -> Vec<Decided> {
        let decided = self.decider.switch(switches, moment(now));
        self.commands(decided, now, may)
    }

    fn commands(
        &mut self,
        decided: Vec<(String, Decision)>,
        now: Now,
        may: impl Fn(&str) -> bool,
    ) -> Vec<Decided> {
        // Devices take an earlier time for an earlier command.
        self.issued_ms = self.issued_ms.max(now.wall_ms);
        let issued_at = rfc3339(self.issued_ms);
        let expires_at = rfc3339(self.issued_ms.saturating_add(self.expiry_ms));
        let command = |decision: Decision| {
            let command = wire::Command {
                led_on: decision.led_on?,
                id: Uuid::new_v4(),
                issued_at: &issued_at,
                expires_at: &expires_at,
                lease: &in_words(decision.lease),
            };
            Some(command.json())
        };
        decided
            .into_iter()
            .filter(|(device, _)| may(self.subject_of(device)))
            .map(|(device, decision)| Decided {
                device,
                led_on: decision.led_on,
                command: command(decision),
            })
            .collect()
    }
}

fn moment(now: Now) -> Moment {
    Moment {
        boot: now.boot,
        wall_ms: now.wall_ms,
    }
}
