//! `iomap_dio_complete(kiocb *iocb, int error, ssize_t ret)`: a direct read or write has been completed, in any context.

use aya_ebpf::{macros::btf_tracepoint, programs::BtfTracePointContext};
use kvmeter_common::InFlight;

use crate::{
    maps,
    request::{end_with, land},
};

/// The request would have had to wait, and is submitted again.
const EAGAIN: i64 = 11;
/// The filesystem falls back to the page cache.
const ENOTBLK: i64 = 15;

#[btf_tracepoint(function = "iomap_dio_complete")]
fn iomap_dio_complete(ctx: BtfTracePointContext) -> i32 {
    complete(&ctx);
    0
}

/// Second copy, for a completion in an interrupt that hits the first one. See [`crate::aio`].
#[btf_tracepoint(function = "iomap_dio_complete")]
fn iomap_dio_complete_too(ctx: BtfTracePointContext) -> i32 {
    complete(&ctx);
    0
}

#[inline(always)]
fn complete(ctx: &BtfTracePointContext) {
    let (address, result): (u64, i64) = (ctx.arg(0), ctx.arg(2));
    if result == -EAGAIN {
        if let Some(request) = maps::in_flight(address) {
            let flags = request.flags | InFlight::RETRIED;
            maps::replace(address, &InFlight { flags, ..request });
        }
    } else if let Some(request) = land(address)
        && result != -ENOTBLK
    {
        end_with(&request, result);
    }
}
