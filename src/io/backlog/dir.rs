//! The folder around the store: names, syncs, free space, the ballast, what a failure means, and moving
//! a dead store aside. Nothing here looks into a store; `opening` and `thread` call it.
//!
//! ```text
//! <path>/store                                the sled store, while there is something in it
//! <path>/store.new                            being built; complete only once it was renamed
//! <path>/store.old                            drained; only to be removed
//! <path>/store.damaged-2026-11-20T17-03-11Z   dead, for a person to look at; newest two kept
//! <path>/store.before                         copy of sled's log while it is being opened (`tree`)
//! <path>/checkpoint                           what is known beside the records (`checkpoint`)
//! <path>/ballast                              1 MB to give back when the disk is full
//! ```

use std::fs::{self, File};
use std::io::{self, ErrorKind, Write};
use std::path::{Path, PathBuf};

use jiff::Timestamp;
use rustix::io::Errno;

use crate::io::folder;

const MB: u64 = 1024 * 1024;
/// Below this no commit is begun, whatever the file system: three segments of sled.
const MIN_FLOOR: u64 = 3 * MB / 2;
/// Free space above which more is no safer.
const MAX_FLOOR: u64 = 16 * MB;
/// With less than this, sled cannot even open.
const NO_ROOM: u64 = MB / 2;
const BALLAST: u64 = MB;
const MAX_QUARANTINED: usize = 2;
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

/// Free space on the file system, and how much of it is left untouched.
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
pub(super) struct StoreDir {
    path: PathBuf,
}

impl StoreDir {
    pub(super) fn new(path: &Path) -> StoreDir {
        StoreDir {
            path: path.to_owned(),
        }
    }

    /// The sled store.
    pub(super) fn store(&self) -> PathBuf {
        self.path.join("store")
    }

    /// The store that is being built.
    pub(super) fn part(&self) -> PathBuf {
        self.path.join("store.part")
    }

    fn new_store(&self) -> PathBuf {
        self.path.join("store.new")
    }

    /// What is known beside the records.
    pub(super) fn checkpoint(&self) -> PathBuf {
        self.path.join("checkpoint")
    }

    /// The folder itself.
    pub(super) fn path(&self) -> &Path {
        &self.path
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
        folder::create(&self.path).map_err(|error| self.fault(&error))?;
        let finish = || -> io::Result<()> {
            remove_any(&self.old_store())?;
            remove_any(&self.part())?;
            if self.store().symlink_metadata().is_ok() {
                // The store that it was made from is still there, and is salvaged again.
                remove_any(&self.new_store())?;
            } else if self.new_store().symlink_metadata().is_ok() {
                fs::rename(self.new_store(), self.store())?;
                folder::sync(&self.path)?;
            }
            Ok(())
        };
        finish().map_err(|error| self.fault(&error))
    }

    /// Removes a drained store, which must be closed. It gets another name first: a power cut must not
    /// leave half of it under the name of a store.
    ///
    /// # Errors
    /// When it cannot be renamed.
    pub(super) fn remove_store(&self) -> Result<(), Fault> {
        let remove = || -> io::Result<()> {
            remove_any(&self.old_store())?;
            match fs::rename(self.store(), self.old_store()) {
                Err(error) if error.kind() == ErrorKind::NotFound => {}
                other => other?,
            }
            folder::sync(&self.path)?;
            remove_any(&self.old_store())
        };
        remove().map_err(|error| self.fault(&error))
    }

    /// Puts `store.part`, which must be closed and synced, in the place of `store`. What was in the way, if
    /// anything, is kept beside, dated.
    ///
    /// # Errors
    /// When a rename fails; whichever was in place before is in place again at the next `prepare`.
    pub(super) fn quarantine(&self) -> Result<Option<PathBuf>, Fault> {
        let aside = self.free_name();
        let swap = || -> io::Result<Option<PathBuf>> {
            fs::rename(self.part(), self.new_store())?;
            folder::sync(&self.path)?;
            let there = self.store().symlink_metadata().is_ok();
            if there {
                fs::rename(self.store(), &aside)?;
            }
            fs::rename(self.new_store(), self.store())?;
            folder::sync(&self.path)?;
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
                floor: (fs.f_blocks.saturating_mul(fs.f_frsize) / 20).clamp(MIN_FLOOR, MAX_FLOOR),
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

    /// Another process has the store open.
    pub(super) fn held(&self) -> Fault {
        Fault::Blocked(format!(
            "the backlog in {} is held by a running nightlight; stop that one, or give this one another [backlog] path",
            self.path.display()
        ))
    }

    /// What so little space means.
    pub(super) fn full(&self, space: Space) -> Fault {
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
        for old in others.iter().skip(MAX_QUARANTINED - 1) {
            if let Err(error) = remove_any(old) {
                tracing::warn!("the old damaged store {} stays: {error}", old.display());
            }
        }
    }
}

const EMFILE: i32 = Errno::MFILE.raw_os_error();
const ENFILE: i32 = Errno::NFILE.raw_os_error();

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
    folder::sync(path)
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
