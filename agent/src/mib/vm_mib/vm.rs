//! vmTable.

use crate::{inventory::Vm, snmp::Value, values};

use super::{
    super::{
        context::{
            Snapshot,
            convert::{
                SizeUnit, admin_string_cut, integer32_saturating, limit_saturating, microseconds,
                time_ticks_wrapping,
            },
        },
        smi::{
            Indexed, Object, ObjectRef, Syntax, Table, TableType,
            convention::{ADMIN_STRING, NON_NEGATIVE, NUMBER_OR_NONE, POSITIVE, UUID_OR_ZERO},
        },
    },
    convention::{
        VIRTUAL_MACHINE_ADMIN_STATE, VIRTUAL_MACHINE_AUTO_START, VIRTUAL_MACHINE_INDEX,
        VIRTUAL_MACHINE_OPER_STATE, VIRTUAL_MACHINE_PERSISTENT,
    },
    nodes,
    rows::Vms,
};

/// One row per VM.
pub static TABLE: Table<Snapshot, Vms> = Table {
    table_type: TableType {
        parent: &nodes::OBJECTS,
        number: 4,
        name: "vmTable",
        row: "vmEntry",
        index: Indexed::Own,
        description: "The virtual machines that the hypervisor knows.",
        row_description: "One virtual machine.",
    },
    columns: COLUMNS,
};

/// vmName.
pub const NAME: ObjectRef = TABLE.column("vmName");

/// vmUUID.
pub const UUID: ObjectRef = TABLE.column("vmUUID");

/// vmOperState.
pub const OPER_STATE: ObjectRef = TABLE.column("vmOperState");

/// vmPersistent.
pub const PERSISTENT: ObjectRef = TABLE.column("vmPersistent");

type Column = Object<Snapshot, Vms>;

