//! What is on the wire: payloads of devices in, acks and commands out.
//!
//! Pure, and does not trust what it reads: whatever is no record is counted as rubbish and does
//! nothing else. The shell calls it for each message.

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use uuid::Uuid;

use crate::decision::Reading;
use crate::topics::Lane;
use nightlight_logic::intervals::Intervals;

/// Numbers above this are no record's: JSON readers elsewhere would round them.
pub(crate) const MOST_SEQ: u64 = 1 << 53;
/// A longer record is not taken.
pub(crate) const MOST_BYTES: usize = 64 * 1024;
/// Ranges in one ack; a device does not read acks of any length.
const ACK_RANGES: usize = 500;
/// A live reading this much older than the present is none that decides.
const STALE_MS: i64 = 30_000;
/// Times before 1970 and after 9999 are none.
const TIMES_MS: std::ops::Range<i64> = 0..253_402_300_800_000;

/// What a message has in it.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct Payload {
    /// Its records, in order.
    pub records: Vec<Arrived>,
    /// What the device has given up, as it tells.
    pub losses: Vec<Loss>,
    /// Readings without run and number.
    pub plain: u64,
    /// Parts that are neither.
    pub rubbish: u64,
    /// The last reading, if it is of the present.
    pub reading: Option<Reading>,
    /// Whether the sensor works, where an event of the present says so.
    pub sensor_ok: Option<bool>,
}

/// A record as it came.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Arrived {
    /// The life of the device's daemon that made it.
    pub run: Uuid,
    /// Its number there, 1..=[`MOST_SEQ`].
    pub seq: u64,
    /// The run before this one, and the highest number of it that its disk knows.
    pub previous: Option<(Uuid, u64)>,
    /// It came as it was made, not as history.
    pub live: bool,
    /// When it was made, in milliseconds since 1970, as far as it tells.
    pub ts_ms: Option<i64>,
    /// What that is worth, as it tells.
    pub clock: Option<String>,
    /// `reading`, or the name of the event.
    pub kind: String,
    /// The light.
    pub light: Option<f64>,
    /// The LED.
    pub led_on: Option<bool>,
    /// Who decided about it.
    pub by: Option<String>,
    /// Why.
    pub why: Option<String>,
    /// The account of an outage.
    pub outage: Option<Outage>,
    /// The whole of it.
    pub json: String,
}

/// An outage that is over.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Outage {
    /// What was away.
    pub cause: Option<String>,
    /// When it began, in milliseconds since 1970.
    pub began_ms: Option<i64>,
    /// When it ended.
    pub ended_ms: Option<i64>,
    /// How long it was.
    pub seconds: Option<f64>,
    /// Readings, events, LED changes and losses in it.
    pub counts: [Option<i64>; 4],
}

/// Records that the device gave up.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Loss {
    /// Their run.
    pub of_run: Uuid,
    /// The first.
    pub from: u64,
    /// The last.
    pub to: u64,
    /// How many in that range; at least 1 and no more than fit.
    pub count: u64,
    /// Why.
    pub reason: Option<String>,
}

/// The parts of a record that the server reads; everything else is kept as it is.
#[derive(Debug, Deserialize)]
struct Wire {
    run: Option<Uuid>,
    seq: Option<u64>,
    light: Option<f64>,
    event: Option<String>,
    ts: Option<String>,
    clock: Option<String>,
    of_run: Option<Uuid>,
    from_seq: Option<u64>,
    to_seq: Option<u64>,
    count: Option<u64>,
    reason: Option<String>,
    previous_run: Option<Uuid>,
    previous_seq: Option<u64>,
    probe: Option<Uuid>,
    // What may be of any type in a record of another make is no reason to refuse it.
    #[serde(default, deserialize_with = "if_it_is")]
    led_on: Option<bool>,
    #[serde(default, deserialize_with = "if_it_is")]
    ok: Option<bool>,
    #[serde(default, deserialize_with = "if_it_is")]
    by: Option<String>,
    #[serde(default, deserialize_with = "if_it_is")]
    why: Option<String>,
    #[serde(default, deserialize_with = "if_it_is")]
    cause: Option<String>,
    #[serde(default, deserialize_with = "if_it_is")]
    began: Option<String>,
    #[serde(default, deserialize_with = "if_it_is")]
    ended: Option<String>,
    #[serde(default, deserialize_with = "if_it_is")]
    seconds: Option<f64>,
    #[serde(default, deserialize_with = "if_it_is")]
    readings: Option<i64>,
    #[serde(default, deserialize_with = "if_it_is")]
    events: Option<i64>,
    #[serde(default, deserialize_with = "if_it_is")]
    led_changes: Option<i64>,
    #[serde(default, deserialize_with = "if_it_is")]
    lost: Option<i64>,
}

