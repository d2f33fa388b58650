//! Values of variable bindings (RFC 2578 section 7.1, RFC 2741 section 5.4).

use super::Oid;

/// The value of one object instance. Octets are borrowed from where the instance is kept, so that a GET copies
/// them once: into the response.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Value<'a> {
    /// `Integer32` and `INTEGER`, enumerations included.
    Integer(i32),
    /// `OCTET STRING`, any octets; also `BITS`, whose bit 0 is the most significant one of the first octet.
    OctetString(&'a [u8]),
    /// `OBJECT IDENTIFIER`.
    ObjectIdentifier(&'a Oid),
    /// `IpAddress`: an IPv4 address in network byte order.
    IpAddress([u8; 4]),
    /// `Counter32`.
    Counter32(u32),
    /// `Gauge32` and `Unsigned32`, which are the same type in a binding.
    Gauge32(u32),
    /// `TimeTicks`: centiseconds modulo 2^32.
    TimeTicks(u32),
    /// `Opaque`: octets in an encoding of their own (RFC 2578 section 7.1.9: for old modules only).
    Opaque(&'a [u8]),
    /// `Counter64`.
    Counter64(u64),
}

impl Value<'_> {
    /// A copy that borrows nothing.
    #[must_use]
    pub fn to_owned(self) -> OwnedValue {
        match self {
            Self::Integer(number) => OwnedValue::Integer(number),
            Self::OctetString(octets) => OwnedValue::OctetString(octets.to_vec()),
            Self::ObjectIdentifier(oid) => OwnedValue::ObjectIdentifier(*oid),
            Self::IpAddress(address) => OwnedValue::IpAddress(address),
            Self::Counter32(count) => OwnedValue::Counter32(count),
            Self::Gauge32(gauge) => OwnedValue::Gauge32(gauge),
            Self::TimeTicks(ticks) => OwnedValue::TimeTicks(ticks),
            Self::Opaque(octets) => OwnedValue::Opaque(octets.to_vec()),
            Self::Counter64(count) => OwnedValue::Counter64(count),
        }
    }
}

/// A [`Value`] that is kept: until a notification is sent, or between two phases of a SET.
#[derive(Clone, Debug, Eq, PartialEq)]
#[expect(clippy::large_enum_variant, reason = "few are kept, and none for long")]
#[expect(missing_docs, reason = "the names are those of `Value`")]
pub enum OwnedValue {
    Integer(i32),
    OctetString(Vec<u8>),
    ObjectIdentifier(Oid),
    IpAddress([u8; 4]),
    Counter32(u32),
    Gauge32(u32),
    TimeTicks(u32),
    Opaque(Vec<u8>),
    Counter64(u64),
}

impl OwnedValue {
    /// The same value, borrowed.
    #[must_use]
    pub fn as_value(&self) -> Value<'_> {
        match self {
            Self::Integer(number) => Value::Integer(*number),
            Self::OctetString(octets) => Value::OctetString(octets),
            Self::ObjectIdentifier(oid) => Value::ObjectIdentifier(oid),
            Self::IpAddress(address) => Value::IpAddress(*address),
            Self::Counter32(count) => Value::Counter32(*count),
            Self::Gauge32(gauge) => Value::Gauge32(*gauge),
            Self::TimeTicks(ticks) => Value::TimeTicks(*ticks),
            Self::Opaque(octets) => Value::Opaque(octets),
            Self::Counter64(count) => Value::Counter64(*count),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_owned_value_gives_back_what_it_was_made_from() {
        let oid = Oid::of(&[1, 3, 6]);
        for value in [
            Value::Integer(i32::MIN),
            Value::OctetString(&[0, 0xff]),
            Value::ObjectIdentifier(&oid),
            Value::IpAddress([192, 0, 2, 1]),
            Value::Counter32(u32::MAX),
            Value::Gauge32(u32::MAX),
            Value::TimeTicks(u32::MAX),
            Value::Opaque(&[0x9f, 0x78]),
            Value::Counter64(u64::MAX),
        ] {
            assert_eq!(value.to_owned().as_value(), value);
        }
    }
}
