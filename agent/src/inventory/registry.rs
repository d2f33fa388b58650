//! The present view of the VMs, replaced whole at each change.

use std::sync::Arc;

use arc_swap::{ArcSwap, Guard};

use super::Inventory;

/// Holds the present [`Inventory`]. Readers never wait; a reader keeps the view that it has taken.
#[derive(Debug)]
pub struct Registry {
    present: ArcSwap<Inventory>,
}

impl Registry {
    /// A registry with this view.
    #[must_use]
    pub fn new(inventory: Inventory) -> Self {
        Self { present: ArcSwap::from_pointee(inventory) }
    }

    /// The present view, cheap to take and to give back.
    pub fn view(&self) -> Guard<Arc<Inventory>> {
        self.present.load()
    }

    /// Puts a new view in the place of the present one.
    pub fn publish(&self, view: Arc<Inventory>) {
        self.present.store(view);
    }
}
