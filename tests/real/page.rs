//! The live page and what it reads: the forms that docs/ describes, numbers that agree with the books of an
//! independent client, and visitors who mean no good.
#![allow(clippy::expect_used, reason = "a test fails by panicking")]

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::time::Instant;

use serde_json::Value;

use crate::schema::faults;
use crate::stage::{Agent, Broker, Listener, eventually, free_port, read};

/// Bytes a second that a viewer may cost, and for how long a test counts them.
const VIEWER_BYTES: usize = 2_000;
const FRAMES: usize = 5;

fn send(port: u16, request: &str) -> String {
    let mut answer = String::new();
    if let Ok(mut stream) = TcpStream::connect(("127.0.0.1", port)) {
        let sent = stream.write_all(request.as_bytes());
        sent.and_then(|()| stream.read_to_string(&mut answer)).ok();
    }
    answer
}

fn get(port: u16, path: &str, headers: &str) -> String {
    send(
        port,
        &format!("GET {path} HTTP/1.1\r\nHost: localhost:{port}\r\n{headers}\r\n"),
    )
}

fn body(answer: &str) -> &str {
    answer.split_once("\r\n\r\n").map_or("", |(_, body)| body)
}

fn code(answer: &str) -> &str {
    answer.split(' ').nth(1).unwrap_or("none")
}

fn with_page(id: &str, broker: u16, more: &str) -> (Agent, u16) {
    let port = free_port();
    let more = format!("[web]\nlisten = \"127.0.0.1:{port}\"\n{more}");
    let agent = Agent::start(id, broker, &more);
    eventually("the page is there", || code(&get(port, "/", "")) == "200");
    (agent, port)
}

fn metrics(port: u16) -> BTreeMap<String, f64> {
    let answer = get(port, "/metrics", "");
    body(&answer)
        .lines()
        .filter(|line| !line.starts_with('#'))
        .filter_map(|line| {
            let (name, value) = line.rsplit_once(' ')?;
            Some((name.to_owned(), value.parse().ok()?))
        })
        .collect()
}

fn assert_as_described(status: &Value) {
    let schema = include_str!("../../docs/status.schema.json");
    let schema: Value = serde_json::from_str(schema).expect("JSON");
    let found = faults(&schema, status);
    assert!(found.is_empty(), "{found:#?}\n{status:#}");
}

#[test]
fn the_description_of_a_status_can_be_broken() {
    let schema = include_str!("../../docs/status.schema.json");
    let schema: Value = serde_json::from_str(schema).expect("JSON");
    let broken = serde_json::json!({"device": 5, "by": "nobody", "light_age_s": -1, "more": true});
    let found = faults(&schema, &broken);
    let told = found.join("\n");
    for fault in [
        "/device is integer",
        "/by is \"nobody\"",
        "/light_age_s is -1",
        "/more is not in",
        "lacks run",
    ] {
        assert!(told.contains(fault), "no {fault} in {told}");
    }
}

