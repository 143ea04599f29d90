//! The bounds of the backlog: what is given up so that new records fit, each with a loss noted in
//! the very batch that drops it. Only `Store::commit` calls this.

use std::collections::{BTreeSet, VecDeque};

use sled::Batch;

use crate::config::OnFull;
use crate::logic::Key;
use crate::logic::telemetry::{Body, Event, Loss};

use super::disk::Fault;
use super::format::{Header, Line, MAX_CHUNK};
use super::keys::{self, Chunk};
use super::ledger::FULL;
use super::pages::{LOWEST, chunk_end, chunk_start, next};
use super::store::{Store, loss};

/// How far the thinning of the oldest half has come. It goes on a chunk or two at a time, when room is
/// needed, so that no store waits for half a million records to be rewritten.
#[derive(Debug, Default)]
pub(super) struct Round {
    at: Option<Key>,
    left: u64,
}

/// A record that is to be stored: key, line (its record alone counts), value.
pub(super) type New = (Key, Line, Vec<u8>);

/// What the store holds records in.
pub(super) enum Unit {
    Chunk(Chunk),
    Single(Key),
}

impl Unit {
    /// Its last key.
    pub(super) fn end(&self) -> Key {
        match self {
            Unit::Chunk(chunk) => chunk_end(chunk),
            Unit::Single(key) => *key,
        }
    }
}

impl Store {
    /// Gives records up, as the settings say which, until `new` fits.
    pub(super) fn make_room(&mut self, new: &mut VecDeque<New>) -> Result<(), Fault> {
        let mut records = new.len() as u64;
        let mut bytes: u64 = new.iter().map(|(_, _, value)| value.len() as u64).sum();
        let mut refused = Vec::new();
        while self.state.records + records > self.bounds.max_records
            || self.state.bytes + bytes > self.bounds.max_bytes
        {
            let made = match self.bounds.on_full {
                OnFull::DropOldest => self.drop_oldest()?,
                OnFull::Thin => self.thin()? || self.drop_oldest()?,
                OnFull::DropNewest => false,
            };
            let one = match self.bounds.on_full {
                _ if made => None,
                OnFull::DropNewest => newest_to_refuse(new),
                // The store is empty, and they alone are too many.
                OnFull::DropOldest | OnFull::Thin => new.pop_front(),
            };
            match one {
                Some(one) => {
                    records -= 1;
                    bytes -= one.2.len() as u64;
                    refused.push((one.0, one.1));
                }
                None if made => {}
                // Nothing new is left; the bounds were lowered, and `drop-newest` touches nothing old.
                None => break,
            }
        }
        if !refused.is_empty() {
            refused.sort_by_key(|(key, _)| *key);
            let mut batch = Batch::default();
            self.give_up(&mut batch, &refused)?;
            self.write(batch)?;
        }
        Ok(())
    }

    /// Drops the oldest chunk or single record; `false` when there is none.
    fn drop_oldest(&mut self) -> Result<bool, Fault> {
        let mut batch = Batch::default();
        let mut gone = BTreeSet::new();
        let ordinal = match self.unit_at(LOWEST)? {
            None => return Ok(false),
            Some(Unit::Single(key)) => {
                match self.single(key)? {
                    Some((_, line)) => {
                        self.give_up(&mut batch, &[(key, line)])?;
                        self.remove_single(&mut batch, key);
                    }
                    None => self.drop_damaged_single(&mut batch, key)?,
                }
                key.ordinal
            }
            Some(Unit::Chunk(chunk)) => {
                let left = self.partly.get(&chunk).cloned();
                let lines = self.lines(&chunk)?.map(|(_, lines)| lines.lines);
                self.remove_chunk(&mut batch, &chunk)?;
                gone.insert(chunk);
                let run = self.runs.get(&chunk.ordinal).map(|run| run.run);
                let (from, to, count) = match &left {
                    Some(left) => (
                        left.first().copied().unwrap_or(chunk.first),
                        left.last().copied().unwrap_or(chunk.last),
                        left.len() as u64,
                    ),
                    None => (chunk.first, chunk.last, u64::from(chunk.count)),
                };
                self.add_loss(
                    &mut batch,
                    loss(run.unwrap_or_default(), from, to, count, FULL),
                )?;
                for line in lines.unwrap_or_default() {
                    if left.as_ref().is_none_or(|left| left.contains(&line.seq)) {
                        self.carry_loss(&mut batch, &line);
                    }
                }
                chunk.ordinal
            }
        };
        self.refresh_low(ordinal, &gone)?;
        self.write(batch)?;
        Ok(true)
    }

