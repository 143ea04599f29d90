//! The answers: what `route` asks for, as JSON for the most part.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use hyper::{Response, StatusCode};
use nightlight_common::clock::Clock;
use nightlight_common::http::{self, Body};
use percent_encoding::percent_decode_str;
use serde::{Deserialize, Serialize};
use serde_json::json;
use tokio::sync::Mutex;
use tokio::time::Instant;

use super::live::Live;
use super::readers::Readers;
use super::{metrics, records};
use crate::account::RunReport;
use crate::books::Form;
use crate::config::Config;
use crate::decision::{Group, Subject};
use crate::fleet::{Line, State, milliseconds, words};
use crate::stats::Stats;
use crate::store::read::{self, Span};
use crate::store::{Fault, fleet, switches};

const JSON: &str = "application/json";
const DAY_MS: i64 = 86_400_000;
/// Points of a plot, and of the small curve of a day.
const POINTS: usize = 240;
const CURVE: usize = 48;
/// The curves are made again after this time.
const CURVES_FOR: Duration = Duration::from_secs(600);
/// Devices of one answer.
const DEVICES: usize = 1_000;
/// Events of a device that are shown.
const EVENTS: usize = 100;
/// Runs of a device that are shown, the newest.
const RUNS: usize = 100;

/// Answers.
#[derive(Debug, Clone)]
pub(super) struct Api {
    readers: Readers,
    stats: Arc<Stats>,
    live: Live,
    groups: Arc<Vec<Group>>,
    can_switch: bool,
    curves: Arc<Mutex<Curves>>,
    clock: Clock,
}

#[derive(Debug, Default)]
struct Curves {
    made: Option<Instant>,
    json: String,
}

type Answer = Result<Response<Body>, Fault>;

impl Api {
    /// Over connections of its own.
    pub(super) fn new(config: &Config, stats: Arc<Stats>) -> Self {
        let readers = Readers::new(config.database.clone());
        Self {
            live: Live::start(readers.clone()),
            readers,
            stats,
            groups: Arc::new(config.groups.clone()),
            can_switch: config
                .web
                .as_ref()
                .is_some_and(|web| web.access.can_change()),
            curves: Arc::default(),
            clock: Clock::new(),
        }
    }

    /// Whether records are taken and kept.
    pub(super) fn health(&self) -> Response<Body> {
        let good = |what: &std::sync::atomic::AtomicBool| what.load(Relaxed);
        match (good(&self.stats.database_up), good(&self.stats.connected)) {
            (true, true) => http::text(StatusCode::OK, "ok\n"),
            (false, _) => unavailable("the database cannot be used\n"),
            (_, false) => unavailable("there is no link to the broker\n"),
        }
    }

    /// For Prometheus. What this server counts of itself is told without a database too.
    pub(super) async fn metrics(&self) -> Response<Body> {
        let mut text = self.stats.metrics();
        match self.device_metrics().await {
            Ok(devices) => text.push_str(&devices),
            Err(fault) => tracing::debug!("metrics of devices: {}", fault.words()),
        }
        http::answer(
            StatusCode::OK,
            "text/plain; version=0.0.4; charset=utf-8",
            text,
        )
    }

    async fn device_metrics(&self) -> Result<String, Fault> {
        let mut reader = self.readers.one().await?;
        let text = self
            .readers
            .within(metrics::devices(&mut reader.conn))
            .await?;
        reader.keep();
        Ok(text)
    }

    /// Devices behind `after`, and where the next ones are.
    pub(super) async fn devices(&self, query: &str) -> Response<Body> {
        let after = parameter(query, "after").unwrap_or_default();
        answered(self.lines(after).await)
    }

    async fn lines(&self, mut after: String) -> Answer {
        let now_ms = self.clock.now().wall_ms;
        let mut reader = self.readers.one().await?;
        let mut lines: Vec<Line> = Vec::new();
        let mut more = true;
        while more && lines.len() < DEVICES {
            let page = fleet::devices(&mut reader.conn, &after, None);
            let page = self.readers.within(page).await?;
            more = page.len() == fleet::PAGE;
            lines.extend(page.into_iter().map(|seen| Line::of(seen, now_ms)));
            after = lines.last().map_or(after, |line| line.device.clone());
        }
        reader.keep();
        let next = more.then_some(after);
        Ok(json_of(
            &json!({"devices": lines, "next": next, "version": crate::VERSION}),
        ))
    }

