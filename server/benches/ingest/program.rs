//! The server as a process, with a database of its own, and what it says of itself.

use std::fs::{self, File};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::postgres::Cluster;
use crate::stage::free_port;

/// A running server.
pub struct Program {
    folder: TempDir,
    child: Child,
    url: String,
    listen: u16,
}

impl Program {
    /// Returns when it is connected to the broker.
    pub async fn start(cluster: Option<&Arc<Cluster>>, broker: u16) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let url = match cluster {
            None => format!("sqlite://{}/nightlight.db", folder.path().display()),
            Some(cluster) => cluster.url(&cluster.database()),
        };
        let listen = free_port();
        let text = format!(
            "[broker]\nurl = \"mqtt://127.0.0.1:{broker}\"\n[database]\nurl = \"{url}\"\n\
             [web]\nlisten = \"127.0.0.1:{listen}\"\n"
        );
        let file = folder.path().join("server.toml");
        fs::write(&file, text).expect("written");
        let log = File::create(folder.path().join("log")).expect("a file");
        let child = Command::new(env!("CARGO_BIN_EXE_nightlight-server"))
            .arg("run")
            .arg("--config")
            .arg(&file)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .expect("the server starts");
        let program = Self {
            folder,
            child,
            url,
            listen,
        };
        for _ in 0..600 {
            if program.metric("nightlight_server_broker_connected").await == 1 {
                return program;
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        let log = fs::read_to_string(program.folder.path().join("log"));
        panic!("the server does not connect: {}", log.unwrap_or_default());
    }

    /// The database.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// A metric without labels; 0 when there is none.
    pub async fn metric(&self, name: &str) -> u64 {
        let text = self.get("/metrics").await;
        let mut lines = text.lines().filter_map(|line| line.split_once(' '));
        let value = lines.find(|(found, _)| *found == name);
        value.map_or(0, |(_, value)| value.parse().expect("a number"))
    }

    /// What is at a path; empty when nobody answers.
    pub async fn get(&self, path: &str) -> String {
        let Ok(mut socket) = TcpStream::connect(("127.0.0.1", self.listen)).await else {
            return String::new();
        };
        let request = format!(
            "GET {path} HTTP/1.1\r\nHost: 127.0.0.1:{}\r\nConnection: close\r\n\r\n",
            self.listen
        );
        let mut answer = Vec::new();
        let done = async {
            socket.write_all(request.as_bytes()).await?;
            socket.read_to_end(&mut answer).await
        };
        // One that ends in the middle has told less, which shows.
        let _ = done.await;
        String::from_utf8_lossy(&answer).into_owned()
    }

    /// What it has of the machine's memory, in megabytes.
    pub fn resident_mb(&self) -> f64 {
        let status =
            fs::read_to_string(format!("/proc/{}/status", self.child.id())).expect("status");
        let line = status
            .lines()
            .find_map(|line| line.strip_prefix("VmRSS:"))
            .expect("VmRSS");
        let kb: f64 = line.trim().trim_end_matches(" kB").parse().expect("kB");
        kb / 1_024.0
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
