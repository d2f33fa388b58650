//! Visits of CPUs on which threads run without an event: the switch there brings the CPU time of a thread that never sleeps.

use std::{
    collections::BTreeSet,
    sync::{Arc, Mutex, MutexGuard, PoisonError, mpsc},
    thread,
    time::Duration,
};

use rustix::{
    process::Pid,
    thread::{CpuSet, sched_setaffinity, sched_yield},
};

/// Time that a visit is waited for: a CPU without a real-time thread gives a new one its turn within some milliseconds.
const TURN: Duration = Duration::from_millis(5);

/// Most visitors at a time that do not know their CPU yet: they wait for the file that tells it.
const MAX_SEARCHES: usize = 16;

/// The visitors that have not come to their CPUs yet.
#[derive(Debug, Default)]
pub(super) struct CpuVisits(Arc<Mutex<Visitors>>);

#[derive(Debug, Default)]
struct Visitors {
    /// Number of those that find out their CPU. A process may hang, and with it the file that tells.
    searches: usize,
    /// The CPUs for which one waits. A real-time thread may keep one for ever, and the visitor waits for it.
    cpus: BTreeSet<u32>,
}

impl CpuVisits {
    /// Runs a thread on the CPU that `find` returns, and waits for that a few milliseconds at most. `find` may block. Does nothing
    /// while one waits there already.
    pub(super) fn visit(&self, find: impl FnOnce() -> Option<u32> + Send + 'static) {
        {
            let mut visitors = lock(&self.0);
            if visitors.searches >= MAX_SEARCHES {
                return;
            }
            visitors.searches += 1;
        }
        let visitors = Arc::clone(&self.0);
        let (done, is_done) = mpsc::sync_channel(1);
        let visitor = move || {
            let cpu = find().filter(|cpu| (*cpu as usize) < CpuSet::MAX_CPU);
            let cpu = {
                let mut visitors = lock(&visitors);
                visitors.searches -= 1;
                cpu.filter(|cpu| visitors.cpus.insert(*cpu))
            };
            if let Some(cpu) = cpu {
                let mut there = CpuSet::new();
                there.set(cpu as usize);
                // Fails if a cpuset forbids that CPU; then the value comes with the next switch.
                if sched_setaffinity(None::<Pid>, &there).is_ok() {
                    sched_yield();
                }
                lock(&visitors).cpus.remove(&cpu);
            }
            let _ = done.send(());
        };
        match thread::Builder::new().name("cpu visit".to_owned()).spawn(visitor) {
            Ok(_) => drop(is_done.recv_timeout(TURN)),
            Err(_) => lock(&self.0).searches -= 1,
        }
    }
}

fn lock(visitors: &Mutex<Visitors>) -> MutexGuard<'_, Visitors> {
    // Each change leaves them whole.
    visitors.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;

    fn wait_until(visits: &CpuVisits, is_so: impl Fn(&Visitors) -> bool) {
        let deadline = Instant::now() + Duration::from_secs(10);
        while !is_so(&lock(&visits.0)) {
            assert!(Instant::now() < deadline, "{visits:?}");
            thread::yield_now();
        }
    }

    fn is_idle(visitors: &Visitors) -> bool {
        visitors.searches == 0 && visitors.cpus.is_empty()
    }

    #[test]
    fn a_cpu_on_which_a_visitor_waits_is_not_visited_again() {
        let visits = CpuVisits::default();
        visits.visit(|| Some(0));
        visits.visit(|| Some(u32::MAX));
        visits.visit(|| None);
        wait_until(&visits, is_idle);
        assert!(lock(&visits.0).cpus.insert(0));
        // It would take the CPU out again.
        visits.visit(|| Some(0));
        wait_until(&visits, |visitors| visitors.searches == 0);
        assert!(!lock(&visits.0).cpus.insert(0));
    }

    #[test]
    fn processes_that_hang_cost_a_bounded_time_and_number_of_threads() {
        let visits = CpuVisits::default();
        let (open, gate) = crossbeam_channel::bounded::<()>(0);
        let started = Instant::now();
        for _ in 0..1000 {
            let gate = gate.clone();
            visits.visit(move || {
                let _ = gate.recv();
                Some(0)
            });
        }
        assert!(started.elapsed() < TURN * 200, "{:?}", started.elapsed());
        assert_eq!(lock(&visits.0).searches, MAX_SEARCHES);
        drop(open);
        wait_until(&visits, is_idle);
    }
}
