//! How much CPU time the scans of each account's processes may cost. Any user can have processes that look like VMs come, go and
//! change without end; each such event asks for a scan. The scans on one account wait once its share is spent, and delay no one else's:
//! of the accounts with a scan to be made, the one that has used least is next. Reads no clock: the time is a parameter.

use std::{
    collections::{BTreeMap, BTreeSet, HashSet, VecDeque},
    time::{Duration, Instant},
};

use crate::{account::Account, sources::Spent};

/// In the long run an account may use a hundredth of one CPU, and all accounts together a quarter.
const PARTS: u32 = 100;
const PARTS_OF_ALL: u32 = 4;

/// CPU time that an account that has caused no scans for long may use at once: dozens of VMs that start together; and all accounts.
const AT_ONCE: Duration = Duration::from_millis(200);
const AT_ONCE_OF_ALL: Duration = Duration::from_secs(2);

/// Waiting processes of an account before those that have ended are looked for.
const SWEEP: usize = 256;

/// Time for which the status shows an account after the last scan that had to wait.
const SHOWN: Duration = Duration::from_secs(600);

/// Interval at which accounts that need not be remembered are looked for.
const FORGET: Duration = Duration::from_secs(10);

/// The shares of all accounts, and the processes that wait for theirs. A turn costs what its own account costs, however many others
/// there are.
#[derive(Debug, Default)]
pub(super) struct Shares {
    accounts: BTreeMap<Account, Use>,
    /// The accounts with waiting processes: when each may have its next scan, and its turn among equals.
    queue: BTreeSet<(Instant, u64, Account)>,
    turns: u64,
    /// When all that all accounts have used is paid for, at the rate of their common share.
    paid: Option<Instant>,
    /// Accounts whose line in the status has changed.
    changed: BTreeSet<Account>,
    /// When accounts are to be forgotten.
    forget: Option<Instant>,
}

/// What one account has used.
#[derive(Debug)]
struct Use {
    /// When all that was used is paid for, at the rate of the share.
    paid: Instant,
    /// Its place in the queue.
    queued: Option<(Instant, u64)>,
    /// Processes to be scanned, the first that came first; the same as a set. It is each account's own: the id of a process that has
    /// ended may be that of another account's.
    waiting: VecDeque<u32>,
    is_waiting: HashSet<u32>,
    /// Number of waiting processes at which those that have ended are looked for.
    sweep: usize,
    /// Scans that had to wait because the share was spent, and when the last one had to.
    deferred: u64,
    deferred_at: Option<Instant>,
}

