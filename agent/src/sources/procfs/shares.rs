//! How much CPU time the scans of each user's processes may cost. Any user can have processes that look like VMs come, go and
//! change without end; each such event asks for a scan. The scans of one user's processes wait once the user's share is spent,
//! and delay no one else's. Reads no clock: the time is a parameter.

use std::{
    collections::{BTreeMap, HashSet, VecDeque},
    time::{Duration, Instant},
};

use crate::sources::Spent;

/// A user's share of one CPU in the long run is one part of this many.
const PARTS: u32 = 100;

/// CPU time that a user who has caused no scans for long may use at once: dozens of VMs that start together.
const AT_ONCE: Duration = Duration::from_millis(200);

/// Waiting processes of a user before those that have ended are looked for.
const SWEEP: usize = 256;

/// Time for which the status shows a user after the last scan that had to wait.
const SHOWN: Duration = Duration::from_secs(600);

/// The shares of all users, and the processes that wait for theirs.
#[derive(Debug, Default)]
pub(super) struct Shares {
    users: BTreeMap<u32, User>,
    /// The user whose process was scanned last: the next one is another user's.
    last: u32,
}

/// What one user has used.
#[derive(Debug)]
struct User {
    /// When all that was used is paid for, at the rate of the share.
    paid: Instant,
    /// Processes to be scanned, the first that came first; the same as a set. It is each user's own: the id of a process that has
    /// ended may be another user's.
    waiting: VecDeque<u32>,
    is_waiting: HashSet<u32>,
    /// Number of waiting processes at which those that have ended are looked for.
    sweep: usize,
    /// Scans that had to wait because the share was spent, and when the last one had to.
    deferred: u64,
    deferred_at: Option<Instant>,
}

impl User {
    fn new(now: Instant) -> Self {
        Self {
            paid: now,
            waiting: VecDeque::new(),
            is_waiting: HashSet::new(),
            sweep: SWEEP,
            deferred: 0,
            deferred_at: None,
        }
    }

    /// When the next scan may be made.
    fn admitted(&self) -> Instant {
        self.paid.checked_sub(AT_ONCE * PARTS).unwrap_or(self.paid)
    }
}

impl Shares {
    /// Has a process of this user scanned when it is the user's turn and its share allows. `has_ended` tells whether a process has,
    /// and is called for each one that then does not wait any more.
    pub(super) fn wait(
        &mut self,
        user: u32,
        pid: u32,
        now: Instant,
        mut has_ended: impl FnMut(u32) -> bool,
    ) {
        let user = self.users.entry(user).or_insert_with(|| User::new(now));
        if !user.is_waiting.insert(pid) {
            return;
        }
        if user.admitted() > now {
            user.deferred += 1;
            user.deferred_at = Some(now);
        }
        if user.waiting.len() >= user.sweep {
            let User { waiting, is_waiting, .. } = &mut *user;
            waiting.retain(|&pid| !has_ended(pid) || !is_waiting.remove(&pid));
            user.sweep = SWEEP.max(user.waiting.len() * 2);
        }
        user.waiting.push_back(pid);
    }

    /// The process to be scanned now, and its user; `None` = none.
    pub(super) fn take(&mut self, now: Instant) -> Option<(u32, u32)> {
        self.next_in_turn(|user| user.admitted() <= now)
    }

    /// The process to be scanned next if the shares do not matter, and its user; `None` = none waits.
    pub(super) fn take_any(&mut self) -> Option<(u32, u32)> {
        self.next_in_turn(|_| true)
    }

    /// The first process of the next user who is admitted.
    fn next_in_turn(&mut self, is_admitted: impl Fn(&User) -> bool) -> Option<(u32, u32)> {
        let is_ready = |user: &User| !user.waiting.is_empty() && is_admitted(user);
        let later = self.users.range(self.last.saturating_add(1)..).chain(self.users.range(..));
        let user = *later.into_iter().find(|(_, user)| is_ready(user))?.0;
        self.last = user;
        let share = self.users.get_mut(&user)?;
        let pid = share.waiting.pop_front()?;
        share.is_waiting.remove(&pid);
        Some((user, pid))
    }

    /// A scan of a process of this user has cost that much.
    pub(super) fn charge(&mut self, user: u32, cost: Duration, now: Instant) {
        let user = self.users.entry(user).or_insert_with(|| User::new(now));
        user.paid = user.paid.max(now) + cost * PARTS;
        self.users.retain(|_, user| {
            let is_shown = user.deferred_at.is_some_and(|at| now < at + SHOWN);
            is_shown || user.paid > now || !user.waiting.is_empty()
        });
    }

