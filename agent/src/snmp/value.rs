//! Values of variable bindings (RFC 2578 section 7.1, RFC 2741 section 5.4).

use super::Oid;

/// The value of one object instance. Octets are borrowed from the view that answers, so that a GET
/// copies them once: into the response.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Value<'a> {
    /// `Integer32` and `INTEGER`, enumerations included.
    Integer(i32),
    /// `OCTET STRING`, any octets.
    OctetString(&'a [u8]),
    /// `OBJECT IDENTIFIER`.
    ObjectIdentifier(&'a Oid),
    /// `TimeTicks`: centiseconds modulo 2^32.
    TimeTicks(u32),
    /// `Counter64`.
    Counter64(u64),
}
