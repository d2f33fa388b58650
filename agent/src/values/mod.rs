//! What each number of a VM and its disks is, who counted it, and why it is absent. SNMP, the status and every other
//! reader are projections of this room.

mod disk;
mod time;

pub use disk::{DiskNumbers, disk_io, disk_size};
pub use time::{is_down, vcpu_time_ns, vm_time_ns, vm_up_time_ns};

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

impl std::fmt::Debug for Moment<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Moment").field("inventory", self.inventory).finish_non_exhaustive()
    }
}
