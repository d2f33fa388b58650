//! The states of a VM.

use crate::inventory::{AdminState, AutoStart, OperState, Persistence, Vm};

/// The state that was asked for. Never absent: without libvirt it is that of a VM that runs.
#[must_use]
pub const fn vm_admin_state(vm: &Vm) -> AdminState {
    vm.admin_state
}

/// The state that the VM is in. Never absent: [`OperState::Unknown`] = no source can tell.
#[must_use]
pub const fn vm_oper_state(vm: &Vm) -> OperState {
    vm.oper_state
}

/// Whether the VM starts with the host. Never absent: [`AutoStart::Unknown`] = no source can tell.
#[must_use]
pub const fn vm_auto_start(vm: &Vm) -> AutoStart {
    vm.auto_start
}

/// Whether the VM stays defined while it is off. Never absent: [`Persistence::Unknown`] = no source can tell.
#[must_use]
pub const fn vm_persistence(vm: &Vm) -> Persistence {
    vm.persistence
}

/// Whether the VM has no process that could be counted: its counters are 0, not unknown.
#[must_use]
pub const fn is_down(vm: &Vm) -> bool {
    vm.slot.is_none() && vm.started_ns.is_none() && vm.oper_state.is_down()
}
