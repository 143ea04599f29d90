//! The device, seen from outside: a status page, `/status`, `/metrics` and `/healthz` over HTTP.
//!
//! Served on a Unix socket beside the backlog, which `nightlight status` reads, and on `web.listen` if
//! that is configured; several visitors at a time, each bounded in time and size. It asks the loop for its
//! picture when somebody looks, and can change nothing. The daemon starts it.

use std::collections::VecDeque;
use std::fs;
use std::io;
use std::net::SocketAddr;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, UnixListener, UnixStream};
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinSet;
use tracing::warn;

use crate::logic::View;

/// The socket's name in the backlog's folder.
pub const SOCKET: &str = "status.sock";
/// Longer requests are cut off.
const REQUEST: usize = 4 * 1024;
/// A visitor has so long for everything.
const PATIENCE: Duration = Duration::from_secs(2);
/// Visitors at a time. Each listener has its own: visitors from the network take no place of local ones.
const MAX_LOCAL: usize = 32;
const MAX_REMOTE: usize = 128;
/// Lookers who wait for the loop's next turn.
const MAX_LOOKS: usize = 16;

/// Somebody wants to see the device; the loop answers in its next turn.
pub type Look = oneshot::Sender<View>;

/// Asks the loop for the picture of the device.
#[derive(Debug, Clone)]
pub struct Looker(mpsc::Sender<Look>);

impl Looker {
    /// A looker, and where the loop finds the questions.
    pub fn new() -> (Self, mpsc::Receiver<Look>) {
        let (sender, looks) = mpsc::channel(MAX_LOOKS);
        (Self(sender), looks)
    }

    /// The device as it is now; none when the loop has ended.
    pub async fn look(&self) -> Option<View> {
        let (sender, view) = oneshot::channel();
        self.0.send(sender).await.ok()?;
        view.await.ok()
    }
}

