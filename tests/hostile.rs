//! What the fuzzer found worth keeping, and some random bytes: the promises of `promises/mod.rs` hold.
//! How the fuzzer is run, and what it found: docs/fuzzing.md.
#![allow(clippy::expect_used, reason = "a test fails by panicking")]

mod promises;

use std::fs;
use std::path::Path;

use proptest::prelude::*;

/// Every file of a corpus; an empty folder would test nothing.
fn replay(name: &str, promise: fn(&[u8])) {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/corpus")
        .join(name);
    let mut files = 0;
    for entry in fs::read_dir(&folder).expect("the corpus") {
        let path = entry.expect("an entry").path();
        println!("{}", path.display());
        promise(&fs::read(path).expect("read"));
        files += 1;
    }
    assert!(files >= 10, "{files} files in {}", folder.display());
}

#[test]
fn the_corpus_of_commands_breaks_nothing() {
    replay("commands", promises::commands);
}

#[test]
fn the_corpus_of_acks_breaks_nothing() {
    replay("acks", promises::acks);
}

#[test]
fn the_corpus_of_packets_breaks_nothing() {
    replay("packets", promises::packets::packets);
}

proptest! {
    #![proptest_config(ProptestConfig {
        failure_persistence: None,
        ..ProptestConfig::with_cases(300)
    })]

    #[test]
    fn no_bytes_break_anything(data in proptest::collection::vec(any::<u8>(), 0..200)) {
        promises::commands(&data);
        promises::acks(&data);
        promises::packets::packets(&data);
    }
}
