//! The filesystems that a process has mounted.

use std::collections::HashMap;

use crate::inventory::FileIdentity;

/// A mounted filesystem.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) struct Mount {
    /// Device number in the kernel's encoding ([`FileIdentity::kernel_device`]).
    pub(super) device: u32,
    /// Name of the filesystem.
    pub(super) kind: String,
}

/// Parses `/proc/PID/mountinfo` (proc(5)), keyed by mount id:
/// `36 35 98:0 /mnt1 /mnt2 rw,noatime master:1 - ext3 /dev/root rw,errors=continue`.
pub(super) fn parse_mounts(text: &[u8]) -> HashMap<u64, Mount> {
    let text = String::from_utf8_lossy(text);
    text.lines()
        .filter_map(|line| {
            let mut words = line.split(' ');
            let id = words.next()?.parse().ok()?;
            let (major, minor) = words.nth(1)?.split_once(':')?;
            let device = FileIdentity::kernel_device(major.parse().ok()?, minor.parse().ok()?);
            let kind = line.split(" - ").nth(1)?.split(' ').next()?.to_owned();
            Some((id, Mount { device, kind }))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn mountinfo_is_keyed_by_mount_id() {
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
        fn no_bytes_panic(text in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = parse_mounts(&text);
        }
    }
}
