//! The past in rings: bounded, in order, and true about what nobody saw.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::time::Duration;

use nightlight::logic::past::{EVENTS, MAX_TEXT, Moment, OUTAGES, Past, SECONDS, SLOT_S, SLOTS};
use nightlight::logic::telemetry::OutageReport;
use proptest::prelude::*;
use serde_json::Value;

const BOUND: usize = 300_000;

fn moment(light: f64, led_on: bool, link_up: bool) -> Moment {
    Moment {
        light: Some(light),
        led_on: Some(led_on),
        by: if link_up { "remote" } else { "fallback" },
        link_up,
        backlog: if link_up { 0 } else { 7 },
    }
}

fn report(why: &str) -> OutageReport {
    OutageReport {
        cause: "link".into(),
        began: "2026-11-20T17:03:11.250Z".into(),
        ended: "2026-11-20T17:03:41.250Z".into(),
        seconds: 30.0,
        readings: 30,
        events: 1,
        led_changes: 1,
        lost: Some(0),
        short_sessions: 0,
        why: why.into(),
    }
}

fn at(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

fn json(past: &Past) -> Value {
    serde_json::from_str(&past.to_json()).unwrap()
}

/// A day and more, observed every five seconds, as a loop does that waits for its readings.
fn observed(past: &mut Past, from: u64, to: u64, moment: impl Fn(u64) -> Moment) {
    for second in (from..=to).step_by(5) {
        past.observe(moment(second), at(second));
        past.expect(at(second + 5));
    }
}

#[test]
fn an_outage_is_a_band_of_its_seconds() {
    let mut past = Past::new(at(100));
    observed(&mut past, 100, 160, |second| {
        moment(500.0, second >= 130, !(120..140).contains(&second))
    });
    let json = json(&past);
    let (hour, from) = (&json["hour"], json["hour"]["from_s"].as_u64().unwrap());
    assert_eq!(from, 100);
    let expected: String = (100..=160)
        .map(|second| {
            if (120..140).contains(&second) {
                '0'
            } else {
                '1'
            }
        })
        .collect();
    assert_eq!(hour["link"], expected);
    assert_eq!(hour["by"].as_str().unwrap().matches('f').count(), 20);
    assert_eq!(hour["backlog"][25], 7);
    assert_eq!(hour["light"][0], 500);
    assert_eq!(
        json["week"]["link"], "0",
        "a minute without the link shows in its ten"
    );
}

#[test]
fn time_in_which_nothing_ran_is_not_known() {
    let mut past = Past::new(at(0));
    observed(&mut past, 0, 60, |_| moment(10.0, true, true));
    // The machine slept: the loop was to wake at 65.
    past.observe(moment(20.0, true, true), at(4_000));
    let json = json(&past);
    let link = json["hour"]["link"].as_str().unwrap();
    assert_eq!(link.len(), SECONDS + 1);
    assert_eq!(&link[link.len() - 2..], "?1");
    assert!(json["hour"]["light"][SECONDS - 1].is_null());
    let week = json["week"]["link"].as_str().unwrap();
    assert_eq!(
        week, "???????",
        "most of the first ten minutes, and all later ones"
    );
}

#[test]
fn a_month_of_sleep_costs_no_more_than_a_week() {
    let mut past = Past::new(at(0));
    past.observe(moment(10.0, true, true), at(0));
    past.observe(moment(10.0, true, true), at(10_000_000));
    let json = json(&past);
    assert!(json["week"]["led"].as_str().unwrap().len() <= SLOTS + 1);
    assert!(past.bytes() < BOUND);
}

#[test]
fn the_newest_events_and_outages_stay_in_their_order() {
    let mut past = Past::new(at(0));
    for number in 0..3 * EVENTS as u64 {
        past.tell(&format!("event {number}"), number % 2 == 0, at(number));
        past.outage(report(&format!("outage {number}")), at(number));
    }
    let json = json(&past);
    let events = json["events"].as_array().unwrap();
    assert_eq!(events.len(), EVENTS);
    assert_eq!(
        events[EVENTS - 1]["text"],
        format!("event {}", 3 * EVENTS - 1)
    );
    assert_eq!(json["outages"].as_array().unwrap().len(), OUTAGES);
    let newest: Vec<_> = past.events_after(past.told() - 2).collect();
    assert_eq!(newest.len(), 2);
    assert!(newest[0].number < newest[1].number);
}

#[test]
fn a_text_is_one_short_line() {
    let mut past = Past::new(at(0));
    past.tell(&format!("a\nb\u{1b}[31m{}", "ä".repeat(1_000)), true, at(0));
    let event = past.events_after(0).next().unwrap();
    assert!(event.text.len() <= MAX_TEXT && event.text.ends_with('…'));
    assert!(!event.text.contains(char::is_control));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    /// Whatever is fed, and however irregularly: bounded, each ring as long as it may be, and the newest
    /// sample is the newest moment.
    #[test]
    fn bounded_and_in_order(steps in prop::collection::vec(
        (0_u64..40_000, prop::option::of(-1e9_f64..1e9), any::<bool>(), any::<u32>(), ".{0,400}"), 1..60))
    {
        let mut past = Past::new(at(0));
        let mut now = 0;
        for (pause, light, link_up, backlog, text) in &steps {
            now += pause;
            let moment = Moment {
                light: *light,
                led_on: None,
                by: "start",
                link_up: *link_up,
                backlog: u64::from(*backlog),
            };
            past.observe(moment, at(now));
            past.expect(at(now + pause / 2));
            past.tell(text, *link_up, at(now));
            past.outage(report(text), at(now));
            prop_assert!(past.bytes() < BOUND, "{}", past.bytes());
        }
        let json = json(&past);
        for (curve, most, step) in [("hour", SECONDS, 1), ("week", SLOTS, SLOT_S)] {
            let curve = &json[curve];
            let samples = curve["led"].as_str().unwrap().len();
            prop_assert!(samples <= most + 1);
            prop_assert_eq!(curve["light"].as_array().unwrap().len(), samples);
            prop_assert_eq!(curve["backlog"].as_array().unwrap().len(), samples);
            let until = curve["from_s"].as_u64().unwrap() + samples as u64 * step;
            prop_assert!(until > now && until <= now + step, "{} {}", until, now);
        }
        let last = steps.last().unwrap();
        let link = json["hour"]["link"].as_str().unwrap();
        prop_assert_eq!(link.ends_with('1'), last.2);
        let times: Vec<_> = json["events"].as_array().unwrap().iter()
            .map(|event| event["at_s"].as_f64().unwrap()).collect();
        prop_assert!(times.is_sorted());
    }
}
