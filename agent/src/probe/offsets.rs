//! Where the running kernel keeps what the programs read.

use std::{fs, path::Path};

use kvmeter_common::Field;
use object::{Object as _, ObjectSection as _, SectionKind};

use super::{
    ProbeError,
    btf::{Btf, BtfError},
};

/// Where BTF has each field; of two names the first that the kernel has.
const fn place(field: Field) -> (&'static str, &'static [&'static str]) {
    match field {
        Field::TaskPid => ("task_struct", &["pid"]),
        Field::TaskTgid => ("task_struct", &["tgid"]),
        Field::TaskComm => ("task_struct", &["comm"]),
        // Named so since Linux 5.14.
        Field::TaskState => ("task_struct", &["__state", "state"]),
        Field::TaskStartTime => ("task_struct", &["start_time"]),
        Field::TaskSumExecRuntime => ("task_struct", &["se.sum_exec_runtime"]),
        Field::TaskRunDelay => ("task_struct", &["sched_info.run_delay"]),
        Field::TaskPreemptNotifiers => ("task_struct", &["preempt_notifiers.first"]),
        Field::TaskExitCode => ("task_struct", &["exit_code"]),
        Field::TaskSignal => ("task_struct", &["signal"]),
        Field::SignalLive => ("signal_struct", &["live.counter"]),
        Field::SignalSumSchedRuntime => ("signal_struct", &["sum_sched_runtime"]),
    }
}

/// What the programs need to know of the kernel.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub struct Offsets {
    /// By the numbers of the fields.
    fields: [i16; Field::ALL.len()],
    globals: [(&'static str, u64); 2],
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
        let mut fields = [0; Field::ALL.len()];
        let mut has_preempt_notifiers = true;
        for (offset, field) in fields.iter_mut().zip(Field::ALL) {
            let (name, paths) = place(field);
            let mut found = paths.iter().map(|path| btf.field_offset(name, path));
            *offset = match found.find_map(Result::ok) {
                Some(found) => i16::try_from(found).map_err(|_| BtfError::TooFar(found))?,
                // Only kernels that are built with KVM have it. A load that is never run needs an offset too.
                None if field == Field::TaskPreemptNotifiers => {
                    has_preempt_notifiers = false;
                    0
                }
                None => {
                    btf.field_offset(name, paths[0])?;
                    0
                }
            };
        }
        let tells_state = btf.tracepoint_args("sched_switch")? >= 4;
        let globals = [
            ("SWITCH_HAS_STATE", u64::from(tells_state)),
            ("HAS_PREEMPT_NOTIFIERS", u64::from(has_preempt_notifiers)),
        ];
        Ok(Self { fields, globals })
    }

    /// The globals and their values.
    pub(super) const fn globals(&self) -> &[(&'static str, u64)] {
        &self.globals
    }

    /// The object with the offsets in place of the marks.
    ///
    /// # Errors
    ///
    /// When the object is no ELF file.
    pub(super) fn write_into(&self, object: &[u8]) -> Result<Vec<u8>, object::Error> {
        let mut written = object.to_vec();
        for section in object::File::parse(object)?.sections() {
            let (SectionKind::Text, Some((begin, len))) = (section.kind(), section.file_range())
            else {
                continue;
            };
            let range = usize::try_from(begin).ok().zip(usize::try_from(begin + len).ok());
            if let Some(code) = range.and_then(|(begin, end)| written.get_mut(begin..end)) {
                self.write_into_code(code);
            }
        }
        Ok(written)
    }

    /// Instructions are eight octets (Documentation/bpf/standardization/instruction-set.rst): opcode, registers, a
    /// 16-bit offset, a 32-bit number.
    fn write_into_code(&self, code: &mut [u8]) {
        /// The class of loads from memory, and the bits of an opcode that tell it.
        const LDX: u8 = 0x01;
        const CLASS: u8 = 0x07;
        for instruction in code.chunks_exact_mut(8) {
            let &mut [opcode, _, low, high, ..] = instruction else { continue };
            if opcode & CLASS == LDX
                && let Some(field) = Field::of_mark(i16::from_le_bytes([low, high]))
            {
                let offset = self.fields[usize::from(field.number())];
                instruction[2..4].copy_from_slice(&offset.to_le_bytes());
            }
        }
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
        assert!(offsets.fields[1..].iter().all(|&offset| offset > 0), "{offsets:?}");
    }

    #[test]
    fn only_marks_of_loads_become_offsets() {
        let fields = std::array::from_fn(|number| i16::try_from(number * 8).unwrap());
        let offsets = Offsets { fields, globals: [("", 0); 2] };
        let [low, high] = Field::TaskTgid.mark().to_le_bytes();
        // r1 = *(u32 *)(r2 + mark), the same as a store, a load at 16, and the second half of a wide load
        let mut code = [
            [0x61, 0x21, low, high, 0, 0, 0, 0],
            [0x63, 0x21, low, high, 0, 0, 0, 0],
            [0x61, 0x21, 16, 0, 0, 0, 0, 0],
            [0, 0, 0, 0, 1, 2, 3, 4],
        ];
        let before = code;
        offsets.write_into_code(code.as_flattened_mut());
        assert_eq!(code[0], [0x61, 0x21, 8, 0, 0, 0, 0, 0]);
        assert_eq!(code[1..], before[1..]);
    }

    #[test]
    fn a_kernel_without_btf_is_named() {
        let error = Offsets::of_kernel(Path::new("/nonexistent/btf")).unwrap_err();
        assert!(matches!(error, ProbeError::NoBtf { .. }));
    }
}
