//! What a manager can switch.

use std::sync::atomic::AtomicBool;

/// Which notifications are sent. A change lasts as long as the agent runs.
#[derive(Debug, Default)]
pub struct NotificationSwitches {
    /// vmPerVMNotificationsEnabled.
    pub per_vm: AtomicBool,
    /// vmBulkNotificationsEnabled.
    pub bulk: AtomicBool,
}

impl NotificationSwitches {
    /// As they are at the start.
    #[must_use]
    pub const fn new(per_vm: bool, bulk: bool) -> Self {
        Self { per_vm: AtomicBool::new(per_vm), bulk: AtomicBool::new(bulk) }
    }
}
