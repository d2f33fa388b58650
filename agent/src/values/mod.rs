//! What each value of the host, a VM, a vCPU, a disk and a network interface is, in which unit, who counted it, and why it
//! is absent. SNMP, the status and every other reader are projections of this room.
//!
//! One file for each subject, one function for each value. What is counted is a [`Number`]; a fact that a source reports
//! is an `Option`; the function says when it is `None`. A function copies or borrows: it never allocates.

mod cpu;
mod disk;
mod host;
mod identity;
mod memory;
mod network;
mod number;
mod state;
#[cfg(test)]
mod tests;
mod time;
mod vcpu;

pub use cpu::{vm_cpu_number, vm_max_cpu_number, vm_min_cpu_number};
pub use disk::{
    DiskCounter, disk_access, disk_bus, disk_counter, disk_format, disk_io, disk_media,
    disk_requests, disk_resource, disk_size, disk_source, disk_target,
};
pub use host::{host_up_time_ns, hypervisor, table_last_change_ns, vm_count};
pub use identity::{vm_gaps, vm_name, vm_os_type, vm_process, vm_uuid};
pub use memory::{vm_current_memory, vm_max_memory, vm_min_memory};
pub use network::{
    nic_device, nic_if_index, nic_model, nic_parent_if_index, nic_phys_address, nic_why_absent,
};
pub use number::Number;
pub use state::{is_down, vm_admin_state, vm_auto_start, vm_oper_state, vm_persistence};
pub use time::{vm_time_ns, vm_up_time_ns};
pub use vcpu::{
    vcpu_cpu_mask, vcpu_preemptions, vcpu_switches, vcpu_thread, vcpu_time_ns, vcpu_wait_ns,
};

use crate::{
    counters::{Readings, SlowValues},
    inventory::Inventory,
};

/// Everything that the numbers of this moment are read from.
#[derive(Clone, Copy)]
pub struct Moment<'a> {
    /// The view of the VMs.
    pub inventory: &'a Inventory,
    /// The counters in mapped memory.
    pub readings: &'a dyn Readings,
    /// What was learned in the background.
    pub slow: &'a SlowValues,
}

/// A text that a source reports; `None` = it is empty, so none reports it.
fn known(text: &str) -> Option<&str> {
    Some(text).filter(|text| !text.is_empty())
}

impl std::fmt::Debug for Moment<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Moment").field("inventory", self.inventory).finish_non_exhaustive()
    }
}
