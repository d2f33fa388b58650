//! Requests that are system calls: a thread makes one at a time, and it ends in that thread.

use aya_ebpf::helpers::bpf_get_current_task;
use kvmeter_common::{Layer, Layers};

use crate::{
    image::{CurrentVm, File},
    maps,
    request::{OnMiss, begin, direction, end_with, record_of},
    task::load,
};

/// It was interrupted, or would have had to wait: it is made again. The last are the kernel's own, for calls that it
/// repeats itself.
const EINTR: i64 = 4;
const EAGAIN: i64 = 11;
const ERESTARTSYS: i64 = 512;
const ERESTART_RESTARTBLOCK: i64 = 516;

/// One begins, with its arguments in these `pt_regs`.
#[inline(always)]
pub(crate) fn begin_call(registers: *const u8, layer: Layer, is_write: bool, has_position: bool) {
    let Some(vm) = CurrentVm::get() else { return };
    let descriptor = load!("u64", registers, RegistersFirst) as u32;
    let Some(file) = File::of_descriptor(descriptor) else { return };
    let Some(key) = file.key(vm.slot) else { return };
    // Calls without a position are also those for logs and firmware.
    let on_miss =
        if has_position && file.may_be_taken() { OnMiss::Create(vm) } else { OnMiss::Ignore };
    let Some(slot) = record_of(key, Layers::only(layer), on_miss) else { return };
    // SAFETY: the helper takes nothing.
    let task = unsafe { bpf_get_current_task() };
    begin(task, slot, 0, 0, direction(is_write));
}

/// One has ended; less than 0 is an error.
#[inline(always)]
pub(crate) fn end_call(result: i64) {
    // SAFETY: the helper takes nothing.
    let task = unsafe { bpf_get_current_task() };
    let Some(in_flight) = maps::in_flight(task) else { return };
    maps::remove(task);
    let error = -result;
    if error != EINTR && error != EAGAIN && !(ERESTARTSYS..=ERESTART_RESTARTBLOCK).contains(&error)
    {
        end_with(in_flight.slot, &in_flight, result);
    }
}