/// Serves the socket in `folder`, and `listen` if there is one, until dropped. A door that cannot be
/// opened is told and left out: the light does not depend on it.
pub async fn serve(folder: PathBuf, listen: Option<SocketAddr>, looker: Looker) {
    let socket = serve_socket(folder.join(SOCKET), looker.clone());
    match listen {
        Some(address) => {
            tokio::join!(socket, serve_tcp(address, looker));
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

async fn serve_socket(path: PathBuf, looker: Looker) {
    let shown = path.display().to_string();
    let bound = match beside(move || SocketFile::bind(path)).await {
        Ok(bound) => bound.and_then(|(listener, file)| {
            listener.set_nonblocking(true)?;
            Ok((UnixListener::from_std(listener)?, file))
        }),
        Err(error) => Err(error),
    };
    let (listener, _file) = match bound {
        Ok(bound) => bound,
        Err(error) => return warn!("no status socket at {shown}: {error}"),
    };
    receive(&looker, MAX_LOCAL, || async {
        Ok(listener.accept().await?.0)
    })
    .await;
}

/// Work for the disk, which may take long, on a thread of its own.
async fn beside<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> io::Result<T> {
    let (sender, answer) = oneshot::channel();
    thread::Builder::new()
        .name("socket".into())
        .spawn(move || drop(sender.send(work())))?;
    answer.await.map_err(io::Error::other)
}

/// The socket's file. It is removed when nobody listens any more, unless it is another one by then.
struct SocketFile {
    path: PathBuf,
    device_and_inode: Option<(u64, u64)>,
}

impl SocketFile {
    /// Listens at `path`. A socket that a killed run has left there is replaced; one at which somebody
    /// listens is not, nor is anything that is no socket.
    fn bind(path: PathBuf) -> io::Result<(std::os::unix::net::UnixListener, Self)> {
        // The folder is the backlog's; its thread may not have made it yet.
        if let Some(folder) = path.parent() {
            fs::create_dir_all(folder)?;
        }
        if let Ok(there) = path.symlink_metadata() {
            if !there.file_type().is_socket() {
                return Err(io::Error::other("it is no socket; move it away"));
            }
            if is_live(&path) {
                return Err(io::Error::other(
                    "another nightlight listens there; give this one a backlog.path of its own",
                ));
            }
            fs::remove_file(&path)?;
        }
        let listener = std::os::unix::net::UnixListener::bind(&path)?;
        let device_and_inode = identity(&path);
        let file = Self {
            path,
            device_and_inode,
        };
        Ok((listener, file))
    }
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        if identity(&self.path) == self.device_and_inode {
            let _ = fs::remove_file(&self.path);
        }
    }
}

fn identity(path: &Path) -> Option<(u64, u64)> {
    let file = path.symlink_metadata().ok()?;
    Some((file.dev(), file.ino()))
}

/// Whether somebody listens at this socket. Does not wait: one whose queue is full is live too.
fn is_live(path: &Path) -> bool {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let connected = SocketAddrUnix::new(path).and_then(|address| {
        let socket =
            rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
        rustix::net::connect(&socket, &address)
    });
    connected != Err(Errno::CONNREFUSED)
}

async fn serve_tcp(address: SocketAddr, looker: Looker) {
    let listener = match TcpListener::bind(address).await {
        Ok(listener) => listener,
        Err(error) => {
            return warn!("no status page on {address}: {error}; check web.listen");
        }
    };
    receive(&looker, MAX_REMOTE, || async {
        Ok(listener.accept().await?.0)
    })
    .await;
}

/// At most `max` visitors at a time, each with a time limit. One more takes the place of the one that has
/// been there longest: whoever sends a request is answered at once, so that one has sent none.
async fn receive<S, F>(looker: &Looker, max: usize, next: impl Fn() -> F)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    F: Future<Output = io::Result<S>>,
{
    let mut visits = JoinSet::new();
    let mut oldest_first = VecDeque::new();
    loop {
        match next().await {
            Ok(stream) => {
                while visits.try_join_next().is_some() {}
                oldest_first.retain(|visit: &tokio::task::AbortHandle| !visit.is_finished());
                if oldest_first.len() >= max
                    && let Some(oldest) = oldest_first.pop_front()
                {
                    oldest.abort();
                }
                let looker = looker.clone();
                oldest_first.push_back(visits.spawn(async move {
                    // A visitor who leaves early, or says nothing, takes nothing from the others.
                    let _ = tokio::time::timeout(PATIENCE, answer(stream, &looker)).await;
                }));
            }
            // Out of descriptors, most likely: not worth more than a pause.
            Err(_) => tokio::time::sleep(PATIENCE).await,
        }
    }
}

async fn answer<S>(mut stream: S, looker: &Looker) -> io::Result<()>
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
    let (status, kind, body) = match (words.next(), words.next()) {
        (Some("GET" | "HEAD"), Some(path)) => match looker.look().await {
            Some(view) => page(path, &view),
            None => ("503 Service Unavailable", TEXT, "stopping\n".into()),
        },
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
        "/healthz" if !view.led_ok => (
            "503 Service Unavailable",
            TEXT,
            "the LED cannot be written\n".into(),
        ),
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
    let escaped = |text: &str| {
        text.replace('&', "&amp;")
            .replace('<', "&lt;")
            .replace('>', "&gt;")
    };
    let (text, device) = (escaped(&view.to_string()), escaped(&view.device));
    format!(
        "<!doctype html><meta charset=utf-8><meta http-equiv=refresh content=5>\
         <meta name=viewport content='width=device-width'><title>nightlight {device}</title>\
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
        gauge(
            "light",
            "The last light, in the sensor's unit; absent while the sensor fails.",
            light,
        );
    }
    if let Some(age) = view.light_age_s {
        gauge(
            "light_age_seconds",
            "How long ago the last reading was.",
            age,
        );
    }
    if let Some(led_on) = view.led_on {
        gauge(
            "led_on",
            "Whether the LED is on, as last written or read back.",
            truth(led_on),
        );
    }
    gauge(
        "led_ok",
        "Whether the LED can be written.",
        truth(view.led_ok),
    );
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
        view.outage_s.unwrap_or_default(),
    );
    if let Some(lost) = view.last_outage.as_ref().and_then(|last| last.lost) {
        gauge(
            "last_outage_lost",
            "Records that the last outage lost; absent before the first and at QoS 0, where nobody knows.",
            lost as f64,
        );
    }
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
