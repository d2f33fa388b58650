//! Facts about the running kernel, which the loader sets as read-only globals. The verifier sees constants and prunes the
//! branches that they rule out.

#![expect(
    unsafe_code,
    reason = "the loader finds a global by its symbol; elements of a global are read by pointer"
)]

use aya_ebpf::Global;
use kvmeter_common::{Field, IMAGES, image::buckets};

/// 1 where `sched_switch` has the previous task's state as an argument (Linux 5.18), else 0.
#[unsafe(no_mangle)]
pub(crate) static SWITCH_HAS_STATE: Global<u64> = Global::new(0);

/// 1 where tasks have preemption notifiers: kernels built with KVM.
#[unsafe(no_mangle)]
pub(crate) static HAS_PREEMPT_NOTIFIERS: Global<u64> = Global::new(0);

/// 1 where `io_uring_complete` has the result as an argument, else 0.
#[unsafe(no_mangle)]
pub(crate) static URING_HAS_RESULT: Global<u64> = Global::new(0);

/// 1 where a request of io_uring has its descriptor at submission (Linux 5.19), else 0.
#[unsafe(no_mangle)]
pub(crate) static URING_HAS_DESCRIPTOR: Global<u64> = Global::new(0);

/// 1 where iomap has tracepoints for direct I/O (Linux 6.6), else 0.
#[unsafe(no_mangle)]
pub(crate) static HAS_IOMAP_EVENTS: Global<u64> = Global::new(0);

/// 1 where cgroups can limit block I/O, else 0.
#[unsafe(no_mangle)]
pub(crate) static HAS_IO_CGROUPS: Global<u64> = Global::new(0);

/// Flag of open(2) on this architecture.
#[unsafe(no_mangle)]
pub(crate) static O_DIRECT: Global<u64> = Global::new(0);

/// Buckets of the table of image records: the loader sizes it.
#[unsafe(no_mangle)]
pub(crate) static IMAGE_BUCKETS: Global<u64> = Global::new(buckets(IMAGES));

/// Secret of the hash of images: the loader takes it from the record about the maps.
#[unsafe(no_mangle)]
pub(crate) static IMAGE_SECRET: Global<u64> = Global::new(0);

/// Offset of each field in its struct, by the field's number.
#[unsafe(no_mangle)]
static OFFSETS: Global<[u64; Field::COUNT]> = Global::new([0; Field::COUNT]);

/// Numbers of the system calls that read and write, in the order of [`Call`].
#[unsafe(no_mangle)]
static CALLS: Global<[i64; Call::COUNT]> = Global::new([-1; Call::COUNT]);

/// Number of io_submit(2).
#[unsafe(no_mangle)]
pub(crate) static IO_SUBMIT: Global<u64> = Global::new(u64::MAX);

/// The offset of a field in its struct.
#[inline(always)]
pub(crate) fn offset(field: Field) -> u64 {
    let offsets = (&raw const OFFSETS).cast::<u64>();
    // SAFETY: a field's number is below `Field::COUNT`, the length of the array.
    unsafe { offsets.add(usize::from(field.number())).read_volatile() }
}

/// One of read, readv, pread64, preadv, preadv2, and the same five that write.
#[derive(Clone, Copy)]
pub(crate) struct Call(usize);

impl Call {
    const COUNT: usize = 10;

    pub(crate) const fn is_write(self) -> bool {
        self.0 >= 5
    }

    /// Whether the offset in the file is an argument.
    pub(crate) const fn has_position(self) -> bool {
        self.0 % 5 >= 2
    }
}

/// The call with this number; `None`: it neither reads nor writes.
#[inline(always)]
pub(crate) fn call(number: i64) -> Option<Call> {
    let calls = (&raw const CALLS).cast::<i64>();
    for at in 0..Call::COUNT {
        // SAFETY: `at` is below `Call::COUNT`, the length of the array.
        if unsafe { calls.add(at).read_volatile() } == number {
            return Some(Call(at));
        }
    }
    None
}
