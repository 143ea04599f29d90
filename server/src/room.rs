//! Room on the disk of an embedded database: below a floor it is not opened again, because it would fail at
//! the next record.

use std::path::Path;

/// Free bytes that a transaction and its log need at the most.
const FLOOR: u64 = 16 * 1024 * 1024;

/// Whether there is room beside the file.
///
/// # Errors
/// There is not, in words.
pub(crate) fn above_floor(file: &Path) -> Result<(), String> {
    let folder = match file.parent() {
        Some(folder) if folder != Path::new("") => folder,
        _ => Path::new("."),
    };
    // What cannot be asked is not known to be full.
    let Ok(system) = rustix::fs::statvfs(folder) else {
        return Ok(());
    };
    let free = system.f_bavail.saturating_mul(system.f_frsize);
    match free >= FLOOR {
        true => Ok(()),
        false => Err(format!(
            "the disk of {} is full: {} kB are free, {} are needed",
            folder.display(),
            free / 1024,
            FLOOR / 1024
        )),
    }
}
