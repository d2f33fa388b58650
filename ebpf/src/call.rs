//! Requests that are system calls: a thread makes one at a time, and it returns in that thread.

#![expect(
    unsafe_code,
    reason = "helpers are declared unsafe, and map memory is reached by raw pointers"
)]

use aya_ebpf::helpers::bpf_get_current_task;
use kvmeter_common::{Event, EventKind, Layer, Layers, VmRecord};

use crate::{
    atomic,
    image::{CurrentVm, File, OnMiss},
    maps,
    memory::load,
    request::{begin, direction, end_with, land, record_of},
    thread::get,
};

/// Results after which the call is made again, by the caller or (`ERESTART*`) by the kernel: neither I/O nor a failure.
const EINTR: i64 = 4;
const EAGAIN: i64 = 11;
const ERESTARTSYS: i64 = 512;
const ERESTART_RESTARTBLOCK: i64 = 516;

/// A call begins; `registers` is the `struct pt_regs *` with its arguments.
#[inline(always)]
pub(crate) fn begin_call(registers: u64, layer: Layer, is_write: bool, has_position: bool) {
    let Some(vm) = CurrentVm::get() else { return };
    #[expect(
        clippy::cast_possible_truncation,
        reason = "a descriptor is an unsigned int to the kernel"
    )]
    let descriptor = load!(u64, registers, RegistersFirst) as u32;
    let Some(file) = File::of_descriptor(descriptor) else { return };
    let Some(key) = file.key(vm.slot) else { return };
    // Logs and firmware are read and written without a position, too.
    let on_miss = if has_position { file.on_miss(vm) } else { OnMiss::Ignore };
    let Some(target) = record_of(key, Layers::only(layer), on_miss) else { return };
    // SAFETY: the helper has no arguments and no precondition.
    let task = unsafe { bpf_get_current_task() };
    begin(task, target, 0, 0, direction(is_write));
}

/// The running process calls io_submit(2): its requests are no calls, and other hooks have to count them.
#[inline(always)]
pub(crate) fn note_submission() {
    let Some(CurrentVm { slot, tgid }) = CurrentVm::get() else { return };
    let Some(vm) = maps::vm(slot) else { return };
    if get!(vm, flags) & VmRecord::SUBMITS != 0 {
        return;
    }
    // SAFETY: `vm` is a whole value of the map, and the field an aligned word of it.
    let flags = unsafe { atomic::fetch_or(&raw mut (*vm).flags, VmRecord::SUBMITS) };
    if flags & VmRecord::SUBMITS == 0 {
        let kind = EventKind::Submitted as u32;
        maps::send(&Event { kind, tgid, tid: 0, vm_slot: u32::from(slot) });
    }
}

/// A call has returned a number of bytes or, below 0, an error.
#[inline(always)]
pub(crate) fn end_call(result: i64) {
    // SAFETY: the helper has no arguments and no precondition.
    let task = unsafe { bpf_get_current_task() };
    let Some(request) = land(task) else { return };
    let error = -result;
    if error != EINTR && error != EAGAIN && !(ERESTARTSYS..=ERESTART_RESTARTBLOCK).contains(&error)
    {
        end_with(&request, result);
    }
}
