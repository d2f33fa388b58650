//! The results of late reads: one is worked off in each turn of the thread, so that a user with many of them keeps no event
//! waiting.

use std::collections::BTreeSet;

use super::{ScanOutcome, TrackedProcesses};

impl TrackedProcesses {
    /// Takes in the late reads that have returned. Returns the processes to be scanned now.
    pub(in super::super) fn take_returned(&mut self) -> BTreeSet<u32> {
        let (returned, to_scan) = self.readers.take_returned();
        self.returned.extend(returned);
        to_scan
    }

    /// Whether the result of a late read is to be worked off.
    pub(in super::super) fn has_returned(&self) -> bool {
        !self.returned.is_empty()
    }

    /// Works off the result of the late read that returned first: the process, what it is, and whether it is to be scanned now.
    pub(in super::super) fn next_returned(&mut self) -> Option<(u32, Option<ScanOutcome>, bool)> {
        let returned = self.returned.pop_front()?;
        let pid = returned.pid;
        let known = self.known.get(&pid);
        if known.is_some_and(|known| known.ending) {
            // Its end has been reported.
            return Some((pid, None, false));
        }
        if returned.is_present && (returned.kept.slot.is_none() || known.is_some()) {
            let outcome = self.take_scan(pid, returned.result, returned.kept);
            return Some((pid, Some(outcome), returned.again));
        }
        // It has ended since the read began; its id may be another process's.
        Some((pid, None, true))
    }

    /// Whether a late read of this process has returned and is not worked off. Then the process is read again after that.
    pub(super) fn is_returned(&mut self, pid: u32) -> bool {
        let returned = self.returned.iter_mut().find(|returned| returned.pid == pid);
        returned.map(|returned| returned.again = true).is_some()
    }
}
