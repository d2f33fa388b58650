//! Notifications to send to the master.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::Instant,
};

use crate::snmp::{Oid, OwnedValue};

/// The variable bindings of an agentx-Notify-PDU (RFC 2741 section 6.2.10): snmpTrapOID.0 first. The master adds
/// sysUpTime.0.
pub type Bindings = Vec<(Oid, OwnedValue)>;

/// A notification that is to be sent.
#[derive(Clone, Debug)]
pub struct Notice {
    /// Names and values, in order.
    pub bindings: Bindings,
    /// The switch of this kind of notification. One that is off at the moment of sending means that the notification is not
    /// sent.
    pub switch: Arc<AtomicBool>,
    /// When it was made.
    pub at: Instant,
}

impl Notice {
    /// Whether it is to be sent now.
    pub(super) fn is_wanted(&self) -> bool {
        self.switch.load(Relaxed)
    }
}
