//! The namespaces of a process as far as they are not the agent's own: the outermost one below the agent's, and who made it. What is
//! nested deeper was made from within, and says nothing of the host.
//!
//! The links in `/proc/PID/ns` wait on some kernels while the process is in execve(2), which itself may wait for a file server that
//! hangs. A pidfd gives the same namespaces since Linux 6.11 (pidfd_ioctl() of the kernel's pidfs.c), and never waits.

#![expect(unsafe_code, reason = "the ioctls of namespaces (ioctl_nsfs(2)), which no library wraps")]

use std::{
    ffi::c_void,
    fs::metadata,
    io,
    os::{
        fd::{AsFd, FromRawFd as _, OwnedFd},
        unix::fs::MetadataExt as _,
    },
    sync::LazyLock,
};

use rustix::{
    fs::fstat,
    io::Errno,
    ioctl::{Getter, Ioctl, IoctlOutput, Opcode, ioctl, opcode},
};

use super::{
    process::{self, Process},
    shortage::is_shortage,
};

/// ioctls of the kernel's include/uapi/linux/pidfd.h.
const PIDFD_GET_PID_NAMESPACE: Opcode = opcode::none(0xff, 5);
const PIDFD_GET_USER_NAMESPACE: Opcode = opcode::none(0xff, 9);

/// ioctls of the kernel's include/uapi/linux/nsfs.h.
const NS_GET_USERNS: Opcode = opcode::none(0xb7, 1);
const NS_GET_PARENT: Opcode = opcode::none(0xb7, 2);
const NS_GET_OWNER_UID: Opcode = opcode::none(0xb7, 4);

/// Most namespaces of a kind that are nested (`MAX_PID_NS_LEVEL` and create_user_ns() of the kernel), and the first one.
const MAX_LEVELS: usize = 34;

/// A kind of namespace that nests: the name of its link in `/proc/PID/ns`.
#[derive(Clone, Copy, Debug)]
enum Kind {
    Pid,
    User,
}

/// The inode numbers of the agent's own namespaces; `None` = the kernel has no such namespaces. They never change.
static OWN: LazyLock<[Option<u64>; 2]> = LazyLock::new(|| {
    [Kind::Pid, Kind::User].map(|kind| {
        // The agent executes no program.
        metadata(format!("/proc/self/{}", kind.link())).ok().map(|found| found.ino())
    })
});

/// The namespaces of one process.
#[derive(Debug)]
pub(super) struct Namespaces<'a> {
    /// `None` = there is no such process.
    pidfd: Option<OwnedFd>,
    /// Whose links are opened if its pidfd does not tell; `None` = none are.
    links: Option<&'a Process>,
}

/// Where a process is.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Place<T> {
    /// In the agent's own namespace.
    Own,
    /// In this namespace, or in one below it.
    Below(T),
    /// Elsewhere, or it cannot be read.
    Unclear,
}

/// What a PID namespace contains. PID namespaces of one user namespace are one container: its root can make others of them.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) struct Container {
    /// The inode number of the outermost user namespace below the agent's own to which the PID namespace belongs; of a PID namespace
    /// of the agent's own user namespace, its own.
    pub(super) inode: u32,
    /// Whether root has made that namespace. Only root can make a PID namespace of the agent's own user namespace.
    pub(super) is_roots: bool,
}

impl Kind {
    const fn link(self) -> &'static str {
        match self {
            Self::Pid => "ns/pid",
            Self::User => "ns/user",
        }
    }

    const fn of_pidfd(self) -> Opcode {
        match self {
            Self::Pid => PIDFD_GET_PID_NAMESPACE,
            Self::User => PIDFD_GET_USER_NAMESPACE,
        }
    }

    fn own(self) -> Option<u64> {
        OWN[self as usize]
    }
}

impl<'a> Namespaces<'a> {
    /// Those of the process with this id, as far as they are found out without waiting. The caller checks that it is still the
    /// process that was meant.
    ///
    /// # Errors
    ///
    /// If the agent lacks descriptors or memory.
    pub(super) fn of(pid: u32) -> io::Result<Self> {
        let pidfd = match process::open_pidfd(pid) {
            Err(error) if is_shortage(&error) => return Err(error),
            opened => opened.ok(),
        };
        Ok(Self { pidfd, links: None })
    }

    /// Has the links of this process opened, too, which may block.
    pub(super) fn or_links(self, process: &'a Process) -> Self {
        Self { links: Some(process), ..self }
    }

