//! A folder for the files of one demonstration, removed with all that is in it when dropped.
//!
//! Knows nothing of what is put there. Made by `demo::run`.

use std::fs;
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

/// A folder that is there as long as this value.
#[derive(Debug)]
pub(super) struct Folder {
    path: PathBuf,
}

impl Folder {
    /// Makes a folder of this name where the system keeps temporary files, for this user alone.
    ///
    /// # Errors
    /// It cannot be made, or was there already.
    pub(super) fn make(name: &str) -> io::Result<Self> {
        let path = std::env::temp_dir().join(name);
        // Not `recursive`: a folder that somebody else has put there is refused.
        fs::DirBuilder::new().mode(0o700).create(&path)?;
        Ok(Self { path })
    }

    /// Where it is.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        // What cannot be removed is cleared away by the system with its other temporary files.
        let _ = fs::remove_dir_all(&self.path);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_goes_with_all_that_is_in_it_and_is_never_shared() {
        let name = format!("nightlight-test-{}", uuid::Uuid::new_v4());
        let folder = Folder::make(&name).unwrap();
        assert!(Folder::make(&name).is_err());
        let path = folder.path().to_owned();
        fs::write(path.join("a"), "b").unwrap();
        drop(folder);
        assert!(!path.exists());
    }
}
