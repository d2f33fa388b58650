//! The filesystems that a process has mounted, and what may be asked of them without waiting for a server.

use std::{
    collections::{HashMap, HashSet},
    io::{self, BufRead},
};

use crate::inventory::FileIdentity;

/// Filesystems that do direct I/O through iomap (`iomap_dio_rw`, Linux 6.1 to 6.18). Btrfs is not listed: it uses iomap for
/// reads, but since 6.14 not for writes to files with checksums.
const IOMAP: [&str; 6] = ["ext4", "xfs", "f2fs", "gfs2", "ext2", "zonefs"];

/// Filesystems of this host's memory and disks: a lookup waits for neither a process (FUSE, autofs) nor another host (NFS).
const LOCAL: [&str; 24] = [
    "bcachefs",
    "btrfs",
    "devtmpfs",
    "erofs",
    "exfat",
    "ext2",
    "ext3",
    "ext4",
    "f2fs",
    "hugetlbfs",
    "iso9660",
    "jfs",
    "nilfs2",
    "overlay",
    "ramfs",
    "reiserfs",
    "rootfs",
    "squashfs",
    "tmpfs",
    "udf",
    "vfat",
    "xfs",
    "zfs",
    "zonefs",
];

/// Other filesystems that answer statx(2) with `AT_STATX_DONT_SYNC` from memory. CIFS, 9p, GFS2 and OCFS2 may ask their
/// server or the cluster in spite of the flag.
const ANSWERS_FROM_MEMORY: [&str; 8] =
    ["ceph", "devpts", "fuseblk", "nfs", "nfs4", "proc", "sysfs", "virtiofs"];

/// What an overlay is called in a user namespace of another than the agent's. There any user can make one, over a filesystem that is
/// served by a process of the user's.
const FOREIGN_OVERLAY: &str = "an overlay of another user namespace";

/// Characters of a filesystem's name that are kept. A user can have 100,000 mounts (`fs.mount-max`) of FUSE, each with a name of a page.
const MAX_KIND: usize = 64;

/// A mounted filesystem.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) struct Mount {
    /// Device number in the kernel's encoding ([`FileIdentity::kernel_device`]).
    pub(super) device: u32,
    /// Name of the filesystem.
    pub(super) kind: String,
}

impl Mount {
    /// Whether direct I/O on its files goes through iomap.
    pub(super) fn has_iomap(&self) -> bool {
        IOMAP.contains(&self.kind.as_str())
    }

    /// Whether looking up a name, and reading a link or a file, waits for local disks at most.
    pub(super) fn is_local(&self) -> bool {
        LOCAL.contains(&self.kind.as_str())
    }

    /// Whether statx(2) with `AT_STATX_DONT_SYNC` waits for nothing.
    pub(super) fn answers_from_memory(&self) -> bool {
        let kind = self.kind.as_str();
        self.is_local()
            || ANSWERS_FROM_MEMORY.contains(&kind)
            || kind.starts_with("fuse.")
            || kind == "fuse"
    }
}

/// The mounts of a mount namespace, read as far as they are asked for.
pub(super) struct Mounts<R> {
    rest: Option<R>,
    seen: HashMap<u64, Mount>,
    /// Mount points of autofs: the id of the mount that they are in, and their last component.
    traps: HashSet<(u64, Vec<u8>)>,
    /// The process is in another user namespace than the agent, and so may its mounts be.
    is_foreign: bool,
}

impl<R: BufRead> Mounts<R> {
    /// `mountinfo`: `/proc/PID/mountinfo` (proc(5)), of any length. `is_foreign`: the process is in another user namespace than the
    /// agent. A mount namespace that belongs to a user namespace has no processes outside of that.
    pub(super) fn new(mountinfo: R, is_foreign: bool) -> Self {
        let (seen, traps) = (HashMap::new(), HashSet::new());
        Self { rest: Some(mountinfo), seen, traps, is_foreign }
    }

    /// The mount with this id; `None` = it is in another namespace, or in none any more.
    ///
    /// # Errors
    ///
    /// Those of reading `mountinfo`.
    pub(super) fn get(&mut self, id: u64) -> io::Result<Option<&Mount>> {
        while !self.seen.contains_key(&id) && self.read_line()? {}
        Ok(self.seen.get(&id))
    }

    /// Whether an autofs is mounted at a name in a directory of this mount: stepping on it may wait for the automounter.
    ///
    /// # Errors
    ///
    /// Those of reading `mountinfo`.
    pub(super) fn has_trap(&mut self, mount: u64, name: &[u8]) -> io::Result<bool> {
        while self.read_line()? {}
        Ok(self.traps.contains(&(mount, name.to_vec())))
    }

    /// Reads the next line; `false` = there is none.
    fn read_line(&mut self) -> io::Result<bool> {
        let Some(rest) = &mut self.rest else { return Ok(false) };
        let mut line = Vec::new();
        if rest.read_until(b'\n', &mut line)? == 0 {
            self.rest = None;
            return Ok(false);
        }
        if let Some(Line { id, parent, last, mut mount }) = parse_line(&line) {
            if mount.kind == "autofs" {
                self.traps.insert((parent, last));
            }
            if mount.kind == "overlay" && self.is_foreign {
                mount.kind = FOREIGN_OVERLAY.to_owned();
            }
            self.seen.insert(id, mount);
        }
        Ok(true)
    }
}

