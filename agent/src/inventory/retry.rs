//! How often something is asked again that may not be known yet.

use std::time::{Duration, Instant};

/// So often, and no more.
const TIMES: u32 = 8;

/// Questions with pauses between them, each twice as long as the one before.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Questions {
    first_pause: Duration,
    times: u32,
    due: Instant,
}

impl Questions {
    /// The first is due now.
    pub(crate) fn new(first_pause: Duration) -> Self {
        Self { first_pause, times: 0, due: Instant::now() }
    }

    /// When the next is due; `None` = it was asked often enough.
    pub(crate) fn due(&self) -> Option<Instant> {
        (self.times < TIMES).then_some(self.due)
    }

    /// One is asked now.
    pub(crate) fn ask(&mut self) {
        self.due = Instant::now() + self.first_pause * 2_u32.pow(self.times);
        self.times += 1;
    }
}
