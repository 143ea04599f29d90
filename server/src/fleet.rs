//! A device in the words of the page: what it last said, and what of it needs a person.
//!
//! Pure: rows of the database in, lines for people and programs out. `web` asks.

use serde::{Deserialize, Serialize};

use crate::store::fleet::{Event, Seen};
use crate::wire::if_it_is;

/// A device that is heard so rarely is silent; its state comes every minute.
const SILENT_MS: i64 = 5 * 60_000;

/// A line of the fleet.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(crate) struct Line {
    /// The device.
    pub device: String,
    /// What of it needs a person, most urgent first; empty when nothing does.
    pub needs: Vec<String>,
    /// How urgent: 0 is nothing.
    pub urgency: u8,
    /// The newest light.
    pub light: Option<f64>,
    /// The LED as the device last said; none: not known.
    pub led_on: Option<bool>,
    /// Who decided.
    pub by: Option<String>,
    /// What it is switched to by hand here.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub switched: Option<bool>,
    /// What its status topic says.
    pub online: Option<bool>,
    /// Since when.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub since: Option<String>,
    /// When anything last came of it.
    pub last_seen: String,
    /// Records that wait at the device, as it last said.
    pub backlog: Option<u64>,
    /// Different records.
    pub received: u64,
    /// Arrivals of a record that was there already.
    pub twice: u64,
    /// Given up by the device, and told.
    pub lost: u64,
    /// Neither received nor told as lost.
    pub missing: u64,
    /// What its clock is worth: synced, corrected, unsynced.
    pub clock: Option<String>,
    /// Its version.
    pub version: Option<String>,
}

/// The parts of a state message that are shown. One of another make says less.
#[derive(Debug, Default, Deserialize)]
pub(crate) struct State {
    #[serde(default, deserialize_with = "if_it_is")]
    light: Option<f64>,
    #[serde(default, deserialize_with = "if_it_is")]
    led_on: Option<bool>,
    #[serde(default, deserialize_with = "if_it_is")]
    by: Option<String>,
    /// Why the LED is as it is.
    #[serde(default, deserialize_with = "if_it_is")]
    pub why: Option<String>,
    #[serde(default, deserialize_with = "if_it_is")]
    backlog: Option<u64>,
    #[serde(default, deserialize_with = "if_it_is")]
    clock: Option<String>,
    #[serde(default, deserialize_with = "if_it_is")]
    version: Option<String>,
    /// Whether its sensor works.
    #[serde(default, deserialize_with = "if_it_is")]
    pub sensor_ok: Option<bool>,
    #[serde(default, deserialize_with = "if_it_is")]
    led_ok: Option<bool>,
}

impl State {
    /// Of a device.
    pub(crate) fn of(seen: &Seen) -> Self {
        let text = seen.state.as_deref().unwrap_or("{}");
        serde_json::from_str(text).unwrap_or_default()
    }

    /// Whether its clock is set, as far as it tells.
    pub(crate) fn clock_set(&self) -> Option<bool> {
        self.clock.as_deref().map(|clock| clock != "unsynced")
    }

    /// Records that wait at the device.
    pub(crate) fn backlog(&self) -> Option<u64> {
        self.backlog
    }
}

impl Line {
    /// Of a device, now.
    pub(crate) fn of(seen: Seen, now_ms: i64) -> Self {
        let state = State::of(&seen);
        let (urgency, needs) = needs(&seen, &state, now_ms);
        let counts = seen.counts;
        Self {
            device: seen.device,
            needs,
            urgency,
            light: seen.light.or(state.light),
            led_on: state.led_on,
            by: state.by,
            switched: seen.switched,
            online: seen.online,
            since: seen.online_since,
            last_seen: seen.last_seen,
            backlog: state.backlog,
            received: counts.received,
            twice: counts.twice,
            lost: counts.lost,
            missing: counts.missing,
            clock: state.clock,
            version: state.version,
        }
    }
}

/// What needs a person, and how urgently.
fn needs(seen: &Seen, state: &State, now_ms: i64) -> (u8, Vec<String>) {
    let mut needs: Vec<(u8, String)> = Vec::new();
    let silent_ms = milliseconds(&seen.last_seen).map_or(0, |last| now_ms.saturating_sub(last));
    if seen.online == Some(false) {
        needs.push((7, "offline".into()));
    } else if silent_ms > SILENT_MS {
        needs.push((7, "silent".into()));
    }
    if state.sensor_ok == Some(false) {
        needs.push((6, "its sensor does not work".into()));
    }
    if state.led_ok == Some(false) {
        needs.push((6, "its LED cannot be written".into()));
    }
    let backlog = state.backlog.unwrap_or(0);
    match seen.counts.missing {
        0 => {}
        missing if backlog >= missing => {
            needs.push((1, format!("{missing} records are on their way")));
        }
        missing => needs.push((5, format!("{missing} records are missing"))),
    }
    if state.clock_set() == Some(false) {
        needs.push((4, "its clock is not set".into()));
    }
    if seen.counts.lost > 0 {
        needs.push((3, format!("{} records were lost", seen.counts.lost)));
    }
    needs.sort_by_key(|(urgency, _)| std::cmp::Reverse(*urgency));
    let urgency = needs.first().map_or(0, |(urgency, _)| *urgency);
    (urgency, needs.into_iter().map(|(_, what)| what).collect())
}

