//! The bytes of the store: its keys, and values packed and unpacked. Numbers in keys are big-endian, so
//! that their order is the order of the bytes. Pure; `store` calls it.

use miniz_oxide::deflate::compress_to_vec;
use miniz_oxide::inflate::decompress_to_vec_with_limit;
use serde::Serialize;
use serde::de::DeserializeOwned;
use uuid::Uuid;

use super::ledger::{BLOCK, Fault, Loss};
use super::wire::MOST_BYTES;

/// Of a block: 64 records of the greatest length, and their lengths.
const MOST_UNPACKED: usize = BLOCK as usize * (MOST_BYTES + 4);
/// Of compression; higher ones cost much and gain little.
const LEVEL: u8 = 6;

pub(super) fn of_device(device: &str) -> Vec<u8> {
    let mut key = vec![b'd'];
    key.extend(device.as_bytes());
    key
}

pub(super) fn with_device(kind: u8, device: &str) -> Vec<u8> {
    let mut key = vec![kind];
    key.extend(device.as_bytes());
    key.push(0);
    key
}

pub(super) fn of_run(kind: u8, device: &str, run: Uuid) -> Vec<u8> {
    let mut key = with_device(kind, device);
    key.extend(run.as_bytes());
    key
}

pub(super) fn record(device: &str, run: Uuid, seq: u64) -> Vec<u8> {
    let mut key = of_run(b'r', device, run);
    key.extend(seq.to_be_bytes());
    key
}

pub(super) fn of_block(device: &str, run: Uuid, block: u64) -> Vec<u8> {
    let mut key = of_run(b's', device, run);
    key.extend(block.to_be_bytes());
    key
}

pub(super) fn told(device: &str, loss: &Loss) -> Vec<u8> {
    let mut key = of_run(b't', device, loss.of_run);
    for number in [loss.from, loss.to, loss.count] {
        key.extend(number.to_be_bytes());
    }
    key
}

pub(super) fn last_number(key: &[u8]) -> Result<u64, Fault> {
    let number = key.last_chunk::<8>().ok_or_else(damaged)?;
    Ok(u64::from_be_bytes(*number))
}

pub(super) fn unpacked(value: &[u8]) -> Result<Vec<String>, Fault> {
    let bytes = decompress_to_vec_with_limit(value, MOST_UNPACKED).map_err(|_| damaged())?;
    let mut records = Vec::new();
    let mut rest = bytes.as_slice();
    while let Some((length, behind)) = rest.split_first_chunk::<4>() {
        let length = u32::from_be_bytes(*length) as usize;
        let (record, behind) = behind.split_at_checked(length).ok_or_else(damaged)?;
        records.push(text(record)?);
        rest = behind;
    }
    Ok(records)
}

pub(super) fn json(value: &impl Serialize) -> Vec<u8> {
    // Numbers and lists of numbers always have a JSON form.
    serde_json::to_vec(value).unwrap_or_default()
}

pub(super) fn read<T: DeserializeOwned>(value: &[u8]) -> Result<T, Fault> {
    serde_json::from_slice(value).map_err(|_| damaged())
}

pub(super) fn text(bytes: &[u8]) -> Result<String, Fault> {
    String::from_utf8(bytes.to_vec()).map_err(|_| damaged())
}

pub(super) fn damaged() -> Fault {
    "an entry of the store is damaged".into()
}

/// One behind the other, each with its length before it, compressed.
pub(super) fn packed<'a>(records: impl Iterator<Item = &'a [u8]>) -> Vec<u8> {
    let mut bytes = Vec::new();
    for record in records {
        bytes.extend((record.len() as u32).to_be_bytes());
        bytes.extend(record);
    }
    compress_to_vec(&bytes, LEVEL)
}
