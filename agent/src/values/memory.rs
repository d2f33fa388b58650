//! The memory of a VM, in bytes, as its source reports it: libvirt's configuration, else the VM's process.

use crate::inventory::Vm;

/// The memory that the VM has now, in bytes; `None` = no source reports it.
#[must_use]
pub const fn vm_current_memory(vm: &Vm) -> Option<u64> {
    vm.memory.current
}

/// The memory that the VM is guaranteed, in bytes; `None` = no source reports a lower bound.
#[must_use]
pub const fn vm_min_memory(vm: &Vm) -> Option<u64> {
    vm.memory.min
}

/// The most memory that the VM can have, in bytes; `None` = no source reports a limit.
#[must_use]
pub const fn vm_max_memory(vm: &Vm) -> Option<u64> {
    vm.memory.max
}
