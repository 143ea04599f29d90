//! The bytes of the backlog: values that describe themselves, so that a raw scan of a dead store
//! finds them again without its tree. docs/store-format.md is the page about it, with an example.
//!
//! A value is a header of 72 bytes (big endian) and a payload:
//!
//! | at | bytes | what |
//! | --- | --- | --- |
//! | 0 | 4 | magic `nL\xB5\x10` |
//! | 4 | 1 | version, 2 |
//! | 5 | 1 | [`Kind`] |
//! | 6 | 2 | number of records in a chunk, else 0 |
//! | 8 | 8 | run number |
//! | 16 | 16 | run |
//! | 32 | 16 | boot id |
//! | 48 | 8 | first seq |
//! | 56 | 8 | last seq |
//! | 64 | 4 | length of the payload |
//! | 68 | 4 | CRC-32 (IEEE) of the 68 bytes before and of the payload |
//!
//! The payload of a chunk is in `chunk`; that of the other kinds is one JSON object. No files and no sled here.

use std::borrow::Cow;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::logic::Key;
use crate::logic::telemetry::Loss;

/// No value is longer, in bytes: sled would put it into a file of its own, which is not crash safe.
pub(super) const MAX_VALUE: usize = 7 * 1024;

/// What every value begins with.
pub(super) const MAGIC: [u8; 4] = *b"nL\xB5\x10";

/// Bytes before the payload.
pub(super) const HEADER: usize = 72;

const VERSION: u8 = 2;
/// First letter of the keys of entries: chunks and gaps, in the order in which they are delivered.
pub(super) const ENTRY: u8 = b'e';
/// First letter of the keys of runs.
pub(super) const RUN: u8 = b'r';

/// What a value holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// One record, plain: only stores of version 1 have it, and only a salvage reads it.
    Single = 1,
    /// Records of one run, deflated.
    Chunk = 2,
    /// What is known of a run.
    Run = 3,
    /// Records of one run that were given up.
    Gap = 7,
}

/// What stands before the payload.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Header {
    /// What the payload holds.
    pub(super) kind: Kind,
    /// Records in it; 0 for what is not records.
    pub(super) count: u16,
    /// Number of the run.
    pub(super) run_number: u64,
    /// The run.
    pub(super) run: Uuid,
    /// The start of the machine in which the run lived.
    pub(super) boot_id: Uuid,
    /// First seq.
    pub(super) first: u64,
    /// Last seq.
    pub(super) last: u64,
}

/// Why bytes are not a value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Broken {
    /// Too short, no magic, a length that cannot be, or a wrong checksum.
    Damaged,
    /// Of a version of the format, or of a kind, that this program does not know.
    Unknown,
}

impl Header {
    /// Of chunks of a run; which records are in one is still open.
    pub(super) fn of_chunks(run_number: u64, run: Uuid, boot_id: Uuid) -> Header {
        Header {
            kind: Kind::Chunk,
            count: 0,
            run_number,
            run,
            boot_id,
            first: 0,
            last: 0,
        }
    }

    /// The key of the entry.
    pub(super) fn key(&self) -> Key {
        Key {
            run_number: self.run_number,
            seq: self.first,
        }
    }
}

#[derive(Serialize, Deserialize)]
struct Gap<'a> {
    count: u64,
    reason: Cow<'a, str>,
}

/// A value of any kind.
pub(super) fn pack(header: &Header, payload: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(HEADER + payload.len());
    bytes.extend_from_slice(&MAGIC);
    bytes.push(VERSION);
    bytes.push(header.kind as u8);
    bytes.extend_from_slice(&header.count.to_be_bytes());
    bytes.extend_from_slice(&header.run_number.to_be_bytes());
    bytes.extend_from_slice(header.run.as_bytes());
    bytes.extend_from_slice(header.boot_id.as_bytes());
    bytes.extend_from_slice(&header.first.to_be_bytes());
    bytes.extend_from_slice(&header.last.to_be_bytes());
    bytes.extend_from_slice(&(payload.len() as u32).to_be_bytes());
    let crc = checksum(&bytes, payload);
    bytes.extend_from_slice(&crc.to_be_bytes());
    bytes.extend_from_slice(payload);
    bytes
}

/// A value whose payload is `what` as JSON.
pub(super) fn pack_json<T: Serialize>(header: &Header, what: &T) -> Vec<u8> {
    // Plain structs into memory: no way to fail.
    pack(header, &serde_json::to_vec(what).unwrap_or_default())
}

/// Records that were given up, as a value.
pub(super) fn pack_gap(run_number: u64, loss: &Loss) -> Vec<u8> {
    let header = Header {
        kind: Kind::Gap,
        count: 0,
        run_number,
        run: loss.of_run,
        boot_id: Uuid::nil(),
        first: loss.from_seq,
        last: loss.to_seq,
    };
    let gap = Gap {
        count: loss.count,
        reason: loss.reason.as_str().into(),
    };
    pack_json(&header, &gap)
}