    /// Drops every second of some records of the oldest half; `false` when there are none to drop.
    fn thin(&mut self) -> Result<bool, Fault> {
        // The first turn may only be the rest of a round.
        for _ in 0..2 {
            while self.round.left > 0 {
                let at = self.round.at.unwrap_or(LOWEST);
                match self.unit_at(at)? {
                    None => self.round.left = 0,
                    Some(Unit::Chunk(chunk)) => {
                        if self.thin_chunks(chunk)? {
                            return Ok(true);
                        }
                    }
                    Some(Unit::Single(key)) => {
                        if self.thin_singles(key)? {
                            return Ok(true);
                        }
                    }
                }
            }
            self.round = Round {
                at: None,
                left: self.state.records / 2,
            };
        }
        Ok(false)
    }

    /// Thins a chunk, and the one after it, into one.
    fn thin_chunks(&mut self, first: Chunk) -> Result<bool, Fault> {
        let mut batch = Batch::default();
        let mut gone = BTreeSet::new();
        let mut all = Vec::new();
        let mut of: Option<Header> = None;
        let mut at = chunk_start(&first);
        while gone.len() < 2
            && let Some(chunk) = self.chunk_at(at)?
            && chunk.ordinal == first.ordinal
        {
            at = next(chunk_end(&chunk));
            let Ok((header, lines)) = self.lines(&chunk)? else {
                // The next fetch takes it out as damaged.
                break;
            };
            if lines.nameless > 0 {
                break;
            }
            of = Some(header);
            let left = self.partly.get(&chunk);
            all.extend(
                lines
                    .lines
                    .into_iter()
                    .filter(|line| left.is_none_or(|left| left.contains(&line.seq))),
            );
            gone.insert(chunk);
        }
        self.advance(at, all.len() as u64);
        let Some(of) = of.filter(|_| all.len() > 1) else {
            return Ok(false);
        };
        let (kept, dropped) = every_second(all);
        for chunk in &gone {
            self.remove_chunk(&mut batch, chunk)?;
        }
        self.insert_lines(&mut batch, &of, &kept);
        let ordinal = first.ordinal;
        let dropped: Vec<_> = dropped
            .into_iter()
            .map(|line| {
                (
                    Key {
                        ordinal,
                        seq: line.seq,
                    },
                    line,
                )
            })
            .collect();
        self.give_up(&mut batch, &dropped)?;
        self.refresh_low(ordinal, &gone)?;
        if let (Some(run), Some(line)) = (self.runs.get_mut(&ordinal), kept.first()) {
            run.low = run.low.min(line.seq);
        }
        self.write(batch)?;
        Ok(true)
    }

    /// Thins a stretch of single records.
    fn thin_singles(&mut self, first: Key) -> Result<bool, Fault> {
        let mut end = Key {
            ordinal: first.ordinal,
            seq: u64::MAX,
        };
        if let Some(chunk) = self.chunk_at(first)? {
            end = end.min(chunk_start(&chunk));
        }
        let most = MAX_CHUNK.min(usize::try_from(self.round.left).unwrap_or(MAX_CHUNK));
        let stretch = self.tail.range(first..).take(most.max(1));
        let keys: Vec<Key> = stretch
            .map(|(key, _)| *key)
            .take_while(|key| *key == first || *key < end)
            .collect();
        let mut lines = Vec::with_capacity(keys.len());
        for key in &keys {
            if let Some((_, line)) = self.single(*key)? {
                lines.push(line);
            }
        }
        self.advance(next(*keys.last().unwrap_or(&first)), keys.len() as u64);
        let (_, dropped) = every_second(lines);
        if dropped.is_empty() {
            return Ok(false);
        }
        let mut batch = Batch::default();
        let ordinal = first.ordinal;
        let dropped: Vec<_> = dropped
            .into_iter()
            .map(|line| {
                (
                    Key {
                        ordinal,
                        seq: line.seq,
                    },
                    line,
                )
            })
            .collect();
        self.give_up(&mut batch, &dropped)?;
        for (key, _) in &dropped {
            self.remove_single(&mut batch, *key);
        }
        self.refresh_low(ordinal, &BTreeSet::new())?;
        self.write(batch)?;
        Ok(true)
    }

