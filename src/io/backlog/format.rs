//! The bytes of the backlog: values that describe themselves, so that a raw scan of a dead store
//! finds them again without its tree.
//!
//! A value is a header of 72 bytes (big endian) and a payload:
//!
//! | at | bytes | what |
//! | --- | --- | --- |
//! | 0 | 4 | magic `nL\xB5\x10` |
//! | 4 | 1 | version, 1 |
//! | 5 | 1 | [`Kind`] |
//! | 6 | 2 | count of records |
//! | 8 | 8 | ordinal of the run |
//! | 16 | 16 | run |
//! | 32 | 16 | boot id |
//! | 48 | 8 | first seq |
//! | 56 | 8 | last seq |
//! | 64 | 4 | length of the payload |
//! | 68 | 4 | CRC-32 (IEEE) of the 68 bytes before and of the payload |
//!
//! The payload of records is JSON lines `{"q":seq,"t":stamp,"d":body}`, deflated in a chunk; that of
//! the other kinds is one JSON value. A line whose body this version does not know stays as it is
//! through sealing, thinning and salvage; only a fetch has to give it up, as `unreadable`.
//! No files and no sled here; `store`, `salvage` and `inspect` call it.

use miniz_oxide::deflate::compress_to_vec;
use miniz_oxide::inflate::decompress_to_vec_with_limit;
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use uuid::Uuid;

use crate::logic::telemetry::{Body, Record};
use crate::logic::time::Stamp;

/// No value is longer, in bytes: sled would put it into a file of its own, which is not crash safe.
pub(super) const MAX_VALUE: usize = 7 * 1024;

/// Most records in a chunk; half of it is the least when there are enough and they fit.
pub(super) const MAX_CHUNK: usize = 128;

/// What every value begins with.
pub(super) const MAGIC: [u8; 4] = *b"nL\xB5\x10";

/// Bytes before the payload.
pub(super) const HEADER: usize = 72;

const VERSION: u8 = 1;
const LEVEL: u8 = 6;
/// A chunk inflates to no more than this: a damaged one must not eat the memory.
const MAX_INFLATED: usize = 4 * 1024 * 1024;

/// What a value holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// One record, plain.
    Single = 1,
    /// Records of one run, deflated.
    Chunk = 2,
    /// What is known of a run.
    Run = 3,
    /// A loss not yet told.
    Loss = 4,
    /// The id of a command.
    Command = 5,
    /// The account of the whole store.
    State = 6,
}

/// What stands before the payload.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Header {
    /// What the payload holds.
    pub(super) kind: Kind,
    /// Records in it; 0 for what is not records.
    pub(super) count: u16,
    /// Ordinal of the run.
    pub(super) ordinal: u64,
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
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Line {
    /// Its number in its run.
    pub(super) seq: u64,
    /// Its JSON, without the line feed.
    pub(super) json: String,
    /// The record, unless its body is of a kind that this version does not know.
    pub(super) record: Option<Record>,
}

