//! `io_uring_complete(io_ring_ctx *ctx, void *req, io_uring_cqe *cqe)`, with the result as argument 3 instead before
//! Linux 6.13: a request of io_uring has ended, anywhere.

use aya_ebpf::{macros::btf_tracepoint, programs::BtfTracePointContext};
use kvmeter_common::{Flight, Route, Routes};

use crate::{
    image::{CurrentVm, File},
    kernel, maps,
    request::{Taking, end_with, own_address, record_of},
    task::load,
};

/// However the others are counted.
const ROUTES: Routes = Routes::only(Route::Call).and(Route::Function).and(Route::Ring);

#[btf_tracepoint(function = "io_uring_complete")]
fn io_uring_complete(ctx: BtfTracePointContext) -> i32 {
    // SAFETY: argument 1 is the address of a request.
    let request: u64 = unsafe { ctx.arg(1) };
    let address = own_address(request);
    let Some(flight) = maps::flight(address) else { return 0 };
    maps::land(address);
    let result = if kernel::URING_HAS_RESULT.load() != 0 {
        // SAFETY: argument 3 is a number where the kernel has it.
        unsafe { ctx.arg::<i32>(3) }
    } else {
        // SAFETY: argument 2 is a completion.
        let completion: *const u8 = unsafe { ctx.arg(2) };
        load!("u32", completion, UringResult) as i32
    };
    let Some(file) = File::of_uring(request) else { return 0 };
    let Some(key) = file.key(flight.slot as u16) else { return 0 };
    // Which process it is for is known only where it runs now.
    let taking = match CurrentVm::get() {
        Some(vm) if u32::from(vm.slot) == flight.slot && file.may_be_taken() => Taking::For(vm),
        _ => Taking::No,
    };
    let Some(slot) = record_of(key, ROUTES, taking) else { return 0 };
    let flight = Flight { owner: key.owner(), ..flight };
    end_with(slot, &flight, result.into());
    0
}
