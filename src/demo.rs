//! The demonstration: the daemon at work, with a broker, a cable that is pulled, and a server that keeps the
//! books. No Pi is needed.
//!
//! The agent is the program itself as a process of its own, with files as sensor, LED and clock, so that it can be
//! killed; all around it is here. Nothing
//! is left behind: broker, files, and what a broker of the user was told to keep. Called by `main`.
//!
//! - `broker`, `cable`, `server`, `agent`: the pieces
//! - `light`: what the sensor sees, so that the light changes while the cable is out
//! - `story`: the story of a minute; `scenarios`: one kind of fault each; `hands`: whatever somebody wants
//! - `act`: what can be done, on the `stage`; by `panel` (the page) and `keys` (the terminal), too
//! - `screen`, `plot`, `report`: what is shown
//! - `drill`: the same on a machine where the service runs
//! - `record`, `account`, `rule`, `verdict`: whether all of it was right

mod account;
mod act;
mod agent;
mod broker;
mod cable;
pub mod drill;
mod folder;
mod hands;
mod keys;
mod light;
mod panel;
mod plot;
mod record;
mod report;
mod rule;
mod scenarios;
mod screen;
mod server;
mod stage;
mod story;
mod verdict;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use clap::ValueEnum;
use tokio::net::TcpListener;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use uuid::Uuid;

use crate::cli::{self, Exit, Scenario};
use crate::config::Topics;
use crate::io::web;
use crate::io::web::desk::{Desk, Source};
use crate::io::web::guard::Guard;
use crate::io::web::live::Live;
use crate::io::web::routes::Site;
use act::Act;
use agent::Agent;
use broker::Broker;
use cable::Cable;
use folder::Folder;
use keys::Keys;
use light::{Light, Player};
use panel::Panel;
use report::{Chapter, words_of};
use screen::Screen;
use server::{Books, Post};
use stage::{Shown, Stop, Story, World};

/// The server's threshold, and the local rule's two.
const ON_BELOW: f64 = 300.0;
const OFF_ABOVE: f64 = 350.0;
/// Least time between two changes by the local rule.
const HOLD: Duration = Duration::from_secs(1);
/// How long a command holds.
const LEASE: Duration = Duration::from_secs(3);
/// How often the light is read, and while the backlog is being filled.
const INTERVAL: Duration = Duration::from_millis(250);
const FILL_INTERVAL: Duration = Duration::from_millis(20);
/// Most records that are kept.
const MAX_RECORDS: u64 = 400;
/// When the light crosses, in seconds since the beginning; the cable is out then.
const CROSSES_AT: f64 = 22.0;
/// However many visitors ask the page for the same, the device is asked once in so long.
const ANSWER_KEPT: Duration = Duration::from_millis(200);

/// Files of the agent that a demonstration starts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AgentFiles {
    /// Its configuration.
    pub config: PathBuf,
    /// By how much its wall clock is moved.
    pub clock: PathBuf,
}

impl AgentFiles {
    /// Those in `folder`.
    pub fn of(folder: &Path) -> Self {
        Self {
            config: folder.join("agent.toml"),
            clock: folder.join("clock"),
        }
    }
}

/// Shows the daemon at work. Blocks for about a minute, or until somebody ends it; prints to standard output.
///
/// [`Exit::Done`] only when each account is right; else [`Exit::Software`], and what was wrong is said.
pub fn run(demo: &cli::Demo) -> Exit {
    let screen = Screen::new();
    let mut chapters = Vec::new();
    let ended = perform(demo, &screen, &mut chapters);
    let mut is_right = chapters.iter().all(|chapter| chapter.verdict.is_right());
    let mut wrong = |why: String| {
        // Standard error may be gone; the exit code says it too.
        use std::io::Write;
        let _ = writeln!(std::io::stderr(), "nightlight demo: {why}");
        is_right = false;
    };
    if let Err(why) = ended {
        wrong(why);
    }
    if let Some(file) = &demo.report {
        match std::fs::write(file, report::html(&chapters)) {
            Ok(()) => screen.say(&format!("\nThe report is {}.", file.display())),
            Err(error) => wrong(format!("{} cannot be written: {error}", file.display())),
        }
    }
    match is_right {
        true => Exit::Done,
        false => Exit::Software,
    }
}

