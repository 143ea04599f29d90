//! `nightlight doctor`: looks at everything that nightlight needs on this machine, and says of each thing
//! whether it is good and what to do where it is not.
//!
//! Each examination is a small function that returns [`Finding`]s, data without layout; [`Report`] shows
//! them. All examinations run at once, each on its own thread, and one that does not come back within
//! `PATIENCE` is a finding too: a hung bus or broker cannot hang the doctor.
//!
//! It changes nothing: I2C addresses are read from and not written to, except by the driver of the
//! configured sensor; pins are not touched; the broker sees a guest with a name of its own, who sends one probe on
//! each topic, which nobody acts on; a backlog
//! that belongs to a daemon is not opened.
//!
//! - `machine`: the model, the system, the user, the clock
//! - `devices`: I2C buses and who answers, the sensor, the LED
//! - `network`: the broker and its access list
//! - `storage`: the disk and the backlog on it
//! - `service`: systemd

mod devices;
mod machine;
mod network;
mod service;
mod storage;

pub use machine::system_name;
use std::fmt;
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use crate::cli::Exit;
use crate::config::{Config, ConfigError};
use crate::logic::View;
use crate::manual;

/// An examination that takes longer is given up; a connection over a slow network takes seconds.
const PATIENCE: Duration = Duration::from_secs(15);

/// A daemon has so long to open its store before that is a finding.
const STARTING: Duration = Duration::from_secs(3);

/// What is to be said of one thing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// The thing, in a word or two.
    pub what: String,
    /// How it is.
    pub state: State,
    /// What was seen.
    pub seen: String,
    /// What to do about it; empty when there is nothing to do.
    pub remedy: String,
}

/// How a thing is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// Good.
    Ok,
    /// It works without, or not as well.
    Warn,
    /// It does not work; the exit code says of which kind this is.
    Fail(Exit),
}

impl Finding {
    fn ok(what: &str, seen: impl Into<String>) -> Self {
        Self {
            what: what.to_owned(),
            state: State::Ok,
            seen: seen.into(),
            remedy: String::new(),
        }
    }

    fn warn(what: &str, seen: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self {
            state: State::Warn,
            remedy: remedy.into(),
            ..Self::ok(what, seen)
        }
    }

    fn fail(what: &str, exit: Exit, seen: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self {
            state: State::Fail(exit),
            ..Self::warn(what, seen, remedy)
        }
    }
}

/// All findings, in the order in which they are told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Report(pub Vec<Finding>);

impl Report {
    /// 0 when nothing failed, whatever was warned of; else the kind of failure that has to be mended
    /// first: configuration, permission, anything else.
    pub fn exit(&self) -> Exit {
        let failed = |exit| self.0.iter().any(|it| it.state == State::Fail(exit));
        [Exit::Configuration, Exit::Permission, Exit::Software]
            .into_iter()
            .find(|exit| failed(*exit))
            .unwrap_or(Exit::Done)
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut counts = [0; 2];
        for finding in &self.0 {
            let word = match finding.state {
                State::Ok => "ok",
                State::Warn => "warn",
                State::Fail(_) => "fail",
            };
            counts[0] += usize::from(word == "warn");
            counts[1] += usize::from(word == "fail");
            writeln!(f, "{word:<5} {:<13} {}", finding.what, finding.seen)?;
            if !finding.remedy.is_empty() {
                writeln!(f, "{:19} -> {}", "", finding.remedy)?;
            }
        }
        match counts {
            [0, 0] => writeln!(f, "All is well."),
            [warned, failed] => writeln!(f, "{failed} failed, {warned} to look at."),
        }
    }
}

/// Examines this machine for a configuration, or for the reason why there is none.
pub fn examine(config: Result<Config, ConfigError>) -> Report {
    let mut findings = configuration(&config);
    let mut examinations = vec![
        Examination::start("machine", machine::examine),
        Examination::start("user", machine::user),
        Examination::start("clock", machine::clock),
    ];
    match config {
        Ok(config) => {
            let view = running(&config);
            examinations.extend([
                start("I2C", &config, |config| {
                    devices::buses(Some(&config.sensor))
                }),
                start("sensor", &config, {
                    let view = view.clone();
                    move |config| devices::sensor(&config, view.as_ref())
                }),
                start("rules", &config, |config| storage::rules(&config)),
                start("LED", &config, |config| devices::led(&config.led)),
                start("broker", &config, {
                    let view = view.clone();
                    move |config| network::broker(&config, view.as_ref())
                }),
                start("disk", &config, |config| {
                    storage::disk(&config.backlog.path)
                }),
                start("backlog", &config, move |config| {
                    storage::backlog(&config, view.as_ref())
                }),
            ]);
        }
        Err(_) => examinations.push(Examination::start("I2C", || devices::buses(None))),
    }
    examinations.push(Examination::start("service", service::examine));
    let deadline = Instant::now() + PATIENCE;
    for examination in examinations {
        findings.extend(examination.end(deadline));
    }
    Report(findings)
}

