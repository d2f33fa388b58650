//! Reads of the kernel's `task_struct`.

#![expect(unsafe_code, reason = "helpers are declared unsafe")]

use aya_ebpf::helpers::bpf_get_current_task_btf;

use crate::{kernel, memory::load};

/// A `struct task_struct *` among a program's arguments: the verifier knows its type.
#[derive(Clone, Copy)]
pub(crate) struct Task(u64);

impl Task {
    /// The running task.
    #[inline(always)]
    pub(crate) fn current() -> Self {
        // SAFETY: the helper has no arguments and no precondition.
        Self(unsafe { bpf_get_current_task_btf() } as u64)
    }

    /// The task that a program was given as an argument.
    #[inline(always)]
    pub(crate) const fn new(argument: u64) -> Self {
        Self(argument)
    }

    #[inline(always)]
    pub(crate) fn pid(self) -> u32 {
        load!(u32, self.0, TaskPid)
    }

    #[inline(always)]
    pub(crate) fn tgid(self) -> u32 {
        load!(u32, self.0, TaskTgid)
    }

    /// Whether it is the first thread of its process: the thread ids of the process and of its first thread are the same.
    #[inline(always)]
    pub(crate) fn is_first_of_process(self) -> bool {
        self.pid() == self.tgid()
    }

    /// The first eight bytes of the name.
    #[inline(always)]
    pub(crate) fn comm(self) -> u64 {
        load!(u64, self.0, TaskComm)
    }

    /// Whether it is a thread of the kernel (`PF_KTHREAD` of the kernel's sched.h).
    #[inline(always)]
    pub(crate) fn is_of_kernel(self) -> bool {
        load!(u32, self.0, TaskFlags) & 0x0020_0000 != 0
    }

    /// Id of the cgroup to which the kernel accounts its block I/O; 0: there is none.
    #[inline(always)]
    pub(crate) fn io_cgroup(self) -> u64 {
        if kernel::HAS_IO_CGROUPS.load() == 0 {
            return 0;
        }
        let state = load!(u64, load!(u64, self.0, TaskCgroups), CgroupsIo);
        load!(u64, load!(u64, load!(u64, state, StateCgroup), CgroupNode), NodeId)
    }

    #[inline(always)]
    pub(crate) fn state(self) -> u32 {
        load!(u32, self.0, TaskState)
    }

    #[inline(always)]
    pub(crate) fn start_time(self) -> u64 {
        load!(u64, self.0, TaskStartTime)
    }

    #[inline(always)]
    pub(crate) fn sum_exec_runtime(self) -> u64 {
        load!(u64, self.0, TaskSumExecRuntime)
    }

    #[inline(always)]
    pub(crate) fn run_delay(self) -> u64 {
        load!(u64, self.0, TaskRunDelay)
    }

    /// Whether the thread is inside `KVM_RUN`: only KVM registers preemption notifiers.
    #[inline(always)]
    pub(crate) fn is_in_kvm_run(self) -> bool {
        kernel::HAS_PREEMPT_NOTIFIERS.load() != 0 && load!(u64, self.0, TaskPreemptNotifiers) != 0
    }

    /// Whether the process of an exiting task was ended by a signal other than SIGHUP, SIGINT and SIGTERM, which ask a process
    /// to end (signal(7); the numbers are the same on every architecture).
    #[inline(always)]
    pub(crate) fn was_killed(self) -> bool {
        // The process's own status first: a thread of the kernel in the process, such as KVM's `kvm-nx-lpage-recovery`, exits
        // with 0 whatever ended the process, and may be the last.
        let of_process = load!(u32, self.signal(), SignalGroupExitCode);
        let code = if of_process == 0 { load!(u32, self.0, TaskExitCode) } else { of_process };
        !matches!(code & 0x7f, 0 | 1 | 2 | 15)
    }

    /// Threads of the process that have not begun to exit.
    #[inline(always)]
    pub(crate) fn live_threads(self) -> i32 {
        load!(u32, self.signal(), SignalLive).cast_signed()
    }

    /// CPU time in ns of the process's exited threads.
    #[inline(always)]
    pub(crate) fn sum_sched_runtime(self) -> u64 {
        load!(u64, self.signal(), SignalSumSchedRuntime)
    }

    /// The `struct fdtable *` with its open files.
    #[inline(always)]
    pub(crate) fn table_of_files(self) -> u64 {
        load!(u64, load!(u64, self.0, TaskFiles), FilesTable)
    }

    #[inline(always)]
    fn signal(self) -> u64 {
        load!(u64, self.0, TaskSignal)
    }
}
