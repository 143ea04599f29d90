//! What is installed for people beside the program says what the program says: the manual page names every command
//! and option, the shells complete them, and the unit names folders and credentials that the documentation has.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::fs;
use std::path::PathBuf;

use clap::{Command, CommandFactory};
use clap_complete::{Shell, generate};

use nightlight_server::cli::Cli;

fn here(file: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join(file)
}

#[test]
fn the_manual_names_every_command_and_option() {
    let page = fs::read_to_string(here("packaging/nightlight-server.1")).unwrap();
    let text = page.replace("\\-", "-");
    let program = Cli::command();
    let commands: Vec<&Command> = program.get_subcommands().collect();
    assert!(commands.len() >= 9);
    for command in commands {
        let name = command.get_name();
        assert!(
            text.contains(&format!(".B {name}\n")),
            "the manual has no {name}"
        );
        for option in command
            .get_arguments()
            .filter_map(|argument| argument.get_long())
        {
            assert!(
                text.contains(&format!("--{option}")),
                "the manual has no --{option} of {name}"
            );
        }
    }
    let version = format!("\"nightlight-server {}\"", nightlight_server::VERSION);
    assert!(page.contains(&version), "the manual is of another version");
}

/// `UPDATE=1 cargo test -p nightlight-server --test manual` writes the files again after a change of the command line.
#[test]
fn shells_complete_what_the_program_takes() {
    for (shell, file) in [
        (Shell::Bash, "nightlight-server.bash"),
        (Shell::Zsh, "_nightlight-server"),
        (Shell::Fish, "nightlight-server.fish"),
    ] {
        let mut script = Vec::new();
        generate(shell, &mut Cli::command(), "nightlight-server", &mut script);
        let file = here("packaging/completions").join(file);
        if std::env::var_os("UPDATE").is_some() {
            fs::write(&file, &script).unwrap();
        }
        let shipped = fs::read(&file).unwrap_or_default();
        assert!(
            shipped == script,
            "{} is of another command line: UPDATE=1 cargo test -p nightlight-server --test manual",
            file.display()
        );
    }
}

#[test]
fn the_service_has_the_credentials_that_the_documentation_names() {
    let unit = fs::read_to_string(here("systemd/nightlight-server.service")).unwrap();
    let docs = fs::read_to_string(here("../docs/server.md")).unwrap();
    for name in ["broker", "key", "database", "token"] {
        let name = format!("nightlight-server.{name}");
        assert!(unit.contains(&format!("LoadCredential={name}\n")), "{name}");
        assert!(docs.contains(&format!("`{name}`")), "{name}");
    }
    let shipped = fs::read_to_string(here("config/nightlight-server.toml")).unwrap();
    assert!(
        shipped.contains("sqlite:///var/lib/nightlight-server/")
            && unit.contains("StateDirectory=nightlight-server\n")
    );
    assert!(unit.contains("Restart=always") && unit.contains("RestartPreventExitStatus=78 64"));
}
