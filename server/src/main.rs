//! The program: arguments -> log -> configuration -> what was asked for -> exit code.

use std::fs::File;
use std::io::{BufReader, BufWriter, Write};
use std::path::Path;
use std::process::ExitCode;

use nightlight_common::{log, signals};
use nightlight_server::cli::{self, Cli, Command, Exit};
use nightlight_server::config::{Config, ConfigError};
use nightlight_server::{Fault, account, devices, examine, export, forget, import, run, switch};
use tokio::runtime::{Builder, Runtime};
use tokio::signal::unix::{SignalKind, signal};
use tracing_subscriber::filter::LevelFilter;

fn main() -> ExitCode {
    let cli = match Cli::read(std::env::args_os()) {
        Ok(cli) => cli,
        Err(error) => {
            // Nobody is left to tell when the terminal is gone.
            let _ = error.print();
            return cli::exit_of(&error).into();
        }
    };
    let usual = match cli.command {
        Command::Run(_) => LevelFilter::INFO,
        _ => LevelFilter::WARN,
    };
    log::start("NIGHTLIGHT_SERVER_LOG", usual);
    // The database's own threads do the waiting; two are enough for what is left.
    let runtime = match Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
    {
        Ok(runtime) => runtime,
        Err(error) => {
            complain(&format!("the event loop cannot be started: {error}"));
            return Exit::Software.into();
        }
    };
    carry_out(&runtime, cli).into()
}

fn carry_out(runtime: &Runtime, cli: Cli) -> Exit {
    let more = match &cli.command {
        Command::Run(run) => run.variables(),
        _ => Vec::new(),
    };
    let config = load(cli.config.as_deref(), more);
    if cli.command == Command::Doctor {
        let report = runtime.block_on(examine(config));
        // A closed pipe takes nothing from the result.
        let _ = std::io::stdout().write_all(report.text().as_bytes());
        return report.exit();
    }
    let config = match config {
        Ok(config) => config,
        Err(error) => return refused(&error),
    };
    let database = config.database.clone();
    let mut out = BufWriter::new(std::io::stdout().lock());
    let done = match cli.command {
        Command::Run(_) => {
            drop(out);
            return serve(runtime, config);
        }
        Command::Check | Command::Doctor => {
            let mut text = config.summary();
            for warning in &config.warnings {
                text.push_str(&format!("warning: {warning}\n"));
            }
            text.push_str("The configuration is good.\n");
            // A closed pipe (`check | head`) takes nothing from the result.
            let _ = out.write_all(text.as_bytes());
            Ok(())
        }
        Command::Account(how) => {
            runtime.block_on(account(&database, how.device.as_deref(), &mut out))
        }
        Command::Export(how) => {
            runtime.block_on(export(&database, &how.span(), how.form(), &mut out))
        }
        Command::Devices(how) => runtime.block_on(devices(&database, how.json, &mut out)),
        Command::Forget(how) => match runtime.block_on(forget(&database, &how.device)) {
            Ok(Some(records)) => {
                let _ = writeln!(out, "forgotten: {records} records");
                Ok(())
            }
            Ok(None) => Err(Fault::Other(format!(
                "there is no device {:?} in the database",
                how.device
            ))),
            Err(fault) => Err(fault),
        },
        Command::Switch(how) => switched(runtime, &config, &how, &mut out),
        Command::Import(how) => take_in(runtime, &config, &how.file, &mut out),
    };
    let written = out.flush();
    match (done, written) {
        (Ok(()), Ok(())) => Exit::Done,
        (Ok(()), Err(error)) => {
            complain(&format!("cannot write it out: {error}"));
            Exit::Software
        }
        (Err(fault), _) => failed(&fault),
    }
}

fn switched(
    runtime: &Runtime,
    config: &Config,
    how: &cli::Switch,
    out: &mut impl Write,
) -> Result<(), Fault> {
    let name = &how.name;
    let is_known = !how.group || config.groups.iter().any(|group| group.name == *name);
    let is_kept = || runtime.block_on(switch(&config.database, &how.subject(), how.led_on()));
    let word = match how.led_on() {
        Some(true) => "on, by hand",
        Some(false) => "off, by hand",
        None => "as the rules say",
    };
    match is_known && is_kept()? {
        true => {
            let _ = writeln!(out, "{name}: {word}");
            Ok(())
        }
        false if how.group => Err(Fault::Other(format!(
            "there is no group {name:?} in the configuration"
        ))),
        false => Err(Fault::Other(format!(
            "there is no device {name:?} in the database; `nightlight-server devices` names them"
        ))),
    }
}

fn take_in(
    runtime: &Runtime,
    config: &Config,
    file: &Path,
    out: &mut impl Write,
) -> Result<(), Fault> {
    let imported = if file == Path::new("-") {
        runtime.block_on(import(&config.database, &mut std::io::stdin().lock()))?
    } else {
        let open = File::open(file)
            .map_err(|error| Fault::Other(format!("cannot read {}: {error}", file.display())))?;
        runtime.block_on(import(&config.database, &mut BufReader::new(open)))?
    };
    let _ = writeln!(out, "imported: {} records", imported.records);
    match imported.first_rubbish {
        None => Ok(()),
        Some(line) => Err(Fault::Other(format!(
            "{} lines are no records of a device and were left out, the first is line {line}",
            imported.rubbish
        ))),
    }
}

fn serve(runtime: &Runtime, config: Config) -> Exit {
    for warning in &config.warnings {
        tracing::warn!("{warning}");
    }
    let ended = runtime.block_on(async {
        let stop = signals::stop(Some(SignalKind::user_defined1()))?;
        let mut asked = signal(SignalKind::user_defined1())?;
        let (sender, show) = tokio::sync::mpsc::channel(1);
        tokio::spawn(async move {
            while asked.recv().await.is_some() {
                // One that is not yet answered will do for both.
                let _ = sender.try_send(());
            }
        });
        Ok::<_, std::io::Error>(run(config, stop, show).await)
    });
    match ended {
        Ok(Ok(())) => Exit::Done,
        Ok(Err(fault)) => failed(&fault),
        Err(error) => {
            tracing::error!("signals cannot be heard: {error}");
            Exit::Software
        }
    }
}

/// The configuration for this process. A variable that is not UTF-8 is kept, with the bad bytes
/// replaced, so that it is refused by name and not overlooked.
fn load(file: Option<&Path>, more: Vec<(String, String)>) -> Result<Config, ConfigError> {
    let text = |text: std::ffi::OsString| text.to_string_lossy().into_owned();
    let environment = std::env::vars_os().map(|(name, value)| (text(name), text(value)));
    Config::load(file, environment.chain(more))
}

fn failed(fault: &Fault) -> Exit {
    complain(fault.words());
    match fault {
        Fault::Permission(_) => Exit::Permission,
        Fault::Again(_) | Fault::Other(_) => Exit::Software,
    }
}

fn refused(error: &ConfigError) -> Exit {
    let count = match error.problems.len() {
        1 => "1 problem".to_string(),
        many => format!("{many} problems"),
    };
    complain(&format!("{count} with the configuration:\n{error}"));
    Exit::Configuration
}

fn complain(what: &str) {
    let _ = std::io::stderr().write_all(format!("nightlight-server: {what}\n").as_bytes());
}
