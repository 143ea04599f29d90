//! The way to the broker where a part of it is dead: addresses that do not answer, a name server that
//! never does, and a stop at each stage.

#![allow(clippy::expect_used, reason = "test code")]

use std::fs;
use std::io::Read;
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use tempfile::TempDir;

use crate::stage::dialect::{Dialect, in_both_versions};
use crate::stage::fake::{Act, FakeBroker, Packet};
use crate::stage::{Agent, Broker, Listener, eventually};

/// Says what a name is, in the place of the system: `hang` answers never, other names of this test have
/// the addresses in their place.
const RESOLVER: &str = r#"
#define _GNU_SOURCE
#include <dlfcn.h>
#include <netdb.h>
#include <string.h>
#include <stdlib.h>
#include <unistd.h>
typedef int (*gai)(const char *, const char *, const struct addrinfo *, struct addrinfo **);
int getaddrinfo(const char *host, const char *service, const struct addrinfo *hints,
                struct addrinfo **found) {
    gai real = (gai)dlsym(RTLD_NEXT, "getaddrinfo");
    if (host && !strcmp(host, "hang.test")) for (;;) pause();
    if (host && !strcmp(host, "many.test")) {
        struct addrinfo **end = found;
        char *list = strdup(getenv("TEST_ADDRESSES")), *rest = list, *one;
        while ((one = strsep(&rest, ","))) {
            int failed = real(one, service, hints, end);
            if (failed) return failed;
            while (*end) end = &(*end)->ai_next;
        }
        free(list);
        return 0;
    }
    return real(host, service, hints, found);
}
"#;

/// The library that does so, for LD_PRELOAD.
fn resolver() -> (TempDir, PathBuf) {
    let folder = tempfile::tempdir().expect("a folder");
    let source = folder.path().join("names.c");
    let library = folder.path().join("names.so");
    fs::write(&source, RESOLVER).expect("written");
    let built = Command::new("cc")
        .args(["-shared", "-fPIC", "-o"])
        .arg(&library)
        .arg(&source)
        .arg("-ldl")
        .status();
    assert!(built.expect("a C compiler is needed").success());
    (folder, library)
}

fn url(scheme: &str, host: &str, port: u16) -> String {
    format!("[broker]\nurl = \"{scheme}://{host}:{port}\"\nkeep_alive = \"5s\"\n")
}

/// Runs an agent until `ready`, then SIGTERM; it has 2 s.
fn stops(
    dialect: Dialect,
    id: &str,
    more: &str,
    library: Option<&Path>,
    ready: impl Fn(&Agent) -> bool,
) {
    let mut agent = dialect.prepare(id, 1, more);
    let library = library.map(|path| path.display().to_string());
    agent.run_with(&[
        ("NIGHTLIGHT_LOG", "debug"),
        ("LD_PRELOAD", library.as_deref().unwrap_or_default()),
    ]);
    eventually(&format!("{id} is there"), || ready(&agent));
    let begun = Instant::now();
    assert_eq!(agent.stop().code(), Some(0), "{id}");
    let took = begun.elapsed();
    assert!(took < Duration::from_secs(2), "{id} stops after {took:?}");
}

#[test]
fn a_stop_takes_less_than_two_seconds_at_every_stage_of_connecting() {
    in_both_versions(|dialect| {
        let (_folder, library) = resolver();
        let says = |words: &'static str| move |agent: &Agent| agent.log().contains(words);
        stops(
            dialect,
            "stop-name",
            &url("mqtt", "hang.test", 1883),
            Some(&library),
            says("looking up"),
        );
        let full = Full::start();
        stops(
            dialect,
            "stop-tcp",
            &url("mqtt", "127.0.0.1", full.port),
            None,
            says(": connecting"),
        );
        let silent = Silent::start();
        stops(
            dialect,
            "stop-tls",
            &url("mqtts", "127.0.0.1", silent.port),
            None,
            says("TLS handshake"),
        );
        stops(
            dialect,
            "stop-connack",
            &url("mqtt", "127.0.0.1", silent.port),
            None,
            says("CONNECT as"),
        );
        let deaf = FakeBroker::start(move |_, packet| match packet {
            Packet::Subscribe { .. } => vec![Act::StopReading],
            _ => dialect.answer(packet),
        });
        stops(
            dialect,
            "stop-deaf",
            &url("mqtt", "127.0.0.1", deaf.port),
            None,
            says("link up"),
        );
    });
}

#[test]
fn dead_addresses_of_any_kind_do_not_hide_the_good_one_and_it_is_remembered() {
    in_both_versions(|dialect| {
        let (_folder, library) = resolver();
        let mut broker = Broker::start();
        let port = broker.port;
        let listener = Listener::start("way-a", port);
        eventually("the listener listens", || listener.listens());
        // Refused; a route to nowhere; one that takes connections and says nothing.
        Silent::at("127.0.0.3", port);
        let mut agent = dialect.prepare("way-a", 1, &url("mqtt", "many.test", port));
        let addresses = ["::1", "100::1", "127.0.0.3", "127.0.0.2", "127.0.0.1"].join(",");
        agent.run_with(&[
            ("NIGHTLIGHT_LOG", "debug"),
            ("LD_PRELOAD", &library.display().to_string()),
            ("TEST_ADDRESSES", &addresses),
        ]);
        let up = |times| move |agent: &Agent| agent.log().matches("link up").count() >= times;
        let began = Instant::now();
        assert!(
            crate::stage::within(Duration::from_secs(45), || up(1)(&agent)),
            "{}",
            agent.log()
        );
        println!("up after {:?}", began.elapsed());
        // A session that stood is remembered: the next one goes there at once.
        thread::sleep(Duration::from_secs(11));
        let before = agent.log().len();
        broker.restart();
        eventually("it is up again", || up(2)(&agent));
        let log = agent.log();
        let again = &log[before..];
        let first = again.lines().find(|line| line.contains(": connecting"));
        assert!(
            first.is_some_and(|line| line.contains("127.0.0.1:")),
            "{again}"
        );
    });
}

/// Takes connections and says nothing.
struct Silent {
    port: u16,
}

impl Silent {
    fn start() -> Self {
        Self::at("127.0.0.1", 0)
    }

    fn at(address: &str, port: u16) -> Self {
        let listener = TcpListener::bind((address, port)).expect("a port");
        let port = listener.local_addr().expect("an address").port();
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                thread::spawn(move || {
                    let mut stream = stream;
                    let mut bytes = [0; 1_024];
                    while stream.read(&mut bytes).is_ok_and(|read| read > 0) {}
                });
            }
        });
        Self { port }
    }
}

/// Answers no connection: its queue is full, like an address behind a dead route.
struct Full {
    port: u16,
    _queue: Vec<TcpStream>,
    _socket: rustix::fd::OwnedFd,
}

impl Full {
    fn start() -> Self {
        use rustix::net;
        use std::net::SocketAddr;
        let socket =
            net::socket(net::AddressFamily::INET, net::SocketType::STREAM, None).expect("a socket");
        net::bind(&socket, &SocketAddr::from(([127, 0, 0, 1], 0))).expect("bound");
        net::listen(&socket, 0).expect("listens");
        let address = net::getsockname(&socket).expect("an address");
        let address = SocketAddr::try_from(address).expect("of IP");
        let mut queue = Vec::new();
        while let Ok(stream) = TcpStream::connect_timeout(&address, Duration::from_millis(200)) {
            queue.push(stream);
            assert!(queue.len() < 100);
        }
        Self {
            port: address.port(),
            _queue: queue,
            _socket: socket,
        }
    }
}
