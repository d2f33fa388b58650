//! The scalars about the hypervisor and its VMs.

use crate::snmp::{Oid, Value};

use super::{
    convention::{ADMIN_STRING, NUMBER},
    convert::{admin_string_cut, integer32_saturating, time_ticks_wrapping},
    schema::{Getter, Object, Syntax},
};

/// vmHypervisor: what runs the VMs.
pub const ABOUT: &[Object] = &[
    Object::read_only(
        1,
        "vmHvSoftware",
        ADMIN_STRING,
        "The name of the hypervisor software, without its version.",
        Getter::Scalar(|view| {
            Some(Value::OctetString(admin_string_cut(&view.inventory.hypervisor.software)))
        }),
    ),
    Object::read_only(
        2,
        "vmHvVersion",
        ADMIN_STRING,
        "The version of the hypervisor software.",
        Getter::Scalar(|view| {
            Some(Value::OctetString(admin_string_cut(&view.inventory.hypervisor.version)))
        }),
    ),
    Object::read_only(
        3,
        "vmHvObjectID",
        Syntax::ObjectIdentifier,
        "The identification that the vendor gave to the hypervisor software, below enterprises \
            (1.3.6.1.4.1). It is not that of the managed system, which sysObjectID has. 0.0 where \
            there is none.",
        Getter::Scalar(|view| {
            let id = &view.inventory.hypervisor.object_id;
            Some(Value::ObjectIdentifier(if id.is_empty() { &ZERO_DOT_ZERO } else { id }))
        }),
    ),
    Object::read_only(
        4,
        "vmHvUpTime",
        Syntax::TimeTicks,
        "The time since the hypervisor was last initialised. KVM is part of the host's kernel, so \
            this is the time since the host booted. sysUpTime, for comparison, is that of the SNMP \
            agent.",
        Getter::Scalar(|view| {
            Some(Value::TimeTicks(time_ticks_wrapping(view.readings.since_boot_ns())))
        }),
    ),
];

/// What is true of all VMs together.
pub const TOTALS: &[Object] = &[
    Object::read_only(
        2,
        "vmNumber",
        NUMBER,
        "How many virtual machines the hypervisor knows, in whatever state: the number of rows of \
            vmTable.",
        Getter::Scalar(|view| Some(Value::Integer(integer32_saturating(view.inventory.vms.len())))),
    ),
    Object::read_only(
        3,
        "vmTableLastChange",
        Syntax::TimeTicks,
        "The value that vmHvUpTime had when a row last came to vmTable or left it.",
        Getter::Scalar(|view| {
            Some(Value::TimeTicks(time_ticks_wrapping(view.inventory.last_change_ns)))
        }),
    ),
];

/// zeroDotZero (RFC 2578 section 2): the null identifier as a value.
static ZERO_DOT_ZERO: Oid = Oid::of(&[0, 0]);
