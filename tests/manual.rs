//! What is installed for people beside the program says what the program says: the manual page names
//! every command and option, and the shells complete them. Decision records have one shape.

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
