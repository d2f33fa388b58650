//! The maps. All but the requests under way and the ring are arrays that the agent maps into its memory.

use core::arch::asm;

use aya_ebpf::{
    bindings::BPF_F_MMAPABLE,
    macros::map,
    maps::{Array, HashMap, RingBuf},
};
use kvmeter_common::{
    EVENT_RING_LEN, Event, FILTER_LEN, IMAGES, ImageRecord, InFlight, MAX_IN_FLIGHT, Meta, Owner,
    SLOTS_PER_ELEMENT, THREADS, ThreadRecord, VMS, VmRecord,
};

use crate::atomic;

/// Thread id → slot. The loader sets its size from `kernel.pid_max`.
#[map]
static TID_SLOT: Array<[u16; SLOTS_PER_ELEMENT]> = Array::with_max_entries(8192, BPF_F_MMAPABLE);

#[map]
static THREAD: Array<ThreadRecord> = Array::with_max_entries(THREADS as u32, BPF_F_MMAPABLE);

#[map]
static VM: Array<VmRecord> = Array::with_max_entries(VMS as u32, BPF_F_MMAPABLE);

#[map]
static META: Array<Meta> = Array::with_max_entries(1, BPF_F_MMAPABLE);

#[map]
static IMAGE: Array<ImageRecord> = Array::with_max_entries(IMAGES as u32, BPF_F_MMAPABLE);

/// By the address of the request in the kernel; a system call is one of its task.
#[map]
static INFLIGHT: HashMap<u64, InFlight> = HashMap::with_max_entries(MAX_IN_FLIGHT, 0);

#[map]
static EVENTS: RingBuf = RingBuf::with_byte_size(EVENT_RING_LEN, 0);

/// Where the slot of a thread id is kept; nothing beyond the `pid_max` of the time of loading.
#[inline(always)]
pub(crate) fn slot_entry(tid: u32) -> Option<*mut u16> {
    let element = TID_SLOT.get_ptr_mut(tid / SLOTS_PER_ELEMENT as u32)?;
    // SAFETY: the remainder is below the number of slots in the element.
    Some(unsafe { element.cast::<u16>().add(tid as usize % SLOTS_PER_ELEMENT) })
}

/// The slot of a thread id, 0 = none.
#[inline(always)]
pub(crate) fn slot_of(tid: u32) -> u16 {
    // SAFETY: the entry lies in the map's value; the agent may write it at any time, so it is volatile.
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

/// Whose a thread's record is.
#[inline(always)]
pub(crate) fn owner_of(slot: u16) -> Option<Owner> {
    let record = thread(slot)?;
    // SAFETY: the field is an aligned word of a map value.
    Some(Owner(unsafe { (&raw const (*record).owner).read_volatile() }))
}

#[inline(always)]
pub(crate) fn image(slot: u32) -> Option<*mut ImageRecord> {
    IMAGE.get_ptr_mut(slot)
}

/// How many requests are under way whose addresses come to the same number. Almost every request on a host is of no
/// VM, and to know that by its end takes one look here, in memory that is seldom written.
#[map]
static INFLIGHT_FILTER: Array<u64> = Array::with_max_entries(FILTER_LEN, 0);

#[inline(always)]
fn filter(address: u64) -> Option<*mut u64> {
    let low: u32;
    // To the verifier the address is a pointer, of which it takes no product; the copy of a half is a number.
    // SAFETY: it only moves a register.
    unsafe {
        asm!("{low} = {address}", low = out(wreg) low, address = in(wreg) address as u32, options(pure, nomem, nostack));
    }
    INFLIGHT_FILTER.get_ptr_mut(low.wrapping_mul(0x9e37_79b9) >> (32 - FILTER_LEN.ilog2()))
}

/// Notes that the request at `address` is under way; `is_known`: it was noted before.
#[inline(always)]
pub(crate) fn insert(address: u64, in_flight: &InFlight, is_known: bool) {
    if INFLIGHT.insert(address, in_flight, 0).is_err() {
        count_uncounted();
        return;
    }
    if let Some(count) = filter(address)
        && !is_known
    {
        // SAFETY: an aligned word of the map's value.
        unsafe { atomic::fetch_add(count, 1) };
    }
}

/// The request at `address`, if it is under way.
#[inline(always)]
pub(crate) fn in_flight(address: u64) -> Option<InFlight> {
    // SAFETY: an aligned word of the map's value.
    if unsafe { filter(address)?.read_volatile() } == 0 {
        return None;
    }
    // SAFETY: a request is completed once, after it was submitted.
    unsafe { INFLIGHT.get(address) }.copied()
}

/// The request at `address`, which was found, is not under way any more. Whether it was until now.
#[inline(always)]
pub(crate) fn remove(address: u64) -> bool {
    let was_there = INFLIGHT.remove(address).is_ok();
    if was_there && let Some(count) = filter(address) {
        // SAFETY: an aligned word of the map's value.
        unsafe { atomic::fetch_add(count, u64::MAX) };
    }
    was_there
}

/// Counts a request of an image that cannot be counted.
#[inline(always)]
pub(crate) fn count_uncounted() {
    if let Some(meta) = META.get_ptr_mut(0) {
        // SAFETY: the field is an aligned word of the map's value.
        unsafe { atomic::fetch_add(&raw mut (*meta).uncounted, 1) };
    }
}

/// Counts a thread that found no free record.
#[inline(always)]
pub(crate) fn count_unrecorded() {
    if let Some(meta) = META.get_ptr_mut(0) {
        // SAFETY: the field is an aligned word of the map's value.
        unsafe { atomic::fetch_add(&raw mut (*meta).unrecorded, 1) };
    }
}

/// Sends an event; a full ring is counted, and the agent scans anew when it sees the count move.
#[inline(always)]
pub(crate) fn send(event: &Event) {
    if EVENTS.output::<Event>(event, 0).is_err()
        && let Some(meta) = META.get_ptr_mut(0)
    {
        // SAFETY: the field is an aligned word of the map's value.
        unsafe { atomic::fetch_add(&raw mut (*meta).events_lost, 1) };
    }
}
