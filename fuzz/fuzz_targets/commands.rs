//! The promises about what comes on the commands topic, for libFuzzer; see docs/fuzzing.md.
#![no_main]

#[path = "../../tests/promises/mod.rs"]
mod promises;

libfuzzer_sys::fuzz_target!(|data: &[u8]| promises::commands(data));
