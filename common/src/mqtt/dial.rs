//! TCP to a broker that may have several addresses, some of them dead.
//!
//! They are tried in the manner of RFC 8305: both families by turns, the next one a moment after the
//! one before and at once when that fails, and the first that answers is taken. Each has a time of its
//! own. What is said over the connection, and whether this address is any good, is seen later: the race
//! then goes on with the others.

use std::collections::VecDeque;
use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::Instant;
use tracing::debug;

use super::words::LinkError;

/// The next address is tried so long after the one before (RFC 8305, section 5).
const STAGGER: Duration = Duration::from_millis(250);
/// An address has so long to answer: the second retransmission of a SYN is 3 s after the first packet,
/// the third 7 s.
const TCP_TIMEOUT: Duration = Duration::from_secs(10);
/// More addresses than a name of a broker has.
const MAX_ADDRESSES: usize = 16;

/// The addresses in the order in which they are tried: families by turns; the one that `worked` first,
/// the one that `failed` last.
pub(super) fn order(
    addresses: Vec<SocketAddr>,
    worked: Option<SocketAddr>,
    failed: Option<SocketAddr>,
) -> Vec<SocketAddr> {
    let mut ordered: Vec<SocketAddr> = Vec::new();
    let first_is_ipv6 = addresses.first().is_some_and(SocketAddr::is_ipv6);
    let (mut one, mut other): (VecDeque<_>, VecDeque<_>) = addresses
        .into_iter()
        .partition(|address| address.is_ipv6() == first_is_ipv6);
    while let Some(address) = one.pop_front().or_else(|| other.pop_front()) {
        if !ordered.contains(&address) {
            ordered.push(address);
        }
        std::mem::swap(&mut one, &mut other);
    }
    // Stable: the others keep their order.
    ordered.sort_by_key(|address| match Some(*address) {
        address if address == worked => 0,
        address if address == failed => 2,
        _ => 1,
    });
    ordered.truncate(MAX_ADDRESSES);
    ordered
}

/// The way to one of several addresses.
pub(super) struct Race {
    waiting: VecDeque<SocketAddr>,
    under_way: Vec<SocketAddr>,
    attempts: JoinSet<(SocketAddr, io::Result<TcpStream>)>,
    start_at: Instant,
    /// What became of the others.
    pub(super) failed: Vec<(SocketAddr, LinkError)>,
}

impl Race {
    pub(super) fn new(addresses: Vec<SocketAddr>) -> Self {
        Self {
            waiting: addresses.into(),
            under_way: Vec::new(),
            attempts: JoinSet::new(),
            start_at: Instant::now(),
            failed: Vec::new(),
        }
    }

    /// The next address that answers; none when all have had their turn. The race rests until it is
    /// asked again.
    pub(super) async fn next(&mut self) -> Option<(SocketAddr, TcpStream)> {
        self.start_at = Instant::now();
        loop {
            if Instant::now() >= self.start_at
                && let Some(address) = self.waiting.pop_front()
            {
                self.under_way.push(address);
                self.attempts.spawn(attempt(address));
                self.start_at = Instant::now() + STAGGER;
            }
            if self.attempts.is_empty() && self.waiting.is_empty() {
                return None;
            }
            tokio::select! {
                Some(done) = self.attempts.join_next(), if !self.attempts.is_empty() => {
                    // An attempt that is aborted, below, is not waited for.
                    let Ok((address, tried)) = done else { continue };
                    self.under_way.retain(|other| *other != address);
                    match tried {
                        Ok(tcp) => {
                            self.rest();
                            return Some((address, tcp));
                        }
                        Err(error) => {
                            debug!("{address}: {error}");
                            self.failed.push((address, error.into()));
                            self.start_at = Instant::now();
                        }
                    }
                }
                () = tokio::time::sleep_until(self.start_at), if !self.waiting.is_empty() => {}
            }
        }
    }

    /// One has won; the others begin again if it turns out to be no good.
    fn rest(&mut self) {
        self.attempts = JoinSet::new();
        for address in self.under_way.drain(..).rev() {
            self.waiting.push_front(address);
        }
    }
}

/// TCP to one address, in its time.
pub(super) async fn attempt(address: SocketAddr) -> (SocketAddr, io::Result<TcpStream>) {
    debug!("{address}: connecting");
    let begun = Instant::now();
    let tried = match tokio::time::timeout(TCP_TIMEOUT, TcpStream::connect(address)).await {
        Ok(tried) => tried,
        Err(_) => Err(io::ErrorKind::TimedOut.into()),
    };
    if tried.is_ok() {
        let took = begun.elapsed().as_millis();
        debug!("{address}: TCP is up after {took} ms");
    }
    (address, tried)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn addresses(texts: &[&str]) -> Vec<SocketAddr> {
        texts.iter().map(|text| text.parse().unwrap()).collect()
    }

    #[test]
    fn families_take_turns_and_what_is_known_of_an_address_counts() {
        let all = addresses(&[
            "[::1]:1",
            "[::2]:1",
            "127.0.0.1:1",
            "127.0.0.2:1",
            "[::1]:1",
        ]);
        let ordered = order(all.clone(), None, None);
        assert_eq!(
            ordered,
            addresses(&["[::1]:1", "127.0.0.1:1", "[::2]:1", "127.0.0.2:1"])
        );
        let ordered = order(all.clone(), Some(all[3]), Some(all[0]));
        assert_eq!(
            ordered,
            addresses(&["127.0.0.2:1", "127.0.0.1:1", "[::2]:1", "[::1]:1"])
        );
        // An address that the name has no more is not tried.
        let ordered = order(all, Some("127.0.0.9:1".parse().unwrap()), None);
        assert_eq!(ordered.len(), 4);
    }

    #[test]
    fn dead_addresses_before_it_do_not_hide_a_good_one() {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        runtime.block_on(async {
            let good = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
            let port = good.local_addr().unwrap().port();
            let silent = full_backlog();
            let mut race = Race::new(vec![
                silent.1,
                SocketAddr::from(([127, 0, 0, 2], port)),
                good.local_addr().unwrap(),
            ]);
            let begun = Instant::now();
            let (address, _tcp) = race.next().await.unwrap();
            assert_eq!(address, good.local_addr().unwrap());
            assert!(begun.elapsed() < Duration::from_secs(3));
            assert_eq!(race.failed.len(), 1, "{:?}", race.failed);
            // It was no good after all: the one that was under way has its turn again.
            assert_eq!(race.waiting, [silent.1]);
        });
    }

    /// An address that answers nothing, like one behind a broken route: a listener whose queue is full.
    fn full_backlog() -> (Vec<std::net::TcpStream>, SocketAddr, rustix::fd::OwnedFd) {
        use rustix::net;
        let socket = net::socket(net::AddressFamily::INET, net::SocketType::STREAM, None).unwrap();
        net::bind(&socket, &SocketAddr::from(([127, 0, 0, 1], 0))).unwrap();
        net::listen(&socket, 0).unwrap();
        let address = net::getsockname(&socket).unwrap();
        let address = SocketAddr::try_from(address).unwrap();
        let mut held = Vec::new();
        // Until one is not taken any more.
        while let Ok(stream) =
            std::net::TcpStream::connect_timeout(&address, Duration::from_millis(200))
        {
            held.push(stream);
            assert!(held.len() < 100);
        }
        (held, address, socket)
    }
}
