//! A PostgreSQL of the tests' own, in a folder of its own, as an ordinary user; ended with the test.
#![allow(dead_code, reason = "each test file uses a part of it")]
#![allow(
    clippy::expect_used,
    clippy::panic,
    reason = "a test fails by panicking"
)]

use std::fs;
use std::io::Write;
use std::net::TcpListener;
use std::os::unix::fs::{PermissionsExt, chown};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, Weak};
use std::thread;
use std::time::{Duration, Instant};

use tempfile::TempDir;

/// PostgreSQL does not run as root.
pub const NOBODY: u32 = 65_534;
const PATIENCE: Duration = Duration::from_secs(120);

/// One cluster for all tests that run at the same time; the last one ends it.
pub fn shared() -> Option<Arc<Cluster>> {
    static SHARED: Mutex<Weak<Cluster>> = Mutex::new(Weak::new());
    let mut shared = SHARED
        .lock()
        .unwrap_or_else(|poisoned| poisoned.into_inner());
    if let Some(cluster) = shared.upgrade() {
        return Some(cluster);
    }
    let cluster = Arc::new(Cluster::start()?);
    *shared = Arc::downgrade(&cluster);
    Some(cluster)
}

/// The cluster; its data outlive a stop.
pub struct Cluster {
    folder: TempDir,
    programs: PathBuf,
    pub port: u16,
    child: Option<Child>,
    is_mounted: bool,
}

impl Cluster {
    /// None, and loudly so, where PostgreSQL is not installed.
    pub fn start() -> Option<Self> {
        Self::make(None)
    }

    /// On a file system of its own, of so many megabytes. None too where there is no right to mount one.
    pub fn start_on_small_disk(megabytes: u32) -> Option<Self> {
        Self::make(Some(megabytes))
    }

    /// Uses up the small disk; false when there is room left.
    pub fn fill_disk(&self) -> bool {
        let mut ballast = fs::File::create(self.folder.path().join("ballast")).expect("a file");
        (0..1_024).any(|_| ballast.write_all(&[1; 1 << 20]).is_err())
    }

    /// There is room again; the database is started if it gave up.
    pub fn free_disk(&mut self) {
        fs::remove_file(self.folder.path().join("ballast")).expect("removed");
        let gave_up = |child: &mut Child| child.try_wait().expect("a status").is_some();
        if self.child.as_mut().is_none_or(gave_up) {
            self.child = None;
            self.run();
        }
    }

    fn make(megabytes: Option<u32>) -> Option<Self> {
        let Some(programs) = programs() else {
            eprintln!("LEFT OUT: no PostgreSQL here (apt-get install postgresql)");
            return None;
        };
        let folder = tempfile::tempdir().expect("a folder");
        let socket = TcpListener::bind("127.0.0.1:0").expect("a port");
        let port = socket.local_addr().expect("an address").port();
        drop(socket);
        if let Some(megabytes) = megabytes {
            let mounted = Command::new("mount")
                .args(["-t", "tmpfs", "-o", &format!("size={megabytes}m"), "tmpfs"])
                .arg(folder.path())
                .status();
            if !mounted.is_ok_and(|status| status.success()) {
                eprintln!("LEFT OUT: no right to mount a file system");
                return None;
            }
        }
        if is_root() {
            chown(folder.path(), Some(NOBODY), Some(NOBODY)).expect("given away");
        }
        let mut cluster = Self {
            folder,
            programs,
            port,
            child: None,
            is_mounted: megabytes.is_some(),
        };
        let made = cluster
            .command("initdb")
            .args([
                "--auth=trust",
                "--username=nightlight",
                "--encoding=UTF8",
                "--no-sync",
            ])
            .arg("-D")
            .arg(cluster.data())
            .stdout(Stdio::null())
            .status();
        assert!(made.expect("initdb runs").success());
        cluster.run();
        Some(cluster)
    }

    pub fn run(&mut self) {
        let log = fs::OpenOptions::new()
            .create(true)
            .append(true)
            .open(self.folder.path().join("log"))
            .expect("a log");
        let child = self
            .command("postgres")
            .arg("-D")
            .arg(self.data())
            .arg("-k")
            .arg(self.folder.path())
            .args(["-h", "127.0.0.1", "-p", &self.port.to_string()])
            .stderr(log)
            .spawn()
            .expect("postgres starts");
        self.child = Some(child);
        let until = Instant::now() + PATIENCE;
        while self.sql("postgres", "select 1").as_deref() != Some("1") {
            assert!(Instant::now() < until, "{}", self.log());
            thread::sleep(Duration::from_millis(50));
        }
    }

