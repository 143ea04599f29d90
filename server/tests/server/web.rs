//! The page, the API and the metrics of a running server, as a browser, a script and Prometheus see them.

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::process::{Command, Stdio};
use std::time::Duration;

use serde_json::{Value, json};

use crate::postgres::Cluster;
use crate::server::{Server, Store};
use crate::stage::{Broker, Listener, eventually, free_port};

const TOKEN: &str = "0123456789abcdef0123";
const RUN: &str = "0b7e0000-0000-4000-8000-000000000001";

/// A server with a page, and a device that has told it things.
struct Seen {
    _broker: Broker,
    device: Listener,
    server: Server,
    port: u16,
}

struct Answer {
    status: u16,
    head: String,
    body: String,
}

impl Answer {
    fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_else(|_| panic!("no JSON: {}", self.body))
    }
}

impl Seen {
    fn new(store: &Store) -> Self {
        let broker = Broker::start();
        let folder = tempfile::tempdir().expect("a folder");
        let token = folder.path().join("token");
        fs::write(&token, format!("{TOKEN}\n")).expect("written");
        let port = free_port();
        let more = format!(
            "[web]\nlisten = \"127.0.0.1:{port}\"\ntoken_file = \"{}\"\n[groups]\nhall = [\"pi 1\"]\n",
            token.display()
        );
        let server = Server::start(store, broker.port, &more);
        let device = Listener::start("pi 1", broker.port);
        eventually("the device listens", || device.listens());
        let seen = Self {
            _broker: broker,
            device,
            server,
            port,
        };
        eventually("it is well", || {
            seen.try_get("/healthz")
                .is_some_and(|answer| answer.status == 200)
        });
        seen
    }

    /// A day of readings, a loss, an outage, and a state.
    fn tell(&self) {
        let now = jiff::Timestamp::now().as_millisecond();
        let ts = |minutes_ago: i64| {
            let then = jiff::Timestamp::from_millisecond(now - minutes_ago * 60_000);
            then.expect("a time").to_string()
        };
        let mut records: Vec<Value> = (0..24 * 12_i64)
            .map(|n| {
                json!({"light": 100 + n, "led_on": n % 2 == 0, "run": RUN, "seq": n + 1,
                       "ts": ts(24 * 60 - 5 * n), "clock": "synced"})
            })
            .collect();
        records.push(
            json!({"event": "led", "led_on": true, "by": "fallback", "why": "<b>dark</b>",
            "run": RUN, "seq": 289, "ts": ts(3), "clock": "synced"}),
        );
        records.push(json!({"event": "outage", "cause": "link", "began": ts(90), "ended": ts(60),
            "seconds": 1800, "lost": 2, "why": "no link", "run": RUN, "seq": 290, "ts": ts(2), "clock": "synced"}));
        records.push(json!({"event": "loss", "of_run": RUN, "from_seq": 291, "to_seq": 292, "count": 2, "reason": "backlog-full"}));
        self.device
            .publish("telemetry/history", json!(records).to_string());
        let state = json!({"light": 7, "led_on": true, "by": "fallback", "why": "dark", "backlog": 5,
            "clock": "unsynced", "version": "1.0", "sensor_ok": false});
        self.device.publish("state", state.to_string());
        self.device.publish("status", "online");
        eventually("all is kept", || {
            let answer = self.get("/api/devices/pi%201");
            answer.status == 200
                && answer.json()["line"]["received"] == 290
                && answer.json()["line"]["online"] == true
                && answer.json()["line"]["version"] == "1.0"
        });
    }

    fn get(&self, path: &str) -> Answer {
        self.try_get(path).expect("an answer")
    }

    fn try_get(&self, path: &str) -> Option<Answer> {
        let headers = format!(
            "Host: localhost:{}\r\nAuthorization: Bearer {TOKEN}\r\n",
            self.port
        );
        ask(self.port, &format!("GET {path} HTTP/1.1\r\n{headers}"), "")
    }

    fn post(&self, path: &str, more: &str, body: &str) -> Answer {
        let head = format!(
            "POST {path} HTTP/1.1\r\nHost: localhost:{}\r\n{more}Content-Length: {}\r\n",
            self.port,
            body.len()
        );
        ask(self.port, &head, body).expect("an answer")
    }
}

