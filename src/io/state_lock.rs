//! One daemon for each state folder: an advisory lock (flock) on the file `lock` in it.
//!
//! `main.rs` takes it before the LED, the sensor, the socket and the broker are touched, and holds it
//! until the process ends. The kernel releases it with the process, however that ends, so a crash leaves
//! nothing behind; no child inherits it (close-on-exec). The file names the holder for the message that a
//! second daemon gives. The file is never removed: a lock on a removed file would exclude nobody.
//!
//! The light does not depend on it: where a lock cannot be had (read-only, full, no such folder, a file
//! system without flock, a disk that does not answer), the daemon says so and runs.

use std::fmt;
use std::fs::{self, File, OpenOptions};
use std::io::{self, ErrorKind, Read};
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use rustix::fs::{FlockOperation, OFlags, flock};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::config::DEFAULT_FILE;

/// The file's name in the state folder.
const FILE: &str = "lock";
/// A command that looks at the lock holds it for microseconds: a busy lock is tried again for this long.
const BUSY_FOR: Duration = Duration::from_millis(250);
const TRY_EVERY: Duration = Duration::from_millis(10);
/// A disk that does not answer for this long must not keep the light waiting.
const MAX_WAIT: Duration = Duration::from_secs(2);
/// The note in the file is shorter.
const MAX_NOTE: u64 = 1024;

/// The lock, held as long as this value lives.
#[derive(Debug)]
pub struct RunLock {
    _file: File,
}

/// Why the lock was not taken.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NotLocked {
    /// Another daemon runs with this folder.
    Held(Holder),
    /// Nobody can tell whether another daemon runs with this folder; why, in words.
    Unknown(String),
}

/// Who holds a state folder.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Holder {
    /// Its process id, if it is known.
    pub pid: Option<u32>,
    /// How long it has held the folder, if that is known.
    pub held_for: Option<Duration>,
}

impl fmt::Display for Holder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.pid {
            Some(pid) => write!(f, "process {pid}")?,
            None => write!(f, "which process is not known")?,
        }
        match self.held_for.map(|time| time.as_secs()) {
            Some(seconds @ 0..120) => write!(f, ", for {seconds} s"),
            Some(seconds @ 120..7_200) => write!(f, ", for {} min", seconds / 60),
            Some(seconds) => write!(f, ", for {} h", seconds / 3_600),
            None => Ok(()),
        }
    }
}

/// This start of the machine, and the boot clock.
#[derive(Debug, Clone, Copy)]
pub struct BootTime {
    /// Names the start of the machine.
    pub boot_id: Uuid,
    /// Time since then.
    pub now: Duration,
}

/// What the holder writes into the file.
#[derive(Debug, Serialize, Deserialize)]
struct Note {
    pid: u32,
    boot_id: Uuid,
    boot_ms: u64,
}

impl RunLock {
    /// Takes the lock of the state folder `folder`, which is made if it is missing. Returns within 2.5 s.
    ///
    /// # Errors
    /// [`NotLocked`]: only `Held` is a reason not to run.
    pub fn take(folder: &Path, time: BootTime) -> Result<Self, NotLocked> {
        let (sender, answer) = mpsc::channel();
        let own = folder.to_owned();
        let begun = thread::Builder::new().name("lock".into()).spawn(move || {
            // Nobody listens any more: a lock that came too late is still better held than released.
            if let Err(mpsc::SendError(Ok(late))) = sender.send(lock(&own, time)) {
                std::mem::forget::<Self>(late);
            }
        });
        if let Err(error) = begun {
            return Err(NotLocked::Unknown(format!("no thread for it: {error}")));
        }
        answer.recv_timeout(MAX_WAIT).unwrap_or_else(|_| {
            let seconds = MAX_WAIT.as_secs();
            let why = format!(
                "{} does not answer within {seconds} s",
                folder.join(FILE).display()
            );
            Err(NotLocked::Unknown(why))
        })
    }
}

/// Who runs a daemon with the state folder `folder`, if anybody does, as far as this user may know. Writes
/// nothing.
pub fn holder(folder: &Path, time: BootTime) -> Option<Holder> {
    let mut file = match open_file(&folder.join(FILE), OpenOptions::new().read(true)) {
        Ok(file) => file,
        Err(error) if error.kind() == ErrorKind::PermissionDenied => return others_daemon(folder),
        Err(_) => return None,
    };
    match flock(&file, FlockOperation::NonBlockingLockShared) {
        Err(Errno::WOULDBLOCK) => {
            let holder = read_holder(&mut file, time);
            (!is_dead(&holder)).then_some(holder)
        }
        // Released when the file is closed.
        _ => None,
    }
}