const COLUMNS: &[Column] = &[
    Column::index(
        1,
        "vmIndex",
        Syntax::Convention(&VIRTUAL_MACHINE_INDEX),
        "The number of this virtual machine. It may change when the hypervisor is initialised again: only vmUUID is a persistent identifier.",
    ),
    Column::read_only(
        2,
        "vmName",
        ADMIN_STRING,
        "The name of the virtual machine. A longer name is cut after its last character that fits.",
        |_, vm| Some(Value::OctetString(admin_string_cut(values::vm_name(vm)))),
    ),
    Column::read_only(
        3,
        "vmUUID",
        Syntax::Convention(&UUID_OR_ZERO),
        "The UUID of the virtual machine: its persistent identifier, unique within the administrative domain. Of zero length where it is not known.",
        |_, vm| {
            let uuid = values::vm_uuid(vm).map(|uuid| uuid.as_bytes().as_slice());
            Some(Value::OctetString(uuid.unwrap_or_default()))
        },
    ),
    Column::read_only(
        4,
        "vmOSType",
        ADMIN_STRING,
        "The operating system that the virtual machine is configured for, which need not be the one \
            that it runs. Empty where it is not known.",
        |_, vm| {
            let os = values::vm_os_type(vm).unwrap_or_default();
            Some(Value::OctetString(admin_string_cut(os)))
        },
    ),
    Column::read_only(
        5,
        "vmAdminState",
        Syntax::Convention(&VIRTUAL_MACHINE_ADMIN_STATE),
        "The state that the virtual machine is meant to be in.",
        |_, vm| Some(Value::Integer(values::vm_admin_state(vm) as i32)),
    ),
    Column::read_only(
        6,
        "vmOperState",
        Syntax::Convention(&VIRTUAL_MACHINE_OPER_STATE),
        "The state that the virtual machine is in.",
        |_, vm| Some(Value::Integer(values::vm_oper_state(vm) as i32)),
    ),
    Column::read_only(
        7,
        "vmAutoStart",
        Syntax::Convention(&VIRTUAL_MACHINE_AUTO_START),
        "Whether the virtual machine starts with the hypervisor.",
        |_, vm| Some(Value::Integer(values::vm_auto_start(vm) as i32)),
    ),
    Column::read_only(
        8,
        "vmPersistent",
        Syntax::Convention(&VIRTUAL_MACHINE_PERSISTENT),
        "Whether the virtual machine stays defined once it is off.",
        |_, vm| Some(Value::Integer(values::vm_persistence(vm) as i32)),
    ),
    Column::read_only(
        9,
        "vmCurCpuNumber",
        NON_NEGATIVE,
        "How many virtual CPUs the virtual machine has now.",
        |_, vm| Some(Value::Integer(integer32_saturating(values::vm_cpu_number(vm)))),
    ),
    Column::read_only(
        10,
        "vmMinCpuNumber",
        NUMBER_OR_NONE,
        "The fewest virtual CPUs that the virtual machine can have; -1 where nothing sets a lower \
            bound.",
        |_, vm| Some(Value::Integer(limit_saturating(values::vm_min_cpu_number(vm)))),
    ),
    Column::read_only(
        11,
        "vmMaxCpuNumber",
        NUMBER_OR_NONE,
        "The most virtual CPUs that the virtual machine can have; -1 where nothing sets a limit.",
        |_, vm| Some(Value::Integer(limit_saturating(values::vm_max_cpu_number(vm)))),
    ),
    Column::read_only(
        12,
        "vmMemUnit",
        POSITIVE,
        "The unit of vmCurMem, vmMinMem and vmMaxMem of this row, in octets: 1024, or the next power of 1024 with which the largest of the three fits.",
        |_, vm| Some(Value::Integer(memory_unit(vm).bytes())),
    ),
    Column::read_only(
        13,
        "vmCurMem",
        NON_NEGATIVE,
        "The memory that the virtual machine has now, in units of vmMemUnit.",
        |_, vm| {
            let bytes = values::vm_current_memory(vm)?;
            Some(Value::Integer(memory_unit(vm).count_saturating(bytes)))
        },
    ),
    Column::read_only(
        14,
        "vmMinMem",
        NUMBER_OR_NONE,
        "The least memory that the virtual machine is left with, in units of vmMemUnit; -1 where \
            nothing sets a lower bound.",
        |_, vm| {
            let limit = values::vm_min_memory(vm);
            Some(Value::Integer(memory_unit(vm).limit_saturating(limit)))
        },
    ),
    Column::read_only(
        15,
        "vmMaxMem",
        NUMBER_OR_NONE,
        "The most memory that the virtual machine can have, in units of vmMemUnit; -1 where nothing \
            sets a limit.",
        |_, vm| {
            let limit = values::vm_max_memory(vm);
            Some(Value::Integer(memory_unit(vm).limit_saturating(limit)))
        },
    ),
    Column::read_only(
        16,
        "vmUpTime",
        Syntax::TimeTicks,
        "The time since the virtual machine was started from shutdown(4), also over a managed save; 0 while it is shut \
            down.",
        |snapshot, vm| {
            let up = values::vm_up_time_ns(snapshot.moment(), vm).value()?;
            Some(Value::TimeTicks(time_ticks_wrapping(up)))
        },
    ),
    Column::read_only(
        17,
        "vmCpuTime",
        Syntax::Counter64,
        "The CPU time that the virtual machine has used in all: its virtual CPUs, and what else the \
            hypervisor does for it. With more than one CPU it can grow faster than time. Discontinuities can occur when the hypervisor is initialised and when vmAdminState changes.",
        |snapshot, vm| {
            let ns = values::vm_time_ns(snapshot.moment(), vm).value()?;
            Some(Value::Counter64(microseconds(ns)))
        },
    )
    .in_units("microsecond"),
];

/// The unit of the memory columns of a VM.
fn memory_unit(vm: &Vm) -> SizeUnit {
    SizeUnit::shared_by(&[
        values::vm_current_memory(vm),
        values::vm_min_memory(vm),
        values::vm_max_memory(vm),
    ])
}
