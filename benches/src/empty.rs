//! A program that does nothing, which is what any program at a tracepoint costs.

use aya::{Btf, Ebpf, programs::BtfTracePoint};
use object::{
    Architecture, BinaryFormat, Endianness, SectionKind, SymbolFlags, SymbolKind, SymbolScope,
    write::{Object, Symbol, SymbolSection},
};

/// `r0 = 0; exit`
const NOTHING: [u8; 16] = [0xb7, 0, 0, 0, 0, 0, 0, 0, 0x95, 0, 0, 0, 0, 0, 0, 0];

/// Attached as long as it is kept.
pub(crate) struct Empty {
    program: Ebpf,
}

impl Empty {
    pub(crate) fn attach(btf: &Btf) -> anyhow::Result<Self> {
        let mut program = Ebpf::load(&object()?)?;
        let empty = tracepoint(&mut program)?;
        empty.load("sched_switch", btf)?;
        empty.attach()?;
        Ok(Self { program })
    }

    pub(crate) fn id(&mut self) -> anyhow::Result<u32> {
        Ok(tracepoint(&mut self.program)?.info()?.id())
    }
}

fn tracepoint(program: &mut Ebpf) -> anyhow::Result<&mut BtfTracePoint> {
    let empty = program.program_mut("empty").ok_or_else(|| anyhow::anyhow!("no program"))?;
    Ok(empty.try_into()?)
}

/// The file that a compiler would have made of it.
fn object() -> anyhow::Result<Vec<u8>> {
    let mut file = Object::new(BinaryFormat::Elf, Architecture::Bpf, Endianness::Little);
    let license = file.add_section(Vec::new(), b"license".to_vec(), SectionKind::Data);
    file.append_section_data(license, b"GPL\0", 1);
    let code = file.add_section(Vec::new(), b"tp_btf/sched_switch".to_vec(), SectionKind::Text);
    let value = file.append_section_data(code, &NOTHING, 8);
    file.add_symbol(Symbol {
        name: b"empty".to_vec(),
        value,
        size: u64::try_from(NOTHING.len())?,
        kind: SymbolKind::Text,
        scope: SymbolScope::Linkage,
        weak: false,
        section: SymbolSection::Section(code),
        flags: SymbolFlags::None,
    });
    Ok(file.write()?)
}
