//! One frame of the live stream: what changes on the page, once a second, in at most [`MAX_FRAME`] bytes.
//!
//! Pure. Texts are cut and events wait for the next frame where there is no room, so that whatever a broker or
//! a command says, a viewer costs no more.

use serde::Serialize;

use crate::logic::View;
use crate::logic::lighting::Mode;
use crate::logic::past::{Happened, clipped};
use crate::logic::time::ClockState;

/// The longest frame, in bytes; with what the stream adds it stays under 2 kB.
pub(super) const MAX_FRAME: usize = 1_960;
/// Longer texts are cut, in bytes as JSON.
const MAX_TEXT: usize = 220;

#[derive(Serialize)]
struct Frame<'a> {
    at: &'a str,
    boot_s: f64,
    run: String,
    light: Option<f64>,
    led_on: Option<bool>,
    led_ok: bool,
    by: &'a str,
    why: String,
    led_since_s: f64,
    lease_left_s: Option<f64>,
    mode: Mode,
    on_below: f64,
    off_above: f64,
    link_up: bool,
    link_why: String,
    backlog: u64,
    backlog_oldest_age_s: Option<f64>,
    store_ok: bool,
    written_today_bytes: Option<u64>,
    clock: ClockState,
    sensor_ok: bool,
    sensor_why: String,
    outage_s: Option<f64>,
    outages: u64,
    events: &'a [Happened],
}

/// The frame: the device as it is, how many outages are over, and as many of the new `events` as there is
/// room for, oldest first.
pub(super) fn frame(view: &View, events: &[Happened], outages: u64) -> String {
    for count in (0..=events.len()).rev() {
        let text = with_events(view, events.get(..count).unwrap_or_default(), outages);
        if text.len() <= MAX_FRAME || count == 0 {
            return text;
        }
    }
    String::new()
}

fn with_events(view: &View, events: &[Happened], outages: u64) -> String {
    let frame = Frame {
        at: &view.at,
        boot_s: view.boot_s,
        run: view.run.to_string(),
        light: view.light,
        led_on: view.led_on,
        led_ok: view.led_ok,
        by: &view.by,
        why: cut(&view.why),
        led_since_s: view.led_since_s,
        lease_left_s: view.lease_left_s,
        mode: view.rules.mode,
        on_below: view.rules.on_below,
        off_above: view.rules.off_above,
        link_up: view.link_up,
        link_why: cut(&view.link_why),
        backlog: view.backlog,
        backlog_oldest_age_s: view.backlog_oldest_age_s,
        store_ok: view.store_ok,
        written_today_bytes: view.written_today_bytes,
        clock: view.clock,
        sensor_ok: view.sensor_ok,
        sensor_why: cut(&view.sensor_why),
        outage_s: view.outage_s,
        outages,
        events,
    };
    // Serializing strings and finite numbers into memory has no way to fail.
    serde_json::to_string(&frame).unwrap_or_default()
}

/// As much of the text as takes at most [`MAX_TEXT`] bytes in JSON, where a quote takes two.
fn cut(text: &str) -> String {
    let text = clipped(text);
    let mut bytes = 0;
    let fits = |sign: &char| {
        bytes += sign.len_utf8() + usize::from(matches!(sign, '"' | '\\'));
        bytes <= MAX_TEXT
    };
    text.chars().take_while(fits).collect()
}
