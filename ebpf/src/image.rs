//! Which image a request goes to, as the kernel's own structures have it.

use core::ptr;

use aya_ebpf::helpers::{
    bpf_get_current_pid_tgid, bpf_get_current_task_btf, bpf_probe_read_kernel,
};
use kvmeter_common::{Field, ImageKey, VmRecord};

use crate::{kernel, maps, task::load, thread::get};

/// Kinds of files in the kernel's stat.h.
const S_IFMT: u16 = 0o170_000;
const S_IFREG: u16 = 0o100_000;
const S_IFBLK: u16 = 0o060_000;

/// A process that is a VM, as the one that runs now.
#[derive(Clone, Copy)]
pub(crate) struct CurrentVm {
    pub(crate) slot: u16,
    pub(crate) tgid: u32,
}

impl CurrentVm {
    /// Nothing where the process is no VM, or its first thread has ended.
    #[inline(always)]
    pub(crate) fn get() -> Option<Self> {
        let tgid = (bpf_get_current_pid_tgid() >> 32) as u32;
        let slot = maps::slot_of(tgid);
        if slot == 0 {
            return None;
        }
        let owner = maps::owner_of(slot)?;
        (owner.tid() == tgid).then_some(Self { slot: owner.vm_slot(), tgid })
    }

    /// Whether records may be taken for files that it uses and the agent does not know.
    #[inline(always)]
    pub(crate) fn may_take_images(self) -> bool {
        maps::vm(self.slot).is_some_and(|vm| get!(vm, flags) & VmRecord::NO_IMAGES == 0)
    }
}

/// What lies `field` behind a pointer of which the verifier knows nothing.
#[inline(always)]
fn copy<T: Copy>(from: u64, field: Field) -> Option<T> {
    let at = from.wrapping_add(kernel::offset(field));
    // SAFETY: the helper copies from any address or fails; what it copies is a number of this size.
    unsafe { bpf_probe_read_kernel(ptr::with_exposed_provenance::<T>(at as usize)) }.ok()
}

/// An open file or block device, a `struct file *`.
#[derive(Clone, Copy)]
pub(crate) struct File(u64);

impl File {
    /// The file of a `struct kiocb *` that iomap does I/O on: a regular one.
    #[inline(always)]
    pub(crate) fn key_of_kiocb(kiocb: *const u8, vm: CurrentVm) -> ImageKey {
        let inode = load!("u64", load!("u64", kiocb, KiocbFile), FileInode);
        let super_block = load!("u64", inode, InodeSuperBlock);
        ImageKey {
            vm: vm.slot,
            device: load!("u32", super_block, SuperBlockDevice) as u32,
            file: load!("u64", inode, InodeNumber),
        }
    }

    /// Octets in the file of a `struct kiocb *`.
    #[inline(always)]
    pub(crate) fn size_of_kiocb(kiocb: *const u8) -> u64 {
        load!("u64", load!("u64", load!("u64", kiocb, KiocbFile), FileInode), InodeSize)
    }

    /// The file behind a descriptor of the process that runs now.
    #[inline(always)]
    pub(crate) fn of_descriptor(number: u32) -> Option<Self> {
        // SAFETY: the helper takes nothing, and there always is a task.
        let task = unsafe { bpf_get_current_task_btf() };
        let table = load!("u64", load!("u64", task, TaskFiles), FilesTable);
        if number >= load!("u32", table, TableLen) as u32 {
            return None;
        }
        let files = load!("u64", table, TableFiles);
        let at = files.wrapping_add(u64::from(number) * 8);
        // SAFETY: as in `copy`.
        let file: u64 =
            unsafe { bpf_probe_read_kernel(ptr::with_exposed_provenance(at as usize)) }.ok()?;
        (file != 0).then_some(Self(file))
    }

    /// The file of a `struct io_kiocb *`.
    #[inline(always)]
    pub(crate) fn of_uring(request: u64) -> Option<Self> {
        let file = copy::<u64>(request, Field::UringFile)?;
        (file != 0).then_some(Self(file))
    }

    /// The file of a `struct kiocb *` of any kind.
    #[inline(always)]
    pub(crate) fn of_kiocb(kiocb: *const u8) -> Option<Self> {
        let file = load!("u64", kiocb, KiocbFile);
        (file != 0).then_some(Self(file))
    }

    /// Whether a request on it that is counted as a call may be the first on a new image. I/O past the page cache is
    /// counted elsewhere, unless the kernel has no hook for that or the agent says otherwise.
    #[inline(always)]
    pub(crate) fn may_be_taken(self) -> bool {
        kernel::HAS_IOMAP_EVENTS.load() == 0
            || copy::<u32>(self.0, Field::FileFlags)
                .is_some_and(|flags| u64::from(flags) & kernel::O_DIRECT.load() == 0)
    }

    /// What a VM's I/O on it is counted under; nothing for what is no regular file and no block device.
    #[inline(always)]
    pub(crate) fn key(self, vm: u16) -> Option<ImageKey> {
        let inode = copy::<u64>(self.0, Field::FileInode)?;
        let kind = copy::<u16>(inode, Field::InodeMode)? & S_IFMT;
        if kind == S_IFBLK {
            let device = copy::<u32>(inode, Field::InodeDevice)?;
            return Some(ImageKey { vm, device, file: ImageKey::NO_FILE });
        }
        if kind != S_IFREG {
            return None;
        }
        let super_block = copy::<u64>(inode, Field::InodeSuperBlock)?;
        Some(ImageKey {
            vm,
            device: copy::<u32>(super_block, Field::SuperBlockDevice)?,
            file: copy::<u64>(inode, Field::InodeNumber)?,
        })
    }
}
