//! vmCpuTable.

use crate::{snmp::Value, values};

use super::{
    convention::VIRTUAL_MACHINE_CPU_INDEX,
    convert::microseconds,
    schema::{Getter, Object, Syntax, Table},
};

/// One row per vCPU.
pub const TABLE: Table = Table {
    name: "vmCpuTable",
    row: "vmCpuEntry",
    index: &["vmIndex", "vmCpuIndex"],
    description: "The virtual CPUs of the virtual machines.",
    row_description: "One virtual CPU.",
    columns: COLUMNS,
};

const COLUMNS: &[Object] = &[
    Object::index(
        1,
        "vmCpuIndex",
        Syntax::Convention(&VIRTUAL_MACHINE_CPU_INDEX),
        "The number of this virtual CPU: one more than the id that KVM gives it.",
    ),
    Object::read_only(
        2,
        "vmCpuCoreTime",
        Syntax::Counter64,
        "The CPU time that this virtual CPU has used. The count can begin anew when the hypervisor is \
            initialised and when vmAdminState changes.",
        Getter::Vcpu(|view, row| {
            let ns = values::vcpu_time_ns(view.moment(), row.vm, row.vcpu)?;
            Some(Value::Counter64(microseconds(ns)))
        }),
    )
    .in_units("microsecond"),
];
