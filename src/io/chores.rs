//! Small work for the disk that must not keep the loop waiting: done in order, on a thread of its own that
//! is started when there is the first. A card can take a second to sync one line.

use std::sync::mpsc::{Receiver, RecvTimeoutError, SendError, Sender, channel};
use std::thread;
use std::time::Duration;

type Chore = Box<dyn FnOnce() + Send>;

/// Does what it is given, one after the other.
#[derive(Debug)]
pub struct Chores {
    chores: Sender<Chore>,
    /// Closes when the thread has ended.
    over: Receiver<()>,
}

impl Chores {
    /// Nothing to do yet.
    pub fn start() -> Self {
        let (chores, given) = channel::<Chore>();
        let (told, over) = channel();
        let work = move || {
            for chore in given {
                chore();
            }
            drop(told);
        };
        // Without a thread each chore is done where it is given.
        let _ = thread::Builder::new().name("chores".into()).spawn(work);
        Self { chores, over }
    }

    /// Takes one more; returns at once.
    pub fn add(&self, chore: impl FnOnce() + Send + 'static) {
        if let Err(SendError(chore)) = self.chores.send(Box::new(chore)) {
            chore();
        }
    }

    /// Takes no more; whether all was done within `limit`.
    pub fn finish(self, limit: Duration) -> bool {
        drop(self.chores);
        self.over.recv_timeout(limit) == Err(RecvTimeoutError::Disconnected)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chores_are_done_in_order_and_one_that_hangs_is_left() {
        let (sender, done) = channel();
        let chores = Chores::start();
        for n in 0..100 {
            let sender = sender.clone();
            chores.add(move || sender.send(n).expect("heard"));
        }
        assert!(chores.finish(Duration::from_secs(30)));
        drop(sender);
        assert_eq!(
            done.iter().collect::<Vec<_>>(),
            (0..100).collect::<Vec<_>>()
        );
        let (release, hangs) = channel::<()>();
        let chores = Chores::start();
        chores.add(move || drop(hangs.recv()));
        assert!(!chores.finish(Duration::from_millis(10)));
        drop(release);
    }
}
