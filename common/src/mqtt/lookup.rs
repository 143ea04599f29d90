//! The broker's name looked up, each time on a thread that nobody waits for: a name server can take
//! minutes, and neither a session nor a stop may.
//!
//! A lookup that is still under way is used again instead of starting another, and what it says too
//! late is kept for the next try. When a name server fails or is slow, the addresses that it gave last
//! are used.

use std::io;
use std::net::{SocketAddr, ToSocketAddrs};
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::Instant;
use tracing::debug;

use super::mdns;

/// After this the addresses of before are tried, if there are any.
const SLOW: Duration = Duration::from_secs(5);
/// A try to connect waits so long for a name.
const LOOKUP_TIMEOUT: Duration = Duration::from_secs(20);
/// A lookup that takes longer is left alone, and another one is started.
const HANGS: Duration = Duration::from_secs(60);
/// With so many that hang, no other one is started: each has a thread.
const MAX_HANGING: usize = 3;
/// A thread that does nothing but ask the system needs no more stack.
const STACK: usize = 512 * 1024;

type Answer = Result<Vec<SocketAddr>, String>;

/// How a name becomes addresses; may take as long as it likes.
pub(super) type Resolve = dyn Fn(&str, u16) -> io::Result<Vec<SocketAddr>> + Send + Sync;

/// The lookups of one name.
pub(super) struct Lookup {
    host: String,
    port: u16,
    resolve: Arc<Resolve>,
    running: Vec<(Instant, watch::Receiver<Option<Answer>>)>,
    /// What a name server said last.
    known: Vec<SocketAddr>,
}

/// One try's share in a lookup.
pub(super) struct Pending {
    host: String,
    answer: watch::Receiver<Option<Answer>>,
    known: Vec<SocketAddr>,
}

impl Lookup {
    /// By the system's resolver; a name of the local network by avahi before that. An address needs none.
    pub(super) fn new(host: &str, port: u16) -> Self {
        let system = |host: &str, port| Ok((host, port).to_socket_addrs()?.collect());
        match mdns::is_local(host) {
            true => Self::with(
                host,
                port,
                Arc::new(move |host: &str, port| mdns::resolve(host, port, system)),
            ),
            false => Self::with(host, port, Arc::new(system)),
        }
    }

    /// By `resolve`.
    pub(super) fn with(host: &str, port: u16, resolve: Arc<Resolve>) -> Self {
        Self {
            host: host.to_owned(),
            port,
            resolve,
            running: Vec::new(),
            known: Vec::new(),
        }
    }

    /// For one try to connect.
    pub(super) fn begin(&mut self) -> Pending {
        for (_, answer) in &self.running {
            if let Some(Ok(addresses)) = &*answer.borrow() {
                self.known.clone_from(addresses);
            }
        }
        self.running
            .retain(|(_, answer)| answer.has_changed().is_ok() && answer.borrow().is_none());
        let newest = self.running.last();
        let usable = newest
            .filter(|(begun, _)| begun.elapsed() < HANGS || self.running.len() >= MAX_HANGING);
        let answer = match usable {
            Some((_, answer)) => answer.clone(),
            None => {
                let answer = self.start();
                self.running.push((Instant::now(), answer.clone()));
                answer
            }
        };
        Pending {
            host: self.host.clone(),
            answer,
            known: self.known.clone(),
        }
    }

    fn start(&self) -> watch::Receiver<Option<Answer>> {
        debug!("looking up {}", self.host);
        let (sender, answer) = watch::channel(None);
        let (host, port, resolve) = (self.host.clone(), self.port, Arc::clone(&self.resolve));
        // Without a thread the sender is dropped, and so is the try.
        let _ = thread::Builder::new()
            .name("lookup".into())
            .stack_size(STACK)
            .spawn(move || {
                let answer = resolve(&host, port).map_err(|error| in_words(&error));
                sender.send_replace(Some(answer));
            });
        answer
    }
}

