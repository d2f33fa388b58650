//! `block_bio_complete(request_queue *q, bio *bio)`: a bio without a request has been completed, in any context.

use aya_ebpf::{macros::btf_tracepoint, programs::BtfTracePointContext};

use crate::{
    memory::load,
    request::{end, land},
};

#[btf_tracepoint(function = "block_bio_complete")]
fn block_bio_complete(ctx: BtfTracePointContext) -> i32 {
    complete(&ctx);
    0
}

/// Second copy, for a completion in an interrupt that hits the first one. See [`crate::aio`].
#[btf_tracepoint(function = "block_bio_complete")]
fn block_bio_complete_too(ctx: BtfTracePointContext) -> i32 {
    complete(&ctx);
    0
}

#[inline(always)]
fn complete(ctx: &BtfTracePointContext) {
    let bio: u64 = ctx.arg(1);
    if let Some(request) = land(bio) {
        let has_failed = load!(u8, bio, BioStatus) != 0;
        // `bi_size` is the residual by now: the size at submission counts.
        end(&request, (!has_failed).then_some(request.bytes));
    }
}
