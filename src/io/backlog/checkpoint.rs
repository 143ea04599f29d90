//! The checkpoint: what must be known while there is no store, beside it, and against it.
//!
//! - Run numbers, the last seq of a run and the offset of its clock: here, because the store goes when it is
//!   drained; and in the batches of the store (`run`), because a batch is written more often than this.
//! - Ids of commands: here alone, written with the next commit and at a clean stop.
//! - Whether the store holds entries, and how far it had come: here alone. Damage can make sled open
//!   cleanly with an earlier state, or with nothing; a store that knows less than this is not whole.
//! - What a run could not store: here alone. On a full disk a block that is there already can be written.
//!
//! The file has two slots that are written in turn, in place: a torn write leaves the other one, and a write
//! costs one block. It is written at the start of a run, when the store is made, seals a chunk, is drained or
//! closed, and for new command ids; never on a healthy link. `thread` and `opening` call it.

use std::collections::{BTreeMap, VecDeque};
use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::FileExt;
use std::path::Path;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::io::folder;
use crate::logic::Entry;
use crate::logic::telemetry::Loss;

use super::run::{NOT_STORED, Run, loss};

/// Bytes of a slot.
const SLOT: usize = 32 * 1024;
/// What a slot begins with; then come the length and the CRC-32 of the JSON behind them.
const MAGIC: [u8; 4] = *b"nLcp";
/// A write is a multiple of this, in bytes.
const SECTOR: usize = 512;
/// Ids of commands that are remembered.
pub(super) const MAX_COMMANDS: usize = 256;
/// Runs that are remembered, beside those in the store.
const MAX_RUNS: usize = 64;
/// Losses that are noted, at the most.
const MAX_NOT_STORED: usize = 16;

/// What is known beside the records.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Checkpoint {
    /// Writes of this file so far.
    writes: u64,
    /// Whether the store may hold entries.
    pub(super) holds: bool,
    /// The batch that a store which holds entries must at least know.
    pub(super) least: u64,
    /// Batches so far, over all stores.
    pub(super) generation: u64,
    /// Runs by number.
    pub(super) runs: BTreeMap<u64, Run>,
    /// Ids of commands, oldest first.
    pub(super) commands: VecDeque<String>,
    /// Records that could not be stored when their run last tried.
    pub(super) not_stored: Vec<Loss>,
}

impl Checkpoint {
    /// The newer of the slots that are whole; one that knows nothing when there is none.
    pub(super) fn read(path: &Path) -> Checkpoint {
        let bytes = fs::read(path).unwrap_or_default();
        let slots = bytes.chunks(SLOT).filter_map(unpack);
        slots.max_by_key(|slot| slot.writes).unwrap_or_default()
    }

    /// Whether it was ever written.
    pub(super) fn is_known(&self) -> bool {
        self.writes > 0
    }

    /// Writes it, synced.
    ///
    /// # Errors
    /// As the system gives them; then the version before is still there.
    pub(super) fn write(&mut self, path: &Path) -> io::Result<()> {
        self.writes += 1;
        let mut bytes = self.pack()?;
        while bytes.len() > SLOT && !(self.commands.is_empty() && self.runs.len() <= 2) {
            // Ids as long as they may be, thousands of restarts: the oldest matter least.
            if self.commands.pop_front().is_none() {
                self.runs.pop_first();
            }
            bytes = self.pack()?;
        }
        if path.metadata().map_or(0, |meta| meta.len()) != 2 * SLOT as u64 {
            make(path)?;
        }
        let file = OpenOptions::new().write(true).open(path)?;
        file.write_all_at(&bytes, (self.writes % 2) * SLOT as u64)?;
        file.sync_data()
    }

    /// The number of a run: the one it has, or the next that is free.
    pub(super) fn number(&self, run: Uuid) -> u64 {
        self.number_beside(run, &BTreeMap::new())
    }

    /// The same, where these runs have numbers too.
    pub(super) fn number_beside(&self, run: Uuid, others: &BTreeMap<u64, Run>) -> u64 {
        let known = self
            .runs
            .iter()
            .chain(others)
            .find(|(_, known)| known.run == run);
        let last = |runs: &BTreeMap<u64, Run>| runs.keys().next_back().copied().unwrap_or(0);
        known.map_or_else(
            || last(&self.runs).max(last(others)) + 1,
            |(number, _)| *number,
        )
    }

    /// Adds ids of commands.
    pub(super) fn remember(&mut self, ids: &[String]) {
        self.commands.extend(ids.iter().cloned());
        let over = self.commands.len().saturating_sub(MAX_COMMANDS);
        self.commands.drain(..over);
    }