fn ask(port: u16, head: &str, body: &str) -> Option<Answer> {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).ok()?;
    let whole = format!("{head}Connection: close\r\n\r\n{body}");
    stream.write_all(whole.as_bytes()).ok()?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).ok()?;
    let text = String::from_utf8(answer).expect("UTF-8");
    let (head, body) = text.split_once("\r\n\r\n")?;
    let chunked = head.to_lowercase().contains("transfer-encoding: chunked");
    Some(Answer {
        status: head.split(' ').nth(1)?.parse().ok()?,
        head: head.to_lowercase(),
        body: if chunked {
            joined(body)
        } else {
            body.to_owned()
        },
    })
}

/// What is in the chunks; the last one must be there.
fn joined(mut chunks: &str) -> String {
    let mut whole = String::new();
    loop {
        let (size, rest) = chunks.split_once("\r\n").expect("a size");
        let size = usize::from_str_radix(size, 16).expect("a number");
        if size == 0 {
            return whole;
        }
        whole.push_str(&rest[..size]);
        chunks = &rest[size + 2..];
    }
}

pub fn the_page_shows_the_fleet_and_a_device(store: Store) {
    let mut seen = Seen::new(&store);
    seen.tell();
    // What a browser loads, and from here alone.
    for path in [
        "/",
        "/device/pi%201",
        "/style.css",
        "/common.js",
        "/fleet.js",
        "/device.js",
    ] {
        let answer = seen.get(path);
        assert_eq!(answer.status, 200, "{path}");
        assert!(
            answer
                .head
                .contains("content-security-policy: default-src 'none'"),
            "{}",
            answer.head
        );
        assert!(
            !answer.body.contains("//cdn") && !answer.body.contains("https://"),
            "{path}"
        );
    }
    let fleet = seen.get("/api/devices").json();
    let line = &fleet["devices"][0];
    assert_eq!(line["device"], "pi 1");
    assert_eq!(line["needs"][0], "its sensor does not work");
    assert_eq!(
        (&line["lost"], &line["missing"], &line["light"]),
        (&json!(2), &json!(0), &json!(387.0))
    );
    assert_eq!(
        (&fleet["next"], &line["clock"]),
        (&Value::Null, &json!("unsynced"))
    );
    let curves = seen.get("/api/curves").json();
    let curve = curves["pi 1"].as_str().expect("a curve").to_owned();
    assert_eq!((curve.len(), curve.ends_with('Z')), (48, true), "{curve}");
    let device = seen.get("/api/devices/pi%201").json();
    let words: Vec<&str> = device["events"]
        .as_array()
        .expect("events")
        .iter()
        .filter_map(|event| event["words"].as_str())
        .collect();
    assert_eq!(
        words,
        [
            "link was down for 1800 s, 2 records lost: no link",
            "LED on, by fallback: <b>dark</b>"
        ]
    );
    assert_eq!(
        (&device["group"], &device["can_switch"]),
        (&json!("hall"), &json!(true))
    );
    assert_eq!(device["runs"][0]["received"], 290);
    for (span, points) in [("hour", 10), ("day", 230), ("month", 7)] {
        let plot = seen
            .get(&format!("/api/devices/pi%201/plot?span={span}"))
            .json();
        let lights = plot["light"].as_array().expect("lights");
        assert_eq!(lights.len(), 240);
        assert!(
            lights.iter().filter(|light| light.is_number()).count() >= points,
            "{span}: {plot}"
        );
        assert!(
            plot["led"].as_array().expect("LEDs").contains(&json!(true)),
            "{span}"
        );
        let troubles = plot["troubles"].as_array().expect("troubles");
        let expected = if span == "hour" { 1..=2 } else { 2..=2 };
        assert!(expected.contains(&troubles.len()), "{plot}");
    }
    let lines = seen.get("/api/devices/pi%201/records");
    assert_eq!(lines.body.lines().count(), 290);
    let first: Value =
        serde_json::from_str(lines.body.lines().next().expect("a line")).expect("JSON");
    assert_eq!(first["record"]["seq"], 1);
    let half = jiff::Timestamp::now().as_millisecond() - 12 * 3_600_000;
    let from = jiff::Timestamp::from_millisecond(half).expect("a time");
    let csv = seen.get(&format!(
        "/api/devices/pi%201/records?format=csv&from={from}"
    ));
    assert!(csv.body.starts_with("device,run,seq,ts,"), "{}", csv.body);
    assert!(
        (140..150).contains(&csv.body.lines().count()),
        "{}",
        csv.body.lines().count()
    );
    for (path, status) in [
        ("/api/devices/nobody", 404),
        ("/api/devices/nobody/records", 404),
        ("/api/devices/pi%201/plot?span=year", 400),
        ("/api/devices/pi%201/records?from=yesterday", 400),
        ("/api/devices/%ff", 400),
        ("/etc/passwd", 404),
        ("/device/a/b", 404),
    ] {
        assert_eq!(seen.get(path).status, status, "{path}");
    }
    seen.server.stop();
}

