//! What the agent knows of the running kernel when it loads the programs, frozen: to the verifier these are
//! constants, and what they rule out is no code.

use aya_ebpf::Global;
use kvmeter_common::Field;

/// 1 where `sched_switch` tells the state of the task that leaves the CPU (Linux 5.18), else 0.
#[unsafe(no_mangle)]
pub(crate) static SWITCH_HAS_STATE: Global<u64> = Global::new(0);

/// 1 where tasks have preemption notifiers: in kernels that are built with KVM.
#[unsafe(no_mangle)]
pub(crate) static HAS_PREEMPT_NOTIFIERS: Global<u64> = Global::new(0);

/// 1 where `io_uring_complete` has the result among its arguments, else 0.
#[unsafe(no_mangle)]
pub(crate) static URING_HAS_RESULT: Global<u64> = Global::new(0);

/// 1 where iomap tells of direct I/O (Linux 6.6), else 0.
#[unsafe(no_mangle)]
pub(crate) static HAS_IOMAP_EVENTS: Global<u64> = Global::new(0);

/// The flag of open(2) on this architecture.
#[unsafe(no_mangle)]
pub(crate) static O_DIRECT: Global<u64> = Global::new(0);

/// Where each field lies, by its number.
#[unsafe(no_mangle)]
static OFFSETS: Global<[u64; Field::ALL.len()]> = Global::new([0; Field::ALL.len()]);

/// The numbers of the system calls that read and write, in the order of [`Call`].
#[unsafe(no_mangle)]
static CALLS: Global<[i64; 10]> = Global::new([-1; 10]);

/// Where a field lies in its struct.
#[inline(always)]
pub(crate) fn offset(field: Field) -> u64 {
    let offsets = (&raw const OFFSETS).cast::<u64>();
    // SAFETY: a field's number is below their count.
    unsafe { offsets.add(usize::from(field.number())).read_volatile() }
}

/// One of read, readv, pread64, preadv, preadv2, and the same that write.
#[derive(Clone, Copy)]
pub(crate) struct Call(usize);

impl Call {
    pub(crate) fn is_write(self) -> bool {
        self.0 >= 5
    }

    /// Whether the caller says where in the file.
    pub(crate) fn has_position(self) -> bool {
        self.0 % 5 >= 2
    }
}

/// The call of this number, if it reads or writes.
#[inline(always)]
pub(crate) fn call(number: i64) -> Option<Call> {
    let calls = (&raw const CALLS).cast::<i64>();
    for at in 0..10 {
        // SAFETY: `at` is below their count.
        if unsafe { calls.add(at).read_volatile() } == number {
            return Some(Call(at));
        }
    }
    None
}
