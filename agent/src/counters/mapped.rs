//! The array maps of the BPF programs, mapped into this process.

#![expect(unsafe_code, reason = "memory that the kernel writes is reached through a mapping")]

use std::{
    io,
    marker::PhantomData,
    mem::offset_of,
    ops::Deref,
    os::fd::{AsFd, AsRawFd as _},
    sync::atomic::{
        AtomicU16, AtomicU32, AtomicU64,
        Ordering::{AcqRel, Acquire, Relaxed, Release},
    },
};

use kvmeter_common::{
    DEVICE_USERS, ImageRecord, Meta, Owner, SLOTS_PER_ELEMENT, ThreadRecord, VM_BLOCKS, VmRecord,
    image::{DirectionCounters, LATENCY_BUCKETS},
};
use memmap2::{MmapOptions, MmapRaw};

/// A record in memory that the kernel writes at any time. Any bytes are a valid value, and all accesses are atomic.
///
/// # Safety
///
/// The type is `repr(C)`, consists of atomics only and has no padding.
pub(crate) unsafe trait Shared {}

/// [`ThreadRecord`] in shared memory.
#[derive(Debug)]
#[repr(C, align(64))]
pub(crate) struct SharedThreadRecord {
    pub(crate) run: AtomicU64,
    pub(crate) wait: AtomicU64,
    pub(crate) switches_in: AtomicU64,
    pub(crate) preemptions: AtomicU64,
    pub(crate) owner: AtomicU64,
    pub(crate) start: AtomicU64,
    pub(crate) high_water: AtomicU64,
    pub(crate) vcpu: AtomicU32,
    pub(crate) place: AtomicU32,
}

impl SharedThreadRecord {
    /// Takes the record from its thread, so that no other one gets the record before it is [freed](Self::free). Returns the owner
    /// before; `None` = the record is not this thread's.
    pub(crate) fn take(&self, tid: u32) -> Option<Owner> {
        let is_its = |owner: Owner| owner.is_of_thread() && owner.tid() == tid;
        let taken = |owner| is_its(Owner(owner)).then_some(Owner::FREED_BY_AGENT.0);
        self.owner.fetch_update(AcqRel, Acquire, taken).ok().map(Owner)
    }

    /// Resets the record and frees it. The owner is reset last, so that the next owner finds the other fields empty.
    pub(crate) fn free(&self) {
        self.clear();
        self.owner.store(ThreadRecord::EMPTY.owner, Release);
    }

    /// Resets all but the owner, and `vcpu`, which is valid with flags of the owner only.
    pub(crate) fn clear(&self) {
        let Self {
            run,
            wait,
            switches_in,
            preemptions,
            owner: _,
            start,
            high_water,
            vcpu: _,
            place,
        } = self;
        let empty = ThreadRecord::EMPTY;
        run.store(empty.run, Relaxed);
        wait.store(empty.wait, Relaxed);
        switches_in.store(empty.switches_in, Relaxed);
        preemptions.store(empty.preemptions, Relaxed);
        start.store(empty.start, Relaxed);
        high_water.store(empty.high_water, Relaxed);
        place.store(empty.place.0, Relaxed);
    }
}

/// [`VmRecord`] in shared memory.
#[derive(Debug)]
#[repr(C, align(64))]
pub(crate) struct SharedVmRecord {
    pub(crate) exited: AtomicU64,
    pub(crate) handovers_begun: AtomicU64,
    pub(crate) handovers_done: AtomicU64,
    pub(crate) dying: AtomicU64,
    pub(crate) tgid: AtomicU64,
    pub(crate) flags: AtomicU64,
    pub(crate) high_water: AtomicU64,
    pub(crate) unrecorded: AtomicU64,
    pub(crate) recorded: AtomicU64,
    pub(crate) in_flight: AtomicU64,
    pub(crate) new_images: AtomicU64,
    pub(crate) new_images_limit: AtomicU64,
    pub(crate) io_cgroup: AtomicU64,
    pub(crate) account: AtomicU64,
    pub(crate) in_flight_of_account: AtomicU64,
    pub(crate) block_count: AtomicU64,
    pub(crate) blocks: [AtomicU16; VM_BLOCKS],
}

impl SharedVmRecord {
    /// Whether every live thread has a record and `exited` is known.
    pub(crate) fn is_complete(&self) -> bool {
        self.recorded.load(Relaxed) == self.unrecorded.load(Relaxed)
    }

    /// Resets the record, but for the VM's process id and blocks. The next VM with the record begins with the kernel's own sum:
    /// no thread of that VM has a record yet.
    pub(crate) fn clear(&self) {
        let Self {
            exited,
            handovers_begun,
            handovers_done,
            dying,
            tgid: _,
            flags,
            high_water,
            unrecorded,
            recorded,
            in_flight,
            new_images,
            new_images_limit,
            io_cgroup,
            account,
            in_flight_of_account: _,
            block_count: _,
            blocks: _,
        } = self;
        for cell in [
            exited,
            handovers_begun,
            handovers_done,
            dying,
            flags,
            high_water,
            recorded,
            in_flight,
            new_images,
            new_images_limit,
            io_cgroup,
            account,
        ] {
            cell.store(0, Relaxed);
        }
        unrecorded.store(1, Relaxed);
    }
}

