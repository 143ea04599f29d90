//! What strangers may do with the names of devices, and a database behind TLS.

use std::fs;
use std::os::unix::fs::{PermissionsExt, chown};
use std::process::Command;

use rumqttc::{Client, Event, Incoming, MqttOptions, Outgoing, QoS};
use serde_json::json;

use crate::postgres::{Cluster, NOBODY, is_root};
use crate::server::{Server, Store};
use crate::stage::{Broker, Listener, eventually};

const IDS: usize = 10_000;
const RUN: &str = "0b7e0000-0000-4000-8000-000000000001";

/// Ten thousand names with SQL, formulas and markup in them: each is one device, or refused beyond devices.max, and the
/// records of the one that was there first stay its own.
pub fn ten_thousand_hostile_names_do_no_harm(store: Store) {
    let broker = Broker::start();
    let mut server = Server::start(&store, broker.port, "[devices]\nmax = 5000\n");
    let ear = Listener::start("nightlight", broker.port);
    let own = Listener::start("pi", broker.port);
    eventually("they listen", || ear.listens() && own.listens());
    eventually("it is there", || ear.last_text("server/status") == "online");
    own.publish(
        "telemetry",
        json!({"light": 1, "run": RUN, "seq": 1}).to_string(),
    );
    eventually("it is acked", || !own.on("acks").is_empty());
    flood(broker.port);
    eventually("new ones are refused", || {
        server.read("log").contains("too many devices")
    });
    // Behind all of them.
    own.publish(
        "telemetry",
        json!({"light": 2, "run": RUN, "seq": 2}).to_string(),
    );
    eventually("it is still served", || own.on("acks").len() >= 2);
    server.stop();
    let accounts = server.account();
    let mine = "pi: 2 received, 0 twice, 0 lost, 0 missing\n";
    assert!(accounts.contains(mine), "{accounts:.300}");
    let devices = server.print("devices", &["--json"]);
    assert_eq!(devices.lines().count(), 5_000);
    assert!(
        devices.contains("drop table records"),
        "the names are kept as they are"
    );
    let csv = server.print("export", &["--csv"]);
    assert!(!csv.lines().any(|line| line.starts_with('=')), "a formula");
}

fn flood(port: u16) {
    let mut options = MqttOptions::new("flood", "127.0.0.1", port);
    options.set_inflight(1_000);
    let (client, mut connection) = Client::new(options, 2 * IDS);
    for n in 0..IDS {
        let id = match n % 5 {
            0 => format!("'; drop table records; -- {n}"),
            1 => format!("=cmd|'x'!A{n}"),
            2 => format!("<script>alert({n})<"),
            3 => format!("\u{202e}{n}\" or 1=1"),
            _ => format!("{n}{}", "x".repeat(200)),
        };
        // It claims the run of another device.
        let record = json!({"light": n, "run": RUN, "seq": 1 + n % 3}).to_string();
        client
            .try_publish(format!("{id}/telemetry"), QoS::AtLeastOnce, false, record)
            .expect("there is room");
    }
    let mut confirmed = 0;
    for event in connection.iter() {
        match event.expect("the broker is there") {
            Event::Incoming(Incoming::PubAck(_)) => confirmed += 1,
            Event::Outgoing(Outgoing::Disconnect) => break,
            _ => {}
        }
        if confirmed == IDS {
            break;
        }
    }
}

