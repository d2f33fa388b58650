//! The disks of a VM.

use super::{Moment, Number, is_down, known};
use crate::{
    counters::{DiskIo, DiskKey, DiskSize, Requests},
    inventory::{CountedBy, Disk, StorageAccess, StorageMedia, StorageSource, Vm},
};

/// Name in the guest, such as `vda`. Never absent.
#[must_use]
pub fn disk_target(disk: &Disk) -> &str {
    &disk.target
}

/// Kind of what holds the data. Never absent: [`StorageSource::Unknown`] = no source can tell, or the drive is empty.
#[must_use]
pub const fn disk_source(disk: &Disk) -> StorageSource {
    disk.source
}

/// Format of the image, or protocol of the service; `None` = no source reports it.
#[must_use]
pub fn disk_format(disk: &Disk) -> Option<&str> {
    known(&disk.format)
}

/// Path of the file or block device, or address of the service; `None` = no source reports it, or the drive is empty.
#[must_use]
pub fn disk_resource(disk: &Disk) -> Option<&str> {
    known(&disk.resource)
}

/// Whether the guest may write. Never absent: [`StorageAccess::Unknown`] = no source can tell.
#[must_use]
pub const fn disk_access(disk: &Disk) -> StorageAccess {
    disk.access
}

/// Kind of drive that the guest sees. Never absent: [`StorageMedia::Unknown`] = no source can tell.
#[must_use]
pub const fn disk_media(disk: &Disk) -> StorageMedia {
    disk.media
}

/// Bus of the drive, such as `virtio`; `None` = no source reports it.
#[must_use]
pub fn disk_bus(disk: &Disk) -> Option<&str> {
    known(&disk.bus)
}

/// The sizes of a disk in bytes, as libvirt or the header of its image reports them. A block device takes all that it has,
/// and a raw file is served as if it did (RFC 7666, vmStorageAllocatedSize).
#[must_use]
pub fn disk_size(moment: Moment<'_>, vm: &Vm, disk: &Disk) -> DiskSize {
    let DiskSize { defined, allocated } =
        moment.slow.disk_size(key(vm, disk)).map_or(disk.size, |taken| taken.value);
    match disk.source {
        StorageSource::Block | StorageSource::Raw => DiskSize { defined, allocated: defined },
        _ => DiskSize { defined, allocated },
    }
}

/// The I/O of a disk since its VM started: requests, bytes and ns. Nothing decreases while the VM runs.
#[must_use]
pub fn disk_io<'a>(moment: Moment<'_>, vm: &Vm, disk: &'a Disk) -> Number<'a, DiskIo> {
    match &disk.counted_by {
        CountedBy::Kernel(images, ..) => {
            Number::of_kernel(moment.readings.disk_io(images), "the counting has ended")
        }
        CountedBy::Pending => Number::Absent(disk.counted_by.why()),
        CountedBy::Uncounted(why) => match moment.slow.disk_io(key(vm, disk), vm.run) {
            Some(taken) => Number::Hypervisor(taken),
            None if is_down(vm) => Number::Off,
            None => Number::Absent(why),
        },
    }
}

/// Errors and latencies of the reads and of the writes of a disk since its VM started; `None` = the kernel does not count
/// them, and the hypervisor does not report them.
#[must_use]
pub fn disk_requests(moment: Moment<'_>, disk: &Disk) -> Option<[Requests; 2]> {
    match &disk.counted_by {
        CountedBy::Kernel(images, ..) => moment.readings.disk_requests(images),
        CountedBy::Pending | CountedBy::Uncounted(_) => None,
    }
}

/// Who counts the I/O of a disk.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct DiskCounter<'a> {
    /// The method in the kernel, such as `dio`, or `hypervisor`; `None` = the I/O is not counted.
    pub name: Option<&'static str>,
    /// Why by this method, or why not in the kernel.
    pub why: &'a str,
    /// Age of the hypervisor's numbers in ns; `None` = the numbers are of this moment, or there are none.
    pub age_ns: Option<u64>,
}

/// Who counted the I/O of a disk that [`disk_io`] returned.
#[must_use]
pub fn disk_counter<'a>(
    moment: Moment<'_>,
    disk: &'a Disk,
    io: Number<'a, DiskIo>,
) -> DiskCounter<'a> {
    let why = disk.counted_by.why();
    match (&disk.counted_by, io) {
        (CountedBy::Kernel(_, method, _), Number::Kernel(_)) => {
            DiskCounter { name: Some(method.name()), why, age_ns: None }
        }
        (_, Number::Hypervisor(taken)) => {
            let age = moment.readings.since_boot_ns().saturating_sub(taken.at_ns);
            DiskCounter { name: Some("hypervisor"), why, age_ns: Some(age) }
        }
        (_, io) => DiskCounter { name: None, why: io.why_absent().unwrap_or(why), age_ns: None },
    }
}

const fn key(vm: &Vm, disk: &Disk) -> DiskKey {
    DiskKey { vm: vm.index.0, storage: disk.index }
}
