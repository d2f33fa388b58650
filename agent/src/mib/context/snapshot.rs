//! What the getters of all modules read.

use std::{fmt, sync::Arc};

use arc_swap::Guard;

use super::NotificationSwitches;
use crate::{
    counters::{Readings, SlowValues},
    inventory::Inventory,
    values::Moment,
};

/// One state of the inventory, with the numbers and the switches of the moment at which they are read. Taken for
/// each request.
pub struct Snapshot {
    inventory: Guard<Arc<Inventory>>,
    readings: Arc<dyn Readings>,
    slow: Arc<SlowValues>,
    switches: Arc<NotificationSwitches>,
}

impl Snapshot {
    /// A state that a registry gave out, and what numbers are read from.
    #[must_use]
    pub const fn new(
        inventory: Guard<Arc<Inventory>>,
        readings: Arc<dyn Readings>,
        slow: Arc<SlowValues>,
        switches: Arc<NotificationSwitches>,
    ) -> Self {
        Self { inventory, readings, slow, switches }
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