struct Line {
    id: u64,
    parent: u64,
    /// Last component of the mount point.
    last: Vec<u8>,
    mount: Mount,
}

/// Parses a line such as `36 35 98:0 /mnt1 /mnt2 rw,noatime master:1 - ext3 /dev/root rw,errors=continue`.
fn parse_line(line: &[u8]) -> Option<Line> {
    let text = String::from_utf8_lossy(line);
    let mut words = text.split(' ');
    let id = words.next()?.parse().ok()?;
    let parent = words.next()?.parse().ok()?;
    let (major, minor) = words.next()?.split_once(':')?;
    let device = FileIdentity::kernel_device(major.parse().ok()?, minor.parse().ok()?);
    let last = words.nth(1)?.rsplit('/').next().map(unescape)?;
    let kind = text.split(" - ").nth(1)?.split([' ', '\n']).next()?;
    let kind = kind.chars().take(MAX_KIND).collect();
    Some(Line { id, parent, last, mount: Mount { device, kind } })
}

/// Undoes the octal escapes of `mountinfo`, such as `\040` for a space.
fn unescape(text: &str) -> Vec<u8> {
    let bytes = text.as_bytes();
    let (mut plain, mut at) = (Vec::with_capacity(bytes.len()), 0);
    while let Some(&byte) = bytes.get(at) {
        let digits = bytes.get(at + 1..at + 4).and_then(|digits| std::str::from_utf8(digits).ok());
        let escaped = digits.filter(|_| byte == b'\\');
        if let Some(byte) = escaped.and_then(|digits| u8::from_str_radix(digits, 8).ok()) {
            plain.push(byte);
            at += 4;
        } else {
            plain.push(byte);
            at += 1;
        }
    }
    plain
}

#[cfg(test)]
mod tests {
    use std::fmt::Write as _;

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn mountinfo_is_keyed_by_mount_id() {
        let mut mounts = Mounts::new(
            &b"36 35 98:1 /mnt1 /mnt2 rw,noatime master:1 - ext4 /dev/root rw,errors=continue\n\
              41 36 0:31 / /a\\040b rw - btrfs /dev/sdb rw\nmalformed\n"[..],
            false,
        );
        let mount = |device, kind: &str| Mount { device, kind: kind.to_owned() };
        assert_eq!(mounts.get(41).unwrap(), Some(&mount(31, "btrfs")));
        assert_eq!(mounts.get(36).unwrap(), Some(&mount(98 << 20 | 1, "ext4")));
        assert_eq!(mounts.get(37).unwrap(), None);
    }

    #[test]
    fn a_mount_is_found_however_many_there_are() {
        let mut text = String::new();
        for id in 1..20_000 {
            writeln!(text, "{id} 1 0:{id} / /mnt/{id} rw - tmpfs tmpfs rw").unwrap();
        }
        assert!(text.len() > 512 * 1024);
        text.push_str("20000 1 0:5 / /last rw - overlay overlay rw,lowerdir=/a\n");
        let mut mounts = Mounts::new(text.as_bytes(), false);
        let last = mounts.get(20_000).unwrap().unwrap();
        assert!(last.kind == "overlay" && !last.has_iomap());
    }

    #[test]
    fn an_overlay_of_another_user_namespace_may_block() {
        let text =
            &b"36 35 0:40 / / rw - overlay overlay rw\n40 36 8:1 / /a rw - ext4 /dev/sda1 rw\n"[..];
        for is_foreign in [false, true] {
            let mut mounts = Mounts::new(text, is_foreign);
            let mut of = |id| {
                let mount = mounts.get(id).unwrap().unwrap();
                (mount.is_local(), mount.answers_from_memory())
            };
            assert_eq!(of(36), (!is_foreign, !is_foreign));
            assert_eq!(of(40), (true, true));
        }
    }

    #[test]
    fn an_automount_is_known_by_its_directory_and_name() {
        let mut mounts = Mounts::new(
            &b"36 35 98:1 / / rw - ext4 /dev/root rw\n\
               40 36 0:44 / /net/my\\040host rw - autofs systemd-1 rw,direct\n"[..],
            false,
        );
        assert!(mounts.has_trap(36, b"my host").unwrap());
        assert!(!mounts.has_trap(36, b"net").unwrap() && !mounts.has_trap(35, b"my host").unwrap());
    }

    #[test]
    fn filesystems_are_told_apart_by_what_may_block() {
        let of = |kind: &str| {
            let mount = Mount { device: 0, kind: kind.to_owned() };
            (mount.is_local(), mount.answers_from_memory(), mount.has_iomap())
        };
        assert_eq!(of("ext4"), (true, true, true));
        assert_eq!(of("zfs"), (true, true, false));
        assert_eq!(of("nfs4"), (false, true, false));
        assert_eq!(of("fuse.sshfs"), (false, true, false));
        for other in ["cifs", "smb3", "9p", "autofs", "lustre"] {
            assert_eq!(of(other), (false, false, false), "{other}");
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn no_bytes_panic(text in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = Mounts::new(&text[..], false).has_trap(1, b"");
            let _ = unescape(&String::from_utf8_lossy(&text));
        }
    }
}
