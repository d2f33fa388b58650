//! The counters that a reader can read.

use super::{DiskIo, ImageSlot, Requests};

/// Slot of a thread's record: 1 to 65,535.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct ThreadSlot(pub u16);

/// Slot of a VM's record: 1 to 4,095.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct VmSlot(pub u16);

/// The record of one thread.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct ThreadReading {
    /// Thread id.
    pub tid: u32,
    /// Time in ns that it was runnable and waited for a CPU; `None` = no event yet.
    pub wait_ns: Option<u64>,
    /// Number of times it was switched in.
    pub switches_in: u64,
    /// Number of times it was switched out while runnable.
    pub preemptions: u64,
}

/// Current values of the counters. An implementation reads memory or makes a system call that cannot block, and never
/// allocates.
pub trait Readings: Send + Sync {
    /// CPU time of one vCPU in ns; never decreases. `None` = its probe is not live.
    fn vcpu_time_ns(&self, vcpu: ThreadSlot) -> Option<u64>;

    /// CPU time of all threads of the VM's process in ns, including exited ones; never decreases. `None` = its probe is
    /// not live.
    fn vm_time_ns(&self, vm: VmSlot) -> Option<u64>;

    /// What else the record of a vCPU's thread says, also after the counting has ended. `None` = the record is free.
    fn thread(&self, vcpu: ThreadSlot) -> Option<ThreadReading>;

    /// Whether the scheduler may run this vCPU on the host's CPU number `cpu`. `None` = not known.
    fn may_run_on(&self, vcpu: ThreadSlot, cpu: u32) -> Option<bool>;

    /// The sum of the I/O of a disk's images. `None` = no image is counted.
    fn disk_io(&self, images: &[ImageSlot]) -> Option<DiskIo>;

    /// Errors and latencies of the reads and of the writes of a disk's images. `None` = no image is counted.
    fn disk_requests(&self, images: &[ImageSlot]) -> Option<[Requests; 2]>;

    /// Time since the host booted in ns (`CLOCK_BOOTTIME`).
    fn since_boot_ns(&self) -> u64;
}
