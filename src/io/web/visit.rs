//! The visitors: so many at a time, each bounded in time and size, none in the way of another.
//!
//! Each connection is one request. One visitor more than there are places takes that of the visitor who has been
//! there longest: whoever sends a request is answered at once, so that one has sent none. Those who watch the
//! live stream may stay; they are counted by `live`, and leave when they take nothing for a while.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use hyper::body::{Body, Bytes, Frame};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::mpsc;
use tokio::task::{AbortHandle, JoinSet};

use super::routes::{self, Site};

/// A visitor from the network has so long for everything.
pub(crate) const REMOTE_PATIENCE: Duration = Duration::from_secs(10);
/// Longer requests are refused; hyper takes no less.
const MAX_REQUEST: usize = 8 * 1024;
/// After an accept that failed, such as without a free descriptor.
const ACCEPT_RETRY: Duration = Duration::from_secs(1);
/// A viewer who has taken nothing for so long has left without a word.
const VIEWER_SILENT: Duration = Duration::from_secs(30);

/// What a visitor is sent.
#[derive(Debug)]
pub enum Reply {
    /// All of it.
    Whole(Option<Bytes>),
    /// What comes, for as long as it comes.
    Live {
        /// What comes.
        frames: mpsc::Receiver<Bytes>,
        /// What is sent first.
        hello: Option<Bytes>,
        /// Told each time that the viewer is ready for more.
        stay: Stay,
    },
}

/// What the connection knows of a visitor who stays.
#[derive(Debug, Clone, Default)]
pub struct Stay {
    is_viewer: Arc<AtomicBool>,
    /// Frames taken.
    taken: Arc<AtomicU64>,
}

impl Stay {
    /// This one watches the live stream.
    pub fn watches(&self) {
        self.is_viewer.store(true, Ordering::Relaxed);
    }
}

impl Body for Reply {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        match &mut *self {
            Reply::Whole(bytes) => Poll::Ready(bytes.take().map(|bytes| Ok(Frame::data(bytes)))),
            Reply::Live {
                frames,
                hello,
                stay,
            } => {
                if let Some(hello) = hello.take() {
                    return Poll::Ready(Some(Ok(Frame::data(hello))));
                }
                let next = frames.poll_recv(context);
                if next.is_ready() {
                    stay.taken.fetch_add(1, Ordering::Relaxed);
                }
                next.map(|bytes| bytes.map(|bytes| Ok(Frame::data(bytes))))
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        matches!(self, Reply::Whole(None))
    }

    fn size_hint(&self) -> hyper::body::SizeHint {
        match self {
            Reply::Whole(Some(bytes)) => hyper::body::SizeHint::with_exact(bytes.len() as u64),
            Reply::Whole(None) => hyper::body::SizeHint::with_exact(0),
            Reply::Live { .. } => hyper::body::SizeHint::default(),
        }
    }
}

/// Answers those who come, at most `max` at a time and each within `patience`, until dropped.
pub async fn receive<S, F>(site: &Site, max: usize, patience: Duration, next: impl Fn() -> F)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    F: Future<Output = io::Result<S>>,
{
    let mut visits = JoinSet::new();
    let mut oldest_first: VecDeque<(AbortHandle, Stay)> = VecDeque::new();
    loop {
        let Ok(stream) = next().await else {
            // Out of descriptors, most likely: not worth more than a pause.
            tokio::time::sleep(ACCEPT_RETRY).await;
            continue;
        };
        while visits.try_join_next().is_some() {}
        oldest_first.retain(|(visit, stay)| {
            !visit.is_finished() && !stay.is_viewer.load(Ordering::Relaxed)
        });
        if oldest_first.len() >= max
            && let Some((oldest, _)) = oldest_first.pop_front()
        {
            oldest.abort();
        }
        let stay = Stay::default();
        let visit = visits.spawn(answer(stream, site.clone(), stay.clone(), patience));
        oldest_first.push_back((visit, stay));
    }
}

async fn answer<S>(stream: S, site: Site, stay: Stay, patience: Duration)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let for_request = stay.clone();
    let service = service_fn(move |request| {
        let (site, stay) = (site.clone(), for_request.clone());
        async move { Ok::<_, Infallible>(routes::answer(request, &site, stay).await) }
    });
    let connection = http1::Builder::new()
        .keep_alive(false)
        .max_buf_size(MAX_REQUEST)
        .serve_connection(TokioIo::new(stream), service);
    let mut connection = std::pin::pin!(connection);
    // A visitor who leaves early, or says nothing, takes nothing from the others.
    if tokio::time::timeout(patience, connection.as_mut())
        .await
        .is_ok()
        || !stay.is_viewer.load(Ordering::Relaxed)
    {
        return;
    }
    let mut taken = stay.taken.load(Ordering::Relaxed);
    while tokio::time::timeout(VIEWER_SILENT, connection.as_mut())
        .await
        .is_err()
    {
        let now = stay.taken.load(Ordering::Relaxed);
        if std::mem::replace(&mut taken, now) == now {
            return;
        }
    }
}
