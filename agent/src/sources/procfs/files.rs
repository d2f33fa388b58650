//! The files and block devices that a process has open, with the keys under which the kernel counts their I/O.

use rustix::fs::OFlags;

use super::{
    mounts::parse_mounts,
    process::{DescriptorInfo, Process},
};
use crate::inventory::OpenFile;

/// Filesystems that do direct I/O through iomap (`iomap_dio_rw`, Linux 6.1 to 6.18). Btrfs is not listed: it uses iomap for
/// reads, but since 6.14 not for writes to files with checksums.
const IOMAP: [&str; 6] = ["ext4", "xfs", "f2fs", "gfs2", "ext2", "zonefs"];

/// The regular files and block devices among `descriptors`, each once. `known`: the files of the previous scan, whose
/// filesystem is not looked up again.
pub(super) fn open(
    process: &Process,
    descriptors: &[(u32, String)],
    known: &[OpenFile],
) -> Vec<OpenFile> {
    let mut files: Vec<OpenFile> = Vec::new();
    let mut mounts = None;
    for (fd, path) in descriptors {
        // Closed meanwhile, or neither a file nor a block device.
        let Ok(Some(identity)) = process.identity_of_descriptor(*fd) else { continue };
        let Ok(DescriptorInfo { flags, mount }) = process.descriptor_info(*fd) else {
            continue;
        };
        let is_direct = flags & OFlags::DIRECT.bits() != 0;
        let same = |file: &OpenFile| file.identity == identity && file.mount == mount;
        if let Some(file) = files.iter_mut().find(|file| same(file)) {
            file.is_direct |= is_direct;
            continue;
        }
        let (device, has_iomap) = if identity.is_block_device() {
            (identity.device, false)
        } else if let Some(known) = known.iter().find(|file| same(file)) {
            (known.device, known.has_iomap)
        } else {
            let mounts = mounts.get_or_insert_with(|| {
                parse_mounts(&process.read("mountinfo").unwrap_or_default())
            });
            // A descriptor received over a socket may belong to a mount outside the process's namespace. The device from
            // stat(2) is then right for every filesystem but Btrfs.
            mounts.get(&mount).map_or((identity.device, true), |mount| {
                (mount.device, IOMAP.contains(&mount.kind.as_str()))
            })
        };
        // The kernel appends this to the path of an unlinked file.
        let path = path.strip_suffix(" (deleted)").unwrap_or(path).to_owned();
        files.push(OpenFile { path, identity, mount, device, is_direct, has_iomap });
    }
    files.sort_unstable_by(|a, b| (&a.path, a.identity).cmp(&(&b.path, b.identity)));
    files
}
