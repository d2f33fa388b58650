//! `io_uring_complete(io_ring_ctx *ctx, void *req, io_uring_cqe *cqe)`, with the result as argument 3 instead before
//! Linux 6.13: a request of io_uring has ended, anywhere.

use aya_ebpf::{macros::btf_tracepoint, programs::BtfTracePointContext};
use kvmeter_common::{InFlight, Layer, Layers};

use crate::{
    image::{CurrentVm, File},
    kernel, maps,
    request::{OnMiss, end_with, in_flight_key, record_of},
    task::load,
};

/// However the others are counted.
const LAYERS: Layers = Layers::only(Layer::Call).and(Layer::Function).and(Layer::Ring);

#[btf_tracepoint(function = "io_uring_complete")]
fn io_uring_complete(ctx: BtfTracePointContext) -> i32 {
    // SAFETY: argument 1 is the address of a request.
    let request: u64 = unsafe { ctx.arg(1) };
    let address = in_flight_key(request);
    let Some(in_flight) = maps::in_flight(address) else { return 0 };
    maps::remove(address);
    let result = if kernel::URING_HAS_RESULT.load() != 0 {
        // SAFETY: argument 3 is a number where the kernel has it.
        unsafe { ctx.arg::<i32>(3) }
    } else {
        // SAFETY: argument 2 is a completion.
        let completion: *const u8 = unsafe { ctx.arg(2) };
        load!("u32", completion, UringResult) as i32
    };
    let Some(file) = File::of_uring(request) else { return 0 };
    let Some(key) = file.key(in_flight.slot as u16) else { return 0 };
    // Which process it is for is known only where it runs now.
    let on_miss = match CurrentVm::get() {
        Some(vm) if u32::from(vm.slot) == in_flight.slot && file.may_be_taken() => {
            OnMiss::Create(vm)
        }
        _ => OnMiss::Ignore,
    };
    let Some(slot) = record_of(key, LAYERS, on_miss) else { return 0 };
    let in_flight = InFlight { owner: key.owner(), ..in_flight };
    end_with(slot, &in_flight, result.into());
    0
}