/// The records of a value, ascending by seq.
#[derive(Debug, Clone, PartialEq, Default)]
pub(super) struct Lines {
    /// Those with a seq.
    pub(super) lines: Vec<Line>,
    /// Those of which not even that could be read.
    pub(super) nameless: u64,
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
    bytes.extend_from_slice(&header.ordinal.to_be_bytes());
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

/// One record.
pub(super) fn pack_single(ordinal: u64, record: &Record) -> Vec<u8> {
    let header = Header {
        kind: Kind::Single,
        count: 1,
        ordinal,
        run: record.run,
        boot_id: record.boot_id,
        first: record.seq,
        last: record.seq,
    };
    pack_json(
        &header,
        &LineOut {
            q: record.seq,
            t: record.stamp,
            d: &record.body,
        },
    )
}

/// As many of `lines` (ascending, of the run in `of`) as fit in one chunk of at most [`MAX_CHUNK`]
/// records and [`MAX_VALUE`] bytes, and the header it got. `None` when there is none, or when the
/// first alone is too long.
pub(super) fn pack_chunk(of: &Header, lines: &[Line]) -> Option<(Header, Vec<u8>)> {
    let mut count = lines.len().min(MAX_CHUNK);
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

/// The bytes that the value at the start of `bytes` claims to have, if its header looks like one.
pub(super) fn claimed_length(bytes: &[u8]) -> Option<usize> {
    if bytes.len() < HEADER || !bytes.starts_with(&MAGIC) {
        return None;
    }
    let length = HEADER + u32::from_be_bytes(array(bytes, 64)) as usize;
    (length <= MAX_VALUE).then_some(length)
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
    if bytes[4] != VERSION {
        return Err(Broken::Unknown);
    }
    let kind = match bytes[5] {
        1 => Kind::Single,
        2 => Kind::Chunk,
        3 => Kind::Run,
        4 => Kind::Loss,
        5 => Kind::Command,
        6 => Kind::State,
        _ => return Err(Broken::Unknown),
    };
    let header = Header {
        kind,
        count: u16::from_be_bytes(array(bytes, 6)),
        ordinal: u64::from_be_bytes(array(bytes, 8)),
        run: Uuid::from_bytes(array(bytes, 16)),
        boot_id: Uuid::from_bytes(array(bytes, 32)),
        first: u64::from_be_bytes(array(bytes, 48)),
        last: u64::from_be_bytes(array(bytes, 56)),
    };
    Ok((header, payload))
}

/// The JSON payload of a value that is not records.
///
/// # Errors
/// When the bytes are damaged or not such a value.
pub(super) fn unpack_json<T: DeserializeOwned>(bytes: &[u8]) -> Result<(Header, T), Broken> {
    let (header, payload) = unpack(bytes)?;
    let what = serde_json::from_slice(payload).map_err(|_| Broken::Unknown)?;
    Ok((header, what))
}

/// The records of a single or a chunk.
///
/// # Errors
/// When the bytes are damaged, unknown or no records.
pub(super) fn unpack_lines(bytes: &[u8]) -> Result<(Header, Lines), Broken> {
    let (header, payload) = unpack(bytes)?;
    let inflated;
    let plain = match header.kind {
        Kind::Single => payload,
        Kind::Chunk => {
            inflated =
                decompress_to_vec_with_limit(payload, MAX_INFLATED).map_err(|_| Broken::Damaged)?;
            &inflated
        }
        Kind::Run | Kind::Loss | Kind::Command | Kind::State => return Err(Broken::Unknown),
    };
    let mut lines = Lines::default();
    for json in plain.split(|byte| *byte == b'\n') {
        if let Some(line) = read_line(&header, json) {
            lines.lines.push(line);
        }
    }
    lines.lines.sort_by_key(|line| line.seq);
    lines.lines.dedup_by_key(|line| line.seq);
    lines.nameless = u64::from(header.count).saturating_sub(lines.lines.len() as u64);
    Ok((header, lines))
}

fn read_line(header: &Header, json: &[u8]) -> Option<Line> {
    let text = std::str::from_utf8(json).ok()?;
    let (seq, record) = match serde_json::from_str::<LineIn>(text) {
        Ok(line) => (
            line.q,
            Some(Record {
                run: header.run,
                seq: line.q,
                boot_id: header.boot_id,
                stamp: line.t,
                body: line.d,
            }),
        ),
        Err(_) => (serde_json::from_str::<LineSeq>(text).ok()?.q, None),
    };
    let inside = (header.first..=header.last).contains(&seq);
    inside.then(|| Line {
        seq,
        json: text.to_owned(),
        record,
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
        records
            .iter()
            .map(|record| {
                let bytes = pack_single(3, record);
                unpack_lines(&bytes).unwrap().1.lines.remove(0)
            })
            .collect()
    }

    fn of() -> Header {
        unpack(&pack_single(3, &reading(1, 1.0))).unwrap().0
    }

    /// If this fails, the change is wrong and not the test: these bytes lie on cards.
    #[test]
    fn the_bytes_of_a_single() {
        let bytes = pack_single(3, &reading(7, 243.0));
        let mut expected = Vec::new();
        expected.extend_from_slice(b"nL\xB5\x10\x01\x01\x00\x01");
        expected.extend_from_slice(b"\0\0\0\0\0\0\0\x03");
        expected.extend_from_slice(b"\0\0\0\0\0\0\0\0\0\0\0\0\0\0\x0b\x7e");
        expected.extend_from_slice(b"\0\0\0\0\0\0\0\0\0\0\0\0\0\0\xb0\x07");
        expected.extend_from_slice(b"\0\0\0\0\0\0\0\x07");
        expected.extend_from_slice(b"\0\0\0\0\0\0\0\x07");
        expected.extend_from_slice(b"\0\0\0\x51");
        expected.extend_from_slice(b"\x96\x70\xfe\x97");
        expected.extend_from_slice(
            br#"{"q":7,"t":{"b":7000,"w":1795194191250,"s":true},"d":{"light":243,"led_on":true}}"#,
        );
        assert_eq!(bytes, expected);
        let (_, back) = unpack_lines(&expected).unwrap();
        assert_eq!(back.lines[0].record, Some(reading(7, 243.0)));
    }

    /// The deflated bytes may change with the compressor; what they inflate to may not.
    #[test]
    fn the_header_and_the_plain_payload_of_a_chunk() {
        let records = [reading(7, 243.0), reading(9, 0.5)];
        let (_, bytes) = pack_chunk(&of(), &lines(&records)).unwrap();
        assert_eq!(&bytes[..8], b"nL\xB5\x10\x01\x02\x00\x02");
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
        let back: Vec<_> = back.lines.into_iter().filter_map(|l| l.record).collect();
        assert_eq!(back, records);
    }

    #[test]
    fn a_light_comes_back_to_the_last_bit() {
        let mut random = fastrand::Rng::with_seed(3);
        for seq in 1..=2000 {
            let light = random.f64() * 10f64.powi(random.i32(-9..9));
            let (_, lines) = unpack_lines(&pack_single(3, &reading(seq, light))).unwrap();
            assert_eq!(lines.lines[0].record, Some(reading(seq, light)));
        }
    }

    #[test]
    fn any_flipped_bit_is_noticed() {
        let good = pack_single(3, &reading(7, 243.0));
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
                record: None,
            },
        );
        let (_, bytes) = pack_chunk(&of(), &all).unwrap();
        let (_, back) = unpack_lines(&bytes).unwrap();
        assert_eq!(back.lines, all);
        assert_eq!(back.nameless, 0);
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
        let (header, bytes) = pack_chunk(&of(), &lines(&records)).unwrap();
        assert!(bytes.len() <= MAX_VALUE);
        assert!(header.count < 64 && header.count > 0);
    }
}
