//! Scans one process: whether it is a VM, and the facts about it that procfs shows.

use std::{
    cell::OnceCell,
    collections::{BTreeMap, BTreeSet},
    io,
    path::{Path, PathBuf},
};

use rustix::param::clock_ticks_per_second;

use super::{
    accounts,
    command_line::{self, Description, Vmm},
    descriptors::Descriptors,
    devices,
    disk_paths::{Before, DiskPaths},
    files::{self, OpenFiles},
    machine, memory_estimate,
    named_file::{Unread, shown},
    plugged::PluggedDisk,
    presence,
    process::{MAX_LISTED, Measured, Process, Thread, to_hold},
    shortage::{if_there, is_gone, is_shortage},
    subordinate_ids, taps, temporary_overlays,
    vcpus::{self, Rest},
};
use crate::inventory::{Devices, DiskSize, DomainDisk, Memory, PathAnswer, VmProcess};

/// The daemons of libvirt that probe KVM.
const LIBVIRT: [&str; 2] = ["libvirtd", "virtqemud"];

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
    /// vCPU number by thread id. An unplugged vCPU keeps its descriptor in QEMU, but has no thread.
    pub(super) vcpus: BTreeMap<u32, u32>,
    /// Whether its vCPUs have run, and whether they can be seen to be paused.
    pub(super) runs: Runs,
    /// The parsed command line.
    pub(super) described: Description,
    /// The parent's process id.
    pub(super) parent: u32,
    /// Whether it runs a VM of its own: a thread of it runs a vCPU, or KVM has made the VM for it. `None` = not known.
    pub(super) is_own: Option<bool>,
    /// The threads that have made its VMs, as far as they have not ended.
    pub(super) creators: BTreeSet<u32>,
    /// Whether it may be a daemon of libvirt that has a VM only to ask KVM something.
    pub(super) may_be_probe: bool,
}

/// What a scan sees of the vCPUs of a VM.
#[derive(Debug, Default)]
pub(super) struct Runs {
    /// Whether one of them has been in `KVM_RUN`; `false` = not known.
    pub(super) has_run: bool,
    /// The first thread of a VM without KVM whose vCPUs have no threads that are known: it is stopped when the process is.
    pub(super) stand_in: Option<u32>,
    /// What the threads that are watched do, by thread id, if that was asked for.
    pub(super) rests: BTreeMap<u32, Rest>,
    /// Why they cannot be seen to be paused, but for a stopped process.
    pub(super) unseen: Option<&'static str>,
}

impl Scan {
    /// The threads by which it is seen whether the VM is paused.
    pub(super) fn watched(&self) -> impl Iterator<Item = u32> {
        self.vcpus.keys().copied().chain(self.runs.stand_in)
    }
}

/// What an earlier scan has found. It holds if the process still is the same.
#[derive(Clone, Copy, Debug)]
pub(super) struct Earlier<'a> {
    pub(super) vm: &'a VmProcess,
    pub(super) described: &'a Description,
    /// Whether the description is final. The command line is not read again then, nor the memory map for an estimate: these
    /// reads block on a process that is stuck while it changes its memory.
    pub(super) is_settled: bool,
    /// Whether it is asked what the threads of its vCPUs do.
    pub(super) wants_rests: bool,
    /// The disks that no option names.
    pub(super) plugged: &'a [PluggedDisk],
}

/// Scans a process for a VM; `None`: it is not a VM, or gone. `domain_paths`: the paths that libvirt has for its disks. `now_ns`: time
/// since boot.
///
/// # Errors
///
/// Those of reading procfs, but for those of a process that is gone.
pub(super) fn scan_process(
    roots: &Roots,
    pid: u32,
    earlier: Option<Earlier<'_>>,
    domain_paths: &[String],
    now_ns: u64,
) -> io::Result<Option<Scan>> {
    match scan(roots, pid, earlier, domain_paths, now_ns) {
        Err(error) if is_gone(&error) => Ok(None),
        result => result,
    }
}

