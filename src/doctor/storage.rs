//! What has to outlive a power cut: the disk that the backlog is on, and the backlog itself.

use std::fs;
use std::io::ErrorKind;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use super::Finding;
use crate::cli::Exit;
use crate::config::Config;
use crate::io::backlog::inspect;
use crate::io::rules::KeptRules;
use crate::logic::{View, words};
use crate::manual;

/// The disk: which kind, whether it may be written, how much room there is.
pub(super) fn disk(folder: &Path) -> Vec<Finding> {
    // The daemon makes the folder; until then what counts is where it will be.
    let there = folder
        .ancestors()
        .find(|part| part.exists())
        .unwrap_or(Path::new("/"));
    let there = fs::canonicalize(there).unwrap_or_else(|_| there.to_owned());
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let (free, floor) = inspect::room(&there);
    let seen = |kind: &str| {
        let (free, floor) = (free / 1_000_000, floor / 1_000_000);
        format!(
            "{} is on {kind}; {free} MB free, of which {floor} MB are left to the system",
            folder.display()
        )
    };
    let finding = match mount(&mounts, &there) {
        Some(mount) if mount.read_only => Finding::fail(
            "disk",
            Exit::Software,
            seen(&format!("{}, read-only", mount.kind())),
            "records would be kept in memory only: mount it writable, or set `backlog.path`",
        ),
        Some(mount) if !mount.lasts() => Finding::warn(
            "disk",
            seen(&mount.kind()),
            "a power cut loses the backlog: set `backlog.path` to a folder on a card or a disk",
        ),
        _ if free < floor => Finding::fail(
            "disk",
            Exit::Software,
            seen("a full disk"),
            "records are kept in memory only: make room",
        ),
        Some(mount) => Finding::ok("disk", seen(&mount.kind())),
        None => Finding::ok("disk", seen("a disk")),
    };
    vec![finding]
}

/// The rules for the LED that are in force, and where they are from.
pub(super) fn rules(config: &Config) -> Vec<Finding> {
    let kept = KeptRules::in_folder(&config.backlog.path);
    let in_force = config.rules_in_force(kept.load(), kept.path());
    let seen: Vec<String> = in_force.lines().map(str::to_owned).collect();
    let mut findings: Vec<Finding> = seen.iter().map(|line| Finding::ok("rules", line)).collect();
    if let Some(problem) = &in_force.problem {
        findings.push(Finding::warn(
            "rules",
            "what a command kept is not followed",
            problem,
        ));
    }
    findings
}

/// The backlog: in the hands of a daemon, at rest, or not there yet.
pub(super) fn backlog(config: &Config, view: Option<&View>) -> Vec<Finding> {
    vec![match view {
        Some(view) if view.store_ok => Finding::ok(
            "backlog",
            format!(
                "a running nightlight has it; {} in it",
                words::counted(view.backlog, "record")
            ),
        ),
        Some(view) => Finding::fail(
            "backlog",
            Exit::Software,
            format!(
                "a running nightlight cannot use its store; {} in memory only",
                words::counted(view.backlog, "record")
            ),
            "`journalctl -u nightlight` says why",
        ),
        None => match manual::holder(config) {
            Some(holder) => Finding::warn(
                "backlog",
                format!("a running nightlight has it ({holder}), and does not answer this user"),
                "`sudo nightlight doctor` sees more; if that says the same, `sudo systemctl restart nightlight`",
            ),
            None => at_rest(&config.backlog.path),
        },
    }]
}

fn at_rest(folder: &Path) -> Finding {
    let user = rustix::process::geteuid().as_raw();
    match fs::metadata(folder.join("store")) {
        Err(error) if error.kind() == ErrorKind::NotFound => {
            Finding::ok("backlog", "none yet; the daemon makes it")
        }
        Err(error) if error.kind() == ErrorKind::PermissionDenied => Finding::warn(
            "backlog",
            format!("{} is not for this user", folder.display()),
            "`sudo nightlight doctor` sees more",
        ),
        Err(error) => Finding::fail(
            "backlog",
            Exit::Software,
            format!("{}: {error}", folder.display()),
            "check `backlog.path`",
        ),
        // Opening it writes small files, which would be another user's: the daemon could not use them.
        Ok(store) if store.uid() != user => Finding::ok(
            "backlog",
            format!(
                "in {}, and no nightlight runs; not opened, since it belongs to user {}",
                folder.display(),
                store.uid()
            ),
        ),
        Ok(_) => match inspect::stats(folder) {
            Ok(stats) => Finding::ok(
                "backlog",
                format!(
                    "at rest: {}, and {} lost ones to be reported",
                    words::counted(stats.records, "record"),
                    stats.lost
                ),
            ),
            Err(why) => Finding::fail(
                "backlog",
                Exit::Software,
                why,
                "the next start of nightlight salvages what can be read; `nightlight backlog verify` says how much",
            ),
        },
    }
}

