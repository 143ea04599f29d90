//! Tests of the account: each kind of wrong is found, and only that.

use jiff::Timestamp;

use super::*;

const RUN: Uuid = Uuid::from_u128(7);

/// A reading in the dark with the LED on, `seq` quarters of a second after the beginning.
fn reading(seq: u64, replayed: bool) -> String {
    let replayed = if replayed { r#","replayed":true"# } else { "" };
    let ts = ts(seq);
    format!(
        r#"{{"light":12,"led_on":true,"run":"{RUN}","seq":{seq},"ts":"{ts}","clock":"synced"{replayed}}}"#
    )
}

fn outage(seq: u64, from: u64, to: u64) -> String {
    let seconds = (to - from) as f64 / 4.0;
    let (began, ended, ts) = (ts(from), ts(to), ts(seq));
    format!(
        r#"{{"event":"outage","cause":"link","began":"{began}","ended":"{ended}","seconds":{seconds},
        "readings":1,"events":0,"led_changes":0,"lost":0,"why":"w","run":"{RUN}","seq":{seq},"ts":"{ts}"}}"#
    )
}

fn ts(seq: u64) -> String {
    let at = Timestamp::from_millisecond(1_700_000_000_000 + seq as i64 * 250).unwrap();
    at.to_string()
}

/// Seqs 1 to 10 and 42 to 50 live, 11 to 40 off line and replayed, 41 the report.
fn a_good_one() -> Account {
    let mut account = Account::default();
    for seq in (1..=10).chain(42..=50) {
        account.take(Lane::Telemetry, reading(seq, false).as_bytes());
    }
    for seq in 11..=40 {
        account.take(Lane::History, reading(seq, true).as_bytes());
    }
    account.take(Lane::Events, outage(41, 11, 40).as_bytes());
    account
}

fn claim() -> Claim {
    Claim {
        run: RUN,
        first: 1,
        last: 50,
        off_line: vec![11..=40],
        may_cut: None,
    }
}

/// The outage lasted from 11 to 40, and the server's last command held three seconds of it.
fn expected() -> Expected {
    let at = |seq: i64| 1_700_000_000_000 + seq * 250;
    Expected {
        alone_ms: vec![at(11 + 12)..=at(40)],
        wants_rule: true,
        wants_outage: Some("link"),
        ..Expected::default()
    }
}

/// The one fault of an account.
fn fault(account: &Account) -> String {
    let verdict = account.close(&[claim()], &expected());
    assert_eq!(verdict.faults.len(), 1, "{:?}", verdict.faults);
    verdict.faults[0].clone()
}

#[test]
fn a_good_account_is_right() {
    let account = a_good_one();
    let verdict = account.close(&[claim()], &expected());
    assert_eq!(verdict.faults, [""; 0]);
    assert_eq!((verdict.readings, verdict.events), (49, 1));
    assert_eq!((verdict.live, verdict.replayed), (20, 30));
    assert_eq!((verdict.missing, verdict.twice), (vec![], vec![]));
    assert!(verdict.ruled > 10);
    assert!(account.is_complete(RUN, 50) && !account.is_complete(RUN, 51));
}

#[test]
fn history_may_come_in_arrays() {
    let mut account = Account::default();
    let array = format!("[{},{}]", reading(1, true), reading(2, true));
    account.take(Lane::History, array.as_bytes());
    assert_eq!(account.received(), 2);
    assert!(account.is_complete(RUN, 2));
}

#[test]
fn a_missing_record_is_found() {
    let mut account = a_good_one();
    account.runs.get_mut(&RUN).unwrap().remove(3);
    assert_eq!(fault(&account), "missing: 4 (1 record)");
    let mut late = claim();
    late.last = 60;
    let begins_later = Claim {
        first: 55,
        ..late.clone()
    };
    let verdict = a_good_one().close(&[begins_later], &expected());
    assert_eq!((verdict.missing.len(), verdict.last), (6, 6));
    let verdict = a_good_one().close(&[late], &expected());
    assert_eq!(verdict.missing.len(), 10);
    assert_eq!(verdict.faults, ["missing: 51 to 60 (10 records)"]);
}

