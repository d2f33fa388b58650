//! Scans one process: whether it is a VM, and the facts about it that procfs shows.

use std::{
    collections::{BTreeMap, HashMap},
    io,
    path::{Path, PathBuf},
};

use rustix::param::clock_ticks_per_second;

use super::{
    command_line::{self, Description, Vmm},
    devices, files, memory_estimate,
    process::{Measured, Process, Stat, Thread},
    vcpus,
};
use crate::inventory::{Devices, DiskSize, Memory, OpenFile, VmProcess};

/// Mount points of procfs and debugfs.
#[derive(Clone, Debug)]
pub(super) struct Roots {
    pub(super) proc: PathBuf,
    pub(super) debugfs: PathBuf,
}

impl Default for Roots {
    fn default() -> Self {
        Self { proc: "/proc".into(), debugfs: "/sys/kernel/debug".into() }
    }
}

/// The VM that a process runs.
#[derive(Debug)]
pub(super) struct Scan {
    pub(super) process: Process,
    /// Without vCPUs, record slots and image headers, which are added later.
    pub(super) vm: VmProcess,
    /// Every thread, ascending by id.
    pub(super) threads: Vec<Thread>,
    /// vCPU id by thread id. An unplugged vCPU keeps its descriptor in QEMU, but has no thread.
    pub(super) vcpus: BTreeMap<u32, u32>,
    /// The parsed command line.
    pub(super) described: Description,
}

/// Start time and description from an earlier scan. If the process still is the same, its command line and memory map are
/// not read again: that read would block on a process that is stuck while it changes its memory.
pub(super) type Earlier<'a> = Option<(u64, &'a Description)>;

/// Scans a process for a VM; `None`: it is not a VM, or gone. `known`: the files that it had open at the earlier scan.
///
/// # Errors
///
/// Those of reading procfs, but for those of a process that is gone.
pub(super) fn scan_process(
    roots: &Roots,
    pid: u32,
    earlier: Earlier<'_>,
    known: &[OpenFile],
) -> io::Result<Option<Scan>> {
    match scan(roots, pid, earlier, known) {
        Err(error) if is_gone(&error) => Ok(None),
        result => result,
    }
}

fn is_gone(error: &io::Error) -> bool {
    let no_such_process = rustix::io::Errno::SRCH.raw_os_error();
    error.kind() == io::ErrorKind::NotFound || error.raw_os_error() == Some(no_such_process)
}

fn scan(
    roots: &Roots,
    pid: u32,
    earlier: Earlier<'_>,
    known: &[OpenFile],
) -> io::Result<Option<Scan>> {
    let process = Process::hold(&roots.proc, pid)?;
    let descriptors = Descriptors::of(&process)?;
    let stat = process.stat()?;
    if !descriptors.has_kvm() && !may_be_qemu(&stat.comm) {
        return Ok(None);
    }
    let Some(described) = describe(&process, &stat, &descriptors, earlier)? else {
        return Ok(None);
    };
    let is_dead = matches!(stat.state, 'Z' | 'X');
    let is_qemu = described.vmm == Vmm::Qemu;
    if is_dead || described.no_machine || !(descriptors.has_kvm() || is_qemu) {
        return Ok(None);
    }
    let threads = process.threads()?;
    let Some(vcpus) = vcpu_threads(roots, pid, &descriptors, &described, &threads) else {
        return Ok(None);
    };
    let cpus = [vcpus.len(), descriptors.vcpus.len()].into_iter().find(|&seen| seen > 0);
    let cpus = cpus.map(|seen| u32::try_from(seen).unwrap_or(u32::MAX));
    let cpus = cpus.or(described.cpus).unwrap_or(0);
    let devices = measured_devices(&process, &described, &descriptors.files);
    let files = files::open(&process, &descriptors.files, known);
    let vm = VmProcess {
        pid,
        start_ticks: stat.start_ticks,
        started_ns: ticks_to_ns(stat.start_ticks, clock_ticks_per_second().max(1)),
        name: described.name.clone().unwrap_or_else(|| format!("{}-{pid}", stat.comm)),
        uuid: described.uuid,
        cpus,
        // Of a QEMU it is told, or by default one: `None` was not understood.
        max_cpus: described
            .max_cpus
            .or_else(|| (!is_qemu).then_some(cpus))
            .map(|max| max.max(cpus)),
        memory: Memory { current: described.memory, min: None, max: described.max_memory },
        slot: None,
        vcpus: Vec::new(),
        devices,
        files,
        headers: Vec::new(),
        has_io_uring: descriptors.has_io_uring,
        has_positions: is_qemu,
        has_kvm: descriptors.has_kvm(),
    };
    Ok(Some(Scan { process, vm, threads, vcpus, described }))
}

/// A process's descriptors, by what they refer to.
#[derive(Debug, Default)]
struct Descriptors {
    /// Descriptors of KVM VMs.
    vms: Vec<u32>,
    /// vCPU id by descriptor.
    vcpus: BTreeMap<u32, u32>,
    /// Descriptors and paths of files.
    files: Vec<(u32, String)>,
    has_io_uring: bool,
}