    /// The container of the outermost PID namespace below the agent's own.
    ///
    /// # Errors
    ///
    /// If the agent lacks descriptors or memory.
    pub(super) fn container(&self) -> io::Result<Place<Container>> {
        self.outermost(Kind::Pid, |namespace| {
            let owner = related(&namespace, NS_GET_USERNS)?;
            Ok(match outermost(owner, Kind::User)? {
                Place::Own => Place::Below(Container { inode: inode(&namespace)?, is_roots: true }),
                Place::Below(owner) => {
                    let is_roots = maker(&owner)? == 0;
                    Place::Below(Container { inode: inode(&owner)?, is_roots })
                }
                Place::Unclear => Place::Unclear,
            })
        })
    }

    /// The user who made the outermost user namespace below the agent's own: the effective user id then.
    ///
    /// # Errors
    ///
    /// If the agent lacks descriptors or memory.
    pub(super) fn maker(&self) -> io::Result<Place<u32>> {
        self.outermost(Kind::User, |namespace| Ok(Place::Below(maker(&namespace)?)))
    }

    /// What `describe` finds out about the outermost namespace below the agent's own.
    fn outermost<T>(
        &self,
        kind: Kind,
        describe: impl FnOnce(OwnedFd) -> io::Result<Place<T>>,
    ) -> io::Result<Place<T>> {
        if kind.own().is_none() {
            return Ok(Place::Own);
        }
        let find = || match outermost(self.open(kind)?, kind)? {
            Place::Own => Ok(Place::Own),
            Place::Below(namespace) => describe(namespace),
            Place::Unclear => Ok(Place::Unclear),
        };
        match find() {
            Err(error) if !is_shortage(&error) => Ok(Place::Unclear),
            found => found,
        }
    }

    fn open(&self, kind: Kind) -> io::Result<OwnedFd> {
        let pidfd = self.pidfd.as_ref().ok_or(Errno::SRCH)?;
        match (related(pidfd, kind.of_pidfd()).map_err(io::Error::from), self.links) {
            (Err(error), Some(process)) if !is_shortage(&error) => {
                Ok(process.open(kind.link())?.into())
            }
            (found, _) => found,
        }
    }
}

/// The outermost namespace below the agent's own in which a namespace of this kind is, which may be itself.
fn outermost(mut namespace: OwnedFd, kind: Kind) -> io::Result<Place<OwnedFd>> {
    if is_own(&namespace, kind)? {
        return Ok(Place::Own);
    }
    for _ in 0..MAX_LEVELS {
        // EPERM: it is not below the agent's.
        let parent = related(&namespace, NS_GET_PARENT)?;
        if is_own(&parent, kind)? {
            return Ok(Place::Below(namespace));
        }
        namespace = parent;
    }
    Ok(Place::Unclear)
}

/// The effective user id of who made a user namespace.
fn maker(namespace: &OwnedFd) -> io::Result<u32> {
    // SAFETY: NS_GET_OWNER_UID writes a uid_t, which is a u32 (ns_ioctl() of the kernel's nsfs.c).
    let owner = unsafe { ioctl(namespace, Getter::<NS_GET_OWNER_UID, u32>::new()) };
    Ok(owner?)
}

fn inode(namespace: &OwnedFd) -> io::Result<u32> {
    u32::try_from(fstat(namespace)?.st_ino).map_err(io::Error::other)
}

/// Whether a namespace is the agent's own of its kind.
fn is_own(namespace: &OwnedFd, kind: Kind) -> io::Result<bool> {
    let Some(own) = kind.own() else { return Ok(true) };
    Ok(fstat(namespace)?.st_ino == own)
}

/// The namespace that a pidfd or namespace has, or is related to.
fn related(of: impl AsFd, which: Opcode) -> rustix::io::Result<OwnedFd> {
    // SAFETY: `which` is one of the ioctls of `Related`: the callers, all in this file, give no other. None takes an argument.
    unsafe { ioctl(of, Related(which)) }
}

/// An ioctl that returns a descriptor of a namespace.
struct Related(Opcode);

// SAFETY: NS_GET_PARENT, NS_GET_USERNS, PIDFD_GET_PID_NAMESPACE and PIDFD_GET_USER_NAMESPACE read and write no memory of the caller, and
// return a new descriptor, which belongs to the caller (open_related_ns() and open_namespace() of the kernel's nsfs.c).
unsafe impl Ioctl for Related {
    type Output = OwnedFd;

    const IS_MUTATING: bool = false;

    fn opcode(&self) -> Opcode {
        self.0
    }

    fn as_ptr(&mut self) -> *mut c_void {
        std::ptr::null_mut()
    }

    unsafe fn output_from_ptr(fd: IoctlOutput, _: *mut c_void) -> rustix::io::Result<OwnedFd> {
        // SAFETY: ioctl(2) has succeeded, and so has returned a descriptor that nothing else has.
        Ok(unsafe { OwnedFd::from_raw_fd(fd) })
    }
}