pub fn what_changes_comes_by_itself(store: Store) {
    let mut seen = Seen::new(&store);
    seen.tell();
    let mut stream = TcpStream::connect(("127.0.0.1", seen.port)).expect("connected");
    stream
        .set_read_timeout(Some(Duration::from_secs(60)))
        .expect("set");
    let head = format!(
        "GET /api/live?device=pi%201 HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {TOKEN}\r\n\r\n"
    );
    stream.write_all(head.as_bytes()).expect("written");
    let mut lines = BufReader::new(stream).lines();
    let mut next = |what: &str| {
        let found = lines
            .by_ref()
            .map(|line| line.expect("a line"))
            .find(|line| line.contains(what));
        found.expect("it comes")
    };
    next("text/event-stream");
    next("retry: ");
    let reading = json!({"light": 12, "run": RUN, "seq": 300});
    seen.device.publish("telemetry", reading.to_string());
    let data = next("\"received\":291");
    let changed: Value = serde_json::from_str(data.trim_start_matches("data: ")).expect("JSON");
    assert_eq!(changed[0]["device"], "pi 1");
    seen.server.stop();
}

pub fn an_led_is_switched_by_post_with_a_token_from_the_same_origin(store: Store) {
    let mut seen = Seen::new(&store);
    seen.device.publish(
        "telemetry",
        json!({"light": 5, "run": RUN, "seq": 1}).to_string(),
    );
    let last = |key: &str| {
        seen.device
            .on("commands")
            .last()
            .map(|command| command[key].clone())
    };
    eventually("it is on", || last("led_on") == Some(json!(true)));
    eventually("it is known", || {
        seen.get("/api/devices/pi%201").status == 200
    });
    let bearer = format!("Authorization: Bearer {TOKEN}\r\n");
    let path = "/api/devices/pi%201/switch";
    let off = "{\"led_on\": false}";
    assert_eq!(seen.post(path, "", off).status, 401);
    for (more, status) in [
        ("Origin: http://evil.example\r\n", 403),
        ("Sec-Fetch-Site: cross-site\r\n", 403),
    ] {
        assert_eq!(
            seen.post(path, &format!("{bearer}{more}"), off).status,
            status
        );
    }
    for bad in ["", "{}", "{\"led_on\": 1}", "{\"led_on\": true, \"x\": 1}"] {
        assert_eq!(seen.post(path, &bearer, bad).status, 400, "{bad}");
    }
    assert_eq!(seen.post(path, &bearer, &"x".repeat(5_000)).status, 413);
    assert_eq!(
        seen.post("/api/devices/nobody/switch", &bearer, off).status,
        404
    );
    assert_eq!(
        seen.post("/api/groups/nobody/switch", &bearer, off).status,
        404
    );
    assert_eq!(seen.post("/api/devices", &bearer, off).status, 404);
    let rebound =
        ask(seen.port, "GET / HTTP/1.1\r\nHost: evil.example\r\n", "").expect("an answer");
    assert_eq!(rebound.status, 421);
    let origin = format!("{bearer}Origin: http://localhost:{}\r\n", seen.port);
    let answer = seen.post(path, &origin, off);
    assert_eq!(
        (answer.status, answer.json()),
        (200, json!({"led_on": false}))
    );
    eventually("it is off, without a reading", || {
        last("led_on") == Some(json!(false))
    });
    let command = seen
        .device
        .on("commands")
        .last()
        .cloned()
        .expect("a command");
    for field in ["id", "issued_at", "expires_at", "lease"] {
        assert!(command[field].is_string(), "{command}");
    }
    assert_eq!(
        seen.get("/api/devices").json()["devices"][0]["switched"],
        false
    );
    assert_eq!(seen.post(path, &bearer, "{\"led_on\": null}").status, 200);
    eventually("the rules decide again", || {
        last("led_on") == Some(json!(true))
    });
    assert_eq!(
        seen.post("/api/groups/hall/switch", &bearer, off).status,
        200
    );
    eventually("the group is off", || last("led_on") == Some(json!(false)));
    seen.server.stop();
}

