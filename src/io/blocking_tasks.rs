//! Small work for the disk that must not keep the loop waiting: done in order, on a thread of its own that
//! is started when there is the first. A card can take a second to sync one line.

use std::sync::mpsc::{Receiver, RecvTimeoutError, SendError, Sender, channel};
use std::thread;
use std::time::Duration;

type Task = Box<dyn FnOnce() + Send>;

/// Does what it is given, one after the other.
#[derive(Debug)]
pub(crate) struct BlockingTasks {
    tasks: Sender<Task>,
    /// Closes when the thread has ended.
    over: Receiver<()>,
}

impl BlockingTasks {
    /// Nothing to do yet.
    pub(crate) fn start() -> Self {
        let (tasks, given) = channel::<Task>();
        let (told, over) = channel();
        let work = move || {
            for task in given {
                task();
            }
            drop(told);
        };
        // Without a thread each task is done where it is given.
        let _ = thread::Builder::new()
            .name("blocking-tasks".into())
            .spawn(work);
        Self { tasks, over }
    }

    /// Takes one more; returns at once.
    pub(crate) fn add(&self, task: impl FnOnce() + Send + 'static) {
        if let Err(SendError(task)) = self.tasks.send(Box::new(task)) {
            task();
        }
    }

    /// Takes no more; whether all was done within `limit`.
    pub(crate) fn finish(self, limit: Duration) -> bool {
        drop(self.tasks);
        self.over.recv_timeout(limit) == Err(RecvTimeoutError::Disconnected)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tasks_are_done_in_order_and_one_that_hangs_is_left() {
        let (sender, done) = channel();
        let tasks = BlockingTasks::start();
        for n in 0..100 {
            let sender = sender.clone();
            tasks.add(move || sender.send(n).expect("heard"));
        }
        assert!(tasks.finish(Duration::from_secs(30)));
        drop(sender);
        assert_eq!(
            done.iter().collect::<Vec<_>>(),
            (0..100).collect::<Vec<_>>()
        );
        let (release, hangs) = channel::<()>();
        let tasks = BlockingTasks::start();
        tasks.add(move || {
            let _ = hangs.recv();
        });
        assert!(!tasks.finish(Duration::from_millis(10)));
        drop(release);
    }
}