#[test]
fn each_number_agrees_with_the_books_through_an_outage() {
    let mut broker = Broker::start();
    let server = Listener::lesson_server("page-a", broker.port);
    eventually("the server listens", || server.listens());
    let (mut agent, port) = with_page("page-a", broker.port, "");
    eventually("the server decides", || {
        metrics(port).get("nightlight_authority{by=\"remote\"}") == Some(&1.0)
    });
    let online = metrics(port);
    assert_eq!(online["nightlight_link_up"], 1.0);
    assert_eq!(online["nightlight_store_commits_total"], 0.0, "healthy");
    assert_eq!(online["nightlight_reconnects_total"], 0.0);
    assert_as_described(&serde_json::from_str(body(&get(port, "/status", ""))).expect("JSON"));

    broker.stop();
    agent.set_light("100");
    eventually("the Pi decides, and stores", || {
        let now = metrics(port);
        now["nightlight_authority{by=\"fallback\"}"] == 1.0
            && now["nightlight_led_on"] == 1.0
            && now["nightlight_link_up"] == 0.0
            && now["nightlight_backlog_records"] > 20.0
            && now["nightlight_backlog_bytes"] > 0.0
            && now["nightlight_store_commits_total"] > 0.0
            && now["nightlight_current_outage_seconds"] > 0.0
    });
    let health = get(port, "/healthz", "");
    assert_eq!(code(&health), "200", "an outage is no fault of the device");
    assert!(body(&health).contains("the broker is not connected"));
    assert_as_described(&serde_json::from_str(body(&get(port, "/status", ""))).expect("JSON"));

    broker.restart();
    eventually("the outage is over, and its account is heard", || {
        metrics(port)["nightlight_outages_total{cause=\"link\"}"] >= 1.0
            && metrics(port)["nightlight_backlog_records"] == 0.0
    });
    server.publish("commands", "{\"led_on\": 3, \"id\": \"bad\"}");
    eventually("a refusal is counted", || {
        metrics(port)["nightlight_commands_total{result=\"rejected\"}"] == 1.0
    });
    assert_as_described(&serde_json::from_str(body(&get(port, "/status", ""))).expect("JSON"));
    let status = agent.status().expect("a status");
    assert_as_described(&status);
    let run = status["run"].as_str().expect("a run").to_owned();
    let last = metrics(port);
    eventually("what was counted is in the books", || {
        let books = server.account().remove(&run).unwrap_or_default();
        books.len() as f64 >= last["nightlight_last_seq"]
    });
    agent.stop();
    eventually("all is heard", || server.last_text("status") == "offline");

    // The numbers stood still at `last`, so the books may only have grown since.
    let upto = last["nightlight_last_seq"] as u64;
    let of_run = |record: &&Value| {
        record["run"] == run.as_str() && record["seq"].as_u64().is_some_and(|seq| seq <= upto)
    };
    let records = server.records();
    // Each once: what a killed broker had taken may come again.
    let records: BTreeMap<_, _> = records
        .iter()
        .filter(of_run)
        .map(|record| (record["seq"].as_u64(), record))
        .collect();
    let records: Vec<_> = records.into_values().collect();
    let count =
        |wanted: &dyn Fn(&Value) -> bool| records.iter().filter(|r| wanted(r)).count() as f64;
    let total = |name: &str| last[&format!("nightlight_{name}")];
    assert_eq!(
        total("records_total{kind=\"reading\"}"),
        count(&|r| r["light"].is_number())
    );
    assert_eq!(
        total("records_total{kind=\"event\"}"),
        count(&|r| r["event"].is_string())
    );
    let replayed = count(&|r| r["replayed"] == true);
    assert!(total("replayed_records_total") >= replayed && replayed > 20.0);
    assert!(total("published_records_total") >= count(&|r| r["replayed"].is_null()) - 2.0);
    let confirmed = total("confirmed_records_total");
    assert!(
        confirmed <= total("last_seq") && confirmed > total("last_seq") - 5.0,
        "{confirmed}"
    );
    for by in ["remote", "fallback", "start", "fail-safe"] {
        let heard = count(&|r| r["event"] == "led" && r["by"] == by && r.get("led_ok").is_none());
        assert_eq!(
            total(&format!("led_changes_total{{by=\"{by}\"}}")),
            heard,
            "{by}"
        );
    }
    let outages: Vec<_> = records.iter().filter(|r| r["event"] == "outage").collect();
    assert_eq!(total("outages_total{cause=\"link\"}"), outages.len() as f64);
    let seconds: f64 = outages.iter().filter_map(|r| r["seconds"].as_f64()).sum();
    assert!((total("outage_seconds_total{cause=\"link\"}") - seconds).abs() < 0.01);
    assert_eq!(total("reconnects_total"), total("sessions_total") - 1.0);
    assert!(total("reconnects_total") >= 1.0);
    for reason in [
        "memory-full",
        "refused",
        "backlog-full",
        "damaged",
        "unreadable",
        "too-large",
    ] {
        assert_eq!(
            total(&format!("lost_records_total{{reason=\"{reason}\"}}")),
            0.0
        );
    }
}

#[test]
fn what_is_not_healthy_is_named() {
    let broker = Broker::start();
    let (agent, port) = with_page("page-b", broker.port, "");
    eventually("all is well", || {
        body(&get(port, "/healthz", "")).starts_with("ok")
    });
    agent.set_light("no number");
    eventually("the sensor is named", || {
        let answer = get(port, "/healthz", "");
        code(&answer) == "503" && body(&answer).starts_with("sensor: the sensor gives no readings")
    });
    eventually("its failures are counted", || {
        metrics(port)["nightlight_sensor_errors_total"] >= 3.0
    });
    assert!(!metrics(port).contains_key("nightlight_light"));
    assert_as_described(&serde_json::from_str(body(&get(port, "/status", ""))).expect("JSON"));
}

