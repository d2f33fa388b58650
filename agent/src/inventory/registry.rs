//! The present view of the VMs, replaced whole at each change.

use std::sync::Arc;

use arc_swap::{ArcSwap, Guard};

use super::{Hypervisor, Inventory, Vm};

/// Holds the present [`Inventory`]. Readers never wait; a reader keeps the view that it has taken.
#[derive(Debug)]
pub struct Registry {
    present: ArcSwap<Inventory>,
}

impl Registry {
    /// A registry that knows no VM yet.
    #[must_use]
    pub fn new(hypervisor: Hypervisor, now_ns: u64) -> Self {
        let inventory = Inventory { hypervisor, last_change_ns: now_ns, ..Inventory::default() };
        Self { present: ArcSwap::from_pointee(inventory) }
    }

    /// The present view, cheap to take and to give back.
    pub fn view(&self) -> Guard<Arc<Inventory>> {
        self.present.load()
    }

    /// Puts a new set of VMs and CPUs in the place of the present one, unless nothing is different. Only one
    /// thread may do this. `now_ns` is the time since boot; it is noted when a VM came or went.
    pub fn publish(&self, mut vms: Vec<Vm>, cpus: Vec<u32>, hypervisor: &Hypervisor, now_ns: u64) {
        vms.sort_by_key(|vm| vm.index);
        let old = self.present.load();
        if old.vms == vms && old.cpus == cpus && old.hypervisor == *hypervisor {
            return;
        }
        let row = |vm: &Vm| (vm.index, vm.uuid);
        let same_rows = old.vms.iter().map(row).eq(vms.iter().map(row));
        self.present.store(Arc::new(Inventory {
            hypervisor: hypervisor.clone(),
            last_change_ns: if same_rows { old.last_change_ns } else { now_ns },
            vms,
            cpus,
        }));
    }
}
