//! A small file that outlives power cuts: replaced as a whole, and read like anything from outside.
//!
//! Ground under `rules` and `announced`. Reading opens only a small ordinary file and does not block on a pipe.

use std::fs::{self, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use rustix::fs::OFlags;

/// What the file holds; none where there is no file.
///
/// # Errors
/// As the system gives them; that it is no ordinary file, or larger than `max` bytes.
pub fn read(path: &Path, max: u64) -> io::Result<Option<Vec<u8>>> {
    // A pipe would block already here.
    let opened = OpenOptions::new()
        .read(true)
        .custom_flags(OFlags::NONBLOCK.bits() as i32)
        .open(path);
    let file = match opened {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        opened => opened?,
    };
    let data = file.metadata()?;
    if !data.is_file() {
        return Err(io::Error::other("it is no ordinary file"));
    }
    if data.len() > max {
        return Err(io::Error::other(format!("it is larger than {max} bytes")));
    }
    let mut bytes = Vec::new();
    file.take(max).read_to_end(&mut bytes)?;
    Ok(Some(bytes))
}

/// Puts this in its place, synced; a power cut leaves the one or the other.
///
/// # Errors
/// As the system gives them.
pub fn replace(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let folder = path.parent().unwrap_or(Path::new("."));
    super::folder::create(folder)?;
    let next = path.with_extension("next");
    // What a power cut left there, or anything else: it is never opened, since that might block.
    remove_if_there(&next)?;
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .open(&next)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    fs::rename(&next, path)?;
    super::folder::sync(folder)
}

/// Removes it, and the name does not come back.
///
/// # Errors
/// As the system gives them.
pub fn remove(path: &Path) -> io::Result<()> {
    match remove_if_there(path)? {
        true => super::folder::sync(path.parent().unwrap_or(Path::new("."))),
        false => Ok(()),
    }
}

fn remove_if_there(path: &Path) -> io::Result<bool> {
    match fs::remove_file(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        removed => removed.map(|()| true),
    }
}
