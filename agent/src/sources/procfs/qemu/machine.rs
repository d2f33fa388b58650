//! Memory, CPUs and accelerator of a QEMU, as its options have them after all were merged.

use std::collections::HashMap;

use super::{
    super::options::Fields,
    arguments::{Entry, Subject},
    numbers::{count, size},
};

/// QEMU's default of memory (`mc->default_ram_size` of its `hw/core/machine.c`), which the boards of x86 and the generic ones
/// keep.
const DEFAULT_MEMORY: u64 = 128 << 20;

/// QEMU rounds the memory up to this.
const MEMORY_UNIT: u64 = 8192;

/// Kinds of topology that `-smp` takes.
const TOPOLOGY: [&str; 8] =
    ["drawers", "books", "sockets", "dies", "clusters", "modules", "cores", "threads"];

/// A value among options.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
enum Told<T> {
    /// Not among them.
    #[default]
    Not,
    /// Among them, or perhaps, but not understood.
    Unclear,
    Is(T),
}

impl<T> Told<T> {
    fn of(value: Option<T>) -> Self {
        value.map_or(Self::Unclear, Self::Is)
    }

    /// This, or if it is not told the other.
    fn or(self, other: Self) -> Self {
        if matches!(self, Self::Not) { other } else { self }
    }
}

/// The machine that the options describe. `None`: not understood.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub(super) struct Machine {
    /// Bytes.
    pub(super) memory: Option<u64>,
    /// Bytes, with all memory hot-plugged.
    pub(super) max_memory: Option<u64>,
    pub(super) cpus: Option<u32>,
    pub(super) max_cpus: Option<u32>,
    /// Whether no option enables KVM.
    pub(super) tcg: bool,
    /// The board; empty = the program's default.
    pub(super) board: String,
    /// The drives, or nodes, with the firmware.
    pub(super) flashes: Vec<String>,
}

/// Options of the machine as they are merged.
#[derive(Debug, Default)]
struct Merged<'a> {
    board: Option<&'a str>,
    accelerator: Option<&'a str>,
    /// Those of `-accel`, which do not replace each other.
    accelerators: Vec<&'a str>,
    /// `-m`, and the same of `-machine`, which yields to it.
    memory: [Told<u64>; 2],
    max_memory: [Told<u64>; 2],
    backend: Told<&'a str>,
    objects: HashMap<&'a str, Told<u64>>,
    modules: Vec<&'a str>,
    smp: HashMap<&'a str, Told<u32>>,
    flashes: HashMap<&'a str, &'a str>,
    is_unread: bool,
}

impl<'a> Merged<'a> {
    fn add(&mut self, entry: &'a Entry) {
        let fields = &entry.fields;
        match entry.subject {
            Subject::Machine => self.machine(fields),
            Subject::Memory => {
                // QEMU takes a number for MiB, and 0 as if it were not there.
                if let Some(text) = fields.get_or_implied("size") {
                    let size = size(text, 1 << 20);
                    self.memory[0] = if size == Some(0) { Told::Not } else { Told::of(size) };
                }
                if let Some(text) = fields.get("maxmem") {
                    self.max_memory[0] = Told::of(size(text, 1));
                }
            }
            Subject::Smp => {
                if let Some(text) = fields.implied() {
                    self.smp.insert("cpus", Told::of(count(text)));
                }
                self.topology(fields);
            }
            Subject::Accelerator => {
                self.accelerators.extend(fields.get_or_implied("accel"));
            }
            Subject::Object => {
                let kind = fields.get_or_implied("qom-type").unwrap_or_default();
                if let Some(id) = fields.get("id").filter(|_| kind.starts_with("memory-backend")) {
                    let size = fields.get("size").and_then(|text| size(text, 1));
                    self.objects.insert(id, Told::of(size));
                }
            }
            Subject::Device if fields.get_or_implied("driver") == Some("pc-dimm") => {
                self.modules.push(fields.get("memdev").unwrap_or_default());
            }
            Subject::Unread => self.unread(),
            _ => {}
        }
    }

    fn machine(&mut self, fields: &'a Fields) {
        self.board = fields.get_or_implied("type").or(self.board);
        self.accelerator = fields.get("accel").or(self.accelerator);
        if let Some(backend) = fields.get("memory-backend") {
            self.backend = Told::Is(backend);
        }
        if let Some(text) = fields.get("memory.size") {
            self.memory[1] = Told::of(size(text, 1));
        }
        if let Some(text) = fields.get("memory.max-size") {
            self.max_memory[1] = Told::of(size(text, 1));
        }
        if let Some(smp) = fields.member("smp") {
            self.topology(smp);
        }
        for key in ["pflash0", "pflash1"] {
            self.flashes.extend(fields.get(key).map(|name| (key, name)));
        }
    }

