//! Reads from the kernel's `task_struct`.

use aya_ebpf::Global;

use crate::offsets;

/// A `struct task_struct *` that a `tp_btf` program was given.
#[derive(Clone, Copy)]
pub(crate) struct Task(*const u8);

impl Task {
    /// # Safety
    ///
    /// `pointer` is a task pointer out of the program's context: the verifier knows its type and turns
    /// every load from it into one that survives a fault.
    #[inline(always)]
    pub(crate) unsafe fn new(pointer: *const u8) -> Self {
        Self(pointer)
    }

    #[inline(always)]
    fn load<T: Copy>(self, offset: &Global<u64>) -> T {
        // SAFETY: the offset is that of a field of this size in the running kernel's BTF, which the
        // verifier checks again.
        unsafe { self.0.add(offset.load() as usize).cast::<T>().read_volatile() }
    }

    #[inline(always)]
    pub(crate) fn pid(self) -> u32 {
        self.load(&offsets::TASK_PID)
    }

    #[inline(always)]
    pub(crate) fn tgid(self) -> u32 {
        self.load(&offsets::TASK_TGID)
    }

    /// The first eight octets of the name.
    #[inline(always)]
    pub(crate) fn comm(self) -> u64 {
        self.load(&offsets::TASK_COMM)
    }

    #[inline(always)]
    pub(crate) fn state(self) -> u32 {
        self.load(&offsets::TASK_STATE)
    }

    #[inline(always)]
    pub(crate) fn start_time(self) -> u64 {
        self.load(&offsets::TASK_START_TIME)
    }

    #[inline(always)]
    pub(crate) fn sum_exec_runtime(self) -> u64 {
        self.load(&offsets::TASK_SUM_EXEC_RUNTIME)
    }

    #[inline(always)]
    pub(crate) fn run_delay(self) -> u64 {
        self.load(&offsets::TASK_RUN_DELAY)
    }

    /// Whether the thread is inside `KVM_RUN`: only KVM registers preemption notifiers.
    #[inline(always)]
    pub(crate) fn is_in_kvm_run(self) -> bool {
        offsets::TASK_PREEMPT_NOTIFIERS.load() != u64::MAX
            && self.load::<u64>(&offsets::TASK_PREEMPT_NOTIFIERS) != 0
    }

    #[inline(always)]
    fn signal<T: Copy>(self, offset: &Global<u64>) -> T {
        let signal = self.load::<*const u8>(&offsets::TASK_SIGNAL);
        // SAFETY: `signal` is a typed pointer that the verifier follows, the offset a field of it.
        unsafe { signal.add(offset.load() as usize).cast::<T>().read_volatile() }
    }

    /// Threads of the process that have not begun to exit.
    #[inline(always)]
    pub(crate) fn live_threads(self) -> i32 {
        self.signal(&offsets::SIGNAL_LIVE)
    }

    /// CPU time in ns of the process's threads that are gone.
    #[inline(always)]
    pub(crate) fn sum_sched_runtime(self) -> u64 {
        self.signal(&offsets::SIGNAL_SUM_SCHED_RUNTIME)
    }
}
