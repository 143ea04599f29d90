//! The stage for tests with real things: a mosquitto of one's own, the real program as a process, files
//! as sensor and LED, and an independent client that listens.
//!
//! Each test has its own ports and folders; everything is ended when it is dropped. Nothing sleeps for
//! luck: [`eventually`] waits for a condition, up to a limit that only a failure reaches.
#![allow(dead_code, reason = "each test file uses a part of the stage")]
#![allow(
    clippy::expect_used,
    clippy::panic,
    reason = "a test fails by panicking"
)]

pub mod dialect;
pub mod fake;

use std::collections::BTreeMap;
use std::fs;
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex, Once, OnceLock};
use std::thread;
use std::time::{Duration, Instant};

use nightlight_logic::account::Account;
use rumqttc::{Client, Event, Incoming, MqttOptions, QoS};
use serde_json::Value;
use tempfile::TempDir;
use uuid::Uuid;

/// The user without rights.
const NOBODY: u32 = 65_534;

/// Waits until `met`, for at most `limit`; tells whether it was.
pub fn within(limit: Duration, mut met: impl FnMut() -> bool) -> bool {
    let end = Instant::now() + limit;
    while Instant::now() < end {
        if met() {
            return true;
        }
        thread::sleep(Duration::from_millis(5));
    }
    met()
}

/// Waits until `met`; fails after a minute.
#[track_caller]
pub fn eventually(what: &str, met: impl FnMut() -> bool) {
    assert!(within(Duration::from_secs(60), met), "never: {what}");
}

fn build() -> PathBuf {
    let workspace = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let own = std::env::current_exe().expect("this test");
    // target/PROFILE/deps/this-test
    let beside = own.ancestors().nth(2).expect("a profile's folder");
    let mut command = Command::new(env!("CARGO"));
    // A test of the program's package has cargo build the program.
    command.args([
        "test", "--quiet", "--locked", "--no-run", "--test", "manual",
    ]);
    if beside.ends_with("release") {
        command.arg("--release");
    }
    // What cargo tells a test of its own package: build scripts that look at it would run again, and everything that
    // depends on them would be built again, here and then by the next cargo outside of a test.
    let told = ["CARGO_PKG_", "CARGO_MANIFEST_", "CARGO_CFG_", "CARGO_BIN_"];
    for (name, _) in std::env::vars_os() {
        let name = name.to_string_lossy();
        if told.iter().any(|beginning| name.starts_with(beginning)) {
            command.env_remove(name.as_ref());
        }
    }
    let built = command.current_dir(workspace).status();
    assert!(
        built.expect("cargo runs").success(),
        "the program is not built"
    );
    let program = beside.join("nightlight");
    assert!(program.is_file(), "{} is missing", program.display());
    program
}

pub fn free_port() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    listener.local_addr().expect("an address").port()
}

/// A mosquitto of one's own; or another broker, where `TEST_BROKER` names what starts it (tests/mqtt5/run).
pub struct Broker {
    pub port: u16,
    folder: TempDir,
    child: Option<Child>,
}

impl Broker {
    pub fn start() -> Self {
        let mut broker = Self::absent();
        broker.restart();
        broker
    }

    /// A port on which there is no broker yet.
    pub fn absent() -> Self {
        Self {
            port: free_port(),
            folder: tempfile::tempdir().expect("a folder"),
            child: None,
        }
    }

    /// With these lines in its configuration.
    pub fn start_with(lines: &str) -> Self {
        let mut broker = Self::absent();
        fs::write(broker.folder.path().join("more.conf"), lines).expect("written");
        broker.restart();
        broker
    }

    pub fn restart(&mut self) {
        self.kill();
        let more = fs::read_to_string(self.folder.path().join("more.conf")).ok();
        let other = std::env::var_os("TEST_BROKER").filter(|_| more.is_none());
        let mut command = match other {
            None => self.mosquitto(more.as_deref().unwrap_or("allow_anonymous true\n")),
            Some(program) => {
                let mut command = Command::new(program);
                command.arg(self.port.to_string()).arg(self.folder.path());
                command
            }
        };
        let child = command
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("the broker starts");
        self.child = Some(child);
        let port = self.port;
        eventually("the broker listens", || {
            std::net::TcpStream::connect(("127.0.0.1", port)).is_ok()
        });
    }

