//! The promises about what a broker sends, for libFuzzer; see docs/fuzzing.md.
#![no_main]

#[path = "../../tests/promises/mod.rs"]
mod promises;

libfuzzer_sys::fuzz_target!(|data: &[u8]| promises::packets::packets(data));
