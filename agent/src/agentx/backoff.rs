//! Back-off between attempts to connect.

use std::time::Duration;

/// Delays that double from [`FIRST`](Self::FIRST) up to a limit. Each is shortened by a random part of up to a half, so that
/// the agents of many hosts do not reconnect at the same moment.
#[derive(Debug)]
pub(super) struct Backoff {
    limit: Duration,
    next: Duration,
}

impl Backoff {
    /// The first delay.
    const FIRST: Duration = Duration::from_millis(100);

    pub(super) fn new(limit: Duration) -> Self {
        Self { limit, next: Self::FIRST.min(limit) }
    }

    /// The next delay; `random` is from 0 to 1.
    pub(super) fn delay(&mut self, random: f64) -> Duration {
        let whole = self.next;
        self.next = whole.saturating_mul(2).min(self.limit);
        whole.mul_f64(1.0 - random.clamp(0.0, 1.0) / 2.0)
    }

    /// Begins again with the first delay.
    pub(super) fn reset(&mut self) {
        self.next = Self::FIRST.min(self.limit);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn delays_double_up_to_the_limit_until_a_reset() {
        let mut backoff = Backoff::new(Duration::from_millis(500));
        let delays: Vec<_> = (0..5).map(|_| backoff.delay(0.0).as_millis()).collect();
        assert_eq!(delays, [100, 200, 400, 500, 500]);
        backoff.reset();
        assert_eq!(backoff.delay(1.0).as_millis(), 50);
    }
}