    /// The light of the last day of each device, a character a half hour: `-` is none, `0` to `Z` the share of the
    /// day's brightest (0 to 35). Made at most every ten minutes.
    pub(super) async fn curves(&self) -> Response<Body> {
        let mut curves = self.curves.lock().await;
        let is_old = curves.made.is_none_or(|made| made.elapsed() > CURVES_FOR);
        if is_old {
            match self.make_curves().await {
                Ok(json) => {
                    *curves = Curves {
                        made: Some(Instant::now()),
                        json,
                    };
                }
                Err(fault) => return failed(&fault),
            }
        }
        http::answer(StatusCode::OK, JSON, curves.json.clone())
    }

    async fn make_curves(&self) -> Result<String, Fault> {
        let now_ms = self.clock.now().wall_ms;
        let mut reader = self.readers.one().await?;
        let ids = self.readers.within(read::devices(&mut reader.conn)).await?;
        let mut curves = BTreeMap::new();
        for device in ids {
            let span = (now_ms - DAY_MS, now_ms);
            let samples = fleet::samples(&mut reader.conn, &device, span, CURVE);
            let samples = self.readers.within(samples).await?;
            let lights: Vec<_> = samples
                .iter()
                .map(|sample| sample.and_then(|s| s.light))
                .collect();
            if lights.iter().any(Option::is_some) {
                curves.insert(device, curve(&lights));
            }
        }
        reader.keep();
        Ok(serde_json::to_string(&curves).unwrap_or_default())
    }

    /// Lines that change, of all devices or of one, as events.
    pub(super) fn live(&self, query: &str) -> Response<Body> {
        self.live.events(parameter(query, "device"))
    }

    /// All that is shown of a device.
    pub(super) async fn device(&self, device: &str) -> Response<Body> {
        answered(self.whole(device).await)
    }

    async fn whole(&self, device: &str) -> Answer {
        #[derive(Serialize)]
        struct Told {
            ts: String,
            words: String,
        }
        let mut reader = self.readers.one().await?;
        let conn = &mut reader.conn;
        let Some(seen) = self.readers.within(fleet::device(conn, device)).await? else {
            return Ok(unknown());
        };
        let mut runs: Vec<RunReport> = self.readers.within(read::runs(conn, device)).await?;
        runs.reverse();
        runs.truncate(RUNS);
        let events = self
            .readers
            .within(fleet::events(conn, device, EVENTS))
            .await?;
        reader.keep();
        let events: Vec<Told> = events
            .into_iter()
            .map(|event| Told {
                words: words(&event),
                ts: event.ts,
            })
            .collect();
        let group = self
            .groups
            .iter()
            .find(|group| group.members.iter().any(|id| id == device));
        let why = State::of(&seen).why;
        let line = Line::of(seen, self.clock.now().wall_ms);
        Ok(json_of(&json!({
            "line": line,
            "why": why,
            "group": group.map(|group| &group.name),
            "can_switch": self.can_switch,
            "runs": runs,
            "events": events,
        })))
    }

    /// Light and LED over an hour, a day or a month, with outages and losses.
    pub(super) async fn plot(&self, device: &str, query: &str) -> Response<Body> {
        let length = match parameter(query, "span").as_deref() {
            None | Some("day") => DAY_MS,
            Some("hour") => DAY_MS / 24,
            Some("month") => 30 * DAY_MS,
            Some(_) => return bad("span is hour, day or month\n"),
        };
        let to = self.clock.now().wall_ms;
        answered(self.points(device, (to - length, to)).await)
    }

    async fn points(&self, device: &str, span: (i64, i64)) -> Answer {
        let mut reader = self.readers.one().await?;
        let conn = &mut reader.conn;
        let samples = fleet::samples(conn, device, span, POINTS);
        let samples = self.readers.within(samples).await?;
        let troubles = self
            .readers
            .within(fleet::troubles(conn, device, span))
            .await?;
        reader.keep();
        let light: Vec<_> = samples
            .iter()
            .map(|sample| sample.and_then(|s| s.light))
            .collect();
        let led: Vec<_> = samples
            .iter()
            .map(|sample| sample.and_then(|s| s.led_on))
            .collect();
        Ok(json_of(&json!({
            "from": span.0, "to": span.1, "light": light, "led": led, "troubles": troubles,
        })))
    }

    /// Records of a device as a stream: `from`, `to` (RFC 3339), `format` (`jsonl` or `csv`).
    pub(super) async fn records(&self, device: &str, query: &str) -> Response<Body> {
        let form = match parameter(query, "format").as_deref() {
            None | Some("jsonl") => Form::Lines,
            Some("csv") => Form::Csv,
            Some(_) => return bad("format is jsonl or csv\n"),
        };
        let mut span = Span::default();
        for (name, bound) in [("from", &mut span.from_ms), ("to", &mut span.to_ms)] {
            if let Some(text) = parameter(query, name) {
                *bound = milliseconds(&text);
                if bound.is_none() {
                    return bad("from and to are times such as 2026-11-20T17:00:00Z\n");
                }
            }
        }
        match self.is_known(device).await {
            Ok(true) => records::stream(self.readers.clone(), device.to_owned(), span, form),
            Ok(false) => unknown(),
            Err(fault) => failed(&fault),
        }
    }

