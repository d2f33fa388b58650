//! io_submit(2): `aio_read(kiocb *req, …)` and `aio_write(kiocb *req, …)` in the submitting process, and
//! `aio_complete_rw(kiocb *kiocb, long res)` in any context.

use aya_ebpf::{macros::fentry, programs::FEntryContext};
use kvmeter_common::{Layer, Layers};

use crate::{
    image::{CurrentVm, File},
    request::{begin, direction, end_with, in_flight_key, land, record_of},
};

#[fentry]
fn aio_read(ctx: FEntryContext) -> i32 {
    begin_aio(ctx.arg(0), false);
    0
}

#[fentry]
fn aio_write(ctx: FEntryContext) -> i32 {
    begin_aio(ctx.arg(0), true);
    0
}

#[inline(always)]
fn begin_aio(kiocb: u64, is_write: bool) {
    let Some(vm) = CurrentVm::get() else { return };
    let Some(file) = File::of_kiocb(kiocb) else { return };
    let Some(key) = file.key(vm.slot) else { return };
    let on_miss = file.on_miss(vm);
    if let Some(target) = record_of(key, Layers::only(Layer::Function), on_miss) {
        begin(in_flight_key(kiocb), target, 0, 0, direction(is_write));
    }
}

#[fentry]
fn aio_complete_rw(ctx: FEntryContext) -> i32 {
    end_aio(&ctx);
    0
}

/// Second copy of `aio_complete_rw`. The kernel does not run a program that is running on this CPU already: a completion
/// interrupt that hits the first copy is counted by this one.
#[fentry]
fn aio_complete_rw_too(ctx: FEntryContext) -> i32 {
    end_aio(&ctx);
    0
}

#[inline(always)]
fn end_aio(ctx: &FEntryContext) {
    let (kiocb, result) = (ctx.arg(0), ctx.arg(1));
    if let Some(request) = land(in_flight_key(kiocb)) {
        end_with(&request, result);
    }
}
