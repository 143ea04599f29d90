//! Numbers as people read them, in log lines, status and accounts: counts, times and light.

use std::time::Duration;

/// A count and its noun, which gets an `s` unless there is one of it: `1 record`, `0 records`.
pub fn counted(count: impl Into<u64>, noun: &str) -> String {
    match count.into() {
        1 => format!("1 {noun}"),
        many => format!("{many} {noun}s"),
    }
}

/// A time of any length, with two or three digits: `20 ms`, `1.5 s`, `45 s`, `3 min`, `2 h 5 min`, `3 d 4 h`.
pub fn span(time: Duration) -> String {
    let whole = time.as_secs();
    let (minutes, hours) = (whole / 60, whole / 3_600);
    match whole {
        0 if time.is_zero() => "0 s".into(),
        0 => format!("{} ms", time.as_millis().max(1)),
        1..10 => {
            let tenths = time.as_millis() / 100;
            match tenths % 10 {
                0 => format!("{whole} s"),
                tenth => format!("{whole}.{tenth} s"),
            }
        }
        10..120 => format!("{whole} s"),
        120..7_200 => format!("{minutes} min"),
        7_200..172_800 => format!("{hours} h {} min", minutes % 60),
        _ => format!("{} d {} h", hours / 24, hours % 24),
    }
}

/// A time given in seconds; see [`span`].
pub(crate) fn span_s(seconds: f64) -> String {
    span(Duration::try_from_secs_f64(seconds).unwrap_or_default())
}

/// A time as a number of seconds, to the millisecond.
pub fn seconds(time: Duration) -> f64 {
    time.as_millis() as f64 / 1_000.0
}

/// A light without the digits that no sensor has: `243`, `24.3`, `2.43`.
pub fn light(light: f64) -> String {
    light_beside(light, &[])
}

/// A light with as many more digits as it takes to see on which side of each of `bounds` it is.
pub fn light_beside(light: f64, bounds: &[f64]) -> String {
    let fewest = match light.abs() {
        100.0.. => 0,
        10.0..100.0 => 1,
        _ => 2,
    };
    for decimals in fewest..=9 {
        let text = format!("{light:.decimals$}");
        let shown: f64 = text.parse().unwrap_or(light);
        let tells = |bound: &f64| shown.partial_cmp(bound) == light.partial_cmp(bound);
        if bounds.iter().all(tells) {
            return match text.contains('.') {
                true => text.trim_end_matches('0').trim_end_matches('.').to_owned(),
                false => text,
            };
        }
    }
    light.to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_of_a_thing_has_no_s() {
        let told = [0_u32, 1, 2].map(|count| counted(count, "record"));
        assert_eq!(told, ["0 records", "1 record", "2 records"]);
    }

    #[test]
    fn a_time_has_the_digits_that_count() {
        let table = [
            (0, "0 s"),
            (20, "20 ms"),
            (999, "999 ms"),
            (5_000, "5 s"),
            (1_549, "1.5 s"),
            (45_900, "45 s"),
            (190_000, "3 min"),
            (7_500_000, "2 h 5 min"),
            (273_600_000, "3 d 4 h"),
        ];
        for (ms, text) in table {
            assert_eq!(span(Duration::from_millis(ms)), text);
        }
        assert_eq!(span(Duration::from_micros(10)), "1 ms");
        assert_eq!(span_s(-1.0), "0 s");
    }

    #[test]
    fn a_rounded_light_stays_on_its_side_of_a_threshold() {
        let table = [
            (243.04, "243"),
            (24.349, "24.3"),
            (2.0, "2"),
            (0.046, "0.05"),
            (0.0, "0"),
            (1_000.0, "1000"),
            (121_557.4, "121557"),
        ];
        for (value, text) in table {
            assert_eq!(light(value), text);
        }
        assert_eq!(light_beside(299.97, &[300.0, 350.0]), "299.97");
        assert_eq!(light_beside(300.0, &[300.0]), "300");
        assert_eq!(light_beside(350.04, &[300.0, 350.0]), "350.04");
        assert_eq!(light_beside(349.2, &[300.0, 350.0]), "349");
        assert_eq!(light_beside(f64::NAN, &[300.0]), "NaN");
    }
}
