//! The program: arguments -> log -> config -> run -> exit code.
//!
//! Decides nothing but the exit code; the commands themselves live in the library.

use std::io::{IsTerminal, Write};
use std::path::Path;
use std::pin::Pin;
use std::process::ExitCode;
use std::time::Duration;

use nightlight::cli::{self, Cli, Command, Exit};
use nightlight::config::{Config, ConfigError};
use nightlight::io::backlog::inspect;
use nightlight::io::clock::{BUILT_MS, Clock};
use nightlight::io::rules::KeptRules;
use nightlight::io::state_lock::{self, NotLocked, RunLock};
use nightlight::io::web;
use nightlight::logic::words;
use nightlight::{daemon, doctor, logic, manual};
use nightlight_common::{log, signals};
use tracing_subscriber::filter::LevelFilter;

/// How often `status --watch` asks.
const WATCH_EVERY: Duration = Duration::from_secs(1);

fn main() -> ExitCode {
    let cli = match Cli::read(std::env::args_os()) {
        Ok(cli) => cli,
        Err(error) => {
            // Nobody is left to tell when the terminal is gone.
            let _ = error.print();
            return cli::exit_of(&error).into();
        }
    };
    // The demonstration has a screen of its own, which the usual lines would drown.
    let usual = match cli.command {
        Command::Demo(cli::Demo { agent: None, .. }) | Command::Drill(_) | Command::Doctor(_) => {
            LevelFilter::WARN
        }
        _ => LevelFilter::INFO,
    };
    log::start("NIGHTLIGHT_LOG", usual);
    carry_out(cli.command).into()
}

fn carry_out(command: Command) -> Exit {
    match command {
        Command::Run(file) => match load(file.config.as_deref()) {
            Ok(config) => run(config, Clock::new()),
            Err(error) => refused(&error),
        },
        Command::Demo(cli::Demo {
            agent: Some(folder),
            ..
        }) => {
            let files = nightlight::demo::AgentFiles::of(&folder);
            match load(Some(&files.config)) {
                Ok(config) => run(config, Clock::moved_by(files.clock)),
                Err(error) => refused(&error),
            }
        }
        Command::Drill(how) => match load(how.file.config.as_deref()) {
            Ok(config) => nightlight::demo::drill::run(&how, &config),
            Err(error) => refused(&error),
        },
        Command::Demo(demo) => nightlight::demo::run(&demo),
        Command::Check(file) => match load(file.config.as_deref()) {
            Ok(config) => checked(&config),
            Err(error) => refused(&error),
        },
        Command::Backlog(how) => look_into(&how),
        Command::Doctor(file) => {
            let report = doctor::examine(load(file.config.as_deref()));
            // A closed pipe takes nothing from the result.
            let _ = std::io::stdout().write_all(report.to_string().as_bytes());
            report.exit()
        }
        Command::Sensor(cli::Sensor::Read(how)) => manually(how.file, async |config, stop| {
            manual::read(&config, how.watch, stop).await
        }),
        Command::Led(how) => {
            let (file, how) = match how {
                cli::Led::On(file) => (file, manual::Switch::On),
                cli::Led::Off(file) => (file, manual::Switch::Off),
                cli::Led::Blink(file) => (file, manual::Switch::Blink),
            };
            manually(file, async |config, stop| {
                manual::switch(&config, how, stop).await
            })
        }
        Command::Status(status) => match load(status.file.config.as_deref()) {
            Ok(config) => self::status(&config, status.json, status.watch),
            Err(error) => refused(&error),
        },
    }
}

/// Does something with a device, until it is done or SIGTERM or SIGINT comes.
fn manually<S>(file: cli::ConfigFile, what: S) -> Exit
where
    S: AsyncFnOnce(Config, Pin<Box<dyn Future<Output = ()>>>) -> Exit,
{
    let config = match load(file.config.as_deref()) {
        Ok(config) => config,
        Err(error) => return refused(&error),
    };
    let runtime = match runtime() {
        Ok(runtime) => runtime,
        Err(error) => {
            tracing::error!("the event loop cannot be started: {error}");
            return Exit::Software;
        }
    };
    let exit = runtime.block_on(async {
        match signals::stop(None) {
            Ok(stop) => what(config, Box::pin(stop)).await,
            Err(error) => {
                tracing::error!("signals cannot be heard: {error}");
                Exit::Software
            }
        }
    });
    runtime.shutdown_background();
    exit
}

