//! The ways to the broker on the real program: TLS, WebSocket, and what is said of those that fail.
#![expect(clippy::expect_used, reason = "a test fails by panicking")]

use std::fs;
use std::io::{Read, Write};
use std::net::TcpListener;
use std::path::Path;
use std::process::Command;
use std::thread;

use async_tungstenite::tungstenite::handshake::server::{ErrorResponse, Request, Response};
use async_tungstenite::tungstenite::http::HeaderValue;
use tempfile::TempDir;
use ws_stream_tungstenite::WsStream;

use crate::stage::fake::{Act, FakeBroker};
use crate::stage::{Agent, Broker, Listener, eventually, free_port};

/// A broker with a second door: TLS with a certificate for `localhost` alone.
struct Encrypted {
    broker: Broker,
    port: u16,
    folder: TempDir,
}

impl Encrypted {
    fn start() -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let at = |name: &str| folder.path().join(name).display().to_string();
        let own = ["req", "-x509", "-newkey", "ec", "-pkeyopt"];
        let rest = ["ec_paramgen_curve:P-256", "-nodes", "-days", "2", "-subj"];
        for (name, subject) in [("ca", "/CN=a test's own"), ("other", "/CN=another")] {
            let (key, cert) = (at(&format!("{name}.key")), at(&format!("{name}.pem")));
            let out = ["-keyout", &key, "-out", &cert];
            openssl(&[&own[..], &rest, &[subject], &out].concat());
        }
        let request = ["req", "-newkey", "ec", "-pkeyopt"];
        let rest = ["ec_paramgen_curve:P-256", "-nodes", "-subj", "/CN=broker"];
        let out = ["-keyout", &at("key"), "-out", &at("request")].map(str::to_owned);
        let out: Vec<&str> = out.iter().map(String::as_str).collect();
        openssl(&[&request[..], &rest, &out].concat());
        fs::write(at("names"), "subjectAltName=DNS:localhost\n").expect("written");
        openssl(&[
            "x509",
            "-req",
            "-in",
            &at("request"),
            "-CA",
            &at("ca.pem"),
            "-CAkey",
            &at("ca.key"),
            "-CAcreateserial",
            "-days",
            "2",
            "-extfile",
            &at("names"),
            "-out",
            &at("pem"),
        ]);
        let port = free_port();
        let broker = Broker::start_with(&format!(
            "allow_anonymous true\nlistener {port}\ncertfile {}\nkeyfile {}\n",
            at("pem"),
            at("key")
        ));
        Self {
            broker,
            port,
            folder,
        }
    }

    /// A certificate of the broker's key with its own dates.
    fn sign(&self, name: &str, from: &str, to: &str) {
        let at = |name: &str| self.folder.path().join(name).display().to_string();
        let folder = self.folder.path().display();
        let text = format!(
            "[ca]\ndefault_ca = d\n[d]\ndatabase = {folder}/index\nserial = {folder}/serial\nnew_certs_dir = {folder}\n\
             default_md = sha256\nunique_subject = no\npolicy = p\n[p]\ncommonName = supplied\n"
        );
        fs::write(at("ca.conf"), text).expect("written");
        fs::write(at("index"), "").expect("written");
        fs::write(at("serial"), "1000\n").expect("written");
        openssl(&[
            "ca",
            "-batch",
            "-notext",
            "-config",
            &at("ca.conf"),
            "-in",
            &at("request"),
            "-cert",
            &at("ca.pem"),
            "-keyfile",
            &at("ca.key"),
            "-extfile",
            &at("names"),
            "-startdate",
            from,
            "-enddate",
            to,
            "-out",
            &at(name),
        ]);
    }

    fn agent(&self, id: &str, host: &str, ca: &str) -> Agent {
        let ca = self.folder.path().join(ca);
        let more = format!(
            "[broker]\nurl = \"mqtts://{host}:{}\"\nca_file = \"{}\"\n",
            self.port,
            ca.display()
        );
        Agent::start(id, self.broker.port, &more)
    }
}

fn openssl(arguments: &[&str]) {
    let output = Command::new("openssl").args(arguments).output();
    let output = output.expect("openssl is needed: apt-get install openssl");
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{arguments:?}: {error}");
}

