//! `block_rq_complete(request *rq, blk_status_t error, unsigned int nr_bytes)`: a driver has completed `nr_bytes` of a
//! request, in any context. A request has one or more bios, for which `block_bio_complete` is not called.

use aya_ebpf::{macros::btf_tracepoint, programs::BtfTracePointContext};

use crate::{
    memory::load,
    request::{end, land},
};

/// Loop bound, for the verifier. A request of direct I/O usually has one bio; plugged neighbours may have been merged.
const MAX_BIOS: usize = 64;

#[btf_tracepoint(function = "block_rq_complete")]
fn block_rq_complete(ctx: BtfTracePointContext) -> i32 {
    complete(&ctx);
    0
}

/// Second copy, for a completion in an interrupt that hits the first one. See [`crate::aio`].
#[btf_tracepoint(function = "block_rq_complete")]
fn block_rq_complete_too(ctx: BtfTracePointContext) -> i32 {
    complete(&ctx);
    0
}

#[inline(always)]
fn complete(ctx: &BtfTracePointContext) {
    let (request, error, mut left): (u64, u32, u32) = (ctx.arg(0), ctx.arg(1), ctx.arg(2));
    let mut bio = load!(u64, request, RequestBio);
    for _ in 0..MAX_BIOS {
        if bio == 0 {
            break;
        }
        let size = load!(u32, bio, BioBytes);
        if size > left {
            // The rest of this bio is completed later.
            break;
        }
        left -= size;
        complete_bio(bio, error);
        bio = load!(u64, bio, BioNext);
    }
}

/// A bio has been completed. Not inlined: the verifier would follow each of its outcomes through the rest of the loop, which takes
/// 15 times as long.
#[inline(never)]
fn complete_bio(bio: u64, error: u32) {
    if let Some(known) = land(bio) {
        // `blk_status_t` is a u8.
        end(&known, (error & 0xff == 0).then_some(known.bytes));
    }
}