    fn mosquitto(&self, more: &str) -> Command {
        let file = self.folder.path().join("mosquitto.conf");
        let folder = self.folder.path().display();
        // Sessions outlive it, so that a listener misses nothing of what comes before it is back.
        let text = format!(
            "listener {} 127.0.0.1\nuser root\npersistence true\npersistence_location {folder}/\n\
             autosave_interval 1\nmax_queued_messages 0\n{more}",
            self.port
        );
        fs::write(&file, text).expect("written");
        let mut command = Command::new(mosquitto());
        command.arg("-c").arg(file);
        command
    }

    /// Without warning.
    pub fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            child.kill().expect("killed");
            child.wait().expect("ended");
        }
    }

    /// As a service is stopped: it keeps its sessions.
    pub fn stop(&mut self) {
        if let Some(mut child) = self.child.take() {
            signal(child.id(), "TERM");
            child.wait().expect("ended");
        }
    }

    /// Stops it without ending it: connections stand, nothing is answered.
    pub fn freeze(&self) {
        self.signal("STOP");
    }

    pub fn thaw(&self) {
        self.signal("CONT");
    }

    fn signal(&self, name: &str) {
        let child = self.child.as_ref().expect("a broker");
        signal(child.id(), name);
    }
}

impl Drop for Broker {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// The real program, with a file as sensor and a file as LED.
pub struct Agent {
    pub folder: TempDir,
    pub id: String,
    /// A variable of its environment.
    pub variable: Option<(&'static str, PathBuf)>,
    /// `broker.version`, where it is not the default.
    pub version: Option<&'static str>,
    port: u16,
    more: String,
    file: Option<PathBuf>,
    variables: Vec<(&'static str, String)>,
    child: Option<Child>,
}

impl Agent {
    /// Not started yet. `more` is further configuration; a section of it replaces the default one.
    pub fn prepare(id: &str, port: u16, more: &str) -> Self {
        let agent = Self {
            folder: tempfile::tempdir().expect("a folder"),
            id: id.into(),
            variable: None,
            version: None,
            port,
            more: more.into(),
            file: None,
            variables: Vec::new(),
            child: None,
        };
        agent.set_light("500");
        fs::write(agent.path("led"), "0\n").expect("written");
        agent
    }

    pub fn start(id: &str, port: u16, more: &str) -> Self {
        let mut agent = Self::prepare(id, port, more);
        agent.run();
        agent
    }

    /// This file in place of the stage's own; `set_variable` says what is different here.
    pub fn use_file(&mut self, file: &Path) {
        self.file = Some(file.to_owned());
    }

    /// One more variable of its environment.
    pub fn set_variable(&mut self, name: &'static str, value: String) {
        self.variables.push((name, value));
    }

    /// The configuration that it is started with.
    fn file(&self) -> PathBuf {
        let own = || self.path("nightlight.toml");
        self.file.clone().unwrap_or_else(own)
    }

    /// Other configuration for the next start.
    pub fn configure(&mut self, more: &str) {
        self.more = more.into();
    }

    pub fn run(&mut self) {
        let mut command = self.command();
        self.child = Some(command.spawn().expect("nightlight starts"));
    }

    /// With more in its environment; an empty value is none.
    pub fn run_with(&mut self, environment: &[(&str, &str)]) {
        let mut command = self.command();
        let given = environment.iter().filter(|(_, value)| !value.is_empty());
        command.envs(given.copied());
        self.child = Some(command.spawn().expect("nightlight starts"));
    }

    /// With the rights of nobody; false where that cannot be done.
    pub fn run_as_nobody(&mut self) -> bool {
        let mut command = self.command();
        command.uid(NOBODY).gid(NOBODY);
        self.child = command.spawn().ok();
        self.child.is_some()
    }

    fn command(&self) -> Command {
        let folder = self.folder.path().display();
        let defaults = [
            ("[device]", format!("id = \"{}\"", self.id)),
            (
                "[broker]",
                format!(
                    "url = \"mqtt://127.0.0.1:{}\"\nkeep_alive = \"5s\"",
                    self.port
                ),
            ),
            (
                "[sensor]",
                format!("driver = \"iio\"\npath = \"{folder}/light\"\ninterval = \"100ms\""),
            ),
            (
                "[led]",
                format!("driver = \"sysfs\"\npath = \"{folder}/led\""),
            ),
            ("[control]", "lease = \"2s\"\nhold = \"0s\"".into()),
            ("[backlog]", format!("path = \"{folder}/backlog\"")),
            ("[delivery]", "replay_jitter = \"200ms\"".into()),
        ];
        let mut text = self.more.replace("{folder}", &folder.to_string());
        for (section, keys) in defaults {
            if !self.more.contains(section) {
                text.push_str(&format!("\n{section}\n{keys}\n"));
            }
        }
        if let Some(version) = self.version {
            let keys = format!("[broker]\nversion = \"{version}\"\n");
            text = text.replace("[broker]\n", &keys);
        }
        fs::write(self.path("nightlight.toml"), text).expect("written");
        let log = fs::OpenOptions::new()
            .create(true)
            .append(true)
            .open(self.path("log"))
            .expect("a log");
        let mut command = Command::new(program());
        command
            .arg("run")
            .arg("--config")
            .arg(self.file())
            .stdout(Stdio::null())
            .stderr(log)
            .envs(self.variable.clone())
            .envs(self.variables.clone());
        command
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    pub fn set_light(&self, light: &str) {
        // In one step, so that no reader sees a half-written file.
        let next = self.path("light.next");
        fs::write(&next, light).expect("written");
        fs::rename(next, self.path("light")).expect("renamed");
    }

    pub fn led_on(&self) -> bool {
        read(&self.path("led")).trim() == "1"
    }

    pub fn log(&self) -> String {
        read(&self.path("log"))
    }

    /// What `nightlight status --json` says, if it answers.
    pub fn status(&self) -> Option<Value> {
        let answer = Command::new(program())
            .args(["status", "--json", "--config"])
            .arg(self.file())
            .envs(self.variables.clone())
            .output()
            .expect("nightlight runs");
        serde_json::from_slice(&answer.stdout).ok()
    }

    /// Another command of the program with the same configuration: the words of the command.
    pub fn other(&self, words: &str) -> Command {
        // Writes the configuration, if nobody has yet.
        drop(self.command());
        let mut command = Command::new(program());
        command
            .args(words.split(' '))
            .arg("--config")
            .arg(self.file())
            .envs(self.variables.clone());
        command
    }

    /// A command that takes no configuration; `{folder}` is this agent's.
    pub fn other_without_config(&self, words: &[&str]) -> Command {
        let folder = self.folder.path().display().to_string();
        let mut command = Command::new(program());
        command.args(words.iter().map(|word| word.replace("{folder}", &folder)));
        command
    }

    /// The same with the rights of nobody.
    pub fn other_as_nobody(&self, words: &str) -> Command {
        for path in [self.folder.path(), &self.path("nightlight.toml")] {
            drop(self.command());
            let mode = fs::Permissions::from_mode(0o755);
            fs::set_permissions(path, mode).expect("readable");
        }
        let mut command = self.other(words);
        command.uid(NOBODY).gid(NOBODY);
        command
    }

    /// The names of its threads.
    pub fn threads(&self) -> Vec<String> {
        let tasks = fs::read_dir(format!("/proc/{}/task", self.pid())).expect("a process");
        let name = |task: fs::DirEntry| read(&task.path().join("comm")).trim().to_owned();
        tasks.flatten().map(name).collect()
    }

    /// Resident memory in kB.
    pub fn memory_kb(&self) -> i64 {
        let status = read(Path::new(&format!("/proc/{}/status", self.pid())));
        let line = status.lines().find(|line| line.starts_with("VmRSS:"));
        line.and_then(|line| line.split_whitespace().nth(1)?.parse().ok())
            .unwrap_or(0)
    }

    /// `nightlight backlog ...` on its backlog: whether it ended well, what it said, what it logged.
    pub fn backlog(&self, command: &str) -> (bool, String, String) {
        let output = Command::new(program())
            .args(["backlog", command, "--path"])
            .arg(self.path("backlog"))
            .output()
            .expect("nightlight runs");
        let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
        let good = output.status.success();
        (good, text(output.stdout), text(output.stderr))
    }

    /// The records in its backlog, oldest first.
    pub fn export(&self) -> Vec<Value> {
        let (_, out, _) = self.backlog("export");
        out.lines()
            .map(|line| serde_json::from_str(line).expect("a record"))
            .collect()
    }

    pub fn pid(&self) -> u32 {
        self.child.as_ref().expect("a process").id()
    }

    /// SIGTERM, and how it ended; fails after 5 s.
    pub fn stop(&mut self) -> ExitStatus {
        signal(self.pid(), "TERM");
        let mut child = self.child.take().expect("a process");
        let mut status = None;
        let ended = within(Duration::from_secs(5), || {
            status = child.try_wait().expect("a status");
            status.is_some()
        });
        if !ended {
            let _ = child.kill();
        }
        status.unwrap_or_else(|| panic!("still running 5 s after SIGTERM: {}", self.log()))
    }

    /// SIGKILL.
    pub fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            child.kill().expect("killed");
            child.wait().expect("ended");
        }
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
        if thread::panicking() {
            eprintln!("--- log of {}\n{}", self.id, self.log());
        }
    }
}

/// Runs a command to its end: exit code, what it printed, what it complained of.
pub fn outcome(mut command: Command) -> (Option<i32>, String, String) {
    let output = command.output().expect("nightlight runs");
    let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
    (
        output.status.code(),
        text(output.stdout),
        text(output.stderr),
    )
}

/// Something that the listener heard.
#[derive(Debug, Clone)]
pub struct Heard {
    pub topic: String,
    pub payload: Vec<u8>,
    pub retained: bool,
    pub at: Instant,
}

impl Heard {
    /// The objects in it: one, or those of an array.
    pub fn objects(&self) -> Vec<Value> {
        match serde_json::from_slice(&self.payload) {
            Ok(Value::Array(objects)) => objects,
            Ok(object) => vec![object],
            Err(_) => vec![],
        }
    }
}

/// An independent client: hears everything of a device, and can publish. It comes back by itself when
/// the broker does.
pub struct Listener {
    id: String,
    client: Client,
    heard: Arc<Mutex<Vec<Heard>>>,
    listening: Arc<Mutex<bool>>,
}

impl Listener {
    pub fn start(id: &str, port: u16) -> Self {
        Self::start_and(id, port, |_, _| None)
    }

