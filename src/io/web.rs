//! The device, seen from outside: the live page, `/status`, `/past`, `/metrics` and `/healthz` over HTTP.
//!
//! Served in two places, which share the code and nothing else. A Unix socket beside the backlog answers
//! `nightlight status`, on the main loop. The page on `web.listen` has a thread of its own, so that its visitors
//! meet the loop only in the few questions a second that the [`desk`] puts to it. Nothing that is served can
//! change anything.
//!
//! `guard` says who may see it, `visit` bounds the visitors, `routes` answers them, `live` feeds those who
//! stay; `frame`, `health` and `metrics` are what they read.

pub mod desk;
mod frame;
pub mod guard;
mod health;
pub mod live;
mod metrics;
pub mod routes;
mod socket;
pub mod visit;

use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, UnixListener, UnixStream};
use tokio::sync::{mpsc, oneshot};
use tracing::warn;

use crate::logic::View;
use crate::logic::past::{Happened, Past};
use desk::{Desk, Source};
use guard::Guard;
use live::Live;
use routes::Site;

pub use socket::SOCKET;

/// A local visitor has so long for everything.
const PATIENCE: Duration = Duration::from_secs(2);
/// Visitors at a time. Each listener has its own: visitors from the network take no place of local ones.
const MAX_LOCAL: usize = 32;
const MAX_REMOTE: usize = 256;
/// Lookers who wait for the loop's next turn.
const MAX_LOOKS: usize = 16;
/// However many visitors ask the page for the same, the loop is asked once in so long.
const ANSWER_KEPT: Duration = Duration::from_millis(500);

/// Somebody wants to see the device; the loop answers in its next turn.
#[derive(Debug)]
pub enum Look {
    /// As it is now.
    Now(oneshot::Sender<View>),
    /// As it is now, and what happened after the event with this number.
    Since(u64, oneshot::Sender<(View, Vec<Happened>, u64)>),
    /// As it was.
    Past(oneshot::Sender<Box<Past>>),
}

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
        self.0.send(Look::Now(sender)).await.ok()?;
        view.await.ok()
    }

    /// The device as it is now, the events after the one with the number `after`, and how many outages are over.
    pub(crate) async fn look_since(&self, after: u64) -> Option<(View, Vec<Happened>, u64)> {
        let (sender, seen) = oneshot::channel();
        self.0.send(Look::Since(after, sender)).await.ok()?;
        seen.await.ok()
    }

    /// The device as it was; none when the loop has ended.
    pub async fn look_back(&self) -> Option<Box<Past>> {
        let (sender, past) = oneshot::channel();
        self.0.send(Look::Past(sender)).await.ok()?;
        past.await.ok()
    }
}

/// Serves the socket in `folder` until dropped. One that cannot be opened is told and left out: the light does
/// not depend on it.
pub(crate) async fn serve_socket(folder: PathBuf, looker: Looker) {
    let path = folder.join(SOCKET);
    let shown = path.display().to_string();
    let bound = match socket::bind(path).await {
        Ok((listener, file)) => UnixListener::from_std(listener).map(|listener| (listener, file)),
        Err(error) => Err(error),
    };
    let (listener, _file) = match bound {
        Ok(bound) => bound,
        Err(error) => return warn!("no status socket at {shown}: {error}"),
    };
    let site = Site::local(Desk::open(Source::Loop(looker), Duration::ZERO));
    visit::receive(&site, MAX_LOCAL, PATIENCE, || async {
        Ok(listener.accept().await?.0)
    })
    .await;
}

/// The page's thread; it ends when this is dropped.
#[derive(Debug)]
pub(crate) struct PageThread {
    _stop: oneshot::Sender<()>,
}

impl PageThread {
    /// Serves the page on `address` to whom `guard` lets in. What cannot be is told and left out.
    pub(crate) fn start(address: SocketAddr, guard: Guard, looker: Looker) -> Option<Self> {
        let (stop, mut stopped) = oneshot::channel::<()>();
        let serve = move || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()?;
            runtime.block_on(async {
                let listener = TcpListener::bind(address).await?;
                let desk = Desk::open(Source::Loop(looker), ANSWER_KEPT);
                let site = Site::page(desk.clone(), guard, Live::start(desk));
                tokio::select! {
                    () = serve_page(&listener, &site) => {}
                    _ = &mut stopped => {}
                }
                Ok::<_, io::Error>(())
            })
        };
        let named = thread::Builder::new().name("page".into());
        let started = named.spawn(move || {
            if let Err(error) = serve() {
                warn!("no status page on {address}: {error}; check web.listen");
            }
        });
        match started {
            Ok(_) => Some(Self { _stop: stop }),
            Err(error) => {
                warn!("no status page on {address}: it has no thread: {error}");
                None
            }
        }
    }
}

/// Serves the site to visitors from the network, until dropped.
pub(crate) async fn serve_page(listener: &TcpListener, site: &Site) {
    visit::receive(site, MAX_REMOTE, visit::REMOTE_PATIENCE, || async {
        let stream = listener.accept().await?.0;
        // Without this, the small frames of the live stream wait for each other.
        let _ = stream.set_nodelay(true);
        Ok(stream)
    })
    .await;
}

/// What a running nightlight, whose backlog is in `folder`, says of itself, as JSON.
///
/// # Errors
/// There is none, or it does not answer within 2 s.
pub async fn ask(folder: &Path) -> io::Result<String> {
    match fetch(folder, "/status").await? {
        (true, body) => Ok(body),
        (false, body) => Err(io::Error::other(format!("it answered: {body:.80}"))),
    }
}

/// What it has at `path`, and whether that is a success.
///
/// # Errors
/// There is none, or it does not answer within 2 s.
pub async fn fetch(folder: &Path, path: &str) -> io::Result<(bool, String)> {
    let visit = async {
        let mut stream = UnixStream::connect(folder.join(SOCKET)).await?;
        let request = format!("GET {path} HTTP/1.0\r\n\r\n");
        stream.write_all(request.as_bytes()).await?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await?;
        let (head, body) = answer
            .split_once("\r\n\r\n")
            .ok_or_else(|| io::Error::other("it hung up"))?;
        let is_good = head.split(' ').nth(1) == Some("200");
        Ok((is_good, body.to_owned()))
    };
    match tokio::time::timeout(PATIENCE, visit).await {
        Ok(answer) => answer,
        Err(_) => Err(io::ErrorKind::TimedOut.into()),
    }
}