fn scan(
    roots: &Roots,
    pid: u32,
    earlier: Option<Earlier<'_>>,
    domain_paths: &[String],
    now_ns: u64,
) -> io::Result<Option<Scan>> {
    let process = Process::hold(&roots.proc, pid)?;
    let stat = process.stat()?;
    let needs_kvm = !may_be_qemu(&stat.comm);
    let descriptors = Descriptors::of(&process, needs_kvm)?;
    let earlier = earlier.filter(|earlier| earlier.vm.start_ticks == stat.start_ticks);
    if needs_kvm && !descriptors.has_kvm() {
        return Ok(None);
    }
    let maps = Maps { process: &process, text: OnceCell::new() };
    let Some(described) = describe(&process, &descriptors, earlier, &maps)? else {
        return Ok(None);
    };
    let plugged = earlier.map_or(&[][..], |earlier| earlier.plugged);
    let is_dead = matches!(stat.state, 'Z' | 'X');
    let is_qemu = described.vmm == Vmm::Qemu;
    if is_dead || described.no_machine || !(descriptors.has_kvm() || is_qemu) {
        return Ok(None);
    }
    let started_ns = ticks_to_ns(stat.start_ticks, clock_ticks_per_second().max(1));
    let age = now_ns.saturating_sub(started_ns);
    let listed = process.thread_ids(MAX_LISTED)?;
    let tids = listed.iter().copied().collect();
    let vm_dirs = vcpus::vm_dirs(&roots.debugfs, pid, &descriptors.vms, &tids)?;
    let ids = vcpus::in_debugfs(vm_dirs.as_deref().unwrap_or_default())?;
    let threads = process.hold_threads(to_hold(&listed, |tid| ids.contains_key(&tid)))?;
    let mut runs = Runs { unseen: Some("it does not use KVM"), ..Runs::default() };
    let vcpus = if descriptors.has_kvm() {
        let dirs = vm_dirs.as_deref().unwrap_or_default();
        let found = vcpus::of_kvm(ids, &descriptors.vcpus, &threads)?;
        runs.has_run = found.have_run;
        runs.unseen = vcpus::halts_outside(dirs, described.vmm)?;
        Some(found.numbers)
    } else {
        tcg_threads(&described, &threads, age)?
    };
    let Some(vcpus) = vcpus else { return Ok(None) };
    // It creates a VM to read the host's registers (virHostCPUGetTscInfo() in libvirt's virhostcpu.c), and runs no vCPU. Without
    // vCPUs that have run, or threads with their names, the name of the program says no more than that it may be a daemon: a user
    // can mount another one there in namespaces of its own, or load code into the daemon's.
    let may_be_probe = vcpus.is_empty() && process.executes(&LIBVIRT)?;
    let creators = vm_dirs.iter().flatten().filter_map(|dir| vcpus::creator(dir)).collect();
    runs.stand_in = (vcpus.is_empty() && !descriptors.has_kvm()).then_some(pid);
    if earlier.is_none_or(|earlier| !earlier.is_settled || earlier.wants_rests) {
        let is_watched = |tid| vcpus.contains_key(&tid) || runs.stand_in == Some(tid);
        runs.rests = vcpus::rests(&threads, is_watched)?;
    }
    let is_own = match vcpus.is_empty() {
        false => Some(true),
        true if descriptors.has_kvm() => vm_dirs.map(|dirs| !dirs.is_empty()),
        true => None,
    };
    let cpus = [vcpus.len(), descriptors.vcpus.len()].into_iter().find(|&seen| seen > 0);
    let cpus = cpus.map(|seen| u32::try_from(seen).unwrap_or(u32::MAX));
    let cpus = cpus.or(described.cpus).unwrap_or(0);
    let known = earlier.map_or(&[][..], |earlier| &earlier.vm.files);
    let list = || Descriptors::of(&process, needs_kvm);
    let (descriptors, open) = files::open(&process, descriptors, list, known)?;
    let before = earlier.map(|Earlier { vm, .. }| Before { paths: &vm.paths, files: &vm.files });
    let own = described.devices.disks.iter().flat_map(DomainDisk::paths);
    let own = own.chain(described.images.iter().map(String::as_str));
    let paths = own.chain(domain_paths.iter().map(String::as_str));
    let mut paths = DiskPaths::new(&process, &open).answer_all(paths, before)?;
    let mut devices = described.devices.clone();
    if described.has_temporary_overlays {
        let earlier = earlier.map(|earlier| earlier.vm);
        let disks = &mut devices.disks;
        temporary_overlays::add(disks, &mut paths, &open, &descriptors.files, earlier);
    }
    for PluggedDisk { image, disk } in plugged {
        paths.insert(disk.resource.clone(), PathAnswer::Open(*image));
        devices.disks.push(disk.clone());
    }
    devices.tidy();
    measure(&mut devices, &process, &open, &paths)?;
    taps::name_interfaces(&mut devices.nics, &open.taps);
    // Without groups, or on a kernel without them, only libvirt's files tell.
    let machine = if_there(process.read("cgroup"))?.and_then(|text| machine::parse(&text));
    subordinate_ids::refresh();
    let vm = VmProcess {
        pid,
        start_ticks: stat.start_ticks,
        started_ns,
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
        taps: taps::taps(&process, &open.taps),
        files: open.files,
        paths,
        headers: Vec::new(),
        unread: Vec::new(),
        unreadable: Vec::new(),
        has_io_uring: descriptors.has_io_uring,
        // QEMU makes such a context for disks whose configuration says so.
        has_aio: !is_qemu && has_aio_context(maps.text()?),
        has_positions: is_qemu,
        has_kvm: descriptors.has_kvm(),
        starts_stopped: described.starts_stopped,
        gaps: described.gaps.clone(),
        account: accounts::of_process(&process, pid)?,
        machine,
        was_there: false,
    };
    let parent = stat.parent;
    Ok(Some(Scan {
        process,
        vm,
        threads,
        vcpus,
        runs,
        described,
        parent,
        is_own,
        creators,
        may_be_probe,
    }))
}

