//! The maps. The loader sets the sizes of the tables of records. All are arrays that the agent maps into its memory, but for
//! the requests in flight, what the latest timers have seen, and the ring.
//!
//! A pointer that this module returns is to a whole, aligned value of a map and stays valid for as long as the program
//! runs: the lookups check the index, and the verifier refuses a program that does not check for null.

#![expect(
    unsafe_code,
    reason = "map memory is reached by raw pointers; the loader finds a map by its symbol"
)]

use aya_ebpf::{
    bindings::{BPF_EXIST, BPF_F_MMAPABLE, BPF_RB_AVAIL_DATA},
    macros::map,
    maps::{Array, HashMap, PerCpuArray, RingBuf},
};
use kvmeter_common::{
    DEVICE_BUCKETS, DEVICE_USERS, DeviceUser, EVENT_RING_LEN, Event, FILTER_LEN, IMAGES, ImageKey,
    ImageRecord, InFlight, LastTimer, MAX_IN_FLIGHT, Meta, Owner, SLOTS_PER_ELEMENT, THREADS,
    ThreadRecord, USER_IN_FLIGHT, USERS_IN_FLIGHT, VM_IN_FLIGHT, VMS, VmRecord,
};

use crate::{atomic, verifier};

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
static IMAGE: Array<ImageRecord> = Array::with_max_entries(elements(IMAGES), BPF_F_MMAPABLE);

#[map]
static DEVICE: Array<[u64; DEVICE_USERS]> =
    Array::with_max_entries(elements(DEVICE_BUCKETS), BPF_F_MMAPABLE);

/// Keyed by kernel address: of the kiocb, bio or io_kiocb; for a system call, of the task, because a thread makes one call
/// at a time.
#[map]
static INFLIGHT: HashMap<u64, InFlight> = HashMap::with_max_entries(MAX_IN_FLIGHT, 0);

/// Counting filter in front of [`INFLIGHT`]: requests in flight per hash of the address. Almost every completion on a
/// host belongs to no VM; a zero here says so for one read of memory that is rarely written.
#[map]
static INFLIGHT_FILTER: Array<u64> = Array::with_max_entries(FILTER_LEN, 0);

/// One element on each CPU. Not pinned: a new agent's program begins with none.
#[map]
static LAST_TIMER: PerCpuArray<LastTimer> = PerCpuArray::with_max_entries(1, 0);

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

/// Clears the slot of a thread id, if it is this one.
#[inline(always)]
pub(crate) fn forget(tid: u32, slot: u16) {
    let Some(entry) = slot_entry(tid) else { return };
    // SAFETY: `slot_entry` returns a valid, aligned entry.
    if unsafe { entry.read_volatile() } == slot {
        // SAFETY: `slot_entry` returns a valid, aligned entry.
        unsafe { entry.write_volatile(0) };
    }
}

#[inline(always)]
pub(crate) fn thread(slot: u16) -> Option<*mut ThreadRecord> {
    THREAD.get_ptr_mut(u32::from(slot))
}

#[inline(always)]
pub(crate) fn vm(slot: u16) -> Option<*mut VmRecord> {
    VM.get_ptr_mut(u32::from(slot))
}

/// What the latest timer on this CPU has seen.
#[inline(always)]
pub(crate) fn last_timer() -> Option<*mut LastTimer> {
    LAST_TIMER.get_ptr_mut(0)
}

/// The owner of a thread record; `None`: no record has this slot, or slot 0.
#[inline(always)]
pub(crate) fn owner_of(slot: u16) -> Option<Owner> {
    if slot == 0 {
        return None;
    }
    let record = thread(slot)?;
    // SAFETY: `record` is a whole value of the map, and the field an aligned word of it.
    Some(Owner(unsafe { (&raw const (*record).owner).read_volatile() }))
}

/// The owner of the record of a process's first thread.
#[inline(always)]
pub(crate) fn owner_of_process(tgid: u32) -> Option<Owner> {
    owner_of(slot_of(tgid)).filter(|owner| owner.tid() == tgid)
}

#[inline(always)]
pub(crate) fn image(slot: u32) -> Option<*mut ImageRecord> {
    IMAGE.get_ptr_mut(slot)
}

/// The users in a device's bucket, those of other devices included.
#[inline(always)]
pub(crate) fn device_users(device: u32) -> Option<*mut [u64; DEVICE_USERS]> {
    DEVICE.get_ptr_mut(DeviceUser::bucket(device))
}

/// The filter's bucket for an address.
#[inline(always)]
fn filter(address: u64) -> Option<*mut u64> {
    let hash = verifier::low_half(address).wrapping_mul(0x9e37_79b9);
    INFLIGHT_FILTER.get_ptr_mut(hash >> (32 - FILTER_LEN.ilog2()))
}

