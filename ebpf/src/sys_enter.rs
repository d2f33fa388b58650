//! `sys_enter(pt_regs *regs, long id)`: a system call begins.

use aya_ebpf::{macros::btf_tracepoint, programs::BtfTracePointContext};
use kvmeter_common::Layer;

use crate::{call::begin_call, kernel};

#[btf_tracepoint(function = "sys_enter")]
fn sys_enter(ctx: BtfTracePointContext) -> i32 {
    if let Some(call) = kernel::call(ctx.arg(1)) {
        begin_call(ctx.arg(0), Layer::Call, call.is_write(), call.has_position());
    }
    0
}