fn lock(folder: &Path, time: BootTime) -> Result<RunLock, NotLocked> {
    let path = folder.join(FILE);
    let unknown = |error: io::Error| NotLocked::Unknown(format!("{}: {error}", path.display()));
    let mut file = match open(folder, &path) {
        Ok(file) => file,
        Err(error) if error.kind() == ErrorKind::PermissionDenied => {
            return Err(match others_daemon(folder) {
                Some(holder) => NotLocked::Held(holder),
                None => unknown(error),
            });
        }
        Err(error) => return Err(unknown(error)),
    };
    let give_up_at = Instant::now() + BUSY_FOR;
    loop {
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => break,
            Err(Errno::WOULDBLOCK) if Instant::now() < give_up_at => thread::sleep(TRY_EVERY),
            Err(Errno::WOULDBLOCK) => {
                let holder = read_holder(&mut file, time);
                // Killed, but a thread of it hangs in the kernel (a dead card): it drives nothing.
                return Err(match is_dead(&holder) {
                    true => NotLocked::Unknown(
                        "a killed nightlight that the kernel cannot end still holds it".into(),
                    ),
                    false => NotLocked::Held(holder),
                });
            }
            Err(Errno::INTR) => {}
            Err(error) => return Err(unknown(error.into())),
        }
    }
    // For the message of a second daemon only: a full disk is no reason to run without the lock.
    let _ = write_note(&file, time);
    Ok(RunLock { _file: file })
}

/// The lock's file; where it can be neither made nor written it is read, and where there is none the folder
/// itself is locked.
fn open(folder: &Path, path: &Path) -> io::Result<File> {
    super::folder::create(folder)?;
    let writable = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .mode(0o600)
        .clone();
    match open_file(path, &writable) {
        Err(error) if error.kind() == ErrorKind::InvalidInput => Err(error),
        Err(first) => match open_file(path, OpenOptions::new().read(true)) {
            Err(error) if error.kind() == ErrorKind::NotFound => File::open(folder),
            Err(_) => Err(first),
            file => file,
        },
        file => file,
    }
}

/// A regular file and nothing else: no link is followed, no pipe or device waited for.
fn open_file(path: &Path, options: &OpenOptions) -> io::Result<File> {
    let flags = OFlags::NOFOLLOW | OFlags::NONBLOCK;
    let file = options
        .clone()
        .custom_flags(flags.bits() as i32)
        .open(path)?;
    match file.metadata()?.is_file() {
        true => Ok(file),
        false => Err(io::Error::new(
            ErrorKind::InvalidInput,
            "it is not a regular file; remove it",
        )),
    }
}

fn write_note(file: &File, time: BootTime) -> io::Result<()> {
    let note = Note {
        pid: std::process::id(),
        boot_id: time.boot_id,
        boot_ms: u64::try_from(time.now.as_millis()).unwrap_or_default(),
    };
    let mut text = serde_json::to_vec(&note)?;
    text.push(b'\n');
    file.set_len(0)?;
    file.write_all_at(&text, 0)
}

fn read_holder(file: &mut File, time: BootTime) -> Holder {
    let mut text = Vec::new();
    // A folder that is locked itself cannot be read: the holder is not known.
    let _ = file.take(MAX_NOTE).read_to_end(&mut text);
    match serde_json::from_slice::<Note>(&text) {
        Ok(note) => Holder {
            pid: Some(note.pid),
            held_for: (note.boot_id == time.boot_id).then(|| {
                let since = Duration::from_millis(note.boot_ms);
                time.now.saturating_sub(since)
            }),
        },
        Err(_) => Holder {
            pid: None,
            held_for: None,
        },
    }
}

/// Whether the holder has been killed and only its remains are there (state Z or X of proc_pid_stat(5)).
fn is_dead(holder: &Holder) -> bool {
    let Some(pid) = holder.pid else {
        return false;
    };
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let state = stat.rsplit(") ").next().unwrap_or_default();
    state.starts_with(['Z', 'X'])
}

/// A daemon with the same configuration file as this process, run by the owner of `folder`, which this user
/// may not enter: most likely the service.
fn others_daemon(folder: &Path) -> Option<Holder> {
    let owner = fs::metadata(folder).ok()?.uid();
    if owner == rustix::process::geteuid().as_raw() {
        return None;
    }
    let own = fs::read("/proc/self/cmdline").ok()?;
    let processes = fs::read_dir("/proc").ok()?;
    processes.filter_map(Result::ok).find_map(|process| {
        let pid: u32 = process.file_name().to_str()?.parse().ok()?;
        let path: PathBuf = process.path();
        let is_owners = fs::metadata(&path).is_ok_and(|process| process.uid() == owner);
        if !is_owners {
            return None;
        }
        let its = fs::read(path.join("cmdline")).ok()?;
        let is_holder = runs_daemon(&its) && config_file(&its) == config_file(&own);
        is_holder.then_some(Holder {
            pid: Some(pid),
            held_for: None,
        })
    })
}

