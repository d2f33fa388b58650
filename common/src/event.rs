//! What the kernel tells the agent: only what changes the inventory, never a measurement.

/// One entry of the event ring.
#[repr(C)]
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Event {
    /// An [`EventKind`].
    pub kind: u32,
    /// Thread group id of the process.
    pub tgid: u32,
    /// Thread id.
    pub tid: u32,
    /// Slot of the VM, 0 where the process is not (yet) a VM.
    pub vm_slot: u32,
}

/// What happened.
#[repr(u32)]
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum EventKind {
    /// A process whose name begins as QEMU's began to run a program, or was forked.
    Exec = 1,
    /// The last thread of a VM's process has begun to exit.
    VmExit = 2,
    /// A VM's process has started a thread; not repeated until the agent clears
    /// [`crate::VmRecord::PENDING_THREADS`].
    ThreadsChanged = 3,
    /// A thread that is not known as a vCPU was inside `KVM_RUN` when it left its CPU.
    SeenInKvm = 4,
    /// A vCPU's thread has begun to exit while its VM lives on.
    VcpuExit = 5,
    /// As [`VmExit`](Self::VmExit), by a signal that is no request to end.
    VmKilled = 6,
    /// A VM does I/O on an image for which the kernel has taken a record.
    ImageClaimed = 7,
}

impl EventKind {
    /// The kind with the number `kind`, or nothing for a number that this version does not know.
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
            _ => return None,
        })
    }
}

const _: () = assert!(size_of::<Event>() == 16);
