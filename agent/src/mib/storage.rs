//! vmStorageTable.

use crate::{
    counters::{DiskIo, DiskSize},
    snmp::Value,
    values,
};

use super::{
    View,
    convention::{
        ADMIN_STRING, IANA_STORAGE_MEDIA_TYPE, NUMBER, NUMBER_OR_NONE, UNIT,
        VIRTUAL_MACHINE_INDEX_OR_ZERO, VIRTUAL_MACHINE_STORAGE_ACCESS,
        VIRTUAL_MACHINE_STORAGE_INDEX, VIRTUAL_MACHINE_STORAGE_SOURCE_TYPE,
    },
    convert::{SizeUnit, admin_string_cut, microseconds},
    rows::DiskRow,
    schema::{Getter, Object, Syntax, Table},
};

/// One row per disk.
pub const TABLE: Table = Table {
    name: "vmStorageTable",
    row: "vmStorageEntry",
    index: &["vmStorageVmIndex", "vmStorageIndex"],
    description: "The disks of the virtual machines.",
    row_description: "One virtual disk.",
    columns: COLUMNS,
};

const COLUMNS: &[Object] = &[
    Object::index(
        1,
        "vmStorageVmIndex",
        Syntax::Convention(&VIRTUAL_MACHINE_INDEX_OR_ZERO),
        "The vmIndex of the virtual machine that has this disk; 0 where none has it.",
    ),
    Object::index(
        2,
        "vmStorageIndex",
        Syntax::Convention(&VIRTUAL_MACHINE_STORAGE_INDEX),
        "The number of this disk.",
    ),
    Object::read_only(
        3,
        "vmStorageParent",
        NUMBER,
        "The hrStorageIndex of the storage of the host that holds this disk; 0 where \
            hrStorageTable of HOST-RESOURCES-MIB has no such row.",
        Getter::Disk(|_, _| Some(Value::Integer(0))),
    ),
    Object::read_only(
        4,
        "vmStorageSourceType",
        Syntax::Convention(&VIRTUAL_MACHINE_STORAGE_SOURCE_TYPE),
        "What holds the data of this disk.",
        Getter::Disk(|_, row| Some(Value::Integer(row.disk.source as i32))),
    ),
    Object::read_only(
        5,
        "vmStorageSourceTypeString",
        ADMIN_STRING,
        "What vmStorageSourceType leaves open, the format of a sparse file for instance.",
        Getter::Disk(|_, row| Some(Value::OctetString(admin_string_cut(&row.disk.format)))),
    ),
    Object::read_only(
        6,
        "vmStorageResourceID",
        ADMIN_STRING,
        "Where the data of this disk is: the path of a file or block device, or the address of a \
            service.",
        Getter::Disk(|_, row| Some(Value::OctetString(admin_string_cut(&row.disk.resource)))),
    ),
    Object::read_only(
        7,
        "vmStorageAccess",
        Syntax::Convention(&VIRTUAL_MACHINE_STORAGE_ACCESS),
        "Whether the virtual machine may write to this disk.",
        Getter::Disk(|_, row| Some(Value::Integer(row.disk.access as i32))),
    ),
    Object::read_only(
        8,
        "vmStorageMediaType",
        Syntax::Convention(&IANA_STORAGE_MEDIA_TYPE),
        "The kind of drive that the virtual machine sees.",
        Getter::Disk(|_, row| Some(Value::Integer(row.disk.media as i32))),
    ),
    Object::read_only(
        9,
        "vmStorageMediaTypeString",
        ADMIN_STRING,
        "What vmStorageMediaType leaves open, the bus or the driver of the drive for instance.",
        Getter::Disk(|_, row| Some(Value::OctetString(admin_string_cut(&row.disk.bus)))),
    ),
    Object::read_only(
        10,
        "vmStorageSizeUnit",
        UNIT,
        "How many octets one step of vmStorageDefinedSize and vmStorageAllocatedSize of this row \
            stands for.",
        Getter::Disk(|view, row| Some(Value::Integer(sizes(view, row).1.octets()))),
    ),
    Object::read_only(
        11,
        "vmStorageDefinedSize",
        NUMBER_OR_NONE,
        "The size of the disk as the virtual machine sees it, in steps of vmStorageSizeUnit; -1 \
            where it is not known.",
        Getter::Disk(|view, row| {
            let (size, unit) = sizes(view, row);
            Some(Value::Integer(unit.limit_saturating(size.defined)))
        }),
    ),
    Object::read_only(
        12,
        "vmStorageAllocatedSize",
        NUMBER_OR_NONE,
        "The room that the disk takes on the host, in steps of vmStorageSizeUnit; the same as \
            vmStorageDefinedSize for block(3) and raw(4); -1 where it is not known.",
        Getter::Disk(|view, row| {
            let (size, unit) = sizes(view, row);
            Some(Value::Integer(unit.limit_saturating(size.allocated)))
        }),
    ),
    Object::read_only(
        13,
        "vmStorageReadIOs",
        Syntax::Counter64,
        "How many read requests were made on this disk. The count can begin anew when the \
            hypervisor is initialised and when vmAdminState changes.",
        Getter::Disk(|view, row| io(view, row, |io| io.reads)),
    ),
    Object::read_only(
        14,
        "vmStorageWriteIOs",
        Syntax::Counter64,
        "How many write requests were made on this disk. The count can begin anew when the \
            hypervisor is initialised and when vmAdminState changes.",
        Getter::Disk(|view, row| io(view, row, |io| io.writes)),
    ),
    Object::read_only(
        15,
        "vmStorageReadOctets",
        Syntax::Counter64,
        "How many octets were read from this disk. The count can begin anew when the hypervisor \
            is initialised and when vmAdminState changes.",
        Getter::Disk(|view, row| io(view, row, |io| io.read_octets)),
    ),
    Object::read_only(
        16,
        "vmStorageWriteOctets",
        Syntax::Counter64,
        "How many octets were written to this disk. The count can begin anew when the hypervisor \
            is initialised and when vmAdminState changes.",
        Getter::Disk(|view, row| io(view, row, |io| io.write_octets)),
    ),
    Object::read_only(
        17,
        "vmStorageReadLatency",
        Syntax::Counter64,
        "The microseconds between the arrival and the end of each read request, summed over all \
            of them. The count can begin anew when the hypervisor is initialised and when \
            vmAdminState changes.",
        Getter::Disk(|view, row| io(view, row, |io| microseconds(io.read_ns))),
    ),
    Object::read_only(
        18,
        "vmStorageWriteLatency",
        Syntax::Counter64,
        "The microseconds between the arrival and the end of each write request, summed over all \
            of them. The count can begin anew when the hypervisor is initialised and when \
            vmAdminState changes.",
        Getter::Disk(|view, row| io(view, row, |io| microseconds(io.write_ns))),
    ),
];

/// A count of the disk's I/O; absent where it is not counted.
fn io<'a>(view: View<'a>, row: DiskRow<'a>, read: fn(DiskIo) -> u64) -> Option<Value<'a>> {
    let io = values::disk_io(view.moment(), row.vm, row.disk).io()?;
    Some(Value::Counter64(read(io)))
}

/// The sizes of the disk, and the unit of both.
fn sizes(view: View<'_>, row: DiskRow<'_>) -> (DiskSize, SizeUnit) {
    let size = values::disk_size(view.moment(), row.vm, row.disk);
    let largest = [size.defined, size.allocated].into_iter().flatten().max();
    (size, SizeUnit::for_largest(largest.unwrap_or(0)))
}
