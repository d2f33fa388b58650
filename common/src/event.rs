//! Events that the programs send to the agent: changes of the inventory, never measurements.

/// One entry of the event ring.
#[repr(C)]
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Event {
    /// Number of an [`EventKind`].
    pub kind: u32,
    /// Thread group id of the process.
    pub tgid: u32,
    /// Thread id; for [`EventKind::ImageClaimed`] the slot of the record.
    pub tid: u32,
    /// Slot of the VM; 0: the process is not registered as a VM.
    pub vm_slot: u32,
}

/// What happened.
#[repr(u32)]
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum EventKind {
    /// A process whose name begins like QEMU's has called execve(2) or was forked.
    Exec = 1,
    /// The last thread of a VM's process has begun to exit.
    VmExit = 2,
    /// A VM's process has started a thread. Not sent again until the agent clears
    /// [`crate::VmRecord::PENDING_THREADS`].
    ThreadsChanged = 3,
    /// A thread that is not known as a vCPU was inside `KVM_RUN` when it left its CPU.
    SeenInKvm = 4,
    /// A vCPU's thread has begun to exit while other threads of its VM live.
    VcpuExit = 5,
    /// As [`VmExit`](Self::VmExit), by a signal other than those that ask a process to end.
    VmKilled = 6,
    /// The kernel has claimed a record for an image on which a VM does I/O.
    ImageClaimed = 7,
    /// A vCPU's thread has gone to sleep outside `KVM_RUN`, has got a CPU after such a sleep, or was seen for the first time, inside
    /// `KVM_RUN`. Not sent again until the agent clears [`crate::VmRecord::PENDING_VCPUS`].
    VcpuMoved = 8,
    /// A limit of a cgroup has delayed a request of a VM on a block device. Sent once for a VM.
    ImageDelayed = 9,
    /// A VM has called io_submit(2) while `sys_enter` was attached. Sent once for a VM.
    Submitted = 10,
}

impl EventKind {
    /// The kind with this number; `None`: this version does not know it.
    #[must_use]
    pub const fn from_u32(kind: u32) -> Option<Self> {
        Some(match kind {
            1 => Self::Exec,
            2 => Self::VmExit,
            3 => Self::ThreadsChanged,
            4 => Self::SeenInKvm,
            5 => Self::VcpuExit,
            6 => Self::VmKilled,
            7 => Self::ImageClaimed,
            8 => Self::VcpuMoved,
            9 => Self::ImageDelayed,
            10 => Self::Submitted,
            _ => return None,
        })
    }
}

const _: () = assert!(size_of::<Event>() == 16);