/// The memory map of a process, read once.
struct Maps<'a> {
    process: &'a Process,
    text: OnceCell<Vec<u8>>,
}

impl Maps<'_> {
    fn text(&self) -> io::Result<&[u8]> {
        if self.text.get().is_none() {
            let text = if_there(self.process.read("maps"))?.unwrap_or_default();
            // It is empty.
            let _ = self.text.set(text);
        }
        Ok(self.text.get().map_or(&[], Vec::as_slice))
    }
}

/// Whether there is a ring of io_submit(2) in the memory map of a process (`aio_setup_ring` of the kernel's aio.c).
fn has_aio_context(maps: &[u8]) -> bool {
    let is_ring = |line: &[u8]| line.ends_with(b" /[aio] (deleted)") || line.ends_with(b" /[aio]");
    maps.split(|byte| *byte == b'\n').any(is_ring)
}

/// Whether a process without a KVM VM is worth reading its command line.
fn may_be_qemu(comm: &str) -> bool {
    comm.starts_with("qemu") || comm == "kvm"
}

/// The description from the earlier scan, or a new one from the command line, the memory map and the configuration file.
/// `None`: the process is exiting.
fn describe(
    process: &Process,
    descriptors: &Descriptors,
    earlier: Option<Earlier<'_>>,
    maps: &Maps<'_>,
) -> io::Result<Option<Description>> {
    if let Some(settled) = earlier.filter(|earlier| earlier.is_settled) {
        return Ok(Some(settled.described.clone()));
    }
    // A file may have been replaced or removed since the VMM has read it.
    let earlier = earlier.map(|earlier| earlier.described);
    let earlier = earlier.filter(|earlier| earlier.gaps.is_empty());
    let (mut gaps, mut shortage) = (Vec::new(), None);
    let mut read = |path: &str| match process.read_in_root(path) {
        Ok(content) => Some(content),
        Err(Unread::Io(error)) if is_shortage(&error) => {
            shortage = Some(error);
            None
        }
        Err(why) => {
            gaps.push(format!("its file {} was not read: {why}", shown(path)));
            None
        }
    };
    let cmdline = process.read("cmdline")?;
    let mut described = command_line::parse(&cmdline, &mut read);
    // After the command line: an exiting process has an empty one.
    if !process.stat()?.has_memory {
        return Ok(None);
    }
    let config = described.config_file.as_deref().and_then(&mut read);
    if let Some(config) = &config {
        described.devices = devices::firecracker(config);
    }
    if let Some(shortage) = shortage {
        return Err(shortage);
    }
    described.gaps.extend(gaps);
    let earlier = earlier.filter(|earlier| earlier.vmm == described.vmm);
    if let Some(earlier) = earlier.filter(|_| !described.gaps.is_empty()) {
        described = match described.vmm {
            // Of a Firecracker the memory is an estimate, which grows while it starts.
            Vmm::Firecracker => {
                let (devices, gaps) = (earlier.devices.clone(), Vec::new());
                Description { devices, gaps, ..described }
            }
            _ => earlier.clone(),
        };
    }
    if described.memory.is_none() && descriptors.has_kvm() {
        described.memory = memory_estimate::estimate(maps.text()?);
        described.max_memory = described.max_memory.or(described.memory);
    }
    Ok(Some(described))
}

