//! A run of the demonstration as one HTML file, which needs no other: plot, events and account.
//!
//! Pure: chapters in, text out. Called by `demo::run`, and the drill's report is made of the same.

use std::fmt::Write;

use jiff::Timestamp;
use serde_json::Value;

use super::account::Verdict;
use super::plot;
use super::screen::{Moment, Screen, who};
use super::{OFF_ABOVE, ON_BELOW};

/// Something that happened, in words.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Noted {
    /// Seconds since the beginning.
    pub(super) at: f64,
    pub(super) text: String,
}

/// One scenario, from its beginning to its account.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Chapter {
    pub(super) title: String,
    /// In milliseconds since 1970.
    pub(super) began_ms: i64,
    pub(super) moments: Vec<Moment>,
    pub(super) notes: Vec<Noted>,
    pub(super) verdict: Verdict,
}

/// The class of a stretch of a band, and what is written on it.
type Look = fn(&Moment) -> (&'static str, &'static str);

/// The width of the picture, and where its parts are.
const WIDTH: f64 = 1000.0;
const LEFT: f64 = 80.0;
const LIGHT: (f64, f64) = (20.0, 220.0);
const BAND: f64 = 22.0;
const BACKLOG: f64 = 60.0;

const STYLE: &str = "\
:root{color-scheme:light dark;--fg:#1c1b19;--soft:#5a5751;--bg:#fbfaf7;--line:#cfcabf;--server:#0b5f8a;--pi:#c77700;--down:#a3123f;--up:#2f6b3a;--lamp:#e0a800;--rule:#6b4fa0}
@media (prefers-color-scheme:dark){:root{--fg:#f1eee6;--soft:#b5b0a4;--bg:#14130f;--line:#45413a;--server:#58b3e4;--pi:#f0a030;--down:#ff7a9c;--up:#7cc48a;--lamp:#ffc832;--rule:#bda4f0}}
body{max-width:70rem;margin:1rem auto;padding:0 1rem;background:var(--bg);color:var(--fg);font:16px/1.5 system-ui,sans-serif}
svg{width:100%;height:auto}svg text{fill:var(--fg);font:14px system-ui,sans-serif}
pre{overflow-x:auto;border:1px solid var(--line);padding:.8rem;font-size:14px}
table{border-collapse:collapse}td{padding:.1rem .8rem .1rem 0;vertical-align:top}td:first-child{text-align:right;color:var(--soft);white-space:nowrap;font-variant-numeric:tabular-nums}
.light{fill:none;stroke:var(--pi);stroke-width:2}.rule{stroke:var(--rule);stroke-dasharray:6 4}.frame{fill:none;stroke:var(--line)}
.S{fill:var(--server)}.P{fill:var(--pi)}.on{fill:var(--lamp)}.up{fill:var(--up)}.x{fill:var(--down)}.log{fill:var(--rule)}.none{fill:none}
.sign{paint-order:stroke;stroke:var(--bg);stroke-width:5px;font-weight:600}
@media print{body{color:#000;background:#fff}}
";

/// The report.
pub(super) fn html(chapters: &[Chapter]) -> String {
    let mut out = format!(
        "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n<meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n\
         <title>nightlight: what happened</title>\n<style>\n{STYLE}</style>\n</head>\n<body>\n<h1>nightlight: what happened</h1>\n"
    );
    let began = chapters.first().map_or(0, |chapter| chapter.began_ms);
    let began = Timestamp::from_millisecond(began).map(|time| format!("{time:.0}"));
    let version = crate::VERSION;
    // Writing into a text cannot fail, here and below.
    let _ = writeln!(
        out,
        "<p>nightlight {version}, {}</p>",
        began.unwrap_or_default()
    );
    for chapter in chapters {
        let _ = writeln!(out, "<section>\n<h2>{}</h2>", escaped(&chapter.title));
        out.push_str(&picture(&chapter.moments));
        let words = chapter.verdict.in_words(&Screen::plain());
        let _ = writeln!(out, "<h3>The account</h3>\n<pre>{}</pre>", escaped(&words));
        out.push_str("<h3>What happened</h3>\n<table>\n");
        for noted in &chapter.notes {
            let (at, text) = (noted.at, escaped(&noted.text));
            let _ = writeln!(out, "<tr><td>{at:.1} s</td><td>{text}</td></tr>");
        }
        let plot = escaped(&plot::plot(&chapter.moments));
        let _ = writeln!(
            out,
            "</table>\n<details><summary>The plot as text</summary><pre>{plot}</pre></details>\n</section>"
        );
    }
    out.push_str("</body>\n</html>\n");
    out
}

/// The curve of the light, bands below it, and the backlog.
fn picture(moments: &[Moment]) -> String {
    let Some(last) = moments.last() else {
        return "<p>The device was never seen.</p>\n".to_owned();
    };
    let seconds = last.at.max(1.0);
    let x = |at: f64| LEFT + at / seconds * (WIDTH - LEFT);
    let lights = moments.iter().filter_map(|moment| moment.light);
    let brightest = lights.fold(OFF_ABOVE * 1.2, f64::max);
    let (top, bottom) = LIGHT;
    let y = |light: f64| bottom - (light / brightest).clamp(0.0, 1.0) * (bottom - top);
    let mut out = String::new();
    let bands: [(&str, Look); 4] = [
        ("LED", |moment| match moment.led_on {
            true => ("on", "on"),
            false => ("none", "off"),
        }),
        ("decides", |moment| match moment.by.as_str() {
            "remote" => ("S", "S"),
            "fallback" => ("P", "P"),
            "off" => ("none", "no power"),
            _ => ("none", ""),
        }),
        ("link", |moment| match (moment.cable_in, moment.link_up) {
            (true, true) => ("up", "up"),
            (true, false) => ("x", "down"),
            (false, _) => ("x", "pulled"),
        }),
        ("server", |moment| {
            match (moment.server_up, moment.broker_up) {
                (true, true) => ("up", "up"),
                (false, true) => ("x", "dead"),
                (_, false) => ("x", "no broker"),
            }
        }),
    ];
    let backlog_top = bottom + 12.0 + bands.len() as f64 * (BAND + 6.0);
    let height = backlog_top + BACKLOG + 24.0;
    let _ = writeln!(
        out,
        "<svg viewBox=\"0 0 {WIDTH} {height}\" role=\"img\" aria-label=\"Light, LED, who decides, link, server and backlog over {seconds:.0} seconds\">"
    );
    for (value, name) in [(ON_BELOW, "on below"), (OFF_ABOVE, "off above")] {
        let at = y(value);
        let shift = if value == ON_BELOW { 14.0 } else { -4.0 };
        let _ = writeln!(
            out,
            "<line class=\"rule\" x1=\"{LEFT}\" x2=\"{WIDTH}\" y1=\"{at:.1}\" y2=\"{at:.1}\"/><text x=\"{}\" y=\"{:.1}\">{name} {value:.0}</text>",
            LEFT + 6.0,
            at + shift
        );
    }
    let mut line = String::new();
    for moment in moments {
        if let Some(light) = moment.light {
            let _ = write!(line, "{:.1},{:.1} ", x(moment.at), y(light));
        }
    }
    let _ = writeln!(
        out,
        "<polyline class=\"light\" points=\"{}\"/><rect class=\"frame\" x=\"{LEFT}\" y=\"{top}\" width=\"{}\" height=\"{}\"/>\
         <text x=\"0\" y=\"{}\">light</text><text x=\"0\" y=\"{}\">{brightest:.0}</text>",
        line.trim_end(),
        WIDTH - LEFT,
        bottom - top,
        bottom - 4.0,
        top + 12.0
    );
    for (number, (name, look)) in bands.iter().enumerate() {
        let at = bottom + 12.0 + number as f64 * (BAND + 6.0);
        let _ = writeln!(out, "<text x=\"0\" y=\"{}\">{name}</text>", at + 16.0);
        for (from, to, (class, sign)) in spans(moments, look) {
            let (left, width) = (x(from), (x(to) - x(from)).max(0.5));
            let _ = write!(
                out,
                "<rect class=\"{class}\" x=\"{left:.1}\" y=\"{at}\" width=\"{width:.1}\" height=\"{BAND}\"/>"
            );
            if width > 12.0 + sign.len() as f64 * 8.0 {
                let _ = write!(
                    out,
                    "<text class=\"sign\" x=\"{:.1}\" y=\"{}\">{sign}</text>",
                    left + 5.0,
                    at + 16.0
                );
            }
        }
        out.push('\n');
    }
    let most = moments.iter().map(|moment| moment.backlog).max();
    let most = most.unwrap_or(0).max(10);
    let floor = backlog_top + BACKLOG;
    let mut area = format!("{LEFT},{floor} ");
    for moment in moments {
        let high = moment.backlog as f64 / most as f64 * BACKLOG;
        let _ = write!(area, "{:.1},{:.1} ", x(moment.at), floor - high);
    }
    let _ = writeln!(
        out,
        "<polygon class=\"log\" points=\"{area}{WIDTH},{floor}\"/><text x=\"0\" y=\"{floor}\">backlog</text><text x=\"0\" y=\"{}\">{most}</text>",
        backlog_top + 14.0
    );
    let every = [10.0, 20.0, 60.0, 300.0, 1800.0];
    let fits = |every: &&f64| seconds / **every <= 12.0;
    let every = every.iter().find(fits).copied().unwrap_or(seconds);
    let mut at = 0.0;
    while at < seconds - every / 2.0 {
        let _ = write!(
            out,
            "<text x=\"{:.1}\" y=\"{}\">{at:.0} s</text>",
            x(at),
            floor + 18.0
        );
        at += every;
    }
    out.push_str("\n</svg>\n<p>S: the server decides; P: the Pi decides by itself.</p>\n");
    out
}

/// Stretches that look the same: from, until, and their look.
fn spans<T: PartialEq>(moments: &[Moment], look: impl Fn(&Moment) -> T) -> Vec<(f64, f64, T)> {
    let mut spans: Vec<(f64, f64, T)> = Vec::new();
    for moment in moments {
        let now = look(moment);
        match spans.last_mut() {
            Some((_, to, is)) if *is == now => *to = moment.at,
            last => {
                if let Some((_, to, _)) = last {
                    *to = moment.at;
                }
                spans.push((moment.at, moment.at, now));
            }
        }
    }
    spans
}

/// The events among the records of a message, in words; none where there is none worth a line.
pub(super) fn words_of(payload: &[u8]) -> Option<String> {
    let record: Value = serde_json::from_slice(payload).ok()?;
    let text = |name: &str| record[name].as_str().unwrap_or_default();
    let seq = record["seq"].as_u64().unwrap_or_default();
    Some(match record["event"].as_str()? {
        "led" => {
            let led = match record["led_on"].as_bool() {
                Some(true) => "on",
                Some(false) => "off",
                None => "not known",
            };
            format!(
                "record {seq}: LED {led} by {}: {}",
                who(text("by")),
                text("why")
            )
        }
        "outage" => format!(
            "record {seq}: an outage of the {} of {:.1} s is over",
            text("cause"),
            record["seconds"].as_f64().unwrap_or_default()
        ),
        "loss" => format!(
            "records {} to {} were given up: {}",
            record["from_seq"],
            record["to_seq"],
            text("reason")
        ),
        "started" => format!("record {seq}: the device started"),
        "clock" => format!(
            "record {seq}: the clock was moved by {:.0} s",
            record["moved_s"].as_f64().unwrap_or_default()
        ),
        other => format!("record {seq}: {other}"),
    })
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
        .replace('"', "&quot;")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn moment(at: f64, led_on: bool) -> Moment {
        Moment {
            at,
            light: Some(100.0),
            led_on,
            by: "remote".into(),
            cable_in: true,
            server_up: true,
            broker_up: true,
            link_up: true,
            backlog: 0,
            received: 0,
        }
    }

    #[test]
    fn the_file_needs_no_other_and_takes_no_orders() {
        let moments: Vec<_> = (0..40).map(|n| moment(f64::from(n), n > 20)).collect();
        let chapter = Chapter {
            title: "<script>alert(1)</script>".into(),
            began_ms: 1_700_000_000_000,
            moments,
            notes: vec![Noted {
                at: 1.0,
                text: "a \"b\" <i>".into(),
            }],
            verdict: Verdict::default(),
        };
        let html = html(&[chapter]);
        for foreign in ["<script", "http", "src=", "url(", "@import", "<i>"] {
            assert!(!html.contains(foreign), "{foreign}");
        }
        assert!(html.contains("2023-11-14") && html.contains("a &quot;b&quot; &lt;i&gt;"));
        assert!(html.contains("<polyline") && html.contains("The account is right"));
        assert!(picture(&[]).contains("never seen"));
    }

    #[test]
    fn stretches_meet() {
        let moments = [moment(0.0, false), moment(1.0, false), moment(2.0, true)];
        let spans = spans(&moments, |moment| moment.led_on);
        assert_eq!(spans, [(0.0, 2.0, false), (2.0, 2.0, true)]);
    }

    #[test]
    fn events_have_words_and_readings_none() {
        let said = |text: &str| words_of(text.as_bytes());
        let led = r#"{"event":"led","seq":7,"led_on":true,"by":"fallback","why":"dark"}"#;
        assert_eq!(said(led).unwrap(), "record 7: LED on by Pi itself: dark");
        let loss = r#"{"event":"loss","from_seq":3,"to_seq":9,"reason":"backlog-full"}"#;
        assert_eq!(
            said(loss).unwrap(),
            "records 3 to 9 were given up: backlog-full"
        );
        assert_eq!(said(r#"{"light":3,"seq":1}"#), None);
        assert_eq!(said("no"), None);
    }
}