fn configuration(config: &Result<Config, ConfigError>) -> Vec<Finding> {
    match config {
        Ok(config) => {
            let from = config.file.as_ref().map_or_else(
                || "the defaults, since there is no file".to_owned(),
                |file| file.display().to_string(),
            );
            let mut findings = vec![Finding::ok("configuration", from)];
            findings.extend(
                config
                    .warnings
                    .iter()
                    .map(|warning| Finding::warn("configuration", warning, "")),
            );
            findings
        }
        Err(error) => error
            .problems
            .iter()
            .map(|problem| Finding::fail("configuration", Exit::Configuration, problem, ""))
            .collect(),
    }
}

fn running(config: &Config) -> Option<View> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .ok()?;
    runtime.block_on(async {
        let deadline = Instant::now() + STARTING;
        loop {
            let view = manual::running(config).await?;
            // One that has just been started opens its store behind its first decision.
            if view.store_ok || Instant::now() >= deadline {
                return Some(view);
            }
            tokio::time::sleep(STARTING / 10).await;
        }
    })
}

/// One examination under way.
struct Examination {
    what: &'static str,
    findings: Receiver<Vec<Finding>>,
}

fn start(
    what: &'static str,
    config: &Config,
    examine: impl FnOnce(Config) -> Vec<Finding> + Send + 'static,
) -> Examination {
    let config = config.clone();
    Examination::start(what, move || examine(config))
}

impl Examination {
    fn start(what: &'static str, examine: impl FnOnce() -> Vec<Finding> + Send + 'static) -> Self {
        let (sender, findings) = channel();
        // Without a thread, and after a panic in it, the sender is dropped: told below.
        let _ = std::thread::Builder::new().spawn(move || {
            let _ = sender.send(examine());
        });
        Self { what, findings }
    }

    fn end(self, deadline: Instant) -> Vec<Finding> {
        let left = deadline.saturating_duration_since(Instant::now());
        match self.findings.recv_timeout(left) {
            Ok(findings) => findings,
            Err(RecvTimeoutError::Timeout) => vec![Finding::fail(
                self.what,
                Exit::Software,
                format!("it did not answer within {} s", PATIENCE.as_secs()),
                "something hangs: a bus, a disk or a network; look at `dmesg`",
            )],
            Err(RecvTimeoutError::Disconnected) => vec![Finding::fail(
                self.what,
                Exit::Software,
                "it could not be examined",
                "please report this, with the lines above",
            )],
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_exit_code_is_that_of_what_has_to_be_mended_first() {
        let fail = |exit| Finding::fail("a", exit, "", "");
        let warn = Finding::warn("b", "", "");
        let exit = |findings: &[Finding]| Report(findings.to_vec()).exit();
        assert_eq!(exit(&[]), Exit::Done);
        assert_eq!(exit(std::slice::from_ref(&warn)), Exit::Done);
        assert_eq!(exit(&[fail(Exit::Software), warn]), Exit::Software);
        assert_eq!(
            exit(&[fail(Exit::Software), fail(Exit::Permission)]),
            Exit::Permission
        );
        assert_eq!(
            exit(&[fail(Exit::Permission), fail(Exit::Configuration)]),
            Exit::Configuration
        );
    }

    #[test]
    fn a_line_has_the_state_first_and_the_remedy_below() {
        let report = Report(vec![
            Finding::ok("clock", "synchronised"),
            Finding::fail("broker", Exit::Software, "nobody there", "start it"),
        ]);
        assert_eq!(
            report.to_string(),
            "ok    clock         synchronised\n\
             fail  broker        nobody there\n                    -> start it\n\
             1 failed, 0 to look at.\n"
        );
    }

    #[test]
    fn what_hangs_or_panics_is_a_finding() {
        let hung = Examination::start("bus", || {
            std::thread::sleep(Duration::from_secs(60));
            Vec::new()
        });
        let found = hung.end(Instant::now());
        assert!(found[0].seen.contains("did not answer"), "{found:?}");
        let (sender, findings) = channel();
        drop(sender);
        let what = "disk";
        let found = Examination { what, findings }.end(Instant::now() + PATIENCE);
        assert_eq!(found[0].state, State::Fail(Exit::Software));
    }
}
