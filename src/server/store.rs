//! The server's store: every record once, and what is known of each run and device, on sled.
//!
//! A batch is one atomic write and is on the disk when [`Store::write`] returns. It decides nothing:
//! `ledger` says what to write and asks through [`Shelf`]. `keeper` owns it while the server runs;
//! `--account` and `--export` read it at rest.
//!
//! Records lie singly until their block is full, and then packed: sled's memory and disk grow with the
//! number of its entries (220,000 single records are 105 MB on disk).
//!
//! Keys, numbers big-endian (a device id has no zero byte in it):
//!
//! ```text
//!   d device                          what is known of the device
//!   h device 0 run                    what is known of the run
//!   r device 0 run seq                a record
//!   s device 0 run block              the 64 records of a full block, packed
//!   t device 0 run from to count      a loss that was told
//!   v                                 the version of this layout
//! ```

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

use sled::{Batch, IVec};
use uuid::Uuid;

use super::account::{Run, Totals};
use super::intervals::Intervals;
use super::keys::{
    damaged, json, last_number, of_block, of_device, of_run, packed, read, record, text, told,
    unpacked, with_device,
};
use super::ledger::{BLOCK, Change, Fault, Loss, Shelf, whole};
use super::opening::{
    OpenError, create_synced, guard, in_words, open_db, remove_half_snapshots, words,
};

const VERSION: &[u8] = b"1";
/// With less space nothing is written: sled does not survive a full disk.
const FLOOR: u64 = 16 * 1024 * 1024;
/// Larger values are not safe in sled.
const MOST_VALUE: usize = 7_000;

/// The open store.
#[derive(Debug)]
pub struct Store {
    path: PathBuf,
    pub(super) db: sled::Db,
    /// A second descriptor of sled's log: sled itself does not sync to the medium.
    log: File,
}

impl Store {
    /// Opens the store in the folder `path`, which is made if it is missing.
    ///
    /// # Errors
    /// Why it cannot be used, and what to do. A damaged store is left as it is: it is the only copy.
    pub fn open(path: &Path) -> Result<Self, OpenError> {
        let told = |error: io::Error| in_words(path, &error);
        create_synced(path).map_err(told)?;
        let place = path.join("store");
        remove_half_snapshots(&place);
        let db = open_db(path, &place)?;
        let store = Self {
            path: path.to_owned(),
            log: File::open(place.join("db")).map_err(told)?,
            db,
        };
        let version = guard(|| store.db.get(b"v").map_err(words)).map_err(OpenError::Other)?;
        match version.as_deref() {
            Some(VERSION) => {}
            None => {
                let begin = || {
                    store.db.insert(b"v", VERSION).map_err(words)?;
                    store.sync()
                };
                guard(begin).map_err(OpenError::Other)?;
                File::open(&place)
                    .and_then(|folder| folder.sync_all())
                    .map_err(told)?;
            }
            Some(_) => {
                return Err(OpenError::Other(format!(
                    "the store in {} was written by a later version",
                    path.display()
                )));
            }
        }
        Ok(store)
    }

