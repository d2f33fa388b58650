//! `io_uring_complete(io_ring_ctx *ctx, void *req, io_uring_cqe *cqe)`: a request of io_uring has been completed, in any
//! context. Before Linux 6.13 the result is argument 3.

use aya_ebpf::{macros::btf_tracepoint, programs::BtfTracePointContext};
use kvmeter_common::{InFlight, Layer, Layers};

use crate::{
    image::{CurrentVm, File},
    kernel, maps,
    memory::load,
    request::{OnMiss, end_with, in_flight_key, record_of},
};

/// A completion counts in a record of any of these layers.
const LAYERS: Layers = Layers::only(Layer::Call).and(Layer::Function).and(Layer::Ring);

#[btf_tracepoint(function = "io_uring_complete")]
fn io_uring_complete(ctx: BtfTracePointContext) -> i32 {
    let request: u64 = ctx.arg(1);
    let address = in_flight_key(request);
    let Some(known) = maps::in_flight(address) else { return 0 };
    maps::remove(address);
    let result = if kernel::URING_HAS_RESULT.load() != 0 {
        ctx.arg::<i32>(3)
    } else {
        load!(u32, ctx.arg(2), UringResult).cast_signed()
    };
    let Some(file) = File::of_uring(request) else { return 0 };
    #[expect(
        clippy::cast_possible_truncation,
        reason = "at submission a VM's slot, a u16, was stored"
    )]
    let vm_slot = known.slot as u16;
    let Some(key) = file.key(vm_slot) else { return 0 };
    // The completion may run in another process, in which the VM's process id is not known.
    let on_miss = match CurrentVm::get() {
        Some(vm) if vm.slot == vm_slot && file.may_have_new_record() => OnMiss::Create(vm),
        _ => OnMiss::Ignore,
    };
    let Some(slot) = record_of(key, LAYERS, on_miss) else { return 0 };
    end_with(slot, &InFlight { owner: key.owner(), ..known }, result.into());
    0
}
