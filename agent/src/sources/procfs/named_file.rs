//! Reads a small file of a VMM, such as its configuration, by the name that the VMM itself has for it.

use std::{
    io::{self, Read as _},
    ops::ControlFlow,
};

use rustix::{
    fs::{FileType, OFlags},
    io::Errno,
};
use thiserror::Error;

use super::{
    credentials::Credentials,
    path_walk::{End, Found, Walker},
    process::{DescriptorInfo, Process, open_again},
    shortage::if_there,
};

/// Bytes that are read of a file. A longer one is not read at all: its beginning would be taken for the whole.
const MAX_LEN: u64 = 256 * 1024;

/// Most descriptors of a process among which another file of a directory is looked for.
const MAX_BESIDE: usize = 4096;

/// How the kernel marks the path of an unlinked file.
const DELETED: &str = " (deleted)";

/// Characters of a name that are shown.
const MAX_SHOWN: usize = 128;

/// A file's name for the log and the status: the process may have put anything into it, of any length.
pub(super) fn shown(name: &str) -> String {
    let mut shown: String = name.chars().take(MAX_SHOWN).flat_map(char::escape_debug).collect();
    if name.chars().nth(MAX_SHOWN).is_some() {
        shown.push('…');
    }
    shown
}

/// Why a file was not read.
#[derive(Debug, Error)]
pub(super) enum Unread {
    #[error("user {0}, whose process it is, may not read it")]
    Forbidden(u32),
    #[error("nothing is there, as the process sees it now")]
    Missing,
    #[error("it is on {0}, which may keep a reader waiting")]
    MayBlock(String),
    #[error("it is no regular file")]
    NoFile,
    #[error("it is longer than {} KiB", MAX_LEN / 1024)]
    TooLong,
    #[error("a process holds a lease on it")]
    Leased,
    #[error("{0}")]
    Io(#[source] io::Error),
}

impl Process {
    /// Reads a file by the process's own name for it: in the process's root and mounts, a relative one from its present
    /// working directory. The process may have arranged these to harm the reader, so only a regular file on a filesystem of
    /// this host is opened, never so that the opening waits, and no link leads out of the root. The process's real user has to
    /// have the right to read the file: otherwise a user could have the agent show parts of any file. A VMM that gives up its
    /// rights after its start, as LXD's QEMU does, has none any more to what it has read: then it is enough that it holds another
    /// file of the same directory (its log, its pid file), if the directory is root's and closed to it. A process that never had
    /// rights cannot have opened a file there.
    ///
    /// # Errors
    ///
    /// [`Unread`]
    pub(super) fn read_in_root(&self, path: &str) -> Result<Vec<u8>, Unread> {
        let user = Credentials::of(self).map_err(Unread::Io)?;
        let mut walker = Walker::of_reader(self, user.clone()).map_err(Unread::of)?;
        let end = walker.walk(path).map_err(Unread::of)?;
        // First of all: whether there is a file is for its readers to know, too.
        let may_know = match &end {
            End::Found(found) => self.may_read(&user, found, &walker)?,
            _ => !walker.is_barred(),
        };
        if !may_know {
            return Err(Unread::Forbidden(user.user));
        }
        let found = match end {
            End::Found(found) => found,
            End::Missing(_) => return Err(Unread::Missing),
            End::MayBlock(_, kind) => return Err(Unread::may_block(&kind)),
            End::Failed(error) => return Err(Unread::of(error)),
        };
        let Found { held, kind, mount, .. } = found;
        if kind != FileType::RegularFile {
            return Err(Unread::NoFile);
        }
        if !mount.is_local() {
            return Err(Unread::may_block(&mount.kind));
        }
        let mut content = Vec::new();
        let file = open_again(&held).map_err(Unread::of_io)?;
        file.take(MAX_LEN + 1).read_to_end(&mut content).map_err(Unread::of_io)?;
        if content.len() as u64 > MAX_LEN {
            return Err(Unread::TooLong);
        }
        Ok(content)
    }

    /// Whether the process may read the file to which the walker has come, or had the right to when it started.
    fn may_read(
        &self,
        user: &Credentials,
        found: &Found,
        walker: &Walker<'_>,
    ) -> Result<bool, Unread> {
        if !walker.is_barred() && user.may_read(&found.held).map_err(Unread::of)? {
            return Ok(true);
        }
        let is_kept_out = |directory| user.is_kept_out(directory).map_err(Unread::of);
        if !walker.directory().map_or(Ok(false), is_kept_out)? {
            return Ok(false);
        }
        let directory = |path: &str| path.rfind('/').map(|end| path[..end].to_owned());
        let own = directory(&found.place.path);
        let (mut is_beside, mut looked_at) = (Ok(false), 0);
        let looked = self.visit_descriptors(|fd, path| {
            looked_at += 1;
            // A file that was deleted may have been in another directory of this name.
            if directory(path) == own && !path.ends_with(DELETED) {
                let info = if_there(self.descriptor_info(fd));
                let is_in = |(info, _): (DescriptorInfo, _)| {
                    info.flags & OFlags::PATH.bits() == 0 && info.mount == found.place.mount
                };
                is_beside = info.map(|info| info.is_some_and(is_in));
            }
            match is_beside {
                Ok(false) if looked_at < MAX_BESIDE => ControlFlow::Continue(()),
                _ => ControlFlow::Break(()),
            }
        });
        looked.and(is_beside).map_err(Unread::Io)
    }
}

impl Unread {
    fn of(error: Errno) -> Self {
        Self::of_io(error.into())
    }