/// A value of the right type; anything else is none.
pub(crate) fn if_it_is<'de, D, T>(deserializer: D) -> Result<Option<T>, D::Error>
where
    D: serde::Deserializer<'de>,
    T: serde::de::DeserializeOwned,
{
    let raw = Box::<RawValue>::deserialize(deserializer)?;
    Ok(serde_json::from_str(raw.get()).ok())
}

/// Reads a message: one record, or an array of them. `wall_ms` is the time here, where it is known.
pub(crate) fn read(payload: &[u8], lane: Lane, wall_ms: Option<i64>) -> Payload {
    let mut read = Payload::default();
    let begins = payload.iter().find(|byte| !byte.is_ascii_whitespace());
    if begins == Some(&b'[') {
        match serde_json::from_slice::<Vec<&RawValue>>(payload) {
            Ok(parts) => {
                for part in parts {
                    read.part(part, lane, wall_ms);
                }
            }
            Err(_) => read.rubbish += 1,
        }
    } else {
        match serde_json::from_slice::<&RawValue>(payload) {
            Ok(part) => read.part(part, lane, wall_ms),
            Err(_) => read.rubbish += 1,
        }
    }
    read
}

/// The acks of records of one run, as many messages as it takes.
pub(crate) fn acks(run: Uuid, acked: &Intervals) -> Vec<String> {
    #[derive(Serialize)]
    struct Ack<'a> {
        run: Uuid,
        acked: &'a [(u64, u64)],
    }
    let ranges: Vec<(u64, u64)> = acked.iter().collect();
    ranges
        .chunks(ACK_RANGES)
        .map(|acked| serde_json::to_string(&Ack { run, acked }).unwrap_or_default())
        .collect()
}

/// Whether the sensor works, as a device's state says. A state of another make says nothing.
pub(crate) fn sensor_ok(state: &[u8]) -> Option<bool> {
    #[derive(Deserialize)]
    struct State {
        sensor_ok: Option<bool>,
    }
    serde_json::from_slice::<State>(state).ok()?.sensor_ok
}

/// The lesson's command, with what keeps it from being obeyed twice, or too late, or for ever.
#[derive(Debug, Serialize)]
pub(crate) struct Command<'a> {
    /// What the LED is to be.
    pub led_on: bool,
    /// Obeyed once.
    pub id: Uuid,
    /// RFC 3339; tells the order.
    pub issued_at: &'a str,
    /// RFC 3339; not obeyed after it.
    pub expires_at: &'a str,
    /// How long it holds without a sign of life, as the devices' configuration writes it.
    pub lease: &'a str,
}

impl Command<'_> {
    /// As JSON; strings and flags always have one.
    pub(crate) fn json(&self) -> String {
        serde_json::to_string(self).unwrap_or_default()
    }
}

impl Payload {
    fn part(&mut self, part: &RawValue, lane: Lane, wall_ms: Option<i64>) {
        let json = part.get();
        // Serde would take an array for a struct.
        let wire = match json.starts_with('{') && json.len() <= MOST_BYTES {
            true => serde_json::from_str::<Wire>(json),
            false => return self.rubbish += 1,
        };
        let Ok(wire) = wire else {
            return self.rubbish += 1;
        };
        // A doctor tries whether it comes back.
        if wire.probe.is_some() && wire.run.is_none() {
            return;
        }
        let is_worth_it = wire.light.is_some() || wire.event.is_some();
        let is_now = lane != Lane::History && wire.is_of_the_present(wall_ms);
        let reading = wire
            .light
            .filter(|_| is_now && lane == Lane::Telemetry)
            .map(|light| Reading {
                light,
                led_on: wire.led_on,
            });
        let sensor_ok = wire
            .ok
            .filter(|_| is_now && wire.event.as_deref() == Some("sensor"));
        match (wire.run, wire.seq) {
            (Some(run), Some(seq)) if (1..=MOST_SEQ).contains(&seq) && is_worth_it => {
                self.records.push(wire.record((run, seq), lane, json));
            }
            (None, None) if wire.light.is_some() => self.plain += 1,
            (None, None) => match wire.loss() {
                Some(loss) => self.losses.push(loss),
                None => return self.rubbish += 1,
            },
            _ => return self.rubbish += 1,
        }
        self.reading = reading.or(self.reading);
        self.sensor_ok = sensor_ok.or(self.sensor_ok);
    }
}