    /// Writes the changes as one; they are on the disk afterwards.
    ///
    /// # Errors
    /// The store is then to be closed and opened again.
    pub fn write<'a>(&self, changes: impl Iterator<Item = Change<'a>>) -> Result<(), Fault> {
        self.above_floor()?;
        let mut batch = Batch::default();
        let mut fresh = HashMap::new();
        for change in changes {
            match change {
                Change::Record(device, run, seq, json) => {
                    let key = record(device, run, seq);
                    batch.insert(key.clone(), json.as_bytes());
                    fresh.insert(key, json);
                }
                Change::Full(device, run, block) => {
                    self.pack(&mut batch, &fresh, (device, run, block))?;
                }
                Change::Run(device, run, head) => {
                    batch.insert(of_run(b'h', device, run), json(head))
                }
                Change::Told(device, loss) => batch.insert(told(device, loss), &[]),
                Change::Totals(device, totals) => batch.insert(of_device(device), json(totals)),
            }
        }
        self.db.apply_batch(batch).map_err(words)?;
        self.sync()
    }

    /// All devices.
    pub fn devices(&self) -> Result<Vec<(String, Totals)>, Fault> {
        let mut devices = Vec::new();
        for entry in self.db.scan_prefix(b"d") {
            let (key, value) = entry.map_err(words)?;
            devices.push((text(&key[1..])?, read(&value)?));
        }
        Ok(devices)
    }

    /// All runs of a device, in the order in which they were first heard of.
    pub fn runs(&self, device: &str) -> Result<Vec<(Uuid, Run)>, Fault> {
        let mut runs = Vec::new();
        let prefix = with_device(b'h', device);
        for entry in self.db.scan_prefix(&prefix) {
            let (key, value) = entry.map_err(words)?;
            let run = Uuid::from_slice(&key[prefix.len()..]).map_err(|_| damaged())?;
            runs.push((run, read::<Run>(&value)?));
        }
        runs.sort_by_key(|(_, run)| run.ordinal);
        Ok(runs)
    }

    /// The numbers of a run that were neither received nor, as far as it is known, lost.
    pub fn missing(&self, device: &str, run: Uuid, head: &Run) -> Result<Vec<(u64, u64)>, Fault> {
        let mut known = head.losses.clone();
        let mut received = Intervals::default();
        self.each(device, run, 1, head.last, |from, to| {
            received.insert(from, to);
        })?;
        for (from, to) in received.iter() {
            known.insert(from, to);
        }
        Ok(known.gaps(head.last))
    }

    /// Every record of a run as it came, in order.
    pub fn export(
        &self,
        device: &str,
        run: Uuid,
        mut visit: impl FnMut(&str) -> Result<(), Fault>,
    ) -> Result<(), Fault> {
        // Packed and single ones lie apart; both are in order.
        let prefix = of_run(b's', device, run);
        let mut blocks = self.db.scan_prefix(&prefix).peekable();
        let mut single = self.db.scan_prefix(of_run(b'r', device, run)).peekable();
        let number = |entry: &sled::Result<(IVec, IVec)>| match entry {
            Ok((key, _)) => last_number(key),
            Err(error) => Err(error.to_string()),
        };
        loop {
            let block = blocks.peek().map(number).transpose()?;
            let seq = single.peek().map(number).transpose()?;
            let packed_first = match (block, seq) {
                (None, None) => return Ok(()),
                (Some(block), Some(seq)) => block < seq / BLOCK,
                (block, _) => block.is_some(),
            };
            let next = if packed_first {
                blocks.next()
            } else {
                single.next()
            };
            let Some(entry) = next else {
                return Ok(());
            };
            let (_, value) = entry.map_err(words)?;
            match packed_first {
                true => {
                    for json in unpacked(&value)? {
                        visit(&json)?;
                    }
                }
                false => visit(&text(&value)?)?,
            }
        }
    }

    /// Packs a full block, whose records are in the store or in this batch.
    fn pack(
        &self,
        batch: &mut Batch,
        fresh: &HashMap<Vec<u8>, &str>,
        (device, run, block): (&str, Uuid, u64),
    ) -> Result<(), Fault> {
        let mut keys = Vec::new();
        let mut records = Vec::new();
        for seq in (block * BLOCK).max(1)..=block * BLOCK + (BLOCK - 1) {
            let key = record(device, run, seq);
            let stored = match fresh.get(&key) {
                Some(json) => IVec::from(json.as_bytes()),
                None => self.db.get(&key).map_err(words)?.ok_or_else(damaged)?,
            };
            records.push(stored);
            keys.push(key);
        }
        let value = packed(records.iter().map(IVec::as_ref));
        // Long records that cannot be compressed stay as they are.
        if value.len() <= MOST_VALUE {
            for key in keys {
                batch.remove(key);
            }
            batch.insert(of_block(device, run, block), value);
        }
        Ok(())
    }

    /// Visits the numbers of a run that are there, in no order.
    fn each(
        &self,
        device: &str,
        run: Uuid,
        from: u64,
        to: u64,
        mut visit: impl FnMut(u64, u64),
    ) -> Result<(), Fault> {
        let range = of_block(device, run, from / BLOCK)..=of_block(device, run, to / BLOCK);
        for key in self.db.range(range).keys() {
            let first = last_number(&key.map_err(words)?)?.saturating_mul(BLOCK);
            visit(from.max(first).max(1), to.min(first + (BLOCK - 1)));
        }
        let range = record(device, run, from)..=record(device, run, to);
        for key in self.db.range(range).keys() {
            let seq = last_number(&key.map_err(words)?)?;
            visit(seq, seq);
        }
        Ok(())
    }

    fn sync(&self) -> Result<(), Fault> {
        self.db.flush().map_err(words)?;
        self.log.sync_data().map_err(|error| error.to_string())
    }

    /// Whether there is space to write.
    ///
    /// # Errors
    /// How much is missing, in words.
    pub fn above_floor(&self) -> Result<(), Fault> {
        let Ok(system) = rustix::fs::statvfs(&self.path) else {
            return Ok(());
        };
        let free = system.f_bavail.saturating_mul(system.f_frsize);
        if free < FLOOR {
            return Err(format!(
                "disk nearly full: {} kB free where {} kB must stay free for {}; delete something",
                free / 1024,
                FLOOR / 1024,
                self.path.display()
            ));
        }
        Ok(())
    }
}

impl Shelf for Store {
    fn run(&self, device: &str, run: Uuid) -> Result<Option<Run>, Fault> {
        let value = self.db.get(of_run(b'h', device, run)).map_err(words)?;
        value.map(|value| read(&value)).transpose()
    }

    fn block(&self, device: &str, run: Uuid, block: u64) -> Result<u64, Fault> {
        let mut mask = 0;
        let first = block * BLOCK;
        self.each(device, run, first, first + (BLOCK - 1), |from, to| {
            mask |= match from == to {
                true => 1 << (from % BLOCK),
                false => whole(block),
            };
        })?;
        Ok(mask)
    }

    fn received(&self, device: &str, run: Uuid, from: u64, to: u64) -> Result<u64, Fault> {
        let mut count = 0;
        self.each(device, run, from, to, |from, to| count += to - from + 1)?;
        Ok(count)
    }

    fn was_told(&self, device: &str, loss: &Loss) -> Result<bool, Fault> {
        self.db.contains_key(told(device, loss)).map_err(words)
    }
}
