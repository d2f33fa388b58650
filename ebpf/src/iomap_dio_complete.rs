//! `iomap_dio_complete(kiocb *iocb, int error, ssize_t ret)`: a read or write past the page cache has ended, anywhere.

use aya_ebpf::{macros::btf_tracepoint, programs::BtfTracePointContext};

use kvmeter_common::InFlight;

use crate::{maps, request::end_with};

/// It would have had to wait, and is submitted again.
const EAGAIN: i64 = 11;
/// The filesystem does it through the page cache instead.
const ENOTBLK: i64 = 15;

#[btf_tracepoint(function = "iomap_dio_complete")]
fn iomap_dio_complete(ctx: BtfTracePointContext) -> i32 {
    // SAFETY: argument 0 is a request, argument 2 a number.
    let (address, result) = unsafe { (ctx.arg::<*const u8>(0) as u64, ctx.arg::<i64>(2)) };
    let Some(in_flight) = maps::in_flight(address) else { return 0 };
    if result == -EAGAIN {
        let flags = in_flight.flags | InFlight::RETRIED;
        maps::insert(address, &InFlight { flags, ..in_flight }, true);
        return 0;
    }
    maps::remove(address);
    if result != -ENOTBLK {
        end_with(in_flight.slot, &in_flight, result);
    }
    0
}
