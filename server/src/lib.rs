//! The other end of nightlight: takes the records of one device or of thousands, keeps each once in an SQL
//! database, confirms them, decides about the LEDs, and gives the account.
//!
//! What it promises to a device that waits for its acks: a record is acked only when its transaction has
//! committed, and acked again each time it comes again. So a server that is killed loses nothing;
//! what it had not acknowledged to the broker it is sent again, and what it had kept it does not ask
//! for. Records count as *received* (different ones), *twice* (arrivals of one that was there), *lost*
//! (the device gave them up and said so), *deleted* (kept as long as wanted) and *missing* (the rest of
//! 1..=last); for a run that has been delivered completely, missing is 0.
//!
//! Where there is no database (away, full, read-only) the server says `offline` and leaves the broker: the
//! devices then keep their records and decide by themselves.
//!
//! Reading order: `wire` and `topics` (pure), `store` with `ingest` (the transaction) and `account`,
//! `rules` and `decision` (pure), `control`, `switchboard` (what is switched by hand), `leases` (who
//! of several servers decides), `keeper` (the task that writes), `session`, `watch` (a second
//! one, of several servers), `uplink` with `outbox` (one session after the other, and what is told in it),
//! `shell` (the loop) with `accounts` and `printer`; `keep` deletes what is old; `web` with `fleet`
//! and `stats` is the page, the API and the metrics; `books` is what a person asks at the command line.

// `pub` means used from another crate: dead code shows itself.
#![warn(unreachable_pub)]

mod account;
mod accounts;
mod books;
pub mod cli;
pub mod config;
mod control;
mod decision;
mod doctor;
mod fleet;
mod import;
mod keep;
mod keeper;
mod leases;
mod outbox;
mod printer;
mod room;
mod rules;
mod service;
mod session;
mod shell;
mod stats;
mod store;
mod switchboard;
mod topics;
mod uplink;
mod watch;
mod web;
mod wire;

pub use books::{account, devices, export, forget, switch};
pub use doctor::examine;
pub use import::import;
pub use shell::run;
pub use store::read::Span;
pub use store::{Database, Fault};

/// The version of the program.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");