pub fn metrics_have_each_device_and_the_server(store: Store) {
    let mut seen = Seen::new(&store);
    seen.tell();
    let text = seen.get("/metrics").body;
    for line in [
        "nightlight_server_devices 1\n",
        "nightlight_server_device_received_total{device=\"pi 1\"} 290\n",
        "nightlight_server_device_lost_records{device=\"pi 1\"} 2\n",
        "nightlight_server_device_missing_records{device=\"pi 1\"} 0\n",
        "nightlight_server_device_duplicates_total{device=\"pi 1\"} 0\n",
        "nightlight_server_device_outages_total{device=\"pi 1\"} 1\n",
        "nightlight_server_device_sensor_ok{device=\"pi 1\"} 0\n",
        "nightlight_server_device_clock_set{device=\"pi 1\"} 0\n",
        "nightlight_server_device_online{device=\"pi 1\"} 1\n",
        "nightlight_server_device_last_seen_timestamp_seconds{device=\"pi 1\"} 1",
        "nightlight_server_database_up 1\n",
        "nightlight_server_broker_connected 1\n",
        "nightlight_server_database_errors_total 0\n",
        "nightlight_server_records_total 290\n",
        "nightlight_server_ack_delay_seconds_count ",
        "nightlight_server_commit_seconds_bucket{le=\"+Inf\"} ",
    ] {
        assert!(text.contains(line), "{line}: {text}");
    }
    match Command::new("promtool")
        .args(["check", "metrics"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
    {
        Ok(mut promtool) => {
            let mut stdin = promtool.stdin.take().expect("a pipe");
            stdin.write_all(text.as_bytes()).expect("written");
            drop(stdin);
            let output = promtool.wait_with_output().expect("it ends");
            assert!(output.status.success(), "{output:?}");
        }
        Err(_) => eprintln!("LEFT OUT: no promtool here (apt-get install prometheus)"),
    }
    seen.server.stop();
}

/// Every query of the dashboard, as Grafana would send it.
#[test]
fn every_query_of_the_dashboard_works() {
    let Some(cluster) = Cluster::start() else {
        return;
    };
    let name = cluster.database();
    let mut seen = Seen::new(&Store::At(cluster.url(&name)));
    seen.tell();
    seen.server.stop();
    let dashboard = include_str!("../../grafana/nightlight.json");
    let dashboard: Value = serde_json::from_str(dashboard).expect("JSON");
    let mut queries = Vec::new();
    gather(&dashboard, &mut queries);
    assert!(queries.len() >= 15, "{}", queries.len());
    for query in queries {
        let sql = filled_in(&query);
        assert!(!sql.contains('$'), "{sql}");
        let rows = cluster.sql(&name, &sql);
        assert!(
            rows.is_some_and(|rows| !rows.is_empty()),
            "{sql}\n{}",
            cluster.log()
        );
    }
}

fn gather(value: &Value, queries: &mut Vec<String>) {
    match value {
        Value::Object(object) => {
            for (key, value) in object {
                match value {
                    Value::String(sql)
                        if key == "rawSql" || (key == "query" && sql.starts_with("select")) =>
                    {
                        queries.push(sql.clone());
                    }
                    value => gather(value, queries),
                }
            }
        }
        Value::Array(values) => values.iter().for_each(|value| gather(value, queries)),
        _ => {}
    }
}

/// With Grafana's macros and variables replaced.
fn filled_in(query: &str) -> String {
    let group = "$__timeGroupAlias(ts, $__interval)";
    let mut sql = query
        .replace(group, "floor(extract(epoch from ts) / 300) * 300 as time")
        .replace("${device:sqlstring}", "'pi 1'");
    for column in ["ts", "began"] {
        let filter = format!("$__timeFilter({column})");
        let span = format!("{column} between now() - interval '25 hours' and now()");
        sql = sql.replace(&filter, &span);
    }
    sql
}
