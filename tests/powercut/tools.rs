//! What the rig needs of the system: root, loop devices, FUSE, ext4 and qemu-storage-daemon. Missing
//! packages are installed, and said so. The other files of the rig run commands with `run`.

use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Once;
use std::thread;
use std::time::{Duration, Instant};

const TOOLS: [&str; 5] = [
    "qemu-storage-daemon",
    "mkfs.ext4",
    "losetup",
    "mount",
    "umount",
];
/// Debian had qemu-storage-daemon in qemu-system-common before it was in qemu-utils.
const INSTALL: &str = "O='-o DPkg::Lock::Timeout=300'; export DEBIAN_FRONTEND=noninteractive; \
    apt-get $O -q update; \
    apt-get $O install -y -q --no-install-recommends qemu-utils e2fsprogs fuse3 mount; \
    command -v qemu-storage-daemon || \
    apt-get $O install -y -q --no-install-recommends qemu-system-common";

/// Why the rig cannot work here, after what can be installed was installed.
pub fn obstacle() -> Option<String> {
    static INSTALLED: Once = Once::new();
    let root = run_for_text("id", &["-u"]).is_some_and(|id| id.trim() == "0");
    if !root {
        return Some("power can only be cut as root: it needs loop devices and mounts".into());
    }
    for device in ["/dev/fuse", "/dev/loop-control"] {
        if !Path::new(device).exists() {
            return Some(format!("there is no {device} here"));
        }
    }
    INSTALLED.call_once(|| {
        if !missing().is_empty() {
            eprintln!("{} missing: installing with apt-get", missing().join(", "));
            let _ = Command::new("sh").arg("-c").arg(INSTALL).status();
        }
    });
    let missing = missing();
    (!missing.is_empty()).then(|| format!("{} could not be installed", missing.join(", ")))
}

/// Whether the rig can work. If not it says why; as root in CI that is a failure.
pub fn ready() -> bool {
    let Some(why) = obstacle() else { return true };
    assert!(
        std::env::var_os("CI").is_none() || why.contains("as root"),
        "{why}"
    );
    eprintln!("SKIPPED: {why}");
    false
}

/// A number from the environment.
pub fn number(name: &str, default: u64) -> u64 {
    match std::env::var(name) {
        Ok(text) => text.parse().unwrap_or_else(|_| panic!("{name}={text}")),
        Err(_) => default,
    }
}

/// Runs a command; an error in words when it fails.
pub fn run(command: &str, arguments: &[&str]) -> Result<String, String> {
    let output = Command::new(command)
        .args(arguments)
        .stdin(Stdio::null())
        .output()
        .map_err(|error| format!("{command}: {error}"))?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    let error = String::from_utf8_lossy(&output.stderr);
    Err(format!("{command} {arguments:?}: {}", error.trim()))
}

/// Waits until `met`, for at most 20 s; tells whether it was.
pub fn within(mut met: impl FnMut() -> bool) -> bool {
    let end = Instant::now() + Duration::from_secs(20);
    while Instant::now() < end {
        if met() {
            return true;
        }
        thread::sleep(Duration::from_millis(2));
    }
    met()
}

fn missing() -> Vec<&'static str> {
    let absent = |tool: &&str| {
        !["/usr/bin", "/usr/sbin", "/bin", "/sbin", "/usr/local/bin"]
            .iter()
            .any(|folder| Path::new(folder).join(tool).exists())
    };
    TOOLS.into_iter().filter(absent).collect()
}

fn run_for_text(command: &str, arguments: &[&str]) -> Option<String> {
    run(command, arguments).ok()
}
