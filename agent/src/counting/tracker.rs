//! The interface through which sources register VMs and their threads for counting.

use std::io;

use thiserror::Error;

use super::occupancy::Occupancy;
use crate::{
    account::Account,
    counters::{Holder, ImageRecordInfo, ImageSlot, ThreadSlot, VcpuPlace, VmSlot},
};

/// A thread held by a descriptor: reading fails once the thread has ended, even if its id was reused.
pub trait HeldThread {
    /// Thread id in the initial PID namespace.
    fn tid(&self) -> u32;

    /// The kernel's own counters of the thread.
    ///
    /// # Errors
    ///
    /// Any error of reading procfs; `ESRCH` or `ENOENT` if the thread has ended.
    fn schedstat(&self) -> io::Result<Schedstat>;

    /// Whether the thread is runnable (state `R`), or has ended. Does not block.
    ///
    /// # Errors
    ///
    /// As [`HeldThread::schedstat`].
    fn run_state(&self) -> io::Result<RunState>;

    /// Finds the host's CPU that the thread ran on last, on whatever thread it is called; `None` = the thread has ended, or its
    /// scheduling policy lets it keep that CPU for ever. The call of the result may block: the kernel's only file with the CPU waits on
    /// some kernels while the process is in execve(2), which itself may wait for a file server that hangs.
    fn place(&self) -> Box<dyn FnOnce() -> Option<u32> + Send>;
}

/// `/proc/PID/task/TID/schedstat`.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Schedstat {
    /// Time on a CPU in ns, as of the last tick or switch.
    pub run_ns: u64,
    /// Time in ns that it was runnable and waited for a CPU.
    pub wait_ns: u64,
}

/// State of a thread in the scheduler.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct RunState {
    /// Whether it runs or waits for a CPU.
    pub runnable: bool,
    /// Whether it has ended: the first thread of a process stays until the last one ends (state `Z`).
    pub has_ended: bool,
}

/// Starts and stops the counting of VMs. A slot stays valid until it is freed.
pub trait Tracker {
    /// Starts to count the process `tgid` as a VM, or returns the slot that it already has, for instance from before a
    /// restart of the agent.
    ///
    /// # Errors
    ///
    /// [`TrackError::TooManyVms`].
    fn track_vm(&self, tgid: u32) -> Result<VmSlot, TrackError> {
        self.track_vm_of(tgid, Holder::Trusted)
    }

    /// The same, within the share of whom the VM is.
    ///
    /// # Errors
    ///
    /// [`TrackError::TooManyVms`], [`TrackError::AccountShare`], [`TrackError::UsersShare`]. The process goes without until
    /// [`Tracker::waiting`] names it, or [`Tracker::forget`] is called.
    fn track_vm_of(&self, tgid: u32, holder: Holder) -> Result<VmSlot, TrackError>;

    /// Forgets a process that went without a record: it has ended.
    fn forget(&self, tgid: u32);

    /// The processes that went without a record of the VM or of a thread, and that may find one now.
    fn waiting(&self) -> Vec<u32>;

    /// How full the tables are.
    fn occupancy(&self) -> Occupancy;

    /// Starts to count a thread of that VM, or returns the slot that it already has. `vcpu` is the VMM's number of the vCPU that
    /// the thread runs; `None` = no vCPU, or not known to be one. The slot may have no value yet: it comes with the first
    /// event, or with the seed from [`HeldThread::schedstat`].
    ///
    /// # Errors
    ///
    /// [`TrackError::Gone`] if the thread ended meanwhile, [`TrackError::Unread`] if it cannot be read, the others if there is no
    /// room.
    fn track_thread(
        &self,
        vm: VmSlot,
        thread: &dyn HeldThread,
        vcpu: Option<u32>,
    ) -> Result<ThreadSlot, TrackError>;

    /// The number of threads of a VM that have been without a record. To be read before the threads are listed.
    fn unrecorded(&self, vm: VmSlot) -> u64;

    /// Completes a scan, after the last [`Tracker::track_thread`]: seeds threads that ran without an event since, and the
    /// CPU time of exited threads. `unrecorded` is what [`Tracker::unrecorded`] was before the last listing, if `threads`
    /// are all threads of the process; until then the VM's CPU time is the kernel's own sum over the process.
    ///
    /// Returns whether every thread is known. One that is not may be running, or wait for its CPU: its value comes with its
    /// next switch, or with a later scan.
    fn settle(&self, vm: VmSlot, threads: &[&dyn HeldThread], unrecorded: Option<u64>) -> bool;

