//! Small stays small: the release program is held to the budgets of docs/budgets.md.
//!
//!     cargo build --release
//!     NIGHTLIGHT_PROGRAM=target/release/nightlight cargo test --test budgets -- --ignored --nocapture
//!
//! The limits are read from the table there, so that figure, limit and reason stand in one place.
#![allow(
    clippy::expect_used,
    clippy::panic,
    reason = "a test fails by panicking"
)]

#[path = "real/stage/mod.rs"]
mod stage;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use stage::{Agent, Broker, eventually};

const PAGE: &str = "docs/budgets.md";
/// Four readings of the default interval.
const IDLE: Duration = Duration::from_secs(20);
/// Pairs of starts. The least time of each kind is compared: noise only ever adds.
const STARTS: usize = 25;

/// What was measured, by the name that it has in the table.
type Figure = (String, f64);

#[test]
#[ignore = "it takes half a minute and needs the release program; .ci/gate runs it"]
fn the_release_program_keeps_to_its_budgets() {
    let program = std::env::var_os("NIGHTLIGHT_PROGRAM")
        .map(PathBuf::from)
        .expect("NIGHTLIGHT_PROGRAM names the release program");
    let budgets = budgets(&fs::read_to_string(PAGE).expect(PAGE));
    // Pages of a program that was just built and is not on the disk yet would count as the daemon's own.
    let built = fs::File::open(&program).expect("the release program");
    built.sync_all().expect("it is on the disk");
    let mut figures = vec![size(&program), start(&program)];
    figures.extend(idle());
    let mut broken = Vec::new();
    for (name, figure) in figures {
        let Some((_, limit)) = budgets.iter().find(|(budget, _)| *budget == name) else {
            panic!("{PAGE} has no budget for: {name}");
        };
        println!("{name}: {figure:.1}, budget {limit}");
        if figure > *limit {
            broken.push(format!(
                "{name}: has grown to {figure:.1}, and the budget is {limit}. Find what made it grow, \
                 or raise the budget in {PAGE} and say why it is worth it."
            ));
        }
    }
    assert!(broken.is_empty(), "{}", broken.join("\n"));
}

/// Bytes of the program file.
fn size(program: &Path) -> Figure {
    let bytes = fs::metadata(program).expect("the release program").len();
    let name = format!("program, {}, bytes", std::env::consts::ARCH);
    (name, bytes as f64)
}

/// From the start of the program in the dark to the LED that is on, beside a program that only switches
/// it on.
fn start(program: &Path) -> Figure {
    let bare = bare();
    let mut agent = Agent::prepare("budget", stage::free_port(), "");
    agent.set_light("100");
    let led = agent.path("led");
    let (mut own_least, mut bare_least) = (f64::MAX, f64::MAX);
    for _ in 0..STARTS {
        fs::write(&led, "0\n").expect("written");
        let began = Instant::now();
        agent.run();
        own_least = own_least.min(until_on(&led, began));
        agent.kill();
        fs::write(&led, "0\n").expect("written");
        let began = Instant::now();
        let child = Command::new(&bare).arg(&led).spawn();
        bare_least = bare_least.min(until_on(&led, began));
        let _ = child.expect("the bare program starts").wait();
    }
    println!(
        "{}: {:.2} ms from start to decision, the bare program {:.2} ms (least of {STARTS})",
        program.display(),
        own_least * 1e3,
        bare_least * 1e3
    );
    let name = "start to first decision, times a bare program";
    (name.to_owned(), own_least / bare_least)
}

/// The bare program, built as the release program is.
fn bare() -> PathBuf {
    let built = Path::new(env!("CARGO_TARGET_TMPDIR")).join("bare-led");
    let rustc = std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
    let status = Command::new(rustc)
        .args(["--edition=2024", "-Copt-level=s", "-Cstrip=symbols", "-o"])
        .arg(&built)
        .arg("tests/budgets/led.rs")
        .stdout(Stdio::null())
        .status();
    assert!(status.is_ok_and(|status| status.success()), "rustc failed");
    built
}

/// Seconds until the LED is on.
fn until_on(led: &Path, began: Instant) -> f64 {
    while stage::read(led).trim() != "1" {
        assert!(began.elapsed() < Duration::from_secs(30), "never decided");
        thread::yield_now();
    }
    began.elapsed().as_secs_f64()
}

/// A daemon with nothing but its readings to do, on a healthy link.
fn idle() -> Vec<Figure> {
    let broker = Broker::start();
    let devices = "[sensor]\ndriver = \"simulated\"\n[led]\ndriver = \"simulated\"\n\
                   [control]\nmode = \"auto\"\n";
    let agent = Agent::start("budget", broker.port, devices);
    eventually("it is online, and its first records are delivered", || {
        let status = agent.status().unwrap_or_default();
        agent.log().contains("link up") && status["backlog"] == 0
    });
    let before = wake_ups(agent.pid());
    thread::sleep(IDLE);
    let wake_ups = wake_ups(agent.pid()) - before;
    let tasks = fs::read_dir(format!("/proc/{}/task", agent.pid()));
    let threads = tasks.expect("it lives").count();
    vec![
        (
            "idle: wake-ups a second".to_owned(),
            wake_ups / IDLE.as_secs_f64(),
        ),
        ("idle: threads".to_owned(), threads as f64),
        (
            "idle: private memory, kB".to_owned(),
            private_kb(agent.pid()),
        ),
    ]
}

/// How often its threads have gone to sleep so far, and hence were woken.
fn wake_ups(pid: u32) -> f64 {
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).expect("it lives");
    tasks
        .flatten()
        .map(|task| number_of(&task.path().join("status"), "voluntary_ctxt_switches:"))
        .sum()
}

/// Memory that no other process has and that has no file behind it: what only its end gives back.
fn private_kb(pid: u32) -> f64 {
    number_of(
        Path::new(&format!("/proc/{pid}/smaps_rollup")),
        "Private_Dirty:",
    )
}

/// The number behind a name in a file of /proc.
fn number_of(path: &Path, name: &str) -> f64 {
    let text = stage::read(path);
    let line = text.lines().find_map(|line| line.strip_prefix(name));
    line.and_then(|line| line.split_whitespace().next()?.parse().ok())
        .unwrap_or_else(|| panic!("{} has no {name}", path.display()))
}

/// The table's first two columns: what, and how much of it at the most.
fn budgets(page: &str) -> Vec<(String, f64)> {
    page.lines()
        .filter_map(|line| {
            let mut cells = line.strip_prefix('|')?.split('|').map(str::trim);
            let name = cells.next()?;
            let limit = cells.next()?.replace(',', "").parse().ok()?;
            Some((name.to_owned(), limit))
        })
        .collect()
}

#[test]
fn the_table_of_budgets_is_read() {
    let page =
        "text\n| what | at most |\n| --- | --- |\n| program, x86_64, bytes | 5,500,000 | x |\n";
    assert_eq!(
        budgets(page),
        [("program, x86_64, bytes".to_owned(), 5_500_000.0)]
    );
    assert!(budgets(&fs::read_to_string(PAGE).expect(PAGE)).len() >= 5);
}
