//! When which process is looked at. No clock in here: time comes in.

use std::{
    collections::HashMap,
    time::{Duration, Instant},
};

/// After a VM was made its process is looked at again at these times: the VMM makes the vCPUs and names
/// their threads after the VM.
const FOLLOW_UPS: [Duration; 4] = [
    Duration::from_millis(20),
    Duration::from_millis(100),
    Duration::from_millis(500),
    Duration::from_secs(2),
];

/// A process that starts threads all the time is looked at this often at first, and ever more seldom up to
/// [`MAX_PAUSE`] as long as it does not stop.
const MIN_PAUSE: Duration = Duration::from_millis(50);
const MAX_PAUSE: Duration = Duration::from_secs(1);

/// The looks that are due.
#[derive(Debug, Default)]
pub(super) struct Schedule {
    processes: HashMap<u32, Looks>,
}

#[derive(Debug)]
struct Looks {
    due: Option<Instant>,
    born: Option<Instant>,
    follow_ups: usize,
    last: Option<Instant>,
    pause: Duration,
}

impl Schedule {
    /// A process has begun to be a VM, or may have.
    pub(super) fn born(&mut self, pid: u32, now: Instant) {
        let looks = self.looks(pid);
        looks.due = Some(now);
        looks.born = Some(now);
        looks.follow_ups = 0;
    }

    /// Something has changed that must be seen at once.
    pub(super) fn urgent(&mut self, pid: u32, now: Instant) {
        self.looks(pid).due = Some(now);
    }

    /// The threads of a process have changed.
    pub(super) fn changed(&mut self, pid: u32, now: Instant) {
        let looks = self.looks(pid);
        let earliest = match looks.last {
            Some(last) if now < last + looks.pause * 2 => {
                looks.pause = (looks.pause * 2).min(MAX_PAUSE);
                last + looks.pause
            }
            _ => {
                looks.pause = MIN_PAUSE;
                now
            }
        };
        let due = earliest.max(now);
        looks.due = Some(looks.due.map_or(due, |known| known.min(due)));
    }

    /// A process is no VM any more.
    pub(super) fn forget(&mut self, pid: u32) {
        self.processes.remove(&pid);
    }

    /// A process was looked at and is no VM.
    pub(super) fn settle(&mut self, pid: u32) {
        if self.processes.get(&pid).is_some_and(|looks| looks.due.is_none()) {
            self.forget(pid);
        }
    }

    /// When the next look is due; `None` = nothing is to be done.
    pub(super) fn next(&self) -> Option<Instant> {
        self.processes.values().filter_map(|looks| looks.due).min()
    }

    /// The processes to look at now. Each counts as looked at with this.
    pub(super) fn take_due(&mut self, now: Instant) -> Vec<u32> {
        let mut due = Vec::new();
        for (&pid, looks) in &mut self.processes {
            if looks.due.is_none_or(|at| at > now) {
                continue;
            }
            due.push(pid);
            looks.last = Some(now);
            looks.due = looks.born.and_then(|born| {
                // Looks that are late already are left out.
                while FOLLOW_UPS.get(looks.follow_ups).is_some_and(|&after| born + after <= now) {
                    looks.follow_ups += 1;
                }
                FOLLOW_UPS.get(looks.follow_ups).map(|&after| born + after)
            });
        }
        due.sort_unstable();
        due
    }

    fn looks(&mut self, pid: u32) -> &mut Looks {
        self.processes.entry(pid).or_insert(Looks {
            due: None,
            born: None,
            follow_ups: FOLLOW_UPS.len(),
            last: None,
            pause: MIN_PAUSE,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    #[test]
    fn a_new_vm_is_looked_at_at_once_and_some_times_more() {
        let start = Instant::now();
        let mut schedule = Schedule::default();
        schedule.born(7, start);
        let mut looks = Vec::new();
        while let Some(at) = schedule.next() {
            assert_eq!(schedule.take_due(at), [7]);
            looks.push(at - start);
        }
        assert_eq!(looks, [ms(0), ms(20), ms(100), ms(500), ms(2000)]);
    }

    #[test]
    fn a_process_that_never_rests_is_looked_at_ever_more_seldom() {
        let start = Instant::now();
        let mut schedule = Schedule::default();
        let mut looks = 0;
        // A new thread each millisecond for a minute.
        for i in 0..60_000 {
            let now = start + ms(i);
            schedule.changed(7, now);
            looks += schedule.take_due(now).len();
        }
        assert!((58..70).contains(&looks), "{looks} looks");
        // After a rest the next change is seen at once.
        let later = start + ms(70_000);
        schedule.changed(7, later);
        assert_eq!(schedule.take_due(later), [7]);
        assert_eq!(schedule.next(), None);
    }

    #[test]
    fn one_process_does_not_delay_another() {
        let start = Instant::now();
        let mut schedule = Schedule::default();
        schedule.changed(7, start);
        schedule.take_due(start);
        schedule.changed(7, start + ms(1));
        schedule.urgent(8, start + ms(1));
        assert_eq!(schedule.take_due(start + ms(1)), [8]);
        schedule.settle(8);
        schedule.settle(7);
        assert_eq!(schedule.processes.len(), 1, "a look at 7 is due");
        schedule.forget(7);
        assert_eq!(schedule.next(), None);
    }
}
