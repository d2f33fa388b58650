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
    begin(iocb as u64, slot, load!("u64", iocb, KiocbPosition), 0, flags);
    0
}
