//! BPF programs on the running kernel: what they have cost so far, and one that does nothing.

use std::time::Duration;

use anyhow::Context as _;
use aya::{
    Btf, Ebpf,
    programs::{BtfTracePoint, loaded_programs},
};
use object::{
    Architecture, BinaryFormat, Endianness, SectionKind, SymbolFlags, SymbolKind, SymbolScope,
    write::{Object, Symbol, SymbolSection},
};

/// `r0 = 0; exit`, in either byte order: the opcode comes first and all else is 0.
const RETURN_ZERO: [u8; 16] = [0xb7, 0, 0, 0, 0, 0, 0, 0, 0x95, 0, 0, 0, 0, 0, 0, 0];

/// How long and how often a program has run while statistics were on.
#[derive(Clone, Copy, Debug)]
pub(crate) struct RunTime {
    pub(super) time: Duration,
    pub(super) runs: u64,
}

impl RunTime {
    /// Of the program with this id.
    pub(crate) fn of(id: u32) -> anyhow::Result<Self> {
        for program in loaded_programs() {
            let program = program?;
            if program.id() == id {
                return Ok(Self { time: program.run_time(), runs: program.run_count() });
            }
        }
        anyhow::bail!("The BPF program {id} is gone")
    }

    /// Mean ns of the runs since `earlier`.
    pub(crate) fn ns_per_run_since(self, earlier: Self) -> f64 {
        (self.time - earlier.time).as_secs_f64() * 1e9 / (self.runs - earlier.runs) as f64
    }
}

/// How many programs are loaded that are named after the tracepoint and not among `known`: other agents and tools,
/// which run between those that are measured and make them slower.
pub(super) fn others(hook: &str, known: &[u32]) -> anyhow::Result<usize> {
    let mut count = 0;
    for program in loaded_programs() {
        let program = program?;
        let is_of_hook = program.name_as_str().is_some_and(|name| name.starts_with(hook));
        count += usize::from(is_of_hook && !known.contains(&program.id()));
    }
    Ok(count)
}

/// A program at a tracepoint that does nothing: what it is seen to take is the cost of measuring.
pub(crate) struct Empty {
    pub(crate) id: u32,
    _attached: Ebpf,
}

impl Empty {
    pub(crate) fn attach(hook: &str) -> anyhow::Result<Self> {
        let mut ebpf = Ebpf::load(&object(hook)?)?;
        let program: &mut BtfTracePoint =
            ebpf.program_mut("empty").context("The object has no program")?.try_into()?;
        program.load(hook, &Btf::from_sys_fs()?)?;
        program.attach()?;
        Ok(Self { id: program.info()?.id(), _attached: ebpf })
    }
}

/// An ELF object as a compiler would make it of an empty function.
fn object(hook: &str) -> anyhow::Result<Vec<u8>> {
    let endianness = if cfg!(target_endian = "big") { Endianness::Big } else { Endianness::Little };
    let mut object = Object::new(BinaryFormat::Elf, Architecture::Bpf, endianness);
    let name = format!("tp_btf/{hook}").into_bytes();
    let section = object.add_section(Vec::new(), name, SectionKind::Text);
    object.append_section_data(section, &RETURN_ZERO, 8);
    object.add_symbol(Symbol {
        name: b"empty".to_vec(),
        value: 0,
        size: RETURN_ZERO.len() as u64,
        kind: SymbolKind::Text,
        scope: SymbolScope::Dynamic,
        weak: false,
        section: SymbolSection::Section(section),
        flags: SymbolFlags::None,
    });
    let license = object.add_section(Vec::new(), b"license".to_vec(), SectionKind::Data);
    object.append_section_data(license, b"Dual MIT/GPL\0", 1);
    Ok(object.write()?)
}
