//! Reading the store in order, and forgetting what is confirmed. `worker` calls `fetch` and `forget`;
//! the rest serves `store` and `room`, too.
//!
//! A removal is synced at once: the caller gathers them (1,000 records or a second), and an unsynced
//! one at the end of a replay might otherwise wait for weeks, to be sent twice after a power cut then.

use std::collections::{BTreeMap, BTreeSet};

use sled::Batch;

use crate::logic::telemetry::{Loss, Record};
use crate::logic::{Key, KeyRange};

use super::disk::Fault;
use super::format::{self, Broken, Header, Line, Lines, MAX_CHUNK};
use super::keys::{self, Chunk};
use super::ledger::{DAMAGED, UNREADABLE};
use super::room::Unit;
use super::store::{Store, loss};

/// Chunks and single records removed at a time: what lies between two syncs must be little.
const MOST_REMOVED: usize = 128;

/// What a fetch gives.
#[derive(Debug, Default)]
pub(super) struct Page {
    /// Records in order.
    pub(super) records: Vec<(Key, Record)>,
    /// Whether there is none after them.
    pub(super) end: bool,
}

impl Store {
    /// About `limit` records (at least one, at most a chunk more) after `after`, in order. What cannot
    /// be read is removed, and noted as a loss.
    ///
    /// # Errors
    /// As sled and the disk give them.
    pub(super) fn fetch(&mut self, after: Option<Key>, limit: usize) -> Result<Page, Fault> {
        let limit = limit.max(1);
        let from = after.map_or(Key { ordinal: 0, seq: 0 }, next);
        let mut found: BTreeMap<Key, Record> = BTreeMap::new();
        let mut bad = Vec::new();
        let mut at = from;
        let mut bound = None;
        while let Some(chunk) = self.chunk_at(at)? {
            if found.len() >= limit {
                bound = Some(chunk_start(&chunk));
                break;
            }
            at = next(chunk_end(&chunk));
            match self.lines(&chunk)? {
                Ok((_, lines)) => {
                    let left = self.partly.get(&chunk);
                    let unread = lines.lines.iter().any(|line| line.record.is_none());
                    if unread || lines.nameless > 0 {
                        bad.push(chunk);
                    }
                    for line in lines.lines {
                        let key = Key {
                            ordinal: chunk.ordinal,
                            seq: line.seq,
                        };
                        let held = left.is_none_or(|left| left.contains(&line.seq));
                        if let Some(record) = line.record.filter(|_| held && key >= from) {
                            found.insert(key, record);
                        }
                    }
                }
                Err(_) => bad.push(chunk),
            }
        }
        let mut singles: Vec<Key> = match bound {
            Some(bound) if bound > from => self.tail.range(from..bound),
            Some(_) => self.tail.range(from..from),
            None => self.tail.range(from..),
        }
        .map(|(key, _)| *key)
        .take(limit + MAX_CHUNK + 1)
        .collect();
        // A tail longer than a page: nothing after the last one taken can be in this page.
        let cut = (singles.len() > limit + MAX_CHUNK)
            .then(|| singles.pop())
            .and_then(|_| singles.last().copied());
        let mut bad_singles = Vec::new();
        for key in singles {
            match self.single(key)? {
                Some((
                    _,
                    Line {
                        record: Some(record),
                        ..
                    },
                )) => {
                    found.insert(key, record);
                }
                _ => bad_singles.push(key),
            }
        }
        if let Some(cut) = cut {
            found.retain(|key, _| *key <= cut);
        }
        if let Some(cut) = cut.filter(|_| found.is_empty()) {
            self.remove_bad(&bad, &bad_singles)?;
            return self.fetch(Some(cut), limit);
        }
        let whole = found.len() <= limit + MAX_CHUNK;
        let end = bound.is_none() && cut.is_none() && whole;
        self.remove_bad(&bad, &bad_singles)?;
        if end && found.is_empty() {
            self.tell_what_lacks()?;
        }
        Ok(Page {
            records: found.into_iter().take(limit + MAX_CHUNK).collect(),
            end,
        })
    }