    /// The lesson's server: answers each live reading with a command.
    pub fn lesson_server(id: &str, port: u16) -> Self {
        let telemetry = format!("{id}/telemetry");
        Self::start_and(id, port, move |id, heard| {
            let reading: Value = serde_json::from_slice(&heard.payload).ok()?;
            let light = reading["light"].as_f64()?;
            let answer = format!("{{\"led_on\": {}}}", light < 300.0);
            (heard.topic == telemetry).then(|| (format!("{id}/commands"), answer))
        })
    }

    fn start_and(
        id: &str,
        port: u16,
        answer: impl Fn(&str, &Heard) -> Option<(String, String)> + Send + 'static,
    ) -> Self {
        let mut options = MqttOptions::new(format!("listener-{id}"), "127.0.0.1", port);
        options.set_keep_alive(Duration::from_secs(5));
        options.set_clean_session(false);
        options.set_max_packet_size(16 << 20, 1 << 20);
        let (client, mut connection) = Client::new(options, 1_000);
        let heard = Arc::new(Mutex::new(Vec::new()));
        let listening = Arc::new(Mutex::new(false));
        let (notes, up, own) = (Arc::clone(&heard), Arc::clone(&listening), client.clone());
        let (device, filter) = (id.to_owned(), format!("{id}/#"));
        thread::spawn(move || {
            for event in connection.iter() {
                match event {
                    Ok(Event::Incoming(Incoming::ConnAck(_))) => {
                        let _ = own.try_subscribe(&filter, QoS::AtLeastOnce);
                    }
                    Ok(Event::Incoming(Incoming::SubAck(_))) => *up.lock().expect("sound") = true,
                    Ok(Event::Incoming(Incoming::Publish(publish))) => {
                        let heard = Heard {
                            topic: publish.topic.clone(),
                            payload: publish.payload.to_vec(),
                            retained: publish.retain,
                            at: Instant::now(),
                        };
                        if let Some((topic, payload)) = answer(&device, &heard) {
                            let _ = own.try_publish(topic, QoS::AtLeastOnce, false, payload);
                        }
                        notes.lock().expect("sound").push(heard);
                    }
                    Ok(_) => {}
                    Err(_) => {
                        *up.lock().expect("sound") = false;
                        thread::sleep(Duration::from_millis(20));
                    }
                }
            }
        });
        Self {
            id: id.into(),
            client,
            heard,
            listening,
        }
    }

