//! What lies between TCP and MQTT: nothing, TLS, WebSocket, or both.

use std::net::SocketAddr;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use async_tungstenite::tungstenite::Error as SocketError;
use async_tungstenite::tungstenite::client::IntoClientRequest;
use async_tungstenite::tungstenite::http::HeaderValue;
use rumqttc::tokio_rustls::TlsConnector;
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tracing::debug;
use ws_stream_tungstenite::WsStream;

use super::words::LinkError;
use crate::config::{Broker, Scheme};

/// What a WebSocket carries is named so (MQTT 3.1.1, section 6).
const SUBPROTOCOL: HeaderValue = HeaderValue::from_static("mqtt");

/// Bytes to and from the broker, whatever is below them.
pub(super) trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Stream for T {}

/// An open way to the broker.
pub(super) struct Line {
    /// What is said.
    pub(super) stream: Box<dyn Stream>,
    /// The TCP socket at the bottom, for its options, where there is one.
    pub(super) socket: Option<OwnedFd>,
}

/// Makes a connection ready for MQTT; takes as long as the peer does.
///
/// # Errors
/// What failed first: TLS or WebSocket.
pub(super) async fn handshake(
    address: SocketAddr,
    tcp: TcpStream,
    host: &str,
    broker: &Broker,
    tls: Option<&Arc<ClientConfig>>,
) -> Result<Line, LinkError> {
    tcp.set_nodelay(true)?;
    let socket = Some(tcp.as_fd().try_clone_to_owned()?);
    let below: Box<dyn Stream> = match tls {
        Some(tls) => encrypted(address, host, tls, tcp).await?,
        None => Box::new(tcp),
    };
    let stream = match broker.scheme {
        Scheme::Mqtt | Scheme::Mqtts => below,
        Scheme::Ws | Scheme::Wss => web_socket(address, &broker.url(), below).await?,
    };
    Ok(Line { stream, socket })
}

async fn encrypted(
    address: SocketAddr,
    host: &str,
    config: &Arc<ClientConfig>,
    tcp: TcpStream,
) -> Result<Box<dyn Stream>, LinkError> {
    let name = ServerName::try_from(host.to_owned()).map_err(|_| {
        LinkError::Tls(format!(
            "{host:?} is no name that a certificate can have: check broker.url"
        ))
    })?;
    debug!("{address}: TLS handshake");
    let connector = TlsConnector::from(config.clone());
    let stream = connector.connect(name, tcp).await.map_err(|error| {
        use std::io::ErrorKind::{ConnectionReset, UnexpectedEof};
        match error.kind() {
            UnexpectedEof | ConnectionReset => LinkError::Tls(
                "the broker closed the connection in the TLS handshake: check the port in broker.url (8883 is usual for mqtts://)".into(),
            ),
            _ => error.into(),
        }
    })?;
    let version = stream.get_ref().1.protocol_version();
    debug!("{address}: TLS is up ({version:?})");
    Ok(Box::new(stream))
}

async fn web_socket(
    address: SocketAddr,
    url: &str,
    below: Box<dyn Stream>,
) -> Result<Box<dyn Stream>, LinkError> {
    let wrong = |error: SocketError| match error {
        SocketError::Io(error) => error.into(),
        SocketError::Http(response) => {
            LinkError::WebSocket(format!("it answers {}", response.status()))
        }
        other => LinkError::WebSocket(other.to_string()),
    };
    let mut request = url.into_client_request().map_err(wrong)?;
    let headers = request.headers_mut();
    headers.insert("Sec-WebSocket-Protocol", SUBPROTOCOL);
    // The library refuses an answer that does not name the same protocol.
    let (socket, _) = async_tungstenite::tokio::client_async(request, below)
        .await
        .map_err(wrong)?;
    debug!("{address}: WebSocket is up");
    Ok(Box::new(WsStream::new(socket)))
}