impl Pending {
    /// The addresses, in the resolver's order; at least one.
    ///
    /// # Errors
    /// Why there is none, in words.
    pub(super) async fn addresses(mut self) -> Result<Vec<SocketAddr>, String> {
        let begun = Instant::now();
        let limit = match self.known.is_empty() {
            true => LOOKUP_TIMEOUT,
            false => SLOW,
        };
        let asked = tokio::time::timeout(limit, self.answer.wait_for(Option::is_some)).await;
        let answer = match asked {
            Ok(Ok(answer)) => answer.clone().unwrap_or_else(|| Ok(Vec::new())),
            Ok(Err(_)) => Err("the system has no thread for it".into()),
            Err(_) => Err(format!("no answer within {} s", limit.as_secs())),
        };
        let why = match answer {
            Ok(addresses) if !addresses.is_empty() => {
                let took = begun.elapsed().as_millis();
                debug!("{} is {addresses:?}, looked up in {took} ms", self.host);
                return Ok(addresses);
            }
            Ok(_) => "it has no address".to_owned(),
            Err(why) => why,
        };
        if !self.known.is_empty() {
            let (host, known) = (&self.host, &self.known);
            debug!("{host} cannot be looked up ({why}); trying what it was before: {known:?}");
            return Ok(self.known);
        }
        let what_to_do = match mdns::is_local(&self.host) {
            true => "",
            false => "; check the name in broker.url and the name server of this machine",
        };
        Err(format!(
            "the name {} cannot be looked up: {why}{what_to_do}",
            self.host
        ))
    }
}

/// The system's own words, without the library's before them.
fn in_words(error: &io::Error) -> String {
    let text = error.to_string();
    match text.strip_prefix("failed to lookup address information: ") {
        Some(why) => why.to_owned(),
        None => text,
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::sync::{Condvar, Mutex};

    use super::*;

    fn on_paused_time<F: Future>(future: F) -> F::Output {
        tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .start_paused(true)
            .build()
            .unwrap()
            .block_on(future)
    }

    fn address() -> SocketAddr {
        "192.0.2.7:1883".parse().unwrap()
    }

    /// A resolver that answers when it is let go.
    struct Gate {
        open: Mutex<bool>,
        changed: Condvar,
        calls: AtomicUsize,
    }

    impl Gate {
        fn new() -> (Arc<Self>, Lookup) {
            let gate = Arc::new(Self {
                open: Mutex::new(false),
                changed: Condvar::new(),
                calls: AtomicUsize::new(0),
            });
            let own = Arc::clone(&gate);
            let lookup = Lookup::with(
                "hub",
                1883,
                Arc::new(move |_: &str, _| {
                    own.calls.fetch_add(1, Ordering::SeqCst);
                    let open = own.open.lock().unwrap();
                    drop(own.changed.wait_while(open, |open| !*open).unwrap());
                    Ok(vec![address()])
                }),
            );
            (gate, lookup)
        }

        fn open(&self) {
            *self.open.lock().unwrap() = true;
            self.changed.notify_all();
        }
    }

    #[test]
    fn a_lookup_that_hangs_is_given_up_and_its_late_answer_is_used() {
        on_paused_time(async {
            let (gate, mut lookup) = Gate::new();
            let begun = Instant::now();
            let why = lookup.begin().addresses().await.unwrap_err();
            assert!(why.contains("hub") && why.contains("broker.url"), "{why}");
            assert_eq!(begun.elapsed(), LOOKUP_TIMEOUT);
            let again = lookup.begin();
            gate.open();
            // The clock of this test does not wait for the thread.
            while lookup
                .running
                .iter()
                .any(|(_, answer)| answer.borrow().is_none())
            {
                thread::yield_now();
            }
            assert_eq!(again.addresses().await, Ok(vec![address()]));
            assert_eq!(gate.calls.load(Ordering::SeqCst), 1, "one thread for both");
        });
    }

    #[test]
    fn a_name_server_that_fails_later_leaves_the_addresses_of_before() {
        on_paused_time(async {
            let calls = AtomicUsize::new(0);
            let resolve = move |_: &str, _| match calls.fetch_add(1, Ordering::SeqCst) {
                0 => Ok(vec![address()]),
                _ => Err(io::Error::other(
                    "failed to lookup address information: gone",
                )),
            };
            let mut lookup = Lookup::with("hub", 1883, Arc::new(resolve));
            for _ in 0..3 {
                let pending = lookup.begin();
                while lookup
                    .running
                    .iter()
                    .any(|(_, answer)| answer.borrow().is_none())
                {
                    thread::yield_now();
                }
                assert_eq!(pending.addresses().await, Ok(vec![address()]));
            }
        });
    }

    #[test]
    fn lookups_that_hang_for_ever_have_few_threads() {
        on_paused_time(async {
            let (gate, mut lookup) = Gate::new();
            for _ in 0..50 {
                assert!(lookup.begin().addresses().await.is_err());
            }
            assert_eq!(lookup.running.len(), MAX_HANGING);
            gate.open();
        });
    }
}
