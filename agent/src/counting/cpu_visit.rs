//! Visits of CPUs on which threads run without an event: the switch there brings the CPU time of a thread that never sleeps.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex, MutexGuard, PoisonError, mpsc},
    thread,
    time::Duration,
};

use rustix::{
    process::Pid,
    thread::{CpuSet, sched_setaffinity, sched_yield},
};

use crate::{account::Limits, counters::Holder};

/// Time that a visit is waited for: a CPU without a real-time thread gives a new one its turn within some milliseconds.
const TURN: Duration = Duration::from_millis(5);

/// Most visitors at a time that do not know their CPU yet: they wait for the file that tells it.
const MAX_SEARCHES: usize = 16;

/// Those of them for threads of users' and containers' VMs.
const SEARCHES_OF_ACCOUNTS: Limits = Limits { all: 12, many: 12, each: 2 };

/// The visitors that have not come to their CPUs yet.
#[derive(Debug, Default)]
pub(super) struct CpuVisits(Arc<Mutex<Visitors>>);

#[derive(Debug, Default)]
struct Visitors {
    /// Number of those that find out their CPU, for each holder. A process may hang, and with it the file that tells.
    searches: BTreeMap<Holder, usize>,
    /// The CPUs for which one waits. A real-time thread may keep one for ever, and the visitor waits for it.
    cpus: BTreeSet<u32>,
}

impl Visitors {
    /// Whether one more may look for its CPU for this holder. It does then.
    fn begin_search(&mut self, holder: Holder) -> bool {
        let all: usize = self.searches.values().sum();
        let of_holder = self.searches.get(&holder).copied().unwrap_or(0);
        let trusted = self.searches.get(&Holder::Trusted).copied().unwrap_or(0);
        let has_share = match holder {
            Holder::Trusted => true,
            Holder::Account(_) => SEARCHES_OF_ACCOUNTS.has_room(of_holder, all - trusted),
        };
        let has_room = all < MAX_SEARCHES && has_share;
        if has_room {
            self.searches.insert(holder, of_holder + 1);
        }
        has_room
    }

    fn end_search(&mut self, holder: Holder) {
        match self.searches.get_mut(&holder) {
            Some(number) if *number > 1 => *number -= 1,
            _ => drop(self.searches.remove(&holder)),
        }
    }
}

impl CpuVisits {
    /// Runs a thread on the CPU that `find` returns, for a VM of this holder, and waits for that a few milliseconds at most. `find` may
    /// block. Does nothing while one waits there already, or while as many searches of the holder hang as it may have.
    pub(super) fn visit(
        &self,
        holder: Holder,
        find: impl FnOnce() -> Option<u32> + Send + 'static,
    ) {
        if !lock(&self.0).begin_search(holder) {
            return;
        }
        let visitors = Arc::clone(&self.0);
        let (done, is_done) = mpsc::sync_channel(1);
        let visitor = move || {
            let cpu = find().filter(|cpu| (*cpu as usize) < CpuSet::MAX_CPU);
            let cpu = {
                let mut visitors = lock(&visitors);
                visitors.end_search(holder);
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
            Err(_) => lock(&self.0).end_search(holder),
        }
    }
}

fn lock(visitors: &Mutex<Visitors>) -> MutexGuard<'_, Visitors> {
    // Each change leaves them whole.
    visitors.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use std::{
        sync::atomic::{AtomicUsize, Ordering},
        time::Instant,
    };

    use super::*;
    use crate::account::Account;

    fn wait_until(visits: &CpuVisits, is_so: impl Fn(&Visitors) -> bool) {
        let deadline = Instant::now() + Duration::from_secs(60);
        while !is_so(&lock(&visits.0)) {
            assert!(Instant::now() < deadline, "{visits:?}");
            thread::yield_now();
        }
    }

    fn is_idle(visitors: &Visitors) -> bool {
        visitors.searches.is_empty() && visitors.cpus.is_empty()
    }

    #[test]
    fn a_cpu_on_which_a_visitor_waits_is_not_visited_again() {
        let visits = CpuVisits::default();
        visits.visit(Holder::Trusted, || Some(0));
        visits.visit(Holder::Trusted, || Some(u32::MAX));
        visits.visit(Holder::Trusted, || None);
        wait_until(&visits, is_idle);
        assert!(lock(&visits.0).cpus.insert(0));
        // It would take the CPU out again.
        visits.visit(Holder::Trusted, || Some(0));
        wait_until(&visits, |visitors| visitors.searches.is_empty());
        assert!(!lock(&visits.0).cpus.insert(0));
    }

    #[test]
    fn of_processes_that_hang_a_bounded_number_is_waited_for() {
        let visits = CpuVisits::default();
        let (open, gate) = crossbeam_channel::bounded::<()>(0);
        // A visit that begins no search does not wait.
        let begun = Arc::new(AtomicUsize::new(0));
        for _ in 0..1000 {
            let (gate, begun) = (gate.clone(), Arc::clone(&begun));
            visits.visit(Holder::Trusted, move || {
                begun.fetch_add(1, Ordering::Relaxed);
                let _ = gate.recv();
                Some(0)
            });
        }
        assert_eq!(lock(&visits.0).searches[&Holder::Trusted], MAX_SEARCHES);
        drop(open);
        wait_until(&visits, is_idle);
        assert_eq!(begun.load(Ordering::Relaxed), MAX_SEARCHES);
    }

    #[test]
    fn processes_of_users_that_hang_leave_visits_to_others() {
        let visits = CpuVisits::default();
        let (open, gate) = crossbeam_channel::bounded::<()>(0);
        let hang = |holder: Holder| {
            let before = lock(&visits.0).searches.get(&holder).copied().unwrap_or(0);
            let gate = gate.clone();
            visits.visit(holder, move || {
                let _ = gate.recv();
                None
            });
            lock(&visits.0).searches.get(&holder).copied().unwrap_or(0) > before
        };
        let user = |id| Holder::Account(Account::User(id));
        let begun = (0..100).filter(|_| hang(user(1000))).count();
        assert_eq!(begun, SEARCHES_OF_ACCOUNTS.each, "a user has a share");
        assert!(hang(user(1001)), "another one has a share, too");
        let begun = (1001..2000).filter(|id| hang(user(*id))).count();
        assert_eq!(begun + SEARCHES_OF_ACCOUNTS.each + 1, SEARCHES_OF_ACCOUNTS.all);
        let (sender, came) = crossbeam_channel::bounded(1);
        visits.visit(Holder::Trusted, move || {
            let _ = sender.send(());
            None
        });
        assert!(came.recv_timeout(Duration::from_secs(60)).is_ok(), "root's VMs are visited");
        drop(open);
        wait_until(&visits, is_idle);
    }
}