/// The configuration for this process. A variable that is not UTF-8 is kept, with the bad bytes
/// replaced, so that it is refused by name and not overlooked.
fn load(file: Option<&Path>) -> Result<Config, ConfigError> {
    let text = |text: std::ffi::OsString| text.to_string_lossy().into_owned();
    let environment = std::env::vars_os().map(|(name, value)| (text(name), text(value)));
    Config::load(file, environment)
}

fn run(config: Config, clock: Clock) -> Exit {
    for warning in &config.warnings {
        tracing::warn!("{warning}");
    }
    // Before anything of the device is touched, and held until the process ends.
    let _lock = match RunLock::take(&config.backlog.path, manual::boot_time()) {
        Ok(lock) => Some(lock),
        Err(NotLocked::Held(holder)) => return another_runs(&config.backlog.path, holder),
        Err(NotLocked::Unknown(why)) => {
            tracing::warn!("a second nightlight on this state folder would not be noticed: {why}");
            None
        }
    };
    let runtime = match runtime() {
        Ok(runtime) => runtime,
        Err(error) => {
            tracing::error!("the event loop cannot be started: {error}");
            return Exit::Software;
        }
    };
    let ended = runtime.block_on(async {
        match signals::stop(None) {
            Ok(stop) => Ok(daemon::run(config, clock, stop, web::Looker::new())
                .await
                .exit),
            Err(error) => Err(error),
        }
    });
    // Whatever a library has running in the background must not hold up the end.
    runtime.shutdown_background();
    match ended {
        Ok(logic::Exit::Stopped | logic::Exit::Restart) => Exit::Done,
        Ok(logic::Exit::Reboot) => reboot(),
        Err(error) => {
            tracing::error!("signals cannot be heard: {error}");
            Exit::Software
        }
    }
}

/// Refuses to run beside another daemon.
fn another_runs(folder: &Path, holder: state_lock::Holder) -> Exit {
    let text = format!(
        "another nightlight runs with the state folder {}: {holder}. This one has touched nothing. \
         `nightlight status` shows the other one. Stop it first (`sudo systemctl stop nightlight` if it is \
         the service), or give this one a state folder, an LED and a client id of its own \
         (backlog.path, [led], broker.client_id)",
        folder.display()
    );
    tracing::error!("{text}");
    Exit::Running
}

/// Asks systemd to restart the machine; the configuration has allowed it.
fn reboot() -> Exit {
    match std::process::Command::new("systemctl")
        .arg("reboot")
        .status()
    {
        Ok(status) if status.success() => Exit::Done,
        other => {
            tracing::error!("the machine cannot be restarted with systemctl: {other:?}");
            Exit::Software
        }
    }
}

fn checked(config: &Config) -> Exit {
    let kept = KeptRules::in_folder(&config.backlog.path);
    let in_force = config.rules_in_force(kept.load(), kept.path());
    let mut as_followed = config.clone();
    as_followed.lighting.set_rules(in_force.rules);
    let mut text = format!("{}{in_force}", as_followed.summary());
    if let Some(problem) = &in_force.problem {
        text.push_str(&format!("warning: not followed: {problem}\n"));
    }
    for warning in &config.warnings {
        text.push_str(&format!("warning: {warning}\n"));
    }
    text.push_str("The configuration is good.\n");
    // A closed pipe (`check | head`) takes nothing from the result.
    let _ = std::io::stdout().write_all(text.as_bytes());
    Exit::Done
}

