//! Which image a request goes to, read from the kernel's own structs.

#![expect(
    unsafe_code,
    reason = "map memory is reached by raw pointers, and helpers are declared unsafe"
)]

use aya_ebpf::helpers::bpf_get_current_pid_tgid;
use kvmeter_common::{Field, ImageKey, VmRecord};

use crate::{
    kernel, maps,
    memory::{copy, copy_at, load},
    task::Task,
    thread::get,
};

/// File types of the kernel's stat.h.
const S_IFMT: u16 = 0o170_000;
const S_IFREG: u16 = 0o100_000;
const S_IFBLK: u16 = 0o060_000;

/// The running process, which is a VM.
#[derive(Clone, Copy)]
pub(crate) struct CurrentVm {
    pub(crate) slot: u16,
    pub(crate) tgid: u32,
}

impl CurrentVm {
    /// `None`: the process is no VM, or its first thread has exited.
    #[inline(always)]
    pub(crate) fn get() -> Option<Self> {
        let tgid = (bpf_get_current_pid_tgid() >> 32) as u32;
        Some(Self { slot: maps::owner_of_process(tgid)?.vm_slot(), tgid })
    }

    /// Whether the kernel may create records for files that the VM uses.
    #[inline(always)]
    pub(crate) fn may_create_records(self) -> bool {
        maps::vm(self.slot).is_some_and(|vm| {
            get!(vm, flags) & VmRecord::NO_IMAGES == 0
                && get!(vm, new_images) < get!(vm, new_images_limit)
        })
    }
}

/// What to do if an image has no record.
#[derive(Clone, Copy)]
pub(crate) enum OnMiss {
    Ignore,
    /// Create a record for this VM.
    Create(CurrentVm),
}

/// An open file or block device, a `struct file *`.
#[derive(Clone, Copy)]
pub(crate) struct File(u64);

impl File {
    /// Key of the regular file of a `struct kiocb *` in iomap.
    #[inline(always)]
    pub(crate) fn key_of_kiocb(kiocb: u64, vm: CurrentVm) -> ImageKey {
        let inode = load!(u64, load!(u64, kiocb, KiocbFile), FileInode);
        let super_block = load!(u64, inode, InodeSuperBlock);
        ImageKey {
            vm: vm.slot,
            device: load!(u32, super_block, SuperBlockDevice),
            file: load!(u64, inode, InodeNumber),
        }
    }

    /// Size in bytes of the file of a `struct kiocb *`.
    #[inline(always)]
    pub(crate) fn size_of_kiocb(kiocb: u64) -> u64 {
        load!(u64, load!(u64, load!(u64, kiocb, KiocbFile), FileInode), InodeSize)
    }

    /// The file that a request of io_uring names by a descriptor, before the kernel looks it up. `Err`: the kernel or the
    /// request names it in another way.
    #[inline(always)]
    pub(crate) fn of_submitted(request: u64) -> Result<Option<Self>, ()> {
        /// `REQ_F_FIXED_FILE` of the kernel's io_uring_types.h.
        const FIXED_FILE: u32 = 1;
        let has_descriptor = kernel::URING_HAS_DESCRIPTOR.load() != 0
            && load!(u32, request, UringFlags) & FIXED_FILE == 0;
        if has_descriptor {
            Ok(Self::of_descriptor(load!(u32, request, UringDescriptor)))
        } else {
            Err(())
        }
    }

    /// The file behind a descriptor of the running process.
    #[inline(always)]
    pub(crate) fn of_descriptor(number: u32) -> Option<Self> {
        let table = Task::current().table_of_files();
        if number >= load!(u32, table, TableLen) {
            return None;
        }
        let files = load!(u64, table, TableFiles);
        let file = copy_at(files.wrapping_add(u64::from(number) * 8))?;
        (file != 0).then_some(Self(file))
    }

    /// The file of a `struct io_kiocb *`.
    #[inline(always)]
    pub(crate) fn of_uring(request: u64) -> Option<Self> {
        let file = copy(request, Field::UringFile)?;
        (file != 0).then_some(Self(file))
    }

    /// The file of a `struct kiocb *`.
    #[inline(always)]
    pub(crate) fn of_kiocb(kiocb: u64) -> Option<Self> {
        let file = load!(u64, kiocb, KiocbFile);
        (file != 0).then_some(Self(file))
    }

    /// What a hook at system calls or io_uring does when the VM has no record of this file. Files opened with `O_DIRECT` belong
    /// to the iomap hook, where the kernel has one.
    #[inline(always)]
    pub(crate) fn on_miss(self, vm: CurrentVm) -> OnMiss {
        let may_create = kernel::HAS_IOMAP_EVENTS.load() == 0
            || copy::<u32>(self.0, Field::FileFlags)
                .is_some_and(|flags| u64::from(flags) & kernel::O_DIRECT.load() == 0);
        if may_create { OnMiss::Create(vm) } else { OnMiss::Ignore }
    }

    /// Key of a VM's I/O on the file; `None`: it is neither a regular file nor a block device.
    #[inline(always)]
    pub(crate) fn key(self, vm: u16) -> Option<ImageKey> {
        let inode = copy::<u64>(self.0, Field::FileInode)?;
        let kind = copy::<u16>(inode, Field::InodeMode)? & S_IFMT;
        if kind == S_IFBLK {
            let device = copy(inode, Field::InodeDevice)?;
            return Some(ImageKey { vm, device, file: ImageKey::NO_FILE });
        }
        if kind != S_IFREG {
            return None;
        }
        let super_block = copy(inode, Field::InodeSuperBlock)?;
        Some(ImageKey {
            vm,
            device: copy(super_block, Field::SuperBlockDevice)?,
            file: copy(inode, Field::InodeNumber)?,
        })
    }
}
