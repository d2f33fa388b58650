//! Slow values: what only the hypervisor knows of a disk. Query threads refresh them in the background, requests read
//! them at any time, and no view is made again for them. Each carries the time at which it was taken.

use std::collections::BTreeMap;

use dashmap::DashMap;

use super::{DiskIo, DiskSize, disk::DiskTotals, records::since_boot_ns};

/// A disk, by vmIndex and vmStorageIndex.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub struct DiskKey {
    /// vmIndex.
    pub vm: u32,
    /// vmStorageIndex.
    pub storage: u32,
}

/// A value, and when it was taken.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Taken<T> {
    /// The value.
    pub value: T,
    /// When it was taken, in ns since boot.
    pub at_ns: u64,
}

/// The slow values of all VMs. A reader holds the lock of one of the map's parts for the length of a copy; a writer for
/// the length of a store. Nothing is called meanwhile.
#[derive(Debug, Default)]
pub struct SlowValues {
    /// By vmIndex, and by vmStorageIndex: to forget a VM costs what that VM has.
    vms: DashMap<u32, BTreeMap<u32, Slow>>,
}

#[derive(Clone, Copy, Debug, Default)]
struct Slow {
    size: Option<Taken<DiskSize>>,
    /// Of which run of the VM the counts are.
    run: u32,
    io: Option<Taken<DiskTotals>>,
}

impl SlowValues {
    /// The sizes that the hypervisor reported last.
    #[must_use]
    pub fn disk_size(&self, disk: DiskKey) -> Option<Taken<DiskSize>> {
        self.slow(disk)?.size
    }

    /// What the hypervisor has counted in this run of the VM. Each number is never less than before in the same run.
    #[must_use]
    pub fn disk_io(&self, disk: DiskKey, run: u32) -> Option<Taken<DiskIo>> {
        let slow = self.slow(disk)?;
        let taken = slow.io.filter(|_| slow.run == run)?;
        Some(Taken { value: taken.value.sums(), at_ns: taken.at_ns })
    }

    /// Takes in the sizes of a disk.
    pub fn set_disk_size(&self, disk: DiskKey, size: Option<DiskSize>) {
        let size = size.map(|value| Taken { value, at_ns: since_boot_ns() });
        self.change(disk, |slow| slow.size = size);
    }

    /// Takes in what the hypervisor counts of a disk in this run of the VM. What it counted in an earlier run is of no
    /// use any more.
    pub fn observe_disk_io(&self, disk: DiskKey, run: u32, io: DiskIo) {
        self.change(disk, |slow| {
            let mut totals = match slow.io {
                Some(taken) if slow.run == run => taken.value,
                _ => DiskTotals::default(),
            };
            totals.observe(io);
            slow.run = run;
            slow.io = Some(Taken { value: totals, at_ns: since_boot_ns() });
        });
    }

    /// Forgets all disks of a VM.
    pub fn forget(&self, vm: u32) {
        self.vms.remove(&vm);
    }

    /// Changes what is known of a disk, of which nothing need be known yet.
    fn change(&self, disk: DiskKey, change: impl FnOnce(&mut Slow)) {
        change(self.vms.entry(disk.vm).or_default().entry(disk.storage).or_default());
    }

    fn slow(&self, disk: DiskKey) -> Option<Slow> {
        self.vms.get(&disk.vm)?.get(&disk.storage).copied()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DISK: DiskKey = DiskKey { vm: 1, storage: 2 };

    #[test]
    fn counts_of_another_run_are_not_served() {
        let slow = SlowValues::default();
        let io = |reads| DiskIo { reads, ..DiskIo::default() };
        let reads = |run| slow.disk_io(DISK, run).map(|taken| taken.value.reads);
        slow.observe_disk_io(DISK, 0, io(100));
        slow.observe_disk_io(DISK, 0, io(120));
        assert_eq!((reads(0), reads(1)), (Some(120), None));
        slow.observe_disk_io(DISK, 1, io(150));
        assert_eq!((reads(0), reads(1)), (None, Some(150)), "the next QEMU counts from 0");
        slow.set_disk_size(DISK, Some(DiskSize { defined: Some(7), allocated: None }));
        assert!(slow.disk_size(DISK).unwrap().at_ns > 0);
        let other = DiskKey { vm: 2, storage: 2 };
        slow.set_disk_size(other, Some(DiskSize::default()));
        slow.forget(1);
        assert_eq!((reads(1), slow.disk_size(DISK)), (None, None));
        assert!(slow.disk_size(other).is_some());
    }
}
