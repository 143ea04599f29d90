//! A thread for a device that may hang: asked without waiting, and given up when it does not come back.
//!
//! A call of the kernel that hangs cannot be ended from outside. So the thread that made it is left to
//! itself, what it still answers is thrown away, and the next request gets a fresh one. At most
//! [`MAX_HUNG`] are left at a time: while so many hang, requests are refused. `led.rs` and the sensor's
//! reader use it; when a device hangs is the controller's to say.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};

use tokio::sync::mpsc::UnboundedSender;

use crate::logic::Input;

/// Threads that hang and may still come back; more would fill the memory of a small machine.
pub const MAX_HUNG: usize = 4;

/// What a request does, and what it answers. Made anew for each thread, on that thread.
pub type Work<Q> = Box<dyn FnMut(Q) -> Answer>;
type Make<Q> = dyn Fn() -> Work<Q> + Send + Sync;

/// What comes of a request.
pub enum Answer {
    /// For the controller.
    Input(Input),
    /// For somebody who waits; called when the thread is free for the next request.
    Call(Box<dyn FnOnce()>),
}

/// Why a request was not taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refused {
    /// The one before it is under way.
    Busy,
    /// So many hang that no further one is begun.
    TooManyHang,
    /// The system has no thread for it.
    NoThread,
}

impl Refused {
    /// In words, for a request of `what`.
    pub fn why(self, what: &str) -> String {
        match self {
            Self::Busy => format!("the {what} before this one is not over"),
            Self::TooManyHang => format!(
                "{MAX_HUNG} tries hang in its driver, and no further one is begun before one of them ends: \
                 look at `dmesg`; a restart of the machine may be needed ({what})"
            ),
            Self::NoThread => {
                format!("no thread for the {what}: the system is out of memory or of threads")
            }
        }
    }
}

/// Does one thing after the other, on a thread of its own.
pub(crate) struct DeviceThread<Q> {
    name: &'static str,
    make: Arc<Make<Q>>,
    /// What is answered when the work panics.
    panicked: Input,
    inputs: UnboundedSender<Input>,
    current: Option<Current<Q>>,
    hung: Arc<AtomicUsize>,
}

struct Current<Q> {
    requests: SyncSender<Q>,
    phase: Arc<AtomicU8>,
}

const IDLE: u8 = 0;
const BUSY: u8 = 1;
const GIVEN_UP: u8 = 2;

impl<Q: Send + 'static> DeviceThread<Q> {
    /// A thread called `name` that does what `make` makes and answers into `inputs`; it is started by the
    /// first request.
    pub(crate) fn new(
        name: &'static str,
        make: impl Fn() -> Work<Q> + Send + Sync + 'static,
        panicked: Input,
        inputs: UnboundedSender<Input>,
    ) -> Self {
        Self {
            name,
            make: Arc::new(make),
            panicked,
            inputs,
            current: None,
            hung: Arc::default(),
        }
    }

    /// Asks, and returns at once. The answer is one input at most, and none once it is given up.
    ///
    /// # Errors
    /// [`Refused`]; then there is no answer.
    pub(crate) fn ask(&mut self, request: Q) -> Result<(), Refused> {
        let idle = |current: &Current<Q>| {
            current
                .phase
                .compare_exchange(IDLE, BUSY, Ordering::SeqCst, Ordering::SeqCst)
                .is_ok()
        };
        match &self.current {
            Some(current) if !idle(current) => return Err(Refused::Busy),
            Some(_) => {}
            None => self.start()?,
        }
        let asked = match &self.current {
            Some(current) => current.requests.send(request).is_ok(),
            None => false,
        };
        if asked {
            return Ok(());
        }
        self.current = None;
        Err(Refused::NoThread)
    }

    /// The request under way, if there is one, counts no more: the next one gets a fresh thread.
    pub(crate) fn give_up(&mut self) {
        let busy = |current: &Current<Q>| {
            // Counted before the thread can see that it is given up, and count itself out.
            self.hung.fetch_add(1, Ordering::SeqCst);
            let given_up = current
                .phase
                .compare_exchange(BUSY, GIVEN_UP, Ordering::SeqCst, Ordering::SeqCst)
                .is_ok();
            if !given_up {
                self.hung.fetch_sub(1, Ordering::SeqCst);
            }
            given_up
        };
        if self.current.as_ref().is_some_and(busy) {
            self.current = None;
        }
    }

    fn start(&mut self) -> Result<(), Refused> {
        if self.hung.load(Ordering::SeqCst) >= MAX_HUNG {
            return Err(Refused::TooManyHang);
        }
        let (requests, asked) = sync_channel(1);
        let phase = Arc::new(AtomicU8::new(BUSY));
        let thread = {
            let (make, phase) = (self.make.clone(), phase.clone());
            let (inputs, hung) = (self.inputs.clone(), self.hung.clone());
            let panicked = self.panicked.clone();
            move || work(&asked, &*make, &panicked, &phase, &inputs, &hung)
        };
        std::thread::Builder::new()
            .name(self.name.to_owned())
            .spawn(thread)
            .map_err(|_| Refused::NoThread)?;
        self.current = Some(Current { requests, phase });
        Ok(())
    }
}

impl<Q> std::fmt::Debug for DeviceThread<Q> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "DeviceThread({}, {:?} hung)", self.name, self.hung)
    }
}

/// The thread: ends when it is given up, when nobody asks any more, or nobody listens.
fn work<Q>(
    asked: &Receiver<Q>,
    make: &Make<Q>,
    panicked: &Input,
    phase: &AtomicU8,
    inputs: &UnboundedSender<Input>,
    hung: &AtomicUsize,
) {
    let mut work = make();
    while let Ok(request) = asked.recv() {
        // A driver with a bug must not silence the device: what it held is dropped, and opened anew.
        let answer = catch_unwind(AssertUnwindSafe(|| work(request))).unwrap_or_else(|_| {
            work = make();
            Answer::Input(panicked.clone())
        });
        let counts = phase.compare_exchange(BUSY, IDLE, Ordering::SeqCst, Ordering::SeqCst);
        if counts.is_err() {
            hung.fetch_sub(1, Ordering::SeqCst);
            return;
        }
        match answer {
            Answer::Input(input) => {
                if inputs.send(input).is_err() {
                    return;
                }
            }
            Answer::Call(call) => call(),
        }
    }
}
