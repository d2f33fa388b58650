//! The scalars about the hypervisor and its VMs.

use crate::{
    snmp::{Oid, Value},
    values,
};

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
            let hypervisor = values::hypervisor(snapshot.moment());
            Some(Value::OctetString(admin_string_cut(&hypervisor.software)))
        },
    ),
    Object::read_only(
        2,
        "vmHvVersion",
        ADMIN_STRING,
        "The version of the hypervisor software.",
        |snapshot, ()| {
            let hypervisor = values::hypervisor(snapshot.moment());
            Some(Value::OctetString(admin_string_cut(&hypervisor.version)))
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
            let id = &values::hypervisor(snapshot.moment()).object_id;
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
            let up = values::host_up_time_ns(snapshot.moment());
            Some(Value::TimeTicks(time_ticks_wrapping(up)))
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
        |snapshot, ()| {
            Some(Value::Integer(integer32_saturating(values::vm_count(snapshot.moment()))))
        },
    ),
    Object::read_only(
        3,
        "vmTableLastChange",
        Syntax::TimeTicks,
        "The value that vmHvUpTime had when a row last came to vmTable or left it.",
        |snapshot, ()| {
            let change = values::table_last_change_ns(snapshot.moment());
            Some(Value::TimeTicks(time_ticks_wrapping(change)))
        },
    ),
];

/// zeroDotZero (RFC 2578 section 2): the null identifier as a value.
static ZERO_DOT_ZERO: Oid = Oid::of(&[0, 0]);
