//! When each process is scanned next. Reads no clock: the time is a parameter.

use std::{
    collections::{BTreeSet, HashMap},
    time::{Duration, Instant},
};

use crate::rate::Rate;

/// Further scans after a VM was created: the VMM creates the vCPUs, and names their threads, after the VM.
const FOLLOW_UPS: [Duration; 5] = [
    Duration::from_millis(20),
    Duration::from_millis(100),
    // A QEMU without KVM is a VM at this age, if not before.
    Duration::from_millis(500),
    Duration::from_millis(1050),
    Duration::from_secs(2),
];

/// Shortest and longest interval between scans of a process that keeps starting threads. It doubles while the
/// changes go on.
const MIN_PAUSE: Duration = Duration::from_millis(50);
const MAX_PAUSE: Duration = Duration::from_secs(1);

/// Scans of the host's own processes because their threads have changed, all together. A scan of a VM with some tens of threads takes
/// one or two milliseconds: these take about a fifth of a CPU in the long run. No share of a user limits them.
const HOST_CHANGES: Rate = Rate { interval: Duration::from_millis(10), burst: 100 };

/// A process that was not scanned for this long does not wait for its turn by [`HOST_CHANGES`], but for the one by [`QUIET_CHANGES`].
const QUIET: Duration = Duration::from_secs(10);

/// Scans after [`QUIET`], all together: of four thousand processes each has one in that time. What changes in all of them at once does
/// not keep the thread from other events.
const QUIET_CHANGES: Rate = Rate { interval: Duration::from_micros(2500), burst: 20 };

/// Most scans at once of a process within [`WINDOW`]: what else is to be seen at once waits for the end of the window.
const PROMPT: u32 = 8;

/// Length of the window of [`PROMPT`]. No VM needs more scans than that, and a process that always changes costs the others
/// little time.
const WINDOW: Duration = Duration::from_millis(400);

/// The scans that are due.
#[derive(Debug, Default)]
pub(super) struct Schedule {
    processes: HashMap<u32, Entry>,
    /// When each process that has a next scan is scanned.
    due: BTreeSet<(Instant, u32)>,
    /// Until when the scans so far use [`HOST_CHANGES`].
    host_changes_until: Option<Instant>,
    /// The same of [`QUIET_CHANGES`].
    quiet_changes_until: Option<Instant>,
}

#[derive(Debug)]
struct Entry {
    /// The next scan; `None` = none is due.
    due: Option<Instant>,
    /// When the process may have become a VM: the base of the follow-ups.
    born: Option<Instant>,
    /// Follow-ups that are over.
    follow_ups: usize,
    /// The last scan.
    last: Option<Instant>,
    /// The current interval between scans for changed threads.
    pause: Duration,
    /// When the current window began, and the scans at once in it.
    window: Option<Instant>,
    prompt: u32,
}

impl Entry {
    /// When the process can be scanned at the earliest for something that is to be seen at once.
    fn earliest(&mut self, now: Instant) -> Instant {
        let window = match self.window {
            Some(window) if now < window + WINDOW => window,
            _ => {
                self.prompt = 0;
                *self.window.insert(now)
            }
        };
        if self.due.is_none_or(|due| due > now) {
            self.prompt += 1;
        }
        if self.prompt <= PROMPT { now } else { window + WINDOW }
    }

    /// When the process is scanned after a change of its threads.
    fn after_change(&mut self, now: Instant) -> Instant {
        match self.last {
            Some(last) if now < last + self.pause * 2 => {
                self.pause = (self.pause * 2).min(MAX_PAUSE);
                (last + self.pause).max(now)
            }
            _ => {
                self.pause = MIN_PAUSE;
                now
            }
        }
    }
}

impl Schedule {
    /// A process may have become a VM: scan it now and at the follow-ups.
    pub(super) fn born(&mut self, pid: u32, now: Instant) {
        let entry = self.entry(pid);
        let due = entry.earliest(now);
        entry.born = Some(due);
        entry.follow_ups = 0;
        self.scan_at(pid, due);
    }

    /// A process has begun to execute a program that may run a VM: scan it at the follow-ups. Most have ended by then.
    pub(super) fn started(&mut self, pid: u32, now: Instant) {
        let entry = self.entry(pid);
        let born = entry.earliest(now);
        entry.born = Some(born);
        entry.follow_ups = 0;
        self.scan_at(pid, born + FOLLOW_UPS[0]);
    }

    /// Something has changed that readers must see: scan the process now.
    pub(super) fn urgent(&mut self, pid: u32, now: Instant) {
        let due = self.entry(pid).earliest(now);
        self.scan_at(pid, due);
    }

    /// The threads of a process have changed: scan it as soon as its interval allows.
    pub(super) fn changed(&mut self, pid: u32, now: Instant) {
        let due = self.entry(pid).after_change(now);
        self.scan_at(pid, due);
    }

