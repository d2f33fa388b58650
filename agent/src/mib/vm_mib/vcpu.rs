//! vmCpuTable.

use crate::{snmp::Value, values};

use super::{
    super::{
        context::{Snapshot, convert::microseconds},
        smi::{Indexed, Object, Syntax, Table, TableType},
    },
    convention::VIRTUAL_MACHINE_CPU_INDEX,
    nodes,
    rows::Vcpus,
    vm,
};

/// One row per vCPU.
pub static TABLE: Table<Snapshot, Vcpus> = Table {
    table_type: TableType {
        parent: &nodes::OBJECTS,
        number: 5,
        name: "vmCpuTable",
        row: "vmCpuEntry",
        index: Indexed::Below(&vm::TABLE),
        description: "The virtual CPUs of the virtual machines.",
        row_description: "One virtual CPU.",
    },
    columns: COLUMNS,
};

type Column = Object<Snapshot, Vcpus>;

const COLUMNS: &[Column] = &[
    Column::index(
        1,
        "vmCpuIndex",
        Syntax::Convention(&VIRTUAL_MACHINE_CPU_INDEX),
        "The number of this virtual CPU: one more than the id that KVM gives it.",
    ),
    Column::read_only(
        2,
        "vmCpuCoreTime",
        Syntax::Counter64,
        "The CPU time that this virtual CPU has used. Discontinuities can occur when the hypervisor is initialised and when vmAdminState changes.",
        |snapshot, row| {
            let ns = values::vcpu_time_ns(snapshot.moment(), row.vm, row.vcpu).value()?;
            Some(Value::Counter64(microseconds(ns)))
        },
    )
    .in_units("microsecond"),
];