/// Records that were given up.
///
/// # Errors
/// When the bytes are damaged or no gap.
pub(super) fn unpack_gap(bytes: &[u8]) -> Result<Loss, Broken> {
    let (header, gap): (_, Gap<'_>) = unpack_json(bytes)?;
    if header.kind != Kind::Gap || header.last < header.first {
        return Err(Broken::Unknown);
    }
    Ok(Loss {
        of_run: header.run,
        from_seq: header.first,
        to_seq: header.last,
        count: gap.count,
        reason: gap.reason.into_owned(),
    })
}

/// The key of the entry whose first record is `key`. Numbers are big endian, so that sled's order is ours.
pub(super) fn entry_key(key: Key) -> Vec<u8> {
    let mut bytes = vec![ENTRY];
    bytes.extend_from_slice(&key.run_number.to_be_bytes());
    bytes.extend_from_slice(&key.seq.to_be_bytes());
    bytes
}

/// From the key of an entry; `None` when it is none of ours.
pub(super) fn parse_entry_key(bytes: &[u8]) -> Option<Key> {
    let (&[ENTRY], numbers) = bytes.split_at_checked(1)? else {
        return None;
    };
    let (run_number, seq) = numbers.split_first_chunk::<8>()?;
    Some(Key {
        run_number: u64::from_be_bytes(*run_number),
        seq: u64::from_be_bytes(seq.try_into().ok()?),
    })
}

/// The key of what is known of a run.
pub(super) fn run_key(run_number: u64) -> Vec<u8> {
    let mut bytes = vec![RUN];
    bytes.extend_from_slice(&run_number.to_be_bytes());
    bytes
}

/// The bytes that the value at the start of `bytes` claims to have, if its header looks like one.
pub(super) fn claimed_length(bytes: &[u8]) -> Option<usize> {
    if bytes.len() < HEADER || !bytes.starts_with(&MAGIC) {
        return None;
    }
    let length = HEADER + u32::from_be_bytes(array(bytes, 64)) as usize;
    (length <= MAX_VALUE).then_some(length)
}

/// The header of a value, if it looks like one: nothing is checked.
pub(super) fn peek(bytes: &[u8]) -> Option<Header> {
    if bytes.len() < HEADER || !bytes.starts_with(&MAGIC) {
        return None;
    }
    Some(Header {
        kind: match bytes[5] {
            1 => Kind::Single,
            2 => Kind::Chunk,
            3 => Kind::Run,
            7 => Kind::Gap,
            _ => return None,
        },
        count: u16::from_be_bytes(array(bytes, 6)),
        run_number: u64::from_be_bytes(array(bytes, 8)),
        run: Uuid::from_bytes(array(bytes, 16)),
        boot_id: Uuid::from_bytes(array(bytes, 32)),
        first: u64::from_be_bytes(array(bytes, 48)),
        last: u64::from_be_bytes(array(bytes, 56)),
    })
}

/// Header and payload of a value.
///
/// # Errors
/// When the bytes are damaged or of an unknown version or kind.
pub(super) fn unpack(bytes: &[u8]) -> Result<(Header, &[u8]), Broken> {
    if bytes.len() < HEADER || !bytes.starts_with(&MAGIC) {
        return Err(Broken::Damaged);
    }
    let payload = &bytes[HEADER..];
    if payload.len() != u32::from_be_bytes(array(bytes, 64)) as usize
        || checksum(&bytes[..HEADER - 4], payload) != u32::from_be_bytes(array(bytes, 68))
    {
        return Err(Broken::Damaged);
    }
    if !(1..=VERSION).contains(&bytes[4]) {
        return Err(Broken::Unknown);
    }
    let header = peek(bytes).ok_or(Broken::Unknown)?;
    Ok((header, payload))
}

/// The JSON payload of a value that is not records.
///
/// # Errors
/// When the bytes are damaged or not such a value.
pub(super) fn unpack_json<'a, T: Deserialize<'a>>(bytes: &'a [u8]) -> Result<(Header, T), Broken> {
    let (header, payload) = unpack(bytes)?;
    let what = serde_json::from_slice(payload).map_err(|_| Broken::Unknown)?;
    Ok((header, what))
}

fn checksum(header: &[u8], payload: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(header);
    hasher.update(payload);
    hasher.finalize()
}

/// The `N` bytes at `at`; zeros past the end, which no caller asks for.
fn array<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
    bytes
        .get(at..at + N)
        .and_then(|slice| slice.try_into().ok())
        .unwrap_or([0; N])
}