    /// The same of a process that is the host's own.
    pub(super) fn changed_on_host(&mut self, pid: u32, now: Instant) {
        let entry = self.entry(pid);
        let (known, earliest) = (entry.due, entry.after_change(now));
        let after_quiet = earliest.max(entry.last.map_or(now, |last| last + QUIET));
        let in_turn = turn(HOST_CHANGES, self.host_changes_until, earliest);
        let after_quiet = turn(QUIET_CHANGES, self.quiet_changes_until, after_quiet);
        let (due, rate, until) = if after_quiet <= in_turn {
            (after_quiet, QUIET_CHANGES, &mut self.quiet_changes_until)
        } else {
            (in_turn, HOST_CHANGES, &mut self.host_changes_until)
        };
        // One that waits for its turn keeps that.
        if known.is_none_or(|known| known > due) {
            rate.use_once(until.get_or_insert(now), now);
            self.scan_at(pid, due);
        }
    }

    /// Has a process scanned at this time, if not before.
    fn scan_at(&mut self, pid: u32, due: Instant) {
        let entry = self.entry(pid);
        let before = entry.due;
        let due = *entry.due.insert(before.map_or(due, |known| known.min(due)));
        if before != Some(due) {
            self.due.extend([(due, pid)]);
            before.map(|before| self.due.remove(&(before, pid)));
        }
    }

    /// A process has ended.
    pub(super) fn forget(&mut self, pid: u32) {
        if let Some(due) = self.processes.remove(&pid).and_then(|entry| entry.due) {
            self.due.remove(&(due, pid));
        }
    }

    /// A scan found that a process is not a VM: forget it unless a further scan is due.
    pub(super) fn settle(&mut self, pid: u32) {
        if self.processes.get(&pid).is_some_and(|entry| entry.due.is_none()) {
            self.forget(pid);
        }
    }

    /// When the next scan is due; `None` = none is.
    pub(super) fn next(&self) -> Option<Instant> {
        self.due.first().map(|(due, _)| *due)
    }

    /// The processes to scan now, ascending. Each counts as scanned.
    pub(super) fn take_due(&mut self, now: Instant) -> Vec<u32> {
        let mut due = Vec::new();
        while let Some(&(at, pid)) = self.due.first()
            && at <= now
        {
            self.due.pop_first();
            let Some(entry) = self.processes.get_mut(&pid) else { continue };
            due.push(pid);
            entry.last = Some(now);
            entry.due = entry.born.and_then(|born| {
                // Follow-ups that are overdue are skipped: this scan stands for them.
                while FOLLOW_UPS.get(entry.follow_ups).is_some_and(|&after| born + after <= now) {
                    entry.follow_ups += 1;
                }
                FOLLOW_UPS.get(entry.follow_ups).map(|&after| born + after)
            });
            self.due.extend(entry.due.map(|due| (due, pid)));
        }
        due.sort_unstable();
        due
    }

    fn entry(&mut self, pid: u32) -> &mut Entry {
        self.processes.entry(pid).or_insert(Entry {
            due: None,
            born: None,
            follow_ups: FOLLOW_UPS.len(),
            last: None,
            pause: MIN_PAUSE,
            window: None,
            prompt: 0,
        })
    }
}

