//! `/metrics`: what this server counts of itself, and each device as the database has it, in the text format of
//! Prometheus. Several servers of one database say the same of devices: ask for `max by (device)`.

use std::fmt::Write;

use crate::fleet::{State, milliseconds};
use crate::store::fleet::{self, Seen};
use crate::store::{Conn, Fault};

/// A metric of devices: name, kind, help, value.
struct Metric {
    name: &'static str,
    kind: &'static str,
    help: &'static str,
    value: fn(&Seen, &State) -> Option<f64>,
}

const METRICS: [Metric; 12] = [
    Metric {
        name: "last_seen_timestamp_seconds",
        kind: "gauge",
        help: "When anything last came of it.",
        value: |seen, _| milliseconds(&seen.last_seen).map(|ms| ms as f64 / 1_000.0),
    },
    Metric {
        name: "received_total",
        kind: "counter",
        help: "Different records that were received, deleted ones too.",
        value: |seen, _| Some((seen.counts.received + seen.counts.deleted) as f64),
    },
    Metric {
        name: "duplicates_total",
        kind: "counter",
        help: "Arrivals of a record that was there already.",
        value: |seen, _| Some(seen.counts.twice as f64),
    },
    Metric {
        name: "lost_records",
        kind: "gauge",
        help: "Records that the device gave up and told so, and that did not come all the same.",
        value: |seen, _| Some(seen.counts.lost as f64),
    },
    Metric {
        name: "missing_records",
        kind: "gauge",
        help: "Records neither received nor told as lost, perhaps still on their way.",
        value: |seen, _| Some(seen.counts.missing as f64),
    },
    Metric {
        name: "deleted_total",
        kind: "counter",
        help: "Records that were kept as long as wanted and deleted.",
        value: |seen, _| Some(seen.counts.deleted as f64),
    },
    Metric {
        name: "outages_total",
        kind: "counter",
        help: "Outages that are over and kept.",
        value: |seen, _| Some(seen.outages as f64),
    },
    Metric {
        name: "online",
        kind: "gauge",
        help: "What its status topic says; absent where it says nothing.",
        value: |seen, _| seen.online.map(truth),
    },
    Metric {
        name: "sensor_ok",
        kind: "gauge",
        help: "Whether its sensor works, as it last said.",
        value: |_, state| state.sensor_ok.map(truth),
    },
    Metric {
        name: "clock_set",
        kind: "gauge",
        help: "Whether its clock is set, as it last said.",
        value: |_, state| state.clock_set().map(truth),
    },
    Metric {
        name: "backlog_records",
        kind: "gauge",
        help: "Records that wait at the device, as it last said.",
        value: |_, state| state.backlog().map(|backlog| backlog as f64),
    },
    Metric {
        name: "light",
        kind: "gauge",
        help: "The newest light, in the sensor's unit.",
        value: |seen, _| seen.light,
    },
];

/// The metrics of all devices.
///
/// # Errors
/// Those of the database.
pub(super) async fn devices(conn: &mut Conn) -> Result<String, Fault> {
    let mut texts: [String; METRICS.len()] = std::array::from_fn(|_| String::new());
    let mut after = String::new();
    let mut count = 0_u64;
    loop {
        let page = fleet::devices(conn, &after, None).await?;
        let Some(last) = page.last() else { break };
        after.clone_from(&last.device);
        for seen in &page {
            count += 1;
            let state = State::of(seen);
            let label = label(&seen.device);
            for (metric, text) in METRICS.iter().zip(&mut texts) {
                if let Some(value) = (metric.value)(seen, &state) {
                    // Writing into memory has no way to fail.
                    let _ = writeln!(
                        text,
                        "nightlight_server_device_{}{{device=\"{label}\"}} {value}",
                        metric.name
                    );
                }
            }
        }
    }
    let mut all = format!(
        "# HELP nightlight_server_devices Devices that were heard of.\n\
         # TYPE nightlight_server_devices gauge\nnightlight_server_devices {count}\n"
    );
    for (
        Metric {
            name, kind, help, ..
        },
        text,
    ) in METRICS.iter().zip(texts)
    {
        let _ = write!(
            all,
            "# HELP nightlight_server_device_{name} {help}\n# TYPE nightlight_server_device_{name} {kind}\n{text}"
        );
    }
    Ok(all)
}

/// A device id in quotes: it comes from outside.
fn label(device: &str) -> String {
    device
        .replace('\\', "\\\\")
        .replace('"', "\\\"")
        .replace('\n', "\\n")
}

fn truth(is: bool) -> f64 {
    f64::from(u8::from(is))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_ends_no_label() {
        assert_eq!(label("a\"} 1\nb\\"), "a\\\"} 1\\nb\\\\");
    }
}
