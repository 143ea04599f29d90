//! Rules that a command set with `persist`: one small file beside the backlog.
//!
//! They stand over the configuration until they are set anew or the file is removed; the daemon says so at
//! each start. It reads them once and writes them when the controller orders it.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use crate::logic::lighting::Rules;

/// The file's name in the backlog's folder.
const FILE: &str = "rules.json";

/// Where the rules of this configuration are kept.
#[derive(Debug, Clone)]
pub struct KeptRules {
    path: PathBuf,
}

impl KeptRules {
    /// In `folder`, which may not be there yet.
    pub fn in_folder(folder: &Path) -> Self {
        Self {
            path: folder.join(FILE),
        }
    }

    /// The file, for a message.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The rules kept, if there are any.
    ///
    /// # Errors
    /// The file cannot be read, or holds no rules that could be followed, in words.
    pub fn load(&self) -> Result<Option<Rules>, String> {
        let name = self.path.display();
        let text = match fs::read(&self.path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(format!("{name} cannot be read: {error}")),
        };
        let rules: Rules = serde_json::from_slice(&text)
            .map_err(|error| format!("{name} holds no rules: {error}; remove it"))?;
        match rules.check() {
            Ok(()) => Ok(Some(rules)),
            Err(why) => Err(format!("{name}: {why}; remove it")),
        }
    }

    /// Keeps `rules`, synced, in the place of those before; a power cut leaves the one or the other.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn keep(&self, rules: &Rules) -> io::Result<()> {
        let folder = self.path.parent().unwrap_or(Path::new("."));
        fs::create_dir_all(folder)?;
        let next = self.path.with_extension("next");
        let mut file = File::create(&next)?;
        file.write_all(&serde_json::to_vec(rules)?)?;
        file.sync_all()?;
        fs::rename(&next, &self.path)?;
        File::open(folder)?.sync_all()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::logic::lighting::Mode;

    #[test]
    fn rules_are_kept_replaced_and_refused_when_they_are_rubbish() {
        let folder = tempfile::tempdir().expect("a folder");
        let kept = KeptRules::in_folder(&folder.path().join("deep"));
        assert_eq!(kept.load(), Ok(None));
        let mut rules = Rules {
            mode: Mode::Local,
            on_below: 12.5,
            off_above: 13.0,
            interval: Duration::from_millis(250),
        };
        for on_below in [1.0, 2.0] {
            rules.on_below = on_below;
            kept.keep(&rules).expect("kept");
            assert_eq!(kept.load(), Ok(Some(rules)));
        }
        for rubbish in ["", "{}", "\u{0}\u{0}\u{0}"] {
            fs::write(kept.path(), rubbish).expect("written");
            assert!(kept.load().is_err_and(|why| why.contains("remove it")));
        }
        rules.on_below = 99.0;
        kept.keep(&rules).expect("kept");
        assert!(kept.load().is_err());
    }
}