/// When the next scan is made that has to wait for its turn by a rate, but not before `earliest`. `until`: until when the scans so far
/// use the rate.
fn turn(rate: Rate, until: Option<Instant>, earliest: Instant) -> Instant {
    let next = until.and_then(|until| until.checked_sub(rate.interval * (rate.burst - 1)));
    next.map_or(earliest, |next| next.max(earliest))
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    #[test]
    fn a_new_vm_is_scanned_at_once_and_at_the_follow_ups() {
        let start = Instant::now();
        let mut schedule = Schedule::default();
        schedule.born(7, start);
        let mut scans = Vec::new();
        while let Some(at) = schedule.next() {
            assert_eq!(schedule.take_due(at), [7]);
            scans.push(at - start);
        }
        assert_eq!(scans, [ms(0), ms(20), ms(100), ms(500), ms(1050), ms(2000)]);
    }

    #[test]
    fn a_new_program_is_scanned_at_the_follow_ups() {
        let start = Instant::now();
        let mut schedule = Schedule::default();
        // Forked, and then executed.
        schedule.started(7, start);
        schedule.started(7, start);
        let mut scans = Vec::new();
        while let Some(at) = schedule.next() {
            assert_eq!(schedule.take_due(at), [7]);
            scans.push(at - start);
        }
        assert_eq!(scans, [ms(20), ms(100), ms(500), ms(1050), ms(2000)]);
    }

    #[test]
    fn a_process_that_keeps_starting_threads_is_scanned_at_growing_intervals() {
        let start = Instant::now();
        let mut schedule = Schedule::default();
        let mut scans = 0;
        // A new thread each millisecond for a minute.
        for i in 0..60_000 {
            let now = start + ms(i);
            schedule.changed(7, now);
            scans += schedule.take_due(now).len();
        }
        assert!((58..70).contains(&scans), "{scans} scans");
        // After a rest the next change is seen at once.
        let later = start + ms(70_000);
        schedule.changed(7, later);
        assert_eq!(schedule.take_due(later), [7]);
        assert_eq!(schedule.next(), None);
    }

    #[test]
    fn a_thousand_processes_that_keep_starting_threads_cost_a_bounded_time() {
        let start = Instant::now();
        let (mut schedule, mut scans, mut latest) = (Schedule::default(), 0_u32, Duration::ZERO);
        let mut changed: HashMap<u32, Instant> = HashMap::new();
        for i in 0..60_000 {
            let now = start + ms(i);
            // Each starts a thread every half second.
            for pid in (1..=1000).filter(|pid| u64::from(*pid) % 500 == i % 500) {
                changed.entry(pid).or_insert(now);
                schedule.changed_on_host(pid, now);
            }
            // One that has been quiet is not delayed by them.
            if i % 12_000 == 0 {
                schedule.changed_on_host(5000, now);
            }
            let due = schedule.take_due(now);
            assert!(i % 12_000 > 0 || due.contains(&5000), "after {i} ms");
            for pid in due {
                scans += 1;
                latest = latest.max(changed.remove(&pid).map_or(Duration::ZERO, |at| now - at));
            }
        }
        // 100 a second with what may come at once, and beside these most of the first of each.
        assert!((6_600..7_300).contains(&scans), "{scans} scans in a minute");
        assert!(latest <= ms(11_000), "{latest:?} late");
        // Those of one process are not delayed where no others change.
        let (mut schedule, mut scans) = (Schedule::default(), 0);
        for i in 0..60_000 {
            schedule.changed_on_host(7, start + ms(i));
            scans += schedule.take_due(start + ms(i)).len();
        }
        assert!((58..70).contains(&scans), "{scans} scans");
    }

    #[test]
    fn processes_that_change_at_the_same_time_are_scanned_one_after_the_other() {
        let (mut schedule, start) = (Schedule::default(), Instant::now());
        for pid in 1..=4000 {
            schedule.urgent(pid, start);
        }
        assert_eq!(schedule.take_due(start).len(), 4000);
        let later = start + QUIET;
        for pid in 1..=4000 {
            schedule.changed_on_host(pid, later);
        }
        let mut scanned = 0;
        for i in 0..10_000 {
            let now = later + ms(i);
            // The end of a VM and a new one are not looked for meanwhile.
            let due = schedule.take_due(now).len();
            assert!(due <= 150, "{due} after {i} ms");
            scanned += due;
        }
        assert_eq!(scanned, 4000);
    }

    #[test]
    fn of_thousands_that_keep_starting_threads_none_waits_for_all_others() {
        let start = Instant::now();
        let (mut schedule, mut scans, mut latest) = (Schedule::default(), 0_u32, Duration::ZERO);
        let mut changed: HashMap<u32, Instant> = HashMap::new();
        for i in 0..60_000 {
            let now = start + ms(i);
            for pid in (1..=4000).filter(|pid| u64::from(*pid) % 1000 == i % 1000) {
                changed.entry(pid).or_insert(now);
                schedule.changed_on_host(pid, now);
            }
            for pid in schedule.take_due(now) {
                scans += 1;
                latest = latest.max(changed.remove(&pid).map_or(Duration::ZERO, |at| now - at));
            }
        }
        assert!(latest <= ms(11_000), "{latest:?} late");
        assert!(scans <= 60 * 500 + 150, "{scans} scans in a minute");
    }

    #[test]
    fn a_process_that_always_changes_is_scanned_at_a_bounded_rate_and_never_late() {
        let start = Instant::now();
        for is_born in [false, true] {
            let mut schedule = Schedule::default();
            let mut scans = Vec::new();
            let mut unseen = None;
            let mut latest = Duration::ZERO;
            for i in 0..10_000 {
                let now = start + ms(i);
                match is_born {
                    true => schedule.born(7, now),
                    false => schedule.urgent(7, now),
                }
                unseen.get_or_insert(now);
                if schedule.take_due(now) == [7] {
                    latest = latest.max(now - unseen.take().unwrap_or(now));
                    scans.push(now);
                }
            }
            assert!(scans.len() <= 500, "{} scans in 10 s", scans.len());
            assert!(latest <= WINDOW, "{latest:?} late");
        }
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
        assert_eq!(schedule.processes.len(), 1, "a scan of 7 is due");
        schedule.forget(7);
        assert_eq!(schedule.next(), None);
    }
}