/// Readings arrive and a command moves the LED.
fn works(listener: &Listener, agent: &Agent) {
    eventually("readings arrive", || listener.on("telemetry").len() >= 5);
    listener.publish("commands", r#"{"led_on":true,"id":"c"}"#);
    eventually("the LED is on", || agent.led_on());
    eventually("it is answered", || {
        !listener.on("commands/result").is_empty()
    });
}

fn says(agent: &Agent, words: &str) {
    eventually(&format!("the log says: {words}"), || {
        agent.log().contains(words)
    });
}

#[test]
fn an_encrypted_line_works_for_the_right_name_and_authority_alone() {
    let encrypted = Encrypted::start();
    let listener = Listener::start("tls", encrypted.broker.port);
    eventually("the listener listens", || listener.listens());
    let wrong_name = encrypted.agent("tls", "127.0.0.1", "ca.pem");
    says(&wrong_name, "not for 127.0.0.1, but for localhost");
    drop(wrong_name);
    let wrong_authority = encrypted.agent("tls", "localhost", "other.pem");
    says(&wrong_authority, "set broker.ca_file");
    drop(wrong_authority);
    assert!(listener.records().is_empty());
    let mut agent = encrypted.agent("tls", "localhost", "ca.pem");
    works(&listener, &agent);
    assert_eq!(agent.stop().code(), Some(0));
    eventually("a goodbye", || listener.last_text("status") == "offline");
}

/// What the log says of a link that does not come, without a library's words.
fn fails_with(encrypted: &Encrypted, id: &str, url: &str, keys: &str, words: &[&str]) {
    let at = |name: &str| encrypted.folder.path().join(name).display().to_string();
    let keys = keys
        .replace("{ca}", &at("ca.pem"))
        .replace("{other}", &at("other.pem"))
        .replace("{other_key}", &at("other.key"));
    let agent = Agent::start(id, 1, &format!("[broker]\nurl = \"{url}\"\n{keys}"));
    for words in words {
        says(&agent, words);
    }
    for library in [
        "I/O",
        "TLS error",
        "rustls",
        "InvalidCertificate",
        "AlertReceived",
        "Web Pki",
    ] {
        assert!(!agent.log().contains(library), "{library}: {}", agent.log());
    }
}

#[test]
fn a_failure_of_tls_names_the_key_that_mends_it() {
    let encrypted = Encrypted::start();
    let ca = "ca_file = \"{ca}\"\n";
    let url = |host: &str, port: u16| format!("mqtts://{host}:{port}");
    let at = |name: &str| encrypted.folder.path().join(name).display().to_string();
    let door = |lines: &str| {
        let port = free_port();
        let broker = Broker::start_with(&format!("allow_anonymous true\nlistener {port}\n{lines}"));
        (broker, port)
    };

    let words = ["not trusted here", "set broker.ca_file"];
    let to = url("localhost", encrypted.port);
    fails_with(&encrypted, "tls-a", &to, "ca_file = \"{other}\"\n", &words);

    let words = ["not for 127.0.0.1, but for localhost", "in broker.url"];
    let to = url("127.0.0.1", encrypted.port);
    fails_with(&encrypted, "tls-b", &to, ca, &words);

    // A key that belongs to another certificate is seen before anything is tried.
    let keys = format!("{ca}cert_file = \"{{ca}}\"\nkey_file = \"{{other_key}}\"\n");
    let words = [
        "does not belong to the certificate",
        "broker.key_file",
        "broker.cert_file",
    ];
    let to = url("localhost", encrypted.port);
    fails_with(&encrypted, "tls-c", &to, &keys, &words);

    let own = format!(
        "cafile {}\ncertfile {}\nkeyfile {}\nrequire_certificate true\n",
        at("ca.pem"),
        at("pem"),
        at("key")
    );
    let (_broker, port) = door(&own);
    let words = [
        "wants a client certificate",
        "set broker.cert_file and broker.key_file",
    ];
    fails_with(&encrypted, "tls-d", &url("localhost", port), ca, &words);
    let keys = format!("{ca}cert_file = \"{{other}}\"\nkey_file = \"{{other_key}}\"\n");
    let words = ["our client certificate", "check broker.cert_file"];
    fails_with(&encrypted, "tls-e", &url("localhost", port), &keys, &words);

    for (name, from, to, words) in [
        (
            "old",
            "20200101000000Z",
            "20210101000000Z",
            [
                "was good until 2021-01-01T00:00:00Z",
                "the clock of this machine says 20",
            ],
        ),
        (
            "young",
            "20900101000000Z",
            "20910101000000Z",
            ["is good from 2090-01-01T00:00:00Z", "timedatectl"],
        ),
    ] {
        encrypted.sign(name, from, to);
        let (_broker, port) = door(&format!("certfile {}\nkeyfile {}\n", at(name), at("key")));
        fails_with(
            &encrypted,
            &format!("tls-{name}"),
            &url("localhost", port),
            ca,
            &words,
        );
    }

    // TLS to a door without it, and the other way round.
    let plain = FakeBroker::start(|_, _| vec![Act::Close]);
    let words = ["does not speak TLS", "8883"];
    let speaks = talker(b"HTTP/1.1 400 Bad Request\r\n\r\n");
    fails_with(&encrypted, "tls-f", &url("localhost", speaks), ca, &words);
    let words = ["check the port in broker.url"];
    fails_with(
        &encrypted,
        "tls-g",
        &url("localhost", plain.port),
        ca,
        &words,
    );
    let words = ["mqtts:// where the broker wants TLS"];
    let to = format!("mqtt://localhost:{}", encrypted.port);
    fails_with(&encrypted, "tls-h", &to, "", &words);
}

/// Says this to whoever comes.
fn talker(words: &'static [u8]) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let port = listener.local_addr().expect("an address").port();
    thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            let mut bytes = [0; 1_024];
            let _ = stream.read(&mut bytes);
            let _ = stream.write_all(words);
        }
    });
    port
}

