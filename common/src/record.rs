//! The records: one a thread, one a VM, one for the whole.

use crate::VM_BLOCKS;

/// What a thread of a VM has used: one cache line, written by the kernel at each switch of that thread
/// (the scheduler serialises the events of one task, so plain stores do) and read by the agent.
#[repr(C, align(64))]
#[derive(Clone, Copy, Debug, Default)]
pub struct ThreadRecord {
    /// CPU time, a [`crate::word`]: the kernel's `task->se.sum_exec_runtime`.
    pub run: u64,
    /// Time spent runnable but waiting for a CPU, a [`crate::word`]: the kernel's
    /// `task->sched_info.run_delay`.
    pub wait: u64,
    /// How often the thread got a CPU.
    pub switches_in: u64,
    /// How often it lost its CPU while it still wanted to run.
    pub preemptions: u64,
    /// Whose record this is, an [`Owner`]; 0 = free. Taken by compare-and-swap, by either side.
    pub owner: u64,
    /// `task->start_time` (ns, `CLOCK_MONOTONIC`) of the task that is counted, which no other task that
    /// later gets the same thread id shares. 0 = take it from the task of the next event.
    pub start: u64,
    /// The largest CPU time in ns that a reader was given: what is given out never goes back.
    pub high_water: u64,
    /// The vCPU's id as KVM numbers it; meaningless without [`Owner::VCPU`].
    pub vcpu: u32,
    /// Zero.
    pub reserved: u32,
}

/// What a VM's process has used besides its live threads, and which thread records are the VM's.
#[repr(C, align(64))]
#[derive(Clone, Copy, Debug)]
pub struct VmRecord {
    /// CPU time in ns of the threads that are gone: the kernel's `signal->sum_sched_runtime`.
    pub exited: u64,
    /// How many hand-overs from a thread record to `exited` were begun …
    pub handovers_begun: u64,
    /// … and how many of them are done. While the two differ, a sum over the VM may count a thread twice.
    pub handovers_done: u64,
    /// Threads between the beginning of their exit and their last switch.
    pub dying: u64,
    /// Process id (thread group id) of the VM; 0 = the record is free.
    pub tgid: u32,
    /// Events that were sent and not yet answered: bits of [`VmRecord::PENDING_THREADS`] and others.
    pub flags: u32,
    /// The largest total in ns that a reader was given.
    pub high_water: u64,
    /// Threads that found no free record; their time counts only once they are gone.
    pub unrecorded: u64,
    /// How many of `blocks` are valid. Written after them.
    pub block_count: u64,
    /// The blocks of thread records that are the VM's: block `b` is the records
    /// `b * BLOCK_LEN .. (b + 1) * BLOCK_LEN`.
    pub blocks: [u16; VM_BLOCKS],
}

impl VmRecord {
    /// An [`crate::EventKind::ThreadsChanged`] is on its way.
    pub const PENDING_THREADS: u32 = 1;
    /// No event: it uses so many files that none is taken for an image without the agent's word.
    pub const NO_IMAGES: u32 = 2;
}

impl Default for VmRecord {
    fn default() -> Self {
        Self {
            exited: 0,
            handovers_begun: 0,
            handovers_done: 0,
            dying: 0,
            tgid: 0,
            flags: 0,
            high_water: 0,
            unrecorded: 0,
            block_count: 0,
            blocks: [0; VM_BLOCKS],
        }
    }
}

/// The owner of a thread record in one word: thread id, VM slot, and what is known of the thread.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[repr(transparent)]
pub struct Owner(pub u64);

impl Owner {
    /// The thread is a vCPU.
    pub const VCPU: u64 = 1 << 48;
    /// The thread has begun to exit.
    pub const DYING: u64 = 1 << 49;
    /// The thread was seen inside `KVM_RUN` and this was reported.
    pub const SEEN_IN_KVM: u64 = 1 << 50;

    /// The owner word of a thread of the VM in `vm_slot`.
    #[inline(always)]
    #[must_use]
    pub const fn new(tid: u32, vm_slot: u16) -> Self {
        Self(tid as u64 | ((vm_slot as u64) << 32))
    }

    /// Thread id in the initial PID namespace.
    #[inline(always)]
    #[must_use]
    #[expect(clippy::cast_possible_truncation, reason = "the low 32 bits are what is asked for")]
    pub const fn tid(self) -> u32 {
        self.0 as u32
    }

    /// Slot of the VM.
    #[inline(always)]
    #[must_use]
    #[expect(clippy::cast_possible_truncation, reason = "bits 32 to 47 are what is asked for")]
    pub const fn vm_slot(self) -> u16 {
        (self.0 >> 32) as u16
    }

    /// Whether all of `flags` are set.
    #[inline(always)]
    #[must_use]
    pub const fn has(self, flags: u64) -> bool {
        self.0 & flags == flags
    }
}

/// One record for the whole set of maps: whether a later agent may adopt it, and what went wrong in it.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct Meta {
    /// [`crate::LAYOUT`] of the agent that made the maps, written last; 0 = the set is not complete.
    pub layout: u64,
    /// Fingerprint of the programs and the kernel offsets that the pinned links run with.
    pub programs: u64,
    /// Events that found the ring full.
    pub events_lost: u64,
    /// Threads that found no free record.
    pub unrecorded: u64,
    /// Requests of images that found no free record, or no room among those under way.
    pub uncounted: u64,
}

const _: () = {
    assert!(size_of::<ThreadRecord>() == 64 && align_of::<ThreadRecord>() == 64);
    assert!(size_of::<VmRecord>() == 256 && align_of::<VmRecord>() == 64);
    assert!(core::mem::offset_of!(VmRecord, blocks) == 64);
    assert!(size_of::<Meta>() == 40);
    assert!(crate::THREADS <= 1 << 16 && crate::VMS <= 1 << 15);
};

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_owner_gives_back_what_it_was_made_of() {
        let owner = Owner(Owner::new(4_194_303, 4095).0 | Owner::VCPU);
        assert_eq!((owner.tid(), owner.vm_slot()), (4_194_303, 4095));
        assert!(owner.has(Owner::VCPU) && !owner.has(Owner::DYING));
    }
}
