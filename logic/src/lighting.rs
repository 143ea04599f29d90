//! Who decides about the LED, and what.
//!
//! ```text
//!             first reading                    command
//!   Starting ---------------> Fallback ----------------------> Remote(lease)
//!      |                       ^  |  ^                              |
//!      | 3 failed reads, or    |  |  +--- lease over, server -------+
//!      | none for 3 intervals  |  |       gone, sensor good         |
//!      v                good   |  | 3 failed, or none               |
//!   SensorFault ---------------+  | for 3 intervals                 |
//!      ^  ^-----------------------+                                 |
//!      +-------- lease over, server gone, sensor bad ---------------+
//! ```
//!
//! Authority is a lease, not a connection: a command holds the LED until the lease has passed without
//! a sign of life from the server, whatever the link does. The state is derived from three facts (the
//! command that holds, the health of the sensor, the mode), so that no transition can be forgotten.
//! The controller calls this with what happened; each call gives back the change of the LED, if any. Time
//! alone changes it by three timers: the sensor's fault, the end of a lease, and the end of a hold.

mod handover;
mod rules;

use std::time::Duration;

use crate::timers::{Timer, Timers};
use crate::words;
pub(crate) use handover::DecisionStamp;
pub use handover::{KeptCommand, KeptDecision};
pub use rules::{FailSafe, Lease, LightingSettings, Mode, Rules, RulesPatch};

/// This many failed reads in a row, or intervals without one, make a sensor fault.
const FAULT_AFTER: u32 = 3;
/// After a goodbye of the server, a command that holds as long as it is there holds so long.
const GOODBYE: Duration = Duration::from_secs(2);
/// Bounds of a lease that comes with a command.
const MIN_LEASE: Duration = Duration::from_secs(1);
const MAX_LEASE: Duration = Duration::from_secs(24 * 3600);

/// Who decides at this moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Authority {
    /// Nobody yet: there was neither a reading nor a command.
    Starting,
    /// The local rule.
    Fallback,
    /// The server.
    Remote {
        /// When its lease ends on the boot clock; `None` while the link is up, or in mode `remote`.
        until: Option<Duration>,
    },
    /// The fail-safe: the sensor cannot be trusted and no command holds.
    SensorFault,
}

impl Authority {
    /// Its name in events and in `state`.
    pub fn by(self) -> &'static str {
        match self {
            Authority::Starting => "start",
            Authority::Fallback => "fallback",
            Authority::Remote { .. } => "remote",
            Authority::SensorFault => "fail-safe",
        }
    }
}

/// The LED changes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Change {
    /// What it becomes.
    pub led_on: bool,
    /// Who decided.
    pub by: &'static str,
    /// Why, in words.
    pub why: String,
}

/// The decision about the LED and what it rests on.
#[derive(Debug, Clone)]
pub struct Lighting {
    settings: LightingSettings,
    led_on: bool,
    changed_at: Option<Duration>,
    active: Option<ActiveCommand>,
    /// Grows when another command holds, or the same for another reason or time.
    active_count: u64,
    /// What an earlier run left, as long as the rules kept on the disk are not known.
    undecided: Option<handover::Undecided>,
    sensor: Sensor,
    light: Option<f64>,
    light_at: Duration,
    /// The light is from before a long pause: it decides nothing.
    is_old: bool,
    failures: u32,
    /// Why the last try to read failed, in words.
    failure: String,
    moved_at: Duration,
    sensor_why: String,
    /// The link is up, and somebody listens as far as can be known.
    may_be_there: bool,
    /// The server has said that it goes away, and nothing since.
    has_left: bool,
    decided: Authority,
    decided_at: Duration,
    /// Who decided before a restart, as long as nobody has decided since.
    inherited_by: Option<&'static str>,
    why: String,
}

