//! Deletes what has been kept as long as wanted (`database.keep`): beside the work, over a connection of its
//! own, in small steps with pauses, so that ingest never waits long for a row.
//!
//! The age of a record is counted from when this server received it: no device can have a record deleted by
//! claiming an old time. Within a run the lowest numbers go first, and a record that came late keeps those
//! behind it as long as itself; so what is deleted of a run is one range. [`start`] is called by the shell.

use std::time::Duration;

use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep};
use tracing::{info, warn};
use uuid::Uuid;

use nightlight_common::clock::Clock;
use nightlight_logic::time::rfc3339;

use crate::store::{Conn, Database, Fault, forget, read};

/// Between two rounds over all runs.
const ROUND: Duration = Duration::from_secs(3_600);
/// After a round that failed.
const RETRY: Duration = Duration::from_secs(60);
/// After each step the task rests this many times as long as the step took, and this long at least.
const REST: u32 = 4;
const MIN_REST: Duration = Duration::from_millis(20);
/// An unset clock further ahead of all that is in the database is not believed.
const MAX_AHEAD_MS: i64 = 30 * 86_400_000;

/// Starts the task; it ends when the handle is aborted. `newest` is the newest time in the database when the
/// server started, RFC 3339.
pub(crate) fn start(database: Database, keep: Duration, newest: Option<String>) -> JoinHandle<()> {
    tokio::spawn(async move {
        let clock = Clock::new();
        let mut is_told = false;
        loop {
            let wait = match cutoff(&clock, keep, newest.as_deref()) {
                Some(cutoff_ms) => match round(&database, cutoff_ms).await {
                    Ok(0) => ROUND,
                    Ok(records) => {
                        info!(
                            "deleted {records} records received before {}",
                            rfc3339(cutoff_ms)
                        );
                        ROUND
                    }
                    Err(fault) => {
                        warn!("old records are not deleted for now: {}", fault.words());
                        RETRY
                    }
                },
                None => {
                    if !is_told {
                        warn!(
                            "this machine's clock is not set and far ahead of the newest record: nothing is deleted (database.keep) until it is set"
                        );
                        is_told = true;
                    }
                    RETRY
                }
            };
            sleep(wait).await;
        }
    })
}

/// Records received before this are due; none while the time is not believed.
fn cutoff(clock: &Clock, keep: Duration, newest: Option<&str>) -> Option<i64> {
    let now = clock.now();
    let is_near = newest
        .is_none_or(|newest| rfc3339(now.wall_ms.saturating_sub(MAX_AHEAD_MS)).as_str() <= newest);
    let keep_ms = i64::try_from(keep.as_millis()).ok()?;
    (now.synced || is_near).then(|| now.wall_ms.saturating_sub(keep_ms))
}

/// Goes over all runs once; gives the number of records that it deleted.
async fn round(database: &Database, cutoff_ms: i64) -> Result<usize, Fault> {
    let mut conn = database.look().await?;
    let done = sweep(database, &mut conn, cutoff_ms).await;
    conn.close().await;
    done
}

async fn sweep(database: &Database, conn: &mut Conn, cutoff_ms: i64) -> Result<usize, Fault> {
    let mut after = (String::new(), Uuid::nil());
    let mut deleted = 0;
    loop {
        let page = read::old_runs(conn, (&after.0, after.1), cutoff_ms);
        let page = database.within(page).await?;
        let Some(last) = page.last() else {
            return Ok(deleted);
        };
        after = last.clone();
        for (device, run) in page {
            loop {
                let began = Instant::now();
                let step = forget::step(conn, &device, run, Some(cutoff_ms));
                match database.within(step).await? {
                    0 => break,
                    count => deleted += count,
                }
                sleep((began.elapsed() * REST).max(MIN_REST)).await;
            }
        }
        sleep(MIN_REST).await;
    }
}
