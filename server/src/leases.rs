//! Which part of the decisions is this server's: leased rows in the database, one server a row at a time.
//!
//! Devices and groups are spread over [`PARTS`] by a hash of their names. Each server renews the rows that it has
//! each second, takes those whose lease has run out, and gives up what is beyond its fair share when another one
//! comes. The database's clock counts, so those of the servers may differ; a server that was frozen knows by its own
//! clock that its leases have run out, and decides nothing until it has them again. A file of SQLite has one server,
//! which decides about all. [`start`] is called by the shell.

use std::collections::BTreeSet;
use std::time::Duration;

use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::task::JoinHandle;

use nightlight_common::clock::Clock;

use crate::store::leases::{self, LEASE_S, PARTS};
use crate::store::{Address, Conn, Database, Fault};

const RENEW_EVERY: Duration = Duration::from_secs(1);
/// This server holds a lease for so much less than the others do.
const MARGIN: Duration = Duration::from_millis(500);

/// The parts that this server decides about.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Leases {
    parts: BTreeSet<u16>,
    /// On the boot clock.
    until: Duration,
}

impl Leases {
    /// Whether this server decides about a device or group of this name at this time of the boot clock.
    pub(crate) fn hold(&self, name: &str, now: Duration) -> bool {
        now < self.until && self.parts.contains(&part_of(name))
    }

    /// Whether this server has any part that it did not have `before`.
    pub(crate) fn has_new(&self, before: &Self) -> bool {
        !self.parts.is_subset(&before.parts)
    }

    /// Whether this server has the part of `name` and did not have it `before`.
    pub(crate) fn is_new(&self, before: &Self, name: &str) -> bool {
        let part = part_of(name);
        self.parts.contains(&part) && !before.parts.contains(&part)
    }
}

/// FNV-1a, mixed: the same for every server and version.
fn part_of(name: &str) -> u16 {
    let hash = name.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    });
    // Names that differ in their last digits alone are near each other so far (the finalizer of MurmurHash3).
    let mixed = (hash ^ (hash >> 33)).wrapping_mul(0xff51_afd7_ed55_8ccd);
    // Below PARTS, which is small.
    u16::try_from((mixed ^ (mixed >> 33)) % u64::from(PARTS)).unwrap_or(0)
}

/// Starts the task, for the server of this name. What it holds comes out of the receiver each time it was renewed;
/// the task gives all up and ends when that is dropped.
pub(crate) fn start(
    database: Database,
    server: String,
) -> (UnboundedReceiver<Leases>, JoinHandle<()>) {
    let (renewed, leases) = unbounded_channel();
    if let Address::Sqlite(_) = database.address {
        // A file has one server.
        let all = Leases {
            parts: (0..PARTS).collect(),
            until: Duration::MAX,
        };
        // The receiver is below.
        let _ = renewed.send(all);
        return (leases, tokio::spawn(async {}));
    }
    let task = tokio::spawn(renew(database, server, renewed));
    (leases, task)
}

async fn renew(database: Database, server: String, renewed: UnboundedSender<Leases>) {
    let clock = Clock::new();
    let mut conn = None;
    let mut held = BTreeSet::new();
    let mut until = Duration::ZERO;
    let lease = Duration::from_secs(LEASE_S).saturating_sub(MARGIN);
    while !renewed.is_closed() {
        // What the database grants is counted from before it was asked.
        let asked = clock.now().boot;
        let round = round(
            &database,
            &mut conn,
            &server,
            &held,
            &renewed,
            asked + lease,
        );
        match round.await {
            Ok(parts) => {
                if parts.len() != held.len() {
                    tracing::info!("this server decides in {} of {PARTS} parts", parts.len());
                }
                held.clone_from(&parts);
                until = asked + lease;
                // Whether anybody listens is asked above.
                let _ = renewed.send(Leases { parts, until });
            }
            Err(fault) => {
                tracing::debug!("no lease is renewed: {}", fault.words());
                if !held.is_empty() && clock.now().boot >= until {
                    // Others may have had them meanwhile: what comes back is new.
                    held.clear();
                    let _ = renewed.send(Leases::default());
                }
            }
        }
        tokio::select! {
            () = tokio::time::sleep(RENEW_EVERY) => {}
            () = renewed.closed() => {}
        }
    }
    // Others need not wait for the leases to run out.
    if let Some(mut conn) = conn {
        let done = leases::release(&mut conn, &server, &held);
        let _ = database.within(done).await;
    }
}

async fn round(
    database: &Database,
    conn: &mut Option<Conn>,
    server: &str,
    held: &BTreeSet<u16>,
    renewed: &UnboundedSender<Leases>,
    until: Duration,
) -> Result<BTreeSet<u16>, Fault> {
    let mut open = match conn.take() {
        Some(open) => open,
        None => database.look().await?,
    };
    let servers = database.within(leases::alive(&mut open, server)).await?;
    let fair = usize::from(PARTS).div_ceil(servers.max(1));
    let surplus: BTreeSet<u16> = held.iter().copied().skip(fair).collect();
    if !surplus.is_empty() {
        // Told here first: nobody decides for a moment, rather than two.
        let parts = held.difference(&surplus).copied().collect();
        let _ = renewed.send(Leases { parts, until });
        database
            .within(leases::release(&mut open, server, &surplus))
            .await?;
    }
    let parts = database
        .within(leases::take(&mut open, server, fair))
        .await?;
    *conn = Some(open);
    Ok(parts)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_spread_evenly_and_always_the_same() {
        let mut counts = [0_u32; PARTS as usize];
        for n in 0..64_000 {
            counts[usize::from(part_of(&format!("pi-{n}")))] += 1;
        }
        assert!(
            counts.iter().all(|count| (800..1_200).contains(count)),
            "{counts:?}"
        );
        assert_eq!(
            [part_of("hall"), part_of("pi-1")],
            [part_of("hall"), part_of("pi-1")]
        );
    }

    #[test]
    fn what_has_run_out_is_not_held() {
        let s = Duration::from_secs;
        let leases = Leases {
            parts: (0..PARTS).collect(),
            until: s(5),
        };
        assert!(leases.hold("pi", s(4)));
        assert!(!leases.hold("pi", s(5)));
        assert!(!Leases::default().hold("pi", s(0)));
    }
}
