//! What a thread needs that reports facts to the inventory: the channel, and a way to end the agent when the
//! thread cannot go on.

use std::{thread::JoinHandle, time::Instant};

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender};
use tokio::sync::mpsc::UnboundedSender;
use tracing::error;

use crate::inventory::Fact;

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