/// An event, for people.
pub(crate) fn words(event: &Event) -> String {
    #[derive(Deserialize, Default)]
    struct Parts {
        #[serde(default, deserialize_with = "if_it_is")]
        version: Option<String>,
        #[serde(default, deserialize_with = "if_it_is")]
        seconds: Option<f64>,
        #[serde(default, deserialize_with = "if_it_is")]
        lost: Option<u64>,
        #[serde(default, deserialize_with = "if_it_is")]
        ok: Option<bool>,
        #[serde(default, deserialize_with = "if_it_is")]
        cause: Option<String>,
        #[serde(default, deserialize_with = "if_it_is")]
        result: Option<String>,
    }
    let parts: Parts = serde_json::from_str(&event.payload).unwrap_or_default();
    let mut words = match event.kind.as_str() {
        "started" => match parts.version {
            Some(version) => format!("started, version {version}"),
            None => "started".into(),
        },
        "led" => {
            let led = match event.led_on {
                Some(true) => "LED on",
                Some(false) => "LED off",
                None => "LED changed",
            };
            match &event.by {
                Some(by) => format!("{led}, by {by}"),
                None => led.into(),
            }
        }
        "outage" => {
            let what = match parts.cause.as_deref() {
                Some("server") => "server was away",
                _ => "link was down",
            };
            let lost = match parts.lost {
                Some(lost) => format!("{lost} records lost"),
                None => "not known what was lost".into(),
            };
            match parts.seconds {
                Some(seconds) => format!("{what} for {seconds:.0} s, {lost}"),
                None => format!("{what}, {lost}"),
            }
        }
        "sensor" => match parts.ok {
            Some(true) => "sensor works again".into(),
            Some(false) => "sensor fails".into(),
            None => "sensor changed".into(),
        },
        "clock" => "clock changed".into(),
        "command" => match parts.result {
            Some(result) => format!("command {result}"),
            None => "command".into(),
        },
        other => other.into(),
    };
    if let Some(why) = event.why.as_deref().filter(|why| !why.is_empty()) {
        words.push_str(": ");
        words.push_str(why);
    }
    words
}

/// A time of the database.
pub(crate) fn milliseconds(time: &str) -> Option<i64> {
    let time: jiff::Timestamp = time.parse().ok()?;
    Some(time.as_millisecond())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::Counts;

    const NOW_MS: i64 = 1_795_194_200_000;

    fn seen(state: &str) -> Seen {
        Seen {
            device: "pi".into(),
            last_seen: nightlight_logic::time::rfc3339(NOW_MS - 60_000),
            online: Some(true),
            online_since: None,
            state: Some(state.into()),
            switched: None,
            light: None,
            counts: Counts::default(),
            outages: 0,
        }
    }

    #[test]
    fn a_state_of_another_make_says_less() {
        let line = Line::of(
            seen(r#"{"light":"dark","led_on":true,"by":7,"backlog":-1}"#),
            NOW_MS,
        );
        assert_eq!(
            (line.light, line.led_on, line.by, line.backlog),
            (None, Some(true), None, None)
        );
        assert_eq!(Line::of(seen("["), NOW_MS).led_on, None);
    }

    #[test]
    fn what_needs_a_person_comes_most_urgent_first() {
        let line = Line::of(seen(r#"{"clock":"synced","sensor_ok":true}"#), NOW_MS);
        assert_eq!((line.urgency, line.needs.len()), (0, 0));
        let mut bad = seen(r#"{"clock":"unsynced","sensor_ok":false,"backlog":2}"#);
        bad.online = Some(false);
        bad.counts.missing = 3;
        bad.counts.lost = 1;
        let line = Line::of(bad.clone(), NOW_MS);
        assert_eq!(line.urgency, 7);
        assert_eq!(
            line.needs,
            [
                "offline",
                "its sensor does not work",
                "3 records are missing",
                "its clock is not set",
                "1 records were lost"
            ]
        );
        bad.counts.missing = 2;
        assert!(
            Line::of(bad, NOW_MS)
                .needs
                .contains(&"2 records are on their way".into())
        );
        assert_eq!(Line::of(seen("{}"), NOW_MS + SILENT_MS).needs, ["silent"]);
    }

    #[test]
    fn events_are_told_in_words() {
        let event = |kind: &str, payload: &str| Event {
            ts: String::new(),
            kind: kind.into(),
            led_on: Some(true),
            by: Some("fallback".into()),
            why: Some("dark".into()),
            payload: payload.into(),
        };
        for (kind, payload, expected) in [
            ("led", "{}", "LED on, by fallback: dark"),
            (
                "started",
                r#"{"version":"1.2"}"#,
                "started, version 1.2: dark",
            ),
            (
                "outage",
                r#"{"seconds":25.4,"lost":2,"cause":"link"}"#,
                "link was down for 25 s, 2 records lost: dark",
            ),
            (
                "outage",
                "{}",
                "link was down, not known what was lost: dark",
            ),
            ("sensor", r#"{"ok":false}"#, "sensor fails: dark"),
            ("odd", "", "odd: dark"),
        ] {
            assert_eq!(words(&event(kind, payload)), expected);
        }
    }
}
