//! The records of threads and VMs, and one record about all maps.

use crate::{Place, VM_BLOCKS, Vcpu, word};

/// CPU usage of a VM's thread, in one cache line. The kernel writes it at each switch of the thread, with plain stores,
/// because the scheduler serialises the events of one task; the agent reads it at any time.
///
/// The record of a vCPU's thread that has ended keeps the vCPU's counts until the VM ends ([`Owner::KEPT`]). Those of the vCPU's later
/// threads are added when they end.
#[repr(C, align(64))]
#[derive(Clone, Copy, Debug)]
pub struct ThreadRecord {
    /// CPU time, a [`crate::word`]: the kernel's `task->se.sum_exec_runtime`.
    pub run: u64,
    /// Time spent runnable but waiting for a CPU, a [`crate::word`]: the kernel's
    /// `task->sched_info.run_delay`.
    pub wait: u64,
    /// Number of times the thread got a CPU.
    pub switches_in: u64,
    /// Number of times the thread lost its CPU while it was runnable.
    pub preemptions: u64,
    /// An [`Owner`]; 0 = free. Both sides claim a free record by compare-and-swap, and in the same way take the record from its
    /// thread before they reset and free it.
    pub owner: u64,
    /// `task->start_time` (ns, `CLOCK_MONOTONIC`) of the counted task. It distinguishes the task from a later one with the same
    /// thread id. 0 = take it from the task of the next event.
    pub start: u64,
    /// Largest CPU time in ns that a reader has returned, so that no later value is smaller. Of a vCPU with earlier threads it is in
    /// the record that keeps their counts.
    pub high_water: u64,
    /// The vCPU that the thread runs; valid with [`Owner::VCPU`] or [`Owner::KEPT`] only.
    pub vcpu: Vcpu,
    /// Where the thread of a vCPU is.
    pub place: Place,
}

impl ThreadRecord {
    /// A free record that has seen no event.
    pub const EMPTY: Self = Self {
        run: word::UNKNOWN,
        wait: word::UNKNOWN,
        switches_in: 0,
        preemptions: 0,
        owner: 0,
        start: 0,
        high_water: 0,
        vcpu: Vcpu(0),
        place: Place(Place::UNKNOWN),
    };
}

/// What the latest timer on a CPU has seen of the task on it.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct LastTimer {
    /// `task->start_time`.
    pub start: u64,
    /// The kernel's count of the task's CPU time in ns: `task->se.sum_exec_runtime`.
    pub sum: u64,
    /// The kernel brought `sum` up to date at this time (`CLOCK_MONOTONIC`, ns) or later; 0 = not known.
    pub since: u64,
    /// When the timer ran.
    pub at: u64,
}

/// CPU usage of a VM's exited threads, what the VM has of the tables, and the blocks of thread records that it has.
#[repr(C, align(64))]
#[derive(Clone, Copy, Debug)]
pub struct VmRecord {
    /// CPU time in ns of the exited threads: the kernel's `signal->sum_sched_runtime`.
    pub exited: u64,
    /// Hand-overs from a thread record to `exited` that have begun …
    pub handovers_begun: u64,
    /// … and those that are done. While the two differ, a sum over the VM may count a thread twice.
    pub handovers_done: u64,
    /// Threads between the beginning of their exit and their last switch.
    pub dying: u64,
    /// Process id (thread group id) of the VM, with [`VmRecord::UNTRACKED`] while its records are freed; 0 = the record is free.
    pub tgid: u64,
    /// Bits of [`VmRecord::PENDING_THREADS`] and the following constants.
    pub flags: u64,
    /// Largest total in ns that a reader has returned.
    pub high_water: u64,
    /// Threads that have been without a record, one after the other. Both sides add to it.
    pub unrecorded: u64,
    /// What `unrecorded` was when every thread had a record. While it is less, the records lack a thread, and the kernel's
    /// own sum over the process is the VM's CPU time.
    pub recorded: u64,
    /// Requests in flight. Wraps below 0 by those of an earlier VM with this record.
    pub in_flight: u64,
    /// Image records that the kernel has claimed for the VM.
    pub new_images: u64,
    /// The number of `new_images` that the kernel may reach; the agent raises it.
    pub new_images_limit: u64,
    /// Id of the cgroup to which the kernel accounts the VM's requests on block devices; 0 = not known yet.
    pub io_cgroup: u64,
    /// Number of the account of the VM's user: 1 to the number of VM records less one. 0: the VM is root's or libvirt's, whose
    /// requests in flight no share limits.
    pub account: u64,
    /// Nothing of this VM: requests in flight of the account with the number of this record. In the record without a VM, 0, those
    /// of all accounts.
    pub in_flight_of_account: u64,
    /// Number of valid `blocks`. Written after the blocks.
    pub block_count: u64,
    /// The VM's blocks of thread records: block `b` is the records `b * BLOCK_LEN .. (b + 1) * BLOCK_LEN`.
    pub blocks: [u16; VM_BLOCKS],
}

