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
//! The payload of a chunk is JSON lines `{"q":seq,"t":stamp,"d":body}`, deflated; that of the other kinds
//! is one JSON object. A line whose body this version does not know stays as it is through salvage; only
//! reading it has to give it up, as `unreadable`. No files and no sled here.

use std::borrow::Cow;

use miniz_oxide::deflate::compress_to_vec;
use miniz_oxide::inflate::decompress_to_vec_with_limit;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::logic::Key;
use crate::logic::telemetry::{Body, Loss, Record};
use crate::logic::time::Stamp;

/// No value is longer, in bytes: sled would put it into a file of its own, which is not crash safe.
pub(super) const MAX_VALUE: usize = 7 * 1024;

/// No chunk has more records.
pub(super) const MAX_CHUNK: usize = 128;

/// What every value begins with.
pub(super) const MAGIC: [u8; 4] = *b"nL\xB5\x10";

/// Bytes before the payload.
pub(super) const HEADER: usize = 72;

const VERSION: u8 = 2;
const LEVEL: u8 = 6;
/// A chunk inflates to no more than this: a damaged one must not eat the memory.
const MAX_INFLATED: usize = 4 * 1024 * 1024;

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

/// One record as it lies in a payload.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Line {
    /// Its number in its run.
    pub(super) seq: u64,
    /// Its JSON, without the line feed.
    pub(super) json: String,
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

impl Line {
    /// The record, unless its body is of a kind that this version does not know.
    pub(super) fn record(&self, of: &Header) -> Option<Record> {
        record(of, self.json.as_bytes())
    }
}

#[derive(Serialize, Deserialize)]
struct Gap<'a> {
    count: u64,
    reason: Cow<'a, str>,
}

#[derive(Serialize)]
struct LineOut<'a> {
    q: u64,
    t: Stamp,
    d: &'a Body,
}

#[derive(Deserialize)]
struct LineIn {
    q: u64,
    t: Stamp,
    d: Body,
}

