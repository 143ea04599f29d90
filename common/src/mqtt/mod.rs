//! The way to a broker: `ways` goes it, by `access` (its files), `route` (which address first), `lookup` (names) and
//! `mdns` (those that end in `.local`), `dial` (TCP to one of several), `handshake` (TLS, WebSocket) with `tls`; then
//! `exchange` moves packets: `packet` says what they are, `dialect` how MQTT 3.1.1 and 5 write them, `framing` where
//! they begin and end, `ids` which packet id is whose, `terms` what the broker offers. `words` says why it failed,
//! `reasons` what a broker's reason means.
//!
//! Daemon, server and [`visit`], for their doctors, go it the same way; what they subscribe to, publish and
//! conclude is theirs. A fresh socket and fresh state for every connection: nothing outlives it, so no late
//! acknowledgement can be taken for another.

mod access;
mod dial;
mod dialect;
mod exchange;
mod framing;
mod handshake;
mod ids;
mod lookup;
mod mdns;
mod packet;
mod reasons;
mod route;
mod terms;
mod tls;
pub mod visit;
mod ways;
mod words;

use std::time::Duration;

pub use exchange::{Exchange, Happened, Wish, until};
pub use framing::TooLarge;
pub use packet::{About, Publication, Said, Will};
pub use reasons::meaning;
pub use rumqttc::QoS;
pub use terms::{Terms, Version};
pub use ways::{Ended, Ways};
pub use words::LinkError;

/// Larger packets are passed over: an ack has at most 64 KB, a command 4.
pub(crate) const MAX_INCOMING: usize = 256 * 1024;
/// A clean goodbye may take so long.
pub const GOODBYE: Duration = Duration::from_millis(500);
/// A topic that a session leaves out is subscribed to after so long.
pub const LEAVE_OUT_FOR: Duration = Duration::from_secs(600);
