//! The service, as systemd has it.

use std::path::Path;
use std::process::Command;

use super::Finding;
use crate::cli::Exit;

const UNIT: &str = "nightlight.service";

/// Whether the unit is installed, enabled, active and watched.
pub(super) fn examine() -> Vec<Finding> {
    if !Path::new("/run/systemd/system").exists() {
        return vec![Finding::warn(
            "service",
            "this machine was not started by systemd",
            "whatever starts nightlight here should also start it again when it ends",
        )];
    }
    let shown = Command::new("systemctl")
        .args(["show", UNIT, "--no-pager"])
        .arg("--property=LoadState,UnitFileState,ActiveState,Result,ExecMainStatus,NRestarts,WatchdogUSec")
        .output();
    match shown {
        Ok(output) if output.status.success() => judge(&String::from_utf8_lossy(&output.stdout)),
        _ => vec![Finding::warn(
            "service",
            "systemctl does not answer",
            "`systemctl status nightlight` shows more",
        )],
    }
}

fn judge(shown: &str) -> Vec<Finding> {
    let property = |name: &str| {
        shown
            .lines()
            .filter_map(|line| line.split_once('='))
            .find_map(|(key, value)| (key == name).then_some(value))
            .unwrap_or_default()
    };
    if property("LoadState") != "loaded" {
        return vec![Finding::warn(
            "service",
            format!("{UNIT} is not installed"),
            "the Debian package has it, or see \"Run it as a service\" in the README",
        )];
    }
    let status = property("ExecMainStatus");
    let mut findings = vec![match property("ActiveState") {
        "active" => Finding::ok(
            "service",
            match property("NRestarts") {
                "0" => "running; never restarted".to_owned(),
                "1" => "running; restarted once".to_owned(),
                times => format!("running; restarted {times} times"),
            },
        ),
        "failed" => Finding::fail(
            "service",
            Exit::Software,
            format!("failed ({}, exit code {status})", property("Result")),
            "`journalctl -u nightlight -n 50` says why; then `sudo systemctl restart nightlight`",
        ),
        "activating" => Finding::warn(
            "service",
            format!("about to start (last exit code {status})"),
            "`journalctl -u nightlight -n 50`, if it does so again and again",
        ),
        state => Finding::warn(
            "service",
            format!("not running ({state})"),
            "`sudo systemctl start nightlight`",
        ),
    }];
    if property("UnitFileState") != "enabled" {
        findings.push(Finding::warn(
            "service",
            "it is not started with the machine",
            "`sudo systemctl enable nightlight`",
        ));
    }
    // Of a service that does not run systemd says 0, whatever the unit has.
    let watched = !matches!(property("WatchdogUSec"), "" | "0" | "infinity");
    if property("ActiveState") == "active" && !watched {
        findings.push(Finding::warn(
            "service",
            "nobody watches whether it hangs",
            "`systemctl edit nightlight`: WatchdogSec=30s under [Service]",
        ));
    }
    findings
}

#[cfg(test)]
mod tests {
    use super::super::State;
    use super::*;

    fn states(shown: &str) -> Vec<State> {
        judge(shown).into_iter().map(|it| it.state).collect()
    }

    #[test]
    fn a_service_that_runs_is_enabled_and_watched_is_good() {
        let good = "LoadState=loaded\nUnitFileState=enabled\nActiveState=active\nNRestarts=0\nWatchdogUSec=30s\n";
        assert_eq!(states(good), [State::Ok]);
        let bare = good.replace("enabled", "disabled").replace("30s", "0");
        assert_eq!(states(&bare), [State::Ok, State::Warn, State::Warn]);
        let stopped = good.replace("=active", "=inactive").replace("30s", "0");
        assert_eq!(states(&stopped), [State::Warn]);
        let failed = good.replace("=active", "=failed");
        assert_eq!(states(&failed), [State::Fail(Exit::Software)]);
        assert_eq!(states("LoadState=not-found\n"), [State::Warn]);
        assert_eq!(states(""), [State::Warn]);
    }
}