    fn of_io(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::WouldBlock => Self::Leased,
            io::ErrorKind::NotFound => Self::Missing,
            _ => Self::Io(error),
        }
    }

    fn may_block(kind: &str) -> Self {
        Self::MayBlock(if kind.is_empty() { "a filesystem" } else { kind }.to_owned())
    }
}

#[cfg(test)]
mod tests {
    use std::{
        fs,
        os::unix::{
            fs::{PermissionsExt as _, symlink},
            process::CommandExt as _,
        },
        path::Path,
        process,
    };

    use super::{super::test_child::TestChild, *};

    #[test]
    fn a_name_makes_no_line_of_its_own() {
        assert_eq!(shown("/i/é.cfg"), "/i/é.cfg");
        assert_eq!(shown("/x\nERROR forged\x1b[0m"), "/x\\nERROR forged\\u{1b}[0m");
        assert_eq!(shown(&"a".repeat(200_000)).chars().count(), MAX_SHOWN + 1);
    }

    /// A file of root's, at a path.
    fn put(path: &Path, mode: u32) {
        fs::write(path, "x").unwrap();
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    }

    #[test]
    fn a_file_is_read_with_the_rights_of_its_process() {
        if !rustix::process::geteuid().is_root() {
            return;
        }
        let dir = tempfile::tempdir().unwrap();
        let closed = dir.path().join("closed");
        fs::create_dir(&closed).unwrap();
        for (path, mode) in [(dir.path(), 0o755), (&closed, 0o700)] {
            fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
        }
        let (open, own, secret) =
            (dir.path().join("o"), dir.path().join("u"), dir.path().join("s"));
        let (hidden, log) = (closed.join("hidden"), closed.join("log"));
        for (path, mode) in
            [(&open, 0o644), (&own, 0o600), (&secret, 0o640), (&hidden, 0o644), (&log, 0o600)]
        {
            put(path, mode);
        }
        let user = 65534;
        std::os::unix::fs::chown(&own, Some(user), None).unwrap();
        symlink(&secret, dir.path().join("link")).unwrap();
        let start = |held: process::Stdio| {
            let mut command = process::Command::new("sleep");
            command.arg("1000").uid(user).gid(user).stdin(held);
            let child = TestChild(command.spawn().unwrap());
            let process = Process::hold(Path::new("/proc"), child.id()).unwrap();
            (child, process)
        };
        let (_child, process) = start(process::Stdio::null());
        let read = |process: &Process, path: &Path| process.read_in_root(path.to_str().unwrap());
        for path in [&open, &own] {
            assert_eq!(read(&process, path).unwrap(), b"x", "{path:?}");
        }
        for name in ["s", "link", "closed/hidden", "closed/none"] {
            let refused = read(&process, &dir.path().join(name));
            assert!(matches!(refused, Err(Unread::Forbidden(65534))), "{name}: {refused:?}");
        }
        // It had rights: another process has opened its log for it, or it opened the log before it gave up its rights.
        let (_child, process) = start(fs::File::open(&log).unwrap().into());
        assert_eq!(read(&process, &hidden).unwrap(), b"x");
        assert!(matches!(read(&process, &secret), Err(Unread::Forbidden(_))));
        // What is held in a directory of the user's own says nothing.
        std::os::unix::fs::chown(&closed, Some(user), None).unwrap();
        fs::set_permissions(&closed, fs::Permissions::from_mode(0o000)).unwrap();
        assert!(matches!(read(&process, &hidden), Err(Unread::Forbidden(_))));
    }

    #[test]
    fn a_small_file_is_read_on_any_filesystem_of_this_host() {
        let itself = Process::hold(Path::new("/proc"), process::id()).unwrap();
        for dir in ["/tmp", "/var/tmp", "/dev/shm"] {
            // Not on every machine.
            let Ok(dir) = tempfile::tempdir_in(dir) else { continue };
            let path = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
            fs::write(path("file"), "x").unwrap();
            symlink("file", path("link")).unwrap();
            assert_eq!(itself.read_in_root(&path("link")).unwrap(), b"x");
            fs::write(path("long"), vec![b' '; 300 << 10]).unwrap();
            assert!(matches!(itself.read_in_root(&path("long")), Err(Unread::TooLong)));
            assert!(matches!(itself.read_in_root(&path("none")), Err(Unread::Missing)));
            assert!(matches!(itself.read_in_root(&path("")), Err(Unread::NoFile)));
        }
        // procfs is not of those, and no link of it is followed.
        for path in ["/proc/version", "/proc/self/cwd/file", "/proc/1/root/etc/hostname"] {
            let refused = itself.read_in_root(path);
            assert!(matches!(refused, Err(Unread::MayBlock(_))), "{path}: {refused:?}");
        }
    }
}
