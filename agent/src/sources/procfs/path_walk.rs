//! Follows a path as a process would: from its own root or working directory, through its own mounts and links.
//!
//! The kernel's own lookup cannot be used. Without `RESOLVE_CACHED` of openat2(2) it may wait for a server or a FUSE process;
//! with it, it fails wherever a link's access time is to be updated. So each component is looked up alone: from the
//! kernel's cache, or if that does not have it, on a filesystem that is local to this host.

use std::{
    fs::File,
    io::BufReader,
    os::{
        fd::{AsFd as _, AsRawFd as _, OwnedFd},
        unix::ffi::OsStrExt as _,
    },
    path::Path,
    rc::Rc,
};

use rustix::{
    fs::{FileType, Mode, OFlags, ResolveFlags, StatxFlags, openat2, readlinkat, statx},
    io::Errno,
};

use super::{
    credentials::Credentials,
    mounts::{Mount, Mounts},
    process::{self, DescriptorInfo, Process, WITHOUT_REQUEST, kind_of},
};
use crate::inventory::FileIdentity;

/// Links that are followed on one path, as many as the kernel follows (`MAXSYMLINKS`).
const MAX_LINKS: usize = 40;

/// Components of one path with its links: a path has 4095 bytes at most, and so has each link.
const MAX_STEPS: usize = 8192;

/// Components of all paths of a walker. Each costs several system calls.
const MAX_STEPS_IN_ALL: usize = 1 << 16;

/// How a descriptor is opened that only stands for a place.
const PLACE: OFlags = OFlags::PATH.union(OFlags::CLOEXEC).union(OFlags::NOFOLLOW);

/// Where a path ends.
#[derive(Debug)]
pub(super) enum End {
    /// Something is there.
    Found(Found),
    /// Nothing is there.
    Missing(Place),
    /// The rest of the path is on a filesystem that may block.
    MayBlock(Place, String),
    /// It cannot be followed: too many links or components, or no right to.
    Failed(Errno),
}

/// What is at a path.
#[derive(Debug)]
pub(super) struct Found {
    /// Descriptor that stands for it (`O_PATH`).
    pub(super) held: Rc<OwnedFd>,
    /// `None`: neither a regular file nor a block device.
    pub(super) identity: Option<FileIdentity>,
    pub(super) kind: FileType,
    /// The mount that it is in.
    pub(super) mount: Mount,
    pub(super) place: Place,
}

/// A place in the tree of files, there or not.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) struct Place {
    /// Mount id.
    pub(super) mount: u64,
    /// The path without links, as `/proc/PID/fd` would show it.
    pub(super) path: String,
}

/// Follows paths of one process.
pub(super) struct Walker<'a> {
    process: &'a Process,
    root: Step,
    mounts: Mounts<BufReader<File>>,
    /// How many more components may be followed.
    steps: usize,
    /// For whom it is watched whether the directories may be searched.
    reader: Option<Credentials>,
    /// Whether some directory may not.
    is_barred: bool,
    /// The directory in which a name was looked up last.
    directory: Option<Rc<OwnedFd>>,
}

/// What is left of a path.
#[derive(Default)]
struct Rest {
    /// Components, the next one last.
    names: Vec<Vec<u8>>,
    /// How many components there were in all.
    steps: usize,
}

/// A place on the way.
#[derive(Clone)]
struct Step {
    held: Rc<OwnedFd>,
    info: DescriptorInfo,
}

impl Step {
    /// The place that a descriptor stands for. Mount and inode are read from procfs: statx(2) may ask the filesystem.
    fn of(held: OwnedFd) -> rustix::io::Result<Self> {
        let info = process::own_descriptor_info(held.as_fd());
        let info = info.map_err(|error| errno_of(&error))?;
        Ok(Self { held: Rc::new(held), info })
    }
}

fn errno_of(error: &std::io::Error) -> Errno {
    Errno::from_io_error(error).unwrap_or(Errno::IO)
}

