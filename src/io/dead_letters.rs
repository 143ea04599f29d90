//! Records that the broker refuses, one line of JSON each, in a file beside the backlog.
//!
//! For a person to read: nothing reads it back. It has a bound; when that is reached the file before it
//! makes room. The daemon writes it when the controller orders it.

use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

/// The file's name in the backlog's folder.
const FILE: &str = "dead-letter.jsonl";
/// A file this large is put behind, in the place of the one that was there.
const LARGE: u64 = 1024 * 1024;

/// Where refused records are kept.
#[derive(Debug, Clone)]
pub(crate) struct DeadLetters {
    path: PathBuf,
}

impl DeadLetters {
    /// In `folder`, which may not be there yet.
    pub(crate) fn in_folder(folder: &Path) -> Self {
        Self {
            path: folder.join(FILE),
        }
    }

    /// Adds a line, synced.
    ///
    /// # Errors
    /// The file cannot be written.
    pub(crate) fn add(&self, line: &str) -> io::Result<()> {
        let folder = self.path.parent().unwrap_or(Path::new("."));
        super::folder::create(folder)?;
        if fs::metadata(&self.path).is_ok_and(|file| file.len() >= LARGE) {
            fs::rename(&self.path, self.path.with_extension("jsonl.1"))?;
        }
        let mut file = OpenOptions::new()
            .create(true)
            .append(true)
            .open(&self.path)?;
        file.write_all(format!("{line}\n").as_bytes())?;
        file.sync_data()?;
        super::folder::sync(folder)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_kept_within_two_files_of_bounded_size() {
        let folder = tempfile::tempdir().expect("a folder");
        let dead_letters = DeadLetters::in_folder(folder.path());
        let line = "x".repeat(400_000);
        for _ in 0..10 {
            dead_letters.add(&line).expect("written");
        }
        let files: Vec<u64> = fs::read_dir(folder.path())
            .expect("readable")
            .filter_map(|entry| entry.ok()?.metadata().ok().map(|file| file.len()))
            .collect();
        assert_eq!(files.len(), 2);
        assert!(files.iter().all(|length| *length < LARGE + 500_000));
    }
}