/// The command that holds the LED.
#[derive(Debug, Clone, PartialEq, Eq)]
struct ActiveCommand {
    led_on: bool,
    lease: Lease,
    until: Option<Duration>,
    why: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Sensor {
    Unknown,
    Good,
    Faulty,
}

impl Lighting {
    /// Begins with the LED as it is found.
    pub fn new(
        settings: LightingSettings,
        led_on: bool,
        now: Duration,
        timers: &mut Timers,
    ) -> Self {
        let lighting = Self {
            settings,
            led_on,
            changed_at: None,
            active: None,
            active_count: 0,
            undecided: None,
            sensor: Sensor::Unknown,
            light: None,
            light_at: now,
            is_old: false,
            failures: 0,
            failure: String::new(),
            moved_at: now,
            sensor_why: String::new(),
            may_be_there: false,
            has_left: false,
            decided: Authority::Starting,
            decided_at: now,
            inherited_by: None,
            why: "no reading yet".into(),
        };
        lighting.expect_reading(now, timers);
        lighting
    }

    /// The sensor gave `light`.
    pub fn read(&mut self, light: f64, now: Duration, timers: &mut Timers) -> Option<Change> {
        if self.light != Some(light) {
            self.moved_at = now;
        }
        self.light = Some(light);
        self.light_at = now;
        self.is_old = false;
        self.failures = 0;
        let frozen_after = self.settings.frozen_after;
        if !frozen_after.is_zero() && now >= self.moved_at + frozen_after {
            let seconds = frozen_after.as_secs_f64();
            let why = format!("the same reading {} for {seconds} s", words::light(light));
            self.fault(why, timers);
        } else {
            self.sensor = Sensor::Good;
            self.sensor_why = String::new();
            self.expect_reading(now, timers);
        }
        self.decide(now, timers)
    }

    /// The sensor gave nothing, and why.
    pub fn read_failed(&mut self, why: &str, now: Duration, timers: &mut Timers) -> Option<Change> {
        self.failures = self.failures.saturating_add(1);
        why.clone_into(&mut self.failure);
        if self.failures >= FAULT_AFTER {
            self.fault(why.to_owned(), timers);
            // The newest reason is the one to act on.
            why.clone_into(&mut self.sensor_why);
        }
        self.decide(now, timers)
    }

    /// The server decided. `lease` is the command's own, kept within 1 s and 24 h.
    pub fn command(
        &mut self,
        led_on: bool,
        lease: Option<Duration>,
        why: String,
        now: Duration,
        timers: &mut Timers,
    ) -> Option<Change> {
        let lease = match lease {
            Some(own) => Lease::For(own.clamp(MIN_LEASE, MAX_LEASE)),
            None => self.settings.lease,
        };
        self.has_left = false;
        let active = Some(ActiveCommand {
            led_on,
            lease,
            until: lease.end(now, self.is_server_there()),
            why,
        });
        if self.active != active {
            self.active = active;
            self.active_count += 1;
        }
        self.decide(now, timers)
    }

    /// A sign of life from the server: the command that holds goes on holding.
    pub fn server_alive(&mut self, now: Duration, timers: &mut Timers) {
        self.has_left = false;
        let is_there = self.is_server_there();
        if let Some(active) = &mut self.active
            && active.until.is_none_or(|until| now < until)
        {
            active.until = active.lease.end(now, is_there);
        }
        self.expect_lease_end(timers);
    }

    /// The server said that it goes away. A command that holds as long as it is there waits a moment: a broker that
    /// stops says so of everybody, and then the link goes down too.
    pub fn server_gone(&mut self, now: Duration, timers: &mut Timers) -> Option<Change> {
        self.has_left = true;
        match &mut self.active {
            _ if self.settings.mode == Mode::Remote => {}
            Some(active) if matches!(active.lease, Lease::WhilePresent(_)) => {
                let soon = now + GOODBYE;
                active.until = Some(active.until.map_or(soon, |until| until.min(soon)));
            }
            _ => self.active = None,
        }
        self.decide(now, timers)
    }

    /// Whether the link is up, and somebody listens as far as can be known. A command that holds as long as the
    /// server is there begins to run out when it is not, and no longer does when it is back in time.
    pub fn server_may_be_there(&mut self, may_be: bool, now: Duration, timers: &mut Timers) {
        if self.may_be_there != may_be {
            self.may_be_there = may_be;
            self.follow_presence(now);
            self.expect_lease_end(timers);
        }
    }

