//! A database that goes away, hangs or may not be written: no ack, `offline`, and back by itself, with nothing
//! lost and nothing asked for twice that was kept.

use std::process::Command;
use std::time::Duration;

use serde_json::{Value, json};

use crate::postgres::Cluster;
use crate::server::{Server, Store};
use crate::stage::{Broker, Listener, eventually, within};

const RUN: &str = "0b7e0000-0000-4000-8000-000000000001";
/// Tries to come back are up to 5 s apart, and what hangs is given 10 s (database.timeout).
const PATIENCE: Duration = Duration::from_secs(90);

struct Scene {
    _broker: Broker,
    ear: Listener,
    device: Listener,
    server: Server,
    /// What records carry besides.
    more: String,
}

impl Scene {
    fn new(store: &Store) -> Self {
        let broker = Broker::start();
        let (ear, device) = (
            Listener::start("nightlight", broker.port),
            Listener::start("pi", broker.port),
        );
        eventually("they listen", || ear.listens() && device.listens());
        let server = Server::start(store, broker.port, "");
        let scene = Self {
            _broker: broker,
            ear,
            device,
            server,
            more: String::new(),
        };
        // With its subscriptions.
        scene.says("online");
        scene.tell(1);
        scene.acked(1);
        scene
    }

    fn tell(&self, seq: u64) {
        let record = json!({"light": seq, "run": RUN, "seq": seq, "more": self.more});
        self.device.publish("telemetry", record.to_string());
    }

    fn is_acked(&self, seq: u64) -> bool {
        let acks = self.device.on("acks");
        let ranges = acks
            .iter()
            .filter_map(|ack| ack["acked"].as_array())
            .flatten();
        ranges
            .into_iter()
            .any(|range: &Value| (range[0].as_u64()..=range[1].as_u64()).contains(&Some(seq)))
    }

    fn acked(&self, seq: u64) {
        assert!(
            within(PATIENCE, || self.is_acked(seq)),
            "{seq} is not acked"
        );
    }

    fn says(&self, word: &str) {
        let said = || self.ear.last_text("server/status") == word;
        assert!(within(PATIENCE, said), "it does not say {word}");
    }

    /// Something is told while the database is `out`; after `back` it is kept, once.
    fn survives(&mut self, seq: u64, out: impl FnOnce(), back: impl FnOnce()) {
        out();
        self.tell(seq);
        self.says("offline");
        assert!(!self.is_acked(seq), "acked, and not kept");
        back();
        self.says("online");
        self.acked(seq);
        let text = self.server.account();
        let line = format!("pi: {seq} received, 0 twice, 0 lost, 0 missing");
        assert!(text.starts_with(&line), "{text}");
    }
}

#[test]
fn postgres_stopped_frozen_and_read_only() {
    let Some(mut cluster) = Cluster::start() else {
        return;
    };
    let name = cluster.database();
    let store = Store::At(cluster.url(&name));
    let mut scene = Scene::new(&store);
    // Two closures of one thing.
    let cluster = std::cell::RefCell::new(&mut cluster);
    scene.survives(
        2,
        || cluster.borrow_mut().stop(),
        || cluster.borrow_mut().run(),
    );
    scene.survives(3, || cluster.borrow().freeze(), || cluster.borrow().thaw());
    let may_write = |may: &str| {
        let allow = format!("alter database {name} set default_transaction_read_only = {may}");
        let anew = "select pg_terminate_backend(pid) from pg_stat_activity where application_name = 'nightlight-server'";
        for sql in [allow.as_str(), anew] {
            assert!(cluster.borrow().sql("postgres", sql).is_some(), "{sql}");
        }
    };
    scene.survives(4, || may_write("on"), || may_write("off"));
    scene.server.stop();
}

/// PostgreSQL without room for another record.
#[test]
#[ignore = "long"]
fn a_full_disk_under_postgres() {
    let Some(cluster) = Cluster::start_on_small_disk(160) else {
        return;
    };
    let name = cluster.database();
    let store = Store::At(cluster.url(&name));
    let mut scene = Scene::new(&store);
    let cluster = std::cell::RefCell::new(cluster);
    // What cannot be made small, and does not fit where there is room still.
    scene.more = (0..60_000).map(|_| fastrand::alphanumeric()).collect();
    scene.survives(
        2,
        || assert!(cluster.borrow().fill_disk(), "there is room"),
        || cluster.borrow_mut().free_disk(),
    );
    scene.server.stop();
}

/// A file system of its own, filled to the brim.
#[test]
fn a_full_disk_under_the_file() {
    let folder = tempfile::tempdir().expect("a folder");
    let at = folder.path().display().to_string();
    let mounted = Command::new("mount")
        .args(["-t", "tmpfs", "-o", "size=40m", "tmpfs", &at])
        .status();
    if !mounted.is_ok_and(|status| status.success()) {
        eprintln!("LEFT OUT: no right to mount a file system");
        return;
    }
    let told = std::panic::catch_unwind(|| {
        let store = Store::At(format!("sqlite://{at}/nightlight.db"));
        let mut scene = Scene::new(&store);
        let ballast = folder.path().join("ballast");
        scene.survives(
            2,
            || {
                let full = std::fs::write(&ballast, vec![1; 64 << 20]);
                assert!(full.is_err(), "there is room");
            },
            || std::fs::remove_file(&ballast).expect("removed"),
        );
        scene.server.stop();
    });
    let status = Command::new("umount").arg("-l").arg(&at).status();
    assert!(status.expect("umount runs").success());
    if let Err(panic) = told {
        std::panic::resume_unwind(panic);
    }
}
