//! How often the log has a warning about what may go on and on.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use tracing::warn;

use crate::{
    account::Account,
    rate::{KeyedRates, Rate},
};

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

/// Lines of one user: 50 at once, then one a second.
const EACH: Rate = Rate { interval: Duration::from_secs(1), burst: 50 };

/// Lines of all users together: 200 at once, then five a second. journald takes 10,000 in 30 s of a service by default.
const ALL: Rate = Rate { interval: Duration::from_millis(200), burst: 200 };

/// Limits the lines about VMs of users, who may start and end as many as they like. VMs of root and libvirt have no limit.
#[derive(Debug)]
pub(super) struct LineLimit {
    rates: KeyedRates<Account>,
    warnings: WarningLimit,
    left_out: Arc<AtomicU64>,
}

impl LineLimit {
    /// What is left out is added to `left_out`.
    pub(super) fn new(left_out: Arc<AtomicU64>) -> Self {
        Self { rates: KeyedRates::new(EACH, ALL), warnings: WarningLimit::default(), left_out }
    }

    /// Whether the log may have a line about a VM on this account; `None` = it is root's or libvirt's. Counts what is left out, and
    /// says so in one line a minute.
    pub(super) fn allows(&mut self, account: Option<Account>) -> bool {
        let Some(account) = account else { return true };
        if self.rates.allows(account, Instant::now()) {
            return true;
        }
        let left_out = self.left_out.fetch_add(1, Relaxed) + 1;
        if self.warnings.allows() {
            warn!(
                %account,
                left_out,
                "Lines about VMs of a user are left out, because there are too many; `kvmeter status` counts them"
            );
        }
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_user_who_floods_the_log_silences_no_other() {
        let left_out = Arc::default();
        let mut lines = LineLimit::new(Arc::clone(&left_out));
        let written = (0..100_000).filter(|_| lines.allows(Some(Account::User(7)))).count();
        // The loop may take some seconds.
        assert!((50..60).contains(&written), "{written}");
        assert!((0..1000).all(|_| lines.allows(None)));
        assert!(lines.allows(Some(Account::User(8))));
        let written = u64::try_from(written).unwrap();
        assert_eq!(left_out.load(Relaxed), 100_000 - written);
    }
}
