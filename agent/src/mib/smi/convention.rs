//! Textual conventions of published modules, and syntaxes that many objects have.

use super::{Convention, Syntax};

/// Integer32 from 1 on.
pub const POSITIVE: Syntax = Syntax::Integer32(&[(1, i32::MAX)]);

/// Integer32 from 0 on.
pub const NON_NEGATIVE: Syntax = Syntax::Integer32(&[(0, i32::MAX)]);

/// A number from 0 on; -1 where there is none.
pub const NUMBER_OR_NONE: Syntax = Syntax::Integer32(&[(-1, -1), (0, i32::MAX)]);

/// SnmpAdminString with its size written out.
pub const ADMIN_STRING: Syntax = Syntax::Sized(&SNMP_ADMIN_STRING, &[(0, 255)]);

/// Of SNMP-FRAMEWORK-MIB.
pub static SNMP_ADMIN_STRING: Convention = Convention {
    name: "SnmpAdminString",
    module: Some("SNMP-FRAMEWORK-MIB"),
    hint: Some("255t"),
    syntax: Syntax::OctetString(&[(0, 255)]),
    description: "",
};

/// Of UUID-TC-MIB.
pub static UUID_OR_ZERO: Convention = Convention {
    name: "UUIDorZero",
    module: Some("UUID-TC-MIB"),
    hint: Some("4x-2x-2x-1x1x-6x"),
    syntax: Syntax::OctetString(&[(0, 0), (16, 16)]),
    description: "",
};

/// Of IF-MIB.
pub static INTERFACE_INDEX_OR_ZERO: Convention = Convention {
    name: "InterfaceIndexOrZero",
    module: Some("IF-MIB"),
    hint: Some("d"),
    syntax: NON_NEGATIVE,
    description: "",
};

/// Of SNMPv2-TC.
pub static PHYS_ADDRESS: Convention = Convention {
    name: "PhysAddress",
    module: Some("SNMPv2-TC"),
    hint: Some("1x:"),
    syntax: Syntax::OctetString(&[]),
    description: "",
};

/// Of SNMPv2-TC.
pub static TRUTH_VALUE: Convention = Convention {
    name: "TruthValue",
    module: Some("SNMPv2-TC"),
    hint: None,
    syntax: Syntax::Enumeration(&[("true", TRUE), ("false", FALSE)]),
    description: "",
};

/// The true of TruthValue.
pub const TRUE: i32 = 1;

/// The false of TruthValue.
pub const FALSE: i32 = 2;

/// Of IANA-STORAGE-MEDIA-TYPE-MIB; other(1) does come before unknown(2).
pub static IANA_STORAGE_MEDIA_TYPE: Convention = Convention {
    name: "IANAStorageMediaType",
    module: Some("IANA-STORAGE-MEDIA-TYPE-MIB"),
    hint: None,
    syntax: Syntax::Enumeration(&[
        ("other", 1),
        ("unknown", 2),
        ("hardDisk", 3),
        ("opticalDisk", 4),
        ("floppyDisk", 5),
    ]),
    description: "",
};
