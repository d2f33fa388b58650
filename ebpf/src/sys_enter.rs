//! `sys_enter(pt_regs *regs, long id)`: a system call begins.

use aya_ebpf::{macros::btf_tracepoint, programs::BtfTracePointContext};
use kvmeter_common::Layer;

use crate::{
    call::{begin_call, note_submission},
    kernel,
};

#[btf_tracepoint(function = "sys_enter")]
fn sys_enter(ctx: BtfTracePointContext) -> i32 {
    let number: i64 = ctx.arg(1);
    if let Some(call) = kernel::call(number) {
        begin_call(ctx.arg(0), Layer::Call, call.is_write(), call.has_position());
    } else if number.cast_unsigned() == kernel::IO_SUBMIT.load() {
        note_submission();
    }
    0
}