#[derive(Deserialize)]
struct LineSeq {
    q: u64,
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

/// One record as it lies in the payload of a chunk.
pub(super) fn line(record: &Record) -> Line {
    let out = LineOut {
        q: record.seq,
        t: record.stamp,
        d: &record.body,
    };
    Line {
        seq: record.seq,
        // Plain structs into memory: no way to fail.
        json: serde_json::to_string(&out).unwrap_or_default(),
    }
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

/// As many of `lines` (ascending, of the run in `of`) as fit in one chunk of at most `most` records and
/// [`MAX_VALUE`] bytes, and the header it got. `None` when there is none, or when the first alone is too
/// long.
pub(super) fn pack_chunk(of: &Header, lines: &[Line], most: usize) -> Option<(Header, Vec<u8>)> {
    let mut count = lines.len().min(most.clamp(1, MAX_CHUNK));
    while count > 0 {
        let (first, last) = (lines.first()?.seq, lines.get(count - 1)?.seq);
        let mut plain = String::new();
        for line in &lines[..count] {
            plain.push_str(&line.json);
            plain.push('\n');
        }
        let header = Header {
            kind: Kind::Chunk,
            count: count as u16,
            first,
            last,
            ..*of
        };
        let bytes = pack(&header, &compress_to_vec(plain.as_bytes(), LEVEL));
        if bytes.len() <= MAX_VALUE {
            return Some((header, bytes));
        }
        count /= 2;
    }
    None
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

/// The lines of a chunk, ascending. There are fewer than the header says where not even the seq of one can be
/// read.
///
/// # Errors
/// When the bytes are damaged, unknown or no records.
pub(super) fn unpack_lines(bytes: &[u8]) -> Result<(Header, Vec<Line>), Broken> {
    let (header, plain) = inflate(bytes)?;
    let line = |json: &[u8]| {
        let json = std::str::from_utf8(json).ok()?;
        let seq = serde_json::from_str::<LineSeq>(json).ok()?.q;
        let inside = (header.first..=header.last).contains(&seq);
        inside.then(|| Line {
            seq,
            json: json.to_owned(),
        })
    };
    let mut lines: Vec<Line> = json_lines(&plain).filter_map(line).collect();
    lines.sort_by_key(|line| line.seq);
    lines.dedup_by_key(|line| line.seq);
    Ok((header, lines))
}

/// The records of a chunk, ascending.
///
/// # Errors
/// When one of them cannot be read.
pub(super) fn unpack_records(bytes: &[u8]) -> Result<Vec<Record>, Broken> {
    let (header, plain) = inflate(bytes)?;
    let mut records = Vec::with_capacity(usize::from(header.count));
    for json in json_lines(&plain) {
        let record = record(&header, json).ok_or(Broken::Unknown)?;
        if records
            .last()
            .is_some_and(|last: &Record| last.seq >= record.seq)
        {
            return Err(Broken::Unknown);
        }
        records.push(record);
    }
    match records.len() == usize::from(header.count) {
        true => Ok(records),
        false => Err(Broken::Unknown),
    }
}

fn inflate(bytes: &[u8]) -> Result<(Header, Vec<u8>), Broken> {
    let (header, payload) = unpack(bytes)?;
    let plain = match header.kind {
        Kind::Single => payload.to_vec(),
        Kind::Chunk => {
            decompress_to_vec_with_limit(payload, MAX_INFLATED).map_err(|_| Broken::Damaged)?
        }
        Kind::Run | Kind::Gap => return Err(Broken::Unknown),
    };
    Ok((header, plain))
}

fn json_lines(plain: &[u8]) -> impl Iterator<Item = &[u8]> {
    plain
        .split(|byte| *byte == b'\n')
        .filter(|line| !line.is_empty())
}

fn record(of: &Header, json: &[u8]) -> Option<Record> {
    let line: LineIn = serde_json::from_slice(json).ok()?;
    (of.first..=of.last).contains(&line.q).then_some(Record {
        run: of.run,
        seq: line.q,
        boot_id: of.boot_id,
        stamp: line.t,
        body: line.d,
    })
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::logic::telemetry::Event;

    fn reading(seq: u64, light: f64) -> Record {
        Record {
            run: Uuid::from_u128(0x0b7e),
            seq,
            boot_id: Uuid::from_u128(0xb007),
            stamp: Stamp {
                boot_ms: 1000 * seq,
                wall_ms: 1_795_194_191_250,
                synced: true,
            },
            body: Body::Reading {
                light,
                led_on: Some(true),
                led_ok: true,
            },
        }
    }

    fn lines(records: &[Record]) -> Vec<Line> {
        records.iter().map(line).collect()
    }

    fn of() -> Header {
        Header::of_chunks(3, Uuid::from_u128(0x0b7e), Uuid::from_u128(0xb007))
    }

    fn loss() -> Loss {
        Loss {
            of_run: Uuid::from_u128(0x0b7e),
            from_seq: 812,
            to_seq: 1034,
            count: 223,
            reason: "backlog-full".into(),
        }
    }

    /// If this fails, the change is wrong and not the test: these bytes lie on cards.
    #[test]
    fn the_bytes_of_a_gap_and_the_keys() {
        let bytes = pack_gap(3, &loss());
        let mut expected = Vec::new();
        expected.extend_from_slice(b"nL\xB5\x10\x02\x07\x00\x00");
        expected.extend_from_slice(b"\0\0\0\0\0\0\0\x03");
        expected.extend_from_slice(b"\0\0\0\0\0\0\0\0\0\0\0\0\0\0\x0b\x7e");
        expected.extend_from_slice(&[0; 16]);
        expected.extend_from_slice(b"\0\0\0\0\0\0\x03\x2c");
        expected.extend_from_slice(b"\0\0\0\0\0\0\x04\x0a");
        expected.extend_from_slice(b"\0\0\0\x25");
        expected.extend_from_slice(b"\x35\x91\xe4\x1f");
        expected.extend_from_slice(br#"{"count":223,"reason":"backlog-full"}"#);
        assert_eq!(bytes, expected);
        assert_eq!(unpack_gap(&expected), Ok(loss()));
        let key = Key {
            run_number: 3,
            seq: 812,
        };
        assert_eq!(entry_key(key), b"e\0\0\0\0\0\0\0\x03\0\0\0\0\0\0\x03\x2c");
        assert_eq!(parse_entry_key(&entry_key(key)), Some(key));
        assert_eq!(run_key(3), b"r\0\0\0\0\0\0\0\x03");
        for length in 0..30 {
            let _ = parse_entry_key(&vec![b'e'; length]);
        }
    }

    /// The deflated bytes may change with the compressor; what they inflate to may not.
    #[test]
    fn the_header_and_the_plain_payload_of_a_chunk() {
        let records = [reading(7, 243.0), reading(9, 0.5)];
        let (_, bytes) = pack_chunk(&of(), &lines(&records), MAX_CHUNK).unwrap();
        assert_eq!(&bytes[..8], b"nL\xB5\x10\x02\x02\x00\x02");
        assert_eq!(&bytes[8..16], b"\0\0\0\0\0\0\0\x03");
        assert_eq!(&bytes[48..64], b"\0\0\0\0\0\0\0\x07\0\0\0\0\0\0\0\x09");
        assert_eq!(
            String::from_utf8(decompress_to_vec_with_limit(&bytes[HEADER..], 1000).unwrap())
                .unwrap(),
            concat!(
                r#"{"q":7,"t":{"b":7000,"w":1795194191250,"s":true},"d":{"light":243,"led_on":true}}"#,
                "\n",
                r#"{"q":9,"t":{"b":9000,"w":1795194191250,"s":true},"d":{"light":0.5,"led_on":true}}"#,
                "\n"
            )
        );
        let (header, back) = unpack_lines(&bytes).unwrap();
        assert_eq!((header.first, header.last, header.count), (7, 9, 2));
        assert_eq!(back, lines(&records));
        assert_eq!(unpack_records(&bytes), Ok(records.to_vec()));
    }

    #[test]
    fn a_light_comes_back_to_the_last_bit() {
        let mut random = fastrand::Rng::with_seed(3);
        for seq in 1..=2000 {
            let light = random.f64() * 10f64.powi(random.i32(-9..9));
            let records = vec![reading(seq, light)];
            let (_, bytes) = pack_chunk(&of(), &lines(&records), MAX_CHUNK).unwrap();
            assert_eq!(unpack_records(&bytes), Ok(records));
        }
    }

    #[test]
    fn any_flipped_bit_is_noticed() {
        let good = pack_gap(3, &loss());
        for at in 0..good.len() * 8 {
            let mut bad = good.clone();
            bad[at / 8] ^= 1 << (at % 8);
            assert_eq!(unpack(&bad), Err(Broken::Damaged), "bit {at}");
        }
        for length in 0..good.len() {
            assert_eq!(unpack(&good[..length]), Err(Broken::Damaged));
        }
    }

    #[test]
    fn a_body_of_a_later_version_keeps_its_line_and_harms_no_other() {
        let mut all = lines(&[reading(1, 1.0), reading(3, 3.0)]);
        let json = r#"{"q":2,"t":{"b":1,"w":2},"d":{"event":"eclipse","moon":true}}"#;
        all.insert(
            1,
            Line {
                seq: 2,
                json: json.to_owned(),
            },
        );
        let (_, bytes) = pack_chunk(&of(), &all, MAX_CHUNK).unwrap();
        let (header, back) = unpack_lines(&bytes).unwrap();
        assert_eq!(back, all);
        assert_eq!(back[0].record(&header), Some(reading(1, 1.0)));
        assert_eq!(back[1].record(&header), None);
        assert_eq!(unpack_records(&bytes), Err(Broken::Unknown));
    }

    #[test]
    fn a_chunk_of_long_records_is_cut_to_what_fits() {
        let mut random = fastrand::Rng::with_seed(1);
        let records: Vec<_> = (1..=128)
            .map(|seq| Record {
                body: Body::Event(Event::Sensor {
                    ok: false,
                    why: (0..300).map(|_| random.alphanumeric()).collect(),
                }),
                ..reading(seq, 0.0)
            })
            .collect();
        let (header, bytes) = pack_chunk(&of(), &lines(&records), MAX_CHUNK).unwrap();
        assert!(bytes.len() <= MAX_VALUE);
        assert!(header.count < 64 && header.count > 0);
    }
}