/// vCPU number by thread id, of a QEMU without a KVM VM. `None`: it runs no guest. With KVM enabled, but without TCG threads, it has
/// not created its VM yet; with TCG threads it could not, and runs without KVM. `age` in ns.
fn tcg_threads(
    described: &Description,
    threads: &[Thread],
    age: u64,
) -> io::Result<Option<BTreeMap<u32, u32>>> {
    let found = vcpus::of_tcg(threads)?;
    let has_vcpu = !found.is_empty();
    let runs = presence::runs_guest(has_vcpu, described.intent, threads.len(), age);
    if !runs || !(has_vcpu || described.tcg) {
        return Ok(None);
    }
    // The time of a thread that runs several vCPUs cannot be divided.
    let of_all = (described.cpus.unwrap_or(1) == 1).then_some(0);
    Ok(Some(found.into_iter().filter_map(|(tid, id)| Some((tid, id.or(of_all)?))).collect()))
}

/// Sets types and sizes of the disks' files as far as the process has them open. Of another one the type alone, if it is
/// known.
fn measure(
    devices: &mut Devices,
    process: &Process,
    open: &OpenFiles,
    paths: &BTreeMap<String, PathAnswer>,
) -> io::Result<()> {
    let mut shortage = None;
    let type_alone =
        |is_block_device| Some(Measured { is_block_device, size: DiskSize::default() });
    devices.measure(|path| match paths.get(path)? {
        PathAnswer::Open(identity) => {
            let file = open.file(*identity)?;
            if !file.answers_from_memory {
                return type_alone(identity.is_block_device());
            }
            let measured = process.measure_descriptor(*open.descriptors.get(identity)?);
            if_there(measured).map_err(|error| shortage = Some(error)).ok()??
        }
        PathAnswer::Closed(identity) => type_alone(identity.is_block_device()),
        PathAnswer::Unknown(_) => None,
    });
    shortage.map_or(Ok(()), Err)
}

/// Clock ticks in ns; saturates.
const fn ticks_to_ns(ticks: u64, per_second: u64) -> u64 {
    (ticks / per_second)
        .saturating_mul(1_000_000_000)
        .saturating_add(ticks % per_second * (1_000_000_000 / per_second))
}

/// The online CPUs, ascending; empty where sysfs cannot be read.
///
/// # Errors
///
/// Those about what the agent lacks.
pub(super) fn online_cpus(path: &Path) -> io::Result<Vec<u32>> {
    let text = if_there(std::fs::read_to_string(path))?;
    Ok(text.map_or_else(Vec::new, |text| parse_cpu_list(&text)))
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
    fn a_context_of_io_submit_is_in_the_memory_map() {
        let line = |name| format!("7f0000-7f1000 rw-s 00000000 00:11 12345      {name}\n");
        let maps = |name| ["7f2000-7f3000 rw-p 00000000 00:00 0 \n", &line(name)].concat();
        assert!(has_aio_context(maps("/[aio] (deleted)").as_bytes()));
        assert!(!has_aio_context(maps("/x[aio] (deleted)").as_bytes()));
        assert!(!has_aio_context(maps("[heap]").as_bytes()));
    }

    #[test]
    fn cpu_lists() {
        assert_eq!(parse_cpu_list("0-2,5\n"), [0, 1, 2, 5]);
        assert_eq!(parse_cpu_list("0"), [0]);
        assert!(parse_cpu_list("").is_empty() && parse_cpu_list("x-y,-,3-1").is_empty());
    }
}
