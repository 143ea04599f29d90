//! `/metrics`: the device in numbers, in the text format of Prometheus.
//!
//! Pure. Counters begin with the run and end in `_total`; gauges that nobody knows are left out. Every label is
//! one of a few that are known beforehand, and each of them is there from the beginning, so that a rate can be
//! made of it before the first time. docs/page.md lists them.

use std::fmt::{Display, Write};

use crate::logic::View;
use crate::logic::command::Outcome;
use crate::logic::counters::{Outages, loss_reasons};
use crate::logic::time::ClockState;

const DECIDERS: [&str; 4] = ["start", "remote", "fallback", "fail-safe"];
const CAUSES: [&str; 2] = ["link", "server"];

/// The metrics under way.
#[derive(Default)]
struct Text(String);

impl Text {
    fn head(&mut self, name: &str, kind: &str, help: &str) {
        // Writing into a text cannot fail.
        let _ = writeln!(self.0, "# HELP nightlight_{name} {help}");
        let _ = writeln!(self.0, "# TYPE nightlight_{name} {kind}");
    }

    fn sample(&mut self, name: &str, labels: &[(&str, &str)], value: impl Display) {
        let labels: Vec<_> = labels
            .iter()
            .map(|(label, value)| format!("{label}=\"{}\"", escaped(value)))
            .collect();
        let labels = match labels.is_empty() {
            true => String::new(),
            false => format!("{{{}}}", labels.join(",")),
        };
        let _ = writeln!(self.0, "nightlight_{name}{labels} {value}");
    }

    fn gauge(&mut self, name: &str, help: &str, value: impl Display) {
        self.head(name, "gauge", help);
        self.sample(name, &[], value);
    }

    /// Left out where it is not known.
    fn known(&mut self, name: &str, help: &str, value: Option<impl Display>) {
        if let Some(value) = value {
            self.gauge(name, help, value);
        }
    }

    fn truth(&mut self, name: &str, help: &str, is_so: bool) {
        self.gauge(name, help, u8::from(is_so));
    }

    fn counter(&mut self, name: &str, help: &str, value: u64) {
        self.head(name, "counter", help);
        self.sample(name, &[], value);
    }

    /// One sample for each value of a label.
    fn each<'a, V: Display>(
        &mut self,
        (name, kind, help): (&str, &str, &str),
        label: &str,
        samples: impl Iterator<Item = (&'a str, V)>,
    ) {
        self.head(name, kind, help);
        for (value, number) in samples {
            self.sample(name, &[(label, value)], number);
        }
    }
}

/// The metrics of the device.
pub(super) fn metrics(view: &View) -> String {
    let mut text = Text::default();
    about(&mut text, view);
    now(&mut text, view);
    counted(&mut text, view);
    text.0
}

fn about(text: &mut Text, view: &View) {
    text.head("build_info", "gauge", "The program; always 1.");
    text.sample("build_info", &[("version", &view.version)], 1);
    let help = "The sensor's driver and the unit of light, where it is known; always 1.";
    text.head("sensor_info", "gauge", help);
    let unit = view.unit.as_deref().unwrap_or_default();
    let labels = [("driver", view.sensor.as_str()), ("unit", unit)];
    text.sample("sensor_info", &labels, 1);
}

fn now(text: &mut Text, view: &View) {
    text.known(
        "light",
        "The last light, in the unit of sensor_info; absent while the sensor fails.",
        view.light,
    );
    text.known(
        "light_age_seconds",
        "How long ago the last reading was.",
        view.light_age_s,
    );
    text.known(
        "led_on",
        "Whether the LED is on, as last written or read back.",
        view.led_on.map(u8::from),
    );
    text.truth("led_ok", "Whether the LED can be written.", view.led_ok);
    text.truth(
        "sensor_ok",
        "Whether the sensor gives readings.",
        view.sensor_ok,
    );
    let authority = (
        "authority",
        "gauge",
        "Who decides about the LED: 1 for the one who does.",
    );
    let decides = |by: &&'static str| (*by, u8::from(view.by == *by));
    text.each(authority, "by", DECIDERS.iter().map(decides));
    text.truth(
        "remote",
        "Whether the server decides about the LED.",
        view.by == "remote",
    );
    text.known(
        "lease_left_seconds",
        "Until the server's lease ends; absent when none runs.",
        view.lease_left_s,
    );
    text.truth("link_up", "Whether the broker is connected.", view.link_up);
    text.gauge(
        "backlog_records",
        "Records that are not confirmed and not just being delivered live.",
        view.backlog,
    );
    text.known(
        "backlog_bytes",
        "Bytes of them in the store, compressed; absent before it was opened.",
        view.backlog_bytes,
    );
    text.known("backlog_oldest_age_seconds", "Age of the oldest of them; absent without one, or without a clock that is known to be right.", view.backlog_oldest_age_s);
    text.truth(
        "store_ok",
        "Whether the store of the backlog is open and takes records.",
        view.store_ok,
    );
    let clock = (
        "clock_state",
        "gauge",
        "What the wall clock is worth: 1 for what holds.",
    );
    let states = [ClockState::Synced, ClockState::Unsynced];
    text.each(
        clock,
        "state",
        states
            .iter()
            .map(|state| (state.name(), u8::from(view.clock == *state))),
    );
    text.gauge(
        "current_outage_seconds",
        "How long the outage under way lasts; 0 without one.",
        view.outage_s.unwrap_or_default(),
    );
    let lost = view.last_outage.as_ref().and_then(|last| last.lost);
    text.known("last_outage_lost_records", "Records that the last outage lost; absent before the first and at QoS 0, where nobody knows.", lost);
    text.known(
        "heard",
        "Whether somebody listens to the readings; absent while nobody can know.",
        view.heard.map(u8::from),
    );
    text.known(
        "broker_receive_maximum",
        "Most publications that the broker takes before it has answered one; absent before it said so.",
        view.mqtt.as_ref().map(|offer| offer.receive_max),
    );
    text.known(
        "broker_maximum_packet_bytes",
        "The largest packet that the broker takes; absent where any is taken.",
        view.mqtt.as_ref().and_then(|offer| offer.max_packet),
    );
    text.gauge(
        "last_seq",
        "The number of the newest record of this run.",
        view.last_seq,
    );
    text.known(
        "loop_lag_seconds",
        "By how much the loop was late at most in the last minute.",
        view.loop_lag_s,
    );
}