    pub fn listens(&self) -> bool {
        *self.listening.lock().expect("sound")
    }

    pub fn publish(&self, name: &str, payload: impl Into<Vec<u8>>) {
        let topic = format!("{}/{name}", self.id);
        self.client
            .publish(topic, QoS::AtLeastOnce, false, payload.into())
            .expect("published");
    }

    pub fn publish_retained(&self, name: &str, payload: impl Into<Vec<u8>>) {
        let topic = format!("{}/{name}", self.id);
        self.client
            .publish(topic, QoS::AtLeastOnce, true, payload.into())
            .expect("published");
    }

    /// What came on `{id}/name`, one entry an object.
    pub fn on(&self, name: &str) -> Vec<Value> {
        let topic = format!("{}/{name}", self.id);
        self.heard
            .lock()
            .expect("sound")
            .iter()
            .filter(|heard| heard.topic == topic)
            .flat_map(Heard::objects)
            .collect()
    }

    /// The last text on `{id}/name`.
    pub fn last_text(&self, name: &str) -> String {
        let topic = format!("{}/{name}", self.id);
        let heard = self.heard.lock().expect("sound");
        let last = heard.iter().rfind(|heard| heard.topic == topic);
        last.map(|heard| String::from_utf8_lossy(&heard.payload).into_owned())
            .unwrap_or_default()
    }