    fn advance(&mut self, at: Key, records: u64) {
        self.round.at = Some(at);
        self.round.left = self.round.left.saturating_sub(records.max(1));
    }

    /// The chunk or single record that is first of those from `at` on.
    pub(super) fn unit_at(&self, at: Key) -> Result<Option<Unit>, Fault> {
        let chunk = self.chunk_at(at)?;
        let single = self.tail.range(at..).next().map(|(key, _)| *key);
        Ok(match (chunk, single) {
            (Some(chunk), Some(key)) if key < chunk_start(&chunk) => Some(Unit::Single(key)),
            (Some(chunk), _) => Some(Unit::Chunk(chunk)),
            (None, Some(key)) => Some(Unit::Single(key)),
            (None, None) => None,
        })
    }

    /// What a chunk or single record holds; `None` when it is damaged.
    pub(super) fn unit_lines(&self, unit: &Unit) -> Result<Option<(Header, Vec<Line>)>, Fault> {
        Ok(match unit {
            Unit::Chunk(chunk) => {
                let lines = self.lines(chunk)?.ok();
                lines.map(|(header, lines)| (header, lines.lines))
            }
            Unit::Single(key) => {
                let line = self.single(*key)?;
                line.map(|(header, line)| (header, vec![line]))
            }
        })
    }

    fn remove_single(&mut self, batch: &mut Batch, key: Key) {
        batch.remove(keys::tail(key));
        let bytes = self.tail.remove(&key).unwrap_or(0);
        self.lose_count(key.ordinal, 1, bytes);
    }

    /// Notes the loss of records, which are of few runs and ascending.
    fn give_up(&mut self, batch: &mut Batch, records: &[(Key, Line)]) -> Result<(), Fault> {
        let mut lost: Option<(u64, Loss)> = None;
        for (key, line) in records {
            match &mut lost {
                Some((ordinal, loss)) if *ordinal == key.ordinal => {
                    loss.to_seq = key.seq;
                    loss.count += 1;
                }
                _ => {
                    if let Some((_, loss)) = lost.take() {
                        self.add_loss(batch, loss)?;
                    }
                    let run = self.runs.get(&key.ordinal).map(|run| run.run);
                    let one = loss(run.unwrap_or_default(), key.seq, key.seq, 1, FULL);
                    lost = Some((key.ordinal, one));
                }
            }
            self.carry_loss(batch, line);
        }
        match lost {
            Some((_, loss)) => self.add_loss(batch, loss),
            None => Ok(()),
        }
    }

    /// A record that tells of a loss is given up: what it told must be told all the same.
    fn carry_loss(&mut self, batch: &mut Batch, line: &Line) {
        if let Some(Body::Event(Event::Loss(told))) = line.record.as_ref().map(|r| &r.body) {
            self.repeat_loss(batch, told.clone());
        }
    }
}

/// The newest that is not the word about a loss: that one would only have to be told again.
fn newest_to_refuse(new: &mut VecDeque<New>) -> Option<New> {
    let tells = |(_, line, _): &New| {
        let body = line.record.as_ref().map(|record| &record.body);
        matches!(body, Some(Body::Event(Event::Loss(_))))
    };
    let newest = new.iter().rposition(|one| !tells(one))?;
    new.remove(newest)
}

/// The first, third ... and the second, fourth ...
fn every_second(lines: Vec<Line>) -> (Vec<Line>, Vec<Line>) {
    let mut kept = Vec::with_capacity(lines.len() / 2 + 1);
    let mut dropped = Vec::with_capacity(lines.len() / 2);
    for (at, line) in lines.into_iter().enumerate() {
        if at % 2 == 0 {
            kept.push(line);
        } else {
            dropped.push(line);
        }
    }
    (kept, dropped)
}
