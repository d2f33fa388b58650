//! `block_bio_complete(request_queue *q, bio *bio)`: a bio without a request has been completed, in any context.

use aya_ebpf::{macros::btf_tracepoint, programs::BtfTracePointContext};

use crate::{maps, memory::load, request::end};

#[btf_tracepoint(function = "block_bio_complete")]
fn block_bio_complete(ctx: BtfTracePointContext) -> i32 {
    let bio: u64 = ctx.arg(1);
    let Some(request) = maps::in_flight(bio) else { return 0 };
    maps::remove(bio);
    let has_failed = load!(u8, bio, BioStatus) != 0;
    // `bi_size` is the residual by now: the size at submission counts.
    end(request.slot, &request, (!has_failed).then_some(request.bytes));
    0
}
