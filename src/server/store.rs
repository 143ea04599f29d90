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
use std::fs::{self, File};
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};

use miniz_oxide::deflate::compress_to_vec;
use miniz_oxide::inflate::decompress_to_vec_with_limit;
use serde::Serialize;
use serde::de::DeserializeOwned;
use sled::{Batch, IVec};
use uuid::Uuid;

use super::account::{Run, Totals};
use super::intervals::Intervals;
use super::ledger::{BLOCK, Change, Fault, Loss, Shelf, whole};
use super::wire::MOST_BYTES;

const VERSION: &[u8] = b"1";
/// With less space nothing is written: sled does not survive a full disk.
const FLOOR: u64 = 16 * 1024 * 1024;
/// Larger values are not safe in sled.
const MOST_VALUE: usize = 7_000;
/// Of a block: 64 records of the greatest length, and their lengths.
const MOST_UNPACKED: usize = BLOCK as usize * (MOST_BYTES + 4);
/// Of compression; higher ones cost much and gain little.
const LEVEL: u8 = 6;
const CACHE: u64 = 16 * 1024 * 1024;
/// The threads of a store that was just closed may hold its lock for a moment.
const LOCK_TRIES: u32 = 50;
const LOCK_PAUSE: std::time::Duration = std::time::Duration::from_millis(20);

/// Why there is no store.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum OpenError {
    /// No right to it.
    Permission(String),
    /// Anything else.
    Other(String),
}