/// A certificate that is checked, and a password from a file.
#[test]
fn postgres_with_tls_and_a_password_file() {
    let Some(mut cluster) = Cluster::start() else {
        return;
    };
    let name = cluster.database();
    let folder = tempfile::tempdir().expect("a folder");
    let at = |file: &str| folder.path().join(file).display().to_string();
    let openssl = |arguments: &[&str]| {
        let made = Command::new("openssl")
            .args(arguments)
            .output()
            .expect("openssl runs");
        assert!(made.status.success(), "{made:?}");
    };
    let (ca, ca_key, key, request, certificate) = (
        at("ca.pem"),
        at("ca.key"),
        at("server.key"),
        at("server.csr"),
        at("server.pem"),
    );
    openssl(&[
        "req",
        "-x509",
        "-newkey",
        "rsa:2048",
        "-nodes",
        "-days",
        "2",
        "-subj",
        "/CN=authority",
        "-keyout",
        &ca_key,
        "-out",
        &ca,
    ]);
    openssl(&[
        "req",
        "-newkey",
        "rsa:2048",
        "-nodes",
        "-subj",
        "/CN=localhost",
        "-keyout",
        &key,
        "-out",
        &request,
    ]);
    fs::write(at("ext"), "subjectAltName=DNS:localhost,IP:127.0.0.1\n").expect("written");
    openssl(&[
        "x509",
        "-req",
        "-in",
        &request,
        "-CA",
        &ca,
        "-CAkey",
        &ca_key,
        "-CAcreateserial",
        "-days",
        "2",
        "-extfile",
        &at("ext"),
        "-out",
        &certificate,
    ]);
    for file in ["server.key", "server.pem"] {
        let to = cluster.data().join(file);
        fs::copy(at(file), &to).expect("copied");
        fs::set_permissions(&to, fs::Permissions::from_mode(0o600)).expect("changed");
        if is_root() {
            chown(&to, Some(NOBODY), Some(NOBODY)).expect("given away");
        }
    }
    for sql in [
        "alter user nightlight password 'the secret'",
        "alter system set ssl = on",
        "alter system set ssl_cert_file = 'server.pem'",
        "alter system set ssl_key_file = 'server.key'",
    ] {
        assert!(cluster.sql("postgres", sql).is_some(), "{sql}");
    }
    // The tests' own psql comes from the same address, without TLS.
    let rules = "hostssl all nightlight 127.0.0.1/32 scram-sha-256\nhostnossl all nightlight 127.0.0.1/32 trust\n";
    fs::write(cluster.data().join("pg_hba.conf"), rules).expect("written");
    cluster.stop();
    cluster.run();
    let port = cluster.port;
    let url = |ca: &str| {
        format!(
            "postgres://nightlight@localhost:{port}/{name}?sslmode=verify-full&sslrootcert={ca}"
        )
    };
    let password = at("password");
    let broker = Broker::start();
    let with = |ca: &str, password: &str| {
        let more = format!("password_file = \"{password}\"\n");
        Server::prepare(&Store::At(url(ca)), broker.port, &more)
    };
    fs::write(&password, "wrong\n").expect("written");
    let report = |server: &Server| {
        let output = server.command("doctor").output().expect("it runs");
        (
            output.status.code(),
            String::from_utf8_lossy(&output.stdout).into_owned(),
        )
    };
    let (code, text) = report(&with(&ca, &password));
    assert!(
        code == Some(77) && text.contains("password authentication failed"),
        "{text}"
    );
    fs::write(&password, "the secret\n").expect("written");
    // Another authority.
    openssl(&[
        "req",
        "-x509",
        "-newkey",
        "rsa:2048",
        "-nodes",
        "-days",
        "2",
        "-subj",
        "/CN=stranger",
        "-keyout",
        &at("x.key"),
        "-out",
        &at("x.pem"),
    ]);
    let (code, text) = report(&with(&at("x.pem"), &password));
    assert!(code == Some(70) && text.contains("certificate"), "{text}");
    let mut server = with(&ca, &password);
    server.run();
    let device = Listener::start("pi", broker.port);
    eventually("the device listens", || device.listens());
    eventually("a record is acked", || {
        device.publish(
            "telemetry",
            json!({"light": 1, "run": RUN, "seq": 1}).to_string(),
        );
        std::thread::sleep(std::time::Duration::from_millis(100));
        !device.on("acks").is_empty()
    });
    let encrypted = "select count(*) > 0 from pg_stat_ssl join pg_stat_activity using (pid) \
                     where application_name = 'nightlight-server' and ssl";
    assert_eq!(cluster.sql(&name, encrypted).as_deref(), Some("t"));
    assert!(report(&server).1.contains("tables up to date"));
    cluster.sql("postgres", "alter system set fsync = off");
    cluster.sql("postgres", "select pg_reload_conf()");
    eventually("doctor warns", || {
        report(&server).1.contains("fsync is off")
    });
    server.stop();
}
