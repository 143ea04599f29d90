//! The machine: which Pi it is, which system it runs, and whether its clock is right.

use std::fs;

use super::Finding;
use crate::io::clock::{BUILT_MS, Clock};

/// Whether this is a Raspberry Pi; its model, by the device tree.
pub(super) fn pi() -> Option<String> {
    let model = fs::read_to_string("/proc/device-tree/model").ok()?;
    let model = model.trim_end_matches('\0').trim();
    model.starts_with("Raspberry Pi").then(|| model.to_owned())
}

/// The model and the system.
pub(super) fn examine() -> Vec<Finding> {
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
    let name = system_name().unwrap_or_else(|| "an unnamed system".to_owned());
    let system = format!(
        "{name}, Linux {release} {machine}, nightlight {}",
        crate::VERSION
    );
    vec![model, Finding::ok("system", system)]
}

/// Who asks, and whether they may use buses and pins: these belong to two groups on Raspberry Pi OS.
pub(super) fn user() -> Vec<Finding> {
    let id = rustix::process::geteuid().as_raw();
    let passwd = fs::read_to_string("/etc/passwd").unwrap_or_default();
    let name = name_of(&passwd, id).unwrap_or_else(|| format!("user {id}"));
    if id == 0 {
        return vec![Finding::ok("user", format!("{name}, who may do all"))];
    }
    let file = fs::read_to_string("/etc/group").unwrap_or_default();
    let mine = rustix::process::getgroups().unwrap_or_default();
    let mine: Vec<_> = mine
        .iter()
        .filter_map(|group| name_of(&file, group.as_raw()))
        .collect();
    let missing: Vec<_> = ["i2c", "gpio"]
        .into_iter()
        .filter(|group| !mine.iter().any(|it| it == group))
        .collect();
    vec![if missing.is_empty() {
        Finding::ok("user", format!("{name}, in the groups i2c and gpio"))
    } else if pi().is_some() {
        let missing = missing.join(",");
        Finding::warn(
            "user",
            format!("{name}, not in: {missing}"),
            format!("`sudo usermod -aG {missing} {name}`, and log in again"),
        )
    } else {
        Finding::ok("user", name)
    }]
}

/// The name of a user or group in the text of /etc/passwd or /etc/group.
fn name_of(file: &str, id: u32) -> Option<String> {
    file.lines().find_map(|line| {
        let mut fields = line.split(':');
        let name = fields.next()?;
        (fields.nth(1)?.parse() == Ok(id)).then(|| name.to_owned())
    })
}

/// Whether the wall clock is right, as far as the kernel knows.
pub(super) fn clock() -> Vec<Finding> {
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

/// What the system calls itself.
pub fn system_name() -> Option<String> {
    let text = fs::read_to_string("/etc/os-release").ok()?;
    os_name(&text)
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
    fn users_and_groups_are_found_by_their_number() {
        let group = "root:x:0:\ngpio:x:997:pi,nightlight\nbroken\ni2c:x:998:\n";
        assert_eq!(name_of(group, 997).as_deref(), Some("gpio"));
        assert_eq!(name_of(group, 998).as_deref(), Some("i2c"));
        assert_eq!(name_of(group, 5), None);
    }

    #[test]
    fn the_system_names_itself() {
        let text = "NAME=\"Debian\"\nPRETTY_NAME=\"Debian GNU/Linux 12 (bookworm)\"\n";
        let name = os_name(text).unwrap();
        assert_eq!(name, "Debian GNU/Linux 12 (bookworm)");
        assert_eq!(os_name(""), None);
    }
}
