//! nightlight: a light sensor in, an LED out, an MQTT broker between them and a server, and a Pi that
//! decides by itself when any of that is away.
//!
//! # What happens in an outage
//!
//! On line, each reading is published at once and the server answers with a command, which holds the
//! LED for a lease. Nothing is written to the card. Then the cable is pulled:
//!
//! 1. Publications stay without confirmation. They are still in memory, and within `durable_within`
//!    they and every later record are on the disk, synced ([`logic::delivery`], [`io::backlog`]).
//! 2. The lease runs out. The local rule takes the LED over, with hysteresis and a hold
//!    ([`logic::lighting`]). Each change is a record that says who decided and why.
//! 3. The daemon tries to connect, with backoff and jitter; each try has a fresh client
//!    ([`io::broker`]). A session that ends within 10 s is part of the outage ([`logic::link`]).
//! 4. The cable is back. Live records go first; history follows on its own topic, oldest first and
//!    paced. What is confirmed is removed from the disk. The account of the outage is published
//!    ([`logic::outage`]). The server's first command takes the LED over again.
//!
//! # Invariants
//!
//! - The LED is decided in memory, from the last reading and the lease alone: no state of network, disk,
//!   server or clock delays it.
//! - A record leaves memory or disk only when it is confirmed, or counted in a loss record.
//! - (`run`, `seq`) names one record for ever; `seq` has no holes.
//! - Deadlines are on the boot clock; wall time is data.
//! - Whatever comes from outside gets an answer or is counted, and can do nothing else.
//!
//! # Reading order
//!
//! [`logic`] (the contract between the halves), [`logic::lighting`], [`logic::delivery`], then
//! [`daemon`], which joins the pure half to [`io`]. `main.rs` reads arguments and configuration.
//! The program nightlight-server (`server/`) is the other end, and [`demo`] shows both in a minute.
//! [`doctor`] looks at the machine, and [`by_hand`] moves one device, without the daemon.
//! Arrows go one way: main -> daemon -> io and logic, which is a crate of its own (`logic/`), so that the
//! compiler holds that border. Files of `io` do not import each other.

pub mod by_hand;
pub mod cli;
pub mod config;
pub mod daemon;
pub mod demo;
pub mod doctor;
pub mod io;
pub use nightlight_logic as logic;

/// The version of the program.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");
