//! The value of a state, by which it is recognised again.
//!
//! It is what `Debug` shows of the whole controller and of the world, after a normalisation. What it leaves
//! out only grows or differs, and decides nothing by itself:
//!
//! - a time on the boot clock counts from now, in steps of 10 ms; one more than two minutes ago is "old".
//!   The boot clock begins at 1,000,000 s, so that a time can be told from a span;
//! - a whole number of ten digits or more is "N": stamps of records, the state of the random numbers;
//! - the token of the oldest unanswered message is left out: the others count from it.
//!
//! Two states of one value may so have different jitters; of those only the first is followed.

use std::collections::hash_map::DefaultHasher;
use std::hash::Hasher;
use std::time::Duration;

/// The boot clock begins here.
pub const BOOT: Duration = Duration::from_secs(1_000_000);
/// A time is told from a span by this, in nanoseconds.
const TIME: f64 = 900_000.0 * 1e9;
/// What is older has no influence any more, in steps of 10 ms.
const OLD: i64 = -12_000;

/// The value of what `shown` shows, at `now`.
pub fn of(shown: &str, now: Duration) -> u64 {
    let mut hasher = DefaultHasher::new();
    each(shown, now, |part| hasher.write(part));
    hasher.finish()
}

/// The same as text, for a person.
#[allow(dead_code, reason = "for who looks for a difference")]
pub fn text(shown: &str, now: Duration) -> String {
    let mut text = Vec::new();
    each(shown, now, |part| text.extend_from_slice(part));
    String::from_utf8_lossy(&text).into_owned()
}

fn each(shown: &str, now: Duration, mut take: impl FnMut(&[u8])) {
    let bytes = shown.as_bytes();
    let mut at = 0;
    let mut plain_from = 0;
    while at < bytes.len() {
        // A number that is no part of a name.
        let begins = bytes[at].is_ascii_digit()
            && (at == 0 || !(bytes[at - 1].is_ascii_alphanumeric() || bytes[at - 1] == b'_'));
        if !begins {
            at += 1;
            continue;
        }
        take(&bytes[plain_from..at]);
        let number_from = at;
        while at < bytes.len() && (bytes[at].is_ascii_digit() || bytes[at] == b'.') {
            at += 1;
        }
        let number = &shown[number_from..at];
        let unit_from = at;
        while at < bytes.len() && (bytes[at].is_ascii_alphabetic() || bytes[at] >= 128) {
            at += 1;
        }
        let is_token = shown[..number_from].ends_with(" first: ");
        match nanoseconds(number, &shown[unit_from..at]) {
            Some(span) if span >= TIME => {
                let ago = ((span - now.as_nanos() as f64) / 1e7).round() as i64;
                take(&ago.max(OLD).to_le_bytes());
            }
            Some(span) => take(&((span / 1e7).round() as i64).to_le_bytes()),
            None if number.len() >= 10 => take(b"N"),
            None if is_token => take(b"T"),
            None => take(&bytes[number_from..at]),
        }
        plain_from = at;
    }
    take(&bytes[plain_from..]);
}

fn nanoseconds(number: &str, unit: &str) -> Option<f64> {
    let factor = match unit {
        "s" => 1e9,
        "ms" => 1e6,
        "µs" => 1e3,
        "ns" => 1.0,
        _ => return None,
    };
    Some(number.parse::<f64>().ok()? * factor)
}

#[test]
fn times_count_from_now_and_tokens_from_the_oldest() {
    let at = |seconds: f64| BOOT + Duration::from_secs_f64(seconds);
    let shown = |now: f64, token: u64| {
        let due = at(now + 5.0);
        format!("Some {{ due: {due:?}, span: 1.5s, first: {token}, n: 7, r: 12345678901 }}")
    };
    assert_eq!(of(&shown(1.0, 3), at(1.0)), of(&shown(77.25, 9), at(77.25)));
    assert_ne!(of(&shown(1.0, 3), at(1.0)), of(&shown(1.5, 3), at(1.0)));
    assert_ne!(of("n: 7", at(0.0)), of("n: 8", at(0.0)));
    assert_ne!(of("span: 1.5s", at(0.0)), of("span: 1.6s", at(0.0)));
}