    /// Removes confirmed records, synced. A chunk goes when the last of its records does; until then
    /// what is forgotten of it is known in memory only, so that a crash makes duplicates.
    ///
    /// # Errors
    /// As sled and the disk give them.
    pub(super) fn forget(&mut self, ranges: &[KeyRange]) -> Result<(), Fault> {
        let mut gone = BTreeSet::new();
        let mut singles = Vec::new();
        for range in ranges.iter().filter(|range| range.from <= range.to) {
            let ordinal = range.ordinal;
            let (from, to) = (range.from, range.to);
            let keys = Key { ordinal, seq: from }..=Key { ordinal, seq: to };
            singles.extend(self.tail.range(keys).map(|(key, _)| *key));
            let mut at = Key { ordinal, seq: from };
            while let Some(chunk) = self.chunk_at(at)? {
                if chunk.ordinal != ordinal || chunk.first > to {
                    break;
                }
                if self.all_forgotten(&chunk, from, to)? {
                    gone.insert(chunk);
                }
                at = next(chunk_end(&chunk));
            }
        }
        let singles = singles.into_iter().map(Unit::Single);
        let units: Vec<Unit> = singles.chain(gone.into_iter().map(Unit::Chunk)).collect();
        for some in units.chunks(MOST_REMOVED) {
            self.remove(some)?;
        }
        Ok(())
    }

    fn remove(&mut self, units: &[Unit]) -> Result<(), Fault> {
        let mut batch = Batch::default();
        let mut runs = BTreeSet::new();
        let mut gone = BTreeSet::new();
        for unit in units {
            match unit {
                Unit::Single(key) => {
                    if let Some(bytes) = self.tail.remove(key) {
                        batch.remove(keys::tail(*key));
                        self.lose_count(key.ordinal, 1, bytes);
                        runs.insert(key.ordinal);
                    }
                }
                Unit::Chunk(chunk) => {
                    self.remove_chunk(&mut batch, chunk)?;
                    runs.insert(chunk.ordinal);
                    gone.insert(*chunk);
                }
            }
        }
        for ordinal in runs {
            self.refresh_low(ordinal, &gone)?;
        }
        self.drop_done_runs(&mut batch);
        self.write(batch)
    }

    /// The first chunk that ends at `from` or later.
    pub(super) fn chunk_at(&self, from: Key) -> Result<Option<Chunk>, Fault> {
        // Chunks do not overlap: only the one that begins before `from` can reach into it.
        let before = self.chunk_before(from)?;
        if let Some(chunk) = before.filter(|chunk| chunk_end(chunk) >= from) {
            return Ok(Some(chunk));
        }
        for item in self
            .db
            .range(keys::chunks_from(from)..vec![keys::CHUNK + 1])
        {
            let (key, _) = item.map_err(|error| self.place.sled_fault(error))?;
            if let Some(chunk) = Chunk::parse(&key) {
                return Ok(Some(chunk));
            }
        }
        Ok(None)
    }

    /// The last chunk of a run.
    pub(super) fn last_chunk(&self, ordinal: u64) -> Result<Option<Chunk>, Fault> {
        let high = self.runs.get(&ordinal).map_or(u64::MAX - 1, |run| run.high);
        let seq = high.saturating_add(1);
        self.chunk_before(Key { ordinal, seq })
    }

    /// The last chunk of the same run that begins before `key`. Looks forward, from further and
    /// further back: an iterator of sled that goes backward costs the program a constant of 1 MB.
    fn chunk_before(&self, key: Key) -> Result<Option<Chunk>, Fault> {
        let end = keys::chunks_from(key);
        let mut back = 256_u64;
        loop {
            let seq = key.seq.saturating_sub(back);
            let start = keys::chunks_from(Key { seq, ..key });
            let mut last = None;
            for item in self.db.range(start..end.clone()) {
                let (key, _) = item.map_err(|error| self.place.sled_fault(error))?;
                last = Chunk::parse(&key).or(last);
            }
            if last.is_some() || seq == 0 {
                return Ok(last);
            }
            back = back.saturating_mul(4);
        }
    }

    /// What a chunk holds, what is forgotten of it included.
    pub(super) fn lines(&self, chunk: &Chunk) -> Result<Result<(Header, Lines), Broken>, Fault> {
        let value = self
            .db
            .get(chunk.bytes())
            .map_err(|error| self.place.sled_fault(error))?;
        Ok(match value {
            Some(value) => format::unpack_lines(&value).and_then(|(header, lines)| {
                match header.ordinal == chunk.ordinal {
                    true => Ok((header, lines)),
                    false => Err(Broken::Damaged),
                }
            }),
            None => Err(Broken::Damaged),
        })
    }

    /// A single record; `None` when it is damaged.
    pub(super) fn single(&self, key: Key) -> Result<Option<(Header, Line)>, Fault> {
        let value = self
            .db
            .get(keys::tail(key))
            .map_err(|error| self.place.sled_fault(error))?;
        Ok(value
            .and_then(|value| format::unpack_lines(&value).ok())
            .and_then(|(header, mut lines)| Some((header, lines.lines.pop()?)))
            .filter(|(_, line)| line.seq == key.seq))
    }

