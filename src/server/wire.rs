//! What is on the wire: payloads of devices in, acks and commands out.
//!
//! Pure, and does not trust what it reads: whatever is no record is counted as rubbish and does
//! nothing else. The shell calls it for each message.

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use uuid::Uuid;

use super::intervals::Intervals;
use super::ledger::{Arrived, Loss, MOST_SEQ, Tells};
use super::topics::Lane;

/// A longer record is not taken: it would not fit into a value of the store.
pub const MOST_BYTES: usize = 6 * 1024;
/// Ranges in one ack; a device does not read acks of any length.
const ACK_RANGES: usize = 500;
/// A live reading this much older than the present is none that decides.
const STALE_MS: i64 = 30_000;

/// What a message has in it.
#[derive(Debug, Default, PartialEq)]
pub struct Payload {
    /// Its records, in order.
    pub records: Vec<Arrived>,
    /// Readings without run and number.
    pub plain: u64,
    /// Parts that are neither.
    pub rubbish: u64,
    /// The light of the last reading, if it is of the present.
    pub light: Option<f64>,
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
    previous_run: Option<Uuid>,
    previous_seq: Option<u64>,
    probe: Option<Uuid>,
}

/// Reads a message: one record, or an array of them. `wall_ms` is the time here, where it is known.
pub fn read(payload: &[u8], lane: Lane, wall_ms: Option<i64>) -> Payload {
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
pub fn acks(run: Uuid, acked: &Intervals) -> Vec<String> {
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

/// The lesson's command, with what keeps it from being obeyed twice.
pub fn command(led_on: bool, id: Uuid, issued_at: &str) -> String {
    #[derive(Serialize)]
    struct Command<'a> {
        led_on: bool,
        id: Uuid,
        issued_at: &'a str,
    }
    let command = Command {
        led_on,
        id,
        issued_at,
    };
    serde_json::to_string(&command).unwrap_or_default()
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
        // `doctor` tries whether it comes back.
        if wire.probe.is_some() && wire.run.is_none() {
            return;
        }
        let is_worth_it = wire.light.is_some() || wire.event.is_some();
        match (wire.run, wire.seq) {
            (Some(run), Some(seq)) if (1..=MOST_SEQ).contains(&seq) && is_worth_it => {
                self.records.push(Arrived {
                    run,
                    seq,
                    tells: wire.tells(),
                    live: lane != Lane::History,
                    json: json.to_owned(),
                });
            }
            (None, None) if wire.light.is_some() => self.plain += 1,
            _ => return self.rubbish += 1,
        }
        if lane == Lane::Telemetry && wire.is_of_the_present(wall_ms) {
            self.light = wire.light.or(self.light);
        }
    }
}

impl Wire {
    fn tells(&self) -> Tells {
        match self.event.as_deref() {
            Some("loss") => self.loss().map_or(Tells::Nothing, Tells::Loss),
            Some("started") => match (self.previous_run, self.previous_seq) {
                (Some(run), Some(seq)) if seq <= MOST_SEQ => Tells::Previous(run, seq),
                _ => Tells::Nothing,
            },
            _ => Tells::Nothing,
        }
    }

    fn loss(&self) -> Option<Loss> {
        let (of_run, from, to) = (self.of_run?, self.from_seq?, self.to_seq?);
        let fits = (1..=to).contains(&from) && to <= MOST_SEQ;
        let most = to.checked_sub(from)? + 1;
        let count = self.count.unwrap_or(most).clamp(1, most);
        fits.then_some(Loss {
            of_run,
            from,
            to,
            count,
        })
    }

    /// What waited at the broker while this server was away comes on the live topic too. Where both
    /// clocks are known to be right, they tell.
    fn is_of_the_present(&self, wall_ms: Option<i64>) -> bool {
        let known = self.clock.as_deref() == Some("synced");
        let ts = self.ts.as_deref().filter(|_| known);
        let ts = ts.and_then(|ts| ts.parse::<jiff::Timestamp>().ok());
        match (ts, wall_ms) {
            (Some(ts), Some(now)) => now.saturating_sub(ts.as_millisecond()) < STALE_MS,
            _ => true,
        }
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
        assert_eq!(read.light, Some(243.0));
        assert_eq!(read.records[0].seq, 7);
        assert_eq!(read.records[0].json, text);
        let read = live(r#"{"light": 12}"#);
        assert_eq!((read.light, read.plain, read.rubbish), (Some(12.0), 1, 0));
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
        assert_eq!(read.light, None);
        assert!(!read.records[0].live);
    }

    #[test]
    fn losses_and_the_run_before_are_read_where_they_can_be_true() {
        let tells = |more: &str| {
            let text = format!(r#"{{"run":"{RUN}","seq":2,{more}}}"#);
            live(&text).records[0].tells
        };
        let of_run: Uuid = RUN.parse().unwrap();
        let loss = |more: &str| tells(&format!(r#""event":"loss","of_run":"{RUN}",{more}"#));
        assert_eq!(
            loss(r#""from_seq":3,"to_seq":9,"count":4"#),
            Tells::Loss(Loss {
                of_run,
                from: 3,
                to: 9,
                count: 4
            })
        );
        assert_eq!(loss(r#""from_seq":9,"to_seq":3,"count":4"#), Tells::Nothing);
        assert_eq!(loss(r#""from_seq":0,"to_seq":3"#), Tells::Nothing);
        assert_eq!(
            loss(r#""from_seq":1,"to_seq":18446744073709551615"#),
            Tells::Nothing
        );
        assert_eq!(
            tells(&format!(
                r#""event":"started","previous_run":"{RUN}","previous_seq":40"#
            )),
            Tells::Previous(of_run, 40)
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
            assert_eq!(read.light, None, "{text:.80}");
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
            read.light.is_some()
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
