//! Visits of CPUs on which threads run without an event: the switch there brings the CPU time of a thread that never sleeps.

use std::{
    collections::BTreeSet,
    sync::{Arc, Mutex, PoisonError, mpsc},
    thread,
    time::Duration,
};

use rustix::{
    process::Pid,
    thread::{CpuSet, sched_setaffinity, sched_yield},
};

/// Time that a visit is waited for: a CPU without a real-time thread gives a new one its turn within some milliseconds.
const TURN: Duration = Duration::from_millis(5);

/// The CPUs that a visitor has not come to yet. A real-time thread may keep one for ever, and the visitor waits for it.
#[derive(Debug, Default)]
pub(super) struct CpuVisits(Arc<Mutex<BTreeSet<u32>>>);

impl CpuVisits {
    /// Runs a thread on this CPU, and waits for it a few milliseconds at most. Does nothing while one waits there already.
    pub(super) fn visit(&self, cpu: u32) {
        if cpu as usize >= CpuSet::MAX_CPU || !insert(&self.0, cpu) {
            return;
        }
        let waiting = Arc::clone(&self.0);
        let (done, is_done) = mpsc::sync_channel(1);
        let visitor = move || {
            let mut there = CpuSet::new();
            there.set(cpu as usize);
            // Fails if a cpuset forbids that CPU; then the value comes with the next switch.
            if sched_setaffinity(None::<Pid>, &there).is_ok() {
                sched_yield();
            }
            waiting.lock().unwrap_or_else(PoisonError::into_inner).remove(&cpu);
            let _ = done.send(());
        };
        match thread::Builder::new().name("cpu visit".to_owned()).spawn(visitor) {
            Ok(_) => drop(is_done.recv_timeout(TURN)),
            Err(_) => {
                self.0.lock().unwrap_or_else(PoisonError::into_inner).remove(&cpu);
            }
        }
    }
}

fn insert(waiting: &Mutex<BTreeSet<u32>>, cpu: u32) -> bool {
    waiting.lock().unwrap_or_else(PoisonError::into_inner).insert(cpu)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cpu_on_which_a_visitor_waits_is_not_visited_again() {
        let visits = CpuVisits::default();
        visits.visit(0);
        visits.visit(u32::MAX);
        let deadline = std::time::Instant::now() + Duration::from_secs(10);
        while !visits.0.lock().unwrap().is_empty() {
            assert!(std::time::Instant::now() < deadline, "the visitor has not come back");
            thread::yield_now();
        }
        assert!(insert(&visits.0, 0));
        // It would take the CPU out again.
        visits.visit(0);
        assert!(!insert(&visits.0, 0));
    }
}
