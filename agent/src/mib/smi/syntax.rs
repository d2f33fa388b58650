//! SYNTAX clauses: which values an object can have (RFC 2578 section 7.1, RFC 2579).

use crate::{agentx::SetError, snmp::Value};

/// A base type, or a textual convention. Ranges include both ends; an empty list of them is no restriction.
#[derive(Clone, Copy, Debug)]
pub enum Syntax {
    /// `Integer32` within these ranges.
    Integer32(&'static [(i32, i32)]),
    /// `INTEGER` with named numbers.
    Enumeration(&'static [(&'static str, i32)]),
    /// `Unsigned32` within these ranges.
    Unsigned32(&'static [(u32, u32)]),
    /// `Gauge32` within these ranges.
    Gauge32(&'static [(u32, u32)]),
    /// `Counter32`.
    Counter32,
    /// `Counter64`.
    Counter64,
    /// `TimeTicks`.
    TimeTicks,
    /// `OCTET STRING` of these lengths.
    OctetString(&'static [(u32, u32)]),
    /// `BITS` with names for positions, of which 0 is the first.
    Bits(&'static [(&'static str, u32)]),
    /// `OBJECT IDENTIFIER`.
    ObjectIdentifier,
    /// `IpAddress`.
    IpAddress,
    /// `Opaque`.
    Opaque,
    /// A textual convention as it stands.
    Convention(&'static Convention),
    /// A textual convention of octets with these lengths only.
    Sized(&'static Convention, &'static [(u32, u32)]),
}

/// A textual convention (RFC 2579).
#[derive(Debug)]
pub struct Convention {
    /// Descriptor.
    pub name: &'static str,
    /// The module that defines it; `None` = the one that it is printed in.
    pub module: Option<&'static str>,
    /// DISPLAY-HINT clause.
    pub hint: Option<&'static str>,
    /// The type beneath.
    pub syntax: Syntax,
    /// DESCRIPTION clause, on one line; empty where another module defines the convention.
    pub description: &'static str,
}

impl Syntax {
    /// Whether an object of this syntax can have this value.
    ///
    /// # Errors
    ///
    /// [`SetError::WrongType`], [`SetError::WrongLength`] or [`SetError::WrongValue`], as RFC 3416 section 4.2.5
    /// tells them apart.
    pub fn check(&self, value: Value<'_>) -> Result<(), SetError> {
        match (*self, value) {
            (Self::Convention(convention), _) => convention.syntax.check(value),
            (Self::Sized(convention, sizes), _) => {
                convention.syntax.check(value)?;
                Self::OctetString(sizes).check(value)
            }
            (Self::Integer32(ranges), Value::Integer(number)) => {
                within(ranges, number, SetError::WrongValue)
            }
            (Self::Enumeration(names), Value::Integer(number)) => names
                .iter()
                .any(|&(_, named)| named == number)
                .then_some(())
                .ok_or(SetError::WrongValue),
            (Self::Unsigned32(ranges) | Self::Gauge32(ranges), Value::Gauge32(number)) => {
                within(ranges, number, SetError::WrongValue)
            }
            (Self::OctetString(sizes), Value::OctetString(octets)) => {
                let len = u32::try_from(octets.len()).map_err(|_| SetError::WrongLength)?;
                within(sizes, len, SetError::WrongLength)
            }
            (Self::Bits(names), Value::OctetString(octets)) => {
                let is_named = |position| names.iter().any(|&(_, named)| named == position);
                bits(octets).all(is_named).then_some(()).ok_or(SetError::WrongValue)
            }
            (Self::ObjectIdentifier, Value::ObjectIdentifier(_))
            | (Self::IpAddress, Value::IpAddress(_))
            | (Self::Opaque, Value::Opaque(_))
            | (Self::TimeTicks, Value::TimeTicks(_))
            | (Self::Counter32, Value::Counter32(_))
            | (Self::Counter64, Value::Counter64(_)) => Ok(()),
            _ => Err(SetError::WrongType),
        }
    }

    /// The type without its ranges, as the SEQUENCE of a row lists it.
    pub(super) const fn type_name(&self) -> &'static str {
        match *self {
            Self::Integer32(_) => "Integer32",
            Self::Enumeration(_) => "INTEGER",
            Self::Unsigned32(_) => "Unsigned32",
            Self::Gauge32(_) => "Gauge32",
            Self::Counter32 => "Counter32",
            Self::Counter64 => "Counter64",
            Self::TimeTicks => "TimeTicks",
            Self::OctetString(_) => "OCTET STRING",
            Self::Bits(_) => "BITS",
            Self::ObjectIdentifier => "OBJECT IDENTIFIER",
            Self::IpAddress => "IpAddress",
            Self::Opaque => "Opaque",
            Self::Convention(convention) | Self::Sized(convention, _) => convention.name,
        }
    }
}

