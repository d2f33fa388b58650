//! How long to wait before the next attempt to connect.

use std::time::Duration;

/// Waits that double from [`FIRST`](Self::FIRST) up to a limit, each cut by a random part of up to a half: so
/// that the agents of many hosts do not all come back in the same moment, and none waits longer than the limit.
#[derive(Debug)]
pub(super) struct Backoff {
    limit: Duration,
    next: Duration,
}

impl Backoff {
    const FIRST: Duration = Duration::from_millis(100);

    pub(super) fn new(limit: Duration) -> Self {
        Self { limit, next: Self::FIRST.min(limit) }
    }

    /// The next wait; `random` is from 0 up to 1.
    pub(super) fn wait(&mut self, random: f64) -> Duration {
        let whole = self.next;
        self.next = whole.saturating_mul(2).min(self.limit);
        whole.mul_f64(1.0 - random.clamp(0.0, 1.0) / 2.0)
    }

    /// All went well: the next wait is short again.
    pub(super) fn reset(&mut self) {
        self.next = Self::FIRST.min(self.limit);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_double_up_to_the_limit_and_begin_anew() {
        let mut backoff = Backoff::new(Duration::from_millis(500));
        let waits: Vec<_> = (0..5).map(|_| backoff.wait(0.0).as_millis()).collect();
        assert_eq!(waits, [100, 200, 400, 500, 500]);
        backoff.reset();
        assert_eq!(backoff.wait(1.0).as_millis(), 50);
    }
}
