//! Requests of io_submit(2): `aio_read(kiocb *req, …)` and `aio_write(kiocb *req, …)` in the process that asks, and
//! `aio_complete_rw(kiocb *kiocb, long res)`, anywhere.

use aya_ebpf::{macros::fentry, programs::FEntryContext};
use kvmeter_common::{Layer, Layers};

use crate::{
    image::{CurrentVm, File},
    maps,
    request::{OnMiss, begin, direction, end_with, in_flight_key, record_of},
};

#[fentry]
fn aio_read(ctx: FEntryContext) -> i32 {
    // SAFETY: argument 0 is a request.
    begin_aio(unsafe { ctx.arg(0) }, false);
    0
}

#[fentry]
fn aio_write(ctx: FEntryContext) -> i32 {
    // SAFETY: argument 0 is a request.
    begin_aio(unsafe { ctx.arg(0) }, true);
    0
}

#[inline(always)]
fn begin_aio(kiocb: *const u8, is_write: bool) {
    let Some(vm) = CurrentVm::get() else { return };
    let Some(file) = File::of_kiocb(kiocb) else { return };
    let Some(key) = file.key(vm.slot) else { return };
    let on_miss = if file.may_be_taken() { OnMiss::Create(vm) } else { OnMiss::Ignore };
    if let Some(slot) = record_of(key, Layers::only(Layer::Function), on_miss) {
        begin(in_flight_key(kiocb as u64), slot, 0, 0, direction(is_write));
    }
}

#[fentry]
fn aio_complete_rw(ctx: FEntryContext) -> i32 {
    end_aio(&ctx);
    0
}

/// The same once more. Requests end in interrupts, and no program runs in an interrupt that comes while it is at work on
/// that CPU: then the other one does.
#[fentry]
fn aio_complete_rw_too(ctx: FEntryContext) -> i32 {
    end_aio(&ctx);
    0
}

#[inline(always)]
fn end_aio(ctx: &FEntryContext) {
    // SAFETY: argument 0 is a request, argument 1 a number.
    let (kiocb, result) = unsafe { (ctx.arg::<*const u8>(0), ctx.arg::<i64>(1)) };
    let address = in_flight_key(kiocb as u64);
    if let Some(in_flight) = maps::in_flight(address)
        && maps::remove(address)
    {
        end_with(in_flight.slot, &in_flight, result);
    }
}
