//! Where Home Assistant was told of this device: one small file beside the backlog, with the topic alone.
//!
//! It is written when the device is announced for the first time, and removed when that was taken back; without
//! `home_assistant.discovery` there never is one.

use std::io;
use std::path::{Path, PathBuf};

use tokio::sync::mpsc::UnboundedSender;
use tracing::warn;

use super::small_file;
use crate::logic::Input;

/// The file's name in the backlog's folder.
const FILE: &str = "home-assistant.topic";
/// A topic has at most 200 bytes of prefix and 200 of device id.
const MAX_BYTES: u64 = 1_024;

/// Where the topic is remembered.
#[derive(Debug, Clone)]
pub struct Announced {
    path: PathBuf,
}

impl Announced {
    /// In `folder`, which may not be there yet.
    pub fn in_folder(folder: &Path) -> Self {
        Self {
            path: folder.join(FILE),
        }
    }

    /// Reads it on a thread of its own, since a disk may hang; answers into `inputs` with one
    /// `Input::AnnouncedFound`.
    pub fn load_beside(&self, inputs: UnboundedSender<Input>) {
        let announced = self.clone();
        let sender = inputs.clone();
        let load = move || {
            let topic = announced.load().unwrap_or_else(|error| {
                let name = announced.path.display();
                warn!("{name} cannot be read: {error}; remove it");
                None
            });
            // Nobody listens any more when the daemon stops.
            let _ = sender.send(Input::AnnouncedFound(topic));
        };
        let thread = std::thread::Builder::new().name("announced".into());
        if thread.spawn(load).is_err() {
            let _ = inputs.send(Input::AnnouncedFound(None));
        }
    }

    /// The topic; none if nothing was announced.
    ///
    /// # Errors
    /// The file cannot be read, or holds no topic.
    fn load(&self) -> io::Result<Option<String>> {
        let Some(bytes) = small_file::read(&self.path, MAX_BYTES)? else {
            return Ok(None);
        };
        let topic = String::from_utf8(bytes).unwrap_or_default();
        let topic = topic.trim();
        // It is published to: whatever else may stand there, it is an announcement's.
        if !topic.ends_with("/config") || topic.contains(['+', '#', '\0', '\n']) {
            return Err(io::Error::other("it holds no topic of an announcement"));
        }
        Ok(Some(topic.to_owned()))
    }

    /// Remembers the topic, or that there is none.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn keep(&self, topic: Option<&str>) -> io::Result<()> {
        match topic {
            Some(topic) => small_file::replace(&self.path, format!("{topic}\n").as_bytes()),
            None => small_file::remove(&self.path),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn a_topic_is_remembered_until_it_is_taken_back() {
        let folder = tempfile::tempdir().expect("a folder");
        let announced = Announced::in_folder(&folder.path().join("deep"));
        let topic = || announced.load().expect("read");
        assert_eq!(topic(), None);
        announced.keep(None).expect("nothing to remove");
        for name in ["homeassistant/device/a/config", "ha/device/b/config"] {
            announced.keep(Some(name)).expect("kept");
            assert_eq!(topic().as_deref(), Some(name));
        }
        announced.keep(None).expect("removed");
        assert_eq!(topic(), None);
        assert_eq!(
            fs::read_dir(folder.path().join("deep"))
                .expect("a folder")
                .count(),
            0
        );
    }

    #[test]
    fn what_is_no_topic_of_an_announcement_is_refused() {
        let folder = tempfile::tempdir().expect("a folder");
        let announced = Announced::in_folder(folder.path());
        for text in [
            "",
            "home/garage/door",
            "a/#/config",
            "a/config\nb/config",
            "\u{0}/config",
        ] {
            fs::write(&announced.path, text).expect("written");
            assert!(announced.load().is_err(), "{text:?}");
        }
    }
}
