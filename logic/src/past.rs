//! What was: the last hour by the second, the last week by ten minutes, the last events in words, and the
//! outages that are over. For people who look; nothing is decided by it.
//!
//! All of it is in memory, in rings whose size never changes: under 300 kB, and nothing on the card. Times are
//! on the boot clock. Between two calls of [`Past::observe`] the device stayed as it was, because it changes
//! only when the controller is called; but time in which the program did not run (see [`Past::expect`]) is not
//! known and says so. The daemon feeds it; the page reads [`Past::to_json`].

use std::collections::VecDeque;
use std::time::Duration;

use serde::Serialize;

use super::telemetry::{OutageReport, PlainNumber};

/// Seconds that are kept.
pub const SECONDS: usize = 3_600;
/// A slot of the week, in seconds, and how many are kept.
pub const SLOT_S: u64 = 600;
/// Slots of the week that are kept.
pub const SLOTS: usize = 7 * 24 * 6;
/// Events and outages that are kept.
pub const EVENTS: usize = 100;
/// Outages that are kept.
pub const OUTAGES: usize = 32;
/// Longer texts are cut off, in bytes.
pub const MAX_TEXT: usize = 240;
/// A loop that wakes so late was not only busy: it did not run.
const LATE: Duration = Duration::from_secs(2);

/// The device at one moment, as far as the curves and bands of the past show it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Moment {
    /// The last light, in the sensor's unit; `None` while there is none that can be trusted.
    pub light: Option<f64>,
    /// The LED as last written or read back.
    pub led_on: Option<bool>,
    /// Who decides: `start`, `remote`, `fallback` or `fail-safe`.
    pub by: &'static str,
    /// Whether a session with the broker stands.
    pub link_up: bool,
    /// Records that are not confirmed.
    pub backlog: u64,
}

/// One second; `link` is unknown where the program did not run.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Second {
    light: f32,
    backlog: u32,
    led: u8,
    by: u8,
    link: u8,
}

const UNKNOWN: Second = Second {
    light: f32::NAN,
    backlog: 0,
    led: b'?',
    by: b'?',
    link: b'?',
};

impl Second {
    fn of(moment: Moment) -> Self {
        let bit = |is: bool| if is { b'1' } else { b'0' };
        Self {
            light: moment.light.map_or(f32::NAN, |light| light as f32),
            backlog: u32::try_from(moment.backlog).unwrap_or(u32::MAX),
            led: moment.led_on.map_or(b'?', bit),
            by: match moment.by {
                "remote" => b'r',
                "fallback" => b'f',
                "fail-safe" => b'x',
                _ => b's',
            },
            link: bit(moment.link_up),
        }
    }
}

/// Ten minutes: the range of the light, the longest of each band, the largest backlog.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Slot {
    low: f32,
    high: f32,
    backlog: u32,
    led: u8,
    by: u8,
    link: u8,
}

/// The slot under way: seconds of each state.
#[derive(Debug, Clone, Default)]
struct Tally {
    low: Option<f32>,
    high: Option<f32>,
    backlog: u32,
    led: [u16; 3],
    by: [u16; 5],
    link: [u16; 3],
}

const LEDS: [u8; 3] = *b"?01";
const DECIDERS: [u8; 5] = *b"?srfx";

impl Tally {
    fn add(&mut self, second: &Second) {
        if !second.light.is_nan() {
            let low = self.low.map_or(second.light, |low| low.min(second.light));
            let high = self
                .high
                .map_or(second.light, |high| high.max(second.light));
            (self.low, self.high) = (Some(low), Some(high));
        }
        self.backlog = self.backlog.max(second.backlog);
        count(&mut self.led, &LEDS, second.led);
        count(&mut self.by, &DECIDERS, second.by);
        count(&mut self.link, &LEDS, second.link);
    }

    /// What the slot was for the longest; for the link, any second without it counts, since an outage of a
    /// minute is what one looks for.
    fn close(&self) -> Slot {
        let is_down = self.link[1] > 0;
        Slot {
            low: self.low.unwrap_or(f32::NAN),
            high: self.high.unwrap_or(f32::NAN),
            backlog: self.backlog,
            led: longest(&self.led, &LEDS),
            by: longest(&self.by, &DECIDERS),
            link: if is_down {
                b'0'
            } else {
                longest(&self.link, &LEDS)
            },
        }
    }
}

