//! What a manager can switch.

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering::Relaxed},
};

/// Which notifications are sent.
#[derive(Debug, Default)]
pub struct NotificationSwitches {
    /// vmPerVMNotificationsEnabled.
    pub per_vm: Switch,
    /// vmBulkNotificationsEnabled.
    pub bulk: Switch,
}

impl NotificationSwitches {
    /// As they are after each initialisation of the management system.
    #[must_use]
    pub fn new(per_vm: bool, bulk: bool) -> Self {
        Self { per_vm: Switch::new(per_vm), bulk: Switch::new(bulk) }
    }
}

/// A switch with its initial position.
#[derive(Debug, Default)]
pub struct Switch {
    initial: bool,
    now: Arc<AtomicBool>,
}

impl Switch {
    fn new(initial: bool) -> Self {
        Self { initial, now: Arc::new(AtomicBool::new(initial)) }
    }

    /// Whether it is on.
    #[must_use]
    pub fn is_on(&self) -> bool {
        self.now.load(Relaxed)
    }

    /// Switches it.
    pub fn set(&self, on: bool) {
        self.now.store(on, Relaxed);
    }

    /// Puts it back to its initial position.
    pub fn reset(&self) {
        self.set(self.initial);
    }

    /// Its position, for what waits until it is sent.
    #[must_use]
    pub fn position(&self) -> Arc<AtomicBool> {
        Arc::clone(&self.now)
    }
}
