//! `block_bio_complete(request_queue *q, bio *bio)`: a request to a block device has ended, anywhere.

use aya_ebpf::{macros::btf_tracepoint, programs::BtfTracePointContext};

use crate::{maps, request::end, task::load};

#[btf_tracepoint(function = "block_bio_complete")]
fn block_bio_complete(ctx: BtfTracePointContext) -> i32 {
    // SAFETY: argument 1 is a request.
    let bio: *const u8 = unsafe { ctx.arg(1) };
    let Some(in_flight) = maps::in_flight(bio as u64) else { return 0 };
    maps::remove(bio as u64);
    // Its own size is by now what is left of it.
    let has_failed = load!("u8", bio, BioStatus) != 0;
    end(in_flight.slot, &in_flight, (!has_failed).then_some(in_flight.octets));
    0
}
