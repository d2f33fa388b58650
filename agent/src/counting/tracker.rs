//! What the inventory asks of the counters: to count a VM and its threads.

use std::io;

use thiserror::Error;

use crate::counters::{ImageRecordInfo, ImageSlot, ThreadSlot, VmSlot};

/// A thread that is held, not only named: reading through it fails once the thread is gone, even when
/// another thread has got its id since.
pub trait HeldThread {
    /// Thread id in the initial PID namespace.
    fn tid(&self) -> u32;

    /// What the kernel itself has counted for the thread.
    ///
    /// # Errors
    ///
    /// Any error of reading procfs; `ESRCH` or `ENOENT` when the thread is gone.
    fn schedstat(&self) -> io::Result<Schedstat>;

    /// Whether the thread is runnable (state `R`), and the host's CPU that it ran on last.
    ///
    /// # Errors
    ///
    /// As [`HeldThread::schedstat`].
    fn run_state(&self) -> io::Result<RunState>;
}

/// `/proc/PID/task/TID/schedstat`.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Schedstat {
    /// Time on a CPU in ns, as of the last tick or switch.
    pub run_ns: u64,
    /// Time runnable but without a CPU in ns.
    pub wait_ns: u64,
}

/// Where a thread stands.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct RunState {
    /// It runs or waits for a CPU.
    pub runnable: bool,
    /// Number of the CPU that it runs on, or ran on last.
    pub cpu: u32,
    /// Its scheduling policy is one under which it may never leave that CPU to others.
    pub is_real_time: bool,
}

/// Begins and ends the counting of VMs. Slots stay valid until they are given back.
pub trait Tracker {
    /// Begins to count the process `tgid` as a VM, or gives the slot that it has already (from before a
    /// restart of the agent).
    ///
    /// # Errors
    ///
    /// [`TrackError::TooManyVms`].
    fn track_vm(&self, tgid: u32) -> Result<VmSlot, TrackError>;

    /// Begins to count a thread of that VM, or gives the slot that it has already. `vcpu` is the id that
    /// KVM gives the vCPU that this thread runs; `None` for a thread that is no vCPU or not known to be
    /// one. The slot may hold no value yet: the first event, or the seed from [`HeldThread::schedstat`],
    /// brings it.
    ///
    /// # Errors
    ///
    /// [`TrackError::Gone`] when the thread ended meanwhile, the others when there is no room.
    fn track_thread(
        &self,
        vm: VmSlot,
        thread: &dyn HeldThread,
        vcpu: Option<u32>,
    ) -> Result<ThreadSlot, TrackError>;

    /// To be called after the last [`Tracker::track_thread`] of a scan: what ran all the while without an
    /// event gets its value, and the kernel reports new threads again. A thread that stays unknown has its
    /// value at its next switch.
    fn settle(&self, vm: VmSlot, threads: &[&dyn HeldThread]);

    /// Ends the counting of a VM and frees its slots.
    fn untrack_vm(&self, vm: VmSlot);

    /// Images on which a VM does I/O and that belong to no disk yet.
    fn unassigned_images(&self, vm: VmSlot) -> Vec<ImageRecordInfo>;

    /// From now on the kernel takes no record for a file of this VM without being told to.
    fn limit_images(&self, vm: VmSlot);

    /// Forgets an image with all that was counted on it.
    fn free_image(&self, image: ImageSlot);

    /// The VMs that are counted, with their process ids: after a restart, those to adopt or to end.
    fn tracked_vms(&self) -> Vec<(VmSlot, u32)>;
}

/// Why a thread or VM cannot be counted.
#[derive(Debug, Error)]
pub enum TrackError {
    /// All VM records are taken.
    #[error("All {0} VM records are in use; VMs beyond that are listed but not counted")]
    TooManyVms(usize),
    /// The VM has as many threads as it can, or all thread records are taken.
    #[error("No thread record is free for thread {tid}; it is not counted")]
    TooManyThreads {
        /// The thread.
        tid: u32,
    },
    /// Thread ids have grown past the size of the map, which is set when the probes are loaded.
    #[error(
        "Thread id {tid} is beyond pid_max at the time the probes were loaded; run `kvmeter detach` and start again"
    )]
    BeyondPidMax {
        /// The thread.
        tid: u32,
    },
    /// The thread ended while it was registered.
    #[error("Thread {tid} ended while it was registered")]
    Gone {
        /// The thread.
        tid: u32,
    },
}
