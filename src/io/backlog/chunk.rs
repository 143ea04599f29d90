//! Chunks: records of one run as JSON lines `{"q":seq,"t":stamp,"d":body}`, deflated into a value.
//!
//! A line whose body this version does not know stays as it is through salvage; only reading it has to give it
//! up, as `unreadable`. docs/store-format.md is the page about it. No files and no sled here.

use miniz_oxide::deflate::compress_to_vec;
use miniz_oxide::inflate::decompress_to_vec_with_limit;
use serde::{Deserialize, Serialize};

use crate::logic::telemetry::{Body, Record};
use crate::logic::time::Stamp;

use super::format::{Broken, Header, Kind, MAX_VALUE, pack, unpack};

/// No chunk has more records.
pub(super) const MAX_CHUNK: usize = 128;

const LEVEL: u8 = 6;
/// A chunk inflates to no more than this: a damaged one must not eat the memory.
const MAX_INFLATED: usize = 4 * 1024 * 1024;

/// One record as it lies in a payload.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Line {
    /// Its number in its run.
    pub(super) seq: u64,
    /// Its JSON, without the line feed.
    pub(super) json: String,
}

impl Line {
    /// The record, unless its body is of a kind that this version does not know.
    pub(super) fn record(&self, of: &Header) -> Option<Record> {
        record(of, self.json.as_bytes())
    }
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

/// What most lines are. Read as such it costs a third: a body of any kind is first taken for an event, with
/// copies of all that is in it.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ReadingIn {
    q: u64,
    t: Stamp,
    d: ReadingBody,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ReadingBody {
    light: f64,
    led_on: Option<bool>,
    led_ok: Option<bool>,
}

impl From<ReadingIn> for LineIn {
    fn from(ReadingIn { q, t, d }: ReadingIn) -> LineIn {
        let d = Body::Reading {
            light: d.light,
            led_on: d.led_on,
            led_ok: d.led_ok.unwrap_or(true),
        };
        LineIn { q, t, d }
    }
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
    let line = serde_json::from_slice::<ReadingIn>(json).map(LineIn::from);
    let line = line.or_else(|_| serde_json::from_slice(json)).ok()?;
    (of.first..=of.last).contains(&line.q).then_some(Record {
        run: of.run,
        seq: line.q,
        boot_id: of.boot_id,
        stamp: line.t,
        body: line.d,
    })
}
