//! The namespaces of a process as far as they are not the agent's own: the outermost one below the agent's, and who made it. What is
//! nested deeper was made from within, and says nothing of the host.
//!
//! The links in `/proc/PID/ns` wait on some kernels while the process is in execve(2), which itself may wait for a file server that
//! hangs. A pidfd gives the same namespaces since Linux 6.11 (pidfd_ioctl() of the kernel's pidfs.c), and never waits. That of a thread
//! that has ended gives none.

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
    fs::{OFlags, fstat},
    io::Errno,
    ioctl::{Getter, Ioctl, IoctlOutput, Opcode, ioctl, opcode},
    process::{Pid, PidfdFlags, pidfd_open},
};

use super::{
    process::{self, Process},
    shortage::{if_there, is_shortage},
};

/// ioctls of the kernel's include/uapi/linux/pidfd.h.
const PIDFD_GET_PID_NAMESPACE: Opcode = opcode::none(0xff, 5);
const PIDFD_GET_USER_NAMESPACE: Opcode = opcode::none(0xff, 9);

/// A flag of pidfd_open(2) since Linux 6.9: the descriptor stands for a thread (the kernel's include/uapi/linux/pidfd.h).
const PIDFD_THREAD: PidfdFlags = PidfdFlags::from_bits_retain(OFlags::EXCL.bits());

/// Threads of a process that are asked after its first one has ended: any may end just then.
const MAX_ASKED: usize = 64;

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
    process: &'a Process,
    /// `None` = there is no such process.
    pidfd: Option<OwnedFd>,
    /// Whether the links of the process are opened if its pidfd does not tell.
    has_links: bool,
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
    /// Those of a process, as far as they are found out without waiting. `pid` may be the id of another one by now: the caller checks
    /// afterwards that the process is still there.
    ///
    /// # Errors
    ///
    /// If the agent lacks descriptors or memory.
    pub(super) fn of(process: &'a Process, pid: u32) -> io::Result<Self> {
        Ok(Self { process, pidfd: if_there(process::open_pidfd(pid))?, has_links: false })
    }

    /// Has the links of the process opened, too, which may block.
    pub(super) fn or_links(self) -> Self {
        Self { has_links: true, ..self }
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
        let found = match related(pidfd, kind.of_pidfd()) {
            Err(Errno::SRCH) => self.open_of_thread(kind),
            found => found.map_err(io::Error::from),
        };
        match found {
            Err(error) if self.has_links && !is_shortage(&error) => {
                Ok(self.process.open(kind.link())?.into())
            }
            found => found,
        }
    }

    /// The namespace of a thread that has not ended: all threads of a process are in the same namespaces of these kinds
    /// (copy_process() of the kernel's fork.c).
    fn open_of_thread(&self, kind: Kind) -> io::Result<OwnedFd> {
        for tid in self.process.thread_ids(MAX_ASKED)? {
            let id = i32::try_from(tid).ok().and_then(Pid::from_raw).ok_or(Errno::SRCH)?;
            let Some(pidfd) = if_there(pidfd_open(id, PIDFD_THREAD))? else { continue };
            // The id is that of a thread of the process now. If the pidfd's thread is there afterwards, too, it is that one.
            if self.process.hold_threads([tid])?.is_empty() {
                continue;
            }
            match related(&pidfd, kind.of_pidfd()) {
                Err(Errno::SRCH) => {}
                found => return Ok(found?),
            }
        }
        Err(Errno::SRCH.into())
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

#[cfg(test)]
mod tests {
    use std::{
        path::Path,
        time::{Duration, Instant},
    };

    use nix::libc;
    use rustix::process::{Signal, WaitOptions, kill_process, waitpid};

    use super::*;

    /// A thread without end. Returns for no signal but those that end the process.
    extern "C" fn sleep(_: *mut c_void) -> i32 {
        loop {
            // SAFETY: pause(2) has no arguments.
            unsafe { libc::pause() };
        }
    }

    /// A process that is killed at the end.
    struct Child(Pid);

    impl Child {
        /// One in new namespaces, whose first thread has ended; `None` = this user may not make them.
        fn without_first_thread(namespaces: libc::c_int) -> Option<Self> {
            const THREAD: libc::c_int = libc::CLONE_VM
                | libc::CLONE_FS
                | libc::CLONE_FILES
                | libc::CLONE_SIGHAND
                | libc::CLONE_THREAD
                | libc::CLONE_SYSVSEM;
            let mut stack = vec![0u128; 4096];
            let top = stack.as_mut_ptr_range().end;
            let flags = libc::c_long::from(namespaces | libc::SIGCHLD);
            // SAFETY: without CLONE_VM the new process has a copy of all memory, as after fork(2), and does nothing in it but make a system
            // call and a thread, whose stack nothing else uses. Neither takes a lock.
            let pid = unsafe { libc::syscall(libc::SYS_clone, flags, 0, 0, 0, 0) };
            if pid == 0 {
                // SAFETY: as above; exit(2) ends the calling thread only.
                unsafe {
                    // Nothing is left of it if this process is killed.
                    libc::alarm(120);
                    libc::clone(sleep, top.cast(), THREAD, std::ptr::null_mut());
                    libc::syscall(libc::SYS_exit, 0);
                }
                unreachable!("exit(2) does not return");
            }
            Pid::from_raw(i32::try_from(pid).ok()?).map(Self)
        }
    }

    impl Drop for Child {
        fn drop(&mut self) {
            let _ = kill_process(self.0, Signal::KILL);
            let _ = waitpid(Some(self.0), WaitOptions::empty());
        }
    }

    #[test]
    fn the_namespaces_of_a_process_whose_first_thread_has_ended_are_those_of_the_others() {
        let own = rustix::process::geteuid().as_raw();
        for (flags, maker) in [
            (libc::CLONE_NEWPID, Place::Own),
            (libc::CLONE_NEWPID | libc::CLONE_NEWUSER, Place::Below(own)),
        ] {
            let Some(child) = Child::without_first_thread(flags) else { continue };
            let pid = child.0.as_raw_nonzero().get().unsigned_abs();
            let process = Process::hold(Path::new("/proc"), pid).unwrap();
            let deadline = Instant::now() + Duration::from_secs(60);
            while process.stat().unwrap().state != 'Z' {
                assert!(Instant::now() < deadline);
                std::thread::yield_now();
            }
            assert_eq!(process.thread_ids(9).unwrap().len(), 2);
            let namespaces = Namespaces::of(&process, pid).unwrap();
            // Before Linux 6.11 no pidfd tells.
            let of_self = Process::hold(Path::new("/proc"), std::process::id()).unwrap();
            let tells = Namespaces::of(&of_self, std::process::id()).unwrap();
            if tells.container().unwrap() == Place::Own {
                let container = namespaces.container().unwrap();
                let is_roots = own == 0;
                assert!(
                    matches!(container, Place::Below(found) if found.is_roots == is_roots),
                    "{container:?}"
                );
                assert_eq!(namespaces.maker().unwrap(), maker);
            }
        }
    }
}