    /// Forgets runs of which nothing is stored or noted, but for `current` and the one before.
    pub(super) fn drop_done_runs(&mut self, current: u64) {
        let previous = self.runs.range(..current).next_back().map(|(n, _)| *n);
        let noted: Vec<Uuid> = self.not_stored.iter().map(|loss| loss.of_run).collect();
        self.runs.retain(|number, run| {
            let recent = *number == current || Some(*number) == previous;
            recent || !run.is_empty() || noted.contains(&run.run)
        });
        while self.runs.len() > MAX_RUNS {
            self.runs.pop_first();
        }
    }

    /// Notes that these entries of one run, ascending, could not be stored, in place of what was noted of
    /// that run before.
    pub(super) fn note_not_stored(&mut self, run: Uuid, entries: &[Entry]) {
        self.not_stored.retain(|old| old.of_run != run);
        let mut records = entries.iter().filter_map(|entry| match entry {
            Entry::Record(record) => Some(record.seq),
            Entry::Gap(_) => None,
        });
        if let Some(first) = records.next() {
            let (mut last, mut count) = (first, 1);
            for seq in records {
                (last, count) = (seq, count + 1);
            }
            let lost = loss(run, first, last, count, NOT_STORED);
            self.not_stored.push(lost);
        }
        for entry in entries {
            if let Entry::Gap(gap) = entry {
                self.not_stored.push(gap.clone());
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

    fn pack(&self) -> io::Result<Vec<u8>> {
        let json = serde_json::to_vec(self).map_err(io::Error::other)?;
        let mut bytes = MAGIC.to_vec();
        bytes.extend_from_slice(&(json.len() as u32).to_be_bytes());
        bytes.extend_from_slice(&crc32fast::hash(&json).to_be_bytes());
        bytes.extend_from_slice(&json);
        bytes.resize(bytes.len().next_multiple_of(SECTOR), 0);
        Ok(bytes)
    }
}

/// The checkpoint in a slot, if it is whole.
fn unpack(slot: &[u8]) -> Option<Checkpoint> {
    let rest = slot.strip_prefix(&MAGIC)?;
    let (length, rest) = rest.split_first_chunk::<4>()?;
    let (crc, rest) = rest.split_first_chunk::<4>()?;
    let json = rest.get(..u32::from_be_bytes(*length) as usize)?;
    let whole = crc32fast::hash(json) == u32::from_be_bytes(*crc);
    whole.then(|| serde_json::from_slice(json).ok()).flatten()
}

/// A file of zeros: later writes change neither its length nor where it lies.
fn make(path: &Path) -> io::Result<()> {
    let mut file = fs::File::create(path)?;
    file.write_all(&[0; 2 * SLOT])?;
    file.sync_all()?;
    path.parent().map_or(Ok(()), folder::sync)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_comes_back_and_a_torn_write_leaves_the_version_before() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("checkpoint");
        assert_eq!(Checkpoint::read(&path), Checkpoint::default());
        let mut checkpoint = Checkpoint {
            generation: 7,
            holds: true,
            runs: [(3, Run::default())].into(),
            ..Checkpoint::default()
        };
        checkpoint.write(&path).unwrap();
        let before = checkpoint.clone();
        assert_eq!(Checkpoint::read(&path), before);
        checkpoint.remember(&["a".into()]);
        checkpoint.write(&path).unwrap();
        assert_eq!(Checkpoint::read(&path), checkpoint);
        let length = fs::metadata(&path).unwrap().len();
        let mut bytes = fs::read(&path).unwrap();
        bytes[20] ^= 1;
        fs::write(&path, &bytes).unwrap();
        assert_eq!(Checkpoint::read(&path), before);
        bytes[SLOT + 20] ^= 1;
        fs::write(&path, &bytes).unwrap();
        assert_eq!(Checkpoint::read(&path), Checkpoint::default());
        for _ in 0..10 {
            checkpoint.write(&path).unwrap();
        }
        assert_eq!(Checkpoint::read(&path), checkpoint);
        assert_eq!(fs::metadata(&path).unwrap().len(), length);
    }

    #[test]
    fn the_oldest_ids_give_way_when_they_are_as_long_as_they_may_be() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("checkpoint");
        let mut checkpoint = Checkpoint::default();
        let ids: Vec<String> = (0..300)
            .map(|n| format!("{n:0>3}{}", "\u{1F4A1}".repeat(61)))
            .collect();
        checkpoint.remember(&ids);
        checkpoint.write(&path).unwrap();
        let back = Checkpoint::read(&path);
        assert!(back.commands.len() > 100, "{}", back.commands.len());
        assert_eq!(back.commands.back(), ids.last());
    }
}
