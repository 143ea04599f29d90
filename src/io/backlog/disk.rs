//! The folder around the sled store: places, syncs, free space, the ballast, what a failure means,
//! and moving a dead store aside. Nothing here looks into a store; `opening` and `store` call it.
//!
//! ```text
//! <path>/store                                the sled store
//! <path>/store.new                            being built; complete only once it was renamed
//! <path>/store.old                            replaced; only to be removed
//! <path>/store.damaged-2026-11-20T17-03-11Z   dead, for a person to look at; newest two kept
//! <path>/store.before                         copy of sled's log while it is being opened
//! <path>/account                              what the store must at least know (`account`)
//! <path>/ballast                              1 MB to give back when the disk is full
//! ```

use std::fs::{self, File};
use std::io::{self, ErrorKind, Read, Write};
use std::path::{Path, PathBuf};

use jiff::Timestamp;
use rustix::fs::FlockOperation;
use rustix::io::Errno;

const MB: u64 = 1024 * 1024;
/// Below this no commit is begun, whatever the file system: three segments of sled.
const LEAST_FLOOR: u64 = 3 * MB / 2;
/// Free space above which more is no safer.
const MOST_FLOOR: u64 = 16 * MB;
/// With less than this, sled cannot even open.
const NO_ROOM: u64 = MB / 2;
const BALLAST: u64 = MB;
const QUARANTINED: usize = 2;
/// A log of more bytes is opened without a copy, which would take a slow card too long and as much room
/// again. Of so great a log the scan of what sled has left was enough (docs/reliability.md).
const MOST_COPIED: u64 = 64 * MB;

/// Why the store cannot be used now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Fault {
    /// The disk is full: wait for space. Nothing is damaged.
    Full(String),
    /// Not now: a lock, rights, too many open files. A person may have to act. Nothing is damaged.
    Blocked(String),
    /// What lies there is not a whole store.
    Damaged(String),
}

/// What can be done without sled having to write: free bytes, and how many must stay free.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Space {
    /// Bytes that this process may still write.
    pub(super) free: u64,
    /// Bytes below which nothing new is stored.
    pub(super) floor: u64,
}

impl Fault {
    /// What it says to a person.
    pub(super) fn why(&self) -> &str {
        match self {
            Fault::Full(why) | Fault::Blocked(why) | Fault::Damaged(why) => why,
        }
    }
}

/// The folder that holds the store and what lies beside it.
#[derive(Debug, Clone)]
pub(super) struct Place {
    path: PathBuf,
}

impl Place {
    pub(super) fn new(path: &Path) -> Place {
        Place {
            path: path.to_owned(),
        }
    }

    /// The sled store.
    pub(super) fn store(&self) -> PathBuf {
        self.path.join("store")
    }

    /// The store that is being built.
    pub(super) fn new_store(&self) -> PathBuf {
        self.path.join("store.new")
    }

    /// The account beside the store.
    pub(super) fn account(&self) -> PathBuf {
        self.path.join("account")
    }

    /// The copy of sled's log.
    pub(super) fn before(&self) -> PathBuf {
        self.path.join("store.before")
    }

    fn old_store(&self) -> PathBuf {
        self.path.join("store.old")
    }

    fn ballast(&self) -> PathBuf {
        self.path.join("ballast")
    }

    /// Makes the folder (each new parent synced) and ends what a power cut interrupted.
    ///
    /// # Errors
    /// When the folder cannot be made or cleared.
    pub(super) fn prepare(&self) -> Result<(), Fault> {
        create_synced(&self.path).map_err(|error| self.fault(&error))?;
        let finish = || -> io::Result<()> {
            remove_any(&self.old_store())?;
            if self.store().symlink_metadata().is_ok() {
                // Not renamed, so perhaps not complete; the store it was made from is still there.
                remove_any(&self.new_store())?;
            } else if self.new_store().symlink_metadata().is_ok() {
                fs::rename(self.new_store(), self.store())?;
                sync_folder(&self.path)?;
            }
            finish_snapshots(&self.store())
        };
        finish().map_err(|error| self.fault(&error))
    }

