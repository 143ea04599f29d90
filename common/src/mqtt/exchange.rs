//! Packets to and from the broker over one line: rumqttc's codec and protocol state, our own socket.
//!
//! rumqttc's event loop keeps its socket to itself, and one option of it has to be set again and again:
//! see `acknowledge_at_once` below and docs/decisions/0016. Nothing here waits but [`Exchange::open`]
//! and [`Exchange::next`]; both are cancel-safe, the latter because all state is in the struct. What is
//! to be sent goes out with the next call, in one write, after what came in has been handed on: a
//! command moves the LED before its receipt is written.
//!
//! Daemon, server and `doctor` all have their sessions here; what they subscribe to, publish and conclude
//! is theirs.

use std::future::poll_fn;
use std::io;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::{Buf, BytesMut};
use rumqttc::{
    Connect, ConnectReturnCode, Disconnect, Event, MqttOptions, MqttState, Packet, PingReq,
    Request, StateError,
};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::Instant;
use tracing::debug;

use super::dial::Race;
use super::framing::{Frame, Framing, TooLarge};
use super::handshake::{Line, Stream, handshake};
use super::route::Route;
use super::words::LinkError;

/// Larger packets are not sent; a batch of records is far below.
const MAX_OUTGOING: usize = 256 * 1024;
/// So much is read at once.
const CHUNK: usize = 16 * 1024;
/// Nothing is read while so much waits to be written: a peer that only talks is not listened to.
const MOST_UNWRITTEN: usize = 4 * MAX_OUTGOING;
/// TLS, WebSocket and CONNACK of one address together may take so long; a Pi Zero needs seconds for TLS
/// alone. A session whose writing makes no progress for so long is over.
pub const TIMEOUT: Duration = Duration::from_secs(20);
/// Without a packet for so many keep-alives the peer is dead, whatever TCP says.
const DEAD_AFTER: f64 = 2.5;
/// The answer to a ping waits behind a packet that is on its way: while so much of it comes in a
/// keep-alive, the peer lives.
const MIN_PROGRESS: usize = 4 * 1024;

/// What happened in a session.
#[derive(Debug, PartialEq)]
pub enum Happened {
    /// A packet came in, or one was taken.
    Event(Event),
    /// A publication came in that was too large to be kept. It is acknowledged, unless acknowledging is
    /// the owner's.
    TooLarge(TooLarge),
    /// The network has all that was taken.
    Written,
}

/// One session's packets.
pub struct Exchange {
    state: MqttState,
    stream: Box<dyn Stream>,
    socket: OwnedFd,
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
    /// Bytes that came in since the last ping.
    progress: usize,
    /// When the last packet was at its end.
    heard_at: Instant,
    dead_after: Duration,
    max_inflight: u16,
    /// Where the broker is.
    address: Option<SocketAddr>,
    opened_at: Instant,
    /// Without progress in writing, the session is over then.
    stuck_at: Option<Instant>,
}

impl Exchange {
    /// Goes the whole way to the broker: name, TCP, TLS, WebSocket, CONNECT and CONNACK. An address of
    /// several that fails anywhere on it leaves the others their turn.
    ///
    /// # Errors
    /// What failed on the way, or the broker's refusal.
    pub async fn open(route: Route, options: MqttOptions) -> Result<Self, LinkError> {
        let host = route.host.clone();
        let addresses = route.addresses().await.map_err(LinkError::Configured)?;
        let mut race = Race::new(addresses);
        while let Some((address, tcp)) = race.next().await {
            match Self::enter(address, tcp, &host, &options).await {
                Ok(exchange) => return Ok(exchange),
                Err(error @ LinkError::Refused(_)) => return Err(error),
                Err(error) => {
                    debug!("{address}: {error}");
                    race.failed.push((address, error));
                }
            }
        }
        Err(LinkError::Unreachable(race.failed))
    }

    async fn enter(
        address: SocketAddr,
        tcp: TcpStream,
        host: &str,
        options: &MqttOptions,
    ) -> Result<Self, LinkError> {
        let until = Instant::now() + TIMEOUT;
        let line = tokio::time::timeout_at(until, handshake(address, tcp, host, options));
        let line = line.await.map_err(|_| match options.transport() {
            rumqttc::Transport::Ws => LinkError::Timeout("WebSocket"),
            _ => LinkError::Timeout("TLS"),
        })??;
        debug!("{address}: CONNECT as {:?}", options.client_id());
        let greeted = tokio::time::timeout_at(until, Self::greet(line, options));
        let mut exchange = greeted.await.map_err(|_| LinkError::Timeout("MQTT"))??;
        exchange.address = Some(address);
        Ok(exchange)
    }

    async fn greet(
        Line { stream, socket }: Line,
        options: &MqttOptions,
    ) -> Result<Self, LinkError> {
        let now = Instant::now();
        let mut exchange = Self {
            state: MqttState::new(options.inflight(), options.manual_acks()),
            stream,
            socket,
            chunk: vec![0; CHUNK].into(),
            inbound: Framing::new(options.max_packet_size()),
            outbound: BytesMut::new(),
            unflushed: false,
            unacknowledged: false,
            more_to_read: false,
            keep_alive: options.keep_alive(),
            ping_at: now + options.keep_alive(),
            progress: 0,
            heard_at: now,
            dead_after: options.keep_alive().mul_f64(DEAD_AFTER) + TIMEOUT,
            max_inflight: options.inflight(),
            address: None,
            opened_at: now,
            stuck_at: None,
        };
        let mut connect = Connect::new(options.client_id());
        connect.keep_alive = options
            .keep_alive()
            .as_secs()
            .try_into()
            .unwrap_or(u16::MAX);
        connect.clean_session = options.clean_session();
        connect.last_will = options.last_will();
        connect.login = options.credentials();
        exchange.write(Packet::Connect(connect))?;
        loop {
            match exchange.inbound.next()? {
                None => poll_fn(|context| exchange.poll_line(context))
                    .await
                    .map_err(|error| LinkError::from(error).before_greeting())?,
                Some(Frame::Packet(Packet::ConnAck(ack)))
                    if ack.code == ConnectReturnCode::Success =>
                {
                    let kept = ack.session_present;
                    debug!("CONNACK: the broker knows our session: {kept}");
                    exchange.heard_at = Instant::now();
                    return Ok(exchange);
                }
                Some(Frame::Packet(Packet::ConnAck(ack))) => {
                    return Err(LinkError::Refused(ack.code));
                }
                Some(_) => {
                    return Err(LinkError::Protocol(
                        "what answers does not greet as an MQTT broker: check the port in broker.url".into(),
                    ));
                }
            }
        }
    }