    /// Switches by hand: `{"led_on": true}`, `false`, or `null` for the rules.
    pub(super) async fn switch(&self, kind: &str, name: &str, body: &[u8]) -> Response<Body> {
        #[derive(Deserialize)]
        #[serde(deny_unknown_fields)]
        struct Switch {
            #[serde(deserialize_with = "Option::deserialize")]
            led_on: Option<bool>,
        }
        let Ok(Switch { led_on }) = serde_json::from_slice(body) else {
            return bad("write {\"led_on\": true}, false, or null for the rules\n");
        };
        let known = match kind {
            "groups" => Ok(self.groups.iter().any(|group| group.name == name)),
            _ => self.is_known(name).await,
        };
        let subject = match kind {
            "groups" => Subject::Group(name.to_owned()),
            _ => Subject::Device(name.to_owned()),
        };
        match known {
            Ok(true) => answered(self.keep_switch(&subject, led_on).await),
            Ok(false) => unknown(),
            Err(fault) => failed(&fault),
        }
    }

    async fn keep_switch(&self, subject: &Subject, led_on: Option<bool>) -> Answer {
        let mut reader = self.readers.one().await?;
        let now_ms = self.clock.now().wall_ms;
        let done = switches::set(&mut reader.conn, subject, led_on, now_ms);
        self.readers.within(done).await?;
        reader.keep();
        tracing::info!("{subject:?} is switched by hand: {led_on:?}");
        Ok(json_of(&json!({"led_on": led_on})))
    }

    async fn is_known(&self, device: &str) -> Result<bool, Fault> {
        let mut reader = self.readers.one().await?;
        let found = read::report(&mut reader.conn, device);
        let found = self.readers.within(found).await?;
        reader.keep();
        Ok(found.is_some())
    }
}

fn answered(answer: Answer) -> Response<Body> {
    answer.unwrap_or_else(|fault| failed(&fault))
}

fn failed(fault: &Fault) -> Response<Body> {
    tracing::debug!("a question was not answered: {}", fault.words());
    unavailable("the database does not answer; see the log of the server\n")
}

fn unavailable(why: &str) -> Response<Body> {
    http::text(StatusCode::SERVICE_UNAVAILABLE, why)
}

fn unknown() -> Response<Body> {
    http::text(StatusCode::NOT_FOUND, "it is not known here\n")
}

fn bad(why: &str) -> Response<Body> {
    http::text(StatusCode::BAD_REQUEST, why)
}

fn json_of(value: &serde_json::Value) -> Response<Body> {
    http::answer(StatusCode::OK, JSON, value.to_string())
}

/// A value of a query.
fn parameter(query: &str, name: &str) -> Option<String> {
    let value = query
        .split('&')
        .find_map(|pair| pair.strip_prefix(name)?.strip_prefix('='))?;
    // A plus is one: times have it, and nothing here has spaces.
    let value = percent_decode_str(value).decode_utf8().ok()?;
    (!value.is_empty()).then(|| value.into_owned())
}

fn curve(lights: &[Option<f64>]) -> String {
    const DIGITS: &[u8; 36] = b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ";
    let brightest = lights.iter().flatten().copied().fold(0.0, f64::max);
    let share = |light: f64| match brightest > 0.0 {
        // Rounded, and cut to the digits there are.
        true => (light.max(0.0) / brightest * 35.0).round() as usize,
        false => 0,
    };
    lights
        .iter()
        .map(|light| match light {
            Some(light) => DIGITS
                .get(share(*light))
                .map_or('Z', |digit| char::from(*digit)),
            None => '-',
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_curve_is_the_share_of_the_brightest() {
        assert_eq!(
            curve(&[None, Some(0.0), Some(50.0), Some(100.0), Some(-3.0)]),
            "-0IZ0"
        );
        assert_eq!(curve(&[Some(0.0)]), "0");
    }

    #[test]
    fn parameters_are_decoded() {
        let query = "from=2026-11-20T17%3A00%3A00Z&device=a%2Fb%20c&to=";
        assert_eq!(
            parameter(query, "from").as_deref(),
            Some("2026-11-20T17:00:00Z")
        );
        assert_eq!(parameter(query, "device").as_deref(), Some("a/b c"));
        assert_eq!(parameter(query, "to"), None);
        assert_eq!(parameter(query, "dev"), None);
    }
}
