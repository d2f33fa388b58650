//! SNMP's data types: object identifiers and values. Nothing here knows an agent, a MIB or a protocol.

mod oid;
mod value;

pub use oid::{Oid, OidError};
pub use value::{OwnedValue, Value};
