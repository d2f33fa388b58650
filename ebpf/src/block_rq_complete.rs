//! `block_rq_complete(request *rq, blk_status_t error, unsigned int nr_bytes)`: a driver has done so much of a request,
//! anywhere. It is made of one or more bios, for each of which `block_bio_complete` comes only without such a request.

use aya_ebpf::{macros::btf_tracepoint, programs::BtfTracePointContext};

use crate::{maps, request::end, task::load};

/// The most bios of a request that are looked at; a request of direct I/O has one, unless its neighbours were waiting.
const MAX_BIOS: usize = 64;

#[btf_tracepoint(function = "block_rq_complete")]
fn block_rq_complete(ctx: BtfTracePointContext) -> i32 {
    // SAFETY: argument 0 is a request, the others are numbers.
    let (request, error, octets): (*const u8, u32, u32) =
        unsafe { (ctx.arg(0), ctx.arg(1), ctx.arg(2)) };
    let mut left = u64::from(octets);
    let mut bio = load!("u64", request, RequestBio);
    for _ in 0..MAX_BIOS {
        if bio == 0 {
            break;
        }
        let size = load!("u32", bio, BioOctets);
        if size > left {
            // The rest of it comes later.
            break;
        }
        left -= size;
        if let Some(in_flight) = maps::in_flight(bio) {
            maps::remove(bio);
            end(in_flight.slot, &in_flight, (error & 0xff == 0).then_some(in_flight.octets));
        }
        bio = load!("u64", bio, BioNext);
    }
    0
}
