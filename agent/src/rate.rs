//! How often something may happen: a bounded rate, with room for a burst, also for each of many. Reads no clock.

use std::{
    collections::HashMap,
    hash::Hash,
    time::{Duration, Instant},
};

/// Keys without a debt are forgotten when there are this many.
const KEYS: usize = 1024;

/// A rate.
#[derive(Clone, Copy, Debug)]
pub struct Rate {
    /// Time for which one event uses the rate.
    pub interval: Duration,
    /// Events that may come at once after a rest.
    pub burst: u32,
}

impl Rate {
    /// Whether one more event fits, where the events before use the rate until `busy_until`.
    pub(crate) fn has_room(&self, busy_until: Instant, now: Instant) -> bool {
        busy_until.saturating_duration_since(now) + self.interval <= self.interval * self.burst
    }

    /// One more event has come.
    pub(crate) fn use_once(&self, busy_until: &mut Instant, now: Instant) {
        *busy_until = (*busy_until).max(now) + self.interval;
    }
}

/// A rate for each key, such as a user, and one for all of them together.
#[derive(Debug)]
pub struct KeyedRates<K> {
    each: Rate,
    all: Rate,
    all_until: Option<Instant>,
    until: HashMap<K, Instant>,
}

impl<K: Copy + Eq + Hash> KeyedRates<K> {
    /// Nothing has happened yet.
    #[must_use]
    pub fn new(each: Rate, all: Rate) -> Self {
        Self { each, all, all_until: None, until: HashMap::new() }
    }

    /// Whether an event because of this key may happen now. It counts as happened then.
    pub fn allows(&mut self, key: K, now: Instant) -> bool {
        let of_key = self.until.get(&key).copied().unwrap_or(now);
        if !self.has_room(now) || !self.each.has_room(of_key, now) {
            return false;
        }
        if self.until.len() >= KEYS {
            self.until.retain(|_, until| *until > now);
        }
        self.each.use_once(self.until.entry(key).or_insert(now), now);
        self.all.use_once(self.all_until.get_or_insert(now), now);
        true
    }

    /// Whether an event because of a key that has not used its own rate may happen now.
    #[must_use]
    pub fn has_room(&self, now: Instant) -> bool {
        self.all_until.is_none_or(|until| self.all.has_room(until, now))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const EACH: Rate = Rate { interval: Duration::from_millis(100), burst: 10 };
    const ALL: Rate = Rate { interval: Duration::from_millis(50), burst: 20 };

    #[test]
    fn a_burst_and_then_the_rate() {
        let start = Instant::now();
        let mut rates = KeyedRates::new(EACH, ALL);
        let mut allowed = |user, at: u64, tries: usize| {
            let now = start + Duration::from_millis(at);
            (0..tries).filter(|_| rates.allows(user, now)).count()
        };
        assert_eq!(allowed(1, 0, 1000), 10);
        assert_eq!(allowed(1, 99, 1000), 0);
        assert_eq!(allowed(1, 100, 1000), 1);
        assert_eq!(allowed(1, 1100, 1000), 10, "after a second of rest");
        assert_eq!((0..10).map(|s| allowed(1, 2000 + 1000 * s, 50)).sum::<usize>(), 99);
    }

    #[test]
    fn many_users_together_have_one_rate_and_are_forgotten() {
        let start = Instant::now();
        let mut rates = KeyedRates::new(EACH, ALL);
        let allowed = (0..100_000).filter(|user| rates.allows(*user, start)).count();
        assert_eq!(allowed, 20);
        let mut later = 0;
        for user in 0..100_000_u32 {
            later +=
                usize::from(rates.allows(user, start + Duration::from_millis(u64::from(user))));
        }
        assert!((1999..=2021).contains(&later), "100 s at 20/s: {later}");
        assert!(rates.until.len() <= KEYS, "{}", rates.until.len());
    }
}