fn counted(text: &mut Text, view: &View) {
    let counters = &view.counters;
    let kinds = [("reading", counters.readings), ("event", counters.events)];
    text.each(
        ("records_total", "counter", "Records made."),
        "kind",
        kinds.into_iter(),
    );
    text.counter(
        "published_records_total",
        "Records published live, each time that one was.",
        counters.published,
    );
    text.counter(
        "replayed_records_total",
        "Records and losses published as history, each time that one was.",
        counters.replayed,
    );
    text.counter(
        "confirmed_records_total",
        "Records and losses that were confirmed.",
        counters.confirmed,
    );
    let lost = |reason: &'static str| (reason, counters.lost.get(reason).copied().unwrap_or(0));
    let help = "Records given up, each in a loss record: by memory, because the broker does not take them, or by the store.";
    text.each(
        ("lost_records_total", "counter", help),
        "reason",
        loss_reasons().map(lost),
    );
    let outages =
        |cause: &str| -> Outages { counters.outages.get(cause).copied().unwrap_or_default() };
    text.each(
        ("outages_total", "counter", "Outages that are over."),
        "cause",
        CAUSES.iter().map(|cause| (*cause, outages(cause).count)),
    );
    text.each(
        (
            "outage_seconds_total",
            "counter",
            "How long all of them were.",
        ),
        "cause",
        CAUSES.iter().map(|cause| (*cause, outages(cause).seconds)),
    );
    text.counter(
        "sessions_total",
        "Sessions with the broker that began.",
        counters.sessions,
    );
    let reconnects = counters.sessions.saturating_sub(1);
    text.counter(
        "reconnects_total",
        "Those among them after the first.",
        reconnects,
    );
    let changes = |by: &&'static str| (*by, counters.led_changes.get(*by).copied().unwrap_or(0));
    text.each(
        (
            "led_changes_total",
            "counter",
            "LED changes by who decided.",
        ),
        "by",
        DECIDERS.iter().map(changes),
    );
    text.counter(
        "sensor_errors_total",
        "Readings that the sensor did not give.",
        counters.sensor_errors,
    );
    text.counter(
        "led_errors_total",
        "Times that the LED could not be written.",
        counters.led_errors,
    );
    let commands = |result: Outcome| {
        (
            result.name(),
            counters.commands.get(&result).copied().unwrap_or(0),
        )
    };
    text.each(
        ("commands_total", "counter", "Commands by result."),
        "result",
        Outcome::ALL.into_iter().map(commands),
    );
    text.counter(
        "results_dropped_total",
        "Results that a flood of commands left no room for.",
        view.results_dropped,
    );
    let refused = view.refused.iter();
    text.each(
        (
            "refused_publications_total",
            "counter",
            "Publications that the broker refused, by its reason, and those that nobody listens to.",
        ),
        "reason",
        refused.map(|(reason, count)| (reason.as_str(), *count)),
    );
    text.counter(
        "store_commits_total",
        "Groups of records that were put into the store.",
        counters.store_commits,
    );
    text.counter(
        "store_errors_total",
        "Groups that could not be.",
        counters.store_errors,
    );
    text.known("written_today_bytes", "Bytes that the program had the system write since midnight (UTC) or its start; absent where the system does not count them.", view.written_today_bytes);
}

/// A label's value as the format wants it.
fn escaped(text: &str) -> String {
    text.replace('\\', "\\\\")
        .replace('"', "\\\"")
        .replace('\n', "\\n")
}
