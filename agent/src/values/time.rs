//! The times of a VM and its vCPUs.

use super::Moment;
use crate::inventory::{Vcpu, Vm};

/// CPU time of all threads of the VM's process in ns, those that have exited included; 0 = the VM is off; `None` = it
/// is not counted.
#[must_use]
pub fn vm_time_ns(moment: Moment<'_>, vm: &Vm) -> Option<u64> {
    match vm.slot {
        Some(slot) => moment.readings.vm_time_ns(slot),
        None => is_down(vm).then_some(0),
    }
}

/// CPU time of a vCPU in ns; 0 = the VM is off; `None` = the vCPU is not counted.
#[must_use]
pub fn vcpu_time_ns(moment: Moment<'_>, vm: &Vm, vcpu: &Vcpu) -> Option<u64> {
    match vcpu.slot {
        Some(slot) => moment.readings.vcpu_time_ns(slot),
        None => is_down(vm).then_some(0),
    }
}

/// Time since the VM was started in ns; 0 = it is off; `None` = not known.
#[must_use]
pub fn vm_up_time_ns(moment: Moment<'_>, vm: &Vm) -> Option<u64> {
    match vm.started_ns {
        Some(started) => Some(moment.readings.since_boot_ns().saturating_sub(started)),
        None => is_down(vm).then_some(0),
    }
}

/// Whether the VM has no process that could be counted: its counters are 0, not unknown.
#[must_use]
pub fn is_down(vm: &Vm) -> bool {
    vm.slot.is_none() && vm.started_ns.is_none() && vm.oper_state.is_down()
}
