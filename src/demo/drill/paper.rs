//! The drill's report as JSON: what the machine is, what happened when, and the account.
//!
//! For somebody else to read, so it has no name of the device, no address, no path and no secret. Texts of the
//! service name topics and addresses, and are left out: what happened is told by times and curves. Called by the
//! parent module.

use std::fs;

use jiff::Timestamp;
use serde_json::{Value, json};

use super::super::account::Verdict;
use super::watch::Watch;
use crate::config::Config;
use crate::doctor;
use crate::io::clock::{BUILT_MS, Clock};
use crate::logic::View;

/// How long things took, in seconds.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(super) struct Times {
    /// From the cut to the mending.
    pub(super) cut_s: Option<f64>,
    /// From the cut until the service knew.
    pub(super) noticed_s: Option<f64>,
    /// From the cut until the Pi decided by itself.
    pub(super) decided_s: Option<f64>,
    /// From the word to the person until the LED changed.
    pub(super) led_changed_s: Option<f64>,
    /// From the kill to the first reading of the next run.
    pub(super) back_s: Option<f64>,
    /// From the mending to the session, and until everything was there.
    pub(super) connected_s: Option<f64>,
    pub(super) delivered_s: Option<f64>,
}

/// The report.
pub(super) fn report(
    config: &Config,
    begun: &View,
    watch: &Watch,
    times: &Times,
    verdict: &Verdict,
) -> String {
    let round = |seconds: Option<f64>| seconds.map(|s| (s * 10.0).round() / 10.0);
    let now = Clock::new().now();
    let moments: Vec<Value> = watch
        .moments
        .iter()
        .map(|moment| {
            let at = round(Some(moment.at));
            json!([
                at,
                moment.light,
                moment.led_on,
                moment.by,
                moment.cable_in,
                moment.link_up,
                moment.backlog
            ])
        })
        .collect();
    let report = json!({
        "what": "nightlight drill",
        "version": crate::VERSION,
        "built": Timestamp::from_millisecond(BUILT_MS).map(|time| time.to_string()).ok(),
        "at": Timestamp::now().to_string(),
        "machine": machine(),
        "clock": if now.synced { "synced" } else { "unsynced" },
        "sensor": {"driver": config.sensor.driver.name(), "unit": begun.unit, "interval_s": config.sensor.interval.as_secs_f64()},
        "led": {"driver": config.led.driver},
        "rules": {"on_below": begun.rules.on_below, "off_above": begun.rules.off_above},
        "broker": {
            "scheme": config.broker.scheme.name(),
            "keep_alive_s": config.broker.keep_alive.as_secs_f64(),
            "mqtt": begun.mqtt,
        },
        "seconds": {
            "cut": round(times.cut_s),
            "until_noticed": round(times.noticed_s),
            "until_the_pi_decided": round(times.decided_s),
            "until_the_led_changed": round(times.led_changed_s),
            "until_back_after_the_kill": round(times.back_s),
            "until_connected": round(times.connected_s),
            "until_delivered": round(times.delivered_s),
        },
        "account": {
            "is_right": verdict.is_right(),
            "records": verdict.last,
            "readings": verdict.readings,
            "events": verdict.events,
            "live": verdict.live,
            "replayed": verdict.replayed,
            "missing": verdict.missing.len(),
            "twice": verdict.twice.len(),
            "given_up_and_told": verdict.given_up,
            "lost_to_the_kill": verdict.cut_off,
            "faults": verdict.faults,
        },
        "notes": watch.notes.iter().map(|(at, text)| json!([round(Some(*at)), text])).collect::<Vec<_>>(),
        "moments_are": ["s", "light", "led_on", "by", "way_is_whole", "link_up", "backlog"],
        "moments": moments,
    });
    serde_json::to_string_pretty(&report).unwrap_or_default() + "\n"
}

/// What the machine is, as far as the system says.
fn machine() -> Value {
    let first_line = |file: &str| {
        let text = fs::read_to_string(file).ok()?;
        let line = text.lines().next()?.trim_matches(['\0', ' ']).to_owned();
        (!line.is_empty()).then_some(line)
    };
    let kernel = rustix::system::uname();
    let memory = first_line("/proc/meminfo").and_then(|line| {
        let kb = line.split_whitespace().nth(1)?;
        kb.parse::<u64>().ok()
    });
    json!({
        "board": first_line("/proc/device-tree/model"),
        "system": doctor::system_name(),
        "kernel": kernel.release().to_string_lossy(),
        "processor": kernel.machine().to_string_lossy(),
        "cores": std::thread::available_parallelism().map(usize::from).ok(),
        "memory_kb": memory,
        "card": {
            "name": first_line("/sys/block/mmcblk0/device/name"),
            "manufacturer": first_line("/sys/block/mmcblk0/device/manfid"),
            "made": first_line("/sys/block/mmcblk0/device/date"),
            "sectors": first_line("/sys/block/mmcblk0/size").and_then(|size| size.parse::<u64>().ok()),
        },
    })
}