    /// # Errors
    /// `Blocked` when another process has the store open.
    pub(super) fn not_held(&self) -> Result<(), Fault> {
        let Ok(log) = File::open(self.store().join("db")) else {
            return Ok(());
        };
        match rustix::fs::flock(&log, FlockOperation::NonBlockingLockExclusive) {
            Err(Errno::WOULDBLOCK) => Err(self.held()),
            // Let go with the descriptor.
            _ => Ok(()),
        }
    }

    /// Copies sled's log before sled opens it. When it finds damage, sled overwrites all that was
    /// logged later with zeros and opens with the state of before: without the copy nothing would be
    /// left to salvage. The copy is not synced: it is gone again before much of it reaches the card.
    pub(super) fn copy_before(&self) {
        let log = self.store().join("db");
        let Ok(length) = log.metadata().map(|meta| meta.len()) else {
            return;
        };
        let space = self.space();
        let fits = space.free.saturating_sub(length) > space.floor;
        // One that is there already was made by an open that did not end: it is the better one, if a
        // power cut has not left a part of it.
        if length > MOST_COPIED || !fits || is_whole_copy(&self.before()).unwrap_or(false) {
            return;
        }
        if let Err(error) = copy_whole(&log, &self.before()) {
            tracing::warn!("backlog: no copy of its log while it is opened: {error}");
            self.drop_before();
        }
    }

    /// Removes the copy.
    pub(super) fn drop_before(&self) {
        let _ = remove_any(&self.before());
    }

    /// Puts `store.new`, which must be closed and synced, in the place of `store`, which is removed.
    ///
    /// # Errors
    /// When a rename fails; whichever was in place before is in place again at the next `prepare`.
    pub(super) fn replace(&self) -> Result<(), Fault> {
        let swap = || -> io::Result<()> {
            remove_any(&self.old_store())?;
            fs::rename(self.store(), self.old_store())?;
            fs::rename(self.new_store(), self.store())?;
            sync_folder(&self.path)?;
            remove_any(&self.old_store())
        };
        swap().map_err(|error| self.fault(&error))
    }

    /// As `replace`, but what was in the way, if anything, is kept beside, dated.
    ///
    /// # Errors
    /// When a rename fails.
    pub(super) fn quarantine(&self) -> Result<Option<PathBuf>, Fault> {
        let aside = self.free_name();
        let swap = || -> io::Result<Option<PathBuf>> {
            let there = self.store().symlink_metadata().is_ok();
            if there {
                fs::rename(self.store(), &aside)?;
            }
            fs::rename(self.new_store(), self.store())?;
            sync_folder(&self.path)?;
            Ok(there.then(|| aside.clone()))
        };
        let moved = swap().map_err(|error| self.fault(&error))?;
        if aside.is_dir() && self.before().is_file() {
            // What a person looks into is what was there, not what sled made of it.
            let _ = fs::rename(self.before(), aside.join("db"));
        }
        self.drop_old_quarantines(&aside);
        Ok(moved)
    }

    /// Free space now; plenty when the system does not say.
    pub(super) fn space(&self) -> Space {
        match rustix::fs::statvfs(&self.path) {
            Ok(fs) => Space {
                free: fs.f_bavail.saturating_mul(fs.f_frsize),
                floor: (fs.f_blocks.saturating_mul(fs.f_frsize) / 20)
                    .clamp(LEAST_FLOOR, MOST_FLOOR),
            },
            Err(_) => Space {
                free: u64::MAX,
                floor: 0,
            },
        }
    }

    /// # Errors
    /// `Full` when so little space is left that nothing new must be stored.
    pub(super) fn above_floor(&self) -> Result<(), Fault> {
        let space = self.space();
        if space.free < space.floor {
            return Err(self.full(space));
        }
        Ok(())
    }