fn perform(demo: &cli::Demo, screen: &Screen, chapters: &mut Vec<Chapter>) -> Result<(), String> {
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
    let signals = runtime.block_on(async { Signals::new() })?;
    let mut broker = match &demo.broker {
        Some(url) => Broker::at(url)?,
        None => Broker::of_our_own(folder.path(), |text| screen.say(text))?,
    };
    let (host, port) = (broker.host.clone(), broker.port);
    let shown = runtime.block_on(show(
        demo,
        (&id, &folder),
        &light,
        &mut broker,
        screen,
        signals,
        chapters,
    ));
    if !broker.is_own {
        let cleaned = runtime.block_on(clean_up(&id, &scenarios(demo), (&host, port)));
        if let Err(why) = cleaned {
            screen.say(&format!(
                "(Its retained messages could not be removed: {why})"
            ));
        }
    }
    shown
}

/// All that was asked for, one after the other.
async fn show(
    demo: &cli::Demo,
    (id, folder): (&str, &Folder),
    light: &Light,
    broker: &mut Broker,
    screen: &Screen,
    mut signals: Signals,
    chapters: &mut Vec<Chapter>,
) -> Result<(), String> {
    let (acting, mut acts) = mpsc::unbounded_channel();
    let (show, shown) = watch::channel(Shown::default());
    let page = Page::open(id, folder.path(), acting.clone(), shown.clone()).await?;
    let keys = Keys::hear(acting.clone(), shown.clone());
    let at = match broker.is_own {
        true => format!("a mosquitto of its own, 127.0.0.1:{}", broker.port),
        false => format!("{}:{}, as {id}", broker.host, broker.port),
    };
    let seen = match (&demo.trace, demo.scenario, light.becomes) {
        (_, Some(_), _) => "set by hand".to_owned(),
        (None, None, _) => "an invented day, with dusk after about 20 s".to_owned(),
        (Some(file), None, Some(_)) => format!("a stretch of {}", file.display()),
        (Some(file), None, None) => format!("{} (it never crosses the threshold)", file.display()),
    };
    let help = if keys.is_some() { keys::HELP } else { "" };
    screen.say(&screen::greeting(&at, &page.url, &seen, help));
    if !help.is_empty() {
        screen.say(help.trim_start());
    }
    let scenarios = scenarios(demo);
    let many = scenarios.len() > 1;
    for scenario in scenarios {
        let stage = Stage {
            id,
            page: &page,
            folder: folder.path(),
            light,
            screen,
            show: &show,
        };
        let playing = stage.play(scenario, broker, &mut acts);
        let chapter = tokio::select! {
            chapter = playing => chapter?,
            () = signals.end_it(&shown, &acting) => {
                return Err("stopped before its end; there is no account".to_owned());
            }
        };
        screen.head("What happened", &plot::plot(&chapter.moments));
        screen.head("The account", &chapter.verdict.in_words(screen));
        let was_yours = shown.borrow().yours;
        chapters.push(chapter);
        if was_yours {
            return Ok(());
        }
    }
    if many {
        let lines: Vec<_> = chapters
            .iter()
            .map(|chapter| {
                let right = if chapter.verdict.is_right() {
                    "right"
                } else {
                    "NOT right"
                };
                format!("{:<16} {right}", chapter.title)
            })
            .collect();
        screen.head("All accounts", &lines.join("\n"));
    }
    Ok(())
}

/// What every part has in common.
struct Stage<'a> {
    id: &'a str,
    page: &'a Page,
    folder: &'a Path,
    light: &'a Light,
    screen: &'a Screen,
    show: &'a watch::Sender<Shown>,
}

impl Stage<'_> {
    /// Plays one scenario, or the story, on a device that is new for it.
    async fn play(
        &self,
        scenario: Option<Scenario>,
        broker: &mut Broker,
        acts: &mut mpsc::UnboundedReceiver<Act>,
    ) -> Result<Chapter, String> {
        let name = scenario.map_or("story", name_of);
        let id = device(self.id, scenario);
        let folder = self.folder.join(name);
        std::fs::create_dir(&folder).map_err(|error| format!("no folder for it: {error}"))?;
        let cable = Cable::lay(&broker.host, broker.port)
            .await
            .map_err(|error| format!("no port for the cable: {error}"))?;
        let player = Player::new(self.light)?;
        let (mut agent, config) = Agent::prepare(&id, cable.port(), &folder)?;
        self.page.shows(&agent.backlog());
        agent.set_light(player.at(0.0))?;
        let (sender, heard) = mpsc::unbounded_channel();
        let post = Post {
            address: (broker.host.clone(), broker.port),
            name: format!("{id}-server"),
            topics: config.topics.clone(),
            heard: sender,
            books: Books::default(),
        };
        let server = post.start().await?;
        agent.start()?;
        let world = World {
            screen: self.screen,
            cable: &cable,
            broker,
            post,
            heard,
            acts,
            shown: self.show,
            topics: config.topics,
        };
        let mut story = Story::new(world, agent, server, player);
        let played = match scenario {
            None => story.tell(self.light.becomes).await,
            Some(Scenario::HandsOn) => story.in_hands(None).await,
            Some(scenario) => story.play(scenario).await,
        };
        let ended = match played {
            Err(Stop::TakenOver(act)) => story.in_hands(Some(act)).await,
            played => played,
        };
        let chapter = match ended {
            Ok(()) => story.end().await,
            Err(stop) => Err(stop),
        };
        match chapter {
            Ok(chapter) => Ok(Chapter {
                title: name.to_owned(),
                ..chapter
            }),
            Err(Stop::Failed(why)) => Err(why),
            Err(Stop::TakenOver(_)) => Err("it was taken over at its end".to_owned()),
        }
    }
}

