//! `sys_enter(pt_regs *regs, long id)`: a system call begins.

use aya_ebpf::{
    helpers::bpf_get_current_task, macros::btf_tracepoint, programs::BtfTracePointContext,
};
use kvmeter_common::Route;

use crate::{
    image::{CurrentVm, File},
    kernel,
    request::{Taking, begin, direction, record_of},
    task::load,
};

#[btf_tracepoint(function = "sys_enter")]
fn sys_enter(ctx: BtfTracePointContext) -> i32 {
    // SAFETY: argument 1 is a number.
    let Some(call) = kernel::call(unsafe { ctx.arg(1) }) else { return 0 };
    let Some(vm) = CurrentVm::get() else { return 0 };
    // SAFETY: argument 0 is where the call's own arguments are.
    let registers: *const u8 = unsafe { ctx.arg(0) };
    let descriptor = load!("u64", registers, RegistersFirst) as u32;
    let Some(file) = File::of_descriptor(descriptor) else { return 0 };
    let Some(key) = file.key(vm.slot) else { return 0 };
    // Calls without a position are also those for logs and firmware, and what is past the page cache is counted there
    // unless the agent says otherwise.
    let taking =
        if call.has_position() && !file.is_direct() { Taking::For(vm) } else { Taking::No };
    let Some(slot) = record_of(key, Route::Call, taking) else { return 0 };
    // SAFETY: the helper takes nothing.
    let task = unsafe { bpf_get_current_task() };
    begin(task, slot, 0, 0, direction(call.is_write()));
    0
}