    /// # Errors
    /// `Full` when so little space is left that sled must not be touched.
    pub(super) fn has_room(&self) -> Result<(), Fault> {
        let space = self.space();
        if space.free < NO_ROOM {
            return Err(self.full(space));
        }
        Ok(())
    }

    /// Lays the ballast down when it is missing and there is space to spare.
    pub(super) fn lay_ballast(&self) {
        let there = self.ballast().metadata().is_ok_and(|m| m.len() >= BALLAST);
        let space = self.space();
        if there || space.free < space.floor + 2 * BALLAST {
            return;
        }
        let lay = || -> io::Result<()> {
            let mut file = File::create(self.ballast())?;
            // Not zeros: a file system may keep those without any space.
            let block: Vec<u8> = (0..65_536_u32).map(|n| ((n * 167) >> 3) as u8).collect();
            for _ in 0..BALLAST / 65_536 {
                file.write_all(&block)?;
            }
            file.sync_all()
        };
        if lay().is_err() {
            self.release_ballast();
        }
    }

    /// Gives the ballast's space back, so that a store on a full disk opens again.
    pub(super) fn release_ballast(&self) {
        let _ = fs::remove_file(self.ballast());
    }

    /// What an I/O error means for the store.
    pub(super) fn fault(&self, error: &io::Error) -> Fault {
        let path = self.path.display();
        if error.to_string().contains("could not acquire lock") {
            return self.held();
        }
        match error.kind() {
            ErrorKind::StorageFull | ErrorKind::QuotaExceeded => self.full(self.space()),
            ErrorKind::PermissionDenied => Fault::Blocked(format!(
                "no permission for the backlog in {path} ({error}); make the folder and all in it belong to the user that runs nightlight (chown -R), or change [backlog] path"
            )),
            ErrorKind::ReadOnlyFilesystem => Fault::Blocked(format!(
                "the backlog in {path} is on a read-only file system; mount it read-write (after a fault of the card: check it first), or change [backlog] path"
            )),
            ErrorKind::OutOfMemory | ErrorKind::Interrupted | ErrorKind::WouldBlock => {
                Fault::Blocked(format!("the backlog in {path} cannot be used now: {error}"))
            }
            _ if matches!(error.raw_os_error(), Some(EMFILE | ENFILE)) => {
                Fault::Blocked(format!("too many open files for the backlog in {path}"))
            }
            _ if self.has_room().is_err() => self.full(self.space()),
            _ => Fault::Damaged(format!("{path}: {error}")),
        }
    }

    /// What an error of sled means for the store.
    pub(super) fn sled_fault(&self, error: sled::Error) -> Fault {
        match error {
            sled::Error::Io(error) => self.fault(&error),
            // Sled says so of a half written snapshot, too.
            _ if self.has_room().is_err() => self.full(self.space()),
            other => Fault::Damaged(format!("{}: {other}", self.path.display())),
        }
    }

    /// What a panic inside sled means for the store.
    pub(super) fn panic_fault(&self, what: &(dyn std::any::Any + Send)) -> Fault {
        if self.has_room().is_err() {
            return self.full(self.space());
        }
        let words = what
            .downcast_ref::<String>()
            .map(String::as_str)
            .or_else(|| what.downcast_ref::<&str>().copied())
            .unwrap_or("unknown");
        Fault::Damaged(format!("{}: sled: {words}", self.path.display()))
    }

    fn held(&self) -> Fault {
        Fault::Blocked(format!(
            "the backlog in {} is held by a running nightlight; stop that one, or give this one another [backlog] path",
            self.path.display()
        ))
    }

    fn full(&self, space: Space) -> Fault {
        Fault::Full(format!(
            "disk nearly full: {} kB free where {} kB must stay free for the backlog in {}; delete something or lower [backlog] max_bytes",
            space.free / 1024,
            space.floor / 1024,
            self.path.display()
        ))
    }