    /// The link is down: what holds while linked holds no more.
    pub fn link_down(&mut self, now: Duration, timers: &mut Timers) -> Option<Change> {
        // Each try to connect that fails comes here too; what runs out begins with the first.
        let was_there = self.may_be_there;
        // Whoever said goodbye just before may have been cut off by the broker, as we were.
        self.has_left = false;
        self.may_be_there = false;
        match &mut self.active {
            _ if self.settings.mode == Mode::Remote => {}
            Some(active) if active.lease == Lease::WhileLinked => self.active = None,
            Some(active)
                if matches!(active.lease, Lease::WhilePresent(_))
                    && was_there
                    && active.until.is_none_or(|until| now < until) =>
            {
                active.until = active.lease.end(now, false);
            }
            _ => {}
        }
        self.decide(now, timers)
    }

    /// New rules, already checked.
    pub fn set_rules(
        &mut self,
        rules: Rules,
        now: Duration,
        timers: &mut Timers,
    ) -> Option<Change> {
        let is_new_interval = rules.interval != self.settings.interval;
        self.settings.set_rules(rules);
        if is_new_interval && self.sensor != Sensor::Faulty {
            self.expect_reading(now, timers);
        }
        self.decide(now, timers)
    }

    /// The program did not run for so long: that is not the sensor's fault. After a long pause the light from
    /// before it decides nothing, and the LED stays as it is until there is a new one, or the sensor fails.
    pub(crate) fn paused(&mut self, pause: Duration, is_long: bool, timers: &mut Timers) {
        timers.delay(Timer::SensorFault, pause);
        self.moved_at += pause;
        self.is_old |= is_long && self.light.is_some();
    }

    /// One of [`Timer::DECIDING`] has expired.
    pub fn expired(&mut self, timer: Timer, now: Duration, timers: &mut Timers) -> Option<Change> {
        if timer == Timer::SensorFault {
            let why = match self.failures {
                0 => "no reading for three intervals".into(),
                _ => self.failure.clone(),
            };
            self.fault(why, timers);
        }
        self.decide(now, timers)
    }

    /// Who decides.
    pub fn authority(&self) -> Authority {
        let local = match self.sensor {
            Sensor::Unknown => Authority::Starting,
            Sensor::Good => Authority::Fallback,
            Sensor::Faulty => Authority::SensorFault,
        };
        match (self.settings.mode, &self.active) {
            (Mode::Local, _) | (Mode::Auto, None) => local,
            (Mode::Auto, Some(active)) => Authority::Remote {
                until: active.until,
            },
            (Mode::Remote, Some(_)) => Authority::Remote { until: None },
            (Mode::Remote, None) => Authority::Starting,
        }
    }

    /// Who decided: as in [`Authority::by`], and of a run that has not decided yet the one before it.
    pub fn by(&self) -> &'static str {
        match (self.authority(), self.inherited_by) {
            (Authority::Starting, Some(by)) => by,
            (state, _) => state.by(),
        }
    }

    /// The LED.
    pub fn led_on(&self) -> bool {
        self.led_on
    }

    /// When the LED or its decider last changed (boot clock).
    pub fn since(&self) -> Duration {
        self.decided_at
    }

    /// Why it is as it is, in words.
    pub fn why(&self) -> &str {
        &self.why
    }

    /// The last light, in the sensor's unit; `None` while the sensor is not to be trusted.
    pub fn light(&self) -> Option<f64> {
        self.light.filter(|_| self.sensor_ok())
    }

    /// How long ago the last reading was, if there was one.
    pub(crate) fn light_age(&self, now: Duration) -> Option<Duration> {
        self.light.map(|_| now.saturating_sub(self.light_at))
    }

    /// Whether the sensor gives readings; true until it has failed.
    pub fn sensor_ok(&self) -> bool {
        self.sensor != Sensor::Faulty
    }

    /// Why the sensor is not trusted, in words; empty when it is.
    pub fn sensor_why(&self) -> &str {
        &self.sensor_why
    }

