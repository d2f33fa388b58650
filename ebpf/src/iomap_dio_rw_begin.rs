//! `iomap_dio_rw_begin(kiocb *iocb, iov_iter *iter, …)`: a read or write past the page cache begins, in the process
//! that asks for it.

use aya_ebpf::{macros::btf_tracepoint, programs::BtfTracePointContext};
use kvmeter_common::{InFlight, Layer, Layers};

use crate::{
    image::{CurrentVm, File},
    request::{OnMiss, begin, begin_of_others, direction, record_of},
    task::load,
};

/// `RWF_NOWAIT` of the kernel's fs.h.
const IOCB_NOWAIT: u64 = 8;

#[btf_tracepoint(function = "iomap_dio_rw_begin")]
fn iomap_dio_rw_begin(ctx: BtfTracePointContext) -> i32 {
    // SAFETY: arguments 0 and 1 are a request and what it moves.
    let (iocb, iter): (*const u8, *const u8) = unsafe { (ctx.arg(0), ctx.arg(1)) };
    let own = CurrentVm::get().and_then(|vm| {
        // Somebody is told of its end, and does not wait for it: it is not given up on the way.
        let is_told = load!("u64", iocb, KiocbComplete) != 0;
        let direct = Layers::only(Layer::Direct);
        // Those that nobody waits for are io_uring's there.
        let layers = if is_told { direct } else { direct.and(Layer::Ring) };
        let slot = record_of(File::key_of_kiocb(iocb, vm), layers, OnMiss::Create(vm))?;
        Some((slot, is_told))
    });
    let Some((slot, is_told)) = own else {
        begin_of_others(iocb as u64);
        return 0;
    };
    let mut flags = direction(load!("u8", iter, IterIsSource) != 0);
    if load!("u32", iocb, KiocbFlags) & IOCB_NOWAIT != 0 {
        flags |= InFlight::NO_WAIT;
    }
    if is_told {
        flags |= InFlight::ASYNC;
    }
    let position = load!("u64", iocb, KiocbPosition);
    let mut octets = load!("u64", iter, IterCount);
    if flags & InFlight::WRITE == 0 {
        let left = File::size_of_kiocb(iocb).saturating_sub(position);
        octets = if left < octets { left } else { octets };
        // There is nothing to read, and no end is told of.
        if octets == 0 {
            return 0;
        }
    }
    begin(iocb as u64, slot, position, octets, flags);
    0
}
