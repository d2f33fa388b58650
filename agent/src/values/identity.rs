//! What a VM is known by.

use super::known;
use crate::inventory::{Vm, VmUuid};

/// Name, in full. Never absent: a VM without one is called after its program and process.
#[must_use]
pub fn vm_name(vm: &Vm) -> &str {
    &vm.name
}

/// UUID; `None` = no source reports one, or another VM has it already.
#[must_use]
pub const fn vm_uuid(vm: &Vm) -> Option<&VmUuid> {
    vm.uuid.as_ref()
}

/// libosinfo's id of the operating system that the VM is configured for; `None` = no source reports it.
#[must_use]
pub fn vm_os_type(vm: &Vm) -> Option<&str> {
    known(&vm.os_type)
}

/// What could not be found out about the VM, each with the reason; such devices have no rows.
#[must_use]
pub fn vm_gaps(vm: &Vm) -> &[String] {
    &vm.gaps
}

/// Id of the VM's process in the host's PID namespace; `None` = the VM is off, or no process of it is known.
#[must_use]
pub const fn vm_process(vm: &Vm) -> Option<u32> {
    vm.pid
}
