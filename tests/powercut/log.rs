//! The log of a disk's writes, in the format of dm-log-writes: a sector that describes the log, then
//! for each write or flush a sector that describes it, and its data. `notes` follows the log while it
//! grows, `cuts` replays it.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;

pub const SECTOR: u64 = 512;
/// All earlier writes that had ended are on the disk before this one begins.
pub const FLUSH: u64 = 1;
/// This write itself is on the disk when it ends.
pub const FUA: u64 = 2;
const DISCARD: u64 = 4;
const MAGIC: u64 = 0x006a_7366_7773_6872;

/// A write or a flush.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Entry {
    /// The first sector written, and how many.
    pub sector: u64,
    pub sectors: u64,
    pub flags: u64,
    /// Where in the log its data is.
    at: u64,
}

/// A log that may still grow.
pub struct Log {
    file: File,
    next: u64,
    pub entries: Vec<Entry>,
}

impl Log {
    pub fn open(path: &Path) -> Log {
        let file = File::open(path).expect("a log");
        Log {
            file,
            next: SECTOR,
            entries: Vec::new(),
        }
    }

    /// Reads what has come since; how many entries there are now.
    pub fn follow(&mut self) -> usize {
        let mut bytes = [0; 32];
        while self.file.read_exact_at(&mut bytes, self.next).is_ok() {
            let word = |n: usize| u64::from_le_bytes(bytes[8 * n..8 * n + 8].try_into().unwrap());
            let (sector, sectors, flags) = (word(0), word(1), word(2));
            // Not written yet: a write has sectors, and a flush has its flag.
            if sectors == 0 && flags == 0 {
                break;
            }
            assert!(flags & !(FLUSH | FUA) == 0, "a log entry of flags {flags}");
            assert!(flags & DISCARD == 0, "discards are not expected");
            self.entries.push(Entry {
                sector,
                sectors,
                flags,
                at: self.next + SECTOR,
            });
            self.next += (1 + sectors) * SECTOR;
        }
        self.entries.len()
    }

    /// Reads it once more from the start: what was read while it grew must be the same.
    pub fn verify(&mut self, path: &Path) {
        self.follow();
        let mut head = [0; 28];
        self.file.read_exact_at(&mut head, 0).expect("a log");
        let word = |n: usize| u64::from_le_bytes(head[8 * n..8 * n + 8].try_into().unwrap());
        assert_eq!((word(0), word(1)), (MAGIC, 1), "the log's head");
        let mut again = Log::open(path);
        again.follow();
        assert!(again.entries == self.entries, "the log was misread");
        let told = word(2) as usize;
        assert!(
            told <= self.entries.len() && told + 4096 > self.entries.len(),
            "the log's head tells of {told} entries, there are {}",
            self.entries.len()
        );
    }

    /// The data of an entry.
    pub fn data(&self, entry: &Entry) -> Vec<u8> {
        let mut data = vec![0; (entry.sectors * SECTOR) as usize];
        self.file.read_exact_at(&mut data, entry.at).expect("data");
        data
    }
}
