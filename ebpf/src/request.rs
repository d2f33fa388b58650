//! A request from its submission to its completion, and how it is counted.

#![expect(unsafe_code, reason = "map memory is reached by raw pointers")]

use aya_ebpf::helpers::bpf_ktime_get_ns;
use kvmeter_common::{
    Event, EventKind, ImageKey, InFlight, Layer, Layers,
    image::{DirectionCounters, LATENCY_BUCKETS, PROBES, bucket_of},
};

use crate::{
    atomic,
    image::OnMiss,
    kernel, maps,
    thread::{get, set},
    verifier,
};

/// QEMU probes the alignment that a disk wants with requests that fail with this when it opens the disk: neither I/O nor
/// a failure.
const EINVAL: i64 = 22;

/// Two beginnings at one address within this time in ns are one request: while links are replaced, the old and the new
/// program both see an event.
const TWICE_NS: u64 = 5000;

/// A request of io_uring counts in a record of any of these layers.
pub(crate) const URING_LAYERS: Layers =
    Layers::only(Layer::Call).and(Layer::Function).and(Layer::Ring);

/// An image's record, as a request in flight refers to it.
#[derive(Clone, Copy)]
pub(crate) struct Target {
    pub(crate) slot: u32,
    pub(crate) owner: u64,
    pub(crate) file: u64,
}

/// The image's record. `None`: there is none, or its layer is another program's.
#[inline(always)]
pub(crate) fn record_of(key: ImageKey, layers: Layers, on_miss: OnMiss) -> Option<Target> {
    let hash = key.hash(kernel::IMAGE_SECRET.load());
    let buckets = kernel::IMAGE_BUCKETS.load();
    let target = |slot| Target { slot, owner: key.owner(), file: key.file };
    // A bit for each record, without a branch: the verifier would follow every combination of free records.
    let mut taken = 0_u32;
    for probe in 0..PROBES {
        let slot = ImageKey::slot(hash, probe, buckets);
        let record = maps::image(slot)?;
        let owner = get!(record, owner);
        if owner == key.owner() && get!(record, file) == key.file {
            return layers.have(get!(record, layer)).then_some(target(slot));
        }
        taken |= ImageKey::taken_bit(owner) << probe;
    }
    let OnMiss::Create(vm) = on_miss else { return None };
    if !vm.may_create_records() {
        return None;
    }
    let Some(probe) = ImageKey::free_probe(taken) else {
        maps::count_uncounted();
        return None;
    };
    let free = ImageKey::slot(hash, probe, buckets);
    if claim(free, key, layers.for_new) {
        if let Some(record) = maps::vm(vm.slot) {
            // SAFETY: `record` is a whole value of the map, and the field an aligned word of it.
            unsafe { atomic::fetch_add(&raw mut (*record).new_images, 1) };
        }
        let kind = EventKind::ImageClaimed as u32;
        maps::send(&Event { kind, tgid: vm.tgid, tid: free, vm_slot: u32::from(vm.slot) });
        return Some(target(free));
    }
    maps::count_uncounted();
    None
}

/// Claims a free record for an image. Returns false if another CPU or the agent has claimed it first.
#[inline(always)]
fn claim(slot: u32, key: ImageKey, layer: Layer) -> bool {
    let Some(record) = maps::image(slot) else { return false };
    // SAFETY: `record` is a whole value of the map, and the field an aligned word of it.
    if !unsafe { atomic::compare_exchange(&raw mut (*record).owner, 0, key.owner()) } {
        return false;
    }
    set!(record, layer, layer as u32);
    // Lookups find a record by its file, so the file comes last; the atomic addition orders it after the layer. A free
    // record has 0 there.
    // SAFETY: `record` is a whole value of the map, and the field an aligned word of it.
    unsafe { atomic::fetch_add(&raw mut (*record).file, key.file) };
    true
}

/// In-flight key of an io_kiocb, or of a kiocb of io_submit(2): its address + 1.
///
/// The kiocb at the beginning of an io_kiocb is tracked on its own, under the even address.
#[inline(always)]
pub(crate) const fn in_flight_key(request: u64) -> u64 {
    request.wrapping_add(1)
}

