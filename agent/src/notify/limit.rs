//! Bounds how many changes of the VMs of users are reported: a user who starts and ends processes floods no manager. VMs of
//! root and libvirt have no bound. Reads no clock.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    time::{Duration, Instant},
};

use super::losses::Loss;
use crate::{
    account::Account,
    inventory::{Change, ChangeEvent},
    rate::{KeyedRates, Rate},
};

/// Of one user: 100 at once, then 10 a second.
const EACH: Rate = Rate { interval: Duration::from_millis(100), burst: 100 };

/// Of all users together: 200 at once, then 20 a second.
const ALL: Rate = Rate { interval: Duration::from_millis(50), burst: 200 };

/// Interval at which changes that were held back are tried again.
const PAUSE: Duration = Duration::from_millis(100);

/// The changes that may be reported now, and what was held back: of each VM what it came to since it was reported last.
#[derive(Debug)]
pub(super) struct Limit {
    rates: KeyedRates<Account>,
    /// VMs of users whose changes have been reported.
    reported: HashSet<u32>,
    /// The change of each VM that waits, by the order in which they came.
    held: BTreeMap<u64, (Account, Change)>,
    /// The place of a VM in `held`.
    places: HashMap<u32, u64>,
    /// The number of the last change of a VM that was dropped, or that came by the other queue, while earlier changes of the VM may
    /// be in this queue.
    outdated: HashMap<u32, u64>,
    /// The largest of these numbers.
    outdated_through: u64,
    last: u64,
    due: Option<Instant>,
    left_out: u64,
}

impl Default for Limit {
    fn default() -> Self {
        Self {
            rates: KeyedRates::new(EACH, ALL),
            reported: HashSet::new(),
            held: BTreeMap::new(),
            places: HashMap::new(),
            outdated: HashMap::new(),
            outdated_through: 0,
            last: 0,
            due: None,
            left_out: 0,
        }
    }
}

impl Limit {
    /// Changes that will not be reported since the last call: later ones of the same VM took their place, or the VM was deleted
    /// before any was reported.
    pub(super) fn take_left_out(&mut self) -> u64 {
        std::mem::take(&mut self.left_out)
    }

    /// When [`Limit::take_due`] is to be called; `None` = nothing is held back.
    pub(super) const fn due(&self) -> Option<Instant> {
        self.due
    }

    /// Takes note of dropped changes, by vmIndex: what is held back of these VMs will not be reported.
    pub(super) fn lose(&mut self, losses: HashMap<u32, Loss>) {
        for (index, loss) in losses {
            let held = self.places.remove(&index).and_then(|place| self.held.remove(&place));
            self.left_out += u64::from(held.is_some());
            if loss.is_deleted {
                self.reported.remove(&index);
            }
            self.outdate(index, loss.number);
        }
    }

    /// A change of root's or libvirt's is reported before earlier ones of the same VM that may be in the queue of users.
    pub(super) fn overtake(&mut self, number: u64, change: &Change) {
        self.outdate(change.index.0, number);
    }

    fn outdate(&mut self, index: u32, number: u64) {
        let last = self.outdated.entry(index).or_insert(number);
        *last = number.max(*last);
        self.outdated_through = self.outdated_through.max(number);
    }

    /// Whether a later change of the same VM than this one was dropped or reported. It is not to be reported then, and counts as
    /// left out.
    pub(super) fn is_outdated(&mut self, number: u64, change: &Change) -> bool {
        if number > self.outdated_through {
            // The queue is first in, first out.
            self.outdated.clear();
            return false;
        }
        let is_outdated = self.outdated.get(&change.index.0).is_some_and(|last| number < *last);
        self.left_out += u64::from(is_outdated);
        is_outdated
    }

    /// Takes a change. Returns it, or the one that came of it and an earlier one, if it may be reported now.
    pub(super) fn pass(&mut self, change: Change, now: Instant) -> Option<Change> {
        let index = change.index.0;
        let held = self.places.remove(&index).and_then(|place| self.held.remove(&place));
        let Some(account) = change.account else {
            self.left_out += u64::from(held.is_some());
            self.reported.remove(&index);
            return Some(change);
        };
        if change.event == ChangeEvent::Deleted {
            let was_reported = self.reported.remove(&index);
            self.left_out += u64::from(held.is_some()) * if was_reported { 1 } else { 2 };
            // The end of a VM that was reported costs nothing: there are no more of them than of the reported ones.
            return (held.is_none() || was_reported).then_some(change);
        }
        let change = match held {
            None => change,
            Some((_, earlier)) => {
                self.left_out += 1;
                if change.event == ChangeEvent::State(earlier.before) {
                    self.left_out += 1;
                    return None;
                }
                Change { before: earlier.before, ..change }
            }
        };
        if self.rates.allows(account, now) {
            self.reported.insert(index);
            return Some(change);
        }
        self.last += 1;
        self.places.insert(index, self.last);
        self.held.insert(self.last, (account, change));
        self.due.get_or_insert(now + PAUSE);
        None
    }

