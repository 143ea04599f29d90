//! The bytes that lie on cards. If a golden test fails, the change is wrong and not the test.

use miniz_oxide::inflate::decompress_to_vec_with_limit;
use uuid::Uuid;

use super::super::chunk::*;
use super::super::format::*;
use crate::logic::Key;
use crate::logic::telemetry::Event;
use crate::logic::telemetry::{Body, Loss, Record};
use crate::logic::time::Stamp;

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
        String::from_utf8(decompress_to_vec_with_limit(&bytes[HEADER..], 1000).unwrap()).unwrap(),
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
