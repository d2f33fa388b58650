//! Errors of the probe.

use std::{error::Error, io, path::PathBuf};

use aya::programs::ProgramError;
use thiserror::Error;

use super::btf::BtfError;

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
    #[error("The kernel's BTF in {} does not fit; kvmeter needs Linux 5.15 or later", path.display())]
    Btf {
        /// The file.
        path: PathBuf,
        /// What is missing.
        source: BtfError,
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
    pub(super) fn load(source: impl Error + Send + Sync + 'static) -> Self {
        Self::Load(Box::new(source))
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
