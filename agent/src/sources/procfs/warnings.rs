//! How often the log has a warning about what may go on and on.

use std::time::{Duration, Instant};

/// Shortest interval between two warnings.
const QUIET: Duration = Duration::from_secs(60);

/// Limits a kind of warning to one a minute.
#[derive(Debug, Default)]
pub(super) struct WarningLimit {
    last: Option<Instant>,
}

impl WarningLimit {
    /// Whether the log may have the warning now. It counts as written then.
    pub(super) fn allows(&mut self) -> bool {
        let is_quiet = self.last.is_some_and(|last| last.elapsed() < QUIET);
        if !is_quiet {
            self.last = Some(Instant::now());
        }
        !is_quiet
    }
}
