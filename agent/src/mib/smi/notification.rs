//! NOTIFICATION-TYPE (RFC 2578 section 8).

use super::{Node, ObjectRef};
use crate::snmp::{Oid, OidError};

/// A notification: { `parent` `number` }.
#[derive(Debug)]
pub struct Notification {
    /// The node above; its last sub-identifier is 0 (RFC 2578 section 8.5).
    pub parent: &'static Node,
    /// The last sub-identifier.
    pub number: u32,
    /// Descriptor.
    pub name: &'static str,
    /// The objects that it carries, in order.
    pub objects: &'static [ObjectRef],
    /// DESCRIPTION clause, on one line.
    pub description: &'static str,
}

impl Notification {
    /// The value of snmpTrapOID.0, in a module with this root.
    ///
    /// # Errors
    ///
    /// [`OidError::TooLong`].
    pub fn id(&self, root: &Oid) -> Result<Oid, OidError> {
        Oid::concat([root.parts(), self.parent.suffix().parts(), &[self.number]])
    }
}
