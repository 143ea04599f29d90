//! The device, seen from outside: a status page, `/status`, `/metrics` and `/healthz` over HTTP.
//!
//! Served on a Unix socket beside the backlog, which `nightlight status` reads, and on `web.listen` if
//! that is configured. Shows the picture that the loop last made; asks nothing of the loop and can
//! change nothing. The daemon starts it.

use std::fs;
use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, UnixListener, UnixStream};
use tokio::sync::watch;
use tracing::warn;

use crate::logic::View;

/// The socket's name in the backlog's folder.
pub const SOCKET: &str = "status.sock";
/// Longer requests are cut off.
const REQUEST: usize = 4 * 1024;
/// A visitor has so long for everything.
const PATIENCE: Duration = Duration::from_secs(2);

/// Serves the socket in `folder`, and `listen` if there is one, until dropped. A door that cannot be
/// opened is told and left out: the light does not depend on it.
pub async fn serve(
    folder: PathBuf,
    listen: Option<SocketAddr>,
    view: watch::Receiver<Option<View>>,
) {
    let socket = serve_socket(folder.join(SOCKET), view.clone());
    match listen {
        Some(address) => {
            tokio::join!(socket, serve_tcp(address, view));
        }
        None => socket.await,
    }
}

/// What a running nightlight, whose backlog is in `folder`, says of itself, as JSON.
///
/// # Errors
/// There is none, or it does not answer within 2 s.
pub async fn ask(folder: &Path) -> io::Result<String> {
    let visit = async {
        let mut stream = UnixStream::connect(folder.join(SOCKET)).await?;
        stream.write_all(b"GET /status HTTP/1.0\r\n\r\n").await?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await?;
        match answer.split_once("\r\n\r\n") {
            Some((head, body)) if head.starts_with("HTTP/1.1 200") => Ok(body.to_owned()),
            _ => Err(io::Error::other(format!("it answered: {answer:.80}"))),
        }
    };
    match tokio::time::timeout(PATIENCE, visit).await {
        Ok(answer) => answer,
        Err(_) => Err(io::ErrorKind::TimedOut.into()),
    }
}

async fn serve_socket(path: PathBuf, view: watch::Receiver<Option<View>>) {
    // The folder is the backlog's; its thread may not have made it yet.
    if let Some(folder) = path.parent() {
        let _ = fs::create_dir_all(folder);
    }
    // A socket left by a run that was killed would keep this one out.
    let _ = fs::remove_file(&path);
    let listener = match UnixListener::bind(&path) {
        Ok(listener) => listener,
        Err(error) => return warn!("no status socket at {}: {error}", path.display()),
    };
    let _door = Door(path);
    receive(&view, || async { Ok(listener.accept().await?.0) }).await;
}

/// A socket's file goes when nobody listens any more.
struct Door(PathBuf);

impl Drop for Door {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
    }
}

async fn serve_tcp(address: SocketAddr, view: watch::Receiver<Option<View>>) {
    let listener = match TcpListener::bind(address).await {
        Ok(listener) => listener,
        Err(error) => {
            return warn!("no status page on {address}: {error}; check web.listen");
        }
    };
    receive(&view, || async { Ok(listener.accept().await?.0) }).await;
}

/// One visitor after the other: a status page has few, and each has a time limit.
async fn receive<S, F>(view: &watch::Receiver<Option<View>>, next: impl Fn() -> F)
where
    S: AsyncRead + AsyncWrite + Unpin,
    F: Future<Output = io::Result<S>>,
{
    loop {
        match next().await {
            Ok(stream) => {
                // A visitor who leaves early, or says nothing, takes nothing from the others.
                let _ = tokio::time::timeout(PATIENCE, answer(stream, view)).await;
            }
            // Out of descriptors, most likely: not worth more than a pause.
            Err(_) => tokio::time::sleep(PATIENCE).await,
        }
    }
}

async fn answer<S>(mut stream: S, view: &watch::Receiver<Option<View>>) -> io::Result<()>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let mut request = Vec::new();
    while !request.windows(4).any(|end| end == b"\r\n\r\n") && request.len() < REQUEST {
        if stream.read_buf(&mut request).await? == 0 {
            break;
        }
    }
    let request = String::from_utf8_lossy(&request);
    let mut words = request.split_whitespace();
    let view = view.borrow().clone();
    let (status, kind, body) = match (words.next(), words.next(), view) {
        (Some("GET" | "HEAD"), Some(path), Some(view)) => page(path, &view),
        (Some("GET" | "HEAD"), _, None) => ("503 Service Unavailable", TEXT, "starting\n".into()),
        _ => ("405 Method Not Allowed", TEXT, "GET only\n".into()),
    };
    let head = format!(
        "HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nContent-Length: {}\r\nCache-Control: no-store\r\nConnection: close\r\n\r\n",
        body.len()
    );
    stream.write_all(head.as_bytes()).await?;
    stream.write_all(body.as_bytes()).await?;
    stream.shutdown().await
}

const TEXT: &str = "text/plain; charset=utf-8";

fn page(path: &str, view: &View) -> (&'static str, &'static str, String) {
    match path {
        "/" => ("200 OK", "text/html; charset=utf-8", html(view)),
        "/status" => (
            "200 OK",
            "application/json",
            serde_json::to_string(view).unwrap_or_default() + "\n",
        ),
        "/metrics" => ("200 OK", "text/plain; version=0.0.4", metrics(view)),
        "/healthz" if view.sensor_ok => ("200 OK", TEXT, "ok\n".into()),
        "/healthz" => (
            "503 Service Unavailable",
            TEXT,
            "the sensor gives no readings\n".into(),
        ),
        _ => (
            "404 Not Found",
            TEXT,
            "there are /, /status, /metrics and /healthz\n".into(),
        ),
    }
}

fn html(view: &View) -> String {
    let text = view
        .to_string()
        .replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;");
    format!(
        "<!doctype html><meta charset=utf-8><meta http-equiv=refresh content=5>\
         <meta name=viewport content='width=device-width'><title>nightlight</title>\
         <pre style='font-size:1.1em;white-space:pre-wrap'>{text}</pre>\n"
    )
}

/// The text format of Prometheus.
fn metrics(view: &View) -> String {
    let mut text = String::new();
    let mut gauge = |name: &str, help: &str, value: f64| {
        text.push_str(&format!(
            "# HELP nightlight_{name} {help}\n# TYPE nightlight_{name} gauge\nnightlight_{name} {value}\n"
        ));
    };
    let truth = |is: bool| f64::from(u8::from(is));
    if let Some(light) = view.light {
        gauge("light", "The last light, in the sensor's unit.", light);
    }
    gauge("led_on", "Whether the LED is on.", truth(view.led_on));
    gauge(
        "link_up",
        "Whether the broker is connected.",
        truth(view.link_up),
    );
    gauge(
        "remote",
        "Whether the server decides about the LED.",
        truth(view.by == "remote"),
    );
    gauge(
        "sensor_ok",
        "Whether the sensor gives readings.",
        truth(view.sensor_ok),
    );
    gauge(
        "backlog_records",
        "Records that are not confirmed.",
        view.backlog as f64,
    );
    gauge(
        "store_ok",
        "Whether the store of the backlog is open and takes records.",
        truth(view.store_ok),
    );
    gauge(
        "outage_seconds",
        "How long the outage under way lasts.",
        view.outage.unwrap_or_default(),
    );
    gauge(
        "last_seq",
        "The number of the newest record of this run.",
        view.last_seq as f64,
    );
    gauge(
        "commands_refused",
        "Commands refused since the start.",
        view.commands_refused as f64,
    );
    text
}
