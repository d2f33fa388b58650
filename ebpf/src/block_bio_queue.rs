//! `block_bio_queue(bio *bio)`: a request goes to a block device, in the process that asks for it.

use aya_ebpf::{macros::btf_tracepoint, programs::BtfTracePointContext};
use kvmeter_common::{ImageKey, InFlight, Layer, Layers};

use crate::{
    image::CurrentVm,
    request::{OnMiss, begin, begin_of_others, direction, record_of},
    task::load,
};

/// `REQ_OP_READ` and `REQ_OP_WRITE` of the kernel's blk_types.h, in the low bits of `bi_opf`.
const OPERATION: u64 = 0xff;
const READ: u64 = 0;
const WRITE: u64 = 1;

#[btf_tracepoint(function = "block_bio_queue")]
fn block_bio_queue(ctx: BtfTracePointContext) -> i32 {
    // SAFETY: argument 0 is a request.
    let bio: *const u8 = unsafe { ctx.arg(0) };
    let Some(slot) = slot_of(bio) else {
        begin_of_others(bio as u64);
        return 0;
    };
    let flags = direction(operation_of(bio) != READ) | InFlight::ASYNC;
    begin(bio as u64, slot, load!("u64", bio, BioSector), load!("u32", bio, BioOctets), flags);
    0
}

#[inline(always)]
fn operation_of(bio: *const u8) -> u64 {
    load!("u32", bio, BioOperation) & OPERATION
}

/// Where a request that reads or writes is counted.
#[inline(always)]
fn slot_of(bio: *const u8) -> Option<u32> {
    let vm = CurrentVm::get()?;
    // A write of nothing is a flush.
    if operation_of(bio) > WRITE || load!("u32", bio, BioOctets) == 0 {
        return None;
    }
    let device = load!("u32", load!("u64", bio, BioDevice), BlockDeviceNumber) as u32;
    let key = ImageKey { vm: vm.slot, device, file: ImageKey::NO_FILE };
    // Also what a file's filesystem asks of its device comes by here: the agent says which devices are images.
    record_of(key, Layers::only(Layer::Block), OnMiss::Ignore)
}
