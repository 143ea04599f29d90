//! The one transaction that writes: what came goes into its tables, and the account of each run changes
//! with it.
//!
//! A record counts once, by (device, run, seq), whoever else writes at the same time: rows are locked in one
//! order, devices first, and the account counts the rows that were inserted and no others. What this says as
//! kept is committed; it can be acked. When it fails nothing of the batch is there.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::fmt::Write;
use std::time::Duration;

use uuid::Uuid;

use super::account::Run;
use super::{Conn, Fault, Value};
use crate::wire::{Arrived, Loss};
use nightlight_logic::intervals::Intervals;

/// Rows in one statement: few texts, so that the database knows each already.
const CHUNKS: [usize; 4] = [128, 32, 8, 1];
/// Tries when others are in the way, and the longest wait before the second; before later ones it is longer.
const TRIES: u32 = 30;
const WAIT: Duration = Duration::from_millis(20);
const LONGER: u32 = 10;

/// What came of all devices.
#[derive(Debug, Default)]
pub(crate) struct Batch {
    /// By device; written in this order.
    pub devices: BTreeMap<String, FromDevice>,
    /// The time here, in milliseconds since 1970.
    pub now_ms: i64,
}

/// What came of one device.
#[derive(Debug, Default)]
pub(crate) struct FromDevice {
    /// Its records, as they came.
    pub records: Vec<Arrived>,
    /// What it has given up.
    pub losses: Vec<Loss>,
    /// Readings without run and number.
    pub plain: u64,
    /// What was no record.
    pub rubbish: u64,
    /// Its status, where it told it.
    pub online: Option<bool>,
    /// Its state, where it told it.
    pub state: Option<String>,
}

/// What is committed and to be acked: by device and run.
pub(crate) type Acks = BTreeMap<(String, Uuid), Intervals>;

/// A device and one of its runs.
type Of = (String, Uuid);

/// Writes a batch; all of it, or nothing.
///
/// # Errors
/// Those of the database, when trying again is no use.
pub(crate) async fn ingest(conn: &mut Conn, batch: &Batch) -> Result<Acks, Fault> {
    let mut tries = 1;
    loop {
        match attempt(conn, batch).await {
            Err(Fault::Again(why)) if tries < TRIES => {
                tracing::debug!("the transaction is tried again: {why}");
                tokio::time::sleep(WAIT.mul_f64(fastrand::f64()) * tries.min(LONGER)).await;
                tries += 1;
            }
            Err(Fault::Again(why)) => return Err(Fault::Other(why)),
            other => return other,
        }
    }
}

async fn attempt(conn: &mut Conn, batch: &Batch) -> Result<Acks, Fault> {
    conn.begin().await?;
    let done = match write(conn, batch).await {
        Ok(acks) => conn.commit().await.map(|()| acks).map_err(Fault::from),
        Err(fault) => Err(fault),
    };
    if done.is_err() {
        // A connection that cannot is given up by the caller; SQLite has sometimes done it already.
        let _ = conn.rollback().await;
    }
    done
}

async fn write(conn: &mut Conn, batch: &Batch) -> Result<Acks, Fault> {
    devices(conn, batch).await?;
    let mut runs = known_runs(conn, batch).await?;
    let mut changed: BTreeSet<Of> = BTreeSet::new();
    let fresh = records(conn, batch, &mut runs, &mut changed).await?;
    outages(conn, batch, &fresh).await?;
    let mut acks = previous_runs(batch, &fresh, &mut runs, &mut changed);
    losses(conn, batch, &mut runs, &mut changed, &mut acks).await?;
    save(conn, batch, &runs, &changed).await?;
    Ok(acks)
}

/// Makes devices known and locks their rows, in one order.
async fn devices(conn: &mut Conn, batch: &Batch) -> Result<(), Fault> {
    let rows: Vec<_> = batch.devices.iter().collect();
    let now = Value::Time(Some(batch.now_ms));
    for chunk in chunks(&rows) {
        let sql = statement(
            "insert into devices (device, first_seen, last_seen, latest_run, plain, rubbish, \
             online, online_since, state, state_at) values ",
            10,
            chunk.len(),
            " on conflict (device) do update set last_seen = excluded.last_seen, \
             latest_run = coalesce(excluded.latest_run, devices.latest_run), \
             plain = devices.plain + excluded.plain, rubbish = devices.rubbish + excluded.rubbish, \
             online_since = case when excluded.online is null or excluded.online = devices.online \
             then devices.online_since else excluded.online_since end, \
             online = coalesce(excluded.online, devices.online), \
             state = coalesce(excluded.state, devices.state), \
             state_at = coalesce(excluded.state_at, devices.state_at)",
        );
        let mut values = Vec::with_capacity(10 * chunk.len());
        for (device, from) in chunk {
            let latest = from.records.iter().rfind(|record| record.live);
            let or_null = |there: bool| Value::Time(there.then_some(batch.now_ms));
            values.extend([
                device.as_str().into(),
                now.clone(),
                now.clone(),
                Value::Run(latest.map(|record| record.run)),
                from.plain.into(),
                from.rubbish.into(),
                Value::Flag(from.online),
                or_null(from.online.is_some()),
                Value::Text(from.state.as_deref()),
                or_null(from.state.is_some()),
            ]);
        }
        conn.execute(&sql, &values).await?;
    }
    Ok(())
}