fn count<const N: usize>(counts: &mut [u16; N], names: &[u8; N], name: u8) {
    let place = names.iter().position(|other| *other == name).unwrap_or(0);
    counts[place] = counts[place].saturating_add(1);
}

fn longest<const N: usize>(counts: &[u16; N], names: &[u8; N]) -> u8 {
    let place = (0..N).max_by_key(|place| counts[*place]).unwrap_or(0);
    names[place]
}

/// Something that happened, in words.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Happened {
    /// Counts from 1; one that was dropped for newer ones leaves a hole at the beginning.
    pub number: u64,
    /// When, in seconds on the boot clock.
    pub at_s: f64,
    /// Whether a person may have to do something.
    pub warns: bool,
    /// What, in words.
    pub text: String,
}

/// An outage that is over.
#[derive(Debug, Clone, PartialEq, Serialize)]
struct PastOutage {
    /// When it was reported, in seconds on the boot clock.
    at_s: f64,
    #[serde(flatten)]
    report: OutageReport,
}

/// The past of this run.
#[derive(Debug, Clone)]
pub struct Past {
    seconds: VecDeque<Second>,
    slots: VecDeque<Slot>,
    tally: Tally,
    events: VecDeque<Happened>,
    outages: VecDeque<PastOutage>,
    /// The device as it is since the last call, and the second that this is of.
    current: Option<(u64, Second)>,
    /// When the program is to run again at the latest.
    expected: Duration,
    told: u64,
}

impl Past {
    /// Nothing yet; `now` is on the boot clock.
    pub fn new(now: Duration) -> Self {
        Self {
            seconds: VecDeque::with_capacity(SECONDS),
            slots: VecDeque::with_capacity(SLOTS),
            tally: Tally::default(),
            events: VecDeque::with_capacity(EVENTS),
            outages: VecDeque::with_capacity(OUTAGES),
            current: None,
            expected: now,
            told: 0,
        }
    }

    /// The device is so at `now`, and was as at the last call until now.
    pub fn observe(&mut self, moment: Moment, now: Duration) {
        let second = Second::of(moment);
        if let Some((at, before)) = self.current {
            let known_to = self.expected.saturating_add(LATE).as_secs();
            self.fill(at, now.as_secs(), known_to, before);
        }
        self.current = Some((now.as_secs(), second));
    }

    /// The program now waits, and runs again at `until` at the latest (boot clock).
    pub fn expect(&mut self, until: Duration) {
        self.expected = until;
    }

    /// Something happened, in words.
    pub fn tell(&mut self, text: &str, warns: bool, now: Duration) {
        self.told += 1;
        let event = Happened {
            number: self.told,
            at_s: in_seconds(now),
            warns,
            text: clipped(text),
        };
        push(&mut self.events, event, EVENTS);
    }

    /// An outage is over.
    pub fn outage(&mut self, mut report: OutageReport, now: Duration) {
        report.why = clipped(&report.why);
        let outage = PastOutage {
            at_s: in_seconds(now),
            report,
        };
        push(&mut self.outages, outage, OUTAGES);
    }

    /// The number of the newest event; 0 before the first.
    pub fn told(&self) -> u64 {
        self.told
    }

    /// The events after the one with the number `after`, oldest first.
    pub fn events_after(&self, after: u64) -> impl Iterator<Item = &Happened> {
        self.events.iter().filter(move |event| event.number > after)
    }

