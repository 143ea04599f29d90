//! The picture of the device at one moment.
//!
//! The controller makes it; it is published as `state`, shown by `nightlight status`, the status page and
//! the demonstration. It is only looked at: nothing is decided by it.

use std::fmt;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::lighting::{Mode, Rules, RulesPatch};
use super::telemetry::{OutageReport, PlainNumber};
use super::time::ClockState;

/// The picture of the device at one moment.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct View {
    /// The LED as last written or read back; `None` if it never was.
    pub led_on: Option<bool>,
    /// What it is to be.
    pub led_wanted: bool,
    /// Whether it can be written.
    pub led_ok: bool,
    /// Why it cannot, in words; empty when it can.
    pub led_why: String,
    /// Who decides: `start`, `fallback`, `remote` or `fail-safe`.
    pub by: String,
    /// Why the LED is as it is, in words.
    pub why: String,
    /// For how many seconds that has been so.
    pub since: f64,
    /// The last light, in the sensor's unit; `None` while the sensor gives none that can be trusted.
    pub light: Option<f64>,
    /// How long ago the last reading was, in seconds.
    pub light_age: Option<f64>,
    /// The rules in force.
    pub rules: Rules,
    /// Those of them that a command set for good; they stand over the configuration.
    pub kept_rules: RulesPatch,
    /// Records that are not confirmed and not just being delivered live.
    pub backlog: u64,
    /// Whether the backlog's store is open and takes records; else memory alone has them.
    pub store_ok: bool,
    /// When the oldest of them was made, RFC 3339, as the clock was then.
    pub backlog_oldest: Option<String>,
    /// What the wall clock is worth.
    pub clock: ClockState,
    /// The version of the program.
    pub version: String,
    /// This run.
    pub run: Uuid,
    /// The number of its newest record.
    pub last_seq: u64,
    /// Whether the link is up.
    pub link_up: bool,
    /// Why the link is down, in words, and what is wrong with it though it is up; else empty.
    pub link_why: String,
    /// Whether the sensor gives readings.
    pub sensor_ok: bool,
    /// Why it does not, in words; empty when it does.
    pub sensor_why: String,
    /// Seconds until the lease ends, if one runs.
    pub lease_left: Option<f64>,
    /// How long the outage under way lasts, in seconds.
    pub outage: Option<f64>,
    /// The last outage that is over.
    pub last_outage: Option<OutageReport>,
    /// Commands refused since the start.
    pub commands_refused: u64,
    /// Results that a flood of commands left no room for, since the start.
    pub results_dropped: u64,
}

impl View {
    /// The payload of the `state` topic.
    pub fn announcement(&self) -> String {
        #[derive(Serialize)]
        struct Announcement<'a> {
            led_on: Option<bool>,
            led_ok: bool,
            by: &'a str,
            why: &'a str,
            light: Option<PlainNumber>,
            sensor_ok: bool,
            mode: Mode,
            on_below: PlainNumber,
            off_above: PlainNumber,
            interval: String,
            backlog: u64,
            store_ok: bool,
            clock: ClockState,
            version: &'a str,
        }
        let announcement = Announcement {
            led_on: self.led_on,
            led_ok: self.led_ok,
            by: &self.by,
            why: &self.why,
            light: self.light.map(PlainNumber),
            sensor_ok: self.sensor_ok,
            mode: self.rules.mode,
            on_below: PlainNumber(self.rules.on_below),
            off_above: PlainNumber(self.rules.off_above),
            interval: format!("{:?}", self.rules.interval),
            backlog: self.backlog,
            store_ok: self.store_ok,
            clock: self.clock,
            version: &self.version,
        };
        serde_json::to_string(&announcement).unwrap_or_default()
    }
}

/// One screen for a person.
impl fmt::Display for View {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let light = match self.light {
            Some(light) => light.to_string(),
            None => match self.light_age {
                Some(age) => format!("not known; the last reading was {} ago", in_words(age)),
                None => "no reading yet".into(),
            },
        };
        writeln!(f, "light     {light}")?;
        let since = in_words(self.since);
        let (led, wanted) = (on_off(self.led_on), on_off(Some(self.led_wanted)));
        let (by, why) = (&self.by, &self.why);
        match self.led_ok && self.led_on == Some(self.led_wanted) {
            true => writeln!(f, "LED       {led}, by {by} for {since}: {why}")?,
            false => {
                writeln!(
                    f,
                    "LED       {led}; is to be {wanted}, by {by} for {since}: {why}"
                )?;
            }
        }
        if !self.led_ok {
            writeln!(f, "          cannot be written: {}", self.led_why)?;
        }
        match self.lease_left {
            Some(left) => writeln!(f, "lease     {} left", in_words(left))?,
            None => writeln!(f, "lease     none runs")?,
        }
        let Rules {
            mode,
            on_below,
            off_above,
            interval,
        } = self.rules;
        let mode = mode.name();
        writeln!(
            f,
            "rules     {mode}; on below {on_below}, off above {off_above}, read every {interval:?}"
        )?;
        if !self.kept_rules.is_empty() {
            writeln!(f, "          kept by a command: {}", self.kept_rules)?;
        }
        match self.link_up {
            true if self.link_why.is_empty() => writeln!(f, "link      up")?,
            true => writeln!(f, "link      up, but {}", self.link_why)?,
            false => writeln!(f, "link      down: {}", self.link_why)?,
        }
        match &self.backlog_oldest {
            Some(oldest) if self.backlog > 0 => {
                writeln!(
                    f,
                    "backlog   {} records, the oldest of {oldest}",
                    self.backlog
                )?;
            }
            _ => writeln!(f, "backlog   {} records", self.backlog)?,
        }
        if !self.store_ok {
            writeln!(
                f,
                "store     not to be written; records are in memory alone"
            )?;
        }
        match (self.outage, &self.last_outage) {
            (Some(outage), _) => writeln!(f, "outage    for {}", in_words(outage))?,
            (None, Some(last)) => writeln!(
                f,
                "outage    the last one took {}, until {}; {}",
                in_words(last.seconds),
                last.ended,
                last.lost_in_words()
            )?,
            (None, None) => writeln!(f, "outage    none since the start")?,
        }
        writeln!(f, "clock     {}", self.clock.name())?;
        match self.sensor_ok {
            true => writeln!(f, "sensor    ok")?,
            false => writeln!(f, "sensor    not to be trusted: {}", self.sensor_why)?,
        }
        writeln!(
            f,
            "commands  {} refused, {} results dropped",
            self.commands_refused, self.results_dropped
        )?;
        write!(
            f,
            "run       {}, record {}, nightlight {}",
            self.run, self.last_seq, self.version
        )
    }
}

fn on_off(led_on: Option<bool>) -> &'static str {
    match led_on {
        Some(true) => "on",
        Some(false) => "off",
        None => "not known",
    }
}

fn in_words(seconds: f64) -> String {
    let whole = seconds as u64;
    match whole {
        0..10 => format!("{seconds:.1} s"),
        10..120 => format!("{whole} s"),
        120..7_200 => format!("{} min", whole / 60),
        _ => format!("{} h {} min", whole / 3_600, whole % 3_600 / 60),
    }
}