    /// The changes that were held back and may be reported now.
    pub(super) fn take_due(&mut self, now: Instant) -> Vec<Change> {
        let rates = &mut self.rates;
        let may_go = |(place, (account, _)): (&u64, &(Account, Change))| {
            (rates.has_room(now) && rates.allows(*account, now)).then_some(*place)
        };
        let places: Vec<u64> = self.held.iter().filter_map(may_go).collect();
        let due = places.iter().filter_map(|place| self.held.remove(place));
        let due: Vec<Change> = due.map(|(_, change)| change).collect();
        for change in &due {
            self.places.remove(&change.index.0);
            self.reported.insert(change.index.0);
        }
        self.due = (!self.held.is_empty()).then_some(now + PAUSE);
        due
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::inventory::{
        OperState::{self, Paused, Running, Shutdown, Unknown},
        Persistence, VmIndex,
    };
    use ChangeEvent::{Deleted, State};

    fn change(index: u32, user: Option<u32>, before: OperState, event: ChangeEvent) -> Change {
        Change {
            index: VmIndex(index),
            name: String::new(),
            uuid: None,
            persistence: Persistence::Transient,
            account: user.map(Account::User),
            before,
            event,
        }
    }

    #[test]
    fn a_flood_of_a_user_is_bounded_and_libvirts_changes_pass() {
        let start = Instant::now();
        let mut limit = Limit::default();
        let mut passed = [0, 0];
        // 2,000 VMs a second for ten seconds, each running, shut down and deleted.
        for index in 0..20_000_u32 {
            let now = start + Duration::from_micros(500) * index;
            for (before, event) in
                [(Unknown, State(Running)), (Running, State(Shutdown)), (Shutdown, Deleted)]
            {
                passed[0] +=
                    usize::from(limit.pass(change(index, Some(9), before, event), now).is_some());
                passed[1] +=
                    usize::from(limit.pass(change(100_000, None, before, event), now).is_some());
            }
            passed[0] += limit.take_due(now).len();
        }
        assert!(passed[0] <= 2 * 201, "{passed:?}");
        assert_eq!(passed[1], 60_000);
        let held = u64::try_from(limit.held.len()).unwrap();
        assert_eq!(limit.take_left_out() + held + passed[0] as u64, 60_000);
        assert!(limit.reported.len() < 201 && limit.places.len() == limit.held.len());
    }

    #[test]
    fn what_is_held_back_comes_later_with_what_the_vm_came_to() {
        let start = Instant::now();
        let mut limit = Limit::default();
        for index in 0..100 {
            let running = change(index, Some(9), Unknown, State(Running));
            assert!(limit.pass(running, start).is_some());
        }
        let held = [
            (0, Running, State(Paused)),
            (0, Paused, State(Shutdown)),
            // Back to what was reported.
            (1, Running, State(Paused)),
            (1, Paused, State(Running)),
            // Reported, so its end is reported, too.
            (2, Running, State(Shutdown)),
            // Never reported.
            (200, Unknown, State(Running)),
            (200, Running, State(Shutdown)),
        ];
        for (index, before, event) in held {
            assert_eq!(limit.pass(change(index, Some(9), before, event), start), None);
        }
        let deleted = change(2, Some(9), Shutdown, Deleted);
        assert_eq!(limit.pass(deleted.clone(), start), Some(deleted));
        assert_eq!(limit.pass(change(200, Some(9), Shutdown, Deleted), start), None);
        // Another user is not concerned.
        assert!(limit.pass(change(300, Some(10), Unknown, State(Running)), start).is_some());
        let due = limit.due().unwrap();
        let late = limit.take_due(due);
        assert_eq!(late, [change(0, Some(9), Running, State(Shutdown))]);
        assert_eq!((limit.due(), limit.take_left_out()), (None, 1 + 2 + 1 + 1 + 2));
        assert!(limit.pass(change(0, Some(9), Shutdown, Deleted), due).is_some());
        assert!(limit.pass(change(1, Some(9), Running, Deleted), due).is_some());
    }

    #[test]
    fn a_vm_that_turns_out_to_be_libvirts_is_reported_at_once() {
        let start = Instant::now();
        let mut limit = Limit::default();
        for index in 0..=100 {
            limit.pass(change(index, Some(9), Unknown, State(Running)), start);
        }
        let paused = change(100, None, Running, State(Paused));
        assert_eq!(limit.pass(paused.clone(), start), Some(paused));
        assert!(limit.take_due(start + Duration::from_secs(9)).is_empty());
    }
}
