//! `block_bio_queue(bio *bio)`: a bio is submitted to a block device, in the submitting process, or in a worker of the
//! kernel if a limit of a cgroup has delayed it.

use aya_ebpf::{macros::btf_tracepoint, programs::BtfTracePointContext};
use kvmeter_common::{ImageKey, InFlight, Layer, Layers};

use crate::{
    cgroup,
    image::{CurrentVm, OnMiss},
    memory::load,
    request::{Target, begin, begin_uncounted, direction, record_of},
    thread::note_io_cgroup,
    verifier,
};

/// The bits of `bi_opf` with the operation.
const OPERATION: u32 = 0xff;
/// `REQ_OP_READ` of the kernel's blk_types.h.
const READ: u32 = 0;
/// `REQ_OP_WRITE` of the kernel's blk_types.h.
const WRITE: u32 = 1;

#[btf_tracepoint(function = "block_bio_queue")]
fn block_bio_queue(ctx: BtfTracePointContext) -> i32 {
    let bio: u64 = ctx.arg(0);
    let Some(target) = target_of(bio) else {
        begin_uncounted(bio);
        return 0;
    };
    let flags = direction(operation_of(bio) != READ) | InFlight::ASYNC;
    let bytes = u64::from(load!(u32, bio, BioBytes));
    begin(bio, target, load!(u64, bio, BioSector), bytes, flags);
    0
}

#[inline(always)]
fn operation_of(bio: u64) -> u32 {
    load!(u32, bio, BioOperation) & OPERATION
}

/// The record for a bio that reads or writes.
#[inline(always)]
fn target_of(bio: u64) -> Option<Target> {
    let mut vm = slot_of_current();
    // A write of 0 bytes is a flush.
    if operation_of(bio) > WRITE || load!(u32, bio, BioBytes) == 0 {
        return None;
    }
    let device = load!(u32, load!(u64, bio, BioDevice), BlockDeviceNumber);
    if vm == 0 {
        vm = cgroup::vm_of_delayed(bio, device)?;
    }
    let key = ImageKey { vm, device, file: ImageKey::NO_FILE };
    // The bios of filesystems come here, too, so only the agent registers a device as an image.
    let target = record_of(key, Layers::only(Layer::Block), OnMiss::Ignore)?;
    note_io_cgroup(vm, cgroup::of_bio(bio));
    Some(target)
}

/// Slot of the running VM; 0: the running process is no VM.
#[inline(always)]
fn slot_of_current() -> u16 {
    let slot = CurrentVm::get().map_or(0, |vm| usize::from(vm.slot));
    // Else LLVM would keep an `Option` whose slot is undefined for other processes, which the verifier refuses.
    #[expect(clippy::cast_possible_truncation, reason = "the number is a slot")]
    let slot = verifier::forget_bounds(slot) as u16;
    slot
}