impl VmRecord {
    /// An [`crate::EventKind::ThreadsChanged`] has been sent and not been handled.
    pub const PENDING_THREADS: u64 = 1;
    /// The VM has so many files open that the kernel must not create image records for it; the agent does.
    pub const NO_IMAGES: u64 = 2;
    /// An [`crate::EventKind::VcpuMoved`] has been sent and not been handled.
    pub const PENDING_VCPUS: u64 = 4;
    /// An [`crate::EventKind::ImageDelayed`] has been sent.
    pub const DELAYED: u64 = 8;
    /// The VM has called io_submit(2) while `sys_enter` was attached. Set by the programs, for as long as the record is the VM's.
    pub const SUBMITS: u64 = 16;
    /// The VM's process was ended by a signal other than those that ask a process to end: what [`crate::EventKind::VmKilled`] says,
    /// also where the ring had no room for it.
    pub const KILLED: u64 = 32;

    /// A bit of `tgid`: the agent frees the records of the VM, whose process may go on. None of its threads gets a record: a program
    /// that has given a thread one looks at `tgid` again.
    pub const UNTRACKED: u64 = 1 << 32;
}

/// The owner of a thread record in one word: thread id in bits 0 to 31, VM slot in bits 32 to 47, flags above.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[repr(transparent)]
pub struct Owner(pub u64);

impl Owner {
    /// The thread is a vCPU.
    pub const VCPU: u64 = 1 << 48;
    /// The thread has begun to exit.
    pub const DYING: u64 = 1 << 49;
    /// The thread was seen inside `KVM_RUN`, and [`crate::EventKind::SeenInKvm`] was sent.
    pub const SEEN_IN_KVM: u64 = 1 << 50;
    /// The first thread of a process has ended while others live. It keeps its record: its thread id is the process's, and
    /// the kernel's sum over exited threads does not have its time.
    pub const ENDED: u64 = 1 << 51;
    /// The thread of a vCPU is to report when it moves. The agent sets the flag, after it has cleared
    /// [`VmRecord::PENDING_VCPUS`]; the kernel's side clears it with the first move.
    pub const WATCHED: u64 = 1 << 54;
    /// The vCPU halts outside `KVM_RUN`: asleep there is only a thread that was stopped.
    pub const HALTS_OUTSIDE: u64 = 1 << 55;
    /// The record is no thread's: it keeps the counts of a vCPU's threads that have ended, until the VM ends. Its times are at rest.
    pub const KEPT: u64 = 1 << 56;

    /// The agent frees the record: it is no thread's, and not free yet. The word has no thread id.
    pub const FREED_BY_AGENT: Self = Self(1 << 52);
    /// A program frees the record: it is no thread's, and not free yet. The word has no thread id.
    pub const FREED_BY_PROGRAM: Self = Self(1 << 53);

    /// The owner word of a thread of the VM in `vm_slot`.
    #[inline(always)]
    #[must_use]
    pub const fn new(tid: u32, vm_slot: u16) -> Self {
        Self(tid as u64 | ((vm_slot as u64) << 32))
    }