impl<'a> Walker<'a> {
    /// # Errors
    ///
    /// Those of opening the process's root and list of mounts.
    pub(super) fn new(process: &'a Process) -> rustix::io::Result<Self> {
        let root = Step::of(process.open_place("root")?)?;
        let mountinfo = BufReader::new(process.open("mountinfo")?);
        let mounts =
            Mounts::new(mountinfo, process.is_foreign().map_err(|error| errno_of(&error))?);
        let steps = MAX_STEPS_IN_ALL;
        Ok(Self { process, root, mounts, steps, reader: None, is_barred: false, directory: None })
    }

    /// The same, watching whether `reader` could follow the paths, too.
    ///
    /// # Errors
    ///
    /// Those of [`new`](Self::new).
    pub(super) fn of_reader(process: &'a Process, reader: Credentials) -> rustix::io::Result<Self> {
        Ok(Self { reader: Some(reader), ..Self::new(process)? })
    }

    /// Whether a directory on the way of some path may not be searched by the reader.
    pub(super) const fn is_barred(&self) -> bool {
        self.is_barred
    }

    /// The directory in which a name was looked up last for the reader.
    pub(super) fn directory(&self) -> Option<&OwnedFd> {
        self.directory.as_deref()
    }

    /// Follows a path; a relative one from the process's present working directory.
    ///
    /// # Errors
    ///
    /// Those that say nothing about the path: the agent lacks memory or descriptors, or the process is gone.
    pub(super) fn walk(&mut self, path: &str) -> rustix::io::Result<End> {
        if self.steps == 0 {
            return Ok(End::Failed(Errno::LOOP));
        }
        let start = if path.starts_with('/') {
            self.root.clone()
        } else {
            Step::of(self.process.open_place("cwd")?)?
        };
        match self.walk_from(start, path) {
            Err(error @ (Errno::MFILE | Errno::NFILE | Errno::NOMEM | Errno::SRCH)) => Err(error),
            Err(error) => Ok(End::Failed(error)),
            Ok(end) => Ok(end),
        }
    }

    fn walk_from(&mut self, start: Step, path: &str) -> rustix::io::Result<End> {
        let mut rest = Rest::default();
        self.push(&mut rest, path.as_bytes())?;
        let (mut at, mut links) = (start, 0);
        while let Some(name) = rest.names.pop() {
            self.watch(&at)?;
            let next = match &name[..] {
                b"." => continue,
                b".." => self.parent(&at),
                name => self.look_up(&at, name),
            };
            let next = match next {
                Ok(Some(next)) => next,
                Ok(None) => {
                    rest.names.push(name);
                    let kind =
                        self.mount_of(&at)?.map_or_else(String::new, |mount| mount.kind.clone());
                    return Ok(End::MayBlock(place(&at, &rest.names)?, kind));
                }
                Err(Errno::NOENT | Errno::NOTDIR | Errno::NAMETOOLONG) => {
                    rest.names.push(name);
                    return Ok(End::Missing(place(&at, &rest.names)?));
                }
                Err(error) => return Err(error),
            };
            let mount = self.mount_of(&next)?.cloned();
            let Some(mount) = mount.filter(Mount::answers_from_memory) else {
                // It is taken for a directory. If it is a link, the next component is missing.
                at = next;
                continue;
            };
            if kind_of(next.held.as_fd())?.0 != FileType::Symlink {
                at = next;
                continue;
            }
            links += 1;
            if links > MAX_LINKS {
                return Err(Errno::LOOP);
            }
            if !mount.is_local() {
                rest.names.push(name);
                return Ok(End::MayBlock(place(&at, &rest.names)?, mount.kind));
            }
            let target = readlinkat(&next.held, "", Vec::new())?;
            if target.as_bytes().starts_with(b"/") {
                at = self.root.clone();
            }
            self.push(&mut rest, target.as_bytes())?;
        }
        self.end(at)
    }

    /// Watches whether the reader may look up names in a directory.
    fn watch(&mut self, at: &Step) -> rustix::io::Result<()> {
        if self.reader.is_none() {
            return Ok(());
        }
        self.directory = Some(Rc::clone(&at.held));
        // Of other filesystems nothing is read.
        let answers = self.mount_of(at)?.is_some_and(Mount::answers_from_memory);
        let may_search = |reader: &Credentials| reader.may_search(&at.held);
        self.is_barred |= answers && !self.reader.as_ref().map_or(Ok(true), may_search)?;
        Ok(())
    }

