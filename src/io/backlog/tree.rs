//! Everything that is particular to sled 0.34, and why. The other files know a map from bytes to bytes
//! whose batches are durable after `sync`.
//!
//! - `flush` is only `sync_file_range` on Linux and does not survive a power cut: `fdatasync` on a second
//!   descriptor of the log follows each flush, and the folder is synced when the store was made.
//! - Sled relies on the order of its writes, and a card keeps that order at a sync alone. Of several batches,
//!   or of a large one, a power cut can leave the later part without the earlier, and then nothing opens:
//!   a batch has at most [`MAX_UNSYNCED`] bytes, and each is synced before the next.
//! - A value over a quarter of a segment goes into a file that is unlinked before the log is durable:
//!   values have at most 7 KB (`format::MAX_VALUE`), which is what they may have in a page of 512 kB / 64.
//! - Any damage makes it panic, at open or later; and an error sticks to the handle, reads included. So all
//!   of it is called inside [`guard`], and after a failure the tree is dropped and opened again. What was
//!   changed in memory is changed before the batch is applied; a failure forgets both.
//! - Opened does not mean complete. Damage at the end of the log looks like the end of the log, and sled
//!   then overwrites what was logged later with zeros: the log is copied before it is opened, and the
//!   store says by itself how far it had come (`Run::generation`, `Run::synced`).
//! - A power cut or a full disk during an open leaves `snap.*.generating`: see [`finish_snapshots`].
//! - `flush_every_ms = None`: sled's own flusher would wake the machine 12 times a second.
//! - The thread pool is a static of seven threads that are made at the first use and never end, each of
//!   which wakes once a second. Nothing but sled's `cfg(miri)` avoids them, so a daemon opens no store
//!   until it has something to put in; after an outage they stay until the process ends.
//! - An iterator that goes backward (`Iterator::last` too) brings a constant of 1 MB into the program, the
//!   highest key: [`Tree::last_at_or_before`] looks forward from further and further back. Iterators read whole pages, which stay in the cache: large stores are not
//!   counted. The cache evicts by shard and not by size, and 2 MB is the least that helps.
//! - A commit that makes the log longer costs the file system's journal 20 kB beside its own 4 kB or so. Where
//!   sled has made it longer, [`FILL`] zeros are written behind, for the next commits to overwrite. Sled fills
//!   the end of a log with zeros too, when it recovers.
//! - Space never shrinks: a drained store is removed and the next one begins small.

