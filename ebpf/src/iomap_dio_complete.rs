//! `iomap_dio_complete(kiocb *iocb, int error, ssize_t ret)`: a direct read or write has been completed, in any context.

use aya_ebpf::{macros::btf_tracepoint, programs::BtfTracePointContext};
use kvmeter_common::InFlight;

use crate::{maps, request::end_with};

/// The request would have had to wait, and is submitted again.
const EAGAIN: i64 = 11;
/// The filesystem falls back to the page cache.
const ENOTBLK: i64 = 15;

#[btf_tracepoint(function = "iomap_dio_complete")]
fn iomap_dio_complete(ctx: BtfTracePointContext) -> i32 {
    let (address, result): (u64, i64) = (ctx.arg(0), ctx.arg(2));
    let Some(request) = maps::in_flight(address) else { return 0 };
    if result == -EAGAIN {
        let flags = request.flags | InFlight::RETRIED;
        maps::insert(address, &InFlight { flags, ..request }, true);
        return 0;
    }
    maps::remove(address);
    if result != -ENOTBLK {
        end_with(request.slot, &request, result);
    }
    0
}
