//! Getting at sled: the folder, the lock, what a power cut leaves behind, and words for what can go
//! wrong. Looks into no store; `store` and `keeper` call it.

use std::fs::{self, File};
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::thread;
use std::time::Duration;

use super::ledger::Fault;

const CACHE: u64 = 16 * 1024 * 1024;
/// The threads of a store that was just closed may hold its lock for a moment.
const LOCK_TRIES: u32 = 50;
const LOCK_PAUSE: Duration = Duration::from_millis(20);

/// Why there is no store.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum OpenError {
    /// No right to it.
    Permission(String),
    /// Anything else.
    Other(String),
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

pub(super) fn open_db(path: &Path, place: &Path) -> Result<sled::Db, OpenError> {
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
                thread::sleep(LOCK_PAUSE);
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

pub(super) fn in_words(path: &Path, error: &io::Error) -> OpenError {
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
pub(super) fn remove_half_snapshots(store: &Path) {
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
pub(super) fn create_synced(path: &Path) -> io::Result<()> {
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

pub(super) fn words(error: sled::Error) -> Fault {
    error.to_string()
}
