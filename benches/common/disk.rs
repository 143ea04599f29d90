//! A disk that counts: a loop device with ext4 as a Pi's card has it (4 kB blocks, journal, `noatime`).
//!
//! Nothing is left behind, however the program ends: the file under the disk has no name while it is in
//! use, the mount is in a mount namespace of our own, and the kernel frees the device with the mount.

use std::fs::{self, File};
use std::io;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::Command;

use tempfile::TempDir;

/// From 512 MiB on mkfs takes 4 kB blocks by itself.
const BYTES: u64 = 1 << 30;
const IN_NAMESPACE: &str = "NIGHTLIGHT_BENCH_MOUNTS";

/// Makes sure that this process has mounts of its own, by starting the program again inside a mount
/// namespace; the first process never returns from this. The error says why there can be no disk.
pub fn own_mounts() -> Result<(), String> {
    if !rustix::process::geteuid().is_root() {
        return Err("mounting a disk needs root".to_owned());
    }
    if std::env::var_os(IN_NAMESPACE).is_some() {
        return Ok(());
    }
    let program = std::env::current_exe().map_err(|error| error.to_string())?;
    let error = Command::new("unshare")
        .arg("--mount")
        .arg(program)
        .args(std::env::args_os().skip(1))
        .env(IN_NAMESPACE, "1")
        .exec();
    Err(format!("unshare --mount does not start: {error}"))
}

/// A disk that is mounted, until it is dropped.
pub struct Disk {
    folder: TempDir,
    stat: PathBuf,
    root: File,
}

impl Disk {
    /// A fresh one. The error says which command failed and what it said.
    pub fn start() -> Result<Disk, String> {
        let folder = tempfile::tempdir().map_err(|error| error.to_string())?;
        let image = folder.path().join("image");
        let mounted = folder.path().join("mounted");
        let made = File::create(&image).and_then(|file| file.set_len(BYTES));
        made.and_then(|()| fs::create_dir(&mounted))
            .map_err(|error| format!("no image of {BYTES} bytes: {error}"))?;
        let (image_text, mounted_text) = (image.to_string_lossy(), mounted.to_string_lossy());
        // All is initialised at once, so that no kernel thread writes to it while we count.
        let options = "lazy_itable_init=0,lazy_journal_init=0,nodiscard";
        run(
            "mkfs.ext4",
            &["-q", "-F", "-b", "4096", "-E", options, &image_text],
        )?;
        run("mount", &["-o", "loop,noatime", &image_text, &mounted_text])?;
        // From here on `drop` unmounts.
        let root = File::open(&mounted).map_err(|error| error.to_string())?;
        let mut disk = Disk {
            folder,
            stat: PathBuf::new(),
            root,
        };
        disk.stat = disk.device().ok_or("the mount has no loop device")?;
        fs::remove_file(&image).map_err(|error| error.to_string())?;
        Ok(disk)
    }

    /// The folder where it is mounted.
    pub fn path(&self) -> PathBuf {
        self.folder.path().join("mounted")
    }

    /// Bytes that the device has been given to write so far, after everything is on it: data, metadata
    /// and journal.
    pub fn written(&self) -> u64 {
        rustix::fs::syncfs(&self.root).expect("the disk syncs");
        let stat = fs::read_to_string(&self.stat).expect("the device counts");
        // Documentation/block/stat.rst of Linux: the seventh number, in sectors of 512 bytes.
        let sectors = stat.split_whitespace().nth(6);
        512 * sectors
            .and_then(|sectors| sectors.parse::<u64>().ok())
            .expect("a number of sectors")
    }

    fn device(&self) -> Option<PathBuf> {
        let mounts = fs::read_to_string("/proc/self/mounts").ok()?;
        let mounted = self.path();
        let source = mounts.lines().find_map(|line| {
            let mut fields = line.split(' ');
            let (source, target) = (fields.next()?, fields.next()?);
            (target == mounted.to_str()?).then_some(source)
        })?;
        let name = source.strip_prefix("/dev/loop")?;
        Some(PathBuf::from(format!("/sys/block/loop{name}/stat")))
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        // Lazily: what a failing benchmark still has open goes with its process.
        let _ = run("umount", &["-l", &self.path().to_string_lossy()]);
    }
}

fn run(program: &str, arguments: &[&str]) -> Result<(), String> {
    let told = |error: io::Error| format!("{program} does not start: {error}");
    let output = Command::new(program)
        .args(arguments)
        .output()
        .map_err(told)?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    Err(format!("{program} {}: {said}", arguments.join(" ")))
}
