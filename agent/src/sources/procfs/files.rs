//! The files and block devices that a process has open, as the kernel counts I/O on them.

use std::collections::HashMap;

use rustix::fs::OFlags;

use super::process::{DescriptorInfo, Process};
use crate::inventory::{FileIdentity, OpenFile};

/// Filesystems whose direct I/O is iomap's (`iomap_dio_rw` in the kernel's sources, Linux 6.1 to 6.18). Btrfs has it for
/// reads, and since 6.14 not for writes of files with checksums.
const IOMAP: [&str; 6] = ["ext4", "xfs", "f2fs", "gfs2", "ext2", "zonefs"];

/// A filesystem that is mounted.
#[derive(Clone, Debug, Eq, PartialEq)]
struct Mount {
    /// Its device number, as the kernel keeps it.
    device: u32,
    kind: String,
}

/// The regular files and block devices among `descriptors`, each once. `known` are those that the process had open
/// before, of which nothing is asked again that cannot have changed.
pub(super) fn open(
    process: &Process,
    descriptors: &[(u32, String)],
    known: &[OpenFile],
) -> Vec<OpenFile> {
    let mut files: Vec<OpenFile> = Vec::new();
    let mut mounts = None;
    for (number, path) in descriptors {
        // Closed meanwhile, or of a kind that nobody counts.
        let Ok(Some(identity)) = process.identity_of_descriptor(*number) else { continue };
        let Ok(DescriptorInfo { flags, mount }) = process.descriptor_info(*number) else {
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
            // A descriptor that was handed over may be of a mount that the process does not see; stat(2) then tells
            // the device of all filesystems but Btrfs.
            mounts.get(&mount).map_or((identity.device, true), |mount| {
                (mount.device, IOMAP.contains(&mount.kind.as_str()))
            })
        };
        // The kernel's remark on a file that has lost its name.
        let path = path.strip_suffix(" (deleted)").unwrap_or(path).to_owned();
        files.push(OpenFile { path, identity, mount, device, is_direct, has_iomap });
    }
    files.sort_unstable_by(|a, b| (&a.path, a.identity).cmp(&(&b.path, b.identity)));
    files
}

/// `36 35 98:0 /mnt1 /mnt2 rw,noatime master:1 - ext3 /dev/root rw,errors=continue` (proc(5)), by the first number.
fn parse_mounts(text: &[u8]) -> HashMap<u64, Mount> {
    let text = String::from_utf8_lossy(text);
    text.lines()
        .filter_map(|line| {
            let mut words = line.split(' ');
            let number = words.next()?.parse().ok()?;
            let (major, minor) = words.nth(1)?.split_once(':')?;
            let device = FileIdentity::kernel_device(major.parse().ok()?, minor.parse().ok()?);
            let kind = line.split(" - ").nth(1)?.split(' ').next()?.to_owned();
            Some((number, Mount { device, kind }))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn mounts_as_the_kernel_lists_them() {
        let mounts = parse_mounts(
            b"36 35 98:1 /mnt1 /mnt2 rw,noatime master:1 - ext4 /dev/root rw,errors=continue\n\
              41 36 0:31 / /a\\040b rw - btrfs /dev/sdb rw\nmalformed\n",
        );
        let mount = |device, kind: &str| Mount { device, kind: kind.to_owned() };
        assert_eq!(mounts.len(), 2);
        assert_eq!(mounts[&36], mount(98 << 20 | 1, "ext4"));
        assert_eq!(mounts[&41], mount(31, "btrfs"));
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn no_octets_panic(text in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = parse_mounts(&text);
        }
    }
}
