//! `sys_exit(pt_regs *regs, long ret)`: a system call has ended, in the thread that made it.

use aya_ebpf::{
    helpers::bpf_get_current_task, macros::btf_tracepoint, programs::BtfTracePointContext,
};

use crate::{maps, request::end};

/// It was interrupted, or would have had to wait: it is made again. The last are the kernel's own, for calls that it
/// repeats itself.
const EINTR: i64 = 4;
const EAGAIN: i64 = 11;
const ERESTARTSYS: i64 = 512;
const ERESTART_RESTARTBLOCK: i64 = 516;

#[btf_tracepoint(function = "sys_exit")]
fn sys_exit(ctx: BtfTracePointContext) -> i32 {
    // SAFETY: the helper takes nothing.
    let task = unsafe { bpf_get_current_task() };
    let Some(flight) = maps::flight(task) else { return 0 };
    maps::land(task);
    // SAFETY: argument 1 is a number.
    let result: i64 = unsafe { ctx.arg(1) };
    let error = -result;
    if error != EINTR && error != EAGAIN && !(ERESTARTSYS..=ERESTART_RESTARTBLOCK).contains(&error)
    {
        end(flight.slot, &flight, u64::try_from(result).ok());
    }
    0
}
