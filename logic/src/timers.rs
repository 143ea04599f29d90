//! What waits for a moment: at most one deadline for each thing that can come due.
//!
//! The parts set and stop their timers, and [`super::Controller`] hands out what has expired. So there is one
//! answer to when something is due next, and a part needs no clock and no deadline of its own.

use std::time::Duration;

/// What can come due. Of those that are due together, the first here is handed out first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Timer {
    /// The broker has confirmed nothing for too long.
    Stalled,
    /// The link has held.
    LinkHeld,
    /// The sensor has given nothing for three intervals.
    SensorFault,
    /// The lease of a command is over.
    Lease,
    /// The local rule may switch the LED again.
    Hold,
    /// The sensor has not answered in time.
    ReadAnswer,
    /// The sensor is to be read.
    Read,
    /// What waited at the broker has arrived.
    CommandsSettled,
    /// Missing commands of a sequence are waited for no longer.
    MissingCommands,
    /// The first record of the run waits for the store no longer.
    FirstRecord,
    /// The LED has not answered in time.
    LedAnswer,
    /// The LED is tried again.
    LedRetry,
    /// The next try to connect.
    Connect,
    /// A topic that was held back is open again.
    TopicOpens,
    /// History may go on.
    Replay,
    /// A record that is set back may be tried alone.
    Trial,
    /// Acks of the server are late.
    LateAcks,
    /// Records are to be on the disk.
    Commit,
    /// The disk is tried again.
    StoreRetry,
    /// Confirmed records are to be discarded.
    Discard,
    /// Rules may be kept again.
    KeepRules,
    /// The handover may be written again.
    Handover,
    /// The handover needs a sign of life.
    SignOfLife,
    /// `state` is published again.
    Announce,
    /// Home Assistant is told of the device again.
    HomeAssistant,
    /// At a stop, publications have had their time to be confirmed.
    StopQuiet,
    /// A stop takes no longer.
    StopEnd,
}

/// The number of timers.
const COUNT: usize = Timer::ALL.len();

impl Timer {
    /// Those by which the LED is decided.
    pub const DECIDING: [Self; 3] = [Self::SensorFault, Self::Lease, Self::Hold];

    /// Those that go on at a stop: of the LED and of delivery.
    pub(crate) const AT_STOP: [Self; 11] = [
        Self::Stalled,
        Self::LedAnswer,
        Self::LedRetry,
        Self::Connect,
        Self::TopicOpens,
        Self::Replay,
        Self::Trial,
        Self::LateAcks,
        Self::Commit,
        Self::StoreRetry,
        Self::Discard,
    ];

    /// All of them, in the order in which they are handed out.
    pub const ALL: [Self; 27] = [
        Self::Stalled,
        Self::LinkHeld,
        Self::SensorFault,
        Self::Lease,
        Self::Hold,
        Self::ReadAnswer,
        Self::Read,
        Self::CommandsSettled,
        Self::MissingCommands,
        Self::FirstRecord,
        Self::LedAnswer,
        Self::LedRetry,
        Self::Connect,
        Self::TopicOpens,
        Self::Replay,
        Self::Trial,
        Self::LateAcks,
        Self::Commit,
        Self::StoreRetry,
        Self::Discard,
        Self::KeepRules,
        Self::Handover,
        Self::SignOfLife,
        Self::Announce,
        Self::HomeAssistant,
        Self::StopQuiet,
        Self::StopEnd,
    ];
}

/// The deadlines, on the boot clock.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Timers {
    deadlines: [Option<Duration>; COUNT],
}

impl Timers {
    /// The timer expires at `at`, and no more when it was to before.
    pub fn set(&mut self, timer: Timer, at: Duration) {
        self.deadlines[timer as usize] = Some(at);
    }

    /// The timer expires at `at`, or not at all.
    pub(crate) fn set_or_stop(&mut self, timer: Timer, at: Option<Duration>) {
        self.deadlines[timer as usize] = at;
    }

    /// The timer does not expire.
    pub fn stop(&mut self, timer: Timer) {
        self.deadlines[timer as usize] = None;
    }

    /// None but these expires.
    pub(crate) fn stop_all_but(&mut self, timers: &[Timer]) {
        for timer in Timer::ALL {
            if !timers.contains(&timer) {
                self.stop(timer);
            }
        }
    }

    /// The timer, if it is set, expires so much later.
    pub(crate) fn delay(&mut self, timer: Timer, by: Duration) {
        if let Some(at) = &mut self.deadlines[timer as usize] {
            *at += by;
        }
    }

    /// When the timer expires, if it is set.
    pub fn get(&self, timer: Timer) -> Option<Duration> {
        self.deadlines[timer as usize]
    }

    /// Whether the timer is set.
    pub fn is_set(&self, timer: Timer) -> bool {
        self.get(timer).is_some()
    }

    /// When the next one expires.
    pub fn next(&self) -> Option<Duration> {
        self.deadlines.iter().flatten().min().copied()
    }

    /// The first of `timers` that is due at `now`, and since when. It is stopped.
    pub fn expire(&mut self, timers: &[Timer], now: Duration) -> Option<(Timer, Duration)> {
        timers.iter().find_map(|timer| {
            let due = self.deadlines[*timer as usize].take_if(|at| now >= *at)?;
            Some((*timer, due))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn s(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    #[test]
    fn each_timer_has_its_place() {
        for (place, timer) in Timer::ALL.into_iter().enumerate() {
            assert_eq!(timer as usize, place);
        }
    }

    #[test]
    fn each_expires_once_and_those_due_together_in_their_order() {
        let mut timers = Timers::default();
        timers.set(Timer::Announce, s(1));
        timers.set(Timer::Lease, s(2));
        timers.set(Timer::Hold, s(9));
        timers.set(Timer::Hold, s(3));
        timers.set(Timer::Read, s(1));
        timers.stop(Timer::Read);
        assert_eq!(timers.next(), Some(s(1)));
        assert_eq!(timers.expire(&Timer::ALL, Duration::ZERO), None);
        let due = std::iter::from_fn(|| timers.expire(&Timer::ALL, s(3)));
        let expected = [
            (Timer::Lease, s(2)),
            (Timer::Hold, s(3)),
            (Timer::Announce, s(1)),
        ];
        assert_eq!(due.collect::<Vec<_>>(), expected);
        assert_eq!(timers, Timers::default());
    }

    #[test]
    fn a_delay_moves_only_what_is_set() {
        let mut timers = Timers::default();
        timers.delay(Timer::Lease, s(5));
        assert_eq!(timers.next(), None);
        timers.set(Timer::Lease, s(1));
        timers.set(Timer::Read, s(2));
        timers.delay(Timer::Lease, s(5));
        assert_eq!(
            (timers.get(Timer::Lease), timers.next()),
            (Some(s(6)), Some(s(2)))
        );
        timers.stop_all_but(&[Timer::Lease]);
        assert!(timers.is_set(Timer::Lease) && !timers.is_set(Timer::Read));
    }
}
