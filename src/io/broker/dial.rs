//! The way to the broker: name, TCP, TLS, WebSocket. Each session dials once; what is said over the
//! stream is the exchange's.

use std::os::fd::{AsFd, OwnedFd};

use async_tungstenite::tungstenite::client::IntoClientRequest;
use async_tungstenite::tungstenite::http::HeaderValue;
use rumqttc::tokio_rustls::TlsConnector;
use rumqttc::{ConnectionError, MqttOptions, TlsConfiguration, TlsError, Transport};
use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use ws_stream_tungstenite::WsStream;

/// What a WebSocket carries is named so (MQTT 3.1.1, section 6).
const SUBPROTOCOL: HeaderValue = HeaderValue::from_static("mqtt");

/// Bytes to and from the broker, whatever is below them.
pub(super) trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Stream for T {}

/// An open way to the broker.
pub(super) struct Line {
    /// What is said.
    pub(super) stream: Box<dyn Stream>,
    /// The TCP socket at the bottom, for its options.
    pub(super) socket: OwnedFd,
}

/// Goes the whole way to the broker at `host` and `port`; takes as long as the network does.
///
/// # Errors
/// What failed first: name, TCP, TLS or WebSocket.
pub(super) async fn dial(
    host: &str,
    port: u16,
    options: &MqttOptions,
) -> Result<Line, ConnectionError> {
    let tcp = TcpStream::connect((host, port)).await?;
    tcp.set_nodelay(true)?;
    let socket = tcp.as_fd().try_clone_to_owned()?;
    let (url, _) = options.broker_address();
    let stream = match options.transport() {
        Transport::Tls(tls) => encrypted(host, &tls, tcp).await?,
        Transport::Ws => web_socket(&url, Box::new(tcp)).await?,
        Transport::Wss(tls) => web_socket(&url, encrypted(host, &tls, tcp).await?).await?,
        _ => Box::new(tcp),
    };
    Ok(Line { stream, socket })
}

async fn encrypted(
    host: &str,
    tls: &TlsConfiguration,
    tcp: TcpStream,
) -> Result<Box<dyn Stream>, ConnectionError> {
    let TlsConfiguration::Rustls(config) = tls else {
        return Err(std::io::Error::other("TLS without a configuration").into());
    };
    let name = ServerName::try_from(host.to_owned()).map_err(TlsError::from)?;
    let stream = TlsConnector::from(config.clone()).connect(name, tcp).await;
    Ok(Box::new(stream.map_err(TlsError::from)?))
}

async fn web_socket(url: &str, below: Box<dyn Stream>) -> Result<Box<dyn Stream>, ConnectionError> {
    let mut request = url.into_client_request()?;
    let headers = request.headers_mut();
    headers.insert("Sec-WebSocket-Protocol", SUBPROTOCOL);
    // The library refuses an answer that does not name the same protocol.
    let (socket, _) = async_tungstenite::tokio::client_async(request, below).await?;
    Ok(Box::new(WsStream::new(socket)))
}
