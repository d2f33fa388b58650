//! How a request is followed from its submission to its completion, and counted.

use core::arch::asm;

use aya_ebpf::helpers::bpf_ktime_get_ns;
use kvmeter_common::{
    Event, EventKind, IMAGES, ImageKey, InFlight, Layer, Layers,
    image::{DirectionCounters, LATENCY_BUCKETS, PROBES, bucket_of},
};

use crate::{
    atomic,
    image::CurrentVm,
    maps,
    thread::{get, set},
};

/// The kernel did not take the request as it was: QEMU finds out in this way which ones a disk wants.
const EINVAL: i64 = 22;

/// Two programs at one event follow each other sooner than two requests at one address.
const TWICE_NS: u64 = 5000;

/// Who a record that is not there is taken for, if at all.
#[derive(Clone, Copy)]
pub(crate) enum OnMiss {
    Ignore,
    Create(CurrentVm),
}

/// The slot of the image's record; nothing where there is none, or where the image is counted by other programs.
#[inline(always)]
pub(crate) fn record_of(key: ImageKey, layers: Layers, on_miss: OnMiss) -> Option<u32> {
    let place = key.home_slot();
    // The verifier wants a number: this one is of no record.
    let mut free = IMAGES as u32;
    // Not only up to the first free one: what was there may have gone.
    for step in 0..PROBES as u32 {
        let slot = (place + step) % IMAGES as u32;
        let record = maps::image(slot)?;
        let owner = get!(record, owner);
        if owner == key.owner() && get!(record, file) == key.file {
            return layers.have(get!(record, layer)).then_some(slot);
        }
        if owner == 0 && free == IMAGES as u32 {
            free = slot;
        }
    }
    let OnMiss::Create(vm) = on_miss else { return None };
    if !vm.may_take_images() {
        return None;
    }
    if free < IMAGES as u32 && take(free, key, layers.for_new) {
        let kind = EventKind::ImageClaimed as u32;
        maps::send(&Event { kind, tgid: vm.tgid, tid: 0, vm_slot: u32::from(vm.slot) });
        return Some(free);
    }
    maps::count_uncounted();
    None
}

/// Takes a free record for an image, unless somebody else was faster.
#[inline(always)]
fn take(slot: u32, key: ImageKey, layer: Layer) -> bool {
    let Some(record) = maps::image(slot) else { return false };
    // SAFETY: the field is an aligned word of a map value.
    if !unsafe { atomic::compare_exchange(&raw mut (*record).owner, 0, key.owner()) } {
        return false;
    }
    set!(record, layer, layer as u32);
    // A record is found by its file, so that comes last: the addition orders it. Freed records have 0 there.
    // SAFETY: as above.
    unsafe { atomic::fetch_add(&raw mut (*record).file, key.file) };
    true
}

/// What a request of io_uring or io_submit(2) goes by: what it asks of a file begins at its own address, and goes by that.
/// No structure begins at an odd one.
#[inline(always)]
pub(crate) fn in_flight_key(request: u64) -> u64 {
    request.wrapping_add(1)
}

/// The request at `address` begins. Where one was known there that is not this one's first attempt, its end was
/// missed: requests end in interrupts, and the kernel runs no program in an interrupt that comes while it is at work on
/// that CPU, some kernels not even while another one is.
#[inline(always)]
pub(crate) fn begin(address: u64, slot: u32, position: u64, octets: u64, flags: u32) {
    // SAFETY: the helper takes nothing.
    let mut start = unsafe { bpf_ktime_get_ns() };
    let known = maps::in_flight(address);
    if let Some(known) = known {
        let is_same = known.slot == slot
            && known.position == position
            && (known.flags ^ flags) & InFlight::WRITE == 0;
        let may_come_again = known.flags & (InFlight::NO_WAIT | InFlight::RETRIED) != 0;
        // While programs are replaced, each event is seen by the old ones and the new ones.
        let is_seen_twice = start.wrapping_sub(known.start) < TWICE_NS;
        if is_same && (may_come_again || is_seen_twice) {
            start = known.start;
        } else {
            end_unseen(&known);
        }
    }
    let owner = maps::image(slot).map_or(0, |image| get!(image, owner));
    let in_flight = InFlight { start, position, octets, owner, slot, flags };
    maps::insert(address, &in_flight, known.is_some());
}

/// A request begins at `address` that is not counted: if one was under way there, it has ended.
#[inline(always)]
pub(crate) fn begin_of_others(address: u64) {
    if let Some(known) = maps::in_flight(address) {
        end_unseen(&known);
        maps::remove(address);
    }
}

/// Where a request is counted; nothing where the record has been given to another image since.
#[inline(always)]
fn direction_of(slot: u32, in_flight: &InFlight) -> Option<*mut DirectionCounters> {
    let image = maps::image(slot)?;
    if get!(image, owner) != in_flight.owner {
        return None;
    }
    // SAFETY: both lie in the map's value.
    Some(unsafe {
        if in_flight.flags & InFlight::WRITE == 0 {
            &raw mut (*image).read
        } else {
            &raw mut (*image).write
        }
    })
}

/// A request has ended; `None` = with an error.
#[inline(always)]
pub(crate) fn end(slot: u32, in_flight: &InFlight, octets: Option<u64>) {
    let Some(direction) = direction_of(slot, in_flight) else { return };
    let Some(octets) = octets else {
        // SAFETY: an aligned word of the map's value.
        unsafe { atomic::fetch_add(&raw mut (*direction).errors, 1) };
        return;
    };
    // SAFETY: the helper takes nothing.
    let latency = unsafe { bpf_ktime_get_ns() }.wrapping_sub(in_flight.start);
    count(direction, octets, latency);
}

/// A request has ended with this result, octets or less than 0.
#[inline(always)]
pub(crate) fn end_with(slot: u32, in_flight: &InFlight, result: i64) {
    if result != -EINVAL {
        end(slot, in_flight, u64::try_from(result).ok());
    }
}

/// A request has ended, nobody knows when: it is counted as one that took as long as the others did.
#[inline(always)]
fn end_unseen(in_flight: &InFlight) {
    if in_flight.flags & InFlight::ASYNC == 0 {
        return;
    }
    let Some(direction) = direction_of(in_flight.slot, in_flight) else { return };
    let requests = get!(direction, requests);
    let latency = if requests == 0 { 0 } else { get!(direction, latency_ns) / requests };
    count(direction, in_flight.octets, latency);
}

#[inline(always)]
fn count(direction: *mut DirectionCounters, octets: u64, latency: u64) {
    let mut bucket = bucket_of(latency);
    // SAFETY: its fields are aligned words of the map's value, and the bucket is below their number.
    unsafe {
        atomic::fetch_add(&raw mut (*direction).requests, 1);
        atomic::fetch_add(&raw mut (*direction).octets, octets);
        atomic::fetch_add(&raw mut (*direction).latency_ns, latency);
        // The compiler knows that it is below their number; the verifier must see that.
        asm!("/* {0} */", inout(reg) bucket, options(pure, nomem, nostack));
        if bucket < LATENCY_BUCKETS {
            let buckets = (&raw mut (*direction).buckets).cast::<u64>();
            atomic::fetch_add(buckets.add(bucket), 1);
        }
    }
}

/// `WRITE` or nothing, of the flags of a in_flight.
#[inline(always)]
pub(crate) fn direction(is_write: bool) -> u32 {
    if is_write { InFlight::WRITE } else { 0 }
}
