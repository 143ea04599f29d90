//! Packets to and from the broker over one line: our own socket and packet ids, and a codec for either version.
//!
//! rumqttc's event loop keeps its socket to itself, and one option of it has to be set again and again:
//! see `acknowledge_at_once` below and docs/decisions/0016; its protocol state of MQTT 5 loses count
//! (docs/decisions/0030). Nothing here waits but [`Exchange::next`] and `greet`; the former is cancel-safe,
//! because all state is in the struct. What is to be sent goes out with the next call, in one write, after what
//! came in has been handed on: a command moves the LED before its receipt is written.
//!
//! Daemon, server and `doctor` all have their sessions here; what they subscribe to, publish and conclude
//! is theirs.

use std::collections::VecDeque;
use std::future::poll_fn;
use std::io;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::{Buf, BytesMut};
use rumqttc::QoS;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::Instant;
use tracing::debug;

use super::framing::{Frame, Framing, TooLarge};
use super::handshake::{Line, Stream};
use super::ids::{Answer, Ids, Unasked};
use super::packet::{Connect, Incoming, Outgoing, Publication, Said, Will};
use super::terms::{Terms, Version};
use super::words::LinkError;

/// Larger packets are not sent; a batch of records is far below.
const MAX_OUTGOING: usize = 256 * 1024;
/// So much is read at once.
const CHUNK: usize = 16 * 1024;
/// Nothing is read while so much waits to be written: a peer that only talks is not listened to.
const MOST_UNWRITTEN: usize = 4 * MAX_OUTGOING;
/// TLS, WebSocket and CONNACK of one address together may take so long; a Pi Zero needs seconds for TLS
/// alone. A session whose writing makes no progress for so long is over.
pub(super) const TIMEOUT: Duration = Duration::from_secs(20);
/// Without a packet for so many keep-alives the peer is dead, whatever TCP says.
const DEAD_AFTER: f64 = 2.5;
/// The answer to a ping waits behind a packet that is on its way: while so much of it comes in a
/// keep-alive, the peer lives.
const MIN_PROGRESS: usize = 4 * 1024;
/// A broker has so long to free the packet ids of an earlier connection, and may send so many messages and bytes
/// meanwhile.
const RELEASE_WITHIN: Duration = Duration::from_secs(10);
const MOST_MEANWHILE: usize = 1_000;
const MOST_BYTES_MEANWHILE: usize = 4 << 20;
/// The reason of MQTT 5 for a packet that is too large.
const PACKET_TOO_LARGE: u8 = 0x95;

/// How a session is to be.
#[derive(Debug, Clone)]
pub struct Wish {
    /// The MQTT client id.
    pub client_id: String,
    /// To be asked for; a broker of MQTT 5 may want another one.
    pub keep_alive: Duration,
    /// The broker forgets what it kept of the session before.
    pub clean: bool,
    /// The broker is to keep the session so long; none for as long as the connection. With 3.1.1 any is for ever.
    pub session_expiry: Option<Duration>,
    /// For when we go without a goodbye.
    pub will: Option<Will>,
    /// Larger packets are passed over.
    pub max_incoming: usize,
    /// Most publications and subscriptions that the broker has not answered.
    pub in_flight: u16,
    /// Something will be published at QoS 2.
    pub exactly_once: bool,
    /// Messages are acknowledged with [`Exchange::acknowledge`].
    pub manual_acks: bool,
}

impl Wish {
    /// An ordinary session for this client, without a will.
    pub fn new(client_id: impl Into<String>, keep_alive: Duration) -> Self {
        Self {
            client_id: client_id.into(),
            keep_alive,
            clean: true,
            session_expiry: None,
            will: None,
            max_incoming: super::MAX_INCOMING,
            in_flight: 100,
            exactly_once: false,
            manual_acks: false,
        }
    }
}

