//! The processes that were there before the agent. What is not scanned when the agent starts to serve is neither new nor has it
//! ended.

use std::collections::BTreeSet;

use super::{Retired, TrackedProcesses};

/// Those that have not been scanned.
#[derive(Debug, Default)]
pub(super) struct Unscanned {
    pids: BTreeSet<u32>,
    /// When they were listed, in ns since boot.
    listed_ns: u64,
    /// It was reported that all have been scanned.
    is_reported: bool,
}

impl Unscanned {
    /// A process has been scanned. Returns whether it was there before the agent; it started then, in ns since boot.
    pub(super) fn settle(&mut self, pid: u32, started_ns: Option<u64>) -> bool {
        self.pids.remove(&pid) && started_ns.is_some_and(|started| started <= self.listed_ns)
    }

    /// Whether all have been scanned; true once.
    fn take_is_empty(&mut self) -> bool {
        self.pids.is_empty() && !std::mem::replace(&mut self.is_reported, true)
    }
}

impl TrackedProcesses {
    /// Notes the processes that are there when the agent starts.
    pub(in super::super) fn note_listed(&mut self, pids: &[u32], listed_ns: u64) {
        let pids = pids.iter().copied().collect();
        self.unscanned = Unscanned { pids, listed_ns, is_reported: false };
    }

    /// Whether the processes that were there at the start have been scanned since the last call.
    pub(in super::super) fn take_all_scanned(&mut self) -> bool {
        self.unscanned.take_is_empty()
    }

    /// Retires the VMs that an earlier agent counted and that have ended. Of those that have not been scanned it is not known.
    pub(in super::super) fn retire_unknown(&mut self) {
        let Some(tracker) = &self.tracker else { return };
        for (slot, pid) in tracker.tracked_vms() {
            if self.readers.is_unread(pid) || self.unscanned.pids.contains(&pid) {
                self.unclear.insert(pid, slot);
            } else if !self.known.contains_key(&pid) {
                self.retired.push(Retired { fence: self.fences + 1, pid, slot });
            }
        }
    }

    /// A process has ended before it was scanned, or is no VM: so has the VM that an earlier agent counted in it.
    pub(in super::super) fn retire_unclear(&mut self, pid: u32) {
        self.unscanned.pids.remove(&pid);
        if let Some(slot) = self.unclear.remove(&pid) {
            self.retired.push(Retired { fence: self.fences + 1, pid, slot });
        }
    }

    /// The processes of which it is not known whether they still run a VM that an earlier agent counted.
    pub(in super::super) fn unclear_pids(&self) -> impl Iterator<Item = u32> {
        self.unclear.keys().copied()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_that_was_there_is_old_once() {
        let mut unscanned =
            Unscanned { pids: [7, 8, 9].into(), listed_ns: 100, is_reported: false };
        assert!(unscanned.settle(7, Some(99)));
        assert!(!unscanned.settle(7, Some(99)), "it has become a VM since");
        assert!(!unscanned.take_is_empty());
        assert!(!unscanned.settle(8, Some(101)), "another process with the id");
        assert!(!unscanned.settle(9, None) && !unscanned.settle(9, Some(1)), "it was no VM");
        assert!(!unscanned.settle(10, Some(1)));
        assert!(unscanned.take_is_empty() && !unscanned.take_is_empty(), "it is reported once");
    }
}
