//! The switches by hand: kept in the database, so that they hold over a restart and for every server of it.
//!
//! One task with a connection of its own looks each second and tells the shell what has changed, whoever
//! changed it. While the database is unreachable what was last known holds.

use std::time::Duration;

use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};

use crate::decision::Switches;
use crate::store::{Conn, Database, Fault, switches};

const LOOK_EVERY: Duration = Duration::from_secs(1);

/// Starts the task. What is switched by hand comes out of the receiver at the start, where there is anything,
/// and each time that it changes. The task ends when the receiver is dropped.
pub(crate) fn start(database: Database) -> UnboundedReceiver<Switches> {
    let (changed, changes) = unbounded_channel();
    tokio::spawn(watch(database, changed));
    changes
}

async fn watch(database: Database, changed: UnboundedSender<Switches>) {
    let mut conn = None;
    let mut known = Switches::new();
    while !changed.is_closed() {
        match look(&database, &mut conn).await {
            Ok(found) if found != known => {
                known.clone_from(&found);
                // Whether anybody listens is asked above.
                let _ = changed.send(found);
            }
            Ok(_) => {}
            Err(fault) => tracing::debug!("switches cannot be read: {}", fault.words()),
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

/// Over the connection there is, or a new one; one that failed is given up.
async fn look(database: &Database, conn: &mut Option<Conn>) -> Result<Switches, Fault> {
    let mut open = match conn.take() {
        Some(open) => open,
        None => database.look().await?,
    };
    let found = database.within(switches::all(&mut open)).await?;
    *conn = Some(open);
    Ok(found)
}