/// What happened in a session.
#[derive(Debug, PartialEq)]
pub enum Happened {
    /// A message came in.
    Message(Publication),
    /// A publication came in that was too large to be kept. It is acknowledged, unless acknowledging is
    /// the owner's.
    TooLarge(TooLarge),
    /// The broker has answered the publication with this token; or it was too large to be sent (0x95).
    Published(u64, Said),
    /// The network has the publication with this token, at QoS 0: nobody will confirm it.
    Sent(u64),
    /// The broker has answered the subscription with this token, filter by filter.
    Subscribed(u64, Vec<Said>),
    /// The broker has answered a ping.
    Pong,
    /// The network has all that was taken.
    Written,
}

/// One session's packets.
pub struct Exchange {
    version: Version,
    terms: Terms,
    ids: Ids,
    happened: VecDeque<Happened>,
    /// Tokens at QoS 0 that the network may not have.
    unwritten: VecDeque<u64>,
    /// Publications beyond what the broker takes at a time: each goes out when another is answered.
    parked: VecDeque<(u64, Publication)>,
    manual_acks: bool,
    stream: Box<dyn Stream>,
    socket: Option<OwnedFd>,
    chunk: Box<[u8]>,
    inbound: Framing,
    outbound: BytesMut,
    /// The stream has what it was given last, but may not have passed it on.
    unflushed: bool,
    /// Bytes came in since the kernel was last told to acknowledge at once.
    unacknowledged: bool,
    /// The last read filled the chunk: there is probably more.
    more_to_read: bool,
    keep_alive: Duration,
    ping_at: Instant,
    /// A ping has no answer.
    await_pong: bool,
    /// Bytes that came in since the last ping.
    progress: usize,
    /// When the last packet was at its end.
    heard_at: Instant,
    dead_after: Duration,
    /// Where the broker is.
    address: Option<SocketAddr>,
    opened_at: Instant,
    /// Without progress in writing, the session is over then.
    stuck_at: Option<Instant>,
}

impl Exchange {
    /// A session over a stream that is open, in place of the way to a broker: what a test has at its other end.
    ///
    /// # Errors
    /// The refusal of the other end, or what came in its place.
    pub async fn over(
        stream: impl AsyncRead + AsyncWrite + Send + Unpin + 'static,
        version: Version,
        wish: &Wish,
    ) -> Result<Self, LinkError> {
        let line = Line {
            stream: Box::new(stream),
            socket: None,
        };
        Self::greet(line, version, wish, None).await
    }

    /// Says CONNECT in this version and waits for the answer. A broker that answers in the words of 3.1.1 is
    /// spoken to in 3.1.1.
    ///
    /// # Errors
    /// The broker's refusal, or what came in its place.
    pub(super) async fn greet(
        Line { stream, socket }: Line,
        version: Version,
        wish: &Wish,
        login: Option<&(String, String)>,
    ) -> Result<Self, LinkError> {
        let now = Instant::now();
        let mut exchange = Self {
            version,
            terms: Terms::new(version),
            ids: Ids::new(0, 0, false),
            happened: VecDeque::new(),
            unwritten: VecDeque::new(),
            parked: VecDeque::new(),
            manual_acks: wish.manual_acks,
            stream,
            socket,
            chunk: vec![0; CHUNK].into(),
            inbound: Framing::new(version, wish.max_incoming),
            outbound: BytesMut::new(),
            unflushed: false,
            unacknowledged: false,
            more_to_read: false,
            keep_alive: wish.keep_alive,
            ping_at: now,
            await_pong: false,
            progress: 0,
            heard_at: now,
            dead_after: Duration::ZERO,
            address: None,
            opened_at: now,
            stuck_at: None,
        };
        let until = now + TIMEOUT;
        let greeting = tokio::time::timeout_at(until, exchange.introduce(wish, login));
        let session_present = greeting.await.map_err(|_| LinkError::Timeout("MQTT"))??;
        // A clean session has nothing to release, whatever the broker says of it; a broker without QoS 2 remembers no
        // such id, and may not know PUBREL at all.
        let may_remember = session_present && exchange.terms.max_qos == 2;
        let release = may_remember && wish.exactly_once && !wish.clean;
        exchange.ids = Ids::new(wish.in_flight, exchange.terms.receive_max, release);
        if release {
            let until = Instant::now() + RELEASE_WITHIN;
            let released = tokio::time::timeout_at(until, exchange.release());
            let released = released.await.map_err(|_| LinkError::Unreleased)?;
            released.map_err(LinkError::on_release)?;
        }
        let now = Instant::now();
        (exchange.opened_at, exchange.heard_at) = (now, now);
        // The broker's is a limit; to be there more often is allowed.
        if let Some(wanted) = exchange.terms.keep_alive.filter(|it| !it.is_zero()) {
            exchange.keep_alive = exchange.keep_alive.min(wanted);
        }
        exchange.ping_at = now + exchange.keep_alive;
        exchange.dead_after = exchange.keep_alive.mul_f64(DEAD_AFTER) + TIMEOUT;
        Ok(exchange)
    }

