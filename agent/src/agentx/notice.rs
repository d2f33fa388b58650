//! Notifications to send to the master.

use crate::snmp::{Oid, OwnedValue};

/// The variable bindings of an agentx-Notify-PDU (RFC 2741 section 6.2.10): snmpTrapOID.0 first. The master adds
/// sysUpTime.0.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Notice {
    /// Names and values, in order.
    pub bindings: Vec<(Oid, OwnedValue)>,
}