fn within<T: Copy + PartialOrd>(
    ranges: &[(T, T)],
    number: T,
    error: SetError,
) -> Result<(), SetError> {
    let is_in =
        ranges.is_empty() || ranges.iter().any(|(low, high)| (low..=high).contains(&&number));
    is_in.then_some(()).ok_or(error)
}

/// The positions of the bits that are 1: bit 0 is the most significant one of the first octet.
fn bits(octets: &[u8]) -> impl Iterator<Item = u32> {
    (0..).step_by(8).zip(octets).flat_map(|(first, octet)| {
        (0..8).filter(move |bit| octet & (0x80 >> bit) != 0).map(move |bit| first + bit)
    })
}

#[cfg(test)]
mod tests {
    use super::{super::convention::UUID_OR_ZERO, *};
    use crate::snmp::Oid;
    use SetError::{WrongLength, WrongType, WrongValue};

    #[test]
    fn a_range_holds_both_of_its_ends() {
        let limit = Syntax::Integer32(&[(-1, -1), (1, 5)]);
        let gauge = Syntax::Gauge32(&[(7, u32::MAX)]);
        for (number, expected) in [
            (-2, Err(WrongValue)),
            (-1, Ok(())),
            (0, Err(WrongValue)),
            (1, Ok(())),
            (5, Ok(())),
            (6, Err(WrongValue)),
        ] {
            assert_eq!(limit.check(Value::Integer(number)), expected, "{number}");
        }
        assert_eq!(gauge.check(Value::Gauge32(6)), Err(WrongValue));
        assert_eq!(gauge.check(Value::Gauge32(u32::MAX)), Ok(()));
        assert_eq!(Syntax::Unsigned32(&[]).check(Value::Gauge32(0)), Ok(()));
    }

    #[test]
    fn a_length_is_one_of_the_sizes() {
        let uuid = Syntax::Convention(&UUID_OR_ZERO);
        for (len, expected) in [
            (0, Ok(())),
            (1, Err(WrongLength)),
            (15, Err(WrongLength)),
            (16, Ok(())),
            (17, Err(WrongLength)),
        ] {
            assert_eq!(uuid.check(Value::OctetString(&[0; 17][..len])), expected, "{len}");
        }
    }

    #[test]
    fn bits_without_a_name_are_refused() {
        let bits = Syntax::Bits(&[("first", 0), ("last", 9)]);
        for (octets, expected) in [
            (&[][..], Ok(())),
            (&[0x80], Ok(())),
            (&[0x80, 0x40, 0], Ok(())),
            (&[0x40], Err(WrongValue)),
            (&[0, 0x80], Err(WrongValue)),
            (&[0, 0, 1], Err(WrongValue)),
        ] {
            assert_eq!(bits.check(Value::OctetString(octets)), expected, "{octets:?}");
        }
    }

    #[test]
    fn each_type_takes_its_own_values_only() {
        let oid = Oid::empty();
        let types = [
            (Syntax::Integer32(&[]), Value::Integer(0)),
            (Syntax::Gauge32(&[]), Value::Gauge32(0)),
            (Syntax::Counter32, Value::Counter32(0)),
            (Syntax::Counter64, Value::Counter64(0)),
            (Syntax::TimeTicks, Value::TimeTicks(0)),
            (Syntax::OctetString(&[]), Value::OctetString(&[])),
            (Syntax::ObjectIdentifier, Value::ObjectIdentifier(&oid)),
            (Syntax::IpAddress, Value::IpAddress([0; 4])),
            (Syntax::Opaque, Value::Opaque(&[])),
        ];
        for (at, (syntax, _)) in types.iter().enumerate() {
            for (of, (_, value)) in types.iter().enumerate() {
                let expected = if at == of { Ok(()) } else { Err(WrongType) };
                assert_eq!(syntax.check(*value), expected, "{syntax:?} {value:?}");
            }
        }
    }
}