/// The accounts of the runs that the batch speaks of, as far as there are; their rows are locked.
async fn known_runs(conn: &mut Conn, batch: &Batch) -> Result<BTreeMap<Of, Run>, Fault> {
    let mut asked: BTreeSet<Of> = BTreeSet::new();
    for (device, from) in &batch.devices {
        let records = from.records.iter();
        let spoken =
            records.flat_map(|record| [Some(record.run), record.previous.map(|(run, _)| run)]);
        let lost = from.losses.iter().map(|loss| Some(loss.of_run));
        for run in spoken.chain(lost).flatten() {
            if !asked
                .iter()
                .next_back()
                .is_some_and(|last| last.1 == run && last.0 == *device)
            {
                asked.insert((device.clone(), run));
            }
        }
    }
    let asked: Vec<Of> = asked.into_iter().collect();
    let lock = match conn {
        Conn::Sqlite(_) => "",
        Conn::Postgres(_) => " for update",
    };
    let mut runs = BTreeMap::new();
    for chunk in chunks(&asked) {
        let sql = statement(
            "select device, run, ordinal, last, received, twice, lost_told, lost_ranges, \
             lost_received, deleted, deleted_ranges from runs where (device, run) in (values ",
            2,
            chunk.len(),
            &format!(") order by device, run{lock}"),
        );
        let values: Vec<Value<'_>> = chunk
            .iter()
            .flat_map(|(device, run)| [device.as_str().into(), (*run).into()])
            .collect();
        for row in conn.rows(&sql, &values).await? {
            let ranges = |column| -> Result<Intervals, Fault> {
                let text = row.text(column)?.unwrap_or_default();
                serde_json::from_str(&text).map_err(|error| {
                    Fault::Other(format!("the account of a run cannot be read: {error}"))
                })
            };
            let run = Run {
                ordinal: row.count(2)?,
                last: row.count(3)?,
                received: row.count(4)?,
                twice: row.count(5)?,
                lost_told: row.count(6)?,
                losses: ranges(7)?,
                lost_received: row.count(8)?,
                deleted: row.count(9)?,
                deletions: ranges(10)?,
            };
            let device = row.text(0)?.unwrap_or_default();
            runs.insert((device, row.run(1)?.unwrap_or_default()), run);
        }
    }
    Ok(runs)
}

/// Inserts the records; gives back which are new.
async fn records<'a>(
    conn: &mut Conn,
    batch: &'a Batch,
    runs: &mut BTreeMap<Of, Run>,
    changed: &mut BTreeSet<Of>,
) -> Result<HashSet<(&'a str, Uuid, u64)>, Fault> {
    let mut rows: Vec<(&'a str, &'a Arrived)> = Vec::new();
    for (device, from) in &batch.devices {
        let known = |record: &&Arrived| {
            let run = runs.get(&(device.clone(), record.run));
            run.is_some_and(|run| run.deletions.ranges() > 0 && run.deletions.contains(record.seq))
        };
        let insert = from.records.iter().filter(|record| !known(record));
        rows.extend(insert.map(|record| (device.as_str(), record)));
    }
    let mut fresh = HashSet::new();
    for chunk in chunks(&rows) {
        let sql = statement(
            "insert into records (device, run, seq, ts, clock, kind, light, led_on, by, why, \
             received_at, payload) values ",
            12,
            chunk.len(),
            " on conflict do nothing returning device, run, seq",
        );
        let mut values = Vec::with_capacity(12 * chunk.len());
        for (device, record) in chunk {
            values.extend([
                (*device).into(),
                record.run.into(),
                record.seq.into(),
                Value::Time(record.ts_ms),
                Value::Text(record.clock.as_deref()),
                record.kind.as_str().into(),
                Value::Number(record.light),
                Value::Flag(record.led_on),
                Value::Text(record.by.as_deref()),
                Value::Text(record.why.as_deref()),
                Value::Time(Some(batch.now_ms)),
                record.json.as_str().into(),
            ]);
        }
        for row in conn.rows(&sql, &values).await? {
            let device = row.text(0)?.unwrap_or_default();
            let key = (row.run(1)?.unwrap_or_default(), row.count(2)?);
            if let Some((device, _)) = batch.devices.get_key_value(&device) {
                fresh.insert((device.as_str(), key.0, key.1));
            }
        }
    }
    account(batch, &fresh, runs, changed);
    Ok(fresh)
}

