//! The VM records of tracked processes, within the shares of their users.

use tracing::{debug, warn};

use super::TrackedProcesses;
use crate::{account::Account, counters::VmSlot, counting::Holder};

impl TrackedProcesses {
    /// Notes that a process is that of a domain of root's libvirt: no user's share limits it. Returns whether that is news; then it is
    /// to be scanned.
    pub(in super::super) fn entrust(&mut self, pid: u32, start_ticks: u64) -> bool {
        let known = self.known.get_mut(&pid).filter(|known| known.vm.start_ticks == start_ticks);
        let is_news = known.is_some_and(|known| !std::mem::replace(&mut known.is_domain, true));
        // The share of its user has room again.
        self.has_freed |= is_news;
        is_news
    }

    /// The processes that went without a record and may find one now. Empty until records have been freed again.
    pub(in super::super) fn take_waiting(&mut self) -> Vec<u32> {
        match &self.tracker {
            Some(tracker) if std::mem::take(&mut self.has_freed) => tracker.waiting(),
            _ => Vec::new(),
        }
    }

    /// Counts a process as a VM, within the share of its account; `None` = it is root's or libvirt's.
    pub(super) fn track_vm(&mut self, pid: u32, account: Option<Account>) -> Option<VmSlot> {
        let tracker = self.tracker.as_ref()?;
        match tracker.track_vm_of(pid, account.map_or(Holder::Trusted, Holder::Account)) {
            Ok(slot) => Some(slot),
            Err(error) => {
                if self.refusals.allows() {
                    warn!(
                        pid,
                        "{error}; `kvmeter status` has the number, and the log one such warning a minute"
                    );
                } else {
                    debug!(pid, "{error}");
                }
                None
            }
        }
    }
}
