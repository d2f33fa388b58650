//! `iomap_dio_rw_begin(kiocb *iocb, iov_iter *iter, …)`: a direct read or write begins, in the submitting process.

use aya_ebpf::{macros::btf_tracepoint, programs::BtfTracePointContext};
use kvmeter_common::{InFlight, Layer, Layers};

use crate::{
    image::{CurrentVm, File, OnMiss},
    memory::load,
    request::{begin, begin_uncounted, direction, record_of},
};

/// `RWF_NOWAIT` of the kernel's fs.h.
const IOCB_NOWAIT: u32 = 8;

#[btf_tracepoint(function = "iomap_dio_rw_begin")]
fn iomap_dio_rw_begin(ctx: BtfTracePointContext) -> i32 {
    let (iocb, iter): (u64, u64) = (ctx.arg(0), ctx.arg(1));
    let counted = CurrentVm::get().and_then(|vm| {
        // Asynchronous: the request cannot be abandoned before its completion.
        let is_async = load!(u64, iocb, KiocbComplete) != 0;
        let direct = Layers::only(Layer::Direct);
        // In a record of layer `Ring` the hooks of io_uring count asynchronous requests; synchronous ones, those of
        // worker threads, count here.
        let layers = if is_async { direct } else { direct.and(Layer::Ring) };
        let target = record_of(File::key_of_kiocb(iocb, vm), layers, OnMiss::Create(vm))?;
        Some((target, is_async))
    });
    let Some((target, is_async)) = counted else {
        begin_uncounted(iocb);
        return 0;
    };
    let mut flags = direction(load!(u8, iter, IterIsSource) != 0);
    if load!(u32, iocb, KiocbFlags) & IOCB_NOWAIT != 0 {
        flags |= InFlight::NO_WAIT;
    }
    if is_async {
        flags |= InFlight::ASYNC;
    }
    let position = load!(u64, iocb, KiocbPosition);
    let mut bytes = load!(u64, iter, IterCount);
    if flags & InFlight::WRITE == 0 {
        let left = File::size_of_kiocb(iocb).saturating_sub(position);
        bytes = if left < bytes { left } else { bytes };
        // A read past the end of the file returns without a completion event.
        if bytes == 0 {
            return 0;
        }
    }
    begin(iocb, target, position, bytes, flags);
    0
}