    /// The rules in force.
    pub fn settings(&self) -> &LightingSettings {
        &self.settings
    }

    fn decide(&mut self, now: Duration, timers: &mut Timers) -> Option<Change> {
        // Mode `local` does not look at it, but must not keep it beyond its time for another mode.
        if self.settings.mode != Mode::Remote
            && self
                .active
                .as_ref()
                .is_some_and(|active| active.until.is_some_and(|until| now >= until))
        {
            self.active = None;
        }
        self.expect_lease_end(timers);
        timers.stop(Timer::Hold);
        let state = self.authority();
        let (led_on, why) = match state {
            Authority::Starting => (self.led_on, String::new()),
            Authority::Remote { .. } => match &self.active {
                Some(active) => (active.led_on, active.why.clone()),
                None => (self.led_on, String::new()),
            },
            Authority::Fallback => self.fallback(now, timers),
            Authority::SensorFault => self.fail_safe(),
        };
        let entered = state.by() != self.decided.by();
        self.decided = state;
        let changed = led_on != self.led_on;
        if (entered || changed || matches!(state, Authority::Remote { .. })) && !why.is_empty() {
            self.why = why;
        }
        if entered || changed {
            self.decided_at = now;
            self.inherited_by = None;
        }
        if !changed {
            return None;
        }
        self.led_on = led_on;
        self.changed_at = Some(now);
        Some(Change {
            led_on,
            by: state.by(),
            why: self.why.clone(),
        })
    }

    /// The local rule with its hold.
    fn fallback(&self, now: Duration, timers: &mut Timers) -> (bool, String) {
        let Some(light) = self.light else {
            return (self.led_on, String::new());
        };
        let LightingSettings {
            on_below,
            off_above,
            ..
        } = self.settings;
        if self.is_old {
            return (
                self.led_on,
                "waits for the first reading after a pause".into(),
            );
        }
        let shown = words::light_beside(light, &[on_below, off_above]);
        let (led_on, why) = if light < on_below {
            (true, format!("light {shown} is below {on_below}"))
        } else if light > off_above {
            (false, format!("light {shown} is above {off_above}"))
        } else {
            let why = format!("light {shown} is between {on_below} and {off_above}: unchanged");
            (self.led_on, why)
        };
        let hold_over = self.changed_at.map(|at| at + self.settings.hold);
        match hold_over.filter(|over| led_on != self.led_on && now < *over) {
            Some(over) => {
                timers.set(Timer::Hold, over);
                (self.led_on, format!("light {shown}, held"))
            }
            None => (led_on, why),
        }
    }

    fn fail_safe(&self) -> (bool, String) {
        let why = "the sensor is not to be trusted and no command holds".to_string();
        match self.settings.fail_safe {
            FailSafe::On => (true, why),
            FailSafe::Off => (false, why),
            FailSafe::Keep => (self.led_on, why),
        }
    }

    fn fault(&mut self, why: String, timers: &mut Timers) {
        timers.stop(Timer::SensorFault);
        if self.sensor != Sensor::Faulty {
            self.sensor = Sensor::Faulty;
            self.sensor_why = why;
        }
    }

    fn is_server_there(&self) -> bool {
        self.may_be_there && !self.has_left
    }

    fn follow_presence(&mut self, now: Duration) {
        let is_there = self.is_server_there();
        if let Some(active) = &mut self.active
            && let Lease::WhilePresent(_) = active.lease
            && active.until.is_none_or(|until| now < until)
        {
            active.until = match is_there {
                true => None,
                false => active.until.or(active.lease.end(now, false)),
            };
        }
    }

    fn expect_reading(&self, now: Duration, timers: &mut Timers) {
        timers.set(
            Timer::SensorFault,
            now + self.settings.interval * FAULT_AFTER,
        );
    }

    fn expect_lease_end(&self, timers: &mut Timers) {
        let active = self.active.as_ref();
        let until = active.filter(|_| self.settings.mode != Mode::Remote);
        timers.set_or_stop(Timer::Lease, until.and_then(|active| active.until));
    }
}
