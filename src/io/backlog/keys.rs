//! The keys of the sled tree: one tree, one letter for each kind of value, so that one batch is
//! atomic over all of them. Numbers are big endian, so that sled's order is ours.
//!
//! A chunk's key tells its last seq and its count: counting and reading ahead need no value.
//! No sled here; `store` and `inspect` call it.

use crate::logic::Key;

/// First letter of the keys of chunks.
pub(super) const CHUNK: u8 = b'c';
/// First letter of the keys of losses not yet told.
pub(super) const LOSS: u8 = b'l';
/// First letter of the keys of command ids.
pub(super) const COMMAND: u8 = b'o';
/// First letter of the keys of runs.
pub(super) const RUN: u8 = b'r';
/// The key of the account of the whole store.
pub(super) const STATE: [u8; 1] = *b"s";
/// First letter of the keys of single records.
pub(super) const TAIL: u8 = b't';

/// What the key of a chunk tells.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct Chunk {
    /// Ordinal of the run.
    pub(super) ordinal: u64,
    /// First seq in it.
    pub(super) first: u64,
    /// Last seq in it.
    pub(super) last: u64,
    /// Records in it.
    pub(super) count: u16,
}

impl Chunk {
    /// Its key in the tree.
    pub(super) fn bytes(&self) -> Vec<u8> {
        let mut bytes = chunks_from(Key {
            ordinal: self.ordinal,
            seq: self.first,
        });
        bytes.extend_from_slice(&self.last.to_be_bytes());
        bytes.extend_from_slice(&self.count.to_be_bytes());
        bytes
    }

    /// From its key in the tree; `None` when that is none of ours.
    pub(super) fn parse(bytes: &[u8]) -> Option<Chunk> {
        if bytes.len() != 27 || bytes[0] != CHUNK {
            return None;
        }
        Some(Chunk {
            ordinal: number(bytes, 1)?,
            first: number(bytes, 9)?,
            last: number(bytes, 17)?,
            count: u16::from_be_bytes(bytes.get(25..27)?.try_into().ok()?),
        })
    }
}

/// No chunk that begins at `from` or later has a smaller key.
pub(super) fn chunks_from(from: Key) -> Vec<u8> {
    two(CHUNK, from.ordinal, from.seq)
}

/// The key of a single record.
pub(super) fn tail(key: Key) -> Vec<u8> {
    two(TAIL, key.ordinal, key.seq)
}

/// From the key of a single record; `None` when it is none of ours.
pub(super) fn parse_tail(bytes: &[u8]) -> Option<Key> {
    if bytes.len() != 17 || bytes[0] != TAIL {
        return None;
    }
    Some(Key {
        ordinal: number(bytes, 1)?,
        seq: number(bytes, 9)?,
    })
}

/// The key of a run, a loss or a command id.
pub(super) fn numbered(letter: u8, number: u64) -> Vec<u8> {
    let mut bytes = vec![letter];
    bytes.extend_from_slice(&number.to_be_bytes());
    bytes
}

/// The number in such a key; `None` when it is none of ours.
pub(super) fn parse_numbered(bytes: &[u8]) -> Option<u64> {
    if bytes.len() == 9 {
        number(bytes, 1)
    } else {
        None
    }
}

fn two(letter: u8, a: u64, b: u64) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(27);
    bytes.push(letter);
    bytes.extend_from_slice(&a.to_be_bytes());
    bytes.extend_from_slice(&b.to_be_bytes());
    bytes
}

fn number(bytes: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_be_bytes(bytes.get(at..at + 8)?.try_into().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_come_back_and_sort_as_their_numbers() {
        let chunk = Chunk {
            ordinal: 2,
            first: 300,
            last: 427,
            count: 120,
        };
        assert_eq!(Chunk::parse(&chunk.bytes()), Some(chunk));
        let key = Key {
            ordinal: 2,
            seq: 256,
        };
        assert_eq!(parse_tail(&tail(key)), Some(key));
        assert_eq!(parse_numbered(&numbered(RUN, 7)), Some(7));
        assert!(tail(Key { seq: 255, ..key }) < tail(key));
        assert!(chunks_from(key) < chunk.bytes());
        for length in 0..30 {
            let rubbish = vec![b'c'; length];
            let _ = (
                Chunk::parse(&rubbish),
                parse_tail(&rubbish),
                parse_numbered(&rubbish),
            );
        }
    }
}
