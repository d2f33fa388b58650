//! The times of a VM, in ns.

use super::{Moment, Number, is_down};
use crate::inventory::{OperState, Vm};

/// CPU time of all threads of the VM's process in ns, those that have exited included. Never decreases while the VM runs.
#[must_use]
pub fn vm_time_ns(moment: Moment<'_>, vm: &Vm) -> Number<'static, u64> {
    match vm.slot {
        Some(slot) => Number::of_kernel(
            moment.readings.vm_time_ns(slot),
            "the process has exited, or the counting has ended",
        ),
        None if is_down(vm) => Number::Off,
        None => Number::Absent(without_record(vm)),
    }
}

/// Time since the VM was started in ns, also over a managed save, while it lasts and after it. 0 while it is shut down.
#[must_use]
pub fn vm_up_time_ns(moment: Moment<'_>, vm: &Vm) -> Number<'static, u64> {
    match vm.up_since_ns.or(vm.started_ns) {
        Some(started) => Number::Kernel(moment.readings.since_boot_ns().saturating_sub(started)),
        None if vm.oper_state == OperState::Suspended => {
            Number::Absent("it was saved before the agent knew it")
        }
        None if is_down(vm) => Number::Off,
        None => Number::Absent(without_record(vm)),
    }
}

/// Why a VM that is not off has no record.
pub(super) const fn without_record(vm: &Vm) -> &'static str {
    if vm.pid.is_none() { "its process is not known" } else { "its process is not counted" }
}
