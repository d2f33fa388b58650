//! What a process may read. The agent may read any file; for a process it reads only what the process could read itself.

use std::{io, os::fd::AsFd};

use rustix::fs::{Statx, StatxFlags, statx};

use super::process::{Process, WITHOUT_REQUEST, malformed};

/// Permission bits of others; those of the group and of the owner are above.
const READ: u16 = 4;
const SEARCH: u16 = 1;

/// The real user and groups of a process. A program with the set-user-ID bit has the effective user of another, and does the will of
/// the real one. Capabilities say nothing: a process has all of them in a user namespace of its own.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) struct Credentials {
    pub(super) user: u32,
    groups: Vec<u32>,
}

impl Credentials {
    pub(super) fn of(process: &Process) -> io::Result<Self> {
        Self::parse(&process.read("status")?).ok_or_else(|| malformed("status"))
    }

    /// Parses `/proc/PID/status` (proc(5)).
    fn parse(text: &[u8]) -> Option<Self> {
        // The last line may be cut in the middle of a group's number.
        let end = text.iter().rposition(|&byte| byte == b'\n')?;
        let text = std::str::from_utf8(&text[..end]).ok()?;
        // The name of the process may contain anything but a newline, and comes first.
        let line = |key: &str| {
            let mut lines = text.lines().skip(1).filter_map(|line| line.strip_prefix(key));
            lines.next().map(|rest| rest.split_whitespace().map_while(|word| word.parse().ok()))
        };
        let user = line("Uid:")?.next()?;
        let group = line("Gid:")?.next()?;
        let groups = line("Groups:").into_iter().flatten().chain([group]).collect();
        Some(Self { user, groups })
    }

    /// Whether it may look up names in this directory.
    pub(super) fn may_search(&self, directory: impl AsFd) -> rustix::io::Result<bool> {
        self.may(directory, SEARCH)
    }

    /// Whether it may read this file.
    pub(super) fn may_read(&self, file: impl AsFd) -> rustix::io::Result<bool> {
        self.may(file, READ)
    }

    /// Whether this directory is root's and closed to the process: it cannot have opened a file there by itself.
    pub(super) fn is_kept_out(&self, directory: impl AsFd) -> rustix::io::Result<bool> {
        let Statx { stx_uid, stx_gid, stx_mode, .. } = attributes(directory)?;
        Ok(stx_uid == 0 && !self.allows(stx_uid, stx_gid, stx_mode, SEARCH))
    }

    fn may(&self, held: impl AsFd, wanted: u16) -> rustix::io::Result<bool> {
        let Statx { stx_uid, stx_gid, stx_mode, .. } = attributes(held)?;
        Ok(self.allows(stx_uid, stx_gid, stx_mode, wanted))
    }

    /// As acl_permission_check() of fs/namei.c: the first of owner, group and others counts that it is.
    fn allows(&self, owner: u32, group: u32, mode: u16, wanted: u16) -> bool {
        let bits = match () {
            () if self.user == 0 => return true,
            () if self.user == owner => mode >> 6,
            () if self.groups.contains(&group) => mode >> 3,
            () => mode,
        };
        bits & wanted == wanted
    }
}

fn attributes(held: impl AsFd) -> rustix::io::Result<Statx> {
    let fields = StatxFlags::UID | StatxFlags::GID | StatxFlags::MODE;
    statx(held, "", WITHOUT_REQUEST, fields)
}

#[cfg(test)]
mod tests {
    use super::*;

    const STATUS: &[u8] = b"Name:\tUid: 0\nUmask:\t0022\nUid:\t1000\t0\t0\t0\nGid:\t100\t0\t0\t0\n\
        FDSize:\t64\nGroups:\t27 108 \nNStgid:\t1\n";

    #[test]
    fn the_real_user_counts() {
        let found = Credentials::parse(STATUS).unwrap();
        assert_eq!(found, Credentials { user: 1000, groups: vec![27, 108, 100] });
        assert_eq!(Credentials::parse(b"Name:\tx\n"), None);
        // Groups that are cut are none.
        let cut = STATUS.iter().position(|&byte| byte == b'7').unwrap();
        let found = Credentials::parse(&STATUS[..cut]).unwrap();
        assert_eq!(found, Credentials { user: 1000, groups: vec![100] });
        assert_eq!(Credentials::parse(b"Name:\tx\nUid:\tx\nGid:\t0\n"), None);
    }

    #[test]
    fn one_class_of_permissions_counts() {
        let it = Credentials::parse(STATUS).unwrap();
        for (owner, group, mode, may) in [
            (0, 0, 0o644, true),
            (0, 0, 0o640, false),
            (0, 108, 0o640, true),
            (0, 100, 0o604, false),
            (1000, 0, 0o400, true),
            (1000, 108, 0o044, false),
        ] {
            assert_eq!(it.allows(owner, group, mode, READ), may, "{owner} {group} {mode:o}");
        }
        assert!(Credentials { user: 0, groups: Vec::new() }.allows(5, 5, 0, READ));
    }
}
