//! vmCpuAffinityTable: as many rows as all vCPUs times all CPUs of the host, none of them kept; none at all where
//! the configuration leaves the table out.

use crate::snmp::Value;

use super::{
    super::{
        context::Snapshot,
        smi::{Indexed, Object, Syntax, Table, TableType, convention::POSITIVE},
    },
    nodes,
    rows::Affinities,
    vcpu,
};

/// One row per vCPU and CPU of the host.
pub static TABLE: Table<Snapshot, Affinities> = Table {
    table_type: TableType {
        parent: &nodes::OBJECTS,
        number: 6,
        name: "vmCpuAffinityTable",
        row: "vmCpuAffinityEntry",
        index: Indexed::Below(&vcpu::TABLE),
        description: "Which CPUs of the host each virtual CPU may run on.",
        row_description: "One virtual CPU and one CPU of the host.",
    },
    columns: COLUMNS,
};

const UNKNOWN: i32 = 0;
const ENABLE: i32 = 1;
const DISABLE: i32 = 2;

type Column = Object<Snapshot, Affinities>;

const COLUMNS: &[Column] = &[
    Column::index(
        2,
        "vmCpuPhysIndex",
        POSITIVE,
        "The CPU of the host: the hrDeviceIndex of its row in hrProcessorTable of \
            HOST-RESOURCES-MIB.",
    ),
    Column::read_only(
        3,
        "vmCpuAffinity",
        Syntax::Enumeration(&[("unknown", UNKNOWN), ("enable", ENABLE), ("disable", DISABLE)]),
        "Whether the virtual CPU may run on this CPU of the host: enable(1), it may; disable(2), it \
            may not; unknown(0) where that is not known.",
        |snapshot, row| {
            let mask = snapshot.cpu_mask(row.vcpu);
            Some(Value::Integer(match mask.and_then(|mask| mask.has(row.cpu)) {
                None => UNKNOWN,
                Some(true) => ENABLE,
                Some(false) => DISABLE,
            }))
        },
    ),
];