#[test]
fn a_viewer_sees_it_live_for_two_kilobytes_a_second_and_again_after_a_restart() {
    let broker = Broker::start();
    let (mut agent, port) = with_page("page-c", broker.port, "");
    let watch = || {
        let mut stream = TcpStream::connect(("127.0.0.1", port)).ok()?;
        let request = format!("GET /stream HTTP/1.1\r\nHost: localhost:{port}\r\n\r\n");
        stream.write_all(request.as_bytes()).ok()?;
        Some(BufReader::new(stream))
    };
    let mut lines = watch().expect("a connection").lines();
    let mut frames: Vec<Value> = Vec::new();
    let (mut bytes, mut began) = (0, None);
    while frames.len() < FRAMES {
        let line = lines.next().expect("a stream").expect("text");
        if let Some(frame) = line.strip_prefix("data: ") {
            assert!(line.len() < VIEWER_BYTES, "{}", line.len());
            // The first frame may have the events of the whole run.
            began.get_or_insert_with(Instant::now);
            frames.push(serde_json::from_str(frame).expect("JSON"));
        }
        bytes += line.len() + 8;
    }
    let seconds = began.expect("a frame").elapsed().as_secs_f64() + 1.0;
    let rate = bytes as f64 / seconds;
    assert!(rate <= VIEWER_BYTES as f64, "{rate} bytes a second");
    assert_eq!(frames[0]["light"].as_f64(), Some(500.0));
    let times: Vec<_> = frames
        .iter()
        .map(|frame| frame["boot_s"].as_f64())
        .collect();
    assert!(times.is_sorted() && times[0] < times[FRAMES - 1]);
    let past: Value = serde_json::from_str(body(&get(port, "/past", ""))).expect("JSON");
    let until = past["hour"]["from_s"].as_f64().expect("a time")
        + past["hour"]["led"].as_str().expect("a band").len() as f64;
    assert!(
        until >= times[FRAMES - 1].expect("a time").floor(),
        "{until}"
    );

    let run = frames[0]["run"].clone();
    agent.kill();
    assert!(lines.all(|line| line.is_ok() || line.is_err()), "it ends");
    agent.run();
    eventually("the next run is seen", || {
        let Some(stream) = watch() else { return false };
        let mut frames = stream
            .lines()
            .map_while(Result::ok)
            .filter_map(|line| serde_json::from_str::<Value>(line.strip_prefix("data: ")?).ok());
        frames.next().is_some_and(|frame| frame["run"] != run)
    });
}

#[test]
fn a_foreign_name_or_page_is_refused_and_nothing_can_be_changed() {
    let broker = Broker::start();
    let (agent, port) = with_page("page-d", broker.port, "");
    let asked = |headers: &str| send(port, &format!("GET /status HTTP/1.1\r\n{headers}\r\n"));
    assert_eq!(code(&asked(&format!("Host: 127.0.0.1:{port}\r\n"))), "200");
    assert_eq!(code(&asked("Host: evil.example\r\n")), "403");
    let own = format!("Host: localhost:{port}\r\n");
    assert_eq!(
        code(&asked(&format!("{own}Origin: http://evil.example\r\n"))),
        "403"
    );
    assert_eq!(
        code(&asked(&format!("{own}Origin: http://localhost:{port}\r\n"))),
        "200"
    );
    for method in ["POST", "PUT", "DELETE", "PATCH", "OPTIONS"] {
        let request = format!("{method} /status HTTP/1.1\r\n{own}Content-Length: 0\r\n\r\n");
        assert_eq!(code(&send(port, &request)), "405", "{method}");
    }
    let long = format!("GET /{} HTTP/1.1\r\n{own}\r\n", "x".repeat(20_000));
    assert!(["431", "414", "400"].contains(&code(&send(port, &long))));
    assert_eq!(code(&get(port, "/login/../etc", "")), "404");
    let page = get(port, "/", "");
    // The panel is the demonstration's alone.
    assert!(!page.contains("panel.js"), "{page}");
    for path in ["/panel", "/panel.js"] {
        assert_eq!(code(&get(port, path, "")), "404", "{path}");
    }
    let post = format!(
        "POST /panel HTTP/1.1\r\n{own}Origin: http://localhost:{port}\r\nContent-Length: 4\r\n\r\npull"
    );
    assert_eq!(code(&send(port, &post)), "405");
    for header in [
        "content-security-policy: default-src 'none'",
        "x-content-type-options: nosniff",
    ] {
        assert!(page.to_ascii_lowercase().contains(header), "{page}");
    }
    assert!(agent.status().is_some());
}

