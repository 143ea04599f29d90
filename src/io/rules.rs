//! Rules that a command set with `persist`: one small file beside the backlog, with those keys alone.
//!
//! They stand over the configuration until they are set anew or the file is removed; the daemon says so at
//! each start. It reads them once and writes them when the controller orders it. The file is looked at like
//! anything from outside: beside the loop, and only if it is a small ordinary file.

use std::io;
use std::path::{Path, PathBuf};

use tokio::sync::mpsc::UnboundedSender;

use super::small_file;
use crate::logic::Input;
use crate::logic::lighting::RulesPatch;

/// The file's name in the backlog's folder.
const FILE: &str = "rules.json";
/// Four rules need a tenth of it; a larger file is another one.
const MAX_BYTES: u64 = 4_096;

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

    /// Reads them on a thread of its own, since a disk may hang; answers into `inputs` with one
    /// `Input::RulesFound` or `Input::RulesUnusable`.
    pub(crate) fn load_beside(&self, inputs: UnboundedSender<Input>) {
        let kept = self.clone();
        let sender = inputs.clone();
        let load = move || {
            let place = kept.path.display().to_string();
            // Nobody listens any more when the daemon stops.
            let _ = sender.send(match kept.load() {
                Ok(patch) => Input::RulesFound { patch, place },
                Err(why) => Input::RulesUnusable(why),
            });
        };
        if let Err(error) = std::thread::Builder::new().name("rules".into()).spawn(load) {
            let _ = inputs.send(Input::RulesUnusable(format!(
                "no thread to read them: {error}"
            )));
        }
    }

    /// The rules kept; empty if there are none.
    ///
    /// # Errors
    /// The file cannot be read, or holds no rules, in words.
    pub fn load(&self) -> Result<RulesPatch, String> {
        let name = self.path.display();
        let bytes = match small_file::read(&self.path, MAX_BYTES) {
            Ok(Some(bytes)) => bytes,
            Ok(None) => return Ok(RulesPatch::default()),
            Err(error) => return Err(format!("{name} cannot be read: {error}; remove it")),
        };
        serde_json::from_slice(&bytes)
            .map_err(|error| format!("{name} holds no rules: {error}; remove it"))
    }

    /// Keeps `rules`, synced, in the place of those before; a power cut leaves the one or the other.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn keep(&self, rules: &RulesPatch) -> io::Result<()> {
        small_file::replace(&self.path, &serde_json::to_vec(rules)?)
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::time::Duration;

    use super::*;
    use crate::logic::lighting::Mode;

    #[test]
    fn rules_are_kept_replaced_and_refused_when_they_are_rubbish() {
        let folder = tempfile::tempdir().expect("a folder");
        let kept = KeptRules::in_folder(&folder.path().join("deep"));
        assert_eq!(kept.load(), Ok(RulesPatch::default()));
        let mut rules = RulesPatch {
            mode: Some(Mode::Local),
            interval: Some(Duration::from_millis(250)),
            ..RulesPatch::default()
        };
        for on_below in [None, Some(1.0), Some(2.5)] {
            rules.on_below = on_below;
            kept.keep(&rules).expect("kept");
            assert_eq!(kept.load(), Ok(rules));
        }
        let text = fs::read_to_string(kept.path()).expect("text");
        assert!(!text.contains("off_above"), "{text}");
        for rubbish in ["", "[1]", "\u{0}\u{0}\u{0}", "{\"on_below\":\"x\"}"] {
            fs::write(kept.path(), rubbish).expect("written");
            assert!(kept.load().is_err_and(|why| why.contains("remove it")));
        }
    }

    #[test]
    fn a_file_of_the_form_before_this_one_is_read() {
        let folder = tempfile::tempdir().expect("a folder");
        let kept = KeptRules::in_folder(folder.path());
        let old = r#"{"mode":"local","on_below":12.5,"off_above":13.0,"interval":{"secs":0,"nanos":250000000}}"#;
        fs::write(kept.path(), old).expect("written");
        let patch = kept.load().expect("rules");
        assert_eq!(
            patch.to_string(),
            "mode local, on_below 12.5, off_above 13, interval 250 ms"
        );
    }

    #[test]
    fn what_is_no_small_ordinary_file_is_refused_at_once_and_replaced() {
        let folder = tempfile::tempdir().expect("a folder");
        let kept = KeptRules::in_folder(folder.path());
        let fifo = |path: &Path| {
            let made = std::process::Command::new("mkfifo").arg(path).status();
            assert!(made.expect("mkfifo").success());
        };
        fs::create_dir(kept.path()).expect("a folder");
        assert!(kept.load().is_err());
        fs::remove_dir(kept.path()).expect("removed");
        let large = std::fs::File::create(kept.path()).expect("a file");
        large.set_len(1 << 30).expect("holes");
        assert!(kept.load().is_err_and(|why| why.contains("larger than")));
        fs::remove_file(kept.path()).expect("removed");
        fifo(kept.path());
        fifo(&kept.path().with_extension("next"));
        assert!(
            kept.load()
                .is_err_and(|why| why.contains("no ordinary file"))
        );
        let rules = RulesPatch {
            on_below: Some(7.0),
            ..RulesPatch::default()
        };
        kept.keep(&rules).expect("kept");
        assert_eq!(kept.load(), Ok(rules));
    }
}
