//! Errors of decoding.

use thiserror::Error;

use super::header::VERSION;

/// Why a PDU cannot be decoded. Offsets are in bytes from the beginning of the payload.
#[derive(Clone, Copy, Debug, Eq, Error, PartialEq)]
pub enum DecodeError {
    /// Section 6.1: `h.version`.
    #[error("The PDU has AgentX version {0}; only version {VERSION} is known")]
    Version(u8),
    /// Section 6.1: `h.type` is unknown, or of a PDU that only subagents send.
    #[error("A master does not send PDUs of type {0}")]
    PduType(u8),
    /// A field reaches beyond the end of the payload.
    #[error("The field at byte {offset} takes {needed} bytes, and {left} are left")]
    Truncated {
        /// Offset of the field.
        offset: usize,
        /// Length of the field.
        needed: usize,
        /// Bytes that are left in the payload.
        left: usize,
    },
    /// Section 5.1, with the limit of RFC 2578 section 3.5.
    #[error("The object identifier at byte {offset} has more than 128 sub-identifiers")]
    OidTooLong {
        /// Offset of the object identifier.
        offset: usize,
    },
    /// Section 5.4: `v.type`.
    #[error("The variable binding at byte {offset} has the unknown type {kind}")]
    ValueType {
        /// Offset of the binding.
        offset: usize,
        /// The type.
        kind: u16,
    },
    /// RFC 2578 section 7.1.5: four bytes.
    #[error("The IpAddress at byte {offset} has {len} bytes in place of 4")]
    IpAddress {
        /// Offset of the address.
        offset: usize,
        /// Its length.
        len: usize,
    },
    /// The payload goes on after the last field.
    #[error("{count} bytes follow the last field, at byte {offset}")]
    Trailing {
        /// End of the last field.
        offset: usize,
        /// Number of bytes that follow.
        count: usize,
    },
}
