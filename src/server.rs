//! The reference server: takes the records of one device or of all, keeps each once, confirms them,
//! decides about the LEDs, and gives the account.
//!
//! What it promises to a device that waits for its acks: a record is acked only when it is on this
//! server's disk, and acked again each time it comes again. So a server that is killed loses nothing;
//! what it had not acknowledged to the broker it is sent again, and what it had kept it does not ask
//! for. Records count as *received* (different ones), *twice* (arrivals of one that was there), *lost*
//! (the device gave them up and said so) and *missing* (the rest of 1..=last); for a run that has been
//! delivered completely, missing is 0.
//!
//! Where there is no store (full disk) the server says `offline` and leaves the broker: the devices
//! then keep their records and decide by themselves.
//!
//! Reading order: `ledger` (what is new, what is missing; pure) with `account` and `intervals`,
//! `known` (a device in memory), `decision`, `wire` and `topics` (pure), `store` with `keys` and
//! `opening`, `keeper` (the thread of ledger and store), `session`, `shell` (the loop) with `outbox` and
//! `printer`. `main` calls [`run`], [`account`] and [`export`].

mod account;
mod decision;
mod intervals;
mod keeper;
mod keys;
mod known;
mod ledger;
mod opening;
mod outbox;
mod printer;
mod session;
mod shell;
mod store;
mod topics;
mod wire;

#[cfg(test)]
mod ledger_tests;
#[cfg(test)]
mod store_tests;

use std::io::Write;
use std::path::{Path, PathBuf};

use tokio::sync::mpsc;

use crate::config::Broker;

pub use decision::Group;
pub use opening::OpenError;
pub use topics::{Devices, Pattern, Topics, is_device_id};

use account::Report;
use keeper::Keeper;
use opening::guard;
use shell::Shell;
use store::Store;

/// What a server runs with.
#[derive(Debug, Clone)]
pub struct Settings {
    /// How to reach the broker; the client id names the session that the broker keeps.
    pub broker: Broker,
    /// Whom to serve.
    pub devices: Devices,
    /// The names of the topics.
    pub topics: Topics,
    /// LEDs are on below this light.
    pub on_below: f64,
    /// Devices that decide together.
    pub groups: Vec<Group>,
    /// The folder of the store.
    pub store: PathBuf,
    /// Where to say `online` and `offline`. Accounts are published beside it, on `account/{id}`.
    pub status_topic: String,
}

/// Serves until `stop` completes. Each `show` prints the account of all devices.
///
/// # Errors
/// When there is no store to begin with.
pub async fn run(
    settings: Settings,
    stop: impl Future<Output = ()>,
    show: mpsc::Receiver<()>,
) -> Result<(), OpenError> {
    let (sender, words) = mpsc::unbounded_channel();
    let keeper = Keeper::start(&settings.store, sender)?;
    tracing::info!(
        "nightlight server {} serves {} at {}, store {}",
        crate::VERSION,
        settings.devices.filter(),
        settings.broker.url(),
        settings.store.display()
    );
    Shell::new(settings, keeper, words).run(stop, show).await;
    Ok(())
}

/// The account of a store at rest: each device and each of its runs.
///
/// # Errors
/// When there is no store, or a server has it open, or it is damaged.
pub fn account(path: &Path) -> Result<String, OpenError> {
    let store = at_rest(path)?;
    guard(|| lines(&store)).map_err(OpenError::Other)
}

/// Every record of a store at rest, device by device and in order, to `out`: a line of JSON each.
///
/// # Errors
/// As [`account`], and when `out` does not take it.
pub fn export(path: &Path, out: &mut impl Write) -> Result<(), OpenError> {
    let store = at_rest(path)?;
    let all = || {
        for (device, _) in store.devices()? {
            let name = serde_json::Value::from(device.as_str());
            for (run, _) in store.runs(&device)? {
                store.export(&device, run, |record| {
                    // A line break can only lie between the parts of it.
                    let record = record.replace(['\n', '\r'], " ");
                    writeln!(out, "{{\"device\":{name},\"record\":{record}}}")
                        .map_err(|error| error.to_string())
                })?;
            }
        }
        Ok(())
    };
    guard(all).map_err(OpenError::Other)
}

fn at_rest(path: &Path) -> Result<Store, OpenError> {
    if !path.join("store").is_dir() {
        let path = path.display();
        return Err(OpenError::Other(format!(
            "there is no store in {path}; name its folder with --store"
        )));
    }
    Store::open(path)
}

fn lines(store: &Store) -> Result<String, String> {
    let mut text = String::new();
    for (device, totals) in store.devices()? {
        let runs = store.runs(&device)?;
        let report = Report {
            device,
            totals,
            run: None,
        };
        text.push_str(&report.line());
        text.push('\n');
        for (run, head) in runs {
            let missing = match head.counts().missing {
                0 => Vec::new(),
                _ => store.missing(&report.device, run, &head)?,
            };
            text.push_str(&head.report(run).line(&missing));
            text.push('\n');
        }
    }
    Ok(text)
}