    /// Puts the components of a path in front of the rest.
    fn push(&mut self, rest: &mut Rest, path: &[u8]) -> rustix::io::Result<()> {
        let components = path.split(|&byte| byte == b'/').filter(|name| !name.is_empty());
        let count = components.clone().count();
        rest.steps += count;
        if rest.steps > MAX_STEPS {
            return Err(Errno::LOOP);
        }
        let Some(left) = self.steps.checked_sub(count) else {
            self.steps = 0;
            return Err(Errno::LOOP);
        };
        self.steps = left;
        rest.names.extend(components.rev().map(<[u8]>::to_vec));
        Ok(())
    }

    /// The end of a path that has been followed.
    fn end(&mut self, at: Step) -> rustix::io::Result<End> {
        let place = place(&at, &[])?;
        let Some(mount) = self.mount_of(&at)?.cloned() else {
            return Ok(End::MayBlock(place, String::new()));
        };
        if !mount.answers_from_memory() {
            return Ok(End::MayBlock(place, mount.kind));
        }
        let (kind, identity) = kind_of(at.held.as_fd())?;
        Ok(End::Found(Found { held: at.held, identity, kind, mount, place }))
    }

    fn parent(&mut self, at: &Step) -> rustix::io::Result<Option<Step>> {
        if self.is_root(at)? { Ok(Some(self.root.clone())) } else { self.look_up(at, b"..") }
    }

    /// Whether this is the process's root, above which nothing leads.
    fn is_root(&mut self, at: &Step) -> rustix::io::Result<bool> {
        let of = |info: &DescriptorInfo| (info.mount, info.inode);
        if of(&at.info) != of(&self.root.info) {
            return Ok(false);
        }
        // Every subvolume of Btrfs begins with the same inode number; only statx(2) tells their devices apart.
        if !self.mount_of(at)?.is_some_and(Mount::answers_from_memory) {
            return Ok(true);
        }
        let device = |held: &OwnedFd| -> rustix::io::Result<_> {
            let found = statx(held, "", WITHOUT_REQUEST, StatxFlags::INO)?;
            Ok((found.stx_dev_major, found.stx_dev_minor, found.stx_ino))
        };
        Ok(device(&at.held)? == device(&self.root.held)?)
    }

    /// Looks up one component, without following it; `None`: the lookup may block.
    fn look_up(&mut self, at: &Step, name: &[u8]) -> rustix::io::Result<Option<Step>> {
        let name_of_file = Path::new(std::ffi::OsStr::from_bytes(name));
        let open = |how| openat2(&at.held, name_of_file, PLACE, Mode::empty(), how);
        let held = match open(ResolveFlags::NO_MAGICLINKS | ResolveFlags::CACHED) {
            // Not in the kernel's cache, or a kernel before 5.12, which does not know the flag.
            Err(Errno::AGAIN | Errno::INVAL) => {
                let is_local = self.mount_of(at)?.is_some_and(Mount::is_local);
                let mounts = &mut self.mounts;
                if !is_local || mounts.has_trap(at.info.mount, name).map_err(|_| Errno::IO)? {
                    return Ok(None);
                }
                open(ResolveFlags::NO_MAGICLINKS)?
            }
            cached => cached?,
        };
        Step::of(held).map(Some)
    }

    fn mount_of(&mut self, at: &Step) -> rustix::io::Result<Option<&Mount>> {
        self.mounts.get(at.info.mount).map_err(|_| Errno::IO)
    }
}

/// The place of what `rest`, the next component last, leads to from here.
fn place(at: &Step, rest: &[Vec<u8>]) -> rustix::io::Result<Place> {
    let itself = format!("/proc/self/fd/{}", at.held.as_raw_fd());
    let path = rustix::fs::readlink(itself, Vec::new())?;
    let mut path = path.to_string_lossy().into_owned();
    for name in rest.iter().rev() {
        match &name[..] {
            b"." => {}
            b".." => path.truncate(path.rfind('/').unwrap_or(0)),
            name => {
                if !path.ends_with('/') {
                    path.push('/');
                }
                path.push_str(&String::from_utf8_lossy(name));
            }
        }
    }
    Ok(Place { mount: at.info.mount, path })
}
