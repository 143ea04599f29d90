//! A device in memory: its totals, and the runs that records came from lately, each with masks of the
//! blocks that they were in. Pure; only `ledger` uses it.

use std::collections::{HashMap, HashSet};

use uuid::Uuid;

use super::account::{Run, Totals};
use super::ledger::{BLOCK, Fault, Loss, Shelf, whole};

/// Masks kept in memory for a run between two batches.
const OPEN_BLOCKS: usize = 4;

#[derive(Debug, Default)]
pub(super) struct Device {
    pub(super) totals: Totals,
    pub(super) runs: HashMap<Uuid, Known>,
    pub(super) told: HashSet<Loss>,
}

/// A run in memory.
#[derive(Debug, Default)]
pub(super) struct Known {
    pub(super) head: Run,
    /// Blocks and their masks, the last used at the end.
    open: Vec<(u64, u64)>,
    /// The records of this batch.
    pub(super) fresh: Vec<(u64, String)>,
    /// The blocks that it has made full.
    pub(super) full: Vec<u64>,
    pub(super) changed: bool,
}

impl Device {
    /// A record was received; tells whether it is new.
    pub(super) fn mark(
        &mut self,
        shelf: &impl Shelf,
        device: &str,
        run: Uuid,
        seq: u64,
        json: String,
    ) -> Result<bool, Fault> {
        let (known, totals) = self.run(shelf, device, run)?;
        let before = known.head.counts();
        let mask = known.mask(shelf, device, run, seq / BLOCK)?;
        let bit = 1 << (seq % BLOCK);
        let is_new = *mask & bit == 0;
        *mask |= bit;
        let is_full = *mask == whole(seq / BLOCK);
        let head = &mut known.head;
        if is_new {
            head.received += 1;
            head.received_in_losses += u64::from(head.losses.contains(seq));
            head.last = head.last.max(seq);
            known.fresh.push((seq, json));
            known.full.extend(is_full.then_some(seq / BLOCK));
        } else {
            head.twice += 1;
        }
        totals.counts.replace(before, head.counts());
        Ok(is_new)
    }

    /// Records of one of its runs were given up.
    pub(super) fn lose(
        &mut self,
        shelf: &impl Shelf,
        device: &str,
        loss: Loss,
    ) -> Result<(), Fault> {
        if self.told.contains(&loss) || shelf.was_told(device, &loss)? {
            return Ok(());
        }
        self.told.insert(loss);
        let (known, totals) = self.run(shelf, device, loss.of_run)?;
        let before = known.head.counts();
        let fresh = &known.fresh;
        let received = |from, to| -> Result<u64, Fault> {
            let stored = shelf.received(device, loss.of_run, from, to)?;
            let fresh = fresh.iter().filter(|(seq, _)| (from..=to).contains(seq));
            Ok(stored + fresh.count() as u64)
        };
        known
            .head
            .lose((loss.from, loss.to), loss.count, received)?;
        totals.counts.replace(before, known.head.counts());
        Ok(())
    }

    /// One of its runs is known to have come as far as `last`. Of a run that was never heard of
    /// nothing is expected: it may have been before this server's time.
    pub(super) fn raise(
        &mut self,
        shelf: &impl Shelf,
        device: &str,
        run: Uuid,
        last: u64,
    ) -> Result<(), Fault> {
        if !self.runs.contains_key(&run) && shelf.run(device, run)?.is_none() {
            return Ok(());
        }
        let (known, totals) = self.run(shelf, device, run)?;
        let before = known.head.counts();
        known.head.last = known.head.last.max(last);
        totals.counts.replace(before, known.head.counts());
        Ok(())
    }

    /// The run, which this batch changes.
    fn run(
        &mut self,
        shelf: &impl Shelf,
        device: &str,
        run: Uuid,
    ) -> Result<(&mut Known, &mut Totals), Fault> {
        use std::collections::hash_map::Entry;
        let known = match self.runs.entry(run) {
            Entry::Occupied(entry) => entry.into_mut(),
            Entry::Vacant(entry) => {
                let head = match shelf.run(device, run)? {
                    Some(head) => head,
                    None => {
                        self.totals.runs += 1;
                        Run {
                            ordinal: self.totals.runs,
                            ..Run::default()
                        }
                    }
                };
                entry.insert(Known {
                    head,
                    ..Known::default()
                })
            }
        };
        known.changed = true;
        Ok((known, &mut self.totals))
    }

    pub(super) fn settle(&mut self) {
        self.told = HashSet::new();
        for known in self.runs.values_mut() {
            known.fresh = Vec::new();
            known.full = Vec::new();
            known.changed = false;
            let excess = known.open.len().saturating_sub(OPEN_BLOCKS);
            known.open.drain(..excess);
        }
    }
}

impl Known {
    /// The mask of a block. Within a batch none is let go: the shelf does not know the batch.
    fn mask(
        &mut self,
        shelf: &impl Shelf,
        device: &str,
        run: Uuid,
        block: u64,
    ) -> Result<&mut u64, Fault> {
        let place = match self.open.iter().rposition(|(open, _)| *open == block) {
            Some(place) => {
                // To the end, but cheaply where many are open.
                let last = self.open.len() - 1;
                self.open.swap(place, last);
                last
            }
            None => {
                self.open.push((block, shelf.block(device, run, block)?));
                self.open.len() - 1
            }
        };
        Ok(&mut self.open[place].1)
    }
}
