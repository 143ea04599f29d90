//! The machine: which Pi it is, which system it runs, and whether its clock is right.

use std::fs;

use super::Finding;
use crate::io::clock::{BUILT_MS, Clock};

/// Whether this is a Raspberry Pi; its model, by the device tree.
pub fn pi() -> Option<String> {
    let model = fs::read_to_string("/proc/device-tree/model").ok()?;
    let model = model.trim_end_matches('\0').trim();
    model.starts_with("Raspberry Pi").then(|| model.to_owned())
}

/// The model and the system.
pub fn examine() -> Vec<Finding> {
    let model = match pi() {
        Some(model) => Finding::ok("model", model),
        None => Finding::warn(
            "model",
            "no Raspberry Pi",
            "here \"iio\", \"sysfs\", \"gpiochip\" and \"simulated\" work, and I2C sensors on a bus that the kernel has",
        ),
    };
    let kernel = rustix::system::uname();
    let (release, machine) = (
        kernel.release().to_string_lossy(),
        kernel.machine().to_string_lossy(),
    );
    let name = fs::read_to_string("/etc/os-release")
        .ok()
        .and_then(|text| os_name(&text))
        .unwrap_or_else(|| "an unnamed system".to_owned());
    let system = format!(
        "{name}, Linux {release} {machine}, nightlight {}",
        crate::VERSION
    );
    vec![model, Finding::ok("system", system)]
}

/// Whether the wall clock is right, as far as the kernel knows.
pub fn clock() -> Vec<Finding> {
    let now = Clock::new().now();
    let remedy =
        "`timedatectl` shows the time service; until it has the time, records say \"unsynced\"";
    vec![if now.wall_ms < BUILT_MS {
        Finding::warn(
            "clock",
            "it is before the day this program was built",
            remedy,
        )
    } else if now.synced {
        Finding::ok("clock", "synchronised")
    } else {
        Finding::warn("clock", "not synchronised", remedy)
    }]
}

fn os_name(text: &str) -> Option<String> {
    let line = text
        .lines()
        .find_map(|line| line.strip_prefix("PRETTY_NAME="))?;
    Some(line.trim_matches(['"', '\'']).to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_system_names_itself() {
        let text = "NAME=\"Debian\"\nPRETTY_NAME=\"Debian GNU/Linux 12 (bookworm)\"\n";
        let name = os_name(text).unwrap();
        assert_eq!(name, "Debian GNU/Linux 12 (bookworm)");
        assert_eq!(os_name(""), None);
    }
}
