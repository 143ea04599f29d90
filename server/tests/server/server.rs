//! The real server as a process, and the database that it has.

use std::fs;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use sqlx::{Connection, Executor, PgConnection, SqliteConnection};
use tempfile::TempDir;

use crate::postgres::Cluster;
use crate::stage::within;

/// Where a story's records are kept.
pub enum Store {
    /// In a file of the server's folder.
    Sqlite,
    /// In a database of this cluster.
    Postgres(Arc<Cluster>),
    /// There.
    At(String),
}

/// The server. Its database outlives it.
pub struct Server {
    folder: TempDir,
    child: Option<Child>,
    url: String,
}

impl Server {
    pub fn prepare(store: &Store, port: u16, more: &str) -> Self {
        Self::with(store, port, "", more)
    }

    /// With more keys of its way to the broker.
    pub fn start_in_broker(store: &Store, port: u16, more: &str) -> Self {
        let mut server = Self::with(store, port, more, "");
        server.run();
        server
    }

    fn with(store: &Store, port: u16, broker: &str, more: &str) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let url = match store {
            Store::Sqlite => format!("sqlite://{}/store/nightlight.db", folder.path().display()),
            Store::Postgres(cluster) => cluster.url(&cluster.database()),
            Store::At(url) => url.clone(),
        };
        let text = format!(
            "[broker]\nurl = \"mqtt://127.0.0.1:{port}\"\n{broker}[database]\nurl = \"{url}\"\n{more}"
        );
        fs::write(folder.path().join("server.toml"), text).expect("written");
        Self {
            folder,
            child: None,
            url,
        }
    }

    pub fn start(store: &Store, port: u16, more: &str) -> Self {
        let mut server = Self::prepare(store, port, more);
        server.run();
        server
    }

    pub fn run(&mut self) {
        self.run_with(&[]);
    }

    /// With these in its environment.
    pub fn run_with(&mut self, environment: &[(&str, &str)]) {
        let file = |name: &str| {
            fs::OpenOptions::new()
                .create(true)
                .append(true)
                .open(self.path(name))
                .expect("a file")
        };
        let child = self
            .command("run")
            .envs(environment.iter().copied())
            .stdout(file("printed"))
            .stderr(file("log"))
            .spawn()
            .expect("the server starts");
        self.child = Some(child);
    }

    /// A command of the program, with the server's configuration.
    pub fn command(&self, name: &str) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_nightlight-server"));
        command
            .arg(name)
            .arg("--config")
            .arg(self.path("server.toml"))
            .stdin(Stdio::null());
        command
    }

    /// What a command prints, which must end well.
    pub fn print(&self, name: &str, more: &[&str]) -> String {
        let output = self.command(name).args(more).output().expect("it runs");
        assert!(output.status.success(), "{output:?}");
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    /// Carries a statement out in the database, behind the server's back.
    pub fn sql(&self, sql: &str) {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .expect("a runtime");
        runtime.block_on(async {
            let done = match self.url.starts_with("sqlite") {
                true => {
                    let mut conn = SqliteConnection::connect(&self.url).await.expect("open");
                    conn.execute(sql).await.map(drop)
                }
                false => {
                    let mut conn = PgConnection::connect(&self.url).await.expect("open");
                    conn.execute(sql).await.map(drop)
                }
            };
            done.expect("carried out");
        });
    }

    pub fn account(&self) -> String {
        self.print("account", &[])
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    pub fn read(&self, name: &str) -> String {
        fs::read_to_string(self.path(name)).unwrap_or_default()
    }

    pub fn pid(&self) -> u32 {
        self.child.as_ref().expect("a process").id()
    }

    pub fn signal(&self, name: &str) {
        let status = Command::new("kill")
            .arg(format!("-{name}"))
            .arg(self.pid().to_string())
            .status();
        assert!(status.expect("kill runs").success());
    }

    /// SIGKILL.
    pub fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            child.kill().expect("killed");
            child.wait().expect("ended");
        }
    }

    /// SIGTERM; ends with 0 within 5 s.
    pub fn stop(&mut self) {
        self.signal("TERM");
        let mut child = self.child.take().expect("a process");
        let mut status = None;
        let ended = within(Duration::from_secs(5), || {
            status = child.try_wait().expect("a status");
            status.is_some()
        });
        if !ended {
            let _ = child.kill();
        }
        let code = status.and_then(|status| status.code());
        assert_eq!(code, Some(0), "{}", self.read("log"));
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
        if std::thread::panicking() {
            eprintln!("--- log of the server\n{}", self.read("log"));
        }
    }
}
