//! What is installed for people beside the program says what the program says: the manual page names
//! every command and option, and the shells complete them; the configuration reference has every key.
//! Decision records have one shape.
#![allow(clippy::expect_used, reason = "a test fails by panicking")]

use std::fs;
use std::path::PathBuf;

use clap::{Command, CommandFactory};
use clap_complete::{Shell, generate};

use nightlight::cli::Cli;

fn packaging(file: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
        .join("packaging")
        .join(file)
}

/// The words of a command line that lead to each command, and the names of its options.
fn commands(command: &Command, path: &str, found: &mut Vec<(String, Vec<String>)>) {
    let options = command
        .get_arguments()
        .filter_map(|argument| argument.get_long().map(str::to_owned))
        .collect();
    found.push((path.to_owned(), options));
    for sub in command.get_subcommands() {
        commands(sub, format!("{path} {}", sub.get_name()).trim(), found);
    }
}

#[test]
fn the_manual_names_every_command_and_option() {
    let page = fs::read_to_string(packaging("nightlight.1")).unwrap();
    let text = page
        .replace("\\-", "-")
        .replace("\\fR", "")
        .replace("\\fB", "");
    let mut found = Vec::new();
    commands(&Cli::command(), "", &mut found);
    assert!(found.len() > 8, "{found:?}");
    for (path, options) in found {
        for word in path.split(' ') {
            assert!(text.contains(word), "the manual has no command {path:?}");
        }
        for option in options {
            let option = format!("--{option}");
            assert!(
                text.contains(&option),
                "the manual has no {option} of {path:?}"
            );
        }
    }
    let version = format!("\"nightlight {}\"", nightlight::VERSION);
    assert!(page.contains(&version), "the manual is of another version");
}

/// `UPDATE=1 cargo test --test manual` writes the files anew after a change of the command line.
#[test]
fn shells_complete_what_the_program_takes() {
    let shells = [
        (Shell::Bash, "completions/nightlight.bash"),
        (Shell::Zsh, "completions/_nightlight"),
        (Shell::Fish, "completions/nightlight.fish"),
    ];
    for (shell, file) in shells {
        let mut script = Vec::new();
        generate(shell, &mut Cli::command(), "nightlight", &mut script);
        let file = packaging(file);
        if std::env::var_os("UPDATE").is_some() {
            fs::write(&file, &script).unwrap();
        }
        let shipped = fs::read(&file).unwrap_or_default();
        assert!(
            shipped == script,
            "{} is of another command line: UPDATE=1 cargo test --test manual",
            file.display()
        );
    }
}

/// `UPDATE=1 cargo test --test manual` writes it anew. The shipped files have each key of the code with its default,
/// and why: tests beside the keys hold them to that. So the reference is made from those.
#[test]
fn the_configuration_reference_is_that_of_the_shipped_files() {
    let mut page = String::from(
        "# Every key of the configuration\n\n\
         Made from the shipped files by a test (`UPDATE=1 cargo test --test manual`); do not edit it here. `nightlight check` and\n\
         `nightlight-server check` tell every problem of a file at once, `nightlight check` also what would be in force.\n\n\
         Durations are texts with a unit (`\"500ms\"`, `\"5s\"`, `\"1h30m\"`). Each key can be set from the environment, which wins: `section.key` is\n\
         `NIGHTLIGHT_SECTION__KEY` for the daemon and `NIGHTLIGHT_SERVER_SECTION__KEY` for the server, in capitals and with two underscores between section and key.\n",
    );
    for (program, file, place) in [
        (
            "nightlight",
            "config/nightlight.toml",
            "/etc/nightlight/nightlight.toml",
        ),
        (
            "nightlight-server",
            "server/config/nightlight-server.toml",
            "/etc/nightlight-server/nightlight-server.toml",
        ),
    ] {
        let text = fs::read_to_string(file).expect("the shipped file");
        page += &format!("\n## {program}: `{place}`\n");
        page += &tables(&text);
    }
    let file = "docs/configuration.md";
    if std::env::var_os("UPDATE").is_some() {
        fs::write(file, &page).expect("writable");
    }
    let shipped = fs::read_to_string(file).unwrap_or_default();
    assert!(
        shipped == page,
        "{file} is not of the shipped files: UPDATE=1 cargo test --test manual"
    );
}

/// A person searches for what the log says: each message that the page explains is one of the sources.
#[test]
fn what_the_troubleshooting_page_quotes_is_what_the_programs_say() {
    let mut code = String::new();
    for folder in ["src", "logic/src", "common/src"] {
        sources(folder.as_ref(), &mut code);
    }
    let page = fs::read_to_string("docs/troubleshooting.md").expect("readable");
    let (_, table) = page
        .split_once("## By what the log says")
        .expect("the part");
    let mut count = 0;
    for line in table.lines().filter(|line| line.starts_with("| `")) {
        let cell = line.split(" | ").next().expect("a first cell");
        for said in cell.split('`').skip(1).step_by(2) {
            assert!(code.contains(said), "no program says {said:?}");
            count += 1;
        }
    }
    assert!(count > 15, "{count}");
}

/// The sources as one text, literals that go over several lines joined.
fn sources(folder: &std::path::Path, code: &mut String) {
    for entry in fs::read_dir(folder).expect("the folder is here") {
        let path = entry.expect("readable").path();
        if path.is_dir() {
            sources(&path, code);
        } else if path.extension().is_some_and(|it| it == "rs") {
            let text = fs::read_to_string(&path).expect("readable");
            let mut parts = text.split("\\\n");
            code.push_str(parts.next().unwrap_or_default());
            for part in parts {
                code.push_str(part.trim_start());
            }
        }
    }
}

/// A table for each section: key, default, and the comment above it.
fn tables(toml: &str) -> String {
    let (mut out, mut comment) = (String::new(), Vec::new());
    for line in toml.lines() {
        if let Some(section) = line.strip_prefix('[') {
            out += &format!(
                "\n### [{}\n\n| key | default | what |\n| --- | --- | --- |\n",
                section
            );
            comment.clear();
        } else if let Some(said) = line.strip_prefix('#') {
            comment.push(said.trim());
        } else if let Some((key, value)) = line.split_once(" = ") {
            let what = comment.join(" ").replace('|', "\\|");
            out += &format!("| `{key}` | `{value}` | {what} |\n");
            comment.clear();
        } else {
            comment.clear();
        }
    }
    out
}

#[test]
fn decision_records_have_one_shape() {
    let mut numbers = Vec::new();
    for entry in fs::read_dir("docs/decisions").expect("the folder is here") {
        let path = entry.expect("readable").path();
        let name = path
            .file_name()
            .expect("a file")
            .to_string_lossy()
            .into_owned();
        let text = fs::read_to_string(&path).expect("readable");
        let number: u32 = name[..4].parse().expect(&name);
        assert!(text.starts_with(&format!("# {number}. ")), "{name}: title");
        let mut rest = text.as_str();
        for part in [
            "\n\nStatus: ",
            "\n\n## Context\n",
            "\n\n## Decision\n",
            "\n\n## Consequences\n",
        ] {
            let (_, behind) = rest
                .split_once(part)
                .unwrap_or_else(|| panic!("{name}: {part:?}"));
            rest = behind;
        }
        numbers.push(number);
    }
    let count = numbers.len();
    numbers.sort_unstable();
    numbers.dedup();
    assert_eq!(numbers.len(), count, "each number once: {numbers:?}");
}