    /// Whether the record is in the store.
    pub(super) fn holds(&self, key: Key) -> Result<bool, Fault> {
        if self.tail.contains_key(&key) {
            return Ok(true);
        }
        let new = self
            .runs
            .get(&key.ordinal)
            .is_none_or(|run| key.seq > run.high);
        if new {
            return Ok(false);
        }
        let chunk = self.chunk_at(key)?.filter(|chunk| {
            chunk.ordinal == key.ordinal && (chunk.first..=chunk.last).contains(&key.seq)
        });
        match chunk {
            Some(chunk) => Ok(self
                .lines(&chunk)?
                .is_ok_and(|(_, lines)| lines.lines.iter().any(|line| line.seq == key.seq))),
            None => Ok(false),
        }
    }

    /// Takes a chunk out, and off the totals.
    pub(super) fn remove_chunk(&mut self, batch: &mut Batch, chunk: &Chunk) -> Result<(), Fault> {
        let key = chunk.bytes();
        let value = self
            .db
            .get(&key)
            .map_err(|error| self.place.sled_fault(error))?;
        let bytes = value.map_or(0, |value| value.len() as u64);
        batch.remove(key);
        self.partly.remove(chunk);
        self.lose_count(chunk.ordinal, u64::from(chunk.count), bytes);
        Ok(())
    }

    /// Puts `lines` in as chunks, or singles where one is too long for that, and counts them.
    pub(super) fn insert_lines(&mut self, batch: &mut Batch, of: &Header, lines: &[Line]) {
        let mut rest = lines;
        while !rest.is_empty() {
            let Some((header, value)) = format::pack_chunk(of, rest) else {
                let header = Header {
                    kind: format::Kind::Single,
                    count: 1,
                    first: rest[0].seq,
                    last: rest[0].seq,
                    ..*of
                };
                let value = format::pack(&header, rest[0].json.as_bytes());
                let key = Key {
                    ordinal: of.ordinal,
                    seq: rest[0].seq,
                };
                self.gain_count(of.ordinal, 1, value.len() as u64);
                self.tail.insert(key, value.len() as u64);
                batch.insert(keys::tail(key), value);
                rest = &rest[1..];
                continue;
            };
            let chunk = Chunk {
                ordinal: of.ordinal,
                first: header.first,
                last: header.last,
                count: header.count,
            };
            self.gain_count(of.ordinal, u64::from(header.count), value.len() as u64);
            batch.insert(chunk.bytes(), value);
            rest = &rest[usize::from(header.count)..];
        }
    }

    /// Takes out a single record that cannot be read; it is a loss.
    pub(super) fn drop_damaged_single(&mut self, batch: &mut Batch, key: Key) -> Result<(), Fault> {
        let Some(bytes) = self.tail.remove(&key) else {
            return Ok(());
        };
        batch.remove(keys::tail(key));
        self.lose_count(key.ordinal, 1, bytes);
        self.refresh_low(key.ordinal, &BTreeSet::new())?;
        let run = self.runs.get(&key.ordinal).map(|run| run.run);
        self.add_loss(
            batch,
            loss(run.unwrap_or_default(), key.seq, key.seq, 1, DAMAGED),
        )
    }

    /// Whether no record that the store holds lies between two losses, so that they can be one.
    pub(super) fn continues(&self, old: &Loss, new: &Loss) -> Result<bool, Fault> {
        if new.from_seq <= old.to_seq {
            return Ok(false);
        }
        // Thinned ranges hold records in any case: their count says how many are missing.
        let dense = old.count == old.to_seq - old.from_seq + 1;
        if new.from_seq - old.to_seq == 1 || !dense {
            return Ok(true);
        }
        let run = self.runs.iter().find(|(_, run)| run.run == old.of_run);
        let Some((&ordinal, _)) = run else {
            return Ok(true);
        };
        let from = Key {
            ordinal,
            seq: old.to_seq + 1,
        };
        let to = Key {
            ordinal,
            seq: new.from_seq,
        };
        if self.tail.range(from..to).next().is_some() {
            return Ok(false);
        }
        Ok(self
            .chunk_at(from)?
            .is_none_or(|chunk| chunk.ordinal != ordinal || chunk.first >= new.from_seq))
    }

    /// Nothing is left, though by the runs' accounts there should be: a great store is not counted when
    /// it is opened, and this is where its lack shows.
    fn tell_what_lacks(&mut self) -> Result<(), Fault> {
        if self.state.records == 0 || self.unit_at(LOWEST)?.is_some() {
            return Ok(());
        }
        let mut batch = Batch::default();
        for (ordinal, run) in self.runs.clone() {
            if run.held > 0 {
                // Which of them it was, nobody knows any more.
                let lost = loss(run.run, 1, run.high.max(run.held), run.held, DAMAGED);
                self.add_loss(&mut batch, lost)?;
                self.lose_count(ordinal, run.held, 0);
            }
        }
        self.state.records = 0;
        self.state.bytes = 0;
        self.write(batch)
    }

