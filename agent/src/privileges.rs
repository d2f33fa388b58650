//! Which capabilities the agent needs, what each is for, and the way to give up those that it needs no
//! more.

use std::{fs, io};

use caps::errors::CapsError;
use caps::{CapSet, Capability, CapsHashSet};
use thiserror::Error;

/// A capability that the agent needs.
#[derive(Clone, Copy, Debug)]
pub struct Required {
    /// Which.
    pub capability: Capability,
    /// For what; goes on after "to".
    pub why: &'static str,
    /// Whether it is needed for as long as the agent runs, not only until the probes are attached.
    pub always: bool,
}

/// Everything that the agent needs, and no more.
pub const REQUIRED: [Required; 4] = [
    Required {
        capability: Capability::CAP_BPF,
        why: "create maps and load BPF programs",
        always: false,
    },
    Required {
        capability: Capability::CAP_PERFMON,
        why: "let BPF programs trace the scheduler",
        always: false,
    },
    Required {
        capability: Capability::CAP_SYS_PTRACE,
        why: "see which descriptors of other users' processes are KVM's, and which threads are in KVM_RUN",
        always: true,
    },
    Required {
        capability: Capability::CAP_DAC_READ_SEARCH,
        why: "open /proc/PID/fd and /proc/PID/task/TID/syscall of other users' processes, and the headers of their images",
        always: true,
    },
];

/// The capabilities that are kept once the probes are attached.
pub fn kept() -> impl Iterator<Item = Capability> {
    REQUIRED.iter().filter(|required| required.always).map(|required| required.capability)
}

/// Why privileges could not be given up. The process should end then: it may hold some that it should not.
#[derive(Debug, Error)]
pub enum PrivilegeError {
    /// The others would keep all they have.
    #[error(
        "Capabilities belong to a thread, and there are {0} threads already; give them up before the \
         runtime starts"
    )]
    OtherThreads(usize),
    /// One of the sets of `capabilities(7)`.
    #[error("Cannot change the {set} set of capabilities")]
    Set {
        /// The name of the set.
        set: &'static str,
        /// Why.
        source: CapsError,
    },
    /// `PR_SET_NO_NEW_PRIVS`
    #[error("Cannot set no_new_privs")]
    NoNewPrivs(#[source] io::Error),
    /// Procfs is not there.
    #[error("Cannot read /proc/self/task")]
    Threads(#[source] io::Error),
}

/// Gives up every capability but `keep`, for good, and sets `no_new_privs`: no program that the agent
/// would ever start gets back what it has given up, not even as root. Returns what is left, which is less
/// than `keep` if some of it was never held.
///
/// Capabilities belong to a thread and are inherited by the threads that it starts later. So this must be
/// called while there is one thread: before an async runtime, libvirt's event loop or anything else starts
/// another.
///
/// The bounding set can be narrowed only with `CAP_SETPCAP`; without it the set stays as the service
/// manager made it, and `no_new_privs` alone bounds what a program gets at `execve`.
///
/// # Errors
///
/// [`PrivilegeError`]
pub fn drop_to(keep: &[Capability]) -> Result<CapsHashSet, PrivilegeError> {
    let threads = fs::read_dir("/proc/self/task").map_err(PrivilegeError::Threads)?.count();
    if threads > 1 {
        return Err(PrivilegeError::OtherThreads(threads));
    }
    let failed = |set| move |source| PrivilegeError::Set { set, source };
    let keep: CapsHashSet = keep.iter().copied().collect();

    caps::clear(None, CapSet::Ambient).map_err(failed("ambient"))?;
    caps::clear(None, CapSet::Inheritable).map_err(failed("inheritable"))?;
    if caps::has_cap(None, CapSet::Effective, Capability::CAP_SETPCAP)
        .map_err(failed("effective"))?
    {
        let bounding = caps::read(None, CapSet::Bounding).map_err(failed("bounding"))?;
        for capability in bounding.difference(&keep) {
            caps::drop(None, CapSet::Bounding, *capability).map_err(failed("bounding"))?;
        }
    }
    let permitted = caps::read(None, CapSet::Permitted).map_err(failed("permitted"))?;
    let left = permitted.intersection(&keep).copied().collect();
    caps::set(None, CapSet::Effective, &left).map_err(failed("effective"))?;
    caps::set(None, CapSet::Permitted, &left).map_err(failed("permitted"))?;
    rustix::thread::set_no_new_privs(true).map_err(|e| PrivilegeError::NoNewPrivs(e.into()))?;
    Ok(left)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn beside_other_threads_nothing_is_given_up() {
        let before = caps::read(None, CapSet::Effective).unwrap();
        let (tell, told) = std::sync::mpsc::channel::<()>();
        let other = std::thread::spawn(move || told.recv());
        assert!(matches!(drop_to(&[]), Err(PrivilegeError::OtherThreads(2..))));
        assert_eq!(caps::read(None, CapSet::Effective).unwrap(), before);
        drop(tell);
        other.join().unwrap().unwrap_err();
    }

    #[test]
    fn what_loads_programs_is_not_kept() {
        let kept: Vec<_> = kept().collect();
        assert_eq!(kept, [Capability::CAP_SYS_PTRACE, Capability::CAP_DAC_READ_SEARCH]);
    }
}
