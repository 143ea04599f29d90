//! What outlives a restart but not a reboot: one small file in the runtime directory, which is in memory.
//!
//! Read once at start, and written on a thread of its own when the controller orders it. The file is replaced by
//! a rename, so that a crash leaves the one or the other; it is not synced, since a reboot ends its use anyway.
//! Whatever is wrong with it, the daemon starts as if there were none.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, SyncSender};
use std::thread;
use std::time::Duration;

use rustix::fs::OFlags;
use serde::{Deserialize, Serialize};
use tracing::warn;

use crate::config::RuntimeFolder;
use crate::logic::handover::Handover;

/// A larger file is not ours: 256 ids of 64 characters, escaped, are less.
const MAX_BYTES: u64 = 256 * 1024;
/// Reading takes microseconds; a folder that does not answer for this long must not keep the light waiting.
const MAX_WAIT: Duration = Duration::from_millis(500);
/// Writes that wait for a folder that hangs; further ones are dropped.
const MAX_WAITING: usize = 16;
/// What statfs(2) says of a file system in memory.
const TMPFS: i64 = 0x0102_1994;
const RAMFS: i64 = 0x8584_58f6;

/// The file and its thread.
#[derive(Debug)]
pub struct Runtime {
    state_folder: PathBuf,
    writes: SyncSender<Vec<u8>>,
    /// Closes when the thread has ended.
    over: Receiver<()>,
}

/// The file's content. Several daemons may share a runtime directory: each knows its own by the state folder.
#[derive(Debug, Serialize, Deserialize)]
struct Content<T> {
    state_folder: PathBuf,
    handover: T,
}

impl Runtime {
    /// What the run before has left in `folder`, and a thread for what this one leaves. Returns within 0.5 s.
    pub fn open(
        folder: &RuntimeFolder,
        state_folder: &Path,
    ) -> Result<(Self, Option<Handover>), String> {
        let shown = folder.path.display();
        let state_folder =
            std::path::absolute(state_folder).map_err(|error| format!("{shown}: {error}"))?;
        let name = format!(
            "handover-{:08x}.json",
            crc32fast::hash(state_folder.as_os_str().as_encoded_bytes())
        );
        let path = folder.path.join(name);
        let (writes, given) = mpsc::sync_channel(MAX_WAITING);
        let (opened_sender, opened) = mpsc::channel();
        let (told, over) = mpsc::channel();
        let (folder, own) = (folder.clone(), state_folder.clone());
        let work = move || {
            let result = prepare(&folder).map(|()| read(&path, &own));
            let usable = result.is_ok();
            if opened_sender.send(result).is_ok() && usable {
                write_all(&path, &given);
            }
            drop(told);
        };
        thread::Builder::new()
            .name("runtime".into())
            .spawn(work)
            .map_err(|error| error.to_string())?;
        let handover = match opened.recv_timeout(MAX_WAIT) {
            Ok(result) => result?,
            Err(_) => return Err("it does not answer".into()),
        };
        let runtime = Self {
            state_folder,
            writes,
            over,
        };
        let handover = handover.unwrap_or_else(|why| {
            warn!("what the run before left is not taken over: {why}");
            None
        });
        Ok((runtime, handover))
    }

    /// Keeps this in the place of what was kept before; returns at once.
    pub fn keep(&self, handover: &Handover) {
        let content = Content {
            state_folder: self.state_folder.clone(),
            handover,
        };
        if let Ok(text) = serde_json::to_vec(&content) {
            // A folder that hangs gets the next one.
            let _ = self.writes.try_send(text);
        }
    }

    /// Writes no more; whether all was written within `limit`.
    pub fn finish(self, limit: Duration) -> bool {
        drop(self.writes);
        self.over.recv_timeout(limit) == Err(RecvTimeoutError::Disconnected)
    }
}

fn prepare(folder: &RuntimeFolder) -> Result<(), String> {
    let path = folder.path.display();
    fs::create_dir_all(&folder.path).map_err(|error| format!("{path}: {error}"))?;
    let kind = rustix::fs::statfs(&folder.path).map_err(|error| format!("{path}: {error}"))?;
    #[allow(clippy::unnecessary_cast, reason = "the type differs between machines")]
    let in_memory = [TMPFS, RAMFS].contains(&(kind.f_type as i64));
    match (in_memory, folder.is_given) {
        (true, _) => Ok(()),
        (false, true) => {
            warn!(
                "RUNTIME_DIRECTORY={path} is on a disk, which each command wears; put it into memory (tmpfs)"
            );
            Ok(())
        }
        (false, false) => Err(format!("{path} is not in memory (tmpfs)")),
    }
}