/// Stores a request in flight at `address`, unless its VM, or the user of the VM, has as many as it may have.
#[inline(always)]
pub(crate) fn insert(address: u64, request: &InFlight) {
    let Some(vm) = vm_of_request(request) else { return };
    // SAFETY: `vm` is a whole value of the map, and the field an aligned word of it.
    let account =
        verifier::low_half(unsafe { (&raw const (*vm).account).read_volatile() }) & 0xffff;
    let flags = request.flags | account << InFlight::ACCOUNT;
    let request = &InFlight { flags, ..*request };
    // SAFETY: `vm` is a whole value of the map, and the field an aligned word of it.
    let before = unsafe { atomic::fetch_add(&raw mut (*vm).in_flight, 1) };
    let fits = before.cast_signed() < i64::from(VM_IN_FLIGHT) && account_has_room(request);
    if fits && INFLIGHT.insert(address, request, 0).is_ok() {
        if let Some(count) = filter(address) {
            // SAFETY: `count` is a value of the map: an aligned word.
            unsafe { atomic::fetch_add(count, 1) };
        }
        add_to_account(request, 1);
        return;
    }
    // SAFETY: `vm` is a whole value of the map, and the field an aligned word of it.
    unsafe { atomic::fetch_add(&raw mut (*vm).in_flight, u64::MAX) };
    count_uncounted();
}

/// Whether the user of the request's VM, and all users, may have one more in flight. Each CPU may add one at the same time.
#[inline(always)]
fn account_has_room(request: &InFlight) -> bool {
    let has_room = |number: u16, most: u32| {
        let Some(record) = vm(number) else { return true };
        // SAFETY: `record` is a whole value of the map, and the field an aligned word of it.
        let count = unsafe { (&raw const (*record).in_flight_of_account).read_volatile() };
        // A request that ends on another CPU at once is subtracted before it is added.
        count.cast_signed() < i64::from(most)
    };
    let account = request.account();
    account == 0 || (has_room(account, USER_IN_FLIGHT) && has_room(0, USERS_IN_FLIGHT))
}

/// Adds to the number of requests in flight of the account, and of all accounts; `more` wraps.
#[inline(always)]
fn add_to_account(request: &InFlight, more: u64) {
    let account = request.account();
    if account == 0 {
        return;
    }
    if let Some(of_user) = vm(account) {
        // SAFETY: `of_user` is a whole value of the map, and the field an aligned word of it.
        unsafe { atomic::fetch_add(&raw mut (*of_user).in_flight_of_account, more) };
    }
    if let Some(of_all) = vm(0) {
        // SAFETY: `of_all` is a whole value of the map, and the field an aligned word of it.
        unsafe { atomic::fetch_add(&raw mut (*of_all).in_flight_of_account, more) };
    }
}

/// Stores a request of the same VM in the place of the one at `address`.
#[inline(always)]
pub(crate) fn replace(address: u64, request: &InFlight) {
    // It fails only if the request is gone.
    let _ = INFLIGHT.insert(address, request, u64::from(BPF_EXIST));
}

/// The record of the VM that makes the request.
#[inline(always)]
fn vm_of_request(request: &InFlight) -> Option<*mut VmRecord> {
    vm(ImageKey::of(request.owner, 0).vm)
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

/// Removes the request in flight at `address`, a copy of which is `request`. Returns whether it was stored until now.
#[inline(always)]
pub(crate) fn remove(address: u64, request: &InFlight) -> bool {
    if INFLIGHT.remove(address).is_err() {
        return false;
    }
    if let Some(count) = filter(address) {
        // SAFETY: `count` is a value of the map: an aligned word.
        unsafe { atomic::fetch_add(count, u64::MAX) };
    }
    if let Some(vm) = vm_of_request(request) {
        // SAFETY: `vm` is a whole value of the map, and the field an aligned word of it.
        unsafe { atomic::fetch_add(&raw mut (*vm).in_flight, u64::MAX) };
    }
    add_to_account(request, u64::MAX);
    true
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
    if EVENTS.output::<Event>(event, 0).is_err() {
        count_lost();
    }
}

/// Sends an event as [`send`] does, if half of the ring is free: the rest is for the events of VMs.
#[inline(always)]
pub(crate) fn send_within_half(event: &Event) {
    if EVENTS.query(u64::from(BPF_RB_AVAIL_DATA)) < u64::from(EVENT_RING_LEN / 2) {
        send(event);
    } else {
        count_lost();
    }
}

#[inline(always)]
fn count_lost() {
    if let Some(meta) = META.get_ptr_mut(0) {
        // SAFETY: `meta` is a whole value of the map, and the field an aligned word of it.
        unsafe { atomic::fetch_add(&raw mut (*meta).events_lost, 1) };
    }
}
