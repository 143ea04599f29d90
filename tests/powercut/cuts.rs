//! What a power cut leaves on the disk: everything up to the last flush, and of the writes after it any
//! that the card happened to have written, the last one torn, and in a third of the cuts without some whole
//! pages of 16 kB. `tally` asks for one image a cut.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;

use super::log::{FLUSH, FUA, Log, SECTOR};

const BLOCK: usize = 64 * 1024;
/// What a card writes at a time, in bytes.
const CARD_PAGE: u64 = 16 * 1024;
/// How likely it is that a write after the last flush was done, in eighths: none, few, half, most, all.
const KEPT: [u32; 5] = [0, 1, 4, 7, 8];

/// What the card is like.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Card {
    /// It does what a flush asks.
    Honest,
    /// It ignores the last so many flushes: to see that the rig notices.
    Lying(usize),
}

/// A cut: the entries before `at` had been given to the card.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Cut {
    pub at: usize,
    pub seed: u64,
}

/// So many cuts of a log, in order. Every second one comes just before a flush, when most is uncertain;
/// the others come at any moment.
pub fn random(rng: &mut fastrand::Rng, log: &Log, count: usize) -> Vec<Cut> {
    let is_flush = |at: &usize| log.entries[*at].flags & FLUSH != 0;
    let flushes: Vec<usize> = (0..log.entries.len()).filter(is_flush).collect();
    let mut cuts: Vec<Cut> = (0..count)
        .map(|n| Cut {
            at: match n % 2 {
                0 => rng.usize(0..=log.entries.len()),
                _ => flushes[rng.usize(..flushes.len())],
            },
            seed: rng.u64(..),
        })
        .collect();
    cuts.sort_unstable();
    cuts
}

/// The contents of a disk.
pub struct Contents {
    bytes: Vec<u8>,
    /// Blocks that are not all zeros, or were not once.
    used: Vec<bool>,
}

impl Contents {
    pub fn read(image: &Path) -> Contents {
        let bytes = fs::read(image).expect("an image");
        let used = bytes
            .chunks(BLOCK)
            .map(|block| block.iter().any(|byte| *byte != 0))
            .collect();
        Contents { bytes, used }
    }

    fn put(&mut self, sector: u64, data: &[u8]) {
        let at = (sector * SECTOR) as usize;
        self.bytes[at..at + data.len()].copy_from_slice(data);
        for block in at / BLOCK..=(at + data.len().max(1) - 1) / BLOCK {
            self.used[block] = true;
        }
    }

    /// Writes them to a new file with holes where there is nothing.
    fn save(&self, image: &Path) -> io::Result<File> {
        // Not the file of before: a loop device may be letting go of that one still.
        let _ = fs::remove_file(image);
        let file = File::create(image)?;
        file.set_len(self.bytes.len() as u64)?;
        for (n, block) in self.bytes.chunks(BLOCK).enumerate() {
            if self.used[n] {
                file.write_all_at(block, (n * BLOCK) as u64)?;
            }
        }
        Ok(file)
    }
}

/// Replays a log, cut by cut.
pub struct Replay<'a> {
    log: &'a Log,
    disk: Contents,
    /// The disk has every entry before this one, and it is a flush (or the first).
    flushed: usize,
    card: Card,
}

impl<'a> Replay<'a> {
    pub fn new(log: &'a Log, base: &Path, card: Card) -> Replay<'a> {
        Replay {
            log,
            disk: Contents::read(base),
            flushed: 0,
            card,
        }
    }

    /// The image after a cut, which must not be before the last one that was asked for; how many writes
    /// the cut made uncertain.
    pub fn image(&mut self, cut: Cut, image: &Path) -> usize {
        self.advance(self.last_flush(cut.at));
        let file = self.disk.save(image).expect("an image");
        let mut rng = fastrand::Rng::with_seed(cut.seed);
        let eighths = KEPT[rng.usize(..KEPT.len())];
        // Sometimes every write is torn, not the last alone: the card was at all of them.
        let ragged = rng.u8(..4) == 0;
        // Sometimes the card loses whole pages of its own, with all that was written there since.
        let lossy = rng.u8(..3) == 0;
        let lost_pages = rng.u64(..);
        let since = &self.log.entries[self.flushed..cut.at];
        let uncertain: Vec<_> = since.iter().filter(|entry| entry.sectors > 0).collect();
        let kept: Vec<_> = uncertain
            .iter()
            .filter(|entry| entry.flags & FUA != 0 || rng.u32(..8) < eighths)
            .collect();
        for (n, entry) in kept.iter().enumerate() {
            let torn = (ragged || n + 1 == kept.len()) && entry.flags & FUA == 0;
            let sectors = match torn {
                true => rng.u64(0..=entry.sectors),
                false => entry.sectors,
            };
            let data = self.log.data(entry);
            for n in 0..sectors {
                let sector = entry.sector + n;
                let page = sector * SECTOR / CARD_PAGE;
                let mut of_page = fastrand::Rng::with_seed(lost_pages ^ page);
                if lossy && entry.flags & FUA == 0 && of_page.u8(..3) == 0 {
                    continue;
                }
                let at = (n * SECTOR) as usize;
                file.write_all_at(&data[at..at + SECTOR as usize], sector * SECTOR)
                    .expect("written");
            }
        }
        uncertain.len()
    }

    /// The flush up to which a card has everything when `at` entries were given to it.
    fn last_flush(&self, at: usize) -> usize {
        let ignored = match self.card {
            Card::Honest => 0,
            Card::Lying(flushes) => flushes,
        };
        self.log.entries[..at]
            .iter()
            .enumerate()
            .rev()
            .filter(|(_, entry)| entry.flags & FLUSH != 0)
            .nth(ignored)
            .map_or(0, |(at, _)| at)
            .max(self.flushed)
    }

    fn advance(&mut self, to: usize) {
        for entry in &self.log.entries[self.flushed..to] {
            let data = self.log.data(entry);
            if !data.is_empty() {
                self.disk.put(entry.sector, &data);
            }
        }
        self.flushed = to;
    }
}
