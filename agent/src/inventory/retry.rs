//! A retry schedule with exponential back-off, for answers that may not be available yet.

use std::time::{Duration, Instant};

/// Attempts in all.
const ATTEMPTS: u32 = 8;

/// Attempts with pauses between them, each twice as long as the one before.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Backoff {
    first_pause: Duration,
    attempts: u32,
    due: Instant,
}

impl Backoff {
    /// The first attempt is due now.
    pub(crate) const fn new(first_pause: Duration, now: Instant) -> Self {
        Self { first_pause, attempts: 0, due: now }
    }

    /// When the next attempt is due; `None` = all have been made.
    pub(crate) fn due(&self) -> Option<Instant> {
        (self.attempts < ATTEMPTS).then_some(self.due)
    }

    /// An attempt is made now.
    pub(crate) fn attempt(&mut self, now: Instant) {
        self.due = now + self.first_pause * 2_u32.pow(self.attempts);
        self.attempts += 1;
    }
}
