//! The border between the halves, held by reading the sources: `logic` touches nothing of the world,
//! and the files of `io` do not know each other. Clippy holds a part of this; this holds the rest.
#![allow(clippy::expect_used, reason = "a test fails by panicking")]

use std::fs;
use std::path::{Path, PathBuf};

/// What the pure half must not name.
const NOT_IN_LOGIC: [&str; 20] = [
    "tokio",
    "rumqttc",
    "sled",
    "rppal",
    "rustix",
    "tracing",
    "std::fs",
    "std::net",
    "std::thread",
    "std::env",
    "std::process",
    "SystemTime",
    "Instant",
    "Timestamp::now",
    "async fn",
    ".await",
    "Mutex",
    "crate::io",
    "crate::config",
    "crate::daemon",
];

/// What files of `io` may share: the pins and the bus of the board, the threads that wait for devices, and
/// folders and small files that survive a power cut.
const SHARED_IN_IO: [&str; 4] = ["pi", "device_thread", "folder", "small_file"];

#[test]
fn logic_names_nothing_of_the_world() {
    let mut found = Vec::new();
    for (path, text) in sources("logic/src") {
        for (number, line) in code(&text) {
            for word in NOT_IN_LOGIC {
                if names(line, word) {
                    found.push(format!("{}:{number}: {word}", path.display()));
                }
            }
        }
    }
    assert!(found.is_empty(), "{found:#?}");
}

#[test]
fn logic_depends_on_nothing_that_could_touch_the_world() {
    let manifest = fs::read_to_string("logic/Cargo.toml").expect("the package is here");
    let dependencies: Vec<_> = manifest
        .lines()
        .skip_while(|line| *line != "[dependencies]")
        .skip(1)
        .take_while(|line| !line.starts_with('['))
        .filter(|line| !line.starts_with('#') && !line.is_empty())
        .collect();
    // Those that could read a clock, a file or the system's randomness do so only with features that are off.
    for (name, can_be_impure) in [
        ("serde", false),
        ("serde_json", false),
        ("jiff", true),
        ("uuid", true),
        ("fastrand", true),
    ] {
        let line = dependencies
            .iter()
            .find(|line| line.starts_with(&format!("{name} = ")))
            .expect(name);
        let off = line.contains("default-features = false");
        assert!(off || !can_be_impure, "{line}");
        for feature in ["\"std\"", "\"v1\"", "\"v4\"", "\"v7\"", "\"tz"] {
            assert!(!line.contains(feature), "{line}");
        }
    }
    assert_eq!(dependencies.len(), 5, "{dependencies:#?}");
}

#[test]
fn files_of_io_do_not_know_each_other() {
    let mut found = Vec::new();
    for (path, text) in sources("src/io") {
        let own = module(&path);
        for (number, line) in code(&text) {
            for other in line.split("crate::io::").skip(1) {
                let name: String = other
                    .chars()
                    .take_while(|c| c.is_alphanumeric() || *c == '_')
                    .collect();
                if name != own && !SHARED_IN_IO.contains(&name.as_str()) {
                    found.push(format!("{}:{number}: crate::io::{name}", path.display()));
                }
            }
            if line.contains("crate::daemon") {
                found.push(format!("{}:{number}: crate::daemon", path.display()));
            }
        }
    }
    assert!(found.is_empty(), "{found:#?}");
}

#[test]
fn one_call_of_the_system_is_all_that_is_unsafe() {
    let found: Vec<_> = ["src", "common/src"]
        .into_iter()
        .flat_map(sources)
        .collect::<Vec<_>>()
        .iter()
        .flat_map(|(path, text)| {
            code(text)
                .filter(|(_, line)| names(line, "unsafe") || names(line, "unsafe_code"))
                .map(|(_, line)| (path.display().to_string(), line.trim().to_owned()))
                .collect::<Vec<_>>()
        })
        .collect();
    let clock = "common/src/clock.rs".to_owned();
    let expected = [
        (clock.clone(), "unsafe_code,".to_owned()),
        (clock, "unsafe {".to_owned()),
    ];
    assert_eq!(found, expected);
}

#[test]
fn the_words_are_found_where_they_stand() {
    assert!(names("use tokio::sync;", "tokio"));
    assert!(names("let now = std::time::Instant::now();", "Instant"));
    assert!(names("pub async fn run()", "async fn"));
    assert!(!names("let settled = true;", "sled"));
    assert!(!names("an InstantCoffee", "Instant"));
    let text = "//! tokio\nuse a; // sled\n/// rppal\nlet b = 1;";
    let code: Vec<_> = code(text).map(|(number, _)| number).collect();
    assert_eq!(code, [2, 4]);
    let found = sources("logic/src");
    for file in ["lib.rs", "lighting.rs", "delivery/sending.rs"] {
        let path = Path::new("logic/src").join(file);
        assert!(found.iter().any(|(found, _)| *found == path), "{file}");
    }
}

/// Whether `line` names `word`, not as a part of a longer one.
fn names(line: &str, word: &str) -> bool {
    let part = |c: char| c.is_alphanumeric() || c == '_';
    line.match_indices(word).any(|(at, _)| {
        let before = line[..at].chars().next_back();
        let after = line[at + word.len()..].chars().next();
        !before.is_some_and(|c| part(c) && part(word.chars().next().unwrap_or(' ')))
            && !after.is_some_and(part)
    })
}

/// The numbered lines without comments.
fn code(text: &str) -> impl Iterator<Item = (usize, &str)> {
    text.lines()
        .enumerate()
        .map(|(place, line)| (place + 1, line.split("//").next().unwrap_or_default()))
        .filter(|(_, line)| !line.trim().is_empty())
}

/// The file of `io` that a path belongs to: a folder counts as one.
fn module(path: &Path) -> String {
    let inside = path.strip_prefix("src/io").unwrap_or(path);
    let first = inside.iter().next().unwrap_or_default();
    first.to_string_lossy().trim_end_matches(".rs").to_owned()
}

/// All Rust files below a folder of the package.
fn sources(folder: &str) -> Vec<(PathBuf, String)> {
    let mut found = Vec::new();
    let mut folders = vec![PathBuf::from(folder)];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).expect("the package is here") {
            let path = entry.expect("readable").path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                let text = fs::read_to_string(&path).expect("readable");
                found.push((path, text));
            }
        }
    }
    found.sort();
    found
}
