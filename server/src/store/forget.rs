//! Records go: all of a device that a person wants forgotten, in small steps beside the work.
//!
//! In each step the account changes with the rows: what was received and is deleted counts as deleted.

use nightlight_logic::time::rfc3339;
use uuid::Uuid;

use super::account::Run;
use super::{Conn, Fault, Value};
use nightlight_logic::intervals::Intervals;

/// Records of one step: a transaction that others have to wait for.
const STEP: usize = 2_000;

/// Deletes the first records of a run, at most so many as fit into one step, and only as far as they were
/// received before `before_ms`; gives their number.
///
/// # Errors
/// Those of the database.
pub(crate) async fn step(
    conn: &mut Conn,
    device: &str,
    run: Uuid,
    before_ms: Option<i64>,
) -> Result<usize, Fault> {
    conn.begin().await?;
    let deleted = delete(conn, device, run, before_ms.map(rfc3339)).await;
    match deleted {
        Ok(count) => {
            conn.commit().await?;
            Ok(count)
        }
        Err(fault) => {
            // The transaction is over either way.
            let _ = conn.rollback().await;
            Err(fault)
        }
    }
}

/// The rest of a device: its runs, losses, outages, and its name. False when it was not known.
///
/// # Errors
/// Those of the database.
pub(crate) async fn device(conn: &mut Conn, device: &str) -> Result<bool, Fault> {
    conn.begin().await?;
    let mut known = 0;
    for sql in [
        "delete from devices where device = $1",
        "delete from records where device = $1",
        "delete from losses where device = $1",
        "delete from outages where device = $1",
        "delete from runs where device = $1",
        "delete from switches where kind = 'device' and name = $1",
    ] {
        match conn.execute(sql, &[device.into()]).await {
            Ok(rows) => known += rows,
            Err(error) => {
                let _ = conn.rollback().await;
                return Err(error.into());
            }
        }
    }
    conn.commit().await?;
    Ok(known > 0)
}

async fn delete(
    conn: &mut Conn,
    device: &str,
    run: Uuid,
    before: Option<String>,
) -> Result<usize, Fault> {
    // The row that whoever writes for this device locks first.
    let lock = "update devices set last_seen = last_seen where device = $1";
    conn.execute(lock, &[device.into()]).await?;
    let of = [Value::from(device), run.into()];
    let sql = "select received, deleted, deleted_ranges from runs where device = $1 and run = $2";
    let rows = conn.rows(sql, &of).await?;
    let Some(row) = rows.first() else {
        return Ok(0);
    };
    let mut account = Run {
        received: row.count(0)?,
        deleted: row.count(1)?,
        deletions: serde_json::from_str(&row.text(2)?.unwrap_or_default()).unwrap_or_default(),
        ..Run::default()
    };
    let sql = format!(
        "select seq, received_at from records where device = $1 and run = $2 order by seq limit {STEP}"
    );
    let mut seqs = Intervals::default();
    for row in conn.rows(&sql, &of).await? {
        // Times of one form sort as text.
        if before.is_some() && row.time(1)? >= before {
            break;
        }
        let seq = row.count(0)?;
        seqs.insert(seq, seq);
    }
    if seqs.ranges() == 0 {
        return Ok(0);
    }
    for range in seqs.iter() {
        account.delete(range, range.1 - range.0 + 1);
        let values = [device.into(), run.into(), range.0.into(), range.1.into()];
        for table in ["records", "outages"] {
            let sql = format!(
                "delete from {table} where device = $1 and run = $2 and seq between $3 and $4"
            );
            conn.execute(&sql, &values).await?;
        }
    }
    let ranges = account.deletions.json();
    let values = [
        device.into(),
        run.into(),
        account.received.into(),
        account.deleted.into(),
        ranges.as_str().into(),
    ];
    let sql = "update runs set received = $3, deleted = $4, deleted_ranges = $5 \
               where device = $1 and run = $2";
    conn.execute(sql, &values).await?;
    Ok(usize::try_from(seqs.count()).unwrap_or(usize::MAX))
}