    /// CONNECT and CONNACK. Tells whether the broker knows our session.
    async fn introduce(
        &mut self,
        wish: &Wish,
        login: Option<&(String, String)>,
    ) -> Result<bool, LinkError> {
        let seconds = |time: Duration| time.as_secs();
        let expiry = wish.session_expiry.map_or(0, seconds);
        let connect = Connect {
            client_id: &wish.client_id,
            keep_alive: seconds(wish.keep_alive).try_into().unwrap_or(u16::MAX),
            clean: wish.clean,
            session_expiry: expiry.try_into().unwrap_or(u32::MAX - 1),
            login,
            will: wish.will.as_ref(),
        };
        self.version.connect(&connect, &mut self.outbound)?;
        self.has_to_write();
        loop {
            match self.inbound.next()? {
                None => poll_fn(|context| self.poll_line(context))
                    .await
                    .map_err(LinkError::before_greeting)?,
                Some(Frame::Packet(Incoming::ConnAck(greeting))) if !greeting.said.is_no() => {
                    let kept = greeting.session_present;
                    self.terms = greeting.terms;
                    self.version = self.terms.version;
                    self.inbound.speak(self.version);
                    debug!(
                        "CONNACK: MQTT {}; the broker knows our session: {kept}",
                        self.version
                    );
                    return Ok(kept);
                }
                Some(Frame::Packet(Incoming::ConnAck(greeting))) => {
                    return Err(LinkError::Refused(greeting.said));
                }
                Some(Frame::Packet(Incoming::Disconnect(said))) => {
                    return Err(LinkError::Refused(said));
                }
                Some(_) => return Err(LinkError::NotABroker),
            }
        }
    }

    /// Has the broker free the packet ids that it may remember.
    async fn release(&mut self) -> Result<(), LinkError> {
        let ids: Vec<u16> = self.ids.to_release().collect();
        for pkid in ids {
            self.write(&Outgoing::PubRel(pkid))?;
        }
        while self.ids.is_releasing() {
            match self.inbound.next()? {
                Some(frame) => self.take_in(frame)?,
                None => poll_fn(|context| self.poll_line(context)).await?,
            }
            if self.happened.len() > MOST_MEANWHILE || self.progress > MOST_BYTES_MEANWHILE {
                return Err(LinkError::Unreleased);
            }
        }
        Ok(())
    }

    /// This is where the broker is.
    pub(super) fn is_at(&mut self, address: SocketAddr) {
        self.address = Some(address);
    }

    /// What the broker offers.
    pub fn terms(&self) -> &Terms {
        &self.terms
    }

    /// Where the broker is, and how long the session has stood.
    pub fn address(&self) -> Option<(SocketAddr, Duration)> {
        Some((self.address?, self.opened_at.elapsed()))
    }

    /// The large publication that has begun to come in.
    pub(crate) fn unfinished(&self) -> Option<TooLarge> {
        self.inbound.unfinished()
    }

    /// Whether a publication can be taken now.
    pub fn has_room(&self) -> bool {
        self.ids.has_room() && self.parked.is_empty() && self.outbound.len() < MAX_OUTGOING
    }

    /// Whether nothing more has come so far.
    pub fn is_idle(&self) -> bool {
        self.happened.is_empty() && self.inbound.is_empty() && !self.more_to_read
    }

