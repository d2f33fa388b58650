//! What the getters of all modules read.

use std::{cell::Cell, fmt, sync::Arc};

use arc_swap::Guard;

use super::NotificationSwitches;
use crate::{
    counters::{CpuMask, Readings, SlowValues, ThreadSlot},
    inventory::{Inventory, Vcpu},
    values::{self, Moment},
};

/// One state of the inventory, with the numbers and the switches of the moment at which they are read. Taken for
/// each request.
pub struct Snapshot {
    inventory: Guard<Arc<Inventory>>,
    readings: Arc<dyn Readings>,
    slow: Arc<SlowValues>,
    switches: Arc<NotificationSwitches>,
    has_affinity: bool,
    /// The CPUs of the vCPU that was read last: its row for each CPU of the host shows the same.
    mask: Cell<Option<(ThreadSlot, Option<CpuMask>)>>,
}

impl Snapshot {
    /// A state that a registry gave out, and what numbers are read from.
    #[must_use]
    pub fn new(
        inventory: Guard<Arc<Inventory>>,
        readings: Arc<dyn Readings>,
        slow: Arc<SlowValues>,
        switches: Arc<NotificationSwitches>,
    ) -> Self {
        Self { inventory, readings, slow, switches, has_affinity: true, mask: Cell::default() }
    }

    /// With or without the rows of vmCpuAffinityTable.
    #[must_use]
    pub fn with_affinity(self, has_affinity: bool) -> Self {
        Self { has_affinity, ..self }
    }

    /// A state with counters alone: nothing was learned in the background, and all switches are off.
    #[must_use]
    pub fn of_counters(inventory: Arc<Inventory>, readings: Arc<dyn Readings>) -> Self {
        Self::new(Guard::from_inner(inventory), readings, Arc::default(), Arc::default())
    }

    /// The VMs.
    #[must_use]
    pub fn inventory(&self) -> &Inventory {
        &self.inventory
    }

    /// What the numbers of VMs and disks are read from.
    #[must_use]
    pub fn moment(&self) -> Moment<'_> {
        Moment { inventory: &self.inventory, readings: &*self.readings, slow: &self.slow }
    }

    /// Whether vmCpuAffinityTable has rows.
    #[must_use]
    pub const fn has_affinity(&self) -> bool {
        self.has_affinity
    }

    /// The host's CPUs on which a vCPU may run, read once for all CPUs of the host; `None` = not known.
    #[must_use]
    pub fn cpu_mask(&self, vcpu: &Vcpu) -> Option<CpuMask> {
        let slot = vcpu.slot?;
        match self.mask.get() {
            Some((of, mask)) if of == slot => mask,
            _ => {
                let mask = values::vcpu_cpu_mask(self.moment(), vcpu);
                self.mask.set(Some((slot, mask)));
                mask
            }
        }
    }

    /// What a manager can switch.
    #[must_use]
    pub fn switches(&self) -> &NotificationSwitches {
        &self.switches
    }
}

impl fmt::Debug for Snapshot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Snapshot").field("inventory", self.inventory()).finish_non_exhaustive()
    }
}
