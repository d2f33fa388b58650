//! The maps. All are arrays that the agent maps into its memory, but for the requests in flight and the ring.
//!
//! A pointer that this module returns is to a whole, aligned value of a map and stays valid for as long as the program
//! runs: the lookups check the index, and the verifier refuses a program that does not check for null.

#![expect(
    unsafe_code,
    reason = "map memory is reached by raw pointers; the loader finds a map by its symbol"
)]

use aya_ebpf::{
    bindings::BPF_F_MMAPABLE,
    macros::map,
    maps::{Array, HashMap, RingBuf},
};
use kvmeter_common::{
    EVENT_RING_LEN, Event, FILTER_LEN, IMAGES, ImageRecord, InFlight, MAX_IN_FLIGHT, Meta, Owner,
    SLOTS_PER_ELEMENT, THREADS, ThreadRecord, VMS, VmRecord,
};

use crate::{atomic, verifier};

/// Number of image records; no record has this slot.
pub(crate) const IMAGE_SLOTS: u32 = elements(IMAGES);

/// A number of elements as the kernel stores it.
#[expect(clippy::cast_possible_truncation, reason = "the assertion rules it out")]
pub(crate) const fn elements(len: usize) -> u32 {
    assert!(len <= u32::MAX as usize, "a map has at most 2^32 - 1 elements");
    len as u32
}

/// Thread id → slot. The loader sets the number of elements from `kernel.pid_max`.
#[map]
static TID_SLOT: Array<[u16; SLOTS_PER_ELEMENT]> = Array::with_max_entries(8192, BPF_F_MMAPABLE);

#[map]
static THREAD: Array<ThreadRecord> = Array::with_max_entries(elements(THREADS), BPF_F_MMAPABLE);

#[map]
static VM: Array<VmRecord> = Array::with_max_entries(elements(VMS), BPF_F_MMAPABLE);

#[map]
static META: Array<Meta> = Array::with_max_entries(1, BPF_F_MMAPABLE);

#[map]
static IMAGE: Array<ImageRecord> = Array::with_max_entries(IMAGE_SLOTS, BPF_F_MMAPABLE);

/// Keyed by kernel address: of the kiocb, bio or io_kiocb; for a system call, of the task, because a thread makes one call
/// at a time.
#[map]
static INFLIGHT: HashMap<u64, InFlight> = HashMap::with_max_entries(MAX_IN_FLIGHT, 0);

/// Counting filter in front of [`INFLIGHT`]: requests in flight per hash of the address. Almost every completion on a
/// host belongs to no VM; a zero here says so for one read of memory that is rarely written.
#[map]
static INFLIGHT_FILTER: Array<u64> = Array::with_max_entries(FILTER_LEN, 0);

#[map]
static EVENTS: RingBuf = RingBuf::with_byte_size(EVENT_RING_LEN, 0);

/// The entry with the slot of a thread id; `None` above the `pid_max` at load time.
#[inline(always)]
pub(crate) fn slot_entry(tid: u32) -> Option<*mut u16> {
    let element = TID_SLOT.get_ptr_mut(tid / elements(SLOTS_PER_ELEMENT))?;
    // SAFETY: the remainder is below `SLOTS_PER_ELEMENT`, the length of the element.
    Some(unsafe { element.cast::<u16>().add(tid as usize % SLOTS_PER_ELEMENT) })
}

/// The slot of a thread id; 0 = none.
#[inline(always)]
pub(crate) fn slot_of(tid: u32) -> u16 {
    // SAFETY: `slot_entry` returns a valid, aligned entry. The read is volatile because the agent writes it at any time.
    slot_entry(tid).map_or(0, |entry| unsafe { entry.read_volatile() })
}

#[inline(always)]
pub(crate) fn thread(slot: u16) -> Option<*mut ThreadRecord> {
    THREAD.get_ptr_mut(u32::from(slot))
}

#[inline(always)]
pub(crate) fn vm(slot: u16) -> Option<*mut VmRecord> {
    VM.get_ptr_mut(u32::from(slot))
}

/// The owner of a thread record.
#[inline(always)]
pub(crate) fn owner_of(slot: u16) -> Option<Owner> {
    let record = thread(slot)?;
    // SAFETY: `record` is a whole value of the map, and the field an aligned word of it.
    Some(Owner(unsafe { (&raw const (*record).owner).read_volatile() }))
}

#[inline(always)]
pub(crate) fn image(slot: u32) -> Option<*mut ImageRecord> {
    IMAGE.get_ptr_mut(slot)
}

/// The filter's bucket for an address.
#[inline(always)]
fn filter(address: u64) -> Option<*mut u64> {
    let hash = verifier::low_half(address).wrapping_mul(0x9e37_79b9);
    INFLIGHT_FILTER.get_ptr_mut(hash >> (32 - FILTER_LEN.ilog2()))
}

/// Stores the request in flight at `address`; `is_known`: it replaces one that is stored there.
#[inline(always)]
pub(crate) fn insert(address: u64, request: &InFlight, is_known: bool) {
    if INFLIGHT.insert(address, request, 0).is_err() {
        count_uncounted();
        return;
    }
    if let Some(count) = filter(address)
        && !is_known
    {
        // SAFETY: `count` is a value of the map: an aligned word.
        unsafe { atomic::fetch_add(count, 1) };
    }
}

/// The request in flight at `address`.
#[inline(always)]
pub(crate) fn in_flight(address: u64) -> Option<InFlight> {
    // SAFETY: `filter` returns a value of the map: an aligned word.
    if unsafe { filter(address)?.read_volatile() } == 0 {
        return None;
    }
    // SAFETY: the element stays readable until this program returns, under RCU, and is copied at once. If another CPU
    // removes it meanwhile and the kernel reuses it, the copy may be of another request; its owner word is compared with
    // that of the record before anything is counted.
    unsafe { INFLIGHT.get(address) }.copied()
}

/// Removes the request in flight at `address`. Returns whether it was stored until now.
#[inline(always)]
pub(crate) fn remove(address: u64) -> bool {
    let was_there = INFLIGHT.remove(address).is_ok();
    if was_there && let Some(count) = filter(address) {
        // SAFETY: `count` is a value of the map: an aligned word.
        unsafe { atomic::fetch_add(count, u64::MAX) };
    }
    was_there
}

/// Counts a request that cannot be counted for its image.
#[inline(always)]
pub(crate) fn count_uncounted() {
    if let Some(meta) = META.get_ptr_mut(0) {
        // SAFETY: `meta` is a whole value of the map, and the field an aligned word of it.
        unsafe { atomic::fetch_add(&raw mut (*meta).uncounted, 1) };
    }
}

/// Counts a thread for which no record is free.
#[inline(always)]
pub(crate) fn count_unrecorded() {
    if let Some(meta) = META.get_ptr_mut(0) {
        // SAFETY: `meta` is a whole value of the map, and the field an aligned word of it.
        unsafe { atomic::fetch_add(&raw mut (*meta).unrecorded, 1) };
    }
}

/// Sends an event. If the ring is full the loss is counted; the agent scans again when it sees that count change.
#[inline(always)]
pub(crate) fn send(event: &Event) {
    if EVENTS.output::<Event>(event, 0).is_err()
        && let Some(meta) = META.get_ptr_mut(0)
    {
        // SAFETY: `meta` is a whole value of the map, and the field an aligned word of it.
        unsafe { atomic::fetch_add(&raw mut (*meta).events_lost, 1) };
    }
}
