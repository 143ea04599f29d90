//! The minute as a picture in text: light over time, the threshold, the LED, who decided, the link.
//!
//! Pure: moments in, text out, at most 80 columns wide. Called by `story` at the end.

use super::ON_BELOW;
use super::screen::Moment;

/// Columns for the scale, and for time.
const SCALE: usize = 8;
const WIDTH: usize = 71;
/// Rows for the light.
const HEIGHT: usize = 10;
/// Seconds between two marks on the time axis, the finest that fits is taken.
const MARKS: [f64; 5] = [10.0, 20.0, 60.0, 120.0, 600.0];

/// The picture of moments in the order of their times; empty without any.
pub(super) fn plot(moments: &[Moment]) -> String {
    plot_at(moments, ON_BELOW)
}

/// The same, with the line at this threshold.
pub(super) fn plot_at(moments: &[Moment], on_below: f64) -> String {
    let columns = columns(moments);
    let lights = columns.iter().flatten().filter_map(|moment| moment.light);
    let brightest = lights.fold(on_below * 1.2, f64::max);
    let mut lines = Vec::new();
    if moments.is_empty() {
        return String::new();
    }
    let row_of = |light: f64| {
        let share = (light / brightest).clamp(0.0, 1.0);
        (share * (HEIGHT - 1) as f64).round() as usize
    };
    for row in (0..HEIGHT).rev() {
        let is_threshold = row == row_of(on_below);
        let label = match row {
            _ if is_threshold => format!("{on_below:.0}"),
            _ if row == HEIGHT - 1 => format!("{brightest:.0}"),
            0 => "0".to_owned(),
            _ => String::new(),
        };
        lines.push(line(&label, '│', &columns, |moment| {
            match moment.light.map(row_of) {
                Some(at) if at == row => '█',
                Some(at) if at > row => '░',
                _ if is_threshold => '╌',
                _ => ' ',
            }
        }));
    }
    lines.push(axis(moments));
    lines.push(line("LED", ' ', &columns, |moment| match moment.led_on {
        true => '●',
        false => '○',
    }));
    lines.push(line("decides", ' ', &columns, |moment| {
        match moment.by.as_str() {
            "remote" => 'S',
            "fallback" => 'P',
            "start" => '.',
            "off" => ' ',
            _ => '!',
        }
    }));
    lines.push(line("cable", ' ', &columns, |moment| {
        match (moment.cable_in, moment.link_up) {
            (true, true) => '━',
            (true, false) => '·',
            (false, _) => ' ',
        }
    }));
    if moments.iter().any(|moment| !moment.server_up) {
        lines.push(line("server", ' ', &columns, |moment| {
            if moment.server_up { '━' } else { ' ' }
        }));
    }
    if moments.iter().any(|moment| !moment.broker_up) {
        lines.push(line("broker", ' ', &columns, |moment| {
            if moment.broker_up { '━' } else { ' ' }
        }));
    }
    lines.push(format!(
        "{:SCALE$}╌ threshold  ● on  ○ off  S server  P Pi itself  ━ link up  · not yet",
        ""
    ));
    lines.join("\n")
}

/// For each column the last moment in it; a column without one repeats the one before.
fn columns(moments: &[Moment]) -> Vec<Option<&Moment>> {
    let mut columns = vec![None; WIDTH];
    let seconds = length(moments);
    for moment in moments {
        let column = (moment.at / seconds * WIDTH as f64) as usize;
        columns[column.min(WIDTH - 1)] = Some(moment);
    }
    for column in 1..WIDTH {
        columns[column] = columns[column].or(columns[column - 1]);
    }
    columns
}

fn line(
    label: &str,
    border: char,
    columns: &[Option<&Moment>],
    sign: impl Fn(&Moment) -> char,
) -> String {
    let signs = columns.iter().map(|moment| moment.map_or(' ', &sign));
    let width = SCALE - 1;
    let line = format!("{label:>width$}{border}{}", signs.collect::<String>());
    line.trim_end().to_owned()
}

fn axis(moments: &[Moment]) -> String {
    let seconds = length(moments);
    let fits = |every: &&f64| *every / seconds * WIDTH as f64 >= 8.0;
    let every = MARKS.iter().find(fits).copied().unwrap_or(seconds);
    let mut signs = vec!['─'; WIDTH];
    let mut at = 0.0;
    while at < seconds {
        let column = (at / seconds * WIDTH as f64) as usize;
        let mark = format!("┴{at:.0}s");
        for (offset, sign) in mark.chars().enumerate() {
            if let Some(place) = signs.get_mut(column + offset) {
                *place = sign;
            }
        }
        at += every;
    }
    format!("{:>1$}{2}", '└', SCALE, signs.iter().collect::<String>())
}

/// Seconds from the beginning to the last moment; never zero.
fn length(moments: &[Moment]) -> f64 {
    moments.last().map_or(1.0, |moment| moment.at.max(1.0))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn moments(seconds: u32) -> Vec<Moment> {
        let moment = |quarter: u32| {
            let at = f64::from(quarter) / 4.0;
            let out = (10.0..30.0).contains(&at);
            Moment {
                at,
                light: Some(if at < 20.0 { 650.0 } else { 12.0 }),
                led_on: at >= 20.0,
                by: if out { "fallback" } else { "remote" }.to_owned(),
                cable_in: !out,
                link_up: !out,
                server_up: true,
                broker_up: true,
                backlog: 0,
                received: 0,
            }
        };
        (0..=seconds * 4).map(moment).collect()
    }

    #[test]
    fn the_picture_shows_the_minute_in_80_columns() {
        let plot = plot(&moments(60));
        let lines: Vec<_> = plot.lines().collect();
        assert_eq!(lines.len(), HEIGHT + 5);
        for line in &lines {
            assert!(line.chars().count() <= 80, "{line}");
        }
        assert!(lines[0].starts_with("    650│████"), "{plot}");
        assert!(lines[HEIGHT].contains("┴10s") && lines[HEIGHT].contains("┴50s"));
        let row = |name: &str| {
            lines
                .iter()
                .find(|line| line.trim().starts_with(name))
                .unwrap()
        };
        // A column shows its last moment.
        assert_eq!(row("LED").matches('○').count(), 23);
        assert_eq!(row("LED").matches('●').count(), 48);
        assert_eq!(row("decides").matches('P').count(), 24);
        assert!(row("cable").contains("━   "));
        assert!(
            lines
                .iter()
                .any(|line| line.starts_with("    300│") && line.contains('╌'))
        );
    }

    #[test]
    fn nothing_is_too_short_or_too_long() {
        assert_eq!(plot(&[]), "");
        for seconds in [0, 1, 3, 600, 5000] {
            let plot = plot(&moments(seconds));
            let widest = plot
                .lines()
                .take(HEIGHT + 4)
                .map(|line| line.chars().count())
                .max();
            assert!(widest <= Some(80), "{plot}");
        }
    }

    #[test]
    fn a_light_that_was_never_read_is_not_drawn() {
        let mut moments = moments(10);
        for moment in &mut moments {
            moment.light = None;
        }
        assert!(!plot(&moments).contains('█'));
    }
}
