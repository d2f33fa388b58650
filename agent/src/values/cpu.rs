//! How many CPUs a VM has.

use crate::inventory::Vm;

/// Number of vCPUs that the VM has now; of a VM that is off, of those that it starts with. 0 = no source reports it.
#[must_use]
pub const fn vm_cpu_number(vm: &Vm) -> u32 {
    vm.cpu_number
}

/// Least number of vCPUs; `None` = there is no lower bound.
#[must_use]
pub const fn vm_min_cpu_number(vm: &Vm) -> Option<u32> {
    vm.min_cpu_number
}

/// Largest number of vCPUs; `None` = no source reports a limit.
#[must_use]
pub const fn vm_max_cpu_number(vm: &Vm) -> Option<u32> {
    vm.max_cpu_number
}