/// Counts each arrival: the first one of a new record as received, any other as twice.
fn account<'a>(
    batch: &'a Batch,
    fresh: &HashSet<(&'a str, Uuid, u64)>,
    runs: &mut BTreeMap<Of, Run>,
    changed: &mut BTreeSet<Of>,
) {
    let mut counted: HashSet<(&str, Uuid, u64)> = HashSet::with_capacity(fresh.len());
    for (device, from) in &batch.devices {
        // Records come run by run: one look-up for each stretch.
        for stretch in from.records.chunk_by(|a, b| a.run == b.run) {
            let Some(first) = stretch.first() else {
                continue;
            };
            let of = (device.clone(), first.run);
            let run = runs.entry(of.clone()).or_default();
            for record in stretch {
                let key = (device.as_str(), record.run, record.seq);
                match fresh.contains(&key) && counted.insert(key) {
                    true => run.receive(record.seq),
                    false => run.twice += 1,
                }
            }
            changed.insert(of);
        }
    }
}

/// Accounts of outages, of new records.
async fn outages(
    conn: &mut Conn,
    batch: &Batch,
    fresh: &HashSet<(&str, Uuid, u64)>,
) -> Result<(), Fault> {
    for (device, from) in &batch.devices {
        for record in &from.records {
            let Some(outage) = &record.outage else {
                continue;
            };
            if !fresh.contains(&(device.as_str(), record.run, record.seq)) {
                continue;
            }
            let [readings, events, led_changes, lost] = outage.counts.map(Value::Whole);
            let values = [
                device.as_str().into(),
                record.run.into(),
                record.seq.into(),
                Value::Text(outage.cause.as_deref()),
                Value::Time(outage.began_ms),
                Value::Time(outage.ended_ms),
                Value::Number(outage.seconds),
                readings,
                events,
                led_changes,
                lost,
                Value::Text(record.why.as_deref()),
            ];
            let sql = "insert into outages (device, run, seq, cause, began, ended, seconds, readings, \
                       events, led_changes, lost, why) \
                       values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12) on conflict do nothing";
            conn.execute(sql, &values).await?;
        }
    }
    Ok(())
}

/// What new records tell of the run before, and the acks of all records. Of a run that was never heard of
/// nothing is expected: it may have been before this server's time.
fn previous_runs(
    batch: &Batch,
    fresh: &HashSet<(&str, Uuid, u64)>,
    runs: &mut BTreeMap<Of, Run>,
    changed: &mut BTreeSet<Of>,
) -> Acks {
    let mut acks = Acks::new();
    // Of two arrivals in one batch the first was inserted; the other may say anything.
    let mut told = HashSet::new();
    for (device, from) in &batch.devices {
        for stretch in from.records.chunk_by(|a, b| a.run == b.run) {
            let Some(first) = stretch.first() else {
                continue;
            };
            let acked = acks.entry((device.clone(), first.run)).or_default();
            for record in stretch {
                acked.insert(record.seq, record.seq);
                let key = (device.as_str(), record.run, record.seq);
                if let Some((previous, last)) = record.previous
                    && fresh.contains(&key)
                    && told.insert(key)
                {
                    let of = (device.clone(), previous);
                    if let Some(run) = runs.get_mut(&of) {
                        run.last = run.last.max(last);
                        changed.insert(of);
                    }
                }
            }
        }
    }
    acks
}

/// What devices gave up: each told range once, however often it comes. What was received wins.
async fn losses(
    conn: &mut Conn,
    batch: &Batch,
    runs: &mut BTreeMap<Of, Run>,
    changed: &mut BTreeSet<Of>,
    acks: &mut Acks,
) -> Result<(), Fault> {
    for (device, from) in &batch.devices {
        for loss in &from.losses {
            let of = (device.clone(), loss.of_run);
            let values = [
                device.as_str().into(),
                loss.of_run.into(),
                loss.from.into(),
                loss.to.into(),
                loss.count.into(),
                Value::Text(loss.reason.as_deref()),
                Value::Time(Some(batch.now_ms)),
            ];
            let sql = "insert into losses (device, of_run, from_seq, to_seq, count, reason, told_at) \
                       values ($1, $2, $3, $4, $5, $6, $7) on conflict do nothing";
            let is_new = conn.execute(sql, &values).await? > 0;
            let run = runs.entry(of.clone()).or_default();
            if is_new {
                for range in run.lose((loss.from, loss.to), loss.count) {
                    // What was received and is deleted by now was received all the same.
                    let deleted = run.deletions.count_within(range);
                    run.lost_received += received(conn, &of, range).await? + deleted;
                }
                changed.insert(of.clone());
            }
            if is_settled(conn, &of, loss).await? {
                acks.entry(of).or_default().insert(loss.from, loss.to);
            }
        }
    }
    Ok(())
}