impl Use {
    fn new(now: Instant) -> Self {
        Self {
            paid: now,
            queued: None,
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
    /// Has a process of this account scanned when it is the account's turn and its share allows. `has_ended` tells whether a process
    /// has, and is called for each one that then does not wait any more.
    pub(super) fn wait(
        &mut self,
        account: Account,
        pid: u32,
        now: Instant,
        mut has_ended: impl FnMut(u32) -> bool,
    ) {
        let its = self.accounts.entry(account).or_insert_with(|| Use::new(now));
        if !its.is_waiting.insert(pid) {
            return;
        }
        if its.admitted() > now {
            its.deferred += 1;
            its.deferred_at = Some(now);
        }
        if its.waiting.len() >= its.sweep {
            let Use { waiting, is_waiting, .. } = &mut *its;
            waiting.retain(|&pid| !has_ended(pid) || !is_waiting.remove(&pid));
            its.sweep = SWEEP.max(its.waiting.len() * 2);
        }
        its.waiting.push_back(pid);
        self.changed.insert(account);
        self.queue(account);
    }

    /// Puts an account into the queue, where what it has used places it, if processes of it wait.
    fn queue(&mut self, account: Account) {
        let Some(its) = self.accounts.get_mut(&account) else { return };
        let admitted = its.admitted();
        let is_placed = its.queued.is_some_and(|(at, _)| at == admitted);
        if is_placed != its.waiting.is_empty() {
            return;
        }
        if let Some((at, turn)) = its.queued.take() {
            self.queue.remove(&(at, turn, account));
        }
        if !its.waiting.is_empty() {
            self.turns += 1;
            its.queued = Some((admitted, self.turns));
            self.queue.insert((admitted, self.turns, account));
        }
    }

    /// When the common share allows the next scan; `None` = nothing has been used.
    fn all_admitted(&self) -> Option<Instant> {
        self.paid?.checked_sub(AT_ONCE_OF_ALL * PARTS_OF_ALL)
    }

    /// The process to be scanned now, and its account; `None` = none.
    pub(super) fn take(&mut self, now: Instant) -> Option<(Account, u32)> {
        self.next().filter(|at| *at <= now)?;
        self.take_any()
    }

    /// The process to be scanned next if the shares do not matter, and its account; `None` = none waits.
    pub(super) fn take_any(&mut self) -> Option<(Account, u32)> {
        let (_, _, account) = self.queue.pop_first()?;
        let its = self.accounts.get_mut(&account)?;
        its.queued = None;
        let pid = its.waiting.pop_front()?;
        its.is_waiting.remove(&pid);
        self.changed.insert(account);
        self.queue(account);
        Some((account, pid))
    }

    /// A scan of a process that [`take`](Self::take) gave has cost that much.
    pub(super) fn charge_scan(&mut self, account: Account, cost: Duration, now: Instant) {
        self.paid = Some(self.paid.map_or(now, |paid| paid.max(now)) + cost * PARTS_OF_ALL);
        self.charge(account, cost, now);
    }

    /// A process of this account has cost that much. The common share does not pay: an account cannot have the others wait for what
    /// it causes without a turn, such as events.
    pub(super) fn charge(&mut self, account: Account, cost: Duration, now: Instant) {
        let its = self.accounts.entry(account).or_insert_with(|| Use::new(now));
        its.paid = its.paid.max(now) + cost * PARTS;
        self.queue(account);
        if *self.forget.get_or_insert(now + FORGET) > now {
            return;
        }
        self.forget = Some(now + FORGET);
        let Self { accounts, changed, .. } = self;
        accounts.retain(|account, its| {
            let is_shown = its.deferred_at.is_some_and(|at| now < at + SHOWN);
            let is_kept = is_shown || its.paid > now || !its.waiting.is_empty();
            if !is_kept {
                changed.insert(*account);
            }
            is_kept
        });
    }

    /// When the next scan is to be made; `None` = no process waits.
    pub(super) fn next(&self) -> Option<Instant> {
        let (at, ..) = self.queue.first()?;
        Some(self.all_admitted().map_or(*at, |all| all.max(*at)))
    }

    /// The accounts that have changed since the last call; `None` = the share of the account was not spent of late.
    pub(super) fn take_changed(&mut self) -> Vec<(Account, Option<Spent>)> {
        let spent = |account: Account| {
            let its = self.accounts.get(&account).filter(|its| its.deferred > 0)?;
            Some(Spent { account, waiting: its.waiting.len(), deferred: its.deferred })
        };
        let changed = std::mem::take(&mut self.changed);
        changed.into_iter().map(|account| (account, spent(account))).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use Account::User;

    const fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    /// Number of scans on the account, at `cost` each, in so many ms of a flood of them.
    fn flood(
        shares: &mut Shares,
        account: Account,
        cost: Duration,
        length: u64,
        start: Instant,
    ) -> u32 {
        let mut scans = 0;
        for at in 0..length {
            let now = start + ms(at);
            for number in 0..5 {
                let pid = u32::try_from(at * 5 + number).unwrap();
                shares.wait(account, pid, now, |waiting| waiting + 100 <= pid);
            }
            while let Some((account, _)) = shares.take(now) {
                shares.charge_scan(account, cost, now);
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
            let scans = flood(&mut shares, User(1000), cost, 60_000, start);
            let most = AT_ONCE + ms(60_000) / PARTS + cost;
            assert!(cost * scans <= most, "{scans} scans of {cost:?}");
            assert!(cost * scans + cost * 2 > most, "{scans} scans of {cost:?}");
            let changed = shares.take_changed();
            let [(User(1000), Some(spent))] = changed[..] else { panic!("{changed:?}") };
            assert!(spent.deferred > 1000, "{spent:?}");
            assert!(spent.waiting < SWEEP * 2, "those that have ended do not wait: {spent:?}");
            assert_eq!(shares.take_changed(), []);
        }
    }

    #[test]
    fn many_users_together_cost_a_share_and_one_more_does_not_wait_for_them() {
        let (start, mut scans, mut latest) = (Instant::now(), 0, Duration::ZERO);
        let mut shares = Shares::default();
        for at in 0..30_000 {
            let now = start + ms(at);
            for user in 0..20 {
                // Of twice as many as there are shares of.
                let user = u32::try_from((at * 20 + user) % 50).unwrap();
                shares.wait(User(user), user, now, |_| false);
            }
            if at % 1000 == 0 {
                shares.wait(
                    Account::Container(7),
                    u32::try_from(at).unwrap() + 1_000_000,
                    now,
                    |_| true,
                );
            }
            while let Some((account, pid)) = shares.take(now) {
                if account == Account::Container(7) {
                    latest = latest.max(now - start - ms(u64::from(pid) - 1_000_000));
                }
                shares.charge_scan(account, ms(1), now);
                scans += 1;
            }
        }
        let most = AT_ONCE_OF_ALL + ms(30_000) / PARTS_OF_ALL + ms(1);
        assert!(ms(scans) <= most && ms(scans) * 2 > most, "{scans} scans");
        assert!(latest <= ms(10), "{latest:?}");
    }

    #[test]
    fn one_user_does_not_delay_another() {
        let start = Instant::now();
        let mut shares = Shares::default();
        flood(&mut shares, User(1000), ms(50), 1000, start);
        let now = start + ms(1000);
        shares.wait(User(1001), 7, now, |_| false);
        shares.wait(User(1001), 7, now, |_| false);
        assert!(shares.next().is_some_and(|next| next <= now));
        assert_eq!((shares.take(now), shares.take(now)), (Some((User(1001), 7)), None));
        // The id of a process that waited is another user's now.
        let pid = *shares.accounts[&User(1000)].waiting.back().unwrap();
        shares.wait(User(1001), pid, now, |_| false);
        assert_eq!(shares.take(now), Some((User(1001), pid)));
        // What the first one's events cost does not have the other wait either.
        shares.charge(User(1000), ms(5000), now);
        shares.wait(User(1001), 8, now, |_| false);
        assert_eq!(shares.take(now), Some((User(1001), 8)));
        // The first one is scanned when its share allows.
        let next = shares.next().unwrap();
        assert!(now < next && next < now + ms(5050) * PARTS);
        assert!(shares.take(next).is_some_and(|(account, _)| account == User(1000)));
    }

    #[test]
    fn what_a_late_result_costs_is_the_users_debt_whether_anything_waits_or_not() {
        let (mut shares, now) = (Shares::default(), Instant::now());
        shares.charge(User(1000), ms(5000), now);
        shares.wait(User(1000), 7, now, |_| false);
        assert_eq!(shares.take(now), None);
        assert_eq!(shares.next(), Some(now + ms(5000) * PARTS - AT_ONCE * PARTS));
        // At the start of the agent the shares do not matter.
        assert_eq!((shares.take_any(), shares.take_any()), (Some((User(1000), 7)), None));
    }

    #[test]
    fn users_take_turns() {
        let now = Instant::now();
        let mut shares = Shares::default();
        for (user, pid) in [(1, 10), (1, 11), (1, 12), (2, 20), (3, 30), (2, 21)] {
            shares.wait(User(user), pid, now, |_| false);
        }
        let order: Vec<u32> = std::iter::from_fn(|| shares.take(now)).map(|(_, pid)| pid).collect();
        assert_eq!(order, [10, 20, 30, 11, 21, 12]);
    }

    #[test]
    fn a_user_whose_scans_did_not_wait_is_forgotten() {
        let now = Instant::now();
        let mut shares = Shares::default();
        for user in 1..100 {
            shares.wait(User(user), 7, now, |_| false);
            shares.take(now);
            shares.charge(User(user), ms(1), now);
        }
        assert!(shares.take_changed().iter().all(|(_, spent)| spent.is_none()));
        shares.charge(User(1), Duration::ZERO, now + FORGET);
        assert!(shares.accounts.is_empty());
    }
}
