//! `sys_enter(pt_regs *regs, long id)`: a system call begins.

use aya_ebpf::{macros::btf_tracepoint, programs::BtfTracePointContext};
use kvmeter_common::Layer;

use crate::{call::begin_call, kernel};

#[btf_tracepoint(function = "sys_enter")]
fn sys_enter(ctx: BtfTracePointContext) -> i32 {
    // SAFETY: argument 1 is a number.
    if let Some(call) = kernel::call(unsafe { ctx.arg(1) }) {
        // SAFETY: argument 0 is where the call's own arguments are.
        begin_call(unsafe { ctx.arg(0) }, Layer::Call, call.is_write(), call.has_position());
    }
    0
}
