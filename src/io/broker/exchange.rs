//! Packets to and from the broker over one line: rumqttc's codec and protocol state, our own socket.
//!
//! rumqttc's event loop keeps its socket to itself, and one option of it has to be set again and again:
//! see `acknowledge_at_once` below and docs/decisions/0016. Nothing here waits but [`Exchange::open`]
//! and [`Exchange::next`]; both are cancel-safe, the latter because all state is in the struct. What is
//! to be sent goes out with the next call, in one write, after what came in has been handed on: a
//! command moves the LED before its receipt is written.

use std::future::poll_fn;
use std::io;
use std::os::fd::OwnedFd;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::{Buf, BytesMut};
use rumqttc::mqttbytes::Error as PacketError;
use rumqttc::{
    Connect, ConnectReturnCode, ConnectionError, Disconnect, Event, MqttOptions, MqttState, Packet,
    PingReq, Request, StateError,
};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::Instant;

use super::dial::{Line, Stream, dial};

/// Larger packets from the broker end the session.
const MAX_INCOMING: usize = 4 * 1024 * 1024;
/// Larger packets are not sent; a batch of records is far below.
const MAX_OUTGOING: usize = 256 * 1024;
/// So much is read at once.
const CHUNK: usize = 16 * 1024;
/// Nothing is read while so much waits to be written: a peer that only talks is not listened to.
const MOST_UNWRITTEN: usize = 4 * MAX_OUTGOING;

/// One session's packets.
pub(super) struct Exchange {
    state: MqttState,
    stream: Box<dyn Stream>,
    socket: OwnedFd,
    chunk: Box<[u8]>,
    inbound: BytesMut,
    outbound: BytesMut,
    /// The stream has what it was given last, but may not have passed it on.
    unflushed: bool,
    /// Bytes came in since the kernel was last told to acknowledge at once.
    unacknowledged: bool,
    keep_alive: Duration,
    ping_at: Instant,
    /// Without progress in writing, the session is over then.
    stuck_at: Option<Instant>,
    patience: Duration,
}

impl Exchange {
    /// Dials, says CONNECT and hears the CONNACK, all within `patience`.
    ///
    /// # Errors
    /// What failed first on the way, or the broker's refusal.
    pub(super) async fn open(
        host: String,
        port: u16,
        options: MqttOptions,
        patience: Duration,
    ) -> Result<Self, ConnectionError> {
        let opened = async {
            let line = dial(&host, port, &options).await?;
            Self::greet(line, &options, patience).await
        };
        match tokio::time::timeout(patience, opened).await {
            Ok(opened) => opened,
            Err(_) => Err(ConnectionError::NetworkTimeout),
        }
    }

    async fn greet(
        Line { stream, socket }: Line,
        options: &MqttOptions,
        patience: Duration,
    ) -> Result<Self, ConnectionError> {
        let mut exchange = Self {
            state: MqttState::new(options.inflight(), false),
            stream,
            socket,
            chunk: vec![0; CHUNK].into(),
            inbound: BytesMut::new(),
            outbound: BytesMut::new(),
            unflushed: false,
            unacknowledged: false,
            keep_alive: options.keep_alive(),
            ping_at: Instant::now() + options.keep_alive(),
            stuck_at: None,
            patience,
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
            match exchange.parse()? {
                None => poll_fn(|context| exchange.poll_line(context)).await?,
                Some(Packet::ConnAck(ack)) if ack.code == ConnectReturnCode::Success => {
                    return Ok(exchange);
                }
                Some(Packet::ConnAck(ack)) => {
                    return Err(ConnectionError::ConnectionRefused(ack.code));
                }
                Some(packet) => return Err(ConnectionError::NotConnAck(packet)),
            }
        }
    }

    /// Takes a packet to be sent; it goes out with the next call of [`Exchange::next`].
    ///
    /// # Errors
    /// The packet is too large, or the protocol does not allow it now.
    pub(super) fn send(&mut self, request: Request) -> Result<(), StateError> {
        // rumqttc parks one publication when its packet id is still in use; a second would replace it.
        if self.state.collision.is_some() {
            return Err(StateError::InvalidState);
        }
        match self.state.handle_outgoing_packet(request)? {
            Some(packet) => self.write(packet),
            None => Ok(()),
        }
    }

    /// Whether the network has all that was taken.
    pub(super) fn is_written(&self) -> bool {
        self.outbound.is_empty() && !self.unflushed
    }

    /// The next thing that happened: a packet came in, or one was taken; none, when the network has
    /// all that was taken. Cancel-safe.
    ///
    /// # Errors
    /// The session is over.
    pub(super) async fn next(&mut self) -> Result<Option<Event>, ConnectionError> {
        // Packets that have been read already must not keep everything else from running.
        tokio::task::consume_budget().await;
        loop {
            if let Some(event) = self.state.events.pop_front() {
                return Ok(Some(event));
            }
            if let Some(packet) = self.parse()? {
                if let Some(answer) = self.state.handle_incoming_packet(packet)? {
                    self.write(answer)?;
                }
                continue;
            }
            let stuck_at = self.stuck_at;
            let ping_at = self.ping_at;
            tokio::select! {
                biased;
                done = poll_fn(|context| self.poll_line(context)) => {
                    done?;
                    if self.inbound.is_empty() {
                        return Ok(None);
                    }
                }
                () = tokio::time::sleep_until(ping_at) => {
                    self.ping_at = Instant::now() + self.keep_alive;
                    self.send(Request::PingReq(PingReq))?;
                }
                () = until(stuck_at) => return Err(ConnectionError::FlushTimeout),
            }
        }
    }

    /// Says goodbye and waits until the broker hangs up, so that it has surely heard.
    pub(super) async fn close(mut self) -> Result<(), ConnectionError> {
        self.send(Request::Disconnect(Disconnect))?;
        loop {
            self.inbound.clear();
            poll_fn(|context| self.poll_line(context)).await?;
        }
    }

    fn write(&mut self, packet: Packet) -> Result<(), StateError> {
        packet.write(&mut self.outbound, MAX_OUTGOING)?;
        Ok(())
    }

    /// The next packet of what was read, if all of it is there.
    fn parse(&mut self) -> Result<Option<Packet>, StateError> {
        match Packet::read(&mut self.inbound, MAX_INCOMING) {
            Ok(packet) => Ok(Some(packet)),
            Err(PacketError::InsufficientBytes(_)) => Ok(None),
            Err(error) => Err(error.into()),
        }
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
        self.stuck_at = match (self.is_written(), self.outbound.len() < before) {
            (true, _) => None,
            (false, true) => Some(Instant::now() + self.patience),
            (false, false) => self
                .stuck_at
                .or_else(|| Some(Instant::now() + self.patience)),
        };
        Ok(())
    }

    fn poll_read(&mut self, context: &mut Context<'_>) -> Poll<Result<(), StateError>> {
        let mut chunk = ReadBuf::new(&mut self.chunk);
        ready!(Pin::new(&mut self.stream).poll_read(context, &mut chunk))?;
        if chunk.filled().is_empty() {
            return Poll::Ready(Err(StateError::ConnectionAborted));
        }
        self.inbound.extend_from_slice(chunk.filled());
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
async fn until(time: Option<Instant>) {
    match time {
        Some(time) => tokio::time::sleep_until(time).await,
        None => std::future::pending().await,
    }
}

#[cfg(test)]
mod tests;
