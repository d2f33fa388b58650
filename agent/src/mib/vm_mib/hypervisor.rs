//! The scalars about the hypervisor and its VMs.

use crate::snmp::{Oid, Value};

use super::{
    super::{
        context::{
            Snapshot,
            convert::{admin_string_cut, integer32_saturating, time_ticks_wrapping},
        },
        smi::{
            Object, Scalars, Single, Syntax,
            convention::{ADMIN_STRING, NON_NEGATIVE},
        },
    },
    nodes,
    rows::vm_count,
};

/// The hypervisor.
pub static HYPERVISOR: Scalars<Snapshot> = Scalars { parent: &nodes::HYPERVISOR, objects: ABOUT };

/// All VMs together.
pub static TOTALS: Scalars<Snapshot> = Scalars { parent: &nodes::OBJECTS, objects: OF_ALL_VMS };

const ABOUT: &[Object<Snapshot, Single>] = &[
    Object::read_only(
        1,
        "vmHvSoftware",
        ADMIN_STRING,
        "The name of the hypervisor software, without its version.",
        |snapshot, ()| {
            Some(Value::OctetString(admin_string_cut(&snapshot.inventory().hypervisor.software)))
        },
    ),
    Object::read_only(
        2,
        "vmHvVersion",
        ADMIN_STRING,
        "The version of the hypervisor software.",
        |snapshot, ()| {
            Some(Value::OctetString(admin_string_cut(&snapshot.inventory().hypervisor.version)))
        },
    ),
    Object::read_only(
        3,
        "vmHvObjectID",
        Syntax::ObjectIdentifier,
        "The identification that the vendor gave to the hypervisor software, below enterprises \
            (1.3.6.1.4.1). It is not that of the managed system, which sysObjectID has. 0.0 where \
            there is none.",
        |snapshot, ()| {
            let id = &snapshot.inventory().hypervisor.object_id;
            Some(Value::ObjectIdentifier(if id.is_empty() { &ZERO_DOT_ZERO } else { id }))
        },
    ),
    Object::read_only(
        4,
        "vmHvUpTime",
        Syntax::TimeTicks,
        "The time since the hypervisor was last initialised. KVM is part of the host's kernel, so \
            this is the time since the host booted. sysUpTime, for comparison, is that of the SNMP \
            agent.",
        |snapshot, ()| {
            Some(Value::TimeTicks(time_ticks_wrapping(snapshot.readings().since_boot_ns())))
        },
    ),
];

const OF_ALL_VMS: &[Object<Snapshot, Single>] = &[
    Object::read_only(
        2,
        "vmNumber",
        NON_NEGATIVE,
        "How many virtual machines the hypervisor knows, in whatever state: the number of rows of \
            vmTable.",
        |snapshot, ()| Some(Value::Integer(integer32_saturating(vm_count(snapshot.inventory())))),
    ),
    Object::read_only(
        3,
        "vmTableLastChange",
        Syntax::TimeTicks,
        "The value that vmHvUpTime had when a row last came to vmTable or left it.",
        |snapshot, ()| {
            Some(Value::TimeTicks(time_ticks_wrapping(snapshot.inventory().last_change_ns)))
        },
    ),
];

/// zeroDotZero (RFC 2578 section 2): the null identifier as a value.
static ZERO_DOT_ZERO: Oid = Oid::of(&[0, 0]);