/// The state that is kept, if any.
fn read(path: &Path, state_folder: &Path) -> Result<Option<Handover>, String> {
    let shown = path.display();
    let failed = |error: io::Error| format!("{shown}: {error}");
    let flags = OFlags::NOFOLLOW | OFlags::NONBLOCK;
    let file = OpenOptions::new()
        .read(true)
        .custom_flags(flags.bits() as i32)
        .open(path);
    let file = match file {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(failed(error)),
    };
    let metadata = file.metadata().map_err(failed)?;
    let user = rustix::process::geteuid().as_raw();
    if !metadata.is_file() || metadata.len() > MAX_BYTES || metadata.uid() != user {
        return Err(format!("{shown} is not what nightlight wrote"));
    }
    let mut text = Vec::new();
    file.take(MAX_BYTES)
        .read_to_end(&mut text)
        .map_err(failed)?;
    let content: Content<Handover> =
        serde_json::from_slice(&text).map_err(|error| format!("{shown} is damaged: {error}"))?;
    Ok((content.state_folder == state_folder).then_some(content.handover))
}

/// Writes what comes, and of several that wait the newest alone.
fn write_all(path: &Path, given: &Receiver<Vec<u8>>) {
    let mut warned = false;
    while let Ok(mut text) = given.recv() {
        while let Ok(newer) = given.try_recv() {
            text = newer;
        }
        if let Err(error) = write(path, &text)
            && !warned
        {
            warned = true;
            let path = path.display();
            warn!("{path}: {error}; a restart will forget the lease and the newest command ids");
        }
    }
}

fn write(path: &Path, text: &[u8]) -> io::Result<()> {
    let next = path.with_extension("next");
    let written = create(&next).and_then(|mut file| file.write_all(text));
    written.and_then(|()| fs::rename(&next, path))
}

/// A new file; whatever lay there (a link, a pipe, a rest of a crash) is neither followed nor written to.
fn create(path: &Path) -> io::Result<File> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    const EMPTY: &str = r#"{"boot_id":"00000000-0000-0000-0000-000000000007","written":{"secs":9,"nanos":0},
        "decision":{"led_on":true,"by":"fallback","why":"w","since":{"secs":1,"nanos":0},"changed_at":null,"command":null},
        "commands":{"ids":["a"],"fresh":1,"last":null}}"#;

    fn folder(path: &Path) -> RuntimeFolder {
        RuntimeFolder {
            path: path.to_owned(),
            is_given: true,
        }
    }

    #[test]
    fn what_is_kept_is_read_back_for_the_same_state_folder_alone() {
        let place = tempfile::tempdir().expect("a folder");
        let deep = folder(&place.path().join("a/b"));
        let handover: Handover = serde_json::from_str(EMPTY).expect("sound");
        let (runtime, found) = Runtime::open(&deep, Path::new("/state")).expect("open");
        assert_eq!(found, None);
        for _ in 0..100 {
            runtime.keep(&handover);
        }
        assert!(runtime.finish(Duration::from_secs(30)));
        let (_, found) = Runtime::open(&deep, Path::new("/state")).expect("open");
        assert_eq!(found, Some(handover));
        let (_, found) = Runtime::open(&deep, Path::new("/other")).expect("open");
        assert_eq!(found, None);
    }

    #[test]
    fn what_is_damaged_or_no_file_is_ignored_and_replaced() {
        let place = tempfile::tempdir().expect("a folder");
        let at = folder(place.path());
        let handover: Handover = serde_json::from_str(EMPTY).expect("sound");
        let keep = || {
            let (runtime, found) = Runtime::open(&at, Path::new("/state")).expect("open");
            runtime.keep(&handover);
            assert!(runtime.finish(Duration::from_secs(30)));
            found
        };
        keep();
        let path = fs::read_dir(place.path())
            .expect("readable")
            .find_map(|entry| Some(entry.ok()?.path()))
            .expect("a file");
        let whole = fs::read(&path).expect("readable");
        let rubbish = [
            &whole[..whole.len() / 2],
            b"",
            b"{}",
            b"\0\0\0\0",
            &vec![b' '; MAX_BYTES as usize + 1],
        ];
        for text in rubbish {
            fs::write(&path, text).expect("written");
            assert_eq!(keep(), None);
            assert_eq!(keep(), Some(handover.clone()));
        }
        fs::remove_file(&path).expect("removed");
        let mode = rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR;
        rustix::fs::mknodat(rustix::fs::CWD, &path, rustix::fs::FileType::Fifo, mode, 0)
            .expect("a pipe");
        assert_eq!(keep(), None);
        fs::remove_file(&path).expect("removed");
        fs::create_dir(&path).expect("a folder");
        assert_eq!(keep(), None);
        let unguarded = RuntimeFolder {
            path: "/proc/self".into(),
            is_given: false,
        };
        assert!(Runtime::open(&unguarded, Path::new("/state")).is_err());
    }
}
