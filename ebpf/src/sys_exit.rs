//! `sys_exit(pt_regs *regs, long ret)`: a system call returns, in the thread that made it.

use aya_ebpf::{macros::btf_tracepoint, programs::BtfTracePointContext};

use crate::call::end_call;

#[btf_tracepoint(function = "sys_exit")]
fn sys_exit(ctx: BtfTracePointContext) -> i32 {
    end_call(ctx.arg(1));
    0
}