impl Wire {
    fn record(self, (run, seq): (Uuid, u64), lane: Lane, json: &str) -> Arrived {
        let is = |name: &str| self.event.as_deref() == Some(name);
        let previous = self.previous_run.zip(self.previous_seq);
        let outage = is("outage").then(|| Outage {
            cause: self.cause.map(storable),
            began_ms: self.began.as_deref().and_then(time),
            ended_ms: self.ended.as_deref().and_then(time),
            seconds: self.seconds,
            counts: [self.readings, self.events, self.led_changes, self.lost],
        });
        Arrived {
            run,
            seq,
            previous: previous.filter(|(_, seq)| *seq <= MOST_SEQ && is("started")),
            live: lane != Lane::History,
            ts_ms: self.ts.as_deref().and_then(time),
            clock: self.clock.map(storable),
            kind: self.event.map_or_else(|| "reading".into(), storable),
            light: self.light,
            led_on: self.led_on,
            by: self.by.map(storable),
            why: self.why.map(storable),
            outage,
            json: json.to_owned(),
        }
    }

    fn loss(&self) -> Option<Loss> {
        if self.event.as_deref() != Some("loss") {
            return None;
        }
        let (of_run, from, to) = (self.of_run?, self.from_seq?, self.to_seq?);
        let fits = (1..=to).contains(&from) && to <= MOST_SEQ;
        let most = to.checked_sub(from)? + 1;
        let count = self.count.unwrap_or(most).clamp(1, most);
        fits.then(|| Loss {
            of_run,
            from,
            to,
            count,
            reason: self.reason.clone().map(storable),
        })
    }

    /// What waited at the broker while this server was away comes on the live topic too. Where both
    /// clocks are known to be right, they tell.
    fn is_of_the_present(&self, wall_ms: Option<i64>) -> bool {
        let known = self.clock.as_deref() == Some("synced");
        let ts = self.ts.as_deref().filter(|_| known);
        match (ts.and_then(time), wall_ms) {
            (Some(ts), Some(now)) => now.saturating_sub(ts) < STALE_MS,
            _ => true,
        }
    }
}

fn time(text: &str) -> Option<i64> {
    let time: jiff::Timestamp = text.parse().ok()?;
    Some(time.as_millisecond()).filter(|ms| TIMES_MS.contains(ms))
}