    fn free_name(&self) -> PathBuf {
        let date = Timestamp::now().strftime("%Y-%m-%dT%H-%M-%SZ").to_string();
        let mut name = self.path.join(format!("store.damaged-{date}"));
        let mut again = 2;
        while name.symlink_metadata().is_ok() {
            name = self.path.join(format!("store.damaged-{date}-{again}"));
            again += 1;
        }
        name
    }

    /// Keeps `made` and the newest of the others: a clock set back must not delete the newest.
    fn drop_old_quarantines(&self, made: &Path) {
        let Ok(entries) = fs::read_dir(&self.path) else {
            return;
        };
        let mut others: Vec<PathBuf> = entries
            .filter_map(|entry| Some(entry.ok()?.path()))
            .filter(|path| path != made)
            .filter(|path| {
                path.file_name()
                    .is_some_and(|name| name.to_string_lossy().starts_with("store.damaged-"))
            })
            .collect();
        others.sort();
        others.reverse();
        for old in others.iter().skip(QUARANTINED - 1) {
            if let Err(error) = remove_any(old) {
                tracing::warn!("the old damaged store {} stays: {error}", old.display());
            }
        }
    }
}

const EMFILE: i32 = Errno::MFILE.raw_os_error();
const ENFILE: i32 = Errno::NFILE.raw_os_error();

/// Makes the names in a folder survive a power cut.
///
/// # Errors
/// As the system gives them.
pub(super) fn sync_folder(path: &Path) -> io::Result<()> {
    File::open(path)?.sync_all()
}

/// Makes a folder and all in it, one level deep and below, survive a power cut.
///
/// # Errors
/// As the system gives them.
pub(super) fn sync_tree(path: &Path) -> io::Result<()> {
    for entry in fs::read_dir(path)? {
        let entry = entry?;
        let kind = entry.file_type()?;
        if kind.is_dir() {
            sync_tree(&entry.path())?;
        } else if kind.is_file() {
            File::open(entry.path())?.sync_all()?;
        }
    }
    sync_folder(path)
}

/// Bytes of the files in a folder and below.
pub(super) fn tree_bytes(path: &Path) -> u64 {
    let Ok(entries) = fs::read_dir(path) else {
        return path.metadata().map_or(0, |m| m.len());
    };
    entries
        .filter_map(Result::ok)
        .map(|entry| match entry.file_type() {
            Ok(kind) if kind.is_dir() => tree_bytes(&entry.path()),
            _ => entry.metadata().map_or(0, |m| m.len()),
        })
        .sum()
}

/// Removes a file, a link or a folder with all in it; fine when there is none.
///
/// # Errors
/// As the system gives them.
pub(super) fn remove_any(path: &Path) -> io::Result<()> {
    match path.symlink_metadata() {
        Ok(meta) if meta.is_dir() => fs::remove_dir_all(path),
        Ok(_) => fs::remove_file(path),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error),
    }
}

/// A power cut or a full disk during sled's open leaves `snap.*.generating`. A whole one is put in its
/// place: sled zeroes parts of its log that only the older snapshot still needs before the name of the
/// new one is on the disk. Of one that is not whole sled has made no use yet: without it all is well,
/// and with it no later open succeeds.
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
        true => sync_folder(store),
        false => Ok(()),
    }
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

pub(super) fn create_synced(path: &Path) -> io::Result<()> {
    if path.is_dir() {
        return Ok(());
    }
    let parent = path.parent().filter(|p| !p.as_os_str().is_empty());
    if let Some(parent) = parent {
        create_synced(parent)?;
    }
    match fs::create_dir(path) {
        Err(error) if error.kind() != ErrorKind::AlreadyExists || !path.is_dir() => {
            return Err(error);
        }
        _ => {}
    }
    sync_folder(parent.unwrap_or(Path::new(".")))
}