    /// Where the thread of a vCPU is; `None` = the record is another thread's now.
    fn vcpu_place(&self, vcpu: ThreadSlot) -> Option<VcpuPlace>;

    /// Notes where the thread of a vCPU was found, one of [`Place`](kvmeter_common::Place), if the programs have not seen it yet.
    fn note_place(&self, vcpu: ThreadSlot, place: u32);

    /// Has the programs report again that a vCPU of this VM has moved. `halts_outside`: its vCPUs halt outside `KVM_RUN`, so that
    /// only those count as asleep there that are stopped.
    fn watch_vcpus(&self, vm: VmSlot, halts_outside: bool);

    /// Whether the programs have seen the VM's process end by a signal other than those that ask a process to end.
    fn was_killed(&self, vm: VmSlot) -> bool;

    /// Stops the counting of a VM and frees its slots.
    fn untrack_vm(&self, vm: VmSlot);

    /// The open image records of a VM that are not assigned to a disk.
    fn unassigned_images(&self, vm: VmSlot) -> Vec<ImageRecordInfo>;

    /// Sets how many image records the kernel may claim for this VM by itself until the next scan, within the shares.
    /// `unassigned` is the number of those that are not assigned to a disk. Returns whether the VM has as many of them as it may.
    fn allow_images(&self, vm: VmSlot, unassigned: usize) -> bool;

    /// Stops the kernel from creating image records for this VM by itself.
    fn limit_images(&self, vm: VmSlot);

    /// Frees an image record with its counts.
    fn free_image(&self, image: ImageSlot);

    /// The VMs that are counted, with their process ids. After a restart, these are to be adopted or untracked.
    fn tracked_vms(&self) -> Vec<(VmSlot, u32)>;
}

/// Why a thread or VM cannot be counted.
#[derive(Debug, Error)]
pub enum TrackError {
    /// All VM records are in use.
    #[error("All {0} VM records are in use; VMs beyond that are listed but not counted")]
    TooManyVms(usize),
    /// The share of a user is in use.
    #[error(
        "No more than {most} VM records are for {account}, a share; its VMs beyond that are listed but not counted"
    )]
    AccountShare {
        /// The account.
        account: Account,
        /// The share.
        most: usize,
    },
    /// The share of all users is in use.
    #[error(
        "Users other than root and libvirt have {most} VM records, their share; more of their VMs are listed but not counted"
    )]
    UsersShare {
        /// The share.
        most: usize,
    },
    /// The VM has the maximum number of threads, or all thread records are in use.
    #[error(
        "No thread record is free for thread {tid}; the CPU time of its VM is the kernel's own sum, which is late by a tick or, on CPUs without one, a second at most"
    )]
    TooManyThreads {
        /// The thread.
        tid: u32,
    },
    /// The thread id is beyond the size of the map, which was set when the agent was started.
    #[error("Thread id {tid} is beyond pid_max at the start of the agent; restart the agent")]
    BeyondPidMax {
        /// The thread.
        tid: u32,
    },
    /// An earlier thread of the same vCPU has not ended yet. The thread is counted; its vCPU is known when the earlier one has ended.
    #[error("An earlier thread of the vCPU that thread {tid} runs has not ended yet")]
    NotAlone {
        /// The thread.
        tid: u32,
    },
    /// The thread, or an earlier one with its id, has begun to exit and is counted until its last switch. What is to be known of a
    /// later thread is known then.
    #[error("Thread {tid} has begun to exit")]
    Leaving {
        /// The thread.
        tid: u32,
    },
    /// The thread ended while it was registered.
    #[error("Thread {tid} ended while it was registered")]
    Gone {
        /// The thread.
        tid: u32,
    },
    /// The thread cannot be read. It may have ended.
    #[error("Thread {tid} cannot be read: {source}")]
    Unread {
        /// The thread.
        tid: u32,
        /// Reason.
        source: io::Error,
    },
}

impl TrackError {
    /// What an error of reading a thread says.
    pub(super) fn of(tid: u32, source: io::Error) -> Self {
        const NO_SUCH_PROCESS: i32 = rustix::io::Errno::SRCH.raw_os_error();
        let is_gone = source.kind() == io::ErrorKind::NotFound
            || source.raw_os_error() == Some(NO_SUCH_PROCESS);
        if is_gone { Self::Gone { tid } } else { Self::Unread { tid, source } }
    }
}
