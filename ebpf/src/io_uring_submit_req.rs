//! `io_uring_submit_req(io_kiocb *req)`, before Linux 6.4 `io_uring_submit_sqe(io_kiocb *req, bool force_nonblock)`: a
//! request of io_uring is submitted, in the submitting process. The kernel has not looked up its file yet.

use aya_ebpf::{macros::btf_tracepoint, programs::BtfTracePointContext};

use kvmeter_common::{ImageKey, InFlight};

use crate::{
    image::{CurrentVm, File},
    memory::load,
    request::{Target, URING_LAYERS, begin, direction, in_flight_key, record_of},
};

/// `IORING_OP_*` of the kernel's io_uring.h.
const READV: u8 = 1;
const WRITEV: u8 = 2;
const READ_FIXED: u8 = 4;
const WRITE_FIXED: u8 = 5;
const READ: u8 = 22;
const WRITE: u8 = 23;

#[btf_tracepoint(function = "io_uring_submit_req")]
fn io_uring_submit_req(ctx: BtfTracePointContext) -> i32 {
    let Some(vm) = CurrentVm::get() else { return 0 };
    let request: u64 = ctx.arg(0);
    let is_write = match load!(u8, request, UringOperation) {
        READV | READ_FIXED | READ => false,
        WRITEV | WRITE_FIXED | WRITE => true,
        _ => return 0,
    };
    if let Some(target) = target_of(request, vm) {
        begin(in_flight_key(request), target, 0, 0, direction(is_write));
    }
    0
}

/// The record for a request; of a file that is known at completion only, the VM.
#[inline(always)]
fn target_of(request: u64, vm: CurrentVm) -> Option<Target> {
    match File::of_submitted(request) {
        Ok(file) => {
            let file = file?;
            record_of(file.key(vm.slot)?, URING_LAYERS, file.on_miss(vm))
        }
        Err(()) => {
            let owner = ImageKey { vm: vm.slot, device: 0, file: 0 }.owner();
            Some(Target { slot: InFlight::NO_IMAGE, owner, file: 0 })
        }
    }
}
