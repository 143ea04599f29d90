//! A note beside the store: what it must at least know. Damage can make sled open cleanly with an
//! earlier state, or with nothing; a store that knows less than the account says is not whole.
//!
//! One line of 512 bytes, written in place: it costs one block, and a torn write is noticed by its
//! checksum and only makes the account worth nothing. Written when the store is opened or closed,
//! gets its first record or seals a chunk; never on a healthy link. `opening` and `store` call it.
//!
//! Where the store cannot be written, on a full disk above all, a block that is there already mostly can
//! be: so this file also says which records a run could not store. The next run reports them as lost.

use std::fs::OpenOptions;
use std::io::{self, Write};
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::logic::telemetry::{Body, Event, Loss, Record};

use super::ledger::{NOT_STORED, Run};
use super::store::loss;

/// The file is a multiple of this, in bytes.
const LENGTH: usize = 512;
/// Losses noted in the file, at the most; with more the oldest are given up, and the log says so.
const MAX_NOT_STORED: usize = 16;

/// What the store must at least know.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Account {
    /// Writes of the store so far; it never goes back.
    pub(super) generation: u64,
    /// The newest run.
    pub(super) ordinal: u64,
    /// Whether the store held records; if not, none has come since.
    pub(super) records: bool,
    /// What was known of the newest run, if anything.
    pub(super) run: Option<Run>,
    /// Records that could not be stored when their run last tried.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(super) not_stored: Vec<Loss>,
}

impl Account {
    /// Notes that these records of one run, ascending, could not be stored, in place of what was noted
    /// of that run before.
    pub(super) fn note_not_stored(&mut self, records: &[Record]) {
        let (Some(first), Some(last)) = (records.first(), records.last()) else {
            return;
        };
        self.not_stored.retain(|old| old.of_run != first.run);
        let count = records.len() as u64;
        self.not_stored
            .push(loss(first.run, first.seq, last.seq, count, NOT_STORED));
        // A record that reports a loss is lost with the others, but not what it reports.
        for record in records {
            if let Body::Event(Event::Loss(reported)) = &record.body
                && !self.not_stored.contains(reported)
            {
                self.not_stored.push(reported.clone());
            }
        }
        let over = self.not_stored.len().saturating_sub(MAX_NOT_STORED);
        for old in self.not_stored.drain(..over) {
            tracing::warn!(
                "backlog: the loss of records {} to {} of run {} will not be reported",
                old.from_seq,
                old.to_seq,
                old.of_run
            );
        }
    }

    /// The account in the file; one that asks for nothing when it is missing or torn.
    pub(super) fn read(path: &Path) -> Account {
        let Ok(text) = std::fs::read(path) else {
            return Account::default();
        };
        let text = String::from_utf8_lossy(&text);
        let Some((crc, json)) = text.trim_end().split_once(' ') else {
            return Account::default();
        };
        if u32::from_str_radix(crc, 16) != Ok(crc32fast::hash(json.as_bytes())) {
            return Account::default();
        }
        serde_json::from_str(json).unwrap_or_default()
    }

    /// Writes it in place and syncs it.
    ///
    /// # Errors
    /// As the system gives them.
    pub(super) fn write(&self, path: &Path) -> io::Result<()> {
        let json = serde_json::to_string(self).map_err(io::Error::other)?;
        let mut line = format!("{:08x} {json}", crc32fast::hash(json.as_bytes()));
        while (line.len() + 1) % LENGTH != 0 {
            line.push(' ');
        }
        line.push('\n');
        let mut file = OpenOptions::new()
            .create(true)
            .write(true)
            .truncate(false)
            .open(path)?;
        file.write_all(line.as_bytes())?;
        if file.metadata()?.len() != line.len() as u64 {
            file.set_len(line.len() as u64)?;
        }
        file.sync_data()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_comes_back_and_a_torn_one_asks_for_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("account");
        assert_eq!(Account::read(&path), Account::default());
        let account = Account {
            generation: 7,
            ordinal: 3,
            records: true,
            run: Some(Run::default()),
            not_stored: Vec::new(),
        };
        account.write(&path).unwrap();
        assert_eq!(Account::read(&path), account);
        let mut bytes = std::fs::read(&path).unwrap();
        assert_eq!(bytes.len(), LENGTH);
        bytes[20] ^= 1;
        std::fs::write(&path, &bytes).unwrap();
        assert_eq!(Account::read(&path), Account::default());
    }
}