    fn gain_count(&mut self, ordinal: u64, records: u64, bytes: u64) {
        self.state.records += records;
        self.state.bytes += bytes;
        if let Some(run) = self.runs.get_mut(&ordinal) {
            run.held += records;
        }
        self.dirty.insert(ordinal);
    }

    /// Notes that `from..=to` of a chunk is forgotten; whether nothing of it is left.
    fn all_forgotten(&mut self, chunk: &Chunk, from: u64, to: u64) -> Result<bool, Fault> {
        if from <= chunk.first && chunk.last <= to {
            return Ok(true);
        }
        let mut left = match self.partly.remove(chunk) {
            Some(left) => left,
            None => match self.lines(chunk)? {
                // What could not be read is removed at the next fetch.
                Ok((_, lines)) if lines.nameless == 0 => {
                    lines.lines.iter().map(|line| line.seq).collect()
                }
                _ => return Ok(false),
            },
        };
        left.retain(|seq| !(from..=to).contains(seq));
        if left.is_empty() {
            return Ok(true);
        }
        self.partly.insert(*chunk, left);
        Ok(false)
    }

    /// Takes out what a fetch could not read; what it could, of the same chunk, stays.
    fn remove_bad(&mut self, chunks: &[Chunk], singles: &[Key]) -> Result<(), Fault> {
        if chunks.is_empty() && singles.is_empty() || self.place.has_room().is_err() {
            return Ok(());
        }
        for chunk in chunks {
            let mut batch = Batch::default();
            let run = self.runs.get(&chunk.ordinal).map(|run| run.run);
            let run = run.unwrap_or_default();
            let left = self.partly.get(chunk).cloned();
            let contents = self.lines(chunk)?;
            self.remove_chunk(&mut batch, chunk)?;
            match contents {
                Ok((header, lines)) => {
                    let held = |seq: &u64| left.as_ref().is_none_or(|left| left.contains(seq));
                    let (good, unread): (Vec<_>, Vec<_>) = lines
                        .lines
                        .into_iter()
                        .filter(|line| held(&line.seq))
                        .partition(|line| line.record.is_some());
                    self.insert_lines(&mut batch, &header, &good);
                    if let (Some(from), Some(to)) = (unread.first(), unread.last()) {
                        let lost = loss(run, from.seq, to.seq, unread.len() as u64, UNREADABLE);
                        self.add_loss(&mut batch, lost)?;
                    }
                    if lines.nameless > 0 {
                        let lost = loss(run, chunk.first, chunk.last, lines.nameless, UNREADABLE);
                        self.add_loss(&mut batch, lost)?;
                    }
                }
                Err(broken) => {
                    let reason = match broken {
                        Broken::Damaged => DAMAGED,
                        Broken::Unknown => UNREADABLE,
                    };
                    let count = u64::from(chunk.count);
                    self.add_loss(
                        &mut batch,
                        loss(run, chunk.first, chunk.last, count, reason),
                    )?;
                }
            }
            self.write(batch)?;
            self.refresh_low(chunk.ordinal, &BTreeSet::new())?;
        }
        for key in singles {
            let mut batch = Batch::default();
            let unread = self.single(*key)?.is_some();
            if unread {
                let bytes = self.tail.remove(key).unwrap_or(0);
                batch.remove(keys::tail(*key));
                self.lose_count(key.ordinal, 1, bytes);
                let run = self.runs.get(&key.ordinal).map(|run| run.run);
                let lost = loss(run.unwrap_or_default(), key.seq, key.seq, 1, UNREADABLE);
                self.add_loss(&mut batch, lost)?;
            } else {
                self.drop_damaged_single(&mut batch, *key)?;
            }
            self.write(batch)?;
        }
        self.sync()
    }
}

/// The lowest key.
pub(super) const LOWEST: Key = Key { ordinal: 0, seq: 0 };

/// The key after this one.
pub(super) fn next(key: Key) -> Key {
    match key.seq.checked_add(1) {
        Some(seq) => Key { seq, ..key },
        None => Key {
            ordinal: key.ordinal.saturating_add(1),
            seq: 0,
        },
    }
}

/// Where a chunk begins.
pub(super) fn chunk_start(chunk: &Chunk) -> Key {
    Key {
        ordinal: chunk.ordinal,
        seq: chunk.first,
    }
}

/// Where a chunk ends.
pub(super) fn chunk_end(chunk: &Chunk) -> Key {
    Key {
        ordinal: chunk.ordinal,
        seq: chunk.last,
    }
}
