//! `iomap_dio_rw_begin(kiocb *iocb, iov_iter *iter, …)`: a read or write past the page cache begins, in the process
//! that asks for it.

use aya_ebpf::{macros::btf_tracepoint, programs::BtfTracePointContext};
use kvmeter_common::{Flight, Route};

use crate::{
    image::{CurrentVm, File},
    request::{Taking, begin, direction, record_of},
    task::load,
};

/// `RWF_NOWAIT` of the kernel's fs.h.
const IOCB_NOWAIT: u64 = 8;

#[btf_tracepoint(function = "iomap_dio_rw_begin")]
fn iomap_dio_rw_begin(ctx: BtfTracePointContext) -> i32 {
    let Some(vm) = CurrentVm::get() else { return 0 };
    // SAFETY: arguments 0 and 1 are a request and what it moves.
    let (iocb, iter): (*const u8, *const u8) = unsafe { (ctx.arg(0), ctx.arg(1)) };
    let key = File::key_of_kiocb(iocb, vm);
    let Some(slot) = record_of(key, Route::Direct, Taking::For(vm)) else { return 0 };
    let mut flags = direction(load!("u8", iter, IterIsSource) != 0);
    if load!("u32", iocb, KiocbFlags) & IOCB_NOWAIT != 0 {
        flags |= Flight::NO_WAIT;
    }
    // Somebody is told of its end, and does not wait for it: it is not given up on the way.
    if load!("u64", iocb, KiocbComplete) != 0 {
        flags |= Flight::CERTAIN;
    }
    let position = load!("u64", iocb, KiocbPosition);
    let mut octets = load!("u64", iter, IterCount);
    if flags & Flight::WRITE == 0 {
        let left = File::size_of_kiocb(iocb).saturating_sub(position);
        octets = if left < octets { left } else { octets };
    }
    begin(iocb as u64, slot, position, octets, flags);
    0
}
