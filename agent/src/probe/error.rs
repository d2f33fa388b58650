//! Errors of the probe.

use std::{
    error::Error,
    io,
    path::{Path, PathBuf},
};

use aya::{EbpfError, maps::MapError, programs::ProgramError};
use thiserror::Error;

use super::{Sizes, btf::BtfError};

/// Why the programs do not run, and what to do about it.
#[derive(Debug, Error)]
pub enum ProbeError {
    /// The build had no BPF toolchain.
    #[error(
        "This kvmeter was built without its BPF programs; run `cargo xtask setup` and build it again"
    )]
    BuiltWithout,
    /// The kernel has no BTF.
    #[error(
        "The kernel's BTF cannot be read from {}; kvmeter needs a kernel built with CONFIG_DEBUG_INFO_BTF=y",
        path.display()
    )]
    NoBtf {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The kernel's BTF lacks something.
    #[error("The kernel's BTF in {} lacks what kvmeter reads", path.display())]
    Btf {
        /// The file.
        path: PathBuf,
        /// What is missing.
        source: BtfError,
    },
    /// The kernel's BTF has a kind of type that this version does not know.
    #[error("The kernel's BTF in {} is newer than this kvmeter", path.display())]
    BtfTooNew {
        /// The file.
        path: PathBuf,
        /// What is unknown.
        source: Box<dyn Error + Send + Sync>,
    },
    /// The kernel has `PREEMPT_RT` and a ring buffer whose lock sleeps.
    #[error(
        "This kernel has PREEMPT_RT, and its BPF ring buffer takes a lock that sleeps, which a program at a switch of threads must \
         not do"
    )]
    RingSleeps,
    /// The data is no BTF.
    #[error("The file {} is no BTF of this machine's kernel, or damaged", path.display())]
    BtfDamaged {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        source: BtfError,
    },
    /// Another agent counts with these pins.
    #[error(
        "Another kvmeter counts with the pins under {}: two agents would give the same records to two VMs; end the other one, or \
         set another `pin_dir` in the section [probe] of the configuration",
        dir.display()
    )]
    InUse {
        /// The directory.
        dir: PathBuf,
    },
    /// A pin cannot be removed while ftrace is switched off.
    #[error(
        "ftrace is switched off: to detach the programs at functions that are pinned in {} may make the kernel switch ftrace off until \
         the next boot",
        dir.display()
    )]
    FtraceOff {
        /// The directory.
        dir: PathBuf,
    },
    /// The pin directory is not on a BPF filesystem.
    #[error(
        "{} is not on a BPF filesystem; run `mount -t bpf bpf /sys/fs/bpf`, or set `pin_dir` in the \
         section [probe] of the configuration",
        dir.display()
    )]
    NotBpffs {
        /// The directory.
        dir: PathBuf,
    },
    /// Others can change the pins.
    #[error(
        "The directory {} {why}: whoever can change the pins can end the counting",
        dir.display()
    )]
    NotOurs {
        /// The directory.
        dir: PathBuf,
        /// Who can.
        why: String,
    },
    /// The directory whose owner is to get the pins cannot be seen.
    #[error(
        "There is no {} whose owner gets the pin directory; the service manager makes that directory before `kvmeter prepare`",
        dir.display()
    )]
    NoExample {
        /// The directory.
        dir: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A pin cannot be made, opened or removed.
    #[error("The pin {} cannot be used; kvmeter must start as root or with CAP_BPF, CAP_PERFMON and write access there", path.display())]
    Pin {
        /// The pin.
        path: PathBuf,
        /// Why.
        source: Box<dyn Error + Send + Sync>,
    },
    /// The pins changed while they were opened.
    #[error("The maps pinned in {} changed while they were opened; does another kvmeter start there?", dir.display())]
    PinsChanged {
        /// The directory.
        dir: PathBuf,
    },
    /// The kernel refused the maps.
    #[error(
        "The kernel refuses the BPF maps; kvmeter must start as root or with CAP_BPF and CAP_PERFMON"
    )]
    Load(#[source] Box<dyn Error + Send + Sync>),
    /// The kernel refused a table of this size.
    #[error(
        "The kernel refuses a table of {records} records, as limits.{key} of the configuration has it"
    )]
    Table {
        /// The key.
        key: &'static str,
        /// Records of the table.
        records: usize,
        /// Why.
        source: io::Error,
    },
    /// The records cannot be mapped.
    #[error("The maps of the counters cannot be mapped; run `kvmeter detach` and start again")]
    Map {
        /// Why.
        source: io::Error,
    },
    /// The kernel refused a program.
    #[error("The kernel refuses the program {name}")]
    Hook {
        /// Its name.
        name: &'static str,
        /// Why.
        source: Box<dyn Error + Send + Sync>,
    },
    /// The object lacks a program.
    #[error("The BPF object of this build has no program {name}; build it again")]
    NoProgram {
        /// The program.
        name: &'static str,
    },
    /// The largest thread id cannot be read.
    #[error("/proc/sys/kernel/pid_max cannot be read; is /proc mounted?")]
    PidMax(#[source] io::Error),
}

