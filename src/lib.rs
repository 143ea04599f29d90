//! nightlight: a light sensor in, an LED out, an MQTT broker between them and a server, and a Pi that
//! decides by itself when any of that is away.
//!
//! # What happens in an outage
//!
//! Online, each reading is published at once and the server answers with a command, which holds the LED for a
//! lease. Nothing is written to the card. Then the cable is pulled:
//!
//! 1. Publications stay without confirmation. They are still in memory, and within `durable_within` they and
//!    every later record are on the disk, synced ([`logic::delivery`], [`io::backlog`]).
//! 2. The lease runs out. The local rule takes the LED over, with hysteresis and a hold
//!    ([`logic::lighting`]). Each change is a record that says who decided and why.
//! 3. The daemon notices that the link is lost: the outage has begun. It tries to connect, with backoff and
//!    jitter; each try has a fresh client ([`io::broker`]). A session that ends within 10 s is part of the
//!    outage ([`logic::link`]).
//! 4. When the backlog is full, the oldest records that replay has not read make room; a gap in their place
//!    says which.
//! 5. The cable is back. Live records go first; history follows on its own topic, oldest first and paced, and
//!    has at least a quarter of a busy link. What is confirmed is discarded from the disk. When the link has
//!    held 10 s the outage is over, and its account is published ([`logic::outage`]); it ended when that
//!    session began. The server's first command takes the LED over again.
//!
//! A broker that is up while the server is silent is an outage too: from the end of the lease to the server's
//! next sign of life.
//!
//! # Invariants, and their exceptions
//!
//! - The LED is decided in memory, from the last reading and the lease alone: no state of network, disk,
//!   server or clock delays it. At a start the decision waits at most 300 ms for rules that a command kept.
//! - A record leaves memory or disk only when it is confirmed, or counted in a gap. Records younger than
//!   `durable_within` at a power cut are lost; at QoS 0 nobody knows what arrived.
//! - (`run`, `seq`) names one record for ever; `seq` has no holes. A gap has no number of its own.
//! - Deadlines are on the boot clock; wall time is data. One decision reads it: `expires_at` of a command.
//! - Whatever comes from outside gets an answer or is counted, and can do nothing else.
//!
//! # Threads
//!
//! - The main thread is the loop ([`daemon`]): it waits for a stop, the watchdog, an input from another thread,
//!   the session, somebody who looks, or the next deadline, and for nothing else.
//! - `sensor` and `led` each wait for one order at a time; one that hangs is given up, and another begun.
//! - `backlog` waits for work. sled's seven threads exist only after an outage had to use the disk.
//! - `blocking-tasks` writes kept rules, the topic of an announcement and dead letters; `runtime` what a restart goes on with.
//! - `page` serves the live page, where `web.listen` asks for it; its visitors meet the loop only in a few
//!   questions a second.
//! - `lock`, `rules`, `announced`, `socket`, `lookup` and `files` (password and certificates) do one thing that may block, and end.
//!
//! # A stop, and a restart
//!
//! A stop says `offline`, gives publications half a second to be confirmed, stores the rest, leaves the LED as
//! configured, closes the session, and waits up to a second each for blocking tasks and backlog. A restart within the
//! same boot goes on with the lease, the ids of commands and the account of an outage ([`logic::handover`]);
//! after a reboot, or without a runtime directory, the first reading decides, and an outage begins with the start.
//!
//! # Words
//!
//! - reading, event, record: one sensor result; something else worth telling; either, with its (`run`, `seq`).
//! - run: one life of the daemon. seq: the number of a record in it.
//! - confirmed: acknowledged by the broker or, with `confirm = "server"`, by the server. discarded: removed from
//!   the disk because of that.
//! - backlog: records that are not confirmed and not just being delivered live. history: the backlog on its way.
//! - gap, loss record: the place of records that had to be given up; the same as it is published.
//! - lease: how long a command holds the LED. fallback: the local rule. fail-safe: the LED without a sensor.
//! - link, session: our view of the connection; the MQTT session that makes it.
//!
//! # Reading order
//!
//! [`logic`] (the contract between the halves), [`logic::lighting`], [`logic::delivery`], then
//! [`daemon`], which joins the pure half to [`io`]. `main.rs` reads arguments and configuration.
//! The program nightlight-server (`server/`) is the other end, and [`demo`] shows both in a minute.
//! [`doctor`] looks at the machine, and [`manual`] moves one device, without the daemon.
//! Arrows go one way: main -> daemon -> io and logic. The pure half (`logic/`) and what both programs need of the
//! world (`common/`) are crates of their own, so that the compiler holds those borders. Files of `io` do not
//! import each other, except for `pi`, `device_thread`, `folder` and `small_file`, which are ground under several.

// `pub` means used from another crate: dead code shows itself.
#![warn(unreachable_pub)]

pub mod cli;
pub mod config;
pub mod daemon;
pub mod demo;
pub mod doctor;
pub mod io;
pub mod lag;
pub mod manual;
pub use nightlight_logic as logic;

/// The version of the program.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");
