//! The picture of the device at one moment.
//!
//! The controller makes it; it is published as `state`, shown by `nightlight status`, the status page and
//! the demonstration. It is only looked at: nothing is decided by it.

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::counters::Counters;
use super::lighting::{Mode, Rules, RulesPatch};
use super::link::Offer;
use super::telemetry::{OutageReport, PlainNumber};
use super::time::ClockState;
use super::words;

/// The picture of the device at one moment.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct View {
    /// The device id.
    pub device: String,
    /// The broker, as a URL without user and password.
    pub broker: String,
    /// The sensor's driver, as the configuration names it.
    pub sensor: String,
    /// The unit of light and thresholds; `None` where only the sensor's file knows it.
    pub unit: Option<String>,
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
    pub led_since_s: f64,
    /// The last light, in the sensor's unit; `None` while the sensor gives none that can be trusted.
    pub light: Option<f64>,
    /// How long ago the last reading was, in seconds.
    pub light_age_s: Option<f64>,
    /// The rules in force.
    pub rules: Rules,
    /// Those of them that a command set for good; they stand over the configuration.
    #[serde(with = "kept")]
    pub kept_rules: RulesPatch,
    /// Records that are not confirmed and not just being delivered live.
    pub backlog: u64,
    /// Whether the backlog's store is open and takes records; else memory alone has them.
    pub store_ok: bool,
    /// When the oldest of them was made, RFC 3339, as the clock was then.
    pub backlog_oldest: Option<String>,
    /// How long ago that was, in seconds; `None` where the clock was not, or is not, known to be right.
    pub backlog_oldest_age_s: Option<f64>,
    /// Bytes that the records in the store take, compressed; `None` while the store is not open.
    pub backlog_bytes: Option<u64>,
    /// Bytes that the program had the system write to storage since midnight (UTC) or its start, whichever is
    /// later; `None` where the system does not count them.
    pub written_today_bytes: Option<u64>,
    /// What the wall clock is worth.
    pub clock: ClockState,
    /// The moment of this picture, RFC 3339, as the wall clock says.
    pub at: String,
    /// The same in seconds since the machine started.
    pub boot_s: f64,
    /// The version of the program.
    pub version: String,
    /// This run.
    pub run: Uuid,
    /// The number of its newest record.
    pub last_seq: u64,
    /// Whether the link is up.
    pub link_up: bool,
    /// Whether somebody listens to the readings; `None` while nobody can know.
    #[serde(default)]
    pub heard: Option<bool>,
    /// What the broker of this session offers.
    #[serde(default)]
    pub mqtt: Option<Offer>,
    /// Publications that the broker refused since the start, by its reason; `unheard` counts those that it took
    /// and nobody listens to.
    #[serde(default)]
    pub refused: BTreeMap<String, u64>,
    /// Why the link is down, in words, and what is wrong with it though it is up; else empty.
    pub link_why: String,
    /// Whether the sensor gives readings.
    pub sensor_ok: bool,
    /// Why it does not, in words; empty when it does.
    pub sensor_why: String,
    /// Seconds until the lease ends, if one runs.
    pub lease_left_s: Option<f64>,
    /// How long the outage under way lasts, in seconds.
    pub outage_s: Option<f64>,
    /// The last outage that is over.
    pub last_outage: Option<OutageReport>,
    /// Commands refused since the start.
    pub commands_refused: u64,
    /// Results that a flood of commands left no room for, since the start.
    pub results_dropped: u64,
    /// By how much the loop was late at most in the last minute, in seconds; `None` before it was measured.
    pub loop_lag_s: Option<f64>,
    /// What happened since the start.
    pub counters: Counters,
}

impl View {
    /// The payload of the `state` topic.
    pub(crate) fn announcement(&self) -> String {
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
            interval_s: PlainNumber,
            backlog: u64,
            store_ok: bool,
            heard: Option<bool>,
            clock: ClockState,
            version: &'a str,
            backlog_oldest_age_s: Option<f64>,
            lost: u64,
            last_outage: Option<&'a OutageReport>,
            written_today_bytes: Option<u64>,
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
            interval_s: PlainNumber(words::seconds(self.rules.interval)),
            backlog: self.backlog,
            store_ok: self.store_ok,
            heard: self.heard,
            clock: self.clock,
            version: &self.version,
            backlog_oldest_age_s: self.backlog_oldest_age_s,
            lost: self.counters.all_lost(),
            last_outage: self.last_outage.as_ref(),
            written_today_bytes: self.written_today_bytes,
        };
        serde_json::to_string(&announcement).unwrap_or_default()
    }
}

