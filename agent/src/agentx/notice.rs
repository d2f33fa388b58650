//! What is told to the master without being asked for.

use crate::snmp::{Oid, Value};

/// The variable bindings of an agentx-Notify-PDU (RFC 2741 section 6.2.10): snmpTrapOID.0 first; sysUpTime.0 is
/// left to the master.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Notice {
    /// Names and values, in order.
    pub bindings: Vec<(Oid, NoticeValue)>,
}

/// A value that is kept until it is sent.
#[derive(Clone, Debug, Eq, PartialEq)]
#[expect(clippy::large_enum_variant, reason = "each lives until the next write to the master")]
#[expect(missing_docs, reason = "the names are those of `Value`")]
pub enum NoticeValue {
    Integer(i32),
    OctetString(Vec<u8>),
    ObjectIdentifier(Oid),
}

impl NoticeValue {
    pub(super) fn value(&self) -> Value<'_> {
        match self {
            Self::Integer(number) => Value::Integer(*number),
            Self::OctetString(octets) => Value::OctetString(octets),
            Self::ObjectIdentifier(oid) => Value::ObjectIdentifier(oid),
        }
    }
}