#[test]
fn where_others_can_reach_it_a_token_is_wanted() {
    let broker = Broker::start();
    let mut agent = Agent::prepare("page-e", broker.port, "");
    let port = free_port();
    let secret = agent.path("token");
    std::fs::write(&secret, "a secret of 24 characters\n").expect("written");
    let more = [
        ("NIGHTLIGHT_WEB__LISTEN", format!("0.0.0.0:{port}")),
        ("NIGHTLIGHT_WEB__TOKEN_FILE", secret.display().to_string()),
    ];
    let more: Vec<_> = more
        .iter()
        .map(|(name, value)| (*name, value.as_str()))
        .collect();
    agent.run_with(&more);
    eventually("it asks for the token", || {
        code(&get(port, "/status", "")) == "401"
    });
    assert_eq!(
        code(&get(port, "/", "")),
        "303",
        "a browser is led to the form"
    );
    assert_eq!(code(&get(port, "/login", "")), "200");
    assert_eq!(code(&get(port, "/page.js", "")), "401");
    let bearer = "Authorization: Bearer a secret of 24 characters\r\n";
    assert_eq!(code(&get(port, "/metrics", bearer)), "200");
    let login = |token: &str| {
        let form = format!("token={token}");
        let length = form.len();
        let origin = format!("Host: localhost:{port}\r\nOrigin: http://localhost:{port}\r\n");
        send(
            port,
            &format!("POST /login HTTP/1.1\r\n{origin}Content-Length: {length}\r\n\r\n{form}"),
        )
    };
    assert_eq!(code(&login("a+guess+of+24+characters")), "403");
    let granted = login("a+secret+of+24+characters");
    assert_eq!(code(&granted), "303", "{granted}");
    let cookie = granted
        .lines()
        .find_map(|line| {
            line.to_ascii_lowercase()
                .strip_prefix("set-cookie: ")
                .map(str::to_owned)
        })
        .expect("a cookie");
    assert!(cookie.contains("httponly") && cookie.contains("samesite=strict"));
    let pair = cookie.split(';').next().expect("a pair");
    let cookie = format!("Cookie: {pair}\r\n");
    assert_eq!(code(&get(port, "/status", &cookie)), "200");
    assert!(
        !read(&agent.path("log")).contains("a secret of"),
        "in the log"
    );
    agent.stop();
    agent.run_with(&more);
    eventually("the cookie outlives a restart", || {
        code(&get(port, "/status", &cookie)) == "200"
    });
}

#[test]
fn slow_and_fast_visitors_together_hold_up_neither_each_other_nor_the_loop() {
    let broker = Broker::start();
    let (agent, port) = with_page("page-f", broker.port, "");
    let connect = || TcpStream::connect(("127.0.0.1", port)).expect("a connection");
    let mut slow: Vec<_> = (0..200).map(|_| connect()).collect();
    for visitor in &mut slow {
        visitor.write_all(b"G").expect("open");
    }
    let fast: Vec<_> = (0..50)
        .map(|_| {
            std::thread::spawn(move || {
                (0..20)
                    .filter(|_| code(&get(port, "/status", "")) == "200")
                    .count()
            })
        })
        .collect();
    let answered: usize = fast
        .into_iter()
        .map(|thread| thread.join().expect("ended"))
        .sum();
    assert_eq!(answered, 50 * 20);
    agent.set_light("100");
    eventually("the light works", || agent.led_on());
    let lag = metrics(port)["nightlight_loop_lag_seconds"];
    println!("loop lag {lag} s, {} kB", agent.memory_kb());
    assert!(lag < 5.0, "{lag}");
}