    /// Where the broker is, and how long the session has stood.
    pub fn address(&self) -> Option<(SocketAddr, Duration)> {
        Some((self.address?, self.opened_at.elapsed()))
    }

    /// The large publication that has begun to come in.
    pub fn unfinished(&self) -> Option<TooLarge> {
        self.inbound.unfinished()
    }

    /// Whether a publication can be taken now.
    pub fn has_room(&self) -> bool {
        self.state.collision.is_none()
            && self.state.inflight() < self.max_inflight
            && self.outbound.len() < MAX_OUTGOING
    }

    /// Whether nothing more has come so far.
    pub fn is_idle(&self) -> bool {
        self.state.events.is_empty() && self.inbound.is_empty() && !self.more_to_read
    }

    /// Takes a packet to be sent; it goes out with the next call of [`Exchange::next`].
    ///
    /// # Errors
    /// The packet is too large, or the protocol does not allow it now.
    pub fn send(&mut self, request: Request) -> Result<(), LinkError> {
        // rumqttc parks one publication when its packet id is still in use; a second would replace it.
        let is_publication = matches!(request, Request::Publish(_));
        if is_publication && self.state.collision.is_some() {
            return Err(StateError::InvalidState.into());
        }
        match self.state.handle_outgoing_packet(request)? {
            Some(packet) => self.write(packet),
            None => Ok(()),
        }
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
            if let Some(event) = self.state.events.pop_front() {
                return Ok(Happened::Event(event));
            }
            match self.inbound.next()? {
                Some(Frame::Packet(packet)) => {
                    self.heard_at = Instant::now();
                    if let Some(answer) = self.state.handle_incoming_packet(packet)? {
                        self.write(answer)?;
                    }
                    continue;
                }
                Some(Frame::TooLarge(publication)) => {
                    self.pass_over(&publication)?;
                    return Ok(Happened::TooLarge(publication));
                }
                None => {}
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
                () = tokio::time::sleep_until(ping_at) => self.ping()?,
                () = until(stuck_at) => {
                    // There may have been progress meanwhile.
                    if self.stuck_at.is_some_and(|at| Instant::now() >= at) {
                        return Err(LinkError::Stuck);
                    }
                }
            }
        }
    }

    /// Answers a publication that was not kept as if it had been.
    fn pass_over(&mut self, publication: &TooLarge) -> Result<(), LinkError> {
        self.heard_at = Instant::now();
        let at = self.state.events.len();
        let packet = Packet::Publish(publication.as_publish());
        if let Some(answer) = self.state.handle_incoming_packet(packet)? {
            self.write(answer)?;
        }
        // It did not come in as an event; what was answered is one.
        self.state.events.remove(at);
        Ok(())
    }

    fn ping(&mut self) -> Result<(), LinkError> {
        self.ping_at = Instant::now() + self.keep_alive;
        let progress = std::mem::take(&mut self.progress);
        if self.inbound.is_within_packet() && progress >= MIN_PROGRESS {
            self.state.await_pingresp = false;
        }
        self.send(Request::PingReq(PingReq))
    }

    /// Says goodbye and waits until the broker hangs up, so that it has surely heard.
    pub async fn close(mut self) -> Result<(), LinkError> {
        self.send(Request::Disconnect(Disconnect))?;
        loop {
            self.inbound.clear();
            poll_fn(|context| self.poll_line(context)).await?;
        }
    }

    fn write(&mut self, packet: Packet) -> Result<(), LinkError> {
        packet
            .write(&mut self.outbound, MAX_OUTGOING)
            .map_err(StateError::from)?;
        self.stuck_at
            .get_or_insert_with(|| Instant::now() + TIMEOUT);
        Ok(())
    }

    /// Writes what can be written and reads what there is; ready when something was read, or all
    /// was written.
    fn poll_line(&mut self, context: &mut Context<'_>) -> Poll<Result<(), StateError>> {
        let was_written = self.is_written();
        self.poll_write(context)?;
        if self.outbound.len() < MOST_UNWRITTEN
            && let Poll::Ready(read) = self.poll_read(context)
        {
            return Poll::Ready(read);
        }
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

    fn poll_read(&mut self, context: &mut Context<'_>) -> Poll<Result<(), StateError>> {
        let mut chunk = ReadBuf::new(&mut self.chunk);
        ready!(Pin::new(&mut self.stream).poll_read(context, &mut chunk))?;
        if chunk.filled().is_empty() {
            return Poll::Ready(Err(StateError::ConnectionAborted));
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
        if std::mem::take(&mut self.unacknowledged) {
            // Without it the session is slower, and as good.
            let _ = rustix::net::sockopt::set_tcp_quickack(&self.socket, true);
        }
    }
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
