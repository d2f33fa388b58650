//! The capabilities that the agent needs, the reason for each, and dropping the others.

use std::{fs, io};

use caps::{CapSet, Capability, CapsHashSet, errors::CapsError};
use thiserror::Error;

/// A capability that the agent needs.
#[derive(Clone, Copy, Debug)]
pub struct Required {
    /// The capability.
    pub capability: Capability,
    /// The reason; follows "to" in a message.
    pub why: &'static str,
    /// Whether it is needed for as long as the agent runs; else until the probes are loaded.
    pub always: bool,
}

/// The needed capabilities, and no others.
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

/// The capabilities that are kept after the probes are loaded.
pub fn kept() -> impl Iterator<Item = Capability> {
    REQUIRED.iter().filter(|required| required.always).map(|required| required.capability)
}

/// Why privileges could not be dropped. The process should exit then: it may hold some that it should not.
#[derive(Debug, Error)]
pub enum PrivilegeError {
    /// Other threads would keep their capabilities.
    #[error(
        "Capabilities belong to a thread, and there are {0} threads already; drop them before the \
         runtime starts"
    )]
    OtherThreads(usize),
    /// One of the sets of capabilities(7) cannot be changed.
    #[error("Cannot change the {set} set of capabilities")]
    Set {
        /// Name of the set.
        set: &'static str,
        /// Why.
        source: CapsError,
    },
    /// `PR_SET_NO_NEW_PRIVS` failed.
    #[error("Cannot set no_new_privs")]
    NoNewPrivs(#[source] io::Error),
    /// Procfs cannot be read.
    #[error("Cannot read /proc/self/task")]
    Threads(#[source] io::Error),
}

/// Drops every capability but `keep`, permanently, and sets `no_new_privs`: no program that the agent may start regains
/// them, not even as root. Returns the remaining capabilities: those of `keep` that were held.
///
/// Capabilities belong to a thread and are inherited by the threads that it starts later. So this must be called while the
/// process has one thread: before an async runtime, libvirt's event loop or any other code starts one.
///
/// The bounding set can be reduced only with `CAP_SETPCAP`. Without it, the set stays as the service manager has set it, and
/// `no_new_privs` alone limits what a program gets at execve(2).
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
    fn beside_other_threads_nothing_is_dropped() {
        let before = caps::read(None, CapSet::Effective).unwrap();
        let (sender, receiver) = std::sync::mpsc::channel::<()>();
        let other = std::thread::spawn(move || receiver.recv());
        assert!(matches!(drop_to(&[]), Err(PrivilegeError::OtherThreads(2..))));
        assert_eq!(caps::read(None, CapSet::Effective).unwrap(), before);
        drop(sender);
        other.join().unwrap().unwrap_err();
    }

    #[test]
    fn capabilities_that_load_programs_are_not_kept() {
        let kept: Vec<_> = kept().collect();
        assert_eq!(kept, [Capability::CAP_SYS_PTRACE, Capability::CAP_DAC_READ_SEARCH]);
    }
}
