//! The numbers of a disk.

use super::{Moment, is_down};
use crate::{
    counters::{DiskIo, DiskKey, DiskSize, Taken},
    inventory::{CountedBy, Disk, StorageSource, Vm},
};

/// The I/O of a disk, and who counted it.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum DiskNumbers<'a> {
    /// The kernel, at this moment.
    Kernel(DiskIo),
    /// The hypervisor, at the time given.
    Hypervisor(Taken<DiskIo>),
    /// There was no I/O: the VM is off.
    Off,
    /// Not known, for this reason.
    Absent(&'a str),
}

impl DiskNumbers<'_> {
    /// The numbers; `None` = not known.
    #[must_use]
    pub fn io(self) -> Option<DiskIo> {
        match self {
            Self::Kernel(io) | Self::Hypervisor(Taken { value: io, .. }) => Some(io),
            Self::Off => Some(DiskIo::default()),
            Self::Absent(_) => None,
        }
    }
}

/// The I/O of a disk since its VM started: requests, bytes and ns. A number never goes back while the VM runs.
#[must_use]
pub fn disk_io<'a>(moment: Moment<'a>, vm: &'a Vm, disk: &'a Disk) -> DiskNumbers<'a> {
    match &disk.counted_by {
        CountedBy::Kernel(images, ..) => moment
            .readings
            .disk_io(images)
            .map_or(DiskNumbers::Absent("the counting has ended"), DiskNumbers::Kernel),
        CountedBy::Pending => DiskNumbers::Absent(disk.counted_by.why()),
        CountedBy::Uncounted(why) => match moment.slow.disk_io(key(vm, disk), vm.run) {
            Some(taken) => DiskNumbers::Hypervisor(taken),
            None if is_down(vm) => DiskNumbers::Off,
            None => DiskNumbers::Absent(why),
        },
    }
}

/// The sizes of a disk in bytes, as VM-MIB wants them: a block device takes all that it has, and a raw file is served as
/// if it did.
#[must_use]
pub fn disk_size(moment: Moment<'_>, vm: &Vm, disk: &Disk) -> DiskSize {
    let DiskSize { defined, allocated } =
        moment.slow.disk_size(key(vm, disk)).map_or(disk.size, |taken| taken.value);
    match disk.source {
        StorageSource::Block | StorageSource::Raw => DiskSize { defined, allocated: defined },
        _ => DiskSize { defined, allocated },
    }
}

const fn key(vm: &Vm, disk: &Disk) -> DiskKey {
    DiskKey { vm: vm.index.0, storage: disk.index }
}