    fn topology(&mut self, fields: &'a Fields) {
        for key in ["cpus", "maxcpus"].into_iter().chain(TOPOLOGY) {
            if let Some(text) = fields.get(key) {
                self.smp.insert(key, Told::of(count(text)));
            }
        }
    }

    /// A file that could not be read may have set anything, and what is told later replaces it.
    fn unread(&mut self) {
        self.is_unread = true;
        self.memory = [Told::Unclear; 2];
        self.max_memory = [Told::Unclear; 2];
        self.backend = Told::Unclear;
        for key in ["cpus", "maxcpus"].into_iter().chain(TOPOLOGY) {
            self.smp.insert(key, Told::Unclear);
        }
    }

    /// Memory, and that with all memory hot-plugged.
    fn memory(&self, default: Option<u64>) -> (Option<u64>, Option<u64>) {
        let size = self.memory[0].or(self.memory[1]);
        let object = |id: &str| match self.objects.get(id) {
            Some(Told::Is(size)) => Some(*size),
            _ => None,
        };
        let base = match (size, self.backend) {
            (Told::Is(size), _) => size.checked_next_multiple_of(MEMORY_UNIT),
            (_, Told::Is(backend)) => object(backend),
            (Told::Not, Told::Not) => default,
            _ => None,
        };
        let add = |sum: Option<u64>, id: &&str| sum?.checked_add(object(id)?);
        let memory = self.modules.iter().fold(base, add).filter(|&sum| sum > 0);
        let max = match self.max_memory[0].or(self.max_memory[1]) {
            Told::Is(max) => Some(max),
            Told::Not => memory,
            Told::Unclear => None,
        };
        (memory, max)
    }

    /// CPUs, and with all hot-plugged (`machine_parse_smp_config()` of QEMU's `hw/core/machine-smp.c`).
    fn cpus(&self) -> (Option<u32>, Option<u32>) {
        // 0 counts as not told.
        let told = |key| match self.smp.get(key).copied().unwrap_or_default() {
            Told::Is(0) => Told::Not,
            told => told,
        };
        let product = |product: Told<u32>, key| match (product, told(key)) {
            (product, Told::Not) => product,
            (Told::Is(product), Told::Is(more)) => Told::of(product.checked_mul(more)),
            _ => Told::Unclear,
        };
        let topology = || TOPOLOGY.into_iter().fold(Told::Is(1), product);
        let (cpus, max) = (told("cpus"), told("maxcpus"));
        let max = match max.or(cpus) {
            Told::Not => topology(),
            told => told,
        };
        let known = |told| match told {
            Told::Is(number) => Some(number),
            _ => None,
        };
        (known(cpus.or(max)), known(max))
    }
}

/// The machine of a QEMU whose program has this name.
pub(super) fn machine(program: &str, entries: &[Entry]) -> Machine {
    let mut merged = Merged::default();
    for entry in entries {
        merged.add(entry);
    }
    let board = merged.board.unwrap_or_default().to_owned();
    let default = Some(DEFAULT_MEMORY).filter(|_| is_x86(program) || is_generic(&board));
    let (memory, max_memory) = merged.memory(default);
    let (cpus, max_cpus) = merged.cpus();
    let mut accelerators = merged.accelerators.iter().chain(&merged.accelerator);
    let has_kvm = accelerators.any(|names| names.split(':').any(|name| name == "kvm"));
    let flashes = merged.flashes.into_values().map(str::to_owned).collect();
    let tcg = !has_kvm && !merged.is_unread;
    Machine { memory, max_memory, cpus, max_cpus, tcg, board, flashes }
}

/// The bus of a drive that does not name one (`mc->block_default_type`); empty = not known.
pub(super) fn default_bus(program: &str, board: &str) -> &'static str {
    match board {
        "microvm" => "virtio",
        _ if is_x86(program) => "ide",
        _ if is_generic(board) => "virtio",
        _ if board.starts_with("pseries") => "scsi",
        _ => "",
    }
}

fn is_x86(program: &str) -> bool {
    // A link of distributions, for the host's architecture.
    let is_native = matches!(program, "kvm" | "qemu-kvm") && cfg!(target_arch = "x86_64");
    is_native || program.ends_with("-x86_64") || program.ends_with("-i386")
}

/// Boards that exist for virtual machines only, without memory of their own choice.
fn is_generic(board: &str) -> bool {
    ["virt", "s390-ccw-virtio"].iter().any(|name| {
        board.strip_prefix(name).is_some_and(|rest| rest.is_empty() || rest.starts_with('-'))
    })
}
