//! What differs between kernels: field offsets and other facts, and how they get into the programs.

use std::{fs, path::Path};

use aya::EbpfLoader;
use kvmeter_common::{Field, field::Presence};
use nix::libc;
use object::{Object as _, ObjectSection as _, SectionKind};

use super::{
    ProbeError,
    btf::{Btf, BtfError},
};

/// Numbers of the system calls that read and write files, in the order that the programs expect: read, readv, pread64,
/// preadv, preadv2, and the same five that write.
const CALLS: [i64; 10] = [
    libc::SYS_read,
    libc::SYS_readv,
    libc::SYS_pread64,
    libc::SYS_preadv,
    libc::SYS_preadv2,
    libc::SYS_write,
    libc::SYS_writev,
    libc::SYS_pwrite64,
    libc::SYS_pwritev,
    libc::SYS_pwritev2,
];

/// What the programs need to know about the kernel.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub struct Offsets {
    /// Offset of each field, by the field's number, for loads.
    fields: [i16; Field::COUNT],
    /// The same offsets as the programs' global `OFFSETS`, for reads by the helper.
    table: [u64; Field::COUNT],
    /// Why disk I/O cannot be counted: a field that this kernel does not have.
    missing_field: Option<String>,
    /// Name of the tracepoint at which io_uring submits a request.
    uring_submit: &'static str,
    /// The programs' other globals.
    globals: [(&'static str, u64); 8],
}

impl Offsets {
    /// Reads the kernel's BTF from `path`, usually `/sys/kernel/btf/vmlinux`.
    ///
    /// # Errors
    ///
    /// [`ProbeError::NoBtf`] when the file cannot be read, [`ProbeError::RingSleeps`], others when it lacks a field or cannot be
    /// parsed.
    pub fn of_kernel(path: &Path) -> Result<Self, ProbeError> {
        let data =
            fs::read(path).map_err(|source| ProbeError::NoBtf { path: path.to_owned(), source })?;
        let btf = Btf::parse(&data).map_err(|source| ProbeError::btf(path, source))?;
        if ring_sleeps(&btf) {
            return Err(ProbeError::RingSleeps);
        }
        Self::from_btf(&btf).map_err(|source| ProbeError::btf(path, source))
    }

    fn from_btf(btf: &Btf<'_>) -> Result<Self, BtfError> {
        let mut fields = [0; Field::COUNT];
        let mut table = [0; Field::COUNT];
        let mut missing_field = None;
        let mut has_preempt_notifiers = true;
        let mut has_descriptor = true;
        // Place of the controller `io` in an array of pointers.
        let io = btf.enum_value("cgroup_subsys_id", "io_cgrp_id");
        let mut has_io_cgroups = io.is_ok();
        for ((offset, in_table), field) in fields.iter_mut().zip(&mut table).zip(Field::ALL) {
            let (name, members) = (field.of_struct(), field.members());
            let mut found = members.iter().map(|member| btf.field_offset(name, member));
            if let Some(found) = found.find_map(Result::ok) {
                let place = if field == Field::CgroupsIo { io.clone().unwrap_or(0) } else { 0 };
                let found = found + 8 * u64::from(place);
                *in_table = found;
                *offset = i16::try_from(found).map_err(|_| BtfError::TooFar(found))?;
                continue;
            }
            // The offset stays 0: a load that is never run needs one, too.
            match field.presence() {
                Presence::WithKvm => has_preempt_notifiers = false,
                Presence::WithIoCgroups => has_io_cgroups = false,
                Presence::Optional => has_descriptor = false,
                Presence::ForDisks => {
                    let field = format!("{} in struct {name}", members[0]);
                    missing_field = Some(format!("the kernel's BTF has no {field}"));
                }
                Presence::Required => {
                    btf.field_offset(name, members[0])?;
                }
            }
        }
        let tells_state = btf.tracepoint_args("sched_switch")? >= 4;
        // Since Linux 6.13 the result is in the completion queue entry instead.
        let tells_result = btf.tracepoint_args("io_uring_complete").is_ok_and(|count| count > 3);
        let globals = [
            ("SWITCH_HAS_STATE", u64::from(tells_state)),
            ("HAS_PREEMPT_NOTIFIERS", u64::from(has_preempt_notifiers)),
            ("URING_HAS_RESULT", u64::from(tells_result)),
            ("URING_HAS_DESCRIPTOR", u64::from(has_descriptor)),
            ("HAS_IOMAP_EVENTS", u64::from(btf.tracepoint_args("iomap_dio_rw_begin").is_ok())),
            ("HAS_IO_CGROUPS", u64::from(has_io_cgroups)),
            ("O_DIRECT", u64::from(rustix::fs::OFlags::DIRECT.bits())),
            ("IO_SUBMIT", libc::SYS_io_submit.cast_unsigned()),
        ];
        // The name since Linux 6.4; Linux 6.0 to 6.3 have the same event under the other name.
        let (now, before) = ("io_uring_submit_req", "io_uring_submit_sqe");
        let is_before = btf.tracepoint_args(now).is_err() && btf.tracepoint_args(before) == Ok(2);
        let uring_submit = if is_before { before } else { now };
        Ok(Self { fields, table, missing_field, uring_submit, globals })
    }

    /// Sets the programs' read-only globals.
    pub(super) fn set_globals<'a>(&'a self, loader: &mut EbpfLoader<'a>) {
        for (name, value) in &self.globals {
            loader.override_global(name, value, true);
        }
        loader.override_global("OFFSETS", &self.table[..], true);
        loader.override_global("CALLS", &CALLS[..], true);
    }

    /// The tracepoint to attach `program` to: its own name, except where a kernel has another name for it.
    pub(super) fn tracepoint(&self, program: &'static str) -> &'static str {
        if program == "io_uring_submit_req" { self.uring_submit } else { program }
    }

    /// Why disk I/O cannot be counted on this kernel; `None`: it can.
    pub(super) fn missing_field(&self) -> Option<&str> {
        self.missing_field.as_deref()
    }

    /// The object with this kernel's offsets in place of the placeholders.
    ///
    /// # Errors
    ///
    /// When the object is no ELF file.
    pub(super) fn relocate(&self, object: &[u8]) -> Result<Vec<u8>, object::Error> {
        let mut written = object.to_vec();
        for section in object::File::parse(object)?.sections() {
            let (SectionKind::Text, Some((begin, len))) = (section.kind(), section.file_range())
            else {
                continue;
            };
            let range = usize::try_from(begin).ok().zip(usize::try_from(begin + len).ok());
            if let Some(code) = range.and_then(|(begin, end)| written.get_mut(begin..end)) {
                self.relocate_code(code);
            }
        }
        Ok(written)
    }

    /// An instruction has eight bytes (Documentation/bpf/standardization/instruction-set.rst): opcode, registers, 16-bit
    /// offset, 32-bit immediate.
    fn relocate_code(&self, code: &mut [u8]) {
        /// Instruction class of loads, and the bits of the opcode with the class.
        const LDX: u8 = 0x01;
        const CLASS: u8 = 0x07;
        for instruction in code.chunks_exact_mut(8) {
            let &mut [opcode, _, low, high, ..] = instruction else { continue };
            if opcode & CLASS == LDX
                && let Some(field) = Field::of_placeholder(i16::from_le_bytes([low, high]))
            {
                let offset = self.fields[usize::from(field.number())];
                instruction[2..4].copy_from_slice(&offset.to_le_bytes());
            }
        }
    }
}

/// Whether the lock of a BPF ring buffer is one that sleeps. With `PREEMPT_RT` a `spinlock_t` is an rt_mutex (the kernel's
/// spinlock_types.h); the ring buffer has a `raw_spinlock_t` since Linux 6.12 and late updates of earlier series.
fn ring_sleeps(btf: &Btf<'_>) -> bool {
    btf.field_offset("bpf_ringbuf", "spinlock.lock.waiters").is_ok()
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
        assert_eq!(offsets.missing_field, None);
    }

    #[test]
    fn only_placeholders_of_loads_are_replaced() {
        let fields = std::array::from_fn(|number| i16::try_from(number * 8).unwrap());
        let offsets = Offsets {
            fields,
            table: [0; Field::COUNT],
            missing_field: None,
            uring_submit: "",
            globals: [("", 0); 8],
        };
        let [low, high] = Field::TaskTgid.placeholder().to_le_bytes();
        // r1 = *(u32 *)(r2 + placeholder), the same as a store, a load at 16, and the second half of a wide load
        let mut code = [
            [0x61, 0x21, low, high, 0, 0, 0, 0],
            [0x63, 0x21, low, high, 0, 0, 0, 0],
            [0x61, 0x21, 16, 0, 0, 0, 0, 0],
            [0, 0, 0, 0, 1, 2, 3, 4],
        ];
        let before = code;
        offsets.relocate_code(code.as_flattened_mut());
        assert_eq!(code[0], [0x61, 0x21, 8, 0, 0, 0, 0, 0]);
        assert_eq!(code[1..], before[1..]);
    }

    /// BTF with a `struct bpf_ringbuf`, whose lock has the member `outer` with the member `inner`.
    fn with_ring(outer: &str, inner: &str) -> Vec<u8> {
        let names = ["", "bpf_ringbuf", "spinlock", outer, inner];
        let name = |at: usize| names[..at].iter().map(|name| name.len() + 1).sum::<usize>();
        // A type of 4 bytes, and each struct with one member, whose type is the one before.
        let mut words = vec![0, 1 << 24, 4, 32];
        for (id, [of_struct, member]) in [[0, 4], [0, 3], [1, 2]].into_iter().enumerate() {
            words.extend([name(of_struct), 4 << 24 | 1, 4, name(member), id + 1, 0]);
        }
        let strings = names.map(|name| format!("{name}\0")).concat();
        let types = 4 * words.len();
        let header = [0x01_eb9f, 24, 0, types, types, strings.len()];
        let words = header.into_iter().chain(words);
        let words = words.map(|word| u32::try_from(word).unwrap());
        let mut data: Vec<u8> = words.flat_map(u32::to_ne_bytes).collect();
        data.extend(strings.into_bytes());
        data
    }

    #[test]
    fn a_ring_buffer_that_sleeps_is_known_by_its_lock() {
        for (outer, inner, sleeps) in
            [("lock", "waiters", true), ("raw_lock", "val", false), ("rlock", "raw_lock", false)]
        {
            let data = with_ring(outer, inner);
            let btf = Btf::parse(&data).unwrap();
            assert!(btf.field_offset("bpf_ringbuf", &format!("spinlock.{outer}.{inner}")).is_ok());
            assert_eq!(ring_sleeps(&btf), sleeps, "{outer}");
        }
    }

    #[test]
    fn a_missing_btf_file_is_named() {
        let error = Offsets::of_kernel(Path::new("/nonexistent/btf")).unwrap_err();
        assert!(matches!(error, ProbeError::NoBtf { .. }));
    }
}