/// The request at `address` begins.
///
/// If a request is stored there already and this is not its next attempt, its completion was missed: completions come in
/// interrupts, and the kernel runs no program in an interrupt that hits the same program, on some kernels any program, on
/// that CPU.
#[inline(always)]
pub(crate) fn begin(address: u64, target: Target, position: u64, bytes: u64, flags: u32) {
    // SAFETY: the helper has no arguments and no precondition.
    let mut start = unsafe { bpf_ktime_get_ns() };
    let Target { slot, owner, file } = target;
    let mut account = None;
    if let Some(known) = maps::in_flight(address) {
        let is_same = (known.slot, known.owner, known.file) == (slot, owner, file)
            && known.position == position
            && (known.flags ^ flags) & InFlight::WRITE == 0;
        let may_be_retried = known.flags & (InFlight::NO_WAIT | InFlight::RETRIED) != 0;
        let is_seen_twice = start.wrapping_sub(known.start) < TWICE_NS;
        if is_same && (may_be_retried || is_seen_twice) {
            start = known.start;
            account = Some(known.account());
        } else if maps::remove(address, &known) {
            end_missed(&known);
        }
    }
    let request = InFlight { start, position, bytes, owner, file, slot, flags };
    if let Some(account) = account {
        let flags = flags | u32::from(account) << InFlight::ACCOUNT;
        maps::replace(address, &InFlight { flags, ..request });
    } else {
        maps::insert(address, &request);
    }
}

/// A request that is not counted begins at `address`: one that is stored there has been completed.
#[inline(always)]
pub(crate) fn begin_uncounted(address: u64) {
    if let Some(known) = maps::in_flight(address)
        && maps::remove(address, &known)
    {
        end_missed(&known);
    }
}

/// Removes the request in flight at `address`, which has been completed. `None`: none is known, or the other copy of the
/// program was first, or the kernel could not remove it in this interrupt; then it counts as missed when the address is
/// used again.
#[inline(always)]
pub(crate) fn land(address: u64) -> Option<InFlight> {
    let request = maps::in_flight(address)?;
    maps::remove(address, &request).then_some(request)
}

/// The counters for a request. `None`: the record was given to another image since.
#[inline(always)]
fn counters_of(request: &InFlight) -> Option<*mut DirectionCounters> {
    let image = maps::image(request.slot)?;
    // A closed record still counts what was in flight.
    let file = get!(image, file);
    if get!(image, owner) != request.owner || file != request.file && file != 0 {
        return None;
    }
    // SAFETY: `image` is a whole value of the map, and both are fields of it.
    Some(unsafe {
        if request.flags & InFlight::WRITE == 0 {
            &raw mut (*image).read
        } else {
            &raw mut (*image).write
        }
    })
}

/// A request was completed with this many bytes; `None`: it failed.
#[inline(always)]
pub(crate) fn end(request: &InFlight, bytes: Option<u64>) {
    let Some(counters) = counters_of(request) else { return };
    let Some(bytes) = bytes else {
        // SAFETY: `counters` lies in a value of the map, and the field is an aligned word of it.
        unsafe { atomic::fetch_add(&raw mut (*counters).errors, 1) };
        return;
    };
    // SAFETY: the helper has no arguments and no precondition.
    let latency = unsafe { bpf_ktime_get_ns() }.wrapping_sub(request.start);
    count(counters, bytes, latency);
}

/// A request was completed with a number of bytes or, below 0, an error.
#[inline(always)]
pub(crate) fn end_with(request: &InFlight, result: i64) {
    if result != -EINVAL {
        end(request, u64::try_from(result).ok());
    }
}

/// Counts a request whose completion was missed, with the mean latency so far.
#[inline(always)]
fn end_missed(request: &InFlight) {
    if request.flags & InFlight::ASYNC == 0 {
        return;
    }
    let Some(counters) = counters_of(request) else { return };
    let latency = get!(counters, latency_ns).checked_div(get!(counters, requests)).unwrap_or(0);
    count(counters, request.bytes, latency);
}

#[inline(always)]
fn count(counters: *mut DirectionCounters, bytes: u64, latency: u64) {
    let bucket = verifier::forget_bounds(bucket_of(latency));
    // SAFETY: `counters` lies in a value of the map, its fields are aligned words, and `bucket` is below the length of
    // the array.
    unsafe {
        atomic::fetch_add(&raw mut (*counters).requests, 1);
        atomic::fetch_add(&raw mut (*counters).bytes, bytes);
        atomic::fetch_add(&raw mut (*counters).latency_ns, latency);
        if bucket < LATENCY_BUCKETS {
            let buckets = (&raw mut (*counters).buckets).cast::<u64>();
            atomic::fetch_add(buckets.add(bucket), 1);
        }
    }
}

/// The in-flight flag for the direction: [`InFlight::WRITE`] or none.
#[inline(always)]
pub(crate) const fn direction(is_write: bool) -> u32 {
    if is_write { InFlight::WRITE } else { 0 }
}
