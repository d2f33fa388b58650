//! Whether a process is a VM, and what can be told of it from outside.

use std::{
    collections::{BTreeMap, HashMap},
    io,
    path::{Path, PathBuf},
};

use rustix::param::clock_ticks_per_second;

use super::{
    command_line::{self, Description, Vmm},
    devices, files, memory_estimate,
    process::{Process, Thread},
    vcpus,
};
use crate::inventory::{Memory, OpenFile, VmProcess};

/// Where procfs and debugfs are mounted.
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

/// A VM's process.
#[derive(Debug)]
pub(super) struct Scan {
    pub(super) process: Process,
    /// Without vCPUs, records and headers, which are known later.
    pub(super) vm: VmProcess,
    /// Every thread, ascending.
    pub(super) threads: Vec<Thread>,
    /// vCPU id by thread id. A vCPU that was unplugged keeps its descriptor in QEMU, but has no thread.
    pub(super) vcpus: BTreeMap<u32, u32>,
    /// What its command line told.
    pub(super) described: Description,
}

/// What was told before by a process that started then. Its command line and its memory map are not read again:
/// that would wait for a process that is stuck while it changes its memory.
pub(super) type Earlier<'a> = Option<(u64, &'a Description)>;

/// The VM that a process runs; `None` = it is none, or gone. `known` are the files that it had open before.
///
/// # Errors
///
/// When that cannot be found out.
pub(super) fn scan_process(
    roots: &Roots,
    pid: u32,
    told: Earlier<'_>,
    known: &[OpenFile],
) -> io::Result<Option<Scan>> {
    match look(roots, pid, told, known) {
        Err(error) if is_gone(&error) => Ok(None),
        looked => looked,
    }
}

fn is_gone(error: &io::Error) -> bool {
    let no_such_process = rustix::io::Errno::SRCH.raw_os_error();
    error.kind() == io::ErrorKind::NotFound || error.raw_os_error() == Some(no_such_process)
}

fn look(
    roots: &Roots,
    pid: u32,
    told: Earlier<'_>,
    known: &[OpenFile],
) -> io::Result<Option<Scan>> {
    let process = Process::hold(&roots.proc, pid)?;
    let (mut vm_fds, mut vcpu_fds) = (Vec::new(), BTreeMap::new());
    let (mut open, mut has_io_uring) = (Vec::new(), false);
    for (fd, target) in process.descriptors()? {
        if target == "anon_inode:kvm-vm" {
            vm_fds.push(fd);
        } else if let Some(id) = target.strip_prefix("anon_inode:kvm-vcpu:")
            && let Ok(id) = id.parse()
        {
            vcpu_fds.insert(fd, id);
        } else if target == "anon_inode:[io_uring]" {
            has_io_uring = true;
        } else if target.starts_with('/') {
            open.push((fd, target));
        }
    }
    let stat = process.stat()?;
    if vm_fds.is_empty() && !stat.comm.starts_with("qemu") && stat.comm != "kvm" {
        return Ok(None);
    }
    let described = match told {
        Some((start_ticks, described)) if start_ticks == stat.start_ticks => described.clone(),
        _ => {
            let mut described = command_line::parse(&process.read("cmdline")?);
            if !process.stat()?.has_memory {
                return Ok(None);
            }
            if described.memory.is_none() && !vm_fds.is_empty() {
                described.memory =
                    memory_estimate::estimate(&process.read("maps").unwrap_or_default());
            }
            if let Some(path) = &described.config_file
                && let Ok(config) = process.read_in_root(path)
            {
                described.devices = devices::firecracker(&config);
            }
            described
        }
    };
    if matches!(stat.state, 'Z' | 'X') || described.no_machine {
        return Ok(None);
    }
    if vm_fds.is_empty() && described.vmm != Vmm::Qemu {
        return Ok(None);
    }
    let threads = process.threads()?;
    // A QEMU that may use KVM has not made its VM yet, or could not and does without.
    if vm_fds.is_empty() && !described.tcg && vcpus::of_tcg(&threads, 1).is_empty() {
        return Ok(None);
    }
    let vcpus = if vm_fds.is_empty() {
        vcpus::of_tcg(&threads, described.cpus.unwrap_or(1))
    } else {
        vcpus::of_kvm(&roots.debugfs, pid, &vm_fds, &vcpu_fds, &threads)
    };
    let cpus = [vcpus.len(), vcpu_fds.len()].into_iter().find(|&seen| seen > 0);
    let cpus = cpus.map(|seen| u32::try_from(seen).unwrap_or(u32::MAX));
    let cpus = cpus.or(described.cpus).unwrap_or(0);
    let by_path: HashMap<&str, u32> = open.iter().map(|(fd, path)| (path.as_str(), *fd)).collect();
    let mut devices = described.devices.clone();
    // A volume has its name from a link.
    let real = |path: &str| {
        let link = path.starts_with("/dev/").then(|| std::fs::canonicalize(path).ok()).flatten();
        by_path.get(link?.to_str()?).copied()
    };
    devices.measure(|path| {
        let number = by_path.get(path).copied().or_else(|| real(path))?;
        process.size_of_descriptor(number).ok()
    });
    let files = files::open(&process, &open, known);
    let vm = VmProcess {
        pid,
        start_ticks: stat.start_ticks,
        started_ns: ticks_to_ns(stat.start_ticks, clock_ticks_per_second().max(1)),
        name: described.name.clone().unwrap_or_else(|| format!("{}-{pid}", stat.comm)),
        uuid: described.uuid,
        cpus,
        max_cpus: described.max_cpus.unwrap_or(cpus).max(cpus),
        memory: Memory {
            current: described.memory,
            min: None,
            max: described.max_memory.or(described.memory),
        },
        slot: None,
        vcpus: Vec::new(),
        devices,
        files,
        headers: Vec::new(),
        has_io_uring,
        has_positions: described.vmm == Vmm::Qemu,
        has_kvm: !vm_fds.is_empty(),
    };
    Ok(Some(Scan { process, vm, threads, vcpus, described }))
}

/// Saturates.
const fn ticks_to_ns(ticks: u64, per_second: u64) -> u64 {
    (ticks / per_second)
        .saturating_mul(1_000_000_000)
        .saturating_add(ticks % per_second * (1_000_000_000 / per_second))
}

/// The online CPUs, ascending; none where sysfs does not tell.
pub(super) fn online_cpus(path: &Path) -> Vec<u32> {
    std::fs::read_to_string(path).map_or_else(|_| Vec::new(), |text| parse_cpu_list(&text))
}

/// `0-3,8` as Documentation/admin-guide/cputopology.rst has it.
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
