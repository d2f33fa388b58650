//! `io_uring_complete(io_ring_ctx *ctx, void *req, io_uring_cqe *cqe)`: a request of io_uring has been completed, in any
//! context. Before Linux 6.13 the result is argument 3.

use aya_ebpf::{macros::btf_tracepoint, programs::BtfTracePointContext};
use kvmeter_common::{ImageKey, InFlight};

use crate::{
    image::{CurrentVm, File, OnMiss},
    kernel,
    memory::load,
    request::{URING_LAYERS, end_with, in_flight_key, land, record_of},
};

#[btf_tracepoint(function = "io_uring_complete")]
fn io_uring_complete(ctx: BtfTracePointContext) -> i32 {
    let request: u64 = ctx.arg(1);
    let Some(known) = land(in_flight_key(request)) else { return 0 };
    let result = if kernel::URING_HAS_RESULT.load() != 0 {
        ctx.arg::<i32>(3)
    } else {
        load!(u32, ctx.arg(2), UringResult).cast_signed()
    };
    if known.slot == InFlight::NO_IMAGE {
        if let Some(known) = with_image(request, &known) {
            end_with(&known, result.into());
        }
    } else {
        end_with(&known, result.into());
    }
    0
}

/// A request whose image was not known at submission, with the record of its file.
#[inline(always)]
fn with_image(request: u64, known: &InFlight) -> Option<InFlight> {
    let file = File::of_uring(request)?;
    let vm_slot = ImageKey::of(known.owner, 0).vm;
    // The completion may run in another process, in which the VM's process id is not known.
    let on_miss = match CurrentVm::get() {
        Some(vm) if vm.slot == vm_slot => file.on_miss(vm),
        _ => OnMiss::Ignore,
    };
    let target = record_of(file.key(vm_slot)?, URING_LAYERS, on_miss)?;
    Some(InFlight { slot: target.slot, owner: target.owner, file: target.file, ..*known })
}