/// One screen for a person.
impl fmt::Display for View {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let light = match self.light {
            Some(light) => {
                let Rules {
                    on_below,
                    off_above,
                    ..
                } = self.rules;
                let unit = self.unit.as_deref().unwrap_or_default();
                let text = words::light_beside(light, &[on_below, off_above]);
                format!("{text} {unit}").trim_end().to_owned()
            }
            None => match self.light_age_s {
                Some(age) => format!("not known; the last reading was {} ago", words::span_s(age)),
                None => "no reading yet".into(),
            },
        };
        writeln!(f, "device    {}", self.device)?;
        writeln!(f, "light     {light}")?;
        let since = words::span_s(self.led_since_s);
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
        match self.lease_left_s {
            Some(left) => writeln!(f, "lease     {} left", words::span_s(left))?,
            None => writeln!(f, "lease     none runs")?,
        }
        let Rules {
            mode,
            on_below,
            off_above,
            interval,
        } = self.rules;
        let (mode, interval) = (mode.name(), words::span(interval));
        writeln!(
            f,
            "rules     {mode}; on below {on_below}, off above {off_above}, read every {interval}"
        )?;
        if !self.kept_rules.is_empty() {
            writeln!(f, "          kept by a command: {}", self.kept_rules)?;
        }
        match self.link_up {
            true if self.link_why.is_empty() => writeln!(f, "link      up, to {}", self.broker)?,
            true => writeln!(f, "link      up, to {}, but {}", self.broker, self.link_why)?,
            false => writeln!(f, "link      down, to {}: {}", self.broker, self.link_why)?,
        }
        if let Some(offer) = &self.mqtt {
            writeln!(f, "          {offer}")?;
        }
        match self.heard {
            Some(true) => writeln!(f, "heard     yes: somebody listens to the readings")?,
            Some(false) => writeln!(f, "heard     no: nobody listens to the readings")?,
            None => {}
        }
        if !self.refused.is_empty() {
            let each = self.refused.iter();
            let each: Vec<String> = each.map(|(why, count)| format!("{count} {why}")).collect();
            writeln!(f, "refused   {} since the start", each.join(", "))?;
        }
        let backlog = words::counted(self.backlog, "record");
        match &self.backlog_oldest {
            Some(oldest) if self.backlog > 0 => {
                writeln!(f, "backlog   {backlog}, the oldest of {oldest}")?;
            }
            _ => writeln!(f, "backlog   {backlog}")?,
        }
        if !self.store_ok {
            writeln!(f, "store     unavailable: records are kept in memory only")?;
        }
        match (self.outage_s, &self.last_outage) {
            (Some(outage), _) => writeln!(f, "outage    for {}", words::span_s(outage))?,
            (None, Some(last)) => writeln!(
                f,
                "outage    the last one took {}, until {}; {}",
                words::span_s(last.seconds),
                last.ended,
                last.lost_in_words()
            )?,
            (None, None) => writeln!(f, "outage    none since the start")?,
        }
        writeln!(f, "clock     {}", self.clock.name())?;
        match self.sensor_ok {
            true => writeln!(f, "sensor    {}, ok", self.sensor)?,
            false => writeln!(
                f,
                "sensor    {}, not to be trusted: {}",
                self.sensor, self.sensor_why
            )?,
        }
        writeln!(
            f,
            "commands  {} refused, {} dropped",
            self.commands_refused,
            words::counted(self.results_dropped, "result")
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

/// The kept rules, with the interval as a number of seconds.
mod kept {
    use std::time::Duration;

    use serde::de::{Deserialize, Deserializer, Error};
    use serde::ser::{Serialize, Serializer};

    use super::{Mode, RulesPatch, words};

    #[derive(serde::Serialize, serde::Deserialize)]
    struct Kept {
        #[serde(default, skip_serializing_if = "Option::is_none")]
        mode: Option<Mode>,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        on_below: Option<f64>,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        off_above: Option<f64>,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        interval_s: Option<f64>,
    }

    pub(crate) fn serialize<S: Serializer>(
        rules: &RulesPatch,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        let RulesPatch {
            mode,
            on_below,
            off_above,
            interval,
        } = *rules;
        let interval_s = interval.map(words::seconds);
        let kept = Kept {
            mode,
            on_below,
            off_above,
            interval_s,
        };
        kept.serialize(serializer)
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<RulesPatch, D::Error> {
        let Kept {
            mode,
            on_below,
            off_above,
            interval_s,
        } = Kept::deserialize(deserializer)?;
        let interval = interval_s.map(Duration::try_from_secs_f64).transpose();
        Ok(RulesPatch {
            mode,
            on_below,
            off_above,
            interval: interval.map_err(D::Error::custom)?,
        })
    }
}