/// A line of /proc/self/mountinfo (proc(5)).
#[derive(Debug, PartialEq)]
struct Mount {
    at: PathBuf,
    file_system: String,
    device: String,
    read_only: bool,
}

impl Mount {
    fn parse(line: &str) -> Option<Self> {
        let (before, after) = line.split_once(" - ")?;
        let before: Vec<_> = before.split(' ').collect();
        let after: Vec<_> = after.split(' ').collect();
        let read_only = |options: &str| options.split(',').any(|option| option == "ro");
        Some(Self {
            at: PathBuf::from(before.get(4)?.replace("\\040", " ")),
            file_system: (*after.first()?).to_owned(),
            device: (*after.get(1)?).to_owned(),
            read_only: read_only(before.get(5)?) || read_only(after.get(2).unwrap_or(&"")),
        })
    }

    /// Whether what is written there is there after a power cut.
    fn lasts(&self) -> bool {
        !matches!(
            self.file_system.as_str(),
            "tmpfs" | "ramfs" | "overlay" | "overlayfs"
        )
    }

    fn kind(&self) -> String {
        let kind = match self.device.as_str() {
            device if device.starts_with("/dev/mmcblk") => "an SD card",
            device if device.starts_with("/dev/nvme") => "an NVMe disk",
            device if device.starts_with("/dev/sd") => "a USB or SATA disk",
            _ => match self.file_system.as_str() {
                "tmpfs" | "ramfs" => "memory",
                "overlay" | "overlayfs" => "an overlay, which may be memory",
                _ => "a disk",
            },
        };
        format!("{kind} ({})", self.file_system)
    }
}

/// The mount that `path` is on: the deepest, and of several at one place the last.
fn mount(mounts: &str, path: &Path) -> Option<Mount> {
    mounts
        .lines()
        .filter_map(Mount::parse)
        .filter(|mount| path.starts_with(&mount.at))
        .max_by_key(|mount| mount.at.components().count())
}

#[cfg(test)]
mod tests {
    use super::*;

    const MOUNTS: &str = "\
22 1 179:2 / / rw,noatime shared:1 - ext4 /dev/mmcblk0p2 rw
23 22 0:5 / /var/lib/night\\040light rw shared:9 - tmpfs tmpfs rw,size=100k
24 22 8:1 / /mnt/disk ro,relatime shared:3 master:4 - vfat /dev/sda1 rw
nonsense
25 22 0:6 / /mnt/disk/in rw - ext4 /dev/nvme0n1p1 rw";

    fn kind(path: &str) -> (String, bool, bool) {
        let mount = mount(MOUNTS, Path::new(path)).unwrap();
        (mount.kind(), mount.lasts(), mount.read_only)
    }

    #[test]
    fn the_deepest_mount_says_what_a_folder_is_on() {
        assert_eq!(kind("/var/lib"), ("an SD card (ext4)".into(), true, false));
        assert_eq!(
            kind("/var/lib/night light/store"),
            ("memory (tmpfs)".into(), false, false)
        );
        assert_eq!(
            kind("/mnt/disk"),
            ("a USB or SATA disk (vfat)".into(), true, true)
        );
        assert_eq!(
            kind("/mnt/disk/in/a"),
            ("an NVMe disk (ext4)".into(), true, false)
        );
    }

    #[test]
    fn no_line_of_the_kernel_panics() {
        for end in 0..MOUNTS.len() {
            if let Some(text) = MOUNTS.get(..end) {
                let _ = mount(text, Path::new("/"));
            }
        }
    }
}