#[test]
fn a_websocket_works_where_the_other_end_speaks_mqtt_over_it() {
    let broker = Broker::start();
    let listener = Listener::start("ws", broker.port);
    eventually("the listener listens", || listener.listens());
    let port = relay(broker.port);
    let more = |path: &str| format!("[broker]\nurl = \"ws://127.0.0.1:{port}{path}\"\n");
    let mistaken = Agent::start("ws", broker.port, &more("/chat"));
    says(&mistaken, "SubProtocol error");
    drop(mistaken);
    let mut agent = Agent::start("ws", broker.port, &more("/mqtt"));
    works(&listener, &agent);
    assert_eq!(agent.stop().code(), Some(0));
    eventually("a goodbye", || listener.last_text("status") == "offline");
}

#[test]
fn lines_that_cannot_be_made_are_told_in_words() {
    let nobody = free_port();
    for (url, words) in [
        (format!("mqtt://127.0.0.1:{nobody}"), "nobody listens"),
        (format!("wss://localhost:{nobody}"), "nobody listens"),
        (format!("mqtt://[::1]:{nobody}"), "link down"),
        ("mqtt://nightlight.invalid".to_owned(), "link down"),
    ] {
        let more = format!("[broker]\nurl = \"{url}\"\n");
        let agent = Agent::start("lost", nobody, &more);
        says(&agent, words);
        let folder = agent.path("log");
        println!("{url}: {}", why(&folder));
    }
}

fn why(log: &Path) -> String {
    let log = fs::read_to_string(log).unwrap_or_default();
    let down = log.lines().find(|line| line.contains("link down"));
    down.unwrap_or_default().to_owned()
}

/// WebSocket to TCP: on the path /mqtt as a broker does it, elsewhere without naming MQTT.
fn relay(broker: u16) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let port = listener.local_addr().expect("an address").port();
    listener.set_nonblocking(true).expect("set");
    thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build();
        runtime.expect("a runtime").block_on(async {
            let listener = tokio::net::TcpListener::from_std(listener).expect("a listener");
            while let Ok((tcp, _)) = listener.accept().await {
                tokio::spawn(async move {
                    let socket = async_tungstenite::tokio::accept_hdr_async(tcp, agree)
                        .await
                        .ok()?;
                    let mut socket = WsStream::new(socket);
                    let mut tcp = tokio::net::TcpStream::connect(("127.0.0.1", broker))
                        .await
                        .ok()?;
                    tokio::io::copy_bidirectional(&mut socket, &mut tcp)
                        .await
                        .ok()
                });
            }
        });
    });
    port
}

#[expect(clippy::result_large_err, reason = "the library's signature")]
fn agree(request: &Request, mut response: Response) -> Result<Response, ErrorResponse> {
    let asked = request.headers().get("Sec-WebSocket-Protocol");
    if request.uri().path() == "/mqtt" && asked.is_some_and(|name| name == "mqtt") {
        let name = HeaderValue::from_static("mqtt");
        response
            .headers_mut()
            .insert("Sec-WebSocket-Protocol", name);
    }
    Ok(response)
}
