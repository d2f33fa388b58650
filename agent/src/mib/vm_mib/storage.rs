//! vmStorageTable.

use crate::{
    counters::{DiskIo, DiskSize},
    snmp::Value,
    values,
};

use super::{
    super::{
        context::{
            Snapshot,
            convert::{SizeUnit, admin_string_cut, microseconds},
        },
        smi::{
            Indexed, Object, Syntax, Table, TableType,
            convention::{
                ADMIN_STRING, IANA_STORAGE_MEDIA_TYPE, NON_NEGATIVE, NUMBER_OR_NONE, POSITIVE,
            },
        },
    },
    convention::{
        VIRTUAL_MACHINE_INDEX_OR_ZERO, VIRTUAL_MACHINE_STORAGE_ACCESS,
        VIRTUAL_MACHINE_STORAGE_INDEX, VIRTUAL_MACHINE_STORAGE_SOURCE_TYPE,
    },
    nodes,
    rows::{DiskRow, Disks},
};

/// One row per disk.
pub static TABLE: Table<Snapshot, Disks> = Table {
    table_type: TableType {
        parent: &nodes::OBJECTS,
        number: 7,
        name: "vmStorageTable",
        row: "vmStorageEntry",
        index: Indexed::Own,
        description: "The disks of the virtual machines.",
        row_description: "One virtual disk.",
    },
    columns: COLUMNS,
};

type Column = Object<Snapshot, Disks>;