impl Descriptors {
    fn of(process: &Process) -> io::Result<Self> {
        let mut found = Self::default();
        for (fd, target) in process.descriptors()? {
            if target == "anon_inode:kvm-vm" {
                found.vms.push(fd);
            } else if let Some(id) = target.strip_prefix("anon_inode:kvm-vcpu:")
                && let Ok(id) = id.parse()
            {
                found.vcpus.insert(fd, id);
            } else if target == "anon_inode:[io_uring]" {
                found.has_io_uring = true;
            } else if target.starts_with('/') {
                found.files.push((fd, target));
            }
        }
        Ok(found)
    }

    const fn has_kvm(&self) -> bool {
        !self.vms.is_empty()
    }
}

/// Whether a process without a KVM VM is worth reading its command line.
fn may_be_qemu(comm: &str) -> bool {
    comm.starts_with("qemu") || comm == "kvm"
}

/// The description from the earlier scan, or a new one from the command line, the memory map and the configuration file.
/// `None`: the process is exiting.
fn describe(
    process: &Process,
    stat: &Stat,
    descriptors: &Descriptors,
    earlier: Earlier<'_>,
) -> io::Result<Option<Description>> {
    if let Some((_, described)) = earlier.filter(|(start, _)| *start == stat.start_ticks) {
        return Ok(Some(described.clone()));
    }
    let mut read = |path: &str| process.read_in_root(path).ok();
    let mut described = command_line::parse(&process.read("cmdline")?, &mut read);
    // After the command line: an exiting process has an empty one.
    if !process.stat()?.has_memory {
        return Ok(None);
    }
    if described.memory.is_none() && descriptors.has_kvm() {
        described.memory = memory_estimate::estimate(&process.read("maps").unwrap_or_default());
        described.max_memory = described.max_memory.or(described.memory);
    }
    if let Some(path) = &described.config_file
        && let Ok(config) = process.read_in_root(path)
    {
        described.devices = devices::firecracker(&config);
    }
    Ok(Some(described))
}

/// vCPU id by thread id. `None`: a QEMU with KVM enabled, but neither a KVM VM nor TCG threads: it has not created its VM
/// yet. With TCG threads it could not, and runs without KVM.
fn vcpu_threads(
    roots: &Roots,
    pid: u32,
    descriptors: &Descriptors,
    described: &Description,
    threads: &[Thread],
) -> Option<BTreeMap<u32, u32>> {
    if descriptors.has_kvm() {
        let (vms, vcpus) = (&descriptors.vms, &descriptors.vcpus);
        return Some(vcpus::of_kvm(&roots.debugfs, pid, vms, vcpus, threads));
    }
    if !described.tcg && vcpus::of_tcg(threads, 1).is_empty() {
        return None;
    }
    Some(vcpus::of_tcg(threads, described.cpus.unwrap_or(1)))
}

/// The devices, with types and sizes of the disks' files as far as the process has them open. Of another one the type alone,
/// if the kernel has it cached.
fn measured_devices(process: &Process, described: &Description, open: &[(u32, String)]) -> Devices {
    let by_path: HashMap<&str, u32> = open.iter().map(|(fd, path)| (path.as_str(), *fd)).collect();
    // LVM volumes are named by a symlink below /dev.
    let resolved = |path: &str| {
        let real = path.starts_with("/dev/").then(|| std::fs::canonicalize(path).ok()).flatten();
        by_path.get(real?.to_str()?).copied()
    };
    let mut devices = described.devices.clone();
    devices.measure(|path| {
        if let Some(fd) = by_path.get(path).copied().or_else(|| resolved(path)) {
            return process.measure_descriptor(fd).ok().flatten();
        }
        let identity = process.identity_in_root(Path::new(path)).ok().flatten()?;
        let is_block_device = identity.is_block_device();
        Some(Measured { is_block_device, size: DiskSize::default() })
    });
    devices
}

/// Clock ticks in ns; saturates.
const fn ticks_to_ns(ticks: u64, per_second: u64) -> u64 {
    (ticks / per_second)
        .saturating_mul(1_000_000_000)
        .saturating_add(ticks % per_second * (1_000_000_000 / per_second))
}

/// The online CPUs, ascending; empty where sysfs cannot be read.
pub(super) fn online_cpus(path: &Path) -> Vec<u32> {
    std::fs::read_to_string(path).map_or_else(|_| Vec::new(), |text| parse_cpu_list(&text))
}

/// Parses a list such as `0-3,8` (Documentation/admin-guide/cputopology.rst).
fn parse_cpu_list(text: &str) -> Vec<u32> {
    /// More than any kernel can be built for.
    const MAX_CPUS: u32 = 1 << 16;
    let mut cpus = Vec::new();
    for range in text.trim().split(',') {
        let (first, last) = range.split_once('-').unwrap_or((range, range));
        if let (Ok(first), Ok(last)) = (first.parse::<u32>(), last.parse::<u32>()) {
            cpus.extend(first..=last.min(MAX_CPUS));
        }
    }
    cpus.sort_unstable();
    cpus.dedup();
    cpus
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cpu_lists() {
        assert_eq!(parse_cpu_list("0-2,5\n"), [0, 1, 2, 5]);
        assert_eq!(parse_cpu_list("0"), [0]);
        assert!(parse_cpu_list("").is_empty() && parse_cpu_list("x-y,-,3-1").is_empty());
    }
}