/// The open store.
#[derive(Debug)]
pub struct Store {
    path: PathBuf,
    db: sled::Db,
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
        let mut packed = self.db.scan_prefix(&prefix).peekable();
        let mut single = self.db.scan_prefix(of_run(b'r', device, run)).peekable();
        let number = |entry: &sled::Result<(IVec, IVec)>| match entry {
            Ok((key, _)) => last_number(key),
            Err(error) => Err(error.to_string()),
        };
        loop {
            let block = packed.peek().map(number).transpose()?;
            let seq = single.peek().map(number).transpose()?;
            let packed_first = match (block, seq) {
                (None, None) => return Ok(()),
                (Some(block), Some(seq)) => block < seq / BLOCK,
                (block, _) => block.is_some(),
            };
            let next = if packed_first {
                packed.next()
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
        let mut bytes = Vec::new();
        for seq in (block * BLOCK).max(1)..=block * BLOCK + (BLOCK - 1) {
            let key = record(device, run, seq);
            let stored = match fresh.get(&key) {
                Some(json) => IVec::from(json.as_bytes()),
                None => self.db.get(&key).map_err(words)?.ok_or_else(damaged)?,
            };
            bytes.extend((stored.len() as u32).to_be_bytes());
            bytes.extend(stored.as_ref());
            keys.push(key);
        }
        let value = compress_to_vec(&bytes, LEVEL);
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

    fn above_floor(&self) -> Result<(), Fault> {
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

/// Does something that sled may panic in: it does where a store is damaged.
///
/// # Errors
/// Those of the work, and a panic in words.
pub fn guard<T>(work: impl FnOnce() -> Result<T, Fault>) -> Result<T, Fault> {
    catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(|what| {
        let words = what
            .downcast_ref::<String>()
            .map(String::as_str)
            .or_else(|| what.downcast_ref::<&str>().copied());
        Err(format!("sled: {}", words.unwrap_or("unknown")))
    })
}

fn open_db(path: &Path, place: &Path) -> Result<sled::Db, OpenError> {
    let mut tries = 0;
    loop {
        let opened = catch_unwind(|| {
            sled::Config::default()
                .path(place)
                .cache_capacity(CACHE)
                // Each batch is synced by hand.
                .flush_every_ms(None)
                .open()
        });
        match opened {
            Ok(Ok(db)) => return Ok(db),
            Ok(Err(error)) if error.to_string().contains("could not acquire lock") => {
                tries += 1;
                if tries > LOCK_TRIES {
                    return Err(OpenError::Other(format!(
                        "the store in {} is held by a running server; its account is on its account topics, and printed on SIGUSR1",
                        path.display()
                    )));
                }
                std::thread::sleep(LOCK_PAUSE);
            }
            Ok(Err(sled::Error::Io(error))) => return Err(in_words(path, &error)),
            _ => {
                return Err(OpenError::Other(format!(
                    "the store in {} is damaged; move that folder aside to begin a new one, and keep it: it has records that the devices have forgotten",
                    path.display()
                )));
            }
        }
    }
}

fn in_words(path: &Path, error: &io::Error) -> OpenError {
    let text = format!("the store in {} cannot be used: {error}", path.display());
    match error.kind() {
        io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => {
            OpenError::Permission(text)
        }
        _ => OpenError::Other(text),
    }
}

/// A power cut while sled opens a store leaves `snap.*.generating`, and then no later open succeeds.
/// Without the file all is well.
fn remove_half_snapshots(store: &Path) {
    let entries = fs::read_dir(store).into_iter().flatten();
    for entry in entries.filter_map(Result::ok) {
        let name = entry.file_name();
        let name = name.to_string_lossy();
        if name.starts_with("snap.") && name.ends_with(".generating") {
            let _ = fs::remove_file(entry.path());
        }
    }
}

/// A folder that is still there after a power cut.
fn create_synced(path: &Path) -> io::Result<()> {
    if path.is_dir() {
        return Ok(());
    }
    let parent = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    create_synced(parent)?;
    fs::create_dir(path)?;
    File::open(parent)?.sync_all()
}

fn of_device(device: &str) -> Vec<u8> {
    let mut key = vec![b'd'];
    key.extend(device.as_bytes());
    key
}

fn with_device(kind: u8, device: &str) -> Vec<u8> {
    let mut key = vec![kind];
    key.extend(device.as_bytes());
    key.push(0);
    key
}

fn of_run(kind: u8, device: &str, run: Uuid) -> Vec<u8> {
    let mut key = with_device(kind, device);
    key.extend(run.as_bytes());
    key
}

fn record(device: &str, run: Uuid, seq: u64) -> Vec<u8> {
    let mut key = of_run(b'r', device, run);
    key.extend(seq.to_be_bytes());
    key
}

fn of_block(device: &str, run: Uuid, block: u64) -> Vec<u8> {
    let mut key = of_run(b's', device, run);
    key.extend(block.to_be_bytes());
    key
}

fn told(device: &str, loss: &Loss) -> Vec<u8> {
    let mut key = of_run(b't', device, loss.of_run);
    for number in [loss.from, loss.to, loss.count] {
        key.extend(number.to_be_bytes());
    }
    key
}

fn last_number(key: &IVec) -> Result<u64, Fault> {
    let number = key.last_chunk::<8>().ok_or_else(damaged)?;
    Ok(u64::from_be_bytes(*number))
}

fn unpacked(value: &IVec) -> Result<Vec<String>, Fault> {
    let bytes = decompress_to_vec_with_limit(value, MOST_UNPACKED).map_err(|_| damaged())?;
    let mut records = Vec::new();
    let mut rest = bytes.as_slice();
    while let Some((length, behind)) = rest.split_first_chunk::<4>() {
        let length = u32::from_be_bytes(*length) as usize;
        let (record, behind) = behind.split_at_checked(length).ok_or_else(damaged)?;
        records.push(text(record)?);
        rest = behind;
    }
    Ok(records)
}

fn json(value: &impl Serialize) -> Vec<u8> {
    // Numbers and lists of numbers always have a JSON form.
    serde_json::to_vec(value).unwrap_or_default()
}

fn read<T: DeserializeOwned>(value: &IVec) -> Result<T, Fault> {
    serde_json::from_slice(value).map_err(|_| damaged())
}

fn text(bytes: &[u8]) -> Result<String, Fault> {
    String::from_utf8(bytes.to_vec()).map_err(|_| damaged())
}

fn damaged() -> Fault {
    "an entry of the store is damaged".into()
}

fn words(error: sled::Error) -> Fault {
    error.to_string()
}

#[cfg(test)]
mod tests {
    use super::super::ledger::{Arrived, Ledger, Taken, Tells};
    use super::*;

    const DEVICE: &str = "pi";

    fn arrived(run: Uuid, seq: u64) -> Arrived {
        Arrived {
            run,
            seq,
            tells: Tells::Nothing,
            live: true,
            json: format!("{{\"light\":{seq}}}"),
        }
    }

    #[test]
    fn a_store_knows_after_a_restart_what_it_was_told() {
        let folder = tempfile::tempdir().unwrap();
        let (run, other) = (Uuid::from_u128(7), Uuid::from_u128(8));
        {
            let store = Store::open(folder.path()).unwrap();
            let mut ledger = Ledger::new(store.devices().unwrap());
            for seq in (1..=200).filter(|seq| *seq != 130) {
                let taken = ledger.take(&store, DEVICE, arrived(run, seq)).unwrap();
                assert_eq!(taken, Taken::New);
            }
            ledger.take(&store, DEVICE, arrived(other, 3)).unwrap();
            store.write(ledger.changes()).unwrap();
            ledger.committed();
        }
        let store = Store::open(folder.path()).unwrap();
        let mut ledger = Ledger::new(store.devices().unwrap());
        let taken = ledger.take(&store, DEVICE, arrived(run, 64)).unwrap();
        assert_eq!(taken, Taken::Again);
        let taken = ledger.take(&store, DEVICE, arrived(run, 130)).unwrap();
        assert_eq!(taken, Taken::New);
        store.write(ledger.changes()).unwrap();
        ledger.committed();
        let (_, totals) = &store.devices().unwrap()[0];
        assert_eq!(totals.counts.received, 201);
        assert_eq!(totals.counts.twice, 1);
        assert_eq!(totals.counts.missing, 2);
        let runs = store.runs(DEVICE).unwrap();
        assert_eq!((runs.len(), runs[0].0, runs[0].1.received), (2, run, 200));
        assert_eq!(store.missing(DEVICE, run, &runs[0].1).unwrap(), []);
        assert_eq!(store.missing(DEVICE, other, &runs[1].1).unwrap(), [(1, 2)]);
    }

    #[test]
    fn a_store_in_use_says_so() {
        let folder = tempfile::tempdir().unwrap();
        let _store = Store::open(folder.path()).unwrap();
        let Err(OpenError::Other(why)) = Store::open(folder.path()) else {
            panic!("opened twice");
        };
        assert!(why.contains("running server"), "{why}");
    }

    #[test]
    fn ids_that_begin_alike_are_different_devices() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(folder.path()).unwrap();
        let mut ledger = Ledger::new([]);
        let run = Uuid::from_u128(1);
        for device in ["pi", "pi-1", "p"] {
            ledger.take(&store, device, arrived(run, 1)).unwrap();
        }
        store.write(ledger.changes()).unwrap();
        assert_eq!(store.runs("pi").unwrap().len(), 1);
        assert_eq!(store.received("p", run, 1, 100).unwrap(), 1);
        assert_eq!(store.devices().unwrap().len(), 3);
    }
}