/// Asks the running daemon and shows its answer; with `watch` until nobody reads any more.
fn status(config: &Config, json: bool, watch: bool) -> Exit {
    let folder = &config.backlog.path;
    let runtime = match runtime() {
        Ok(runtime) => runtime,
        Err(error) => {
            tracing::error!("the event loop cannot be started: {error}");
            return Exit::Software;
        }
    };
    let ask = || runtime.block_on(web::ask(folder));
    if !watch {
        let answer = ask();
        let failed = answer.as_ref().err().map(std::io::Error::kind);
        let text = status_text(answer, folder, json);
        let Some(kind) = failed else {
            let _ = std::io::stdout().write_all(text.as_bytes());
            return Exit::Done;
        };
        let _ = std::io::stderr().write_all(text.as_bytes());
        return match kind {
            std::io::ErrorKind::PermissionDenied => Exit::Permission,
            _ => Exit::Software,
        };
    }
    let is_terminal = std::io::stdout().is_terminal();
    loop {
        let text = status_text(ask(), folder, json);
        // The screen is written over, not cleared: nothing flickers.
        let shown = match is_terminal && !json {
            true => format!("\u{1b}[H{}\u{1b}[J", text.replace('\n', "\u{1b}[K\n")),
            false if json => text,
            false => text + "\n",
        };
        let mut out = std::io::stdout().lock();
        if out
            .write_all(shown.as_bytes())
            .and_then(|()| out.flush())
            .is_err()
        {
            return Exit::Done;
        }
        drop(out);
        std::thread::sleep(WATCH_EVERY);
    }
}

/// The answer for a person or a program, or why there is none.
fn status_text(answer: std::io::Result<String>, folder: &Path, json: bool) -> String {
    match answer {
        Ok(answer) => match serde_json::from_str::<logic::View>(&answer) {
            Ok(view) if !json => format!("{view}\n"),
            _ => answer,
        },
        Err(error) if json => serde_json::json!({"error": error.to_string()}).to_string() + "\n",
        Err(error) => format!(
            "nightlight: no daemon answers at {}: {error}\nIs it running, with this configuration, and may this user read that folder?\n",
            folder.join(web::SOCKET).display()
        ),
    }
}

/// Looks into a backlog at rest.
fn look_into(how: &cli::Backlog) -> Exit {
    let (cli::Backlog::Stats(folder)
    | cli::Backlog::List(folder)
    | cli::Backlog::Export(folder)
    | cli::Backlog::Verify(folder)) = how;
    if let Some(holder) = state_lock::holder(&folder.path, manual::boot_time()) {
        tracing::error!(
            "the backlog in {} belongs to a running nightlight: {holder}; `nightlight status` says how much \
             is in it, and when that one is stopped this command looks into it",
            folder.path.display()
        );
        return Exit::Running;
    }
    let mut out = std::io::BufWriter::new(std::io::stdout().lock());
    let done = match how {
        cli::Backlog::Stats(folder) => inspect::stats(&folder.path)
            .and_then(|stats| write!(out, "{stats}").map_err(|error| error.to_string())),
        cli::Backlog::List(folder) => inspect::list(&folder.path, &mut out),
        cli::Backlog::Export(folder) => {
            let clocks = Clock::new();
            let clock = logic::time::Clock::new(clocks.boot_id(), BUILT_MS, clocks.now());
            inspect::export(&folder.path, &clock, &mut out)
        }
        cli::Backlog::Verify(folder) => inspect::verify(&folder.path).and_then(|verified| {
            write!(out, "{verified}").map_err(|error| error.to_string())?;
            match verified.problems.is_empty() {
                true => Ok(()),
                false => Err("the backlog is damaged".into()),
            }
        }),
    };
    match done.and_then(|()| out.flush().map_err(|error| error.to_string())) {
        Ok(()) => Exit::Done,
        Err(why) => {
            tracing::error!("{why}");
            Exit::Software
        }
    }
}

fn runtime() -> std::io::Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
}

fn refused(error: &ConfigError) -> Exit {
    let count = words::counted(error.problems.len() as u64, "problem");
    let text = format!("nightlight: {count} with the configuration:\n{error}\n");
    let _ = std::io::stderr().write_all(text.as_bytes());
    Exit::Configuration
}
