//! Where the running kernel keeps what the programs read.

use std::{fs, path::Path};

use super::{
    ProbeError,
    btf::{Btf, BtfError},
};

/// Global of the BPF object ← field of a kernel struct.
const FIELDS: [(&str, &str, &str); 9] = [
    ("TASK_PID", "task_struct", "pid"),
    ("TASK_TGID", "task_struct", "tgid"),
    ("TASK_COMM", "task_struct", "comm"),
    ("TASK_START_TIME", "task_struct", "start_time"),
    ("TASK_SUM_EXEC_RUNTIME", "task_struct", "se.sum_exec_runtime"),
    ("TASK_RUN_DELAY", "task_struct", "sched_info.run_delay"),
    ("TASK_SIGNAL", "task_struct", "signal"),
    ("SIGNAL_LIVE", "signal_struct", "live.counter"),
    ("SIGNAL_SUM_SCHED_RUNTIME", "signal_struct", "sum_sched_runtime"),
];

/// The offset of a field that the kernel does not have: the programs leave out what would read it.
const ABSENT: u64 = u64::MAX;

/// Values for the globals of the BPF object.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Offsets {
    globals: Vec<(&'static str, u64)>,
}

impl Offsets {
    /// Reads the kernel's BTF from `path`, usually `/sys/kernel/btf/vmlinux`.
    ///
    /// # Errors
    ///
    /// [`ProbeError::NoBtf`] when the file cannot be read, [`ProbeError::Btf`] when it lacks a field.
    pub fn of_kernel(path: &Path) -> Result<Self, ProbeError> {
        let data =
            fs::read(path).map_err(|source| ProbeError::NoBtf { path: path.to_owned(), source })?;
        Btf::parse(&data)
            .and_then(|btf| Self::from_btf(&btf))
            .map_err(|source| ProbeError::Btf { path: path.to_owned(), source })
    }

    fn from_btf(btf: &Btf<'_>) -> Result<Self, BtfError> {
        let mut globals = FIELDS
            .iter()
            .map(|&(global, name, path)| Ok((global, btf.field_offset(name, path)?)))
            .collect::<Result<Vec<_>, BtfError>>()?;
        // Named so since Linux 5.14.
        let state = btf
            .field_offset("task_struct", "__state")
            .or_else(|_| btf.field_offset("task_struct", "state"))?;
        globals.push(("TASK_STATE", state));
        // Only kernels that are built with KVM have the field.
        let notifiers = btf.field_offset("task_struct", "preempt_notifiers.first");
        globals.push(("TASK_PREEMPT_NOTIFIERS", notifiers.unwrap_or(ABSENT)));
        let tells_state = btf.tracepoint_args("sched_switch")? >= 4;
        globals.push(("SWITCH_HAS_STATE", u64::from(tells_state)));
        Ok(Self { globals })
    }

    /// The globals and their values.
    pub(super) fn globals(&self) -> &[(&'static str, u64)] {
        &self.globals
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_running_kernel_has_every_field() {
        let path = Path::new("/sys/kernel/btf/vmlinux");
        if !path.exists() {
            eprintln!("skipped: this kernel has no BTF");
            return;
        }
        let offsets = Offsets::of_kernel(path).unwrap();
        assert_eq!(offsets.globals().len(), FIELDS.len() + 3);
    }

    #[test]
    fn a_kernel_without_btf_is_named() {
        let error = Offsets::of_kernel(Path::new("/nonexistent/btf")).unwrap_err();
        assert!(matches!(error, ProbeError::NoBtf { .. }));
    }
}
