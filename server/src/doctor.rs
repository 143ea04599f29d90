//! Looks at what the server needs: configuration, broker, database with its tables, clock, and says what to
//! do about each. Changes nothing.

use std::fmt::Write;
use std::time::Duration;

use nightlight_common::clock::Clock;
use nightlight_common::mqtt::visit::{Ask, Closed, Trip, visit};

use crate::cli::Exit;
use crate::config::{Config, ConfigError};
use crate::store::{Conn, Fault};
use crate::topics::{Devices, Pattern};

/// All that is asked of the broker has so long.
const PATIENCE: Duration = Duration::from_secs(30);

/// What the server needs of a topic.
enum Right {
    Read,
    Write,
}

/// What was found.
#[derive(Debug, Default)]
pub struct Report {
    text: String,
    refused: bool,
    denied: bool,
    failed: bool,
}

impl Report {
    /// For a person.
    pub fn text(&self) -> &str {
        &self.text
    }

    /// 78 where the configuration is wrong, 77 where a right is missing, 70 for anything else.
    pub fn exit(&self) -> Exit {
        match (self.refused, self.denied, self.failed) {
            (true, ..) => Exit::Configuration,
            (_, true, _) => Exit::Permission,
            (.., true) => Exit::Software,
            _ => Exit::Done,
        }
    }

    fn say(&mut self, word: &str, what: &str) {
        // Writing into memory has no way to fail.
        let _ = writeln!(self.text, "{word:<5} {what}");
    }
}

/// Looks at everything.
pub async fn examine(config: Result<Config, ConfigError>) -> Report {
    let mut report = Report::default();
    let config = match config {
        Ok(config) => config,
        Err(error) => {
            for problem in error.problems {
                report.say("fail", &problem);
            }
            report.refused = true;
            return report;
        }
    };
    report.say("good", "the configuration");
    for warning in &config.warnings {
        report.say("warn", warning);
    }
    broker(&mut report, &config).await;
    database(&mut report, &config).await;
    match Clock::new().now().synced {
        true => report.say("good", "the clock of this machine is set"),
        false => report.say(
            "warn",
            "the clock of this machine is not known to be set: commands carry its time; start a time service",
        ),
    }
    report
}

async fn broker(report: &mut Report, config: &Config) {
    let url = config.broker.url();
    // A name that no device has: what a broker lets us do for one it lets us do for all, as a rule.
    let device = match &config.devices {
        Devices::One(id) => id.clone(),
        Devices::All => format!("nl-doctor-{:08x}", fastrand::u32(..)),
    };
    let topics = &config.topics;
    let of = |pattern: &Pattern| pattern.of(&device);
    let read = [
        &topics.telemetry,
        &topics.history,
        &topics.events,
        &topics.state,
        &topics.status,
    ];
    let read = read.map(|pattern| (of(pattern), Right::Read));
    let written = [
        of(&topics.commands),
        of(&topics.acks),
        config.status_topic.clone(),
    ];
    let rights: Vec<(String, Right)> = written
        .map(|topic| (topic, Right::Write))
        .into_iter()
        .chain(read)
        .collect();
    let asks: Vec<Ask> = rights
        .iter()
        .map(|(topic, _)| Ask {
            topic: topic.clone(),
            light: None,
        })
        .collect();
    let visit = match visit(&config.broker, &asks, PATIENCE).await {
        Ok(visit) => visit,
        Err(Closed::Refused(why)) => {
            report.denied = true;
            return report.say("fail", &format!("broker {url}: {why}"));
        }
        Err(Closed::Unreachable(why)) => {
            report.failed = true;
            return report.say("fail", &format!("broker {url}: {why}"));
        }
        Err(Closed::Configured(why)) => {
            report.refused = true;
            return report.say("fail", &format!("broker {url}: {why}"));
        }
    };
    let ms = visit.took.as_millis();
    let version = visit.terms.version;
    report.say("good", &format!("broker {url}, in {ms} ms, MQTT {version}"));
    for ((topic, right), trip) in rights.iter().zip(visit.trips) {
        let refused = matches!(
            trip,
            Trip::NotReadable | Trip::Taken | Trip::HungUpOnSubscribe
        );
        match (right, trip) {
            (_, Trip::NotTried) => {
                report.say("warn", &format!("topic {topic}: not tried for lack of time"));
            }
            (Right::Read, _) if refused => {
                report.denied = true;
                report.say("fail", &format!("topic {topic}: the broker lets this user not read it; see its access list"));
            }
            (Right::Read, _) => report.say("good", &format!("topic {topic}: may be read")),
            (Right::Write, Trip::CameBack | Trip::Taken) => report.say("good", &format!("topic {topic}: may be written")),
            // The server itself only writes it.
            (Right::Write, Trip::Lost | Trip::NotReadable | Trip::HungUpOnSubscribe) => report.say(
                "warn",
                &format!("topic {topic}: this user may not read it, so whether it may write it is not known"),
            ),
            (Right::Write, _) => {
                report.denied = true;
                report.say("fail", &format!("topic {topic}: a message of ours was dropped; let this user write it, see the broker's access list"));
            }
        }
    }
}

async fn database(report: &mut Report, config: &Config) {
    match config.database.look().await {
        Ok(mut conn) => {
            let what = format!("database {}, tables up to date", config.database.address);
            report.say("good", &what);
            if let Some(warning) = durability(&mut conn).await {
                report.say("warn", &warning);
            }
            conn.close().await;
        }
        Err(fault) => {
            match fault {
                Fault::Permission(_) => report.denied = true,
                _ => report.failed = true,
            }
            report.say("fail", &format!("database: {}", fault.words()));
        }
    }
}

/// What keeps a commit from surviving a crash of the database's machine, where it tells.
async fn durability(conn: &mut Conn) -> Option<String> {
    if let Conn::Sqlite(_) = conn {
        // Set for each connection by the server itself.
        return None;
    }
    for setting in ["fsync", "full_page_writes"] {
        let rows = conn.rows(&format!("show {setting}"), &[]).await.ok()?;
        if rows.first()?.text(0).ok()?.as_deref() == Some("off") {
            return Some(format!(
                "database: {setting} is off, so a crash of its machine may undo what was acked, and devices have deleted it by then: turn it on"
            ));
        }
    }
    None
}
