//! The counters that a reader can read.

use rustix::thread::CpuSet;

use super::{DiskIo, ImageSlot, Requests};

/// The record of a thread, and which thread's it is: the kernel frees a record when its thread exits, and gives it to the next
/// thread of the VM, before any view tells.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct ThreadSlot {
    /// Number of the record: 1 to 65,535.
    pub record: u16,
    /// Thread id in the initial PID namespace.
    pub tid: u32,
    /// `task->start_time` in ns; 0 = the thread had no event yet.
    pub start: u64,
}

impl ThreadSlot {
    /// A record of no thread, for counters that are not the kernel's.
    #[must_use]
    pub const fn without_thread(record: u16) -> Self {
        Self { record, tid: 0, start: 0 }
    }
}

/// Slot of a VM's record: 1 to 4,095.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct VmSlot(pub u16);

/// The record of a vCPU's thread. Numbers and times are those of the vCPU's earlier threads, too.
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

/// A set of the host's CPUs (sched_getaffinity(2)).
#[derive(Clone, Copy, Debug)]
pub struct CpuMask(CpuSet);

impl CpuMask {
    /// The CPUs of a set of the kernel's.
    #[must_use]
    pub const fn new(cpus: CpuSet) -> Self {
        Self(cpus)
    }

    /// The CPUs with these numbers; those from 1,024 on are left out.
    #[must_use]
    pub fn of_numbers(numbers: impl IntoIterator<Item = u32>) -> Self {
        let mut cpus = CpuSet::new();
        let numbers = numbers.into_iter().filter_map(|cpu| usize::try_from(cpu).ok());
        numbers.filter(|cpu| *cpu < CpuSet::MAX_CPU).for_each(|cpu| cpus.set(cpu));
        Self(cpus)
    }

    /// Whether the CPU with this number is in the set. `None` = the set cannot tell: it ends with CPU 1,023.
    #[must_use]
    pub fn has(&self, cpu: u32) -> Option<bool> {
        let cpu = usize::try_from(cpu).ok()?;
        (cpu < CpuSet::MAX_CPU).then(|| self.0.is_set(cpu))
    }
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

    /// The host's CPUs on which the scheduler may run this vCPU. `None` = not known.
    fn cpu_mask(&self, vcpu: ThreadSlot) -> Option<CpuMask>;

    /// The sum of the I/O of a disk's images. `None` = no image is counted.
    fn disk_io(&self, images: &[ImageSlot]) -> Option<DiskIo>;

    /// Errors and latencies of the reads and of the writes of a disk's images. `None` = no image is counted.
    fn disk_requests(&self, images: &[ImageSlot]) -> Option<[Requests; 2]>;

    /// Time since the host booted in ns (`CLOCK_BOOTTIME`).
    fn since_boot_ns(&self) -> u64;
}
