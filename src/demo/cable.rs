//! The cable between the agent and the broker: a TCP proxy on this machine that can be pulled and
//! mended.
//!
//! Pulled, it does what a pulled cable does: what was open falls silent, nobody is told, and what is
//! sent is gone; new connections are closed at once. When it is mended, the silent connections are
//! closed. It does not know MQTT. Runs on the demonstration's runtime; the story pulls it.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::Instant;

/// When nothing more can be accepted (no file handles), the next try.
const ACCEPT_RETRY: Duration = Duration::from_millis(100);

/// A cable; gone when dropped.
#[derive(Debug)]
pub(super) struct Cable {
    port: u16,
    is_in: watch::Sender<bool>,
    moved: Arc<watch::Sender<Instant>>,
    task: JoinHandle<()>,
}

impl Cable {
    /// Lays a cable to the broker at `host`, `port`. It is plugged in.
    ///
    /// # Errors
    /// There is no free port on this machine.
    pub(super) async fn lay(host: &str, port: u16) -> io::Result<Self> {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await?;
        let near = listener.local_addr()?.port();
        let (is_in, plugged) = watch::channel(true);
        let moved = Arc::new(watch::Sender::new(Instant::now()));
        let far = (host.to_owned(), port);
        let task = tokio::spawn(accept(listener, far, plugged, Arc::clone(&moved)));
        Ok(Self {
            port: near,
            is_in,
            moved,
            task,
        })
    }

    /// Where the agent plugs in, on 127.0.0.1.
    pub(super) fn port(&self) -> u16 {
        self.port
    }

    /// Pulls the cable.
    pub(super) fn pull(&self) {
        self.is_in.send_replace(false);
    }

    /// Plugs it in again.
    pub(super) fn mend(&self) {
        self.is_in.send_replace(true);
    }

    /// Whether it is plugged in.
    pub(super) fn is_in(&self) -> bool {
        *self.is_in.borrow()
    }

    /// How long nothing has moved in it.
    pub(super) fn idle(&self) -> Duration {
        self.moved.borrow().elapsed()
    }
}

impl Drop for Cable {
    fn drop(&mut self) {
        // The connections hang on the task and go with it.
        self.task.abort();
    }
}

async fn accept(
    listener: TcpListener,
    far: (String, u16),
    plugged: watch::Receiver<bool>,
    moved: Arc<watch::Sender<Instant>>,
) {
    let mut connections = tokio::task::JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((near, _)) if *plugged.borrow() => {
                    connections.spawn(carry(near, far.clone(), plugged.clone(), Arc::clone(&moved)));
                }
                Ok((near, _)) => drop(near),
                Err(_) => tokio::time::sleep(ACCEPT_RETRY).await,
            },
            Some(_) = connections.join_next() => {}
        }
    }
}

/// Carries one connection until either end closes it, or the cable has been pulled and mended.
async fn carry(
    mut near: TcpStream,
    far: (String, u16),
    mut plugged: watch::Receiver<bool>,
    moved: Arc<watch::Sender<Instant>>,
) {
    let both = async {
        let Ok(mut far) = TcpStream::connect(far).await else {
            return None;
        };
        // Without this, small packets wait for each other.
        let _ = (near.set_nodelay(true), far.set_nodelay(true));
        let (mut out, mut back) = ([0; 8192], [0; 8192]);
        Some(loop {
            let carried = tokio::select! {
                read = near.read(&mut out) => pass(read, &out, &mut far).await,
                read = far.read(&mut back) => pass(read, &back, &mut near).await,
                // The cable itself is gone, or was pulled.
                () = becomes(&mut plugged, false) => break Some(far),
            };
            moved.send_replace(Instant::now());
            if carried.is_err() {
                break None;
            }
        })
    };
    if let Some(Some(_silent)) = both.await {
        // Both ends stay open and hear nothing more, until the cable is mended.
        becomes(&mut plugged, true).await;
    }
}

/// Waits until the cable is in, or out, or gone.
async fn becomes(plugged: &mut watch::Receiver<bool>, wanted: bool) {
    let _ = plugged.wait_for(|is_in| *is_in == wanted).await;
}

/// Hands on what was read; the end of a stream counts as an error, since both directions end then.
async fn pass(read: io::Result<usize>, bytes: &[u8], to: &mut TcpStream) -> io::Result<()> {
    match read? {
        0 => Err(io::ErrorKind::UnexpectedEof.into()),
        many => to.write_all(&bytes[..many]).await,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMIT: Duration = Duration::from_secs(10);

    /// A far end that says back what it hears, and a cable to it.
    async fn cable() -> Cable {
        let echo = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        let port = echo.local_addr().unwrap().port();
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = echo.accept().await {
                tokio::spawn(async move {
                    let (mut read, mut write) = stream.split();
                    let _ = tokio::io::copy(&mut read, &mut write).await;
                });
            }
        });
        Cable::lay("127.0.0.1", port).await.unwrap()
    }

    async fn says_back(stream: &mut TcpStream) -> bool {
        let mut heard = [0; 2];
        stream.write_all(b"hi").await.is_ok()
            && matches!(
                tokio::time::timeout(LIMIT, stream.read_exact(&mut heard)).await,
                Ok(Ok(_))
            )
    }

    #[tokio::test]
    async fn pulled_it_is_silent_and_mended_it_begins_anew() {
        let cable = cable().await;
        let mut old = TcpStream::connect(("127.0.0.1", cable.port()))
            .await
            .unwrap();
        assert!(says_back(&mut old).await);
        cable.pull();
        assert!(!cable.is_in());
        // A new connection ends at once ...
        let mut new = TcpStream::connect(("127.0.0.1", cable.port()))
            .await
            .unwrap();
        assert!(!says_back(&mut new).await);
        // ... and the old one hears nothing, not even an end.
        old.write_all(b"hi").await.unwrap();
        let silence = Duration::from_millis(50);
        assert!(tokio::time::timeout(silence, old.read_u8()).await.is_err());
        cable.mend();
        let end = tokio::time::timeout(LIMIT, old.read_u8()).await.unwrap();
        assert!(end.is_err(), "what was said to a pulled cable is gone");
        let mut new = TcpStream::connect(("127.0.0.1", cable.port()))
            .await
            .unwrap();
        assert!(says_back(&mut new).await);
    }
}
