//! The way to the broker: one session after the other, with waits between them, and what is to be told in the
//! one that stands.
//!
//! What waits to be told dies with the session: what was not acknowledged in it comes again in the next one. The
//! shell decides what is said, and whether there is a reason to connect.

use std::time::Duration;

use tokio::time::Instant;
use tracing::warn;

use nightlight_common::config::Broker;
use nightlight_logic::backoff::{Backoff, jittered};

use crate::outbox::{Message, Outbox};
use crate::session::{Door, Heard, Plan, Session};

/// Waits between tries to connect; the refused wait longer.
const BACKOFF_FIRST: Duration = Duration::from_millis(500);
const BACKOFF_LONGEST: Duration = Duration::from_secs(10);
const BACKOFF_REFUSED: Duration = Duration::from_secs(30);
/// A session that stood for so long was a good one: the backoff begins again.
const GOOD_SESSION: Duration = Duration::from_secs(5);
/// What waits for room in the client is handed over after this at the latest.
const FLUSH_WITHIN: Duration = Duration::from_millis(20);
/// A try that is due is made so soon, and not at once: whatever prevents it must not spin the loop.
const RETRY_WITHIN: Duration = Duration::from_millis(10);

/// The way to the broker.
pub(crate) struct Uplink {
    door: Door,
    state: State,
    /// Sessions so far, and tries to make one.
    sessions: u64,
    backoff: Backoff,
    out: Outbox,
}

enum State {
    Down {
        retry_at: Instant,
    },
    Up {
        session: Session,
        since: Option<Instant>,
    },
}

impl Uplink {
    /// Not connected; the first try is due.
    pub(crate) fn new(broker: Broker, plan: Plan) -> Self {
        Self {
            door: Door::new(broker, plan),
            state: State::Down {
                retry_at: Instant::now(),
            },
            sessions: 0,
            backoff: Backoff::new(BACKOFF_FIRST, BACKOFF_LONGEST),
            out: Outbox::default(),
        }
    }

    /// Begins a session when it is time to; true when it did.
    pub(crate) fn connect_if_due(&mut self) -> bool {
        let State::Down { retry_at } = self.state else {
            return false;
        };
        if Instant::now() < retry_at {
            return false;
        }
        self.sessions += 1;
        self.state = State::Up {
            session: self.door.open(),
            since: None,
        };
        true
    }

    /// The next try is due now, whatever it was that failed before.
    pub(crate) fn retry_now(&mut self) {
        self.backoff.reset();
        if let State::Down { retry_at } = &mut self.state {
            *retry_at = Instant::now();
        }
    }

    /// The session's next word; never, without a session.
    pub(crate) async fn next(&mut self) -> Heard {
        match &mut self.state {
            State::Up { session, .. } => session.next().await,
            State::Down { .. } => std::future::pending().await,
        }
    }

    /// The session stands.
    pub(crate) fn up(&mut self) {
        if let State::Up { since, .. } = &mut self.state {
            *since = Some(Instant::now());
        }
    }

    /// The session is over, or there was none; the broker `refused` us, or was not there.
    pub(crate) fn down(&mut self, why: &str, refused: bool) {
        if let State::Up { session, since } = &self.state {
            if since.is_some_and(|since| since.elapsed() >= GOOD_SESSION) {
                self.backoff.reset();
            }
            self.door.ended(session);
        }
        let next = self.backoff.next(fastrand::f64());
        let wait = match refused {
            true => jittered(BACKOFF_REFUSED, fastrand::f64()),
            false => next,
        };
        warn!("no link: {why}; next try in {:.1} s", wait.as_secs_f64());
        self.state = State::Down {
            retry_at: Instant::now() + wait,
        };
        self.out = Outbox::default();
    }

    /// Whether there is a session that stands.
    pub(crate) fn is_up(&self) -> bool {
        matches!(self.state, State::Up { since: Some(_), .. })
    }

    /// Names the session: what was asked in another one belongs to nobody any more.
    pub(crate) fn session(&self) -> u64 {
        self.sessions
    }

    /// The broker, without user and password.
    pub(crate) fn url(&self) -> String {
        self.door.broker.url()
    }

    /// Whether a command would be on its way at once; `None` without a session, else whether nothing came lately.
    pub(crate) fn is_idle(&self) -> Option<bool> {
        match &self.state {
            State::Up { session, .. } if !self.out.is_pressed() => Some(session.is_idle()),
            _ => None,
        }
    }

    /// For acks and accounts, which have time. Without a session nobody is told.
    pub(crate) fn publish(&mut self, topic: String, retain: bool, payload: String) {
        if self.is_up() {
            self.out.publish(Message {
                topic,
                retain,
                payload,
                expiry: None,
            });
        }
    }

    /// For commands and status, which have none.
    pub(crate) fn publish_first(&mut self, message: Message) {
        if self.is_up() {
            self.out.publish_first(message);
        }
    }

    /// The message with this packet id is kept, or need not be. After the acks of what was in it.
    pub(crate) fn acknowledge(&mut self, pkid: u16) {
        self.out.acknowledge(pkid);
    }

    /// The broker has confirmed a publication.
    pub(crate) fn confirmed(&mut self) {
        self.out.confirmed();
    }

    /// Hands over what there is room for; false when the broker has long stopped to take anything.
    pub(crate) fn flush(&mut self) -> bool {
        if let State::Up { session, .. } = &mut self.state {
            self.out.flush(session);
        }
        !self.out.is_stuck()
    }

    /// Whether all is told and confirmed, or nobody is there to be told.
    pub(crate) fn is_done(&self) -> bool {
        !self.is_up() || self.out.is_done()
    }

    /// When it is to be looked at again.
    pub(crate) fn deadline(&self, now: Instant) -> Option<Instant> {
        match self.state {
            State::Down { retry_at } => Some(retry_at.max(now + RETRY_WITHIN)),
            State::Up { .. } => self.out.waits().then(|| now + FLUSH_WITHIN),
        }
    }

    /// Says goodbye.
    pub(crate) async fn close(self) {
        if let State::Up { session, .. } = self.state {
            session.close().await;
        }
    }
}