/// Whether nothing in the range of a loss is still on its way: an ack of the range would cover that too.
async fn is_settled(conn: &mut Conn, of: &Of, loss: &Loss) -> Result<bool, Fault> {
    let length = loss.to - loss.from + 1;
    if loss.count >= length {
        return Ok(true);
    }
    let received = received(conn, of, (loss.from, loss.to)).await?;
    Ok(loss.count + received >= length)
}

async fn received(conn: &mut Conn, of: &Of, (from, to): (u64, u64)) -> Result<u64, Fault> {
    let sql =
        "select count(*) from records where device = $1 and run = $2 and seq between $3 and $4";
    let values = [of.0.as_str().into(), of.1.into(), from.into(), to.into()];
    let rows = conn.rows(sql, &values).await?;
    match rows.first() {
        Some(row) => Ok(row.count(0)?),
        None => Ok(0),
    }
}

/// The accounts that have changed go into their rows; runs that are new get the next ordinal.
async fn save(
    conn: &mut Conn,
    batch: &Batch,
    runs: &BTreeMap<Of, Run>,
    changed: &BTreeSet<Of>,
) -> Result<(), Fault> {
    let mut rows: Vec<(&Of, Run)> = Vec::with_capacity(changed.len());
    let mut next: Option<(&str, u64)> = None;
    for of in changed {
        let Some(run) = runs.get(of) else { continue };
        let mut run = run.clone();
        if run.ordinal == 0 {
            let ordinal = match next {
                Some((device, ordinal)) if device == of.0 => ordinal + 1,
                _ => {
                    let sql = "select count(*) from runs where device = $1";
                    let found = conn.rows(sql, &[of.0.as_str().into()]).await?;
                    1 + found.first().map_or(Ok(0), |row| row.count(0))?
                }
            };
            next = Some((of.0.as_str(), ordinal));
            run.ordinal = ordinal;
        }
        rows.push((of, run));
    }
    for chunk in chunks(&rows) {
        let sql = statement(
            "insert into runs (device, run, ordinal, first_seen, last, received, twice, lost, deleted, \
             lost_told, lost_ranges, lost_received, deleted_ranges) values ",
            13,
            chunk.len(),
            " on conflict (device, run) do update set last = excluded.last, \
             received = excluded.received, twice = excluded.twice, lost = excluded.lost, \
             deleted = excluded.deleted, lost_told = excluded.lost_told, \
             lost_ranges = excluded.lost_ranges, lost_received = excluded.lost_received, \
             deleted_ranges = excluded.deleted_ranges",
        );
        let texts: Vec<[String; 2]> = chunk
            .iter()
            .map(|(_, run)| [&run.losses, &run.deletions].map(Intervals::json))
            .collect();
        let mut values = Vec::with_capacity(13 * chunk.len());
        for (((device, id), run), [losses, deletions]) in chunk.iter().zip(&texts) {
            let counts = run.counts();
            values.extend([
                device.as_str().into(),
                (*id).into(),
                run.ordinal.into(),
                Value::Time(Some(batch.now_ms)),
                run.last.into(),
                run.received.into(),
                run.twice.into(),
                counts.lost.into(),
                run.deleted.into(),
                run.lost_told.into(),
                losses.as_str().into(),
                run.lost_received.into(),
                deletions.as_str().into(),
            ]);
        }
        conn.execute(&sql, &values).await?;
    }
    Ok(())
}

/// All of `rows`, in chunks of few sizes.
fn chunks<T>(mut rows: &[T]) -> impl Iterator<Item = &[T]> {
    std::iter::from_fn(move || {
        let size = CHUNKS.into_iter().find(|size| *size <= rows.len())?;
        let (chunk, rest) = rows.split_at(size);
        rows = rest;
        Some(chunk)
    })
}

/// `before ($1, $2), ($3, $4) after`.
fn statement(before: &str, columns: usize, rows: usize, after: &str) -> String {
    let mut sql = String::from(before);
    for row in 0..rows {
        sql.push_str(if row == 0 { "(" } else { ", (" });
        for column in 1..=columns {
            let comma = if column == 1 { "" } else { ", " };
            // Writing into memory has no way to fail.
            let _ = write!(sql, "{comma}${}", row * columns + column);
        }
        sql.push(')');
    }
    sql.push_str(after);
    sql
}