use std::any::Any;
use std::fs::{self, File, Metadata, OpenOptions};
use std::io::{self, Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::MetadataExt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use rustix::fs::FlockOperation;
use rustix::io::Errno;
use sled::{Batch, IVec};

use crate::io::folder;
use crate::logic::Key;

use super::dir::{Fault, StoreDir, remove_any, sync_tree};
use super::format::{self, ENTRY};

/// Bytes of a batch, at the most.
pub(super) const MAX_UNSYNCED: usize = 16 * 1024;
const CACHE: u64 = 2 * 1024 * 1024;
/// A log of more bytes is opened without a copy, which would take a slow card too long and as much space
/// again. Of so great a log the scan of what sled has left was enough (docs/reliability.md).
const MAX_COPIED: u64 = 64 * 1024 * 1024;
/// The threads of a store that was just closed may hold its lock for a moment.
const LOCK_TRIES: u32 = 50;
const LOCK_PAUSE: Duration = Duration::from_millis(20);
/// Zeros that are written ahead at a time, in bytes: more would cost a short outage too much.
const FILL: usize = 64 * 1024;
/// How far back an entry is looked for first, in seqs.
const LOOK_BACK: u64 = 256;

/// An open sled store.
#[derive(Debug)]
pub(super) struct Tree {
    db: sled::Db,
    dir: StoreDir,
    /// A second descriptor of sled's log, to sync it and to write zeros at its end.
    log: File,
    /// Bytes of the log with the zeros that were written ahead: while it has no more, sled writes into these.
    filled_to: u64,
    /// The folder it was opened in, as device and inode.
    folder: (u64, u64),
}

/// Runs something that may panic inside sled.
///
/// # Errors
/// Those of `work`; a panic means damage, or a full disk.
pub(super) fn guard<T>(
    dir: &StoreDir,
    work: impl FnOnce() -> Result<T, Fault>,
) -> Result<T, Fault> {
    catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(|what| Err(panic_fault(dir, &*what)))
}

/// Drops something with a tree in it that has failed, panics and all.
pub(super) fn drop_failed<T>(failed: T) {
    let _ = catch_unwind(AssertUnwindSafe(|| drop(failed)));
}

impl Tree {
    /// Opens the store in `folder` of `dir`, which is made when it is missing. A lock that is held is
    /// waited for, a second at the most.
    ///
    /// # Errors
    /// `Damaged`, `Full` or `Blocked`, as far as sled can tell.
    pub(super) fn open(dir: &StoreDir, folder: &Path) -> Result<Tree, Fault> {
        patiently(|| guard(dir, || Tree::open_once(dir, folder)))
    }

    fn open_once(dir: &StoreDir, folder: &Path) -> Result<Tree, Fault> {
        let fresh = !folder.join("db").exists();
        let db = sled::Config::new()
            .path(folder)
            .cache_capacity(CACHE)
            .flush_every_ms(None)
            .open()
            .map_err(|error| sled_fault(dir, error))?;
        let opened = || -> io::Result<(File, Metadata)> {
            let log = OpenOptions::new()
                .read(true)
                .append(true)
                .open(folder.join("db"))?;
            if fresh {
                sync_tree(folder)?;
                folder::sync(dir.path())?;
            }
            Ok((log, folder.metadata()?))
        };
        let (log, meta) = opened().map_err(|error| dir.fault(&error))?;
        Ok(Tree {
            db,
            dir: dir.clone(),
            log,
            filled_to: 0,
            folder: id(&meta),
        })
    }

    /// The value of a key.
    ///
    /// # Errors
    /// As sled and the disk give them.
    pub(super) fn get(&self, key: &[u8]) -> Result<Option<IVec>, Fault> {
        self.db.get(key).map_err(|error| self.fault(error))
    }

    /// All keys with this first letter, ascending.
    pub(super) fn all(&self, letter: u8) -> impl Iterator<Item = Result<(IVec, IVec), Fault>> {
        let items = self.db.scan_prefix([letter]);
        items.map(|item| item.map_err(|error| self.fault(error)))
    }

    /// The first entry whose key is `from` or greater.
    ///
    /// # Errors
    /// As sled and the disk give them.
    pub(super) fn first_at_or_after(&self, from: Key) -> Result<Option<(Key, IVec)>, Fault> {
        let mut range = self.db.range(format::entry_key(from)..vec![ENTRY + 1]);
        match range.next() {
            Some(item) => self.entry(item).map(Some),
            None => Ok(None),
        }
    }

    /// The last entry of the same run whose key is `at` or smaller.
    ///
    /// # Errors
    /// As sled and the disk give them.
    pub(super) fn last_at_or_before(&self, at: Key) -> Result<Option<(Key, IVec)>, Fault> {
        let mut back = LOOK_BACK;
        loop {
            let seq = at.seq.saturating_sub(back);
            let start = format::entry_key(Key { seq, ..at });
            let range = self.db.range(start..=format::entry_key(at));
            if let Some(item) = range.fold(None, |_, item| Some(item)) {
                return self.entry(item).map(Some);
            }
            if seq == 0 {
                return Ok(None);
            }
            back = back.saturating_mul(4);
        }
    }

    /// Applies a batch. It survives a power cut when this returns.
    ///
    /// # Errors
    /// As sled and the disk give them; then the tree must be dropped.
    pub(super) fn commit(&mut self, batch: Batch) -> Result<(), Fault> {
        let applied = self.db.apply_batch(batch).and_then(|()| self.db.flush());
        match applied.map_err(|error| self.fault(error))? {
            0 => return Ok(()),
            // A commit of many records is worth its metadata.
            1..=MAX_UNSYNCED => self.fill(),
            _ => {}
        }
        self.log.sync_data().map_err(|error| self.dir.fault(&error))
    }

    /// Writes zeros behind a log that sled has made longer. They only save writes: a failure is no fault. The
    /// descriptor appends, so that nothing of sled's is ever written over.
    fn fill(&mut self) {
        let length = self.log.metadata().map_or(0, |meta| meta.len());
        if length > self.filled_to {
            let _ = self.log.write_all(&vec![0; FILL]);
            self.filled_to = length + FILL as u64;
        }
    }

    /// Whether the log on the path is the log that is open. A person or a script may delete, rename or
    /// replace the folder of a running daemon: sled writes on into a file that no restart will find.
    pub(super) fn is_in_place(&self) -> bool {
        let folder = self.dir.store();
        let at_path = |path: &Path| path.metadata().map(|meta| id(&meta)).ok();
        let log = self.log.metadata().map(|meta| id(&meta)).ok();
        at_path(&folder) == Some(self.folder) && at_path(&folder.join("db")) == log
    }

    /// The open log, to be read when it is no longer in its place.
    pub(super) fn log(&self) -> Option<File> {
        self.log.try_clone().ok()
    }

    fn entry(&self, item: sled::Result<(IVec, IVec)>) -> Result<(Key, IVec), Fault> {
        let (key, value) = item.map_err(|error| self.fault(error))?;
        let wrong = || Fault::Damaged("a key of the store cannot be read".into());
        Ok((format::parse_entry_key(&key).ok_or_else(wrong)?, value))
    }

    fn fault(&self, error: sled::Error) -> Fault {
        sled_fault(&self.dir, error)
    }
}

/// Where the contents of an open file can be read, also of one that has no name any more.
pub(super) fn path_of(file: &File) -> PathBuf {
    PathBuf::from(format!("/proc/self/fd/{}", file.as_raw_fd()))
}

/// # Errors
/// `Blocked` when another process has the store open.
pub(super) fn not_held(dir: &StoreDir) -> Result<(), Fault> {
    patiently(|| {
        let Ok(log) = File::open(dir.store().join("db")) else {
            return Ok(());
        };
        match rustix::fs::flock(&log, FlockOperation::NonBlockingLockExclusive) {
            Err(Errno::WOULDBLOCK) => Err(dir.held()),
            // Let go with the descriptor.
            _ => Ok(()),
        }
    })
}

/// Copies sled's log before sled opens it. The copy is not synced: it is gone again before much of it
/// reaches the card.
pub(super) fn copy_before(dir: &StoreDir) {
    let log = dir.store().join("db");
    let Ok(length) = log.metadata().map(|meta| meta.len()) else {
        return;
    };
    let space = dir.space();
    let fits = space.free.saturating_sub(length) > space.floor;
    // One that is there already was made by an open that did not end: it is the better one, if a power
    // cut has not left a part of it.
    if length > MAX_COPIED || !fits || is_whole_copy(&dir.before()).unwrap_or(false) {
        return;
    }
    if let Err(error) = copy_whole(&log, &dir.before()) {
        tracing::warn!("backlog: no copy of its log while it is opened: {error}");
        drop_before(dir);
    }
}

/// Removes the copy.
pub(super) fn drop_before(dir: &StoreDir) {
    let _ = remove_any(&dir.before());
}

/// Puts a whole `snap.*.generating` in its place and removes one that is not whole. Sled zeroes parts of
/// its log that only the older snapshot still needs before the name of the new one is on the disk. Of one
/// that is not whole sled has made no use yet: without it all is well, and with it no later open succeeds.
///
/// # Errors
/// When what was changed cannot be synced.
pub(super) fn finish_snapshots(store: &Path) -> io::Result<()> {
    let Ok(entries) = fs::read_dir(store) else {
        return Ok(());
    };
    let mut finished = false;
    for entry in entries.filter_map(Result::ok) {
        let name = entry.file_name();
        let name = name.to_string_lossy();
        let Some(whole) = name.strip_suffix(".generating") else {
            continue;
        };
        if !name.starts_with("snap.") {
            continue;
        }
        if is_snapshot(&fs::read(entry.path())?) {
            fs::rename(entry.path(), store.join(whole))?;
        } else {
            fs::remove_file(entry.path())?;
        }
        finished = true;
    }
    match finished {
        true => folder::sync(store),
        false => Ok(()),
    }
}

/// Whether this is a whole snapshot of sled: its bytes, their number, their checksum.
fn is_snapshot(bytes: &[u8]) -> bool {
    let Some((rest, crc)) = bytes.split_last_chunk::<4>() else {
        return false;
    };
    let Some((content, length)) = rest.split_last_chunk::<8>() else {
        return false;
    };
    !content.is_empty()
        && u64::from_le_bytes(*length) == content.len() as u64
        && u32::from_le_bytes(*crc) == crc32fast::hash(content)
}

/// Copies a file, and appends its checksum.
fn copy_whole(from: &Path, to: &Path) -> io::Result<()> {
    let mut copy = File::create(to)?;
    let crc = checksum(File::open(from)?, |block| copy.write_all(block))?;
    copy.write_all(&crc.to_le_bytes())
}

/// Whether this is a copy with its checksum.
fn is_whole_copy(path: &Path) -> io::Result<bool> {
    let length = path.metadata()?.len();
    let Some(length) = length.checked_sub(4) else {
        return Ok(false);
    };
    let mut copy = File::open(path)?;
    let crc = checksum(Read::by_ref(&mut copy).take(length), |_| Ok(()))?;
    let mut told = [0; 4];
    copy.read_exact(&mut told)?;
    Ok(length > 0 && told == crc.to_le_bytes())
}

fn checksum(mut from: impl Read, mut each: impl FnMut(&[u8]) -> io::Result<()>) -> io::Result<u32> {
    let mut block = vec![0; 65_536];
    let mut hasher = crc32fast::Hasher::new();
    loop {
        let read = from.read(&mut block)?;
        if read == 0 {
            return Ok(hasher.finalize());
        }
        hasher.update(&block[..read]);
        each(&block[..read])?;
    }
}

fn id(meta: &Metadata) -> (u64, u64) {
    (meta.dev(), meta.ino())
}

fn sled_fault(dir: &StoreDir, error: sled::Error) -> Fault {
    match error {
        sled::Error::Io(error) if error.to_string().contains("could not acquire lock") => {
            dir.held()
        }
        sled::Error::Io(error) => dir.fault(&error),
        // Sled says so of a half written snapshot, too.
        _ if dir.has_room().is_err() => dir.full(dir.space()),
        other => Fault::Damaged(format!("{}: {other}", dir.path().display())),
    }
}

fn panic_fault(dir: &StoreDir, what: &(dyn Any + Send)) -> Fault {
    if dir.has_room().is_err() {
        return dir.full(dir.space());
    }
    let words = what
        .downcast_ref::<String>()
        .map(String::as_str)
        .or_else(|| what.downcast_ref::<&str>().copied())
        .unwrap_or("unknown");
    Fault::Damaged(format!("{}: sled: {words}", dir.path().display()))
}

/// Tries again while the lock is held.
fn patiently<T>(load: impl Fn() -> Result<T, Fault>) -> Result<T, Fault> {
    let mut tries = 0;
    loop {
        match load() {
            Err(Fault::Blocked(why)) if why.contains("held by") && tries < LOCK_TRIES => {
                tries += 1;
                thread::sleep(LOCK_PAUSE);
            }
            other => return other,
        }
    }
}