/// PostgreSQL has no text with a NUL in it, and JSON has.
fn storable(text: String) -> String {
    match text.contains('\0') {
        true => text.replace('\0', "\u{fffd}"),
        false => text,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const RUN: &str = "0b7e0000-0000-4000-8000-000000000001";

    fn live(text: &str) -> Payload {
        read(text.as_bytes(), Lane::Telemetry, None)
    }

    #[test]
    fn a_record_is_taken_whole_and_a_plain_reading_decides() {
        let text = format!(r#"{{"light": 243, "led_on":true,"run":"{RUN}","seq":7,"new":[1]}}"#);
        let read = live(&text);
        assert_eq!(
            read.reading.map(|r| (r.light, r.led_on)),
            Some((243.0, Some(true)))
        );
        assert_eq!(read.records[0].seq, 7);
        assert_eq!(read.records[0].json, text);
        let read = live(r#"{"light": 12}"#);
        assert_eq!(
            read.reading.map(|r| (r.light, r.led_on)),
            Some((12.0, None))
        );
        assert_eq!((read.plain, read.rubbish), (1, 0));
    }

    #[test]
    fn a_probe_of_an_access_list_is_nothing() {
        let text = format!(r#"{{"light":12,"probe":"{RUN}"}}"#);
        assert_eq!(live(&text), Payload::default());
        assert_eq!(live(&format!(r#"{{"probe":"{RUN}"}}"#)), Payload::default());
    }

    #[test]
    fn an_array_gives_its_good_parts() {
        let text = format!(
            r#" [{{"light":1,"run":"{RUN}","seq":1}}, 7, {{"event":"led","run":"{RUN}","seq":2}}, {{}}]"#
        );
        let read = read(text.as_bytes(), Lane::History, None);
        assert_eq!(read.records.len(), 2);
        assert_eq!(read.rubbish, 2);
        assert_eq!(read.reading, None);
        assert!(!read.records[0].live);
    }

    #[test]
    fn a_loss_is_the_gap_itself_and_has_no_number() {
        let told = |more: &str| live(&format!(r#"{{"event":"loss","of_run":"{RUN}",{more}}}"#));
        let loss = Loss {
            of_run: RUN.parse().unwrap(),
            from: 3,
            to: 9,
            count: 7,
            reason: Some("backlog-full".into()),
        };
        let read = told(r#""from_seq":3,"to_seq":9,"reason":"backlog-full""#);
        assert_eq!((read.losses, read.records.len()), (vec![loss], 0));
        for bad in [
            r#""from_seq":9,"to_seq":3,"count":4"#,
            r#""from_seq":0,"to_seq":3"#,
            r#""from_seq":1,"to_seq":18446744073709551615"#,
        ] {
            let read = told(bad);
            assert_eq!((read.losses.len(), read.rubbish), (0, 1), "{bad}");
        }
        // With a number it is a record like any, and tells nothing of others.
        let read = told(&format!(
            r#""from_seq":3,"to_seq":9,"run":"{RUN}","seq":12"#
        ));
        assert_eq!((read.losses.len(), read.records.len()), (0, 1));
    }

    #[test]
    fn what_a_record_tells_stands_in_its_columns() {
        let one = |more: &str| {
            let read = live(&format!(r#"{{"run":"{RUN}","seq":2,{more}}}"#));
            read.records[0].clone()
        };
        let started = one(&format!(
            r#""event":"started","previous_run":"{RUN}","previous_seq":40"#
        ));
        assert_eq!(started.previous, Some((RUN.parse().unwrap(), 40)));
        let led = one(
            r#""event":"led","led_on":true,"by":"fallback","why":"dark\u0000","ts":"2026-11-20T17:03:11.250Z""#,
        );
        assert_eq!(led.ts_ms, Some(1_795_194_191_250));
        assert_eq!(led.why.as_deref(), Some("dark\u{fffd}"));
        assert_eq!(
            (led.led_on, led.by.as_deref()),
            (Some(true), Some("fallback"))
        );
        let odd = one(r#""event":"led","led_on":"yes","by":7,"ts":"-009999-01-01T00:00:00Z""#);
        assert_eq!((odd.led_on, odd.by, odd.ts_ms), (None, None, None));
        let outage = one(
            r#""event":"outage","cause":"link","began":"2026-11-20T17:03:11Z","seconds":25,"lost":2"#,
        );
        let outage = outage.outage.unwrap();
        assert_eq!(outage.began_ms, Some(1_795_194_191_000));
        assert_eq!(
            (outage.seconds, outage.counts),
            (Some(25.0), [None, None, None, Some(2)])
        );
    }

    #[test]
    fn rubbish_is_counted() {
        let long = format!(
            r#"{{"event":"{}","run":"{RUN}","seq":1}}"#,
            "x".repeat(MOST_BYTES)
        );
        let deep = "[".repeat(100_000);
        for text in [
            "",
            "hello",
            "[",
            "null",
            "{}",
            r#"{"light":"12"}"#,
            r#"{"light":1e999}"#,
            r#"{"light":1,"seq":1}"#,
            r#"{"light":1,"run":"x","seq":1}"#,
            &format!(r#"{{"light":1,"run":"{RUN}","seq":0}}"#),
            &format!(r#"{{"light":1,"run":"{RUN}","seq":-1}}"#),
            &format!(r#"{{"light":1,"run":"{RUN}","seq":9007199254740993}}"#),
            &format!(r#"{{"run":"{RUN}","seq":1}}"#),
            &long,
            &deep,
        ] {
            let read = live(text);
            assert_eq!((read.records.len(), read.rubbish), (0, 1), "{text:.80}");
            assert_eq!(read.reading, None, "{text:.80}");
        }
        assert_eq!(live("[]"), Payload::default());
    }

    #[test]
    fn a_live_reading_of_long_ago_is_kept_and_decides_nothing() {
        let at = 1_795_194_191_250;
        let read = |clock: &str, now| {
            let text = format!(
                r#"{{"light":1,"run":"{RUN}","seq":1,"ts":"2026-11-20T17:03:11.250Z","clock":"{clock}"}}"#
            );
            let read = read(text.as_bytes(), Lane::Telemetry, now);
            assert_eq!(read.records.len(), 1);
            read.reading.is_some()
        };
        assert!(read("synced", Some(at + 29_000)));
        assert!(read("synced", Some(at - 60_000)));
        assert!(!read("synced", Some(at + 30_000)));
        assert!(read("synced", None));
        assert!(read("unsynced", Some(at + 30_000)));
    }

    #[test]
    fn acks_come_in_ranges_and_not_too_many_at_once() {
        let run: Uuid = RUN.parse().unwrap();
        let acked = Intervals::from(vec![(1, 40), (43, 43)]);
        assert_eq!(
            acks(run, &acked),
            [format!(r#"{{"run":"{RUN}","acked":[[1,40],[43,43]]}}"#)]
        );
        let odd: Vec<(u64, u64)> = (0..1_200).map(|n| (2 * n + 1, 2 * n + 1)).collect();
        let texts = acks(run, &Intervals::from(odd));
        assert_eq!(texts.len(), 3);
        assert!(texts.iter().all(|text| text.len() < 64 * 1024));
    }

    proptest! {
        #[test]
        fn whatever_comes_is_counted(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let read = read(&bytes, Lane::Telemetry, Some(0));
            prop_assert!(read.records.is_empty());
        }
    }
}
