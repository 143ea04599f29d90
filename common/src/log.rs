//! The log: to stderr, for a person at a terminal or for the journal.
//!
//! Only sets it up. The level comes from one variable alone, so that it is known before there is
//! a configuration, and other crates stay at `info`. Called once by each `main`.

use std::fmt;
use std::io::IsTerminal;

use tracing::{Event, Level, Subscriber};
use tracing_subscriber::filter::{LevelFilter, Targets};
use tracing_subscriber::fmt::format::{self, Format, Full, Writer};
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::registry::LookupSpan;

/// Starts the log, at `usual` where the environment's `variable` is not set. A level that does not exist is told and
/// taken as `info`: a slip there is no reason to leave a room dark.
pub fn start(variable: &str, usual: LevelFilter) {
    let asked = std::env::var(variable).unwrap_or_default();
    let level = match asked.is_empty() {
        true => Some(usual),
        false => level(&asked),
    };
    let ours = level.unwrap_or(LevelFilter::INFO);
    let targets = Targets::new()
        .with_default(ours.min(LevelFilter::INFO))
        .with_target("nightlight", ours);
    let set = if is_journal() {
        let subscriber = tracing_subscriber::fmt()
            .with_max_level(LevelFilter::TRACE)
            // A log that cannot be written (full disk, a terminal that is gone) would end the program.
            .log_internal_errors(false)
            .with_writer(std::io::stderr)
            .event_format(Journal(
                format::format()
                    .without_time()
                    .with_target(false)
                    .with_level(false),
            ))
            .finish();
        tracing::subscriber::set_global_default(subscriber.with(targets))
    } else {
        let subscriber = tracing_subscriber::fmt()
            .with_max_level(LevelFilter::TRACE)
            // A log that cannot be written (full disk, a terminal that is gone) would end the program.
            .log_internal_errors(false)
            .with_writer(std::io::stderr)
            .with_target(false)
            .finish();
        tracing::subscriber::set_global_default(subscriber.with(targets))
    };
    if set.is_ok() && level.is_none() {
        tracing::warn!(
            "{variable}={asked:?} is unknown; use error, warn, info, debug or trace (now: info)"
        );
    }
}

/// Lines as the journal wants them: it adds the time, and reads the priority from `<6>` at the start.
struct Journal(Format<Full, ()>);

impl<S, N> FormatEvent<S, N> for Journal
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(
        &self,
        context: &FmtContext<'_, S, N>,
        mut writer: Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        write!(writer, "<{}>", priority(*event.metadata().level()))?;
        self.0.format_event(context, writer, event)
    }
}

/// The priority of syslog.
fn priority(level: Level) -> u8 {
    match level {
        Level::ERROR => 3,
        Level::WARN => 4,
        Level::INFO => 6,
        _ => 7,
    }
}

fn level(text: &str) -> Option<LevelFilter> {
    match text.trim().to_ascii_lowercase().as_str() {
        "" | "info" => Some(LevelFilter::INFO),
        "error" => Some(LevelFilter::ERROR),
        "warn" => Some(LevelFilter::WARN),
        "debug" => Some(LevelFilter::DEBUG),
        "trace" => Some(LevelFilter::TRACE),
        _ => None,
    }
}

/// Whether the journal reads our stderr. A desktop's terminals inherit the variable, so a terminal
/// is no journal.
fn is_journal() -> bool {
    std::env::var_os("JOURNAL_STREAM").is_some() && !std::io::stderr().is_terminal()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn levels_are_the_documented_words() {
        assert_eq!(level(""), Some(LevelFilter::INFO));
        assert_eq!(level("Debug"), Some(LevelFilter::DEBUG));
        assert_eq!(level("loud"), None);
    }
}
