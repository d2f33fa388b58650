//! How a request is followed from its submission to its completion, and counted.

use core::arch::asm;

use aya_ebpf::helpers::bpf_ktime_get_ns;
use kvmeter_common::{
    Event, EventKind, Flight, IMAGES, ImageKey, Route, image::{LATENCY_BUCKETS, PROBES, bucket_of},
};

use crate::{
    atomic,
    image::CurrentVm,
    maps,
    thread::{get, set},
};

/// Who a record that is not there is taken for, if at all.
#[derive(Clone, Copy)]
pub(crate) enum Taking {
    No,
    For(CurrentVm),
}

/// The slot of the image's record; nothing where there is none, or where the image is counted by another route.
#[inline(always)]
pub(crate) fn record_of(key: ImageKey, route: Route, taking: Taking) -> Option<u32> {
    let place = key.place();
    for step in 0..PROBES as u32 {
        let slot = (place + step) % IMAGES as u32;
        let record = maps::image(slot)?;
        let owner = get!(record, owner);
        if owner == key.owner() && get!(record, file) == key.file {
            return (get!(record, route) == route as u32).then_some(slot);
        }
        if owner != 0 {
            continue;
        }
        let Taking::For(vm) = taking else { return None };
        // SAFETY: the field is an aligned word of a map value.
        if unsafe { atomic::compare_exchange(&raw mut (*record).owner, 0, key.owner()) } {
            set!(record, route, route as u32);
            // A record is found by its file, so that comes last: the addition orders it. Freed records have 0 there.
            // SAFETY: as above.
            unsafe { atomic::fetch_add(&raw mut (*record).file, key.file) };
            let kind = EventKind::ImageTaken as u32;
            maps::send(&Event { kind, tgid: vm.tgid, tid: 0, vm_slot: u32::from(vm.slot) });
            return Some(slot);
        }
    }
    if let Taking::For(_) = taking {
        maps::count_uncounted();
    }
    None
}

/// The request at `address` begins.
#[inline(always)]
pub(crate) fn begin(address: u64, slot: u32, position: u64, octets: u64, flags: u32) {
    // SAFETY: the helper takes nothing.
    let start = unsafe { bpf_ktime_get_ns() };
    maps::take_off(address, &Flight { start, position, octets, slot, flags });
}

/// A request has ended; `None` = with an error.
#[inline(always)]
pub(crate) fn end(slot: u32, flight: &Flight, octets: Option<u64>) {
    let Some(image) = maps::image(slot) else { return };
    // SAFETY: the helper takes nothing.
    let latency = unsafe { bpf_ktime_get_ns() }.wrapping_sub(flight.start);
    // SAFETY: both lie in the map's value; its fields are aligned words, and a bucket is below their number.
    unsafe {
        let direction = if flight.flags & Flight::WRITE == 0 {
            &raw mut (*image).read
        } else {
            &raw mut (*image).write
        };
        let Some(octets) = octets else {
            atomic::fetch_add(&raw mut (*direction).errors, 1);
            return;
        };
        atomic::fetch_add(&raw mut (*direction).requests, 1);
        atomic::fetch_add(&raw mut (*direction).octets, octets);
        atomic::fetch_add(&raw mut (*direction).latency_ns, latency);
        let mut bucket = bucket_of(latency);
        // The compiler knows that it is below their number; the verifier must see that.
        asm!("/* {0} */", inout(reg) bucket, options(pure, nomem, nostack));
        if bucket < LATENCY_BUCKETS {
            let buckets = (&raw mut (*direction).buckets).cast::<u64>();
            atomic::fetch_add(buckets.add(bucket), 1);
        }
    }
}

/// `WRITE` or nothing, of the flags of a flight.
#[inline(always)]
pub(crate) fn direction(is_write: bool) -> u32 {
    if is_write { Flight::WRITE } else { 0 }
}