    /// When the next scan is to be made; `None` = no process waits.
    pub(super) fn next(&self) -> Option<Instant> {
        let waiting = self.users.values().filter(|user| !user.waiting.is_empty());
        waiting.map(User::admitted).min()
    }

    /// The users whose share was spent of late, ascending.
    pub(super) fn spent(&self) -> Vec<Spent> {
        let of_late = self.users.iter().filter(|(_, user)| user.deferred > 0);
        let spent = |(&id, user): (&u32, &User)| Spent {
            user: id,
            waiting: user.waiting.len(),
            deferred: user.deferred,
        };
        of_late.map(spent).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    /// Scans of the user's processes, each of which costs `cost`, in so many ms of a flood of them.
    fn flood(shares: &mut Shares, user: u32, cost: Duration, length: u64, start: Instant) -> u32 {
        let mut scans = 0;
        for at in 0..length {
            let now = start + ms(at);
            for number in 0..5 {
                let pid = u32::try_from(at * 5 + number).unwrap();
                shares.wait(user, pid, now, |waiting| waiting + 100 <= pid);
            }
            while let Some((user, _)) = shares.take(now) {
                shares.charge(user, cost, now);
                scans += 1;
            }
        }
        scans
    }

    #[test]
    fn a_flood_of_one_user_costs_its_share() {
        let start = Instant::now();
        for cost in [ms(1), ms(50)] {
            let mut shares = Shares::default();
            let scans = flood(&mut shares, 1000, cost, 60_000, start);
            let most = AT_ONCE + ms(60_000) / PARTS + cost;
            assert!(cost * scans <= most, "{scans} scans of {cost:?}");
            assert!(cost * scans + cost * 2 > most, "{scans} scans of {cost:?}");
            let [spent] = shares.spent()[..] else { panic!("{:?}", shares.spent()) };
            assert!(spent.user == 1000 && spent.deferred > 1000, "{spent:?}");
            assert!(spent.waiting < SWEEP * 2, "those that have ended do not wait: {spent:?}");
        }
    }

    #[test]
    fn one_user_does_not_delay_another() {
        let start = Instant::now();
        let mut shares = Shares::default();
        flood(&mut shares, 1000, ms(50), 1000, start);
        let now = start + ms(1000);
        shares.wait(1001, 7, now, |_| false);
        shares.wait(1001, 7, now, |_| false);
        assert_eq!(shares.next(), Some(now - AT_ONCE * PARTS));
        assert_eq!((shares.take(now), shares.take(now)), (Some((1001, 7)), None));
        // The id of a process that waited is another user's now.
        let pid = *shares.users[&1000].waiting.back().unwrap();
        shares.wait(1001, pid, now, |_| false);
        assert_eq!(shares.take(now), Some((1001, pid)));
        // The first one is scanned when its share allows.
        let next = shares.next().unwrap();
        assert!(now < next && next < now + ms(50) * PARTS);
        assert!(shares.take(next).is_some_and(|(user, _)| user == 1000));
    }

    #[test]
    fn what_a_late_result_costs_is_the_users_debt_whether_anything_waits_or_not() {
        let (mut shares, now) = (Shares::default(), Instant::now());
        shares.charge(1000, ms(5000), now);
        shares.wait(1000, 7, now, |_| false);
        assert_eq!(shares.take(now), None);
        assert_eq!(shares.next(), Some(now + ms(5000) * PARTS - AT_ONCE * PARTS));
        // At the start of the agent the shares do not matter.
        assert_eq!((shares.take_any(), shares.take_any()), (Some((1000, 7)), None));
    }

    #[test]
    fn users_take_turns() {
        let now = Instant::now();
        let mut shares = Shares::default();
        for (user, pid) in [(1, 10), (1, 11), (1, 12), (2, 20), (3, 30), (2, 21)] {
            shares.wait(user, pid, now, |_| false);
        }
        let order: Vec<u32> = std::iter::from_fn(|| shares.take(now)).map(|(_, pid)| pid).collect();
        assert_eq!(order, [10, 20, 30, 11, 21, 12]);
    }

    #[test]
    fn a_user_whose_scans_did_not_wait_is_forgotten() {
        let now = Instant::now();
        let mut shares = Shares::default();
        for user in 1..100 {
            shares.wait(user, 7, now, |_| false);
            shares.take(now);
            shares.charge(user, ms(1), now);
        }
        assert_eq!(shares.spent(), []);
        shares.charge(1, Duration::ZERO, now + ms(1) * PARTS);
        assert!(shares.users.is_empty());
    }
}
