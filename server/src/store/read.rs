//! What is asked of the database: accounts, devices, records. Pages by key, so that nothing is held open
//! beside the work however long the reader takes.

use uuid::Uuid;

use super::account::Counts;
use super::{Conn, Fault, Row, Value};
use crate::account::{Report, RunReport};

/// Rows of one page.
const PAGE: usize = 500;
const RECORDS: usize = 1_000;

const REPORT: &str = "select account.device, account.received, account.twice, account.lost, \
    account.missing, account.deleted, account.runs, account.latest_run, account.plain, account.rubbish, \
    account.last_seen, runs.last, runs.received, runs.twice, runs.lost, \
    runs.last - runs.received - runs.deleted - runs.lost, runs.deleted \
    from account left join runs on runs.device = account.device and runs.run = account.latest_run ";

/// What of the records is wanted.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Span {
    /// Only of this device.
    pub device: Option<String>,
    /// Made at this time or later, in milliseconds since 1970.
    pub from_ms: Option<i64>,
    /// Made before this time.
    pub to_ms: Option<i64>,
}

/// A record as it is kept.
#[derive(Debug, Clone, PartialEq)]
pub struct Kept {
    /// Its device.
    pub device: String,
    /// Its run.
    pub run: Uuid,
    /// Its number.
    pub seq: u64,
    /// When it was made, RFC 3339.
    pub ts: Option<String>,
    /// What that is worth.
    pub clock: Option<String>,
    /// `reading`, or the name of the event.
    pub kind: String,
    /// The light.
    pub light: Option<f64>,
    /// The LED.
    pub led_on: Option<bool>,
    /// Who decided.
    pub by: Option<String>,
    /// Why.
    pub why: Option<String>,
    /// As it came.
    pub payload: String,
}

/// The account of one device.
///
/// # Errors
/// Those of the database.
pub(crate) async fn report(conn: &mut Conn, device: &str) -> Result<Option<Report>, Fault> {
    let sql = format!("{REPORT} where account.device = $1");
    let rows = conn.rows(&sql, &[device.into()]).await?;
    rows.first().map(of_row).transpose()
}

/// The accounts of the devices after `after`, in order; a page of them, empty at the end.
///
/// # Errors
/// Those of the database.
pub(crate) async fn reports(conn: &mut Conn, after: &str) -> Result<Vec<Report>, Fault> {
    let sql = format!("{REPORT} where account.device > $1 order by account.device limit {PAGE}");
    let rows = conn.rows(&sql, &[after.into()]).await?;
    rows.iter().map(of_row).collect()
}

/// The ids of all devices.
///
/// # Errors
/// Those of the database.
pub(crate) async fn devices(conn: &mut Conn) -> Result<Vec<String>, Fault> {
    let rows = conn
        .rows("select device from devices order by device", &[])
        .await?;
    let id = |row: &Row| Ok(row.text(0)?.unwrap_or_default());
    rows.iter().map(id).collect()
}

/// The runs of a device, in the order in which they were heard of.
///
/// # Errors
/// Those of the database.
pub(crate) async fn runs(conn: &mut Conn, device: &str) -> Result<Vec<RunReport>, Fault> {
    let sql = "select run, last, received, twice, lost, last - received - deleted - lost, deleted \
               from runs where device = $1 order by ordinal";
    let rows = conn.rows(sql, &[device.into()]).await?;
    let run = |row: &Row| {
        Ok(RunReport {
            run: row.run(0)?.unwrap_or_default(),
            last: row.count(1)?,
            counts: counts(row, 2)?,
        })
    };
    rows.iter().map(run).collect()
}

/// Runs behind `after` whose first record was received before `before_ms`; a page of them, empty at the end.
///
/// # Errors
/// Those of the database.
pub(crate) async fn old_runs(
    conn: &mut Conn,
    after: (&str, Uuid),
    before_ms: i64,
) -> Result<Vec<(String, Uuid)>, Fault> {
    let sql = format!(
        "select device, run from runs where (device, run) > ($1, $2) and received > 0 and \
         (select received_at from records where records.device = runs.device and \
         records.run = runs.run order by seq limit 1) < $3 order by device, run limit {PAGE}"
    );
    let values = [after.0.into(), after.1.into(), Value::Time(Some(before_ms))];
    let rows = conn.rows(&sql, &values).await?;
    let run = |row: &Row| {
        Ok((
            row.text(0)?.unwrap_or_default(),
            row.run(1)?.unwrap_or_default(),
        ))
    };
    rows.iter().map(run).collect()
}

/// The first ranges of a run that are missing.
///
/// # Errors
/// Those of the database.
pub(crate) async fn missing(
    conn: &mut Conn,
    device: &str,
    run: Uuid,
) -> Result<Vec<(u64, u64)>, Fault> {
    let sql = "select from_seq, to_seq from gaps where device = $1 and run = $2 and what = 'missing' \
               order by from_seq limit 6";
    let rows = conn.rows(sql, &[device.into(), run.into()]).await?;
    let range = |row: &Row| Ok((row.count(0)?, row.count(1)?));
    rows.iter().map(range).collect()
}

/// The records of a run that follow `after` and lie in the span; a page of them, empty at the end.
///
/// # Errors
/// Those of the database.
pub(crate) async fn records(
    conn: &mut Conn,
    (device, run): (&str, Uuid),
    after: u64,
    span: &Span,
) -> Result<Vec<Kept>, Fault> {
    let mut sql = String::from(
        "select seq, ts, clock, kind, light, led_on, by, why, payload from records \
         where device = $1 and run = $2 and seq > $3",
    );
    let mut values = vec![device.into(), run.into(), after.into()];
    for (bound, sign) in [(span.from_ms, ">="), (span.to_ms, "<")] {
        if bound.is_some() {
            values.push(Value::Time(bound));
            sql.push_str(&format!(" and ts {sign} ${}", values.len()));
        }
    }
    sql.push_str(&format!(" order by seq limit {RECORDS}"));
    let rows = conn.rows(&sql, &values).await?;
    let record = |row: &Row| {
        Ok(Kept {
            device: device.to_owned(),
            run,
            seq: row.count(0)?,
            ts: row.time(1)?,
            clock: row.text(2)?,
            kind: row.text(3)?.unwrap_or_default(),
            light: row.number(4)?,
            led_on: row.flag(5)?,
            by: row.text(6)?,
            why: row.text(7)?,
            payload: row.text(8)?.unwrap_or_default(),
        })
    };
    rows.iter().map(record).collect()
}

fn of_row(row: &Row) -> Result<Report, Fault> {
    let latest = row.run(7)?;
    let run = |run| -> Result<RunReport, Fault> {
        Ok(RunReport {
            run,
            last: row.count(11)?,
            counts: counts(row, 12)?,
        })
    };
    Ok(Report {
        device: row.text(0)?.unwrap_or_default(),
        counts: counts(row, 1)?,
        runs: row.count(6)?,
        latest,
        plain: row.count(8)?,
        rubbish: row.count(9)?,
        last_seen: row.time(10)?.unwrap_or_default(),
        run: latest.map(run).transpose()?,
    })
}

/// Received, twice, lost, missing, deleted, from the column `first` on.
fn counts(row: &Row, first: usize) -> Result<Counts, Fault> {
    Ok(Counts {
        received: row.count(first)?,
        twice: row.count(first + 1)?,
        lost: row.count(first + 2)?,
        missing: row.count(first + 3)?,
        deleted: row.count(first + 4)?,
    })
}