    pub fn all(&self) -> Vec<Heard> {
        self.heard.lock().expect("sound").clone()
    }

    /// All records heard.
    pub fn records(&self) -> Vec<Value> {
        ["telemetry", "telemetry/history", "events"]
            .into_iter()
            .flat_map(|name| self.on(name))
            .collect()
    }

    /// For each run: its numbers and how often each was heard.
    pub fn account(&self) -> BTreeMap<String, BTreeMap<u64, u64>> {
        let heard = self.accounts();
        let runs = heard.runs().filter(|(_, of)| of.last() > 0);
        runs.map(|(run, of)| (run.to_string(), of.received().clone()))
            .collect()
    }

    /// Numbers of `run` below its highest that were neither heard nor told as lost.
    pub fn missing(&self, run: &str) -> Vec<u64> {
        let run = Uuid::parse_str(run).expect("a run");
        let of = self.accounts().run(run);
        of.missing(of.last())
    }

    fn accounts(&self) -> Account {
        let mut account = Account::default();
        for object in self.records() {
            account.take(&object);
        }
        account
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        let _ = self.client.try_disconnect();
    }
}

/// The program under test: what `NIGHTLIGHT_PROGRAM` names, or that of this build. Cargo names it to the
/// tests of its own package; for those of another one it is built, once, with the features of all tests.
pub fn program() -> PathBuf {
    static BUILT: OnceLock<PathBuf> = OnceLock::new();
    match (
        std::env::var_os("NIGHTLIGHT_PROGRAM"),
        option_env!("CARGO_BIN_EXE_nightlight"),
    ) {
        (Some(program), _) => program.into(),
        (None, Some(program)) => program.into(),
        (None, None) => BUILT.get_or_init(build).clone(),
    }
}

pub fn read(path: &Path) -> String {
    fs::read_to_string(path).unwrap_or_default()
}

pub fn signal(pid: u32, name: &str) {
    let status = Command::new("kill")
        .arg(format!("-{name}"))
        .arg(pid.to_string())
        .status();
    assert!(status.expect("kill runs").success());
}

/// The mosquitto of the system; installed, and said so, when there is none.
fn mosquitto() -> PathBuf {
    static LOOK: Once = Once::new();
    let find = || {
        [
            "/usr/sbin/mosquitto",
            "/usr/local/sbin/mosquitto",
            "/usr/bin/mosquitto",
        ]
        .map(PathBuf::from)
        .into_iter()
        .find(|path| path.exists())
    };
    LOOK.call_once(|| {
        if find().is_none() {
            install_mosquitto();
        }
    });
    find().expect("mosquitto is needed: apt-get install mosquitto")
}

/// Tests of several processes may come here at once; apt's own lock lets one at a time.
fn install_mosquitto() {
    eprintln!("mosquitto is missing: installing it with apt-get");
    let script = "S=; [ \"$(id -u)\" = 0 ] || S='sudo -n'; \
        O='-o DPkg::Lock::Timeout=300'; $S apt-get $O -q update; \
        DEBIAN_FRONTEND=noninteractive $S apt-get $O install -y -q mosquitto";
    let status = Command::new("sh").arg("-c").arg(script).status();
    assert!(
        status.is_ok_and(|status| status.success()),
        "mosquitto could not be installed: apt-get install mosquitto"
    );
}
