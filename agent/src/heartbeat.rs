//! The heartbeat of a thread: whether it works, hangs or has ended.

use std::{
    sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    time::Duration,
};

use crate::counters::since_boot_ns;

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
}
