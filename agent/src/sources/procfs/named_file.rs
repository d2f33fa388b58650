//! Reads a small file of a VMM, such as its configuration, by the name that the VMM itself has for it.

use std::io::{self, Read as _};

use rustix::{fs::FileType, io::Errno};
use thiserror::Error;

use super::{
    path_walk::{End, Found, Walker},
    process::{Process, open_again},
};

/// Bytes that are read of a file. A longer one is not read at all: its beginning would be taken for the whole.
const MAX_LEN: u64 = 256 * 1024;

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
    /// this host is opened, never so that the opening waits, and no link leads out of the root.
    ///
    /// # Errors
    ///
    /// [`Unread`]
    pub(super) fn read_in_root(&self, path: &str) -> Result<Vec<u8>, Unread> {
        let end = Walker::new(self).and_then(|mut walker| walker.walk(path));
        let found = match end.map_err(Unread::of)? {
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
    use std::{fs, os::unix::fs::symlink, path::Path, process};

    use super::*;

    #[test]
    fn a_name_makes_no_line_of_its_own() {
        assert_eq!(shown("/i/é.cfg"), "/i/é.cfg");
        assert_eq!(shown("/x\nERROR forged\x1b[0m"), "/x\\nERROR forged\\u{1b}[0m");
        assert_eq!(shown(&"a".repeat(200_000)).chars().count(), MAX_SHOWN + 1);
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