/// [`Meta`] in shared memory.
#[derive(Debug)]
#[repr(C)]
pub(crate) struct SharedMeta {
    pub(crate) layout: AtomicU64,
    pub(crate) programs: AtomicU64,
    pub(crate) events_lost: AtomicU64,
    pub(crate) unrecorded: AtomicU64,
    pub(crate) uncounted: AtomicU64,
    pub(crate) secret: AtomicU64,
}

/// [`DirectionCounters`] in shared memory.
#[derive(Debug)]
#[repr(C)]
pub(crate) struct SharedDirectionCounters {
    pub(crate) requests: AtomicU64,
    pub(crate) bytes: AtomicU64,
    pub(crate) latency_ns: AtomicU64,
    pub(crate) errors: AtomicU64,
    pub(crate) buckets: [AtomicU64; LATENCY_BUCKETS],
}

/// [`ImageRecord`] in shared memory.
#[derive(Debug)]
#[repr(C, align(64))]
pub(crate) struct SharedImageRecord {
    pub(crate) owner: AtomicU64,
    pub(crate) file: AtomicU64,
    pub(crate) layer: AtomicU32,
    pub(crate) storage: AtomicU32,
    pub(crate) reserved: [AtomicU64; 5],
    pub(crate) read: SharedDirectionCounters,
    pub(crate) write: SharedDirectionCounters,
}

/// One element of `TID_SLOT`.
pub(crate) type SharedSlots = [AtomicU16; SLOTS_PER_ELEMENT];

/// The [`kvmeter_common::DeviceUser`]s of a bucket in shared memory.
pub(crate) type SharedDevices = [AtomicU64; DEVICE_USERS];

/// Asserts that each atomic lies at the offset of its field.
macro_rules! assert_same_layout {
    ($shared:ty, $record:ty, $($field:ident),+) => {
        const _: () = {
            assert!(size_of::<$shared>() == size_of::<$record>());
            $(assert!(offset_of!($shared, $field) == offset_of!($record, $field));)+
        };
    };
}
assert_same_layout!(
    SharedThreadRecord,
    ThreadRecord,
    run,
    wait,
    switches_in,
    preemptions,
    owner,
    start,
    high_water,
    vcpu,
    place
);
assert_same_layout!(
    SharedVmRecord,
    VmRecord,
    exited,
    handovers_begun,
    handovers_done,
    dying,
    tgid,
    flags,
    high_water,
    unrecorded,
    recorded,
    in_flight,
    new_images,
    new_images_limit,
    io_cgroup,
    account,
    in_flight_of_account,
    block_count,
    blocks
);
assert_same_layout!(SharedMeta, Meta, layout, programs, events_lost, unrecorded, uncounted, secret);
assert_same_layout!(
    SharedDirectionCounters,
    DirectionCounters,
    requests,
    bytes,
    latency_ns,
    errors,
    buckets
);
assert_same_layout!(
    SharedImageRecord,
    ImageRecord,
    owner,
    file,
    layer,
    storage,
    reserved,
    read,
    write
);

// SAFETY: `repr(C)`, atomics only, 64 bytes without padding.
unsafe impl Shared for SharedThreadRecord {}
// SAFETY: `repr(C)`, atomics only, 1024 bytes without padding.
unsafe impl Shared for SharedVmRecord {}
// SAFETY: `repr(C)`, atomics only, 48 bytes without padding.
unsafe impl Shared for SharedMeta {}
// SAFETY: `repr(C)`, atomics only, 1664 bytes without padding.
unsafe impl Shared for SharedImageRecord {}
// SAFETY: an array of atomics, which has no padding.
unsafe impl Shared for SharedSlots {}
// SAFETY: an array of atomics, which has no padding.
unsafe impl Shared for SharedDevices {}

/// The values of a `BPF_F_MMAPABLE` array, which the BPF programs write at any time.
#[derive(Debug)]
pub(crate) struct Mapped<T> {
    map: MmapRaw,
    len: usize,
    values: PhantomData<T>,
}

impl<T: Shared> Mapped<T> {
    /// Maps the `len` values of the array behind `fd`.
    ///
    /// # Errors
    ///
    /// Those of `mmap(2)`: the array has fewer values, or was not created with `BPF_F_MMAPABLE`.
    pub(crate) fn new(fd: impl AsFd, len: usize) -> io::Result<Self> {
        // The kernel rounds array elements up to a multiple of 8 bytes.
        assert!(size_of::<T>().is_multiple_of(8), "the array has gaps between its values");
        let map = MmapOptions::new().len(size_of::<T>() * len).map_raw(fd.as_fd().as_raw_fd())?;
        Ok(Self { map, len, values: PhantomData })
    }
}

impl<T: Shared> Deref for Mapped<T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        // SAFETY: the mapping begins at a page, so it is aligned for T, is `len` values long, and stays mapped for
        // as long as `self`. T consists of atomics, of which any bytes are a value (`Shared`), and every writer of
        // this memory (the BPF programs, and other mappings through this type) writes whole aligned words.
        unsafe { std::slice::from_raw_parts(self.map.as_ptr().cast::<T>(), self.len) }
    }
}