    /// All of it as one JSON object, as docs/page.md describes it.
    pub fn to_json(&self) -> String {
        #[derive(Serialize)]
        struct Curve<'a> {
            /// The first sample, in seconds on the boot clock.
            from_s: u64,
            step_s: u64,
            light: Vec<Option<PlainNumber>>,
            #[serde(skip_serializing_if = "Option::is_none")]
            light_high: Option<Vec<Option<PlainNumber>>>,
            led: &'a str,
            by: &'a str,
            link: &'a str,
            backlog: Vec<u32>,
        }
        #[derive(Serialize)]
        struct All<'a> {
            hour: Curve<'a>,
            week: Curve<'a>,
            events: &'a VecDeque<Happened>,
            outages: &'a VecDeque<PastOutage>,
        }
        let light = |light: f32| {
            let tenths = (f64::from(light) * 100.0).round() / 100.0;
            (!light.is_nan()).then_some(PlainNumber(tenths))
        };
        let mut seconds: Vec<Second> = self.seconds.iter().copied().collect();
        let until = self.current.map_or(0, |(at, _)| at + 1);
        seconds.extend(self.current.map(|(_, second)| second));
        let mut slots: Vec<Slot> = self.slots.iter().copied().collect();
        slots.push(self.tally.close());
        let slots_until = (until.saturating_sub(1) / SLOT_S + 1) * SLOT_S;
        let seconds_of = |sign: fn(&Second) -> u8| text(seconds.iter().map(sign));
        let slots_of = |sign: fn(&Slot) -> u8| text(slots.iter().map(sign));
        let (led, by, link) = (
            seconds_of(|second| second.led),
            seconds_of(|second| second.by),
            seconds_of(|second| second.link),
        );
        let (slot_led, slot_by, slot_link) = (
            slots_of(|slot| slot.led),
            slots_of(|slot| slot.by),
            slots_of(|slot| slot.link),
        );
        let all = All {
            hour: Curve {
                from_s: until.saturating_sub(seconds.len() as u64),
                step_s: 1,
                light: seconds.iter().map(|second| light(second.light)).collect(),
                light_high: None,
                led: &led,
                by: &by,
                link: &link,
                backlog: seconds.iter().map(|second| second.backlog).collect(),
            },
            week: Curve {
                from_s: slots_until.saturating_sub(slots.len() as u64 * SLOT_S),
                step_s: SLOT_S,
                light: slots.iter().map(|slot| light(slot.low)).collect(),
                light_high: Some(slots.iter().map(|slot| light(slot.high)).collect()),
                led: &slot_led,
                by: &slot_by,
                link: &slot_link,
                backlog: slots.iter().map(|slot| slot.backlog).collect(),
            },
            events: &self.events,
            outages: &self.outages,
        };
        // Serializing strings and finite numbers into memory has no way to fail.
        serde_json::to_string(&all).unwrap_or_default()
    }

    /// The memory that it has, in bytes, without what the allocator adds.
    pub fn bytes(&self) -> usize {
        let texts = |report: &OutageReport| {
            let OutageReport {
                cause,
                began,
                ended,
                why,
                ..
            } = report;
            [cause, began, ended, why]
                .map(|text| text.capacity())
                .iter()
                .sum::<usize>()
        };
        size_of::<Self>()
            + self.seconds.capacity() * size_of::<Second>()
            + self.slots.capacity() * size_of::<Slot>()
            + self.events.capacity() * size_of::<Happened>()
            + self.outages.capacity() * size_of::<PastOutage>()
            + self
                .events
                .iter()
                .map(|event| event.text.capacity())
                .sum::<usize>()
            + self
                .outages
                .iter()
                .map(|outage| texts(&outage.report))
                .sum::<usize>()
    }

    /// The seconds `from` until `to`: as `before` up to `known_to`, and unknown after it.
    fn fill(&mut self, from: u64, to: u64, known_to: u64, before: Second) {
        // Of a longer time only the newest slots stay.
        let longest = (SLOTS as u64 + 1) * SLOT_S;
        let from = from.max(to.saturating_sub(longest));
        for at in from..to {
            let second = if at <= known_to { before } else { UNKNOWN };
            push(&mut self.seconds, second, SECONDS);
            self.tally.add(&second);
            if (at + 1) % SLOT_S == 0 {
                push(&mut self.slots, self.tally.close(), SLOTS);
                self.tally = Tally::default();
            }
        }
    }
}

fn push<T>(ring: &mut VecDeque<T>, item: T, max: usize) {
    if ring.len() >= max {
        ring.pop_front();
    }
    ring.push_back(item);
}

fn text(signs: impl Iterator<Item = u8>) -> String {
    signs.map(char::from).collect()
}

fn in_seconds(time: Duration) -> f64 {
    time.as_millis() as f64 / 1_000.0
}

/// The text, or as much of it as is kept; control characters are replaced, so that it is one line anywhere.
pub fn clipped(text: &str) -> String {
    let mut clipped = String::with_capacity(text.len().min(MAX_TEXT));
    for sign in text.chars() {
        if clipped.len() + sign.len_utf8() > MAX_TEXT - '…'.len_utf8() {
            clipped.push('…');
            break;
        }
        clipped.push(if sign.is_control() { ' ' } else { sign });
    }
    clipped
}