/// Whether this is the command line of `nightlight run`, its words ended by zeros.
fn runs_daemon(command_line: &[u8]) -> bool {
    let mut words = command_line.split(|byte| *byte == 0);
    let program = words.next().unwrap_or_default();
    let name = program.rsplit(|byte| *byte == b'/').next();
    name == Some(b"nightlight") && words.next() == Some(b"run")
}

/// The configuration file that a command line of nightlight names, or the default one.
fn config_file(command_line: &[u8]) -> &[u8] {
    let mut words = command_line.split(|byte| *byte == 0);
    while let Some(word) = words.next() {
        if word == b"--config" || word == b"-c" {
            return words.next().unwrap_or_default();
        }
        if let Some(file) = word
            .strip_prefix(b"--config=")
            .or_else(|| word.strip_prefix(b"-c"))
        {
            return file;
        }
    }
    DEFAULT_FILE.as_bytes()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    fn time(seconds: u64) -> BootTime {
        BootTime {
            boot_id: Uuid::from_u128(7),
            now: Duration::from_secs(seconds),
        }
    }

    #[test]
    fn one_holds_a_folder_and_the_second_learns_who() {
        let folder = tempfile::tempdir().expect("a folder");
        let deep = folder.path().join("not/there/yet");
        assert_eq!(holder(&deep, time(1)), None);
        let first = RunLock::take(&deep, time(10)).expect("free");
        let held = Holder {
            pid: Some(std::process::id()),
            held_for: Some(Duration::from_secs(90)),
        };
        assert_eq!(
            RunLock::take(&deep, time(100)).err(),
            Some(NotLocked::Held(held))
        );
        assert_eq!(holder(&deep, time(100)), Some(held));
        drop(first);
        // A child that another test has just forked has the descriptor until it executes its program.
        let given_up = Instant::now() + Duration::from_secs(30);
        while holder(&deep, time(100)).is_some() {
            assert!(Instant::now() < given_up);
            thread::sleep(TRY_EVERY);
        }
        RunLock::take(&deep, time(100)).expect("free again");
    }

    #[test]
    fn a_lock_without_a_note_excludes_all_the_same() {
        let folder = tempfile::tempdir().expect("a folder");
        let first = RunLock::take(folder.path(), time(1)).expect("free");
        for note in ["", "{}", "\u{0}\u{0}"] {
            fs::write(folder.path().join(FILE), note).expect("written");
            let nobody = Holder {
                pid: None,
                held_for: None,
            };
            let second = RunLock::take(folder.path(), time(2)).err();
            assert_eq!(second, Some(NotLocked::Held(nobody)));
        }
        drop(first);
    }

    #[test]
    fn what_is_no_regular_file_is_neither_waited_for_nor_followed() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join(FILE);
        let is_unknown = || {
            let taken = RunLock::take(folder.path(), time(1));
            matches!(taken, Err(NotLocked::Unknown(_)))
        };
        rustix::fs::mknodat(
            rustix::fs::CWD,
            &path,
            rustix::fs::FileType::Fifo,
            rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR,
            0,
        )
        .expect("a pipe");
        assert!(is_unknown());
        fs::remove_file(&path).expect("removed");
        fs::create_dir(&path).expect("a folder");
        assert!(is_unknown());
        fs::remove_dir(&path).expect("removed");
        symlink("/dev/null", &path).expect("a link");
        assert!(is_unknown());
        let file = folder.path().join("file");
        fs::write(&file, "").expect("written");
        let inside = RunLock::take(&file.join("folder"), time(1));
        assert!(matches!(inside, Err(NotLocked::Unknown(_))));
    }

    #[test]
    fn the_daemon_is_known_by_its_command_line() {
        assert!(runs_daemon(b"/usr/bin/nightlight\0run\0--config\0a\0"));
        assert!(runs_daemon(b"nightlight\0run\0"));
        assert!(!runs_daemon(b"nightlight\0server\0run\0"));
        assert!(!runs_daemon(b"vim\0nightlight\0run\0"));
        assert!(!runs_daemon(b""));
        let default = config_file(b"nightlight\0run\0");
        assert_eq!(default, b"/etc/nightlight/nightlight.toml");
        for line in [
            &b"nightlight\0run\0--config\0a.toml\0"[..],
            b"nightlight\0led\0on\0-c\0a.toml\0",
            b"nightlight\0run\0--config=a.toml\0",
            b"nightlight\0run\0-ca.toml\0",
        ] {
            assert_eq!(config_file(line), b"a.toml");
        }
    }

    #[test]
    fn the_dead_are_known_by_the_kernels_word() {
        let of = |pid| Holder {
            pid,
            held_for: None,
        };
        assert!(!is_dead(&of(Some(std::process::id()))));
        assert!(!is_dead(&of(None)));
        let mut child = std::process::Command::new("true").spawn().expect("started");
        let ended = Instant::now() + Duration::from_secs(30);
        while !is_dead(&of(Some(child.id()))) {
            assert!(Instant::now() < ended);
            thread::sleep(TRY_EVERY);
        }
        child.wait().expect("ended");
    }
}
