//! Disks: one whose every write and flush is logged by QEMU's `blklogwrites` (a file, exported over
//! FUSE, under a loop device, with ext4 on it), and plain images to be mounted. Both end what they
//! started when they are dropped. The tests and `tally` use them.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use tempfile::TempDir;

use super::tools::{run, within};

/// Bytes of a disk. Small, so that thousands of images are quickly made.
pub const SIZE: u64 = 64 * 1024 * 1024;

/// A folder in memory, if the system has one: images are made and thrown away by the thousand.
pub fn folder() -> TempDir {
    let mut builder = tempfile::Builder::new();
    builder.prefix("power-cut-");
    let made = match Path::new("/dev/shm").is_dir() {
        true => builder.tempdir_in("/dev/shm"),
        false => builder.tempdir(),
    };
    made.expect("a folder")
}

/// Makes an image with an ext4 like that of Pi OS: 4 kB blocks, a journal, checksums. All is
/// initialised at once, so that no kernel thread writes to it later. Groups are small, so that a disk as
/// small as this has a second superblock, as any card has.
pub fn format(image: &Path) {
    let file = File::create(image).expect("an image");
    file.set_len(SIZE).expect("its size");
    let image = image.to_string_lossy();
    let options = "lazy_itable_init=0,lazy_journal_init=0,nodiscard";
    run(
        "mkfs.ext4",
        &[
            "-q", "-F", "-b", "4096", "-g", "4096", "-E", options, &image,
        ],
    )
    .expect("ext4");
}

/// A disk that is being logged. Its file system is mounted at `mounted`.
pub struct Logged {
    folder: TempDir,
    daemon: Child,
    device: String,
}

impl Logged {
    /// On a copy of `base`, mounted.
    pub fn start(base: &Path) -> Logged {
        let folder = folder();
        let path = |name: &str| folder.path().join(name);
        fs::copy(base, path("disk")).expect("a copy");
        File::create(path("log")).expect("a log");
        File::create(path("export")).expect("a mount point");
        fs::create_dir(path("mounted")).expect("a mount point");
        let node = |name: &str| {
            format!(
                "driver=file,node-name={name},filename={}",
                path(name).display()
            )
        };
        let export = format!(
            "type=fuse,id=export,node-name=logged,writable=on,mountpoint={}",
            path("export").display()
        );
        let daemon = Command::new("qemu-storage-daemon")
            .args(["--blockdev", &node("disk"), "--blockdev", &node("log")])
            .args([
                "--blockdev",
                "driver=blklogwrites,node-name=logged,file=disk,log=log",
            ])
            .args(["--export", &export])
            .stdin(Stdio::null())
            .spawn()
            .expect("qemu-storage-daemon starts");
        let mut logged = Logged {
            folder,
            daemon,
            device: String::new(),
        };
        let export = logged.path("export");
        let exported = within(|| export.metadata().is_ok_and(|meta| meta.len() == SIZE));
        assert!(exported, "the disk is not exported");
        let device = run("losetup", &["-f", "--show", &export.to_string_lossy()]);
        logged.device = device.expect("a loop device").trim().to_owned();
        let mounted = logged.mounted();
        if mount(&logged.device, &mounted, "noatime").is_err() {
            mend(&logged.device);
            mount(&logged.device, &mounted, "noatime").expect("mounted");
        }
        logged
    }

    /// Where its file system is mounted.
    pub fn mounted(&self) -> PathBuf {
        self.path("mounted")
    }

    /// The log of its writes.
    pub fn log(&self) -> PathBuf {
        self.path("log")
    }

    /// Ends it properly, so that the log is complete; the log stays as long as what is given back.
    pub fn finish(mut self) -> Ended {
        unmount(&self.mounted()).expect("unmounted");
        run("losetup", &["-d", &self.device]).expect("detached");
        self.device.clear();
        self.end_daemon();
        Ended { disk: self }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn end_daemon(&mut self) {
        // It writes the rest of its log and lets go of the export when it is asked to end.
        let asked = run("kill", &[&self.daemon.id().to_string()]);
        let ended = asked.is_ok() && within(|| matches!(self.daemon.try_wait(), Ok(Some(_))));
        if !ended {
            let _ = self.daemon.kill();
            let _ = self.daemon.wait();
        }
    }
}

impl Drop for Logged {
    fn drop(&mut self) {
        let mounted = self.mounted();
        if is_mounted(&mounted) {
            let _ = run("umount", &["-l", &mounted.to_string_lossy()]);
        }
        if !self.device.is_empty() {
            let _ = run("losetup", &["-d", &self.device]);
        }
        if matches!(self.daemon.try_wait(), Ok(None)) {
            self.end_daemon();
        }
        let export = self.path("export");
        if is_mounted(&export) {
            let _ = run("umount", &["-l", &export.to_string_lossy()]);
        }
    }
}

/// A logged disk after its end.
pub struct Ended {
    disk: Logged,
}

impl Ended {
    /// The log of its writes.
    pub fn log(&self) -> PathBuf {
        self.disk.log()
    }
}

/// A mounted image.
pub struct Mounted {
    at: PathBuf,
    /// It had to be mended before. A superblock torn in its middle has a wrong checksum, and no kernel
    /// mounts that: a Pi runs e2fsck at its start, which then takes the second one.
    pub mended: bool,
}

impl Mounted {
    /// Mounts it, which replays its journal.
    pub fn new(image: &Path, at: &Path) -> Result<Mounted, String> {
        fs::create_dir_all(at).map_err(|error| error.to_string())?;
        let name = image.to_string_lossy();
        let mut mended = false;
        if mount(&name, at, "loop,noatime").is_err() {
            mended = true;
            mend(&name);
            mount(&name, at, "loop,noatime")?;
        }
        Ok(Mounted {
            at: at.to_owned(),
            mended,
        })
    }

    pub fn path(&self) -> &Path {
        &self.at
    }

    /// Unmounts it.
    pub fn end(self) -> Result<(), String> {
        let at = self.at.clone();
        unmount(&at)
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        if is_mounted(&self.at) {
            let _ = run("umount", &["-l", &self.at.to_string_lossy()]);
        }
    }
}

/// Its exit code tells of errors that are corrected, too: the mount says whether all is well.
fn mend(device: &str) {
    let _ = run("e2fsck", &["-fy", "-b", "4096", "-B", "4096", device]);
}

fn mount(device: &str, at: &Path, options: &str) -> Result<String, String> {
    let at = at.to_string_lossy();
    run("mount", &["-t", "ext4", "-o", options, device, &at])
}

/// The threads of a store that was just closed may hold a file for a moment.
fn unmount(at: &Path) -> Result<(), String> {
    let mut last = Ok(());
    within(|| {
        last = run("umount", &[&at.to_string_lossy()]).map(drop);
        last.is_ok()
    });
    last
}

fn is_mounted(at: &Path) -> bool {
    let at = at.to_string_lossy();
    fs::read_to_string("/proc/self/mounts")
        .unwrap_or_default()
        .lines()
        .any(|line| line.split(' ').nth(1) == Some(at.as_ref()))
}