    /// An empty database: its name.
    pub fn database(&self) -> String {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let name = format!("story_{}", NUMBER.fetch_add(1, Ordering::Relaxed));
        let made = self.sql("postgres", &format!("create database {name}"));
        assert!(made.is_some(), "{}", self.log());
        name
    }

    pub fn url(&self, name: &str) -> String {
        format!("postgres://nightlight@127.0.0.1:{}/{name}", self.port)
    }

    /// What psql prints, unaligned; none when it fails.
    pub fn sql(&self, database: &str, sql: &str) -> Option<String> {
        let output = self
            .command("psql")
            .args([
                "-h",
                "127.0.0.1",
                "-p",
                &self.port.to_string(),
                "-U",
                "nightlight",
            ])
            .args([
                "-X",
                "-q",
                "-A",
                "-t",
                "-v",
                "ON_ERROR_STOP=1",
                "-d",
                database,
                "-c",
                sql,
            ])
            .output()
            .expect("psql runs");
        let text = String::from_utf8_lossy(&output.stdout).trim().to_owned();
        output.status.success().then_some(text)
    }

    /// At once, as `pg_ctl -m immediate`: what is not committed is gone.
    pub fn stop(&mut self) {
        if let Some(mut child) = self.child.take() {
            signal(&child, "QUIT");
            child.wait().expect("ended");
        }
    }

    pub fn freeze(&self) {
        // Its sessions are processes of their own: all of its group.
        self.group("STOP");
    }

    pub fn thaw(&self) {
        self.group("CONT");
    }

    fn group(&self, name: &str) {
        let child = self.child.as_ref().expect("it runs");
        let pids = Command::new("ps")
            .args([
                "-o",
                "pid=",
                "--pid",
                &child.id().to_string(),
                "--ppid",
                &child.id().to_string(),
            ])
            .output()
            .expect("ps runs");
        let pids = String::from_utf8_lossy(&pids.stdout).into_owned();
        // A session may have ended since: that one needs none.
        let _ = Command::new("kill")
            .arg(format!("-{name}"))
            .args(pids.split_whitespace())
            .stderr(Stdio::null())
            .status();
    }

    pub fn log(&self) -> String {
        fs::read_to_string(self.folder.path().join("log")).unwrap_or_default()
    }

    pub fn data(&self) -> PathBuf {
        self.folder.path().join("data")
    }

    fn command(&self, name: &str) -> Command {
        let mut command = Command::new(self.programs.join(name));
        command
            .current_dir(self.folder.path())
            .env("LC_ALL", "C.UTF-8")
            .stdin(Stdio::null());
        if is_root() {
            command.uid(NOBODY).gid(NOBODY);
        }
        command
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        if self.child.is_some() {
            self.thaw();
        }
        self.stop();
        if self.is_mounted {
            let folder = self.folder.path();
            // The folder's own removal tells when this did not work.
            let _ = Command::new("umount").arg("-l").arg(folder).status();
        }
    }
}

fn signal(child: &Child, name: &str) {
    let status = Command::new("kill")
        .arg(format!("-{name}"))
        .arg(child.id().to_string())
        .status();
    assert!(status.expect("kill runs").success());
}

pub fn is_root() -> bool {
    fs::metadata("/proc/self").is_ok_and(|data| {
        use std::os::unix::fs::MetadataExt;
        data.uid() == 0
    })
}

/// The folder of the newest installed version.
fn programs() -> Option<PathBuf> {
    let mut found: Vec<(u32, PathBuf)> = fs::read_dir("/usr/lib/postgresql")
        .ok()?
        .flatten()
        .filter_map(|entry| {
            let version = entry.file_name().to_string_lossy().parse().ok()?;
            let programs = entry.path().join("bin");
            is_program(&programs.join("postgres")).then_some((version, programs))
        })
        .collect();
    found.sort();
    found.pop().map(|(_, programs)| programs)
}

fn is_program(path: &Path) -> bool {
    fs::metadata(path).is_ok_and(|data| data.permissions().mode() & 0o111 != 0)
}