    /// Takes a publication, which `token` names; it goes out with the next call of [`Exchange::next`], as far as
    /// the broker's limits let it: without a flag or a quality of service that it does not have, and not before
    /// the broker has room for it.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn publish(&mut self, token: u64, mut publication: Publication) -> Result<(), LinkError> {
        publication.qos = match (publication.qos, self.terms.max_qos) {
            (QoS::AtMostOnce, _) | (_, 0) => QoS::AtMostOnce,
            (QoS::ExactlyOnce, 2..) => QoS::ExactlyOnce,
            _ => QoS::AtLeastOnce,
        };
        publication.retain &= self.terms.retain;
        if self.version.size(&publication) > self.max_packet() {
            let said = Said::new(PACKET_TOO_LARGE);
            self.happened.push_back(Happened::Published(token, said));
            return Ok(());
        }
        if publication.qos == QoS::AtMostOnce {
            self.unwritten.push_back(token);
            self.version.publish(publication, &mut self.outbound)?;
            self.has_to_write();
            return Ok(());
        }
        self.parked.push_back((token, publication));
        self.unpark()
    }

    /// The largest packet that may be sent.
    fn max_packet(&self) -> usize {
        let limit = self.terms.max_packet.unwrap_or(u32::MAX);
        MAX_OUTGOING.min(limit.try_into().unwrap_or(usize::MAX))
    }

    /// Sends what there is room for at the broker.
    fn unpark(&mut self) -> Result<(), LinkError> {
        while let Some((token, publication)) = self.parked.front() {
            let Some(pkid) = self.ids.publish(*token, publication.qos) else {
                break;
            };
            let Some((_, mut publication)) = self.parked.pop_front() else {
                break;
            };
            publication.pkid = pkid;
            self.version.publish(publication, &mut self.outbound)?;
            self.has_to_write();
        }
        Ok(())
    }

    /// Takes a subscription to these filters, at QoS 1. One that is too large for the broker is refused for it.
    ///
    /// # Errors
    /// There is no room, or it cannot be written.
    pub fn subscribe(&mut self, token: u64, filters: &[String]) -> Result<(), LinkError> {
        let mut packet = BytesMut::new();
        let of_any_id = Outgoing::Subscribe(1, filters);
        if self.version.write(&of_any_id, &mut packet)? > self.max_packet() {
            let said = vec![Said::new(PACKET_TOO_LARGE); filters.len()];
            self.happened.push_back(Happened::Subscribed(token, said));
            return Ok(());
        }
        let pkid = self.ids.subscribe(token).ok_or(LinkError::NoRoom)?;
        self.write(&Outgoing::Subscribe(pkid, filters))
    }

    /// Takes the receipt of a message, with manual acknowledgements.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn acknowledge(&mut self, pkid: u16) -> Result<(), LinkError> {
        match self.ids.is_received(pkid) {
            true => self.write(&Outgoing::PubRec(pkid)),
            false => self.write(&Outgoing::PubAck(pkid)),
        }
    }

    /// Asks the broker for a sign of life.
    ///
    /// # Errors
    /// The last such question has no answer.
    pub(crate) fn ping(&mut self) -> Result<(), LinkError> {
        if self.await_pong {
            return Err(LinkError::Silent);
        }
        self.await_pong = true;
        self.write(&Outgoing::PingReq)
    }

    /// Whether the network has all that was taken.
    pub fn is_written(&self) -> bool {
        self.outbound.is_empty() && !self.unflushed
    }

    /// The next thing that happened. Cancel-safe.
    ///
    /// # Errors
    /// The session is over.
    pub async fn next(&mut self) -> Result<Happened, LinkError> {
        // Packets that have been read already must not keep everything else from running.
        tokio::task::consume_budget().await;
        loop {
            if let Some(happened) = self.happened.pop_front() {
                self.hand_on(&happened)?;
                return Ok(happened);
            }
            if self.is_written()
                && let Some(token) = self.unwritten.pop_front()
            {
                return Ok(Happened::Sent(token));
            }
            if let Some(frame) = self.inbound.next()? {
                self.heard_at = Instant::now();
                self.take_in(frame)?;
                continue;
            }
            let stuck_at = self.stuck_at;
            let dead_at = self.heard_at + self.dead_after;
            let ping_at = self.ping_at;
            tokio::select! {
                biased;
                done = poll_fn(|context| self.poll_line(context)) => {
                    done?;
                    if self.inbound.is_empty() {
                        return Ok(Happened::Written);
                    }
                }
                () = tokio::time::sleep_until(dead_at) => return Err(LinkError::Silent),
                () = tokio::time::sleep_until(ping_at) => self.ping_in_time()?,
                () = until(stuck_at) => {
                    // There may have been progress meanwhile.
                    if self.stuck_at.is_some_and(|at| Instant::now() >= at) {
                        return Err(LinkError::Stuck);
                    }
                }
            }
        }
    }

    /// A message is acknowledged when it is handed on, not before.
    fn hand_on(&mut self, happened: &Happened) -> Result<(), LinkError> {
        let (qos, pkid) = match happened {
            Happened::Message(message) => (message.qos, message.pkid),
            Happened::TooLarge(message) => (message.qos, message.pkid),
            _ => return Ok(()),
        };
        match qos {
            QoS::AtMostOnce => Ok(()),
            _ if self.manual_acks => Ok(()),
            QoS::AtLeastOnce => self.write(&Outgoing::PubAck(pkid)),
            QoS::ExactlyOnce => self.write(&Outgoing::PubRec(pkid)),
        }
    }

    fn take_in(&mut self, frame: Frame) -> Result<(), LinkError> {
        let packet = match frame {
            Frame::Packet(packet) => packet,
            Frame::TooLarge(message) => {
                if self.is_new(message.qos, message.pkid)? {
                    self.happened.push_back(Happened::TooLarge(message));
                }
                return Ok(());
            }
        };
        let answer = match packet {
            Incoming::Publish(message) => {
                if self.is_new(message.qos, message.pkid)? {
                    self.happened.push_back(Happened::Message(message));
                }
                return Ok(());
            }
            Incoming::PubRel(pkid) => {
                self.ids.released(pkid);
                return self.write(&Outgoing::PubComp(pkid));
            }
            Incoming::PingResp => {
                self.await_pong = false;
                self.happened.push_back(Happened::Pong);
                return Ok(());
            }
            Incoming::Disconnect(said) => return Err(LinkError::Ended(said)),
            Incoming::ConnAck(_) => return Err(LinkError::Protocol("a second CONNACK".into())),
            Incoming::SubAck(pkid, said) => {
                let answer = self.ids.sub_ack(pkid);
                if let Ok(Answer::Subscribed(token)) = answer {
                    self.happened.push_back(Happened::Subscribed(token, said));
                }
                answer.map_err(|Unasked| unasked(pkid))?;
                return Ok(());
            }
            Incoming::PubAck(pkid, said) => (pkid, self.ids.pub_ack(pkid, said)),
            Incoming::PubRec(pkid, said) => (pkid, self.ids.pub_rec(pkid, said)),
            Incoming::PubComp(pkid) => (pkid, self.ids.pub_comp(pkid)),
        };
        let (pkid, answer) = answer;
        match answer.map_err(|Unasked| unasked(pkid))? {
            Answer::Release => self.write(&Outgoing::PubRel(pkid))?,
            Answer::Published(token, said) => {
                self.happened.push_back(Happened::Published(token, said));
                self.unpark()?;
            }
            Answer::Subscribed(_) | Answer::Freed => {}
        }
        Ok(())
    }

    /// Whether a message did not come before. At QoS 2 one that did is answered again, and no more.
    fn is_new(&mut self, qos: QoS, pkid: u16) -> Result<bool, LinkError> {
        if qos != QoS::ExactlyOnce || self.ids.received(pkid) {
            return Ok(true);
        }
        if !self.manual_acks {
            self.write(&Outgoing::PubRec(pkid))?;
        }
        Ok(false)
    }

    fn ping_in_time(&mut self) -> Result<(), LinkError> {
        self.ping_at = Instant::now() + self.keep_alive;
        let progress = std::mem::take(&mut self.progress);
        if self.inbound.is_within_packet() && progress >= MIN_PROGRESS {
            self.await_pong = false;
        }
        self.ping()
    }

    /// Says goodbye and waits until the broker hangs up, so that it has surely heard.
    pub async fn close(mut self) -> Result<(), LinkError> {
        self.write(&Outgoing::Disconnect)?;
        loop {
            self.inbound.clear();
            poll_fn(|context| self.poll_line(context)).await?;
        }
    }

    fn write(&mut self, packet: &Outgoing<'_>) -> Result<(), LinkError> {
        self.version.write(packet, &mut self.outbound)?;
        self.has_to_write();
        Ok(())
    }

    fn has_to_write(&mut self) {
        self.stuck_at
            .get_or_insert_with(|| Instant::now() + TIMEOUT);
    }

    /// Writes what can be written and reads what there is; ready when something was read, or all
    /// was written.
    fn poll_line(&mut self, context: &mut Context<'_>) -> Poll<Result<(), LinkError>> {
        let was_written = self.is_written();
        let written = self.poll_write(context);
        // A broker that hangs up says why before: where nothing can be written any more, that is still to be read.
        if (written.is_err() || self.outbound.len() < MOST_UNWRITTEN)
            && let Poll::Ready(read) = self.poll_read(context)
            && (written.is_ok() || read.is_ok())
        {
            return Poll::Ready(read);
        }
        written?;
        self.acknowledge_at_once();
        match self.is_written() && !was_written {
            true => Poll::Ready(Ok(())),
            false => Poll::Pending,
        }
    }

    fn poll_write(&mut self, context: &mut Context<'_>) -> io::Result<()> {
        let before = self.outbound.len();
        let mut stream = Pin::new(&mut self.stream);
        while !self.outbound.is_empty() {
            match stream.as_mut().poll_write(context, &self.outbound)? {
                Poll::Ready(0) => return Err(io::ErrorKind::WriteZero.into()),
                Poll::Ready(written) => {
                    self.outbound.advance(written);
                    self.unflushed = true;
                }
                Poll::Pending => break,
            }
        }
        if self.unflushed && stream.poll_flush(context)?.is_ready() {
            self.unflushed = false;
        }
        if self.is_written() {
            self.stuck_at = None;
        } else if self.outbound.len() < before {
            self.stuck_at = Some(Instant::now() + TIMEOUT);
        }
        Ok(())
    }

    fn poll_read(&mut self, context: &mut Context<'_>) -> Poll<Result<(), LinkError>> {
        let mut chunk = ReadBuf::new(&mut self.chunk);
        ready!(Pin::new(&mut self.stream).poll_read(context, &mut chunk))?;
        if chunk.filled().is_empty() {
            return Poll::Ready(Err(LinkError::Closed));
        }
        self.inbound.take(chunk.filled());
        self.progress = self.progress.saturating_add(chunk.filled().len());
        self.more_to_read = chunk.remaining() == 0;
        self.unacknowledged = true;
        Poll::Ready(Ok(()))
    }

    /// Has the kernel send the TCP acknowledgement that it still owes, instead of waiting up to 40 ms
    /// for data to carry it. A broker with Nagle's algorithm (mosquitto as it comes) holds the next
    /// small packet back until it has that acknowledgement, and that packet may be a command. The
    /// kernel forgets the option (tcp(7), TCP_QUICKACK), so it is set after each burst that was read.
    fn acknowledge_at_once(&mut self) {
        if std::mem::take(&mut self.unacknowledged)
            && let Some(socket) = &self.socket
        {
            // Without it the session is slower, and as good.
            let _ = rustix::net::sockopt::set_tcp_quickack(socket, true);
        }
    }
}

fn unasked(pkid: u16) -> LinkError {
    LinkError::Protocol(format!(
        "the broker breaks the protocol: it answers what was not asked (packet id {pkid})"
    ))
}

/// Never, without a time.
pub async fn until(time: Option<Instant>) {
    match time {
        Some(time) => tokio::time::sleep_until(time).await,
        None => std::future::pending().await,
    }
}

#[cfg(test)]
mod tests;
