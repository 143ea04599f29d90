//! The demonstration: the daemon at work for a minute, with a broker, a cable that is pulled, and a
//! server that keeps the books. No Pi is needed.
//!
//! The agent is the program itself as a process of its own, with files as sensor and LED, so that it can be
//! killed; all around it is here. Nothing
//! is left behind: broker, files, and what a broker of the user was told to keep. Called by `main`.
//!
//! - `broker`, `cable`, `server`, `agent`: the pieces
//! - `light`: what the sensor sees, so that the light changes while the cable is out
//! - `story`: the five parts, on the `stage`;  `screen`, `plot`: what is shown
//! - `record`, `account`, `rule`, `verdict`: whether all of it was right

mod account;
mod agent;
mod broker;
mod cable;
mod folder;
mod light;
mod plot;
mod record;
mod rule;
mod screen;
mod server;
mod stage;
mod story;
mod verdict;

use std::future::Future;
use std::time::Duration;

use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;
use uuid::Uuid;

use crate::cli::{self, Exit};
use crate::config::Topics;
use account::Verdict;
use agent::Agent;
use broker::Broker;
use cable::Cable;
use folder::Folder;
use light::{Light, Player};
use screen::Screen;
use server::Server;
use stage::Story;

/// The server's threshold, and the local rule's two.
const ON_BELOW: f64 = 300.0;
const OFF_ABOVE: f64 = 350.0;
/// Least time between two changes by the local rule.
const HOLD: Duration = Duration::from_secs(1);
/// How long a command holds.
const LEASE: Duration = Duration::from_secs(3);
/// When the light crosses, in seconds since the beginning; the cable is out then.
const CROSSES_AT: f64 = 22.0;

/// Shows the daemon at work. Blocks for about a minute; prints to standard output.
///
/// [`Exit::Done`] only when the account is right; else [`Exit::Software`], and what was wrong is said.
pub fn run(demo: &cli::Demo) -> Exit {
    let screen = Screen::new();
    match perform(demo, &screen) {
        Ok(verdict) if verdict.is_right() => Exit::Done,
        Ok(_) => Exit::Software,
        Err(why) => {
            // Standard error may be gone; the exit code says it too.
            use std::io::Write;
            let _ = writeln!(std::io::stderr(), "nightlight demo: {why}");
            Exit::Software
        }
    }
}

fn perform(demo: &cli::Demo, screen: &Screen) -> Result<Verdict, String> {
    let id = format!("nightlight-demo-{}", short(Uuid::new_v4()));
    let folder = Folder::make(&id).map_err(|error| format!("no folder for its files: {error}"))?;
    let light = match &demo.trace {
        Some(file) => Light::of_recording(file, folder.path())?,
        None => Light::of_a_day(),
    };
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| format!("no runtime: {error}"))?;
    // From here on Ctrl-C is a wish that is heard, so that the broker does not stay behind.
    let interrupted = runtime.block_on(async { interrupted() })?;
    let broker = match &demo.broker {
        Some(url) => Broker::at(url)?,
        None => Broker::of_our_own(folder.path(), |text| screen.say(text))?,
    };
    let at = match broker.is_own {
        true => format!("a mosquitto of its own, 127.0.0.1:{}", broker.port),
        false => format!("{}:{}, as {id}", broker.host, broker.port),
    };
    let page = free_port()?;
    let seen = match (&demo.trace, light.becomes) {
        (None, _) => "an invented day, with dusk after about 20 s".to_owned(),
        (Some(file), Some(_)) => format!("a stretch of {}", file.display()),
        (Some(file), None) => format!("{} (it never crosses the threshold)", file.display()),
    };
    let shown = format!("http://127.0.0.1:{page}/");
    screen.say(&screen::greeting(&at, &shown, &seen));
    let all = async {
        tokio::select! {
            verdict = play(&id, &broker, (&folder, page), &light, screen) => verdict,
            () = interrupted => Err("stopped before its end; there is no account".to_owned()),
        }
    };
    let verdict = runtime.block_on(all);
    if !broker.is_own {
        let cleaned = runtime.block_on(clean_up(&id, &broker));
        if let Err(why) = cleaned {
            screen.say(&format!(
                "(Its retained messages could not be removed: {why})"
            ));
        }
    }
    verdict
}

async fn play(
    id: &str,
    broker: &Broker,
    (folder, page): (&Folder, u16),
    light: &Light,
    screen: &Screen,
) -> Result<Verdict, String> {
    let cable = Cable::lay(&broker.host, broker.port)
        .await
        .map_err(|error| format!("no port for the cable: {error}"))?;
    let player = Player::new(light)?;
    let (mut agent, config) = Agent::prepare(id, cable.port(), page, folder.path())?;
    agent.set_light(player.at(0.0))?;
    let (sender, heard) = mpsc::unbounded_channel();
    let address = (broker.host.as_str(), broker.port);
    let name = format!("{id}-server");
    let server = Server::start(address, &name, config.topics.clone(), sender).await?;
    agent.start()?;
    let told = Story::new(screen, agent, &cable, player, heard)
        .tell(light.becomes)
        .await?;
    drop(server);
    let verdict = told.account.close(&told.claims);
    screen.head("The minute", &plot::plot(&told.moments));
    screen.head("The account", &verdict.in_words(screen));
    Ok(verdict)
}

async fn clean_up(id: &str, broker: &Broker) -> Result<(), String> {
    let topics = topics(id).map_err(|error| error.to_string())?;
    server::leave_no_trace((&broker.host, broker.port), id, &topics).await
}

/// A port of this machine that nobody has.
fn free_port() -> Result<u16, String> {
    let free = std::net::TcpListener::bind(("127.0.0.1", 0)).and_then(|port| port.local_addr());
    let free = free.map_err(|error| format!("there is no free port: {error}"))?;
    Ok(free.port())
}

/// The topics of a device of this name.
fn topics(id: &str) -> Result<Topics, crate::config::ConfigError> {
    let toml = format!("[device]\nid = \"{id}\"");
    crate::config::Config::from_toml(&toml, []).map(|config| config.topics)
}

/// Ends when somebody wants the demonstration to end. To be called on the runtime.
fn interrupted() -> Result<impl Future<Output = ()>, String> {
    let on = |kind| signal(kind).map_err(|error| format!("signals cannot be heard: {error}"));
    let mut interrupt = on(SignalKind::interrupt())?;
    let mut terminate = on(SignalKind::terminate())?;
    let mut hangup = on(SignalKind::hangup())?;
    Ok(async move {
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
            _ = hangup.recv() => {}
        }
    })
}

/// Enough of it to be alone at a broker.
fn short(id: Uuid) -> String {
    id.simple().to_string().chars().take(8).collect()
}