impl ProbeError {
    /// Sorts an error of reading the BTF in `path` by what is to be done about it.
    pub(super) fn btf(path: &Path, source: BtfError) -> Self {
        let path = path.to_owned();
        match source {
            BtfError::UnknownKind { .. } => Self::BtfTooNew { path, source: Box::new(source) },
            BtfError::Missing(_) | BtfError::BitField(_) | BtfError::TooFar(_) => {
                Self::Btf { path, source }
            }
            BtfError::Truncated { .. } | BtfError::BadMagic | BtfError::TooDeep => {
                Self::BtfDamaged { path, source }
            }
        }
    }

    /// What to do about it.
    #[must_use]
    pub const fn fix(&self) -> &'static str {
        match self {
            Self::BuiltWithout | Self::NoProgram { .. } => {
                "install a complete build, or run `cargo xtask setup` and build it again"
            }
            Self::NoBtf { .. } | Self::Btf { .. } => {
                "boot Linux 5.15 or later, built with CONFIG_DEBUG_INFO_BTF=y"
            }
            Self::RingSleeps => {
                "boot the latest update of this kernel, or Linux 6.12 or later: the ring buffer has another lock there"
            }
            Self::BtfTooNew { .. } => {
                "install a newer kvmeter; until then, set KVMETER_BTF to a file with this kernel's BTF that this version can read, \
                 such as one that an older pahole has made"
            }
            Self::BtfDamaged { .. } => {
                "unset KVMETER_BTF, or set it to a file with this kernel's BTF"
            }
            Self::NotBpffs { .. } => "mount -t bpf bpf /sys/fs/bpf, or set probe.pin_dir",
            Self::NotOurs { .. } => {
                "remove that directory as root, or set probe.pin_dir; if it is the service's, start the service instead"
            }
            Self::NoExample { .. } => {
                "start the service, or make the directory for the user that it runs as"
            }
            Self::InUse { .. } => "end the other agent, or set probe.pin_dir",
            Self::PinsChanged { .. } | Self::Map { .. } => "run `kvmeter detach` and start again",
            Self::FtraceOff { .. } => "run `sysctl kernel.ftrace_enabled=1`",
            Self::PidMax(_) => "mount /proc",
            Self::Table { .. } => {
                "set a smaller size in the section [limits] of the configuration, or run as root if even the default is refused"
            }
            Self::Pin { .. } | Self::Load(_) | Self::Hook { .. } => {
                "run as root; `dmesg` may tell which policy refuses BPF"
            }
        }
    }

    pub(super) fn load(source: impl Error + Send + Sync + 'static) -> Self {
        Self::Load(Box::new(source))
    }

    /// Names the table that the kernel refused.
    pub(super) fn maps(error: EbpfError, sizes: Sizes) -> Self {
        match error {
            EbpfError::MapError(MapError::CreateError { name, io_error })
                if io_error.kind() != io::ErrorKind::PermissionDenied =>
            {
                let mut maps = sizes.maps().into_iter();
                match maps.find(|(map, ..)| *map == name) {
                    Some((_, key, records)) => Self::Table { key, records, source: io_error },
                    None => Self::load(MapError::CreateError { name, io_error }),
                }
            }
            error => Self::load(error),
        }
    }

    pub(super) fn hook(name: &'static str, source: ProgramError) -> Self {
        match source {
            // If the verifier did not run, its log is empty.
            ProgramError::LoadError { io_error, verifier_log }
                if verifier_log.to_string().trim().is_empty() =>
            {
                Self::Hook { name, source: Box::new(io_error) }
            }
            source => Self::Hook { name, source: Box::new(source) },
        }
    }

    pub(super) fn pin(
        path: impl Into<PathBuf>,
        source: impl Error + Send + Sync + 'static,
    ) -> Self {
        Self::Pin { path: path.into(), source: Box::new(source) }
    }
}

/// An error and its chain of causes, in one line.
pub(crate) fn with_causes(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_btf_that_is_too_new_too_old_or_none_has_its_own_fix() {
        let fix = |source| ProbeError::btf(Path::new("/btf"), source).fix();
        assert!(fix(BtfError::UnknownKind { id: 7, kind: 20 }).contains("a newer kvmeter"));
        assert!(fix(BtfError::Missing("x".to_owned())).contains("Linux 5.15 or later"));
        assert!(fix(BtfError::BadMagic).contains("unset KVMETER_BTF"));
        let refused = MapError::CreateError {
            name: "IMAGE".to_owned(),
            io_error: io::Error::from_raw_os_error(12),
        };
        let error = ProbeError::maps(EbpfError::MapError(refused), Sizes::default());
        assert!(error.to_string().contains("4096 records, as limits.images"), "{error}");
        assert!(error.fix().contains("[limits]"));
        assert!(fix(BtfError::Truncated { at: 1, what: "type" }).contains("unset KVMETER_BTF"));
    }
}
