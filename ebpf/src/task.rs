//! Reads from the kernel's `task_struct`.

use crate::kernel;

/// A `struct task_struct *` that a `tp_btf` program was given.
#[derive(Clone, Copy)]
pub(crate) struct Task(*const u8);

/// Loads a field by its mark. In assembly, for the compiler must not touch the offset; and every time anew.
macro_rules! load {
    ($size:literal, $from:expr, $field:ident) => {{
        let from = $from;
        let value: u64;
        // SAFETY: the agent replaces the mark by the offset of a field of this size. The verifier knows the
        // pointer's type, checks that, and turns the load into one that survives a fault.
        unsafe {
            core::arch::asm!(
                concat!("{value} = *(", $size, " *)({from} + {mark})"),
                value = out(reg) value,
                from = in(reg) from,
                mark = const kvmeter_common::Field::$field.placeholder(),
                options(nostack, readonly),
            );
        }
        value
    }};
}
pub(crate) use load;

impl Task {
    /// # Safety
    ///
    /// `pointer` is a task pointer out of the program's context.
    #[inline(always)]
    pub(crate) unsafe fn new(pointer: *const u8) -> Self {
        Self(pointer)
    }

    #[inline(always)]
    pub(crate) fn pid(self) -> u32 {
        load!("u32", self.0, TaskPid) as u32
    }

    #[inline(always)]
    pub(crate) fn tgid(self) -> u32 {
        load!("u32", self.0, TaskTgid) as u32
    }

    /// The first eight octets of the name.
    #[inline(always)]
    pub(crate) fn comm(self) -> u64 {
        load!("u64", self.0, TaskComm)
    }

    #[inline(always)]
    pub(crate) fn state(self) -> u32 {
        load!("u32", self.0, TaskState) as u32
    }

    #[inline(always)]
    pub(crate) fn start_time(self) -> u64 {
        load!("u64", self.0, TaskStartTime)
    }

    #[inline(always)]
    pub(crate) fn sum_exec_runtime(self) -> u64 {
        load!("u64", self.0, TaskSumExecRuntime)
    }

    #[inline(always)]
    pub(crate) fn run_delay(self) -> u64 {
        load!("u64", self.0, TaskRunDelay)
    }

    /// Whether the thread is inside `KVM_RUN`: only KVM registers preemption notifiers.
    #[inline(always)]
    pub(crate) fn is_in_kvm_run(self) -> bool {
        kernel::HAS_PREEMPT_NOTIFIERS.load() != 0 && load!("u64", self.0, TaskPreemptNotifiers) != 0
    }

    /// Whether an exiting task was ended by a signal that does not ask for an end, as SIGHUP, SIGINT and SIGTERM do
    /// (signal(7); the numbers are those of every architecture).
    #[inline(always)]
    pub(crate) fn was_killed(self) -> bool {
        !matches!(load!("u32", self.0, TaskExitCode) as u32 & 0x7f, 0 | 1 | 2 | 15)
    }

    /// Threads of the process that have not begun to exit.
    #[inline(always)]
    pub(crate) fn live_threads(self) -> i32 {
        load!("u32", self.signal(), SignalLive) as i32
    }

    /// CPU time in ns of the process's threads that are gone.
    #[inline(always)]
    pub(crate) fn sum_sched_runtime(self) -> u64 {
        load!("u64", self.signal(), SignalSumSchedRuntime)
    }

    #[inline(always)]
    fn signal(self) -> u64 {
        load!("u64", self.0, TaskSignal)
    }
}
