//! The maps as memory.

#![expect(unsafe_code, reason = "memory that the kernel writes is reached through a mapping")]

use std::{
    io,
    marker::PhantomData,
    mem::offset_of,
    ops::Deref,
    os::fd::{AsFd, AsRawFd as _},
    sync::atomic::{AtomicU16, AtomicU32, AtomicU64},
};

use kvmeter_common::{
    ImageRecord, Meta, SLOTS_PER_ELEMENT, ThreadRecord, VM_BLOCKS, VmRecord,
    image::{Direction, LATENCY_BUCKETS},
};
use memmap2::{MmapOptions, MmapRaw};

/// A type of which any octets are a value and which is only ever read and written atomically, so that it
/// can lie in memory that somebody else writes.
///
/// # Safety
///
/// The type is `repr(C)`, consists of atomics only and has no padding.
pub(super) unsafe trait Cells {}

/// [`ThreadRecord`] in shared memory.
#[derive(Debug)]
#[repr(C, align(64))]
pub(super) struct ThreadCells {
    pub(super) run: AtomicU64,
    pub(super) wait: AtomicU64,
    pub(super) switches_in: AtomicU64,
    pub(super) preemptions: AtomicU64,
    pub(super) owner: AtomicU64,
    pub(super) start: AtomicU64,
    pub(super) given: AtomicU64,
    pub(super) vcpu: AtomicU32,
    pub(super) reserved: AtomicU32,
}

/// [`VmRecord`] in shared memory.
#[derive(Debug)]
#[repr(C, align(64))]
pub(super) struct VmCells {
    pub(super) exited: AtomicU64,
    pub(super) handovers_begun: AtomicU64,
    pub(super) handovers_done: AtomicU64,
    pub(super) dying: AtomicU64,
    pub(super) tgid: AtomicU32,
    pub(super) pending: AtomicU32,
    pub(super) given: AtomicU64,
    pub(super) unrecorded: AtomicU64,
    pub(super) block_count: AtomicU64,
    pub(super) blocks: [AtomicU16; VM_BLOCKS],
}

/// [`Meta`] in shared memory.
#[derive(Debug)]
#[repr(C)]
pub(super) struct MetaCells {
    pub(super) layout: AtomicU64,
    pub(super) programs: AtomicU64,
    pub(super) events_lost: AtomicU64,
    pub(super) unrecorded: AtomicU64,
    pub(super) uncounted: AtomicU64,
}

/// [`Direction`] in shared memory.
#[derive(Debug)]
#[repr(C)]
pub(super) struct DirectionCells {
    pub(super) requests: AtomicU64,
    pub(super) octets: AtomicU64,
    pub(super) latency_ns: AtomicU64,
    pub(super) errors: AtomicU64,
    pub(super) buckets: [AtomicU64; LATENCY_BUCKETS],
}

/// [`ImageRecord`] in shared memory.
#[derive(Debug)]
#[repr(C, align(64))]
pub(super) struct ImageCells {
    pub(super) owner: AtomicU64,
    pub(super) file: AtomicU64,
    pub(super) route: AtomicU32,
    pub(super) storage: AtomicU32,
    pub(super) reserved: [AtomicU64; 5],
    pub(super) read: DirectionCells,
    pub(super) write: DirectionCells,
}

/// One element of `TID_SLOT`.
pub(super) type SlotCells = [AtomicU16; SLOTS_PER_ELEMENT];

/// Each cell lies where its field lies.
macro_rules! assert_same_layout {
    ($cells:ty, $record:ty, $($field:ident),+) => {
        const _: () = {
            assert!(size_of::<$cells>() == size_of::<$record>());
            $(assert!(offset_of!($cells, $field) == offset_of!($record, $field));)+
        };
    };
}
assert_same_layout!(
    ThreadCells,
    ThreadRecord,
    run,
    wait,
    switches_in,
    preemptions,
    owner,
    start,
    given,
    vcpu,
    reserved
);
assert_same_layout!(
    VmCells,
    VmRecord,
    exited,
    handovers_begun,
    handovers_done,
    dying,
    tgid,
    pending,
    given,
    unrecorded,
    block_count,
    blocks
);
assert_same_layout!(MetaCells, Meta, layout, programs, events_lost, unrecorded, uncounted);
assert_same_layout!(DirectionCells, Direction, requests, octets, latency_ns, errors, buckets);
assert_same_layout!(ImageCells, ImageRecord, owner, file, route, storage, reserved, read, write);

// SAFETY: `repr(C)`, atomics only, 64 octets without padding.
unsafe impl Cells for ThreadCells {}
// SAFETY: `repr(C)`, atomics only, 256 octets without padding.
unsafe impl Cells for VmCells {}
// SAFETY: `repr(C)`, atomics only, 40 octets without padding.
unsafe impl Cells for MetaCells {}
// SAFETY: `repr(C)`, atomics only, 1664 octets without padding.
unsafe impl Cells for ImageCells {}
// SAFETY: an array of atomics.
unsafe impl Cells for SlotCells {}

/// The values of one `BPF_F_MMAPABLE` array, in memory that the kernel's programs write at any time.
#[derive(Debug)]
pub(super) struct Mapped<T> {
    map: MmapRaw,
    len: usize,
    cells: PhantomData<T>,
}

impl<T: Cells> Mapped<T> {
    /// Maps the `len` values of the array behind `fd`.
    ///
    /// # Errors
    ///
    /// Those of `mmap(2)`: the array has not that many values, or was not made to be mapped.
    pub(super) fn new(fd: impl AsFd, len: usize) -> io::Result<Self> {
        // Array elements are a multiple of 8 octets apart.
        assert!(size_of::<T>().is_multiple_of(8), "array values lie without gaps");
        let map = MmapOptions::new().len(size_of::<T>() * len).map_raw(fd.as_fd().as_raw_fd())?;
        Ok(Self { map, len, cells: PhantomData })
    }
}

impl<T: Cells> Deref for Mapped<T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        // SAFETY: the mapping begins at a page, so it is aligned for T, and is `len` values long; it stays
        // as long as `self`; T consists of atomics, for which any octets are a value (`Cells`), and all who
        // write this memory (the kernel's programs and other mappings) write whole aligned words.
        unsafe { std::slice::from_raw_parts(self.map.as_ptr().cast::<T>(), self.len) }
    }
}
