//! What the server prints: a line for each device that has changed, every ten seconds, and all on
//! request. Keeps the newest report of each device. `shell` feeds and asks it.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Write;
use std::time::Duration;

use tokio::time::Instant;

use crate::account::Report;

const EVERY: Duration = Duration::from_secs(10);

/// Prints to stdout.
#[derive(Debug)]
pub(crate) struct Printer {
    devices: BTreeMap<String, Seen>,
    changed: BTreeSet<String>,
    due: Instant,
}

#[derive(Debug)]
struct Seen {
    report: Report,
    light: Option<f64>,
    decided: Option<Option<bool>>,
}

impl Printer {
    /// Knows what the store knew at the start, and prints it first.
    pub(crate) fn new(reports: Vec<Report>) -> Self {
        let mut printer = Self {
            devices: BTreeMap::new(),
            changed: BTreeSet::new(),
            due: Instant::now(),
        };
        for report in reports {
            printer.take(report);
        }
        printer
    }

    /// A device's account has changed.
    pub(crate) fn take(&mut self, report: Report) {
        self.changed.insert(report.device.clone());
        let before = self.devices.remove(&report.device);
        let seen = Seen {
            light: before.as_ref().and_then(|seen| seen.light),
            decided: before.and_then(|seen| seen.decided),
            report,
        };
        self.devices.insert(seen.report.device.clone(), seen);
    }

    /// A device is known no more.
    pub(crate) fn forget(&mut self, device: &str) {
        self.devices.remove(device);
    }

    /// What was decided about a device's LED.
    pub(crate) fn decided(&mut self, device: &str, led_on: Option<bool>) {
        if let Some(seen) = self.devices.get_mut(device) {
            seen.decided = Some(led_on);
        }
    }

    /// What a device has read last.
    pub(crate) fn light(&mut self, device: &str, light: f64) {
        if let Some(seen) = self.devices.get_mut(device) {
            seen.light = Some(light);
        }
    }

    /// All devices.
    pub(crate) fn devices(&self) -> BTreeSet<String> {
        self.devices.keys().cloned().collect()
    }

    /// Prints the devices that have changed, at most every ten seconds.
    pub(crate) fn print_if_due(&mut self, now: Instant) {
        if now < self.due || self.changed.is_empty() {
            return;
        }
        self.due = now + EVERY;
        let changed = std::mem::take(&mut self.changed);
        self.print(changed.iter());
    }

    /// Prints all devices.
    pub(crate) fn print_all(&self) {
        self.print(self.devices.keys());
    }

    fn print<'a>(&self, devices: impl Iterator<Item = &'a String>) {
        let mut text = String::new();
        for seen in devices.filter_map(|device| self.devices.get(device)) {
            text.push_str(&seen.line());
            text.push('\n');
        }
        // Nobody may be reading any more.
        let _ = std::io::stdout().write_all(text.as_bytes());
    }
}

impl Seen {
    fn line(&self) -> String {
        let mut line = self.report.line();
        if let Some(light) = self.light {
            line.push_str(&format!("; light {light}"));
        }
        line.push_str(match self.decided {
            Some(Some(true)) => ", LED on",
            Some(Some(false)) => ", LED off",
            Some(None) => ", undecided",
            None => "",
        });
        line
    }
}