/// Takes back what was left at a broker of the user.
async fn clean_up(
    id: &str,
    played: &[Option<Scenario>],
    address: (&str, u16),
) -> Result<(), String> {
    for scenario in played {
        let id = device(id, *scenario);
        let topics = topics(&id).map_err(|error| error.to_string())?;
        server::leave_no_trace(address, &id, &topics).await?;
    }
    Ok(())
}

/// What is played, one after the other; none is the story.
fn scenarios(demo: &cli::Demo) -> Vec<Option<Scenario>> {
    match demo.scenario {
        Some(Scenario::All) => Scenario::value_variants()
            .iter()
            .filter(|scenario| !matches!(scenario, Scenario::All | Scenario::HandsOn))
            .map(|scenario| Some(*scenario))
            .collect(),
        one => vec![one],
    }
}

/// The id of the device that plays it.
fn device(id: &str, scenario: Option<Scenario>) -> String {
    format!("{id}-{}", scenario.map_or("story", name_of))
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

/// Signals that end it.
struct Signals([Signal; 3]);

impl Signals {
    /// To be called on the runtime.
    fn new() -> Result<Self, String> {
        let on = |kind| signal(kind).map_err(|error| format!("signals cannot be heard: {error}"));
        Ok(Self([
            on(SignalKind::interrupt())?,
            on(SignalKind::terminate())?,
            on(SignalKind::hangup())?,
        ]))
    }

    /// Ends when it has to end at once. While it is in somebody's hands, the first signal asks for a good end.
    async fn end_it(&mut self, shown: &watch::Receiver<Shown>, acts: &mpsc::UnboundedSender<Act>) {
        loop {
            let [interrupt, terminate, hangup] = &mut self.0;
            tokio::select! {
                _ = interrupt.recv() => {}
                _ = terminate.recv() => {}
                _ = hangup.recv() => {}
            }
            let is_yours = shown.borrow().yours;
            if !is_yours || acts.send(Act::Finish).is_err() {
                return;
            }
        }
    }
}

/// The page of the demonstration, served beside the show; gone when dropped.
struct Page {
    url: String,
    backlog: PathBuf,
    serving: JoinHandle<()>,
}

impl Page {
    async fn open(
        id: &str,
        folder: &Path,
        acts: mpsc::UnboundedSender<Act>,
        shown: watch::Receiver<Shown>,
    ) -> Result<Self, String> {
        let cannot = |error: std::io::Error| format!("no port for the page of {id}: {error}");
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.map_err(cannot)?;
        let address = listener.local_addr().map_err(cannot)?;
        // The device of the moment is behind this name.
        let backlog = folder.join("now");
        let desk = Desk::open(Source::Folder(backlog.clone()), ANSWER_KEPT);
        let site = Site::page(desk.clone(), Guard::new(address, None), Live::start(desk));
        let site = site.with(Arc::new(Panel::new(acts, shown)));
        let serving = tokio::spawn(async move { web::serve_page(&listener, &site).await });
        Ok(Self {
            url: format!("http://{address}/"),
            backlog,
            serving,
        })
    }

    /// From now on it shows the device whose backlog is in this folder.
    fn shows(&self, backlog: &Path) {
        let _ = std::fs::remove_file(&self.backlog);
        // A page that finds no device says so.
        let _ = std::os::unix::fs::symlink(backlog, &self.backlog);
    }
}

impl Drop for Page {
    fn drop(&mut self) {
        self.serving.abort();
    }
}

/// As the command line names it.
fn name_of(scenario: Scenario) -> &'static str {
    match scenario {
        Scenario::Cable => "cable",
        Scenario::Power => "power",
        Scenario::Server => "server",
        Scenario::StaleCommands => "stale-commands",
        Scenario::Full => "full",
        Scenario::Storm => "storm",
        Scenario::All => "all",
        Scenario::HandsOn => "hands-on",
    }
}

/// Enough of it to be alone at a broker.
fn short(id: Uuid) -> String {
    id.simple().to_string().chars().take(8).collect()
}
