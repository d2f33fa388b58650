//! Variable bindings (RFC 2741 section 5.4).

use super::{
    DecodeError,
    cursor::{Reader, Writer},
    list::{Element, List},
    oid,
};
use crate::snmp::{Oid, Value};

/// `v.type`.
mod kind {
    pub(super) const INTEGER: u16 = 2;
    pub(super) const OCTET_STRING: u16 = 4;
    pub(super) const NULL: u16 = 5;
    pub(super) const OBJECT_IDENTIFIER: u16 = 6;
    pub(super) const IP_ADDRESS: u16 = 64;
    pub(super) const COUNTER32: u16 = 65;
    pub(super) const GAUGE32: u16 = 66;
    pub(super) const TIME_TICKS: u16 = 67;
    pub(super) const OPAQUE: u16 = 68;
    pub(super) const COUNTER64: u16 = 70;
    pub(super) const NO_SUCH_OBJECT: u16 = 128;
    pub(super) const NO_SUCH_INSTANCE: u16 = 129;
    pub(super) const END_OF_MIB_VIEW: u16 = 130;
}

/// Everything that a variable binding can carry: a [`Value`], the NULL that a request may have, or one of the
/// exceptions in a response.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[expect(missing_docs, reason = "the names are those of the RFC")]
#[expect(clippy::large_enum_variant, reason = "lives on the stack only; a box would allocate")]
pub enum Data<'a> {
    Integer(i32),
    OctetString(&'a [u8]),
    Null,
    ObjectIdentifier(Oid),
    IpAddress([u8; 4]),
    Counter32(u32),
    Gauge32(u32),
    TimeTicks(u32),
    Opaque(&'a [u8]),
    Counter64(u64),
    NoSuchObject,
    NoSuchInstance,
    EndOfMibView,
}

/// A name and the value bound to it.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct VarBind<'a> {
    /// `v.name`.
    pub name: Oid,
    /// `v.data`; the variant is `v.type`.
    pub data: Data<'a>,
}

impl Data<'_> {
    /// The value; `None` for NULL and the exceptions.
    #[must_use]
    pub const fn value(&self) -> Option<Value<'_>> {
        Some(match self {
            Self::Integer(number) => Value::Integer(*number),
            Self::OctetString(octets) => Value::OctetString(octets),
            Self::ObjectIdentifier(oid) => Value::ObjectIdentifier(oid),
            Self::IpAddress(address) => Value::IpAddress(*address),
            Self::Counter32(count) => Value::Counter32(*count),
            Self::Gauge32(gauge) => Value::Gauge32(*gauge),
            Self::TimeTicks(ticks) => Value::TimeTicks(*ticks),
            Self::Opaque(octets) => Value::Opaque(octets),
            Self::Counter64(count) => Value::Counter64(*count),
            Self::Null | Self::NoSuchObject | Self::NoSuchInstance | Self::EndOfMibView => {
                return None;
            }
        })
    }
}

impl VarBind<'_> {
    /// Appends the binding.
    pub(super) fn encode(&self, writer: &mut Writer<'_>) {
        match self.data {
            Data::Null => encode_start(writer, kind::NULL, &self.name),
            Data::NoSuchObject => encode_start(writer, kind::NO_SUCH_OBJECT, &self.name),
            Data::NoSuchInstance => encode_start(writer, kind::NO_SUCH_INSTANCE, &self.name),
            Data::EndOfMibView => encode_start(writer, kind::END_OF_MIB_VIEW, &self.name),
            _ => {
                if let Some(value) = self.data.value() {
                    encode_value(writer, &self.name, value);
                }
            }
        }
    }
}

impl<'a> Element<'a> for VarBind<'a> {
    fn decode(reader: &mut Reader<'a>) -> Result<Self, DecodeError> {
        let offset = reader.offset();
        let kind = reader.u16()?;
        reader.take(2)?;
        let (name, _) = oid::decode(reader)?;
        let data = match kind {
            kind::INTEGER => Data::Integer(reader.u32()?.cast_signed()),
            kind::OCTET_STRING => Data::OctetString(reader.octet_string()?),
            kind::NULL => Data::Null,
            kind::OBJECT_IDENTIFIER => Data::ObjectIdentifier(oid::decode(reader)?.0),
            kind::IP_ADDRESS => {
                let offset = reader.offset();
                let bytes = reader.octet_string()?;
                let address = bytes.try_into();
                Data::IpAddress(
                    address.map_err(|_| DecodeError::IpAddress { offset, len: bytes.len() })?,
                )
            }
            kind::COUNTER32 => Data::Counter32(reader.u32()?),
            kind::GAUGE32 => Data::Gauge32(reader.u32()?),
            kind::TIME_TICKS => Data::TimeTicks(reader.u32()?),
            kind::OPAQUE => Data::Opaque(reader.octet_string()?),
            kind::COUNTER64 => Data::Counter64(reader.u64()?),
            kind::NO_SUCH_OBJECT => Data::NoSuchObject,
            kind::NO_SUCH_INSTANCE => Data::NoSuchInstance,
            kind::END_OF_MIB_VIEW => Data::EndOfMibView,
            kind => return Err(DecodeError::ValueType { offset, kind }),
        };
        Ok(Self { name, data })
    }
}

/// Appends a binding of a value, copied from the instance.
pub(super) fn encode_value(writer: &mut Writer<'_>, name: &Oid, value: Value<'_>) {
    match value {
        Value::Integer(number) => {
            encode_start(writer, kind::INTEGER, name);
            writer.u32(number.cast_unsigned());
        }
        Value::OctetString(octets) => {
            encode_start(writer, kind::OCTET_STRING, name);
            writer.octet_string(octets);
        }
        Value::ObjectIdentifier(value) => {
            encode_start(writer, kind::OBJECT_IDENTIFIER, name);
            oid::encode(writer, value, false);
        }
        Value::IpAddress(address) => {
            encode_start(writer, kind::IP_ADDRESS, name);
            writer.octet_string(&address);
        }
        Value::Counter32(count) => {
            encode_start(writer, kind::COUNTER32, name);
            writer.u32(count);
        }
        Value::Gauge32(gauge) => {
            encode_start(writer, kind::GAUGE32, name);
            writer.u32(gauge);
        }
        Value::TimeTicks(ticks) => {
            encode_start(writer, kind::TIME_TICKS, name);
            writer.u32(ticks);
        }
        Value::Opaque(octets) => {
            encode_start(writer, kind::OPAQUE, name);
            writer.octet_string(octets);
        }
        Value::Counter64(count) => {
            encode_start(writer, kind::COUNTER64, name);
            writer.u64(count);
        }
    }
}

fn encode_start(writer: &mut Writer<'_>, kind: u16, name: &Oid) {
    writer.u16(kind);
    writer.u16(0);
    oid::encode(writer, name, false);
}

/// The bindings of one PDU.
pub type VarBinds<'a> = List<'a, VarBind<'a>>;