const COLUMNS: &[Column] = &[
    Column::index(
        1,
        "vmStorageVmIndex",
        Syntax::Convention(&VIRTUAL_MACHINE_INDEX_OR_ZERO),
        "The vmIndex of the virtual machine that has this disk; 0 where none has it.",
    ),
    Column::index(
        2,
        "vmStorageIndex",
        Syntax::Convention(&VIRTUAL_MACHINE_STORAGE_INDEX),
        "The number of this disk.",
    ),
    Column::read_only(
        3,
        "vmStorageParent",
        NON_NEGATIVE,
        "The hrStorageIndex of the storage of the host that holds this disk; 0 where \
            hrStorageTable of HOST-RESOURCES-MIB has no such row.",
        |_, _| Some(Value::Integer(0)),
    ),
    Column::read_only(
        4,
        "vmStorageSourceType",
        Syntax::Convention(&VIRTUAL_MACHINE_STORAGE_SOURCE_TYPE),
        "What holds the data of this disk.",
        |_, row| Some(Value::Integer(values::disk_source(row.disk) as i32)),
    ),
    Column::read_only(
        5,
        "vmStorageSourceTypeString",
        ADMIN_STRING,
        "Detail on vmStorageSourceType, such as the image format.",
        |_, row| Some(text(values::disk_format(row.disk))),
    ),
    Column::read_only(
        6,
        "vmStorageResourceID",
        ADMIN_STRING,
        "Where the data of this disk is: the path of a file or block device, or the address of a \
            service.",
        |_, row| Some(text(values::disk_resource(row.disk))),
    ),
    Column::read_only(
        7,
        "vmStorageAccess",
        Syntax::Convention(&VIRTUAL_MACHINE_STORAGE_ACCESS),
        "Whether the virtual machine may write to this disk.",
        |_, row| Some(Value::Integer(values::disk_access(row.disk) as i32)),
    ),
    Column::read_only(
        8,
        "vmStorageMediaType",
        Syntax::Convention(&IANA_STORAGE_MEDIA_TYPE),
        "The kind of drive that the virtual machine sees.",
        |_, row| Some(Value::Integer(values::disk_media(row.disk) as i32)),
    ),
    Column::read_only(
        9,
        "vmStorageMediaTypeString",
        ADMIN_STRING,
        "Detail on vmStorageMediaType, such as the bus of the drive.",
        |_, row| Some(text(values::disk_bus(row.disk))),
    ),
    Column::read_only(
        10,
        "vmStorageSizeUnit",
        POSITIVE,
        "The unit of vmStorageDefinedSize and vmStorageAllocatedSize of this row, in octets.",
        |snapshot, row| Some(Value::Integer(sizes(snapshot, row).1.bytes())),
    ),
    Column::read_only(
        11,
        "vmStorageDefinedSize",
        NUMBER_OR_NONE,
        "The size of the disk as the virtual machine sees it, in units of vmStorageSizeUnit; -1 \
            where it is not known.",
        |snapshot, row| {
            let (size, unit) = sizes(snapshot, row);
            Some(Value::Integer(unit.limit_saturating(size.defined)))
        },
    ),
    Column::read_only(
        12,
        "vmStorageAllocatedSize",
        NUMBER_OR_NONE,
        "The space that the disk takes on the host, in units of vmStorageSizeUnit; the same as \
            vmStorageDefinedSize for block(3) and raw(4); -1 where it is not known.",
        |snapshot, row| {
            let (size, unit) = sizes(snapshot, row);
            Some(Value::Integer(unit.limit_saturating(size.allocated)))
        },
    ),
    Column::read_only(
        13,
        "vmStorageReadIOs",
        Syntax::Counter64,
        "The number of read requests completed on this disk. Discontinuities can occur when the hypervisor is initialised and when vmAdminState changes.",
        |snapshot, row| io(snapshot, row, |io| io.reads),
    ),
    Column::read_only(
        14,
        "vmStorageWriteIOs",
        Syntax::Counter64,
        "The number of write requests completed on this disk. Discontinuities can occur when the hypervisor is initialised and when vmAdminState changes.",
        |snapshot, row| io(snapshot, row, |io| io.writes),
    ),
    Column::read_only(
        15,
        "vmStorageReadOctets",
        Syntax::Counter64,
        "The number of octets read from this disk. Discontinuities can occur when the hypervisor is initialised and when vmAdminState changes.",
        |snapshot, row| io(snapshot, row, |io| io.read_octets),
    ),
    Column::read_only(
        16,
        "vmStorageWriteOctets",
        Syntax::Counter64,
        "The number of octets written to this disk. Discontinuities can occur when the hypervisor is initialised and when vmAdminState changes.",
        |snapshot, row| io(snapshot, row, |io| io.write_octets),
    ),
    Column::read_only(
        17,
        "vmStorageReadLatency",
        Syntax::Counter64,
        "The time from submission to completion of read requests, in microseconds, summed over all of them. Discontinuities can occur when the hypervisor is initialised and when vmAdminState changes.",
        |snapshot, row| io(snapshot, row, |io| microseconds(io.read_ns)),
    ),
    Column::read_only(
        18,
        "vmStorageWriteLatency",
        Syntax::Counter64,
        "The time from submission to completion of write requests, in microseconds, summed over all of them. Discontinuities can occur when the hypervisor is initialised and when vmAdminState changes.",
        |snapshot, row| io(snapshot, row, |io| microseconds(io.write_ns)),
    ),
];

/// Text about the disk; empty where it is not known.
fn text(text: Option<&str>) -> Value<'_> {
    Value::OctetString(admin_string_cut(text.unwrap_or_default()))
}

/// A count of the disk's I/O; absent where it is not counted.
fn io<'a>(snapshot: &Snapshot, row: DiskRow<'_>, read: fn(DiskIo) -> u64) -> Option<Value<'a>> {
    let io = values::disk_io(snapshot.moment(), row.vm, row.disk).value()?;
    Some(Value::Counter64(read(io)))
}

/// The sizes of the disk, and the unit of both.
fn sizes(snapshot: &Snapshot, row: DiskRow<'_>) -> (DiskSize, SizeUnit) {
    let size = values::disk_size(snapshot.moment(), row.vm, row.disk);
    (size, SizeUnit::shared_by(&[size.defined, size.allocated]))
}
