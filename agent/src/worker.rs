//! What a thread needs that reports facts to the inventory: the channel, a heartbeat, and a way to end the agent when the
//! thread cannot go on.

use std::{
    sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    thread::JoinHandle,
    time::{Duration, Instant},
};

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender};
use tokio::sync::mpsc::UnboundedSender;
use tracing::error;

use crate::{counters::since_boot_ns, inventory::Fact};

/// Where facts go.
#[derive(Clone, Debug)]
pub struct Facts {
    facts: Sender<Fact>,
    failures: UnboundedSender<String>,
}

impl Facts {
    /// Facts go into `facts`; why a thread cannot go on goes into `failures`, and ends the agent.
    #[must_use]
    pub const fn new(facts: Sender<Fact>, failures: UnboundedSender<String>) -> Self {
        Self { facts, failures }
    }

    /// Reports a fact. Never waits.
    pub fn send(&self, fact: Fact) {
        // Fails only while the agent ends.
        let _ = self.facts.send(fact);
    }

    /// Ends the agent with this message.
    pub fn fail(&self, why: String) {
        let _ = self.failures.send(why);
    }

    /// Ends the agent when the calling thread panics.
    #[must_use]
    pub fn end_guard(&self, thread: &'static str) -> EndGuard {
        EndGuard { facts: self.clone(), thread }
    }
}

/// Reports the panic of a thread that holds it.
#[derive(Debug)]
pub struct EndGuard {
    facts: Facts,
    thread: &'static str,
}

impl Drop for EndGuard {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.facts
                .fail(format!("The thread `{}` has panicked; please report this", self.thread));
        }
    }
}

/// Whether a thread that mostly sleeps still works. It costs two stores for each time that the thread wakes up, and
/// wakes nothing up itself.
#[derive(Debug)]
pub struct Heartbeat {
    /// Name of the thread, for the status.
    pub name: &'static str,
    /// One piece of work that takes longer hangs.
    pub deadline: Duration,
    /// Since when the thread works on one piece, in ns since boot; 0 = it waits for work.
    busy_since: AtomicU64,
    ended: AtomicBool,
}

impl Heartbeat {
    /// A thread that has not begun.
    #[must_use]
    pub const fn new(name: &'static str, deadline: Duration) -> Self {
        Self { name, deadline, busy_since: AtomicU64::new(0), ended: AtomicBool::new(false) }
    }

    /// The thread begins a piece of work.
    pub fn work(&self) {
        self.busy_since.store(since_boot_ns().max(1), Relaxed);
    }

    /// The thread is about to wait for work.
    pub fn rest(&self) {
        self.busy_since.store(0, Relaxed);
    }

    /// The thread ends.
    pub fn end(&self) {
        self.ended.store(true, Relaxed);
    }

    /// Whether the thread has ended.
    #[must_use]
    pub fn has_ended(&self) -> bool {
        self.ended.load(Relaxed)
    }

    /// For how long the thread has worked on one piece, where that is longer than the deadline.
    #[must_use]
    pub fn overdue(&self) -> Option<Duration> {
        let since = self.busy_since.load(Relaxed);
        let busy = Duration::from_nanos(since_boot_ns().saturating_sub(since));
        (since != 0 && busy > self.deadline).then_some(busy)
    }
}

/// The next message, or [`RecvTimeoutError::Timeout`] at this time; `None` = it is waited for without an end.
pub(crate) fn recv_until<T>(
    receiver: &Receiver<T>,
    due: Option<Instant>,
) -> Result<T, RecvTimeoutError> {
    match due {
        Some(due) => receiver.recv_deadline(due),
        None => receiver.recv().map_err(RecvTimeoutError::from),
    }
}

/// Waits for the end of a thread, and logs a panic: "the thread `which` had panicked".
pub(crate) fn join(thread: &mut Option<JoinHandle<()>>, which: &str) {
    if let Some(thread) = thread.take()
        && thread.join().is_err()
    {
        error!("the thread {which} had panicked");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thread_is_overdue_only_at_work() {
        let heartbeat = Heartbeat::new("test", Duration::ZERO);
        assert_eq!(heartbeat.overdue(), None);
        heartbeat.work();
        assert!(heartbeat.overdue().is_some());
        heartbeat.rest();
        assert_eq!(heartbeat.overdue(), None);
    }

    #[test]
    fn a_panic_ends_the_agent() {
        let (failures, mut ends) = tokio::sync::mpsc::unbounded_channel();
        let facts = Facts::new(crossbeam_channel::unbounded().0, failures);
        let panics = std::thread::spawn(move || {
            let _guard = facts.end_guard("test");
            panic!("as the test wants");
        });
        assert!(panics.join().is_err());
        assert!(ends.try_recv().unwrap().contains("`test`"));
    }
}