    /// The owner word of a record that keeps the counts of a vCPU of the VM in `vm_slot`.
    #[inline(always)]
    #[must_use]
    pub const fn kept(vm_slot: u16) -> Self {
        Self(Self::new(0, vm_slot).0 | Self::KEPT)
    }

    /// Thread id in the initial PID namespace.
    #[inline(always)]
    #[must_use]
    #[expect(clippy::cast_possible_truncation, reason = "the thread id is the low 32 bits")]
    pub const fn tid(self) -> u32 {
        self.0 as u32
    }

    /// Slot of the VM's record.
    #[inline(always)]
    #[must_use]
    #[expect(clippy::cast_possible_truncation, reason = "the slot is bits 32 to 47")]
    pub const fn vm_slot(self) -> u16 {
        (self.0 >> 32) as u16
    }

    /// Whether the record is a thread's. If not, it is free or being freed, or keeps counts.
    #[inline(always)]
    #[must_use]
    pub const fn is_of_thread(self) -> bool {
        self.tid() != 0
    }

    /// Whether the record keeps the counts of a vCPU's threads that have ended.
    #[inline(always)]
    #[must_use]
    pub const fn is_kept(self) -> bool {
        self.has(Self::KEPT)
    }

    /// Whether all of `flags` are set.
    #[inline(always)]
    #[must_use]
    pub const fn has(self, flags: u64) -> bool {
        self.0 & flags == flags
    }

    /// Whether the thread is between the beginning of its exit and its last switch: [`VmRecord::dying`] counts it.
    #[inline(always)]
    #[must_use]
    pub const fn is_dying(self) -> bool {
        self.has(Self::DYING) && !self.has(Self::ENDED)
    }
}

/// The record about the set of maps: whether an agent may adopt it, and what could not be counted in it.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct Meta {
    /// [`crate::LAYOUT`] of the agent that made the maps, written last; 0 = the set is incomplete, or counting was ended.
    pub layout: u64,
    /// Fingerprint of the programs and kernel offsets behind the pinned links.
    pub programs: u64,
    /// Events that found the ring full.
    pub events_lost: u64,
    /// Threads for which no record was free.
    pub unrecorded: u64,
    /// Requests that were not counted: no image record was free, or too many requests were in flight.
    pub uncounted: u64,
    /// Secret of the hash of images, random: a user who knew in which records a VM's images can be could take those.
    pub secret: u64,
}

const _: () = {
    assert!(size_of::<ThreadRecord>() == 64 && align_of::<ThreadRecord>() == 64);
    assert!(size_of::<VmRecord>() == 1024 && align_of::<VmRecord>() == 64);
    assert!(core::mem::offset_of!(VmRecord, blocks) == 128);
    assert!(size_of::<Meta>() == 48);
    assert!(crate::THREADS <= 1 << 16 && crate::VMS <= crate::MAX_VMS);
};

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_owner_gives_back_its_parts() {
        let owner = Owner(Owner::new(4_194_303, 4095).0 | Owner::VCPU);
        assert_eq!((owner.tid(), owner.vm_slot()), (4_194_303, 4095));
        assert!(owner.has(Owner::VCPU) && !owner.has(Owner::DYING) && owner.is_of_thread());
        for owner in [Owner(0), Owner::FREED_BY_AGENT, Owner::FREED_BY_PROGRAM] {
            assert!(!owner.is_of_thread() && owner.vm_slot() == 0 && !owner.is_dying());
        }
        let kept = Owner::kept(4095);
        assert!(
            kept.is_kept() && !kept.is_of_thread() && kept.vm_slot() == 4095 && !owner.is_kept()
        );
        for (flags, is_dying) in [
            (0, false),
            (Owner::DYING, true),
            (Owner::ENDED, false),
            (Owner::DYING | Owner::ENDED, false),
        ] {
            assert_eq!(Owner(owner.0 | flags).is_dying(), is_dying);
        }
    }
}
