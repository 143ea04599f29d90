//! Signals: which ones end the program, and which ones do it no harm.
//!
//! TERM, INT and QUIT ask for a clean stop. HUP, USR1, USR2 and ALRM would end a process without a word,
//! and are what habit sends to a daemon: here they do nothing but one line in the log. A terminal that
//! hangs up asks for a stop too, because a daemon that was started in it has nobody left to see it.
//! (Rust ignores PIPE.) Each `main` calls it.

use std::future::Future;
use std::io::{self, IsTerminal};

use tokio::signal::unix::{Signal, SignalKind, signal};
use tracing::info;

/// Completes when a signal asks for a stop. From this call on, no other signal that is named above ends
/// the program; `used` has a meaning elsewhere, and gets no line here.
///
/// # Errors
/// The system does not let us hear signals.
pub fn stop(used: Option<SignalKind>) -> io::Result<impl Future<Output = ()>> {
    let mut term = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut quit = signal(SignalKind::quit())?;
    let terminal_gone = terminal_gone(signal(SignalKind::hangup())?);
    let harmless = [
        (SignalKind::user_defined1(), "SIGUSR1"),
        (SignalKind::user_defined2(), "SIGUSR2"),
        (SignalKind::alarm(), "SIGALRM"),
    ];
    for (kind, name) in harmless {
        if used != Some(kind) {
            tokio::spawn(say_once(signal(kind)?, name));
        }
    }
    Ok(async move {
        tokio::select! {
            _ = term.recv() => {}
            _ = interrupt.recv() => {}
            _ = quit.recv() => {}
            () = terminal_gone => {}
        }
    })
}

/// Completes when the terminal that the program was started in has gone.
fn terminal_gone(mut hung_up: Signal) -> impl Future<Output = ()> {
    let in_terminal = io::stdin().is_terminal();
    async move {
        let mut told = false;
        loop {
            hung_up.recv().await;
            if in_terminal && !io::stdin().is_terminal() {
                return;
            }
            if !std::mem::replace(&mut told, true) {
                info!("SIGHUP does nothing here: the configuration is read at the start only");
            }
        }
    }
}

/// The first one is told; a script that sends one a minute must not fill the log.
async fn say_once(mut signal: Signal, name: &str) {
    signal.recv().await;
    info!("{name} does nothing here");
    while signal.recv().await.is_some() {}
}