#[test]
fn a_record_that_came_twice_is_found() {
    let mut account = a_good_one();
    // Live before the outage, and once more in the replay.
    let copy = Received {
        lane: Lane::History,
        ..account.runs[&RUN][9].clone()
    };
    account.runs.get_mut(&RUN).unwrap().insert(19, copy);
    assert_eq!(fault(&account), "received twice: 10 (1 record)");
    let lenient = Expected {
        may_repeat: true,
        ..expected()
    };
    let verdict = account.close(&[claim()], &lenient);
    assert_eq!((verdict.faults.len(), verdict.twice), (0, vec![10]));
}

#[test]
fn history_out_of_order_is_found() {
    let mut account = a_good_one();
    account.runs.get_mut(&RUN).unwrap().swap(25, 26);
    assert_eq!(fault(&account), "history out of order: 17 came after 18");
}

#[test]
fn replay_on_the_live_topic_is_found() {
    let mut account = Account::default();
    account.take(Lane::Telemetry, reading(1, true).as_bytes());
    account.take(Lane::History, reading(2, false).as_bytes());
    assert_eq!(account.faults.len(), 2);
    // Also where it does not say that it is a replay.
    let mut account = a_good_one();
    let run = account.runs.get_mut(&RUN).unwrap();
    let place = run.iter().position(|record| record.seq == 30).unwrap();
    let mut stray = run.remove(place);
    stray.lane = Lane::Events;
    run.insert(0, stray);
    assert!(fault(&account).starts_with("made off line"));
}

#[test]
fn strangers_and_losses_are_found() {
    let mut account = a_good_one();
    let stranger = reading(3, false).replace(&RUN.to_string(), &Uuid::nil().to_string());
    account.take(Lane::Telemetry, stranger.as_bytes());
    assert_eq!(fault(&account), "1 record of another run");
    let mut account = a_good_one();
    account.take(Lane::Telemetry, reading(51, false).as_bytes());
    assert!(fault(&account).starts_with("received, but never taken"));
    let mut account = a_good_one();
    let loss = format!(
        r#"{{"event":"loss","of_run":"{RUN}","from_seq":3,"to_seq":6,"count":4,"replayed":true}}"#
    );
    account.take(Lane::History, loss.as_bytes());
    // What was received counts more than what was told as lost.
    assert_eq!(account.close(&[claim()], &expected()).faults, [""; 0]);
    account.runs.get_mut(&RUN).unwrap().drain(2..6);
    assert!(fault(&account).starts_with("the agent gave up 4"));
    let lenient = Expected {
        may_lose: true,
        ..expected()
    };
    let verdict = account.close(&[claim()], &lenient);
    assert_eq!((verdict.faults.len(), verdict.given_up), (0, 4));
}

#[test]
fn an_outage_that_nobody_reports_is_a_fault() {
    let mut account = a_good_one();
    let run = account.runs.get_mut(&RUN).unwrap();
    run.last_mut().unwrap().tells = Tells::Other;
    assert_eq!(fault(&account), "the agent reports no outage of the link");
}

#[test]
fn an_led_that_was_never_looked_at_is_a_fault() {
    let unseen = Expected {
        alone_ms: Vec::new(),
        ..expected()
    };
    assert_eq!(a_good_one().close(&[claim()], &unseen).faults.len(), 1);
}

#[test]
fn the_lessons_device_and_rubbish_are_not_counted() {
    let mut account = Account::default();
    for payload in [r#"{"light": 5}"#, "", "[]", "[1]", "null", r#"{"seq":1}"#] {
        account.take(Lane::Telemetry, payload.as_bytes());
    }
    assert_eq!(account.received(), 0);
    assert!(account.faults.is_empty());
}

#[test]
fn many_numbers_stay_one_line() {
    let odd: Vec<u64> = (0..100).map(|n| n * 2 + 1).collect();
    assert_eq!(in_words(&odd), "1, 3, 5, 7, 9 ... (100 records)");
    assert_eq!(in_words(&[1, 2, 3, 7]), "1 to 3, 7 (4 records)");
}
