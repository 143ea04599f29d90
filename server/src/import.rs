//! The export of another server into this database: lines of JSON, `{"device": ..., "record": ...}`, as
//! `export` writes them and the earlier `nightlight server --export` did.
//!
//! Records count as they do when they come from the device; what is here already is there twice and does
//! not count again. So an import that was broken off can be repeated.

use std::io::BufRead;

use serde::Deserialize;
use serde_json::value::RawValue;

use nightlight_common::clock::Clock;

use crate::store::ingest::{Batch, ingest};
use crate::store::{Database, Fault};
use crate::topics::{Lane, is_device_id};
use crate::wire;

/// Lines of one transaction.
const LINES: usize = 2_000;

/// What became of the lines.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Imported {
    /// Records.
    pub records: u64,
    /// Lines that are none, the first of them, counted from 1.
    pub rubbish: u64,
    /// Where the first of those is.
    pub first_rubbish: Option<u64>,
}

#[derive(Debug, Deserialize)]
struct Line<'a> {
    device: String,
    #[serde(borrow)]
    record: &'a RawValue,
}

/// Reads `from` to its end.
///
/// # Errors
/// Those of the database and of `from`.
pub async fn import(database: &Database, from: &mut impl BufRead) -> Result<Imported, Fault> {
    let mut conn = database.open().await?;
    let clock = Clock::new();
    let mut imported = Imported::default();
    let mut number = 0;
    let mut line = String::new();
    loop {
        let mut batch = Batch {
            now_ms: clock.now().wall_ms,
            ..Batch::default()
        };
        let mut lines = 0;
        while lines < LINES {
            line.clear();
            let read = from.read_line(&mut line);
            match read {
                Ok(0) => break,
                Ok(_) => lines += 1,
                Err(error) => {
                    return Err(Fault::Other(format!(
                        "line {} cannot be read: {error}",
                        number + 1
                    )));
                }
            }
            number += 1;
            if line.trim().is_empty() {
                continue;
            }
            match take(&mut batch, &line) {
                true => imported.records += 1,
                false => {
                    imported.rubbish += 1;
                    imported.first_rubbish.get_or_insert(number);
                }
            }
        }
        if !batch.devices.is_empty() {
            database.within(ingest(&mut conn, &batch)).await?;
        }
        if lines == 0 {
            conn.close().await;
            return Ok(imported);
        }
    }
}

fn take(batch: &mut Batch, line: &str) -> bool {
    let Ok(line) = serde_json::from_str::<Line<'_>>(line) else {
        return false;
    };
    // As history: it is the past.
    let payload = wire::read(line.record.get().as_bytes(), Lane::History, None);
    let is_one = payload.records.len() == 1 || payload.losses.len() == 1;
    if !is_device_id(&line.device) || !is_one {
        return false;
    }
    let from = batch.devices.entry(line.device).or_default();
    from.records.extend(payload.records);
    from.losses.extend(payload.losses);
    true
}
