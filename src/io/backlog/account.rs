//! A note beside the store: what it must at least know. Damage can make sled open cleanly with an
//! earlier state, or with nothing; a store that knows less than the account says is not whole.
//!
//! One line of 512 bytes, written in place: it costs one block, and a torn write is noticed by its
//! checksum and only makes the account worth nothing. Written when the store is opened or closed,
//! gets its first record or seals a chunk; never on a healthy link. `opening` and `store` call it.

use std::fs::OpenOptions;
use std::io::{self, Write};
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::ledger::Run;

const LENGTH: usize = 512;

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
}

impl Account {
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
        while line.len() < LENGTH - 1 {
            line.push(' ');
        }
        line.push('\n');
        let mut file = OpenOptions::new()
            .create(true)
            .write(true)
            .truncate(false)
            .open(path)?;
        file.write_all(line.as_bytes())?;
        // Longer than ours before: only after a change of the format.
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
