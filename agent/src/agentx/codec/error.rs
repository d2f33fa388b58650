//! Why octets are no PDU.

use thiserror::Error;

use super::header::VERSION;

/// Why a PDU could not be parsed. Offsets count octets of the payload, from the end of the header.
#[derive(Clone, Copy, Debug, Eq, Error, PartialEq)]
pub enum DecodeError {
    /// Section 6.1: `h.version`.
    #[error("The PDU has AgentX version {0}; only version {VERSION} is known")]
    Version(u8),
    /// Section 6.1: `h.type` is unknown, or of a PDU that only subagents send.
    #[error("A master does not send PDUs of type {0}")]
    PduType(u8),
    /// A field reaches beyond the end of the payload.
    #[error("The field at octet {offset} takes {needed} octets, and {left} are left")]
    Truncated {
        /// Where the field begins.
        offset: usize,
        /// What it takes.
        needed: usize,
        /// What is left of the payload.
        left: usize,
    },
    /// Section 5.1, with the limit of RFC 2578 section 3.5.
    #[error("The object identifier at octet {offset} has more than 128 sub-identifiers")]
    OidTooLong {
        /// Where the object identifier begins.
        offset: usize,
    },
    /// Section 5.4: `v.type`.
    #[error("The variable binding at octet {offset} has the unknown type {kind}")]
    ValueType {
        /// Where the binding begins.
        offset: usize,
        /// The type found.
        kind: u16,
    },
    /// RFC 2578 section 7.1.5: four octets.
    #[error("The IpAddress at octet {offset} has {len} octets in place of 4")]
    IpAddress {
        /// Where the address begins.
        offset: usize,
        /// Its length.
        len: usize,
    },
    /// The payload goes on after the last field.
    #[error("{count} octets follow the last field, at octet {offset}")]
    Trailing {
        /// Where the last field ends.
        offset: usize,
        /// How many octets follow.
        count: usize,
    },
}
