//! Maps the threads of a VM's process to the numbers of its vCPUs.

use std::{
    collections::{BTreeMap, BTreeSet, HashSet},
    fs, io,
    path::{Path, PathBuf},
};

use kvmeter_common::Place;

use super::{command_line::Vmm, process::Thread, shortage::if_there};

/// `ioctl(2)` and `KVM_RUN` (`_IO(KVMIO, 0x80)`) as `/proc/PID/task/TID/syscall` shows them.
#[cfg(target_arch = "x86_64")]
const IOCTL: u64 = 16;
#[cfg(not(target_arch = "x86_64"))]
const IOCTL: u64 = 29;
const KVM_RUN: u64 = 0xae80;

/// `futex(2)`, which C libraries wait with, and of its operation the command (linux/futex.h). `FUTEX_WAIT` is a lock's; for a condition
/// they wait with `FUTEX_WAIT_BITSET`, glibc since 2.33.
#[cfg(target_arch = "x86_64")]
const FUTEX: u64 = 202;
#[cfg(not(target_arch = "x86_64"))]
const FUTEX: u64 = 98;
const FUTEX_COMMAND: u64 = 0x7f;
const FUTEX_WAIT: u64 = 0;

/// Most descriptors of KVM VMs of a process that are looked up: a process can duplicate one as often as it likes.
const MAX_VMS: usize = 256;

/// More than any kernel allows: KVM_CAP_MAX_VCPUS is 4,096 at most on x86.
const MAX_VCPUS: u32 = 1 << 16;

/// Most vCPUs of a process that are looked up in debugfs.
const MAX_LOOKED_UP: usize = 1 << 13;

/// Attempts to read a thread's system call: a thread that is on a CPU shows none.
const SYSCALL_TRIES: usize = 3;

/// The directories in debugfs of the VMs that KVM has made for this process. `None`: debugfs is not mounted, or not readable. A VM
/// whose descriptor was inherited by fork(2) is another process's.
///
/// # Errors
///
/// Those about what the agent lacks, as of everything here that reads.
pub(super) fn vm_dirs(
    debugfs: &Path,
    pid: u32,
    vm_fds: &[u32],
    tids: &HashSet<u32>,
) -> io::Result<Option<Vec<PathBuf>>> {
    let kvm = debugfs.join("kvm");
    let (mut dirs, mut others) = (Vec::new(), HashSet::new());
    for vm_fd in vm_fds.iter().take(MAX_VMS) {
        // The directory is named after the thread that created the VM, which is mostly the first one.
        let dir = kvm.join(format!("{pid}-{vm_fd}"));
        if is_there(&dir)? {
            dirs.push(dir);
        } else {
            others.insert(*vm_fd);
        }
    }
    if others.is_empty() {
        return Ok(Some(dirs));
    }
    let Some(entries) = if_there(fs::read_dir(&kvm))? else {
        return Ok((!dirs.is_empty()).then_some(dirs));
    };
    for entry in entries {
        let name = if_there(entry)?.map(|entry| entry.file_name());
        if let Some(name) = name.as_ref().and_then(|name| name.to_str())
            && let Some((creator, vm_fd)) = name.split_once('-')
            && creator.parse().is_ok_and(|creator| tids.contains(&creator))
            && vm_fd.parse().is_ok_and(|vm_fd| others.contains(&vm_fd))
        {
            dirs.push(kvm.join(name));
        }
    }
    Ok(Some(dirs))
}

fn is_there(path: &Path) -> io::Result<bool> {
    Ok(if_there(fs::metadata(path))?.is_some())
}

/// The thread that has made the VM of such a directory.
pub(super) fn creator(vm_dir: &Path) -> Option<u32> {
    vm_dir.file_name()?.to_str()?.split_once('-')?.0.parse().ok()
}

/// The threads of the vCPUs of a process with KVM VMs.
pub(super) struct VcpuThreads {
    /// vCPU number by thread id.
    pub(super) numbers: BTreeMap<u32, u32>,
    /// Whether one of them has been in `KVM_RUN`; `false` = not known.
    pub(super) have_run: bool,
}

/// Finds the threads of vCPUs. The number is the VMM's own (QEMU's cpu_index), which libvirt has, too, and
/// which is the same while the VM is off. KVM's id is not: on x86 it is an APIC id, which has gaps in many topologies.
///
/// Three methods find the threads, the most reliable first: KVM's debugfs, thread names, the descriptor in a thread's `KVM_RUN`.
/// The search ends once each vCPU descriptor has its thread. The number is in the thread's name; where names are missing, it
/// is the rank of KVM's id among those of all vCPUs.
///
/// `ids`: what [`in_debugfs`] has found; without it the next method is tried.
pub(super) fn of_kvm(
    mut ids: BTreeMap<u32, u32>,
    vcpu_fds: &BTreeMap<u32, u32>,
    threads: &[Thread],
) -> io::Result<VcpuThreads> {
    let held: HashSet<u32> = threads.iter().map(Thread::tid).collect();
    ids.retain(|tid, _| held.contains(tid));
    let mut names = BTreeMap::new();
    for thread in threads {
        let name = if_there(thread.name())?;
        names.extend(name.and_then(|name| Some((thread.tid(), id_in_name(&name)?))));
    }
    let mut numbers = numbers(vcpu_fds, &ids, &names);
    if numbers.len() < vcpu_fds.len() {
        for thread in threads {
            if !ids.contains_key(&thread.tid())
                && let Some(fd) = vcpu_fd_in_use(thread)?
                && let Some(id) = vcpu_fds.get(&fd)
            {
                ids.insert(thread.tid(), *id);
            }
        }
        numbers = self::numbers(vcpu_fds, &ids, &names);
    }
    Ok(VcpuThreads { numbers, have_run: !ids.is_empty() })
}

/// What a thread does; what speaks for a pause of its VM comes first.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub(super) enum Rest {
    /// It is stopped, by a signal or a tracer.
    Stopped,
    /// It waits for a condition, as the thread of a paused vCPU does.
    Paused,
    /// It is in `KVM_RUN`, or was when it was stopped.
    InKvmRun,
    /// It waits for a lock, or for a condition: older C libraries wait for both in the same way.
    Locked,
    /// Something else: it runs, reads, sleeps.
    Other,
}

impl Rest {
    /// The place that it stands for; `None` = not clear.
    pub(super) const fn place(self) -> Option<u32> {
        match self {
            Self::Stopped | Self::Paused | Self::Locked => Some(Place::ASLEEP),
            Self::InKvmRun => Some(Place::IN_KVM_RUN),
            Self::Other => None,
        }
    }
}

/// What the threads do that are watched, by thread id.
pub(super) fn rests(
    threads: &[Thread],
    is_watched: impl Fn(u32) -> bool,
) -> io::Result<BTreeMap<u32, Rest>> {
    let watched = threads.iter().filter(|thread| is_watched(thread.tid()));
    watched.map(|thread| Ok((thread.tid(), rest(thread)?))).collect()
}

fn rest(thread: &Thread) -> io::Result<Rest> {
    Ok(match if_there(thread.state())? {
        // The system call that a signal has interrupted is shown still.
        Some('T' | 't') => Rest::Stopped,
        Some('S') => {
            let line = if_there(thread.read("syscall"))?;
            line.map_or(Rest::Other, |line| rest_of(&line))
        }
        _ => Rest::Other,
    })
}

/// What a sleeping thread does, from `/proc/PID/task/TID/syscall`.
fn rest_of(line: &[u8]) -> Rest {
    if kvm_run_fd(line).is_some() {
        return Rest::InKvmRun;
    }
    let text = std::str::from_utf8(line).unwrap_or_default();
    let mut words = text.split_whitespace();
    match (words.next(), words.nth(1).and_then(|word| word.strip_prefix("0x"))) {
        // In no system call: a freezer keeps it from returning to its program.
        (Some("-1"), _) => Rest::Paused,
        (Some(call), Some(operation)) if call.parse() == Ok(FUTEX) => {
            let operation = u64::from_str_radix(operation, 16).unwrap_or(0);
            if operation & FUTEX_COMMAND == FUTEX_WAIT { Rest::Locked } else { Rest::Paused }
        }
        _ => Rest::Other,
    }
}

/// Why a vCPU of this VM that halts may sleep outside `KVM_RUN`; `None` = it does not. `dirs`: those of [`vm_dirs`].
#[cfg(target_arch = "x86_64")]
pub(super) fn halts_outside(dirs: &[PathBuf], vmm: Vmm) -> io::Result<Option<&'static str>> {
    // A vCPU has this file if KVM has its interrupt controller (kvm_arch_create_vcpu_debugfs() in arch/x86/kvm/debugfs.c). Without one,
    // KVM_RUN returns when the vCPU halts.
    const OF_CONTROLLER: &str = "lapic_timer_advance_ns";
    let is_vcpu =
        |name: &str| name.strip_prefix("vcpu").is_some_and(|id| id.parse::<u32>().is_ok());
    for dir in dirs {
        let Some(entries) = if_there(fs::read_dir(dir))? else { continue };
        for entry in entries {
            if let Some(entry) = if_there(entry)?
                && entry.file_name().to_str().is_some_and(is_vcpu)
            {
                let has_controller = is_there(&entry.path().join(OF_CONTROLLER))?;
                return Ok((!has_controller).then_some("it has no interrupt controller in KVM"));
            }
        }
    }
    let is_unseen = vmm == Vmm::Other && dirs.is_empty();
    Ok(is_unseen.then_some("KVM's debugfs cannot be read"))
}

/// Why a vCPU of this VM that halts may sleep outside `KVM_RUN`; `None` = it does not: KVM blocks it on this architecture.
#[cfg(not(target_arch = "x86_64"))]
pub(super) fn halts_outside(_: &[PathBuf], _: Vmm) -> io::Result<Option<&'static str>> {
    Ok(None)
}

/// The vCPU numbers of threads: `ids` = KVM's id of those for which it is known, `names` = the numbers in the names of threads.
fn numbers(
    vcpu_fds: &BTreeMap<u32, u32>,
    ids: &BTreeMap<u32, u32>,
    names: &BTreeMap<u32, u32>,
) -> BTreeMap<u32, u32> {
    let all: BTreeSet<u32> = vcpu_fds.values().chain(ids.values()).copied().collect();
    let rank = |id: &u32| u32::try_from(all.range(..*id).count()).unwrap_or(u32::MAX);
    let named: BTreeSet<u32> = names.values().copied().collect();
    let are_named = named.len() == names.len() && ids.keys().all(|tid| names.contains_key(tid));
    if !are_named {
        return ids.iter().map(|(tid, id)| (*tid, rank(id))).collect();
    }
    let mut found: BTreeMap<u32, u32> =
        ids.keys().filter_map(|tid| Some((*tid, *names.get(tid)?))).collect();
    for (tid, number) in names {
        if found.len() < all.len() {
            found.entry(*tid).or_insert(*number);
        }
    }
    found
}

/// The threads that run the vCPUs of a QEMU without KVM: thread id and vCPU number. `None` = this thread runs all vCPUs.
pub(super) fn of_tcg(threads: &[Thread]) -> io::Result<Vec<(u32, Option<u32>)>> {
    let mut found = Vec::new();
    for thread in threads {
        match if_there(thread.name())?.as_deref() {
            Some("ALL CPUs/TCG") => found.push((thread.tid(), None)),
            Some(name) => found.extend(id_in_name(name).map(|id| (thread.tid(), Some(id)))),
            None => {}
        }
    }
    Ok(found)
}

/// KVM's ids of vCPUs by thread, as KVM has noted them: the thread that last called `KVM_RUN`, 0 = none yet. `dirs`: those of [`vm_dirs`].
pub(super) fn in_debugfs(dirs: &[PathBuf]) -> io::Result<BTreeMap<u32, u32>> {
    let (mut found, mut looked_up) = (BTreeMap::new(), 0);
    for dir in dirs {
        // It may have been removed meanwhile.
        let Some(entries) = if_there(fs::read_dir(dir))? else { continue };
        for entry in entries {
            let Some(entry) = if_there(entry)? else { break };
            let id =
                entry.file_name().to_str().and_then(|name| name.strip_prefix("vcpu")?.parse().ok());
            let Some(id) = id else { continue };
            looked_up += 1;
            if looked_up > MAX_LOOKED_UP {
                return Ok(found);
            }
            if let Some(text) = if_there(fs::read_to_string(entry.path().join("pid")))?
                && let Ok(tid) = text.trim().parse::<u32>()
                && tid != 0
            {
                found.insert(tid, id);
            }
        }
    }
    Ok(found)
}

/// The vCPU number in a thread's name, in the formats of QEMU, Firecracker and Cloud Hypervisor.
fn id_in_name(name: &str) -> Option<u32> {
    let number = name
        .strip_prefix("CPU ")
        .and_then(|rest| rest.strip_suffix("/KVM").or_else(|| rest.strip_suffix("/TCG")))
        .or_else(|| name.strip_prefix("fc_vcpu "))
        .or_else(|| name.strip_prefix("vcpu"))?;
    number.parse().ok().filter(|&number| number < MAX_VCPUS)
}

fn vcpu_fd_in_use(thread: &Thread) -> io::Result<Option<u32>> {
    for _ in 0..SYSCALL_TRIES {
        let Some(line) = if_there(thread.read("syscall"))? else { break };
        if let Some(fd) = kvm_run_fd(&line) {
            return Ok(Some(fd));
        }
    }
    Ok(None)
}

/// The vCPU descriptor of a thread inside `KVM_RUN`, from `/proc/PID/task/TID/syscall`: `16 0x1b 0xae80 … SP PC`.
fn kvm_run_fd(line: &[u8]) -> Option<u32> {
    let mut words = std::str::from_utf8(line).ok()?.split_whitespace();
    let nr: u64 = words.next()?.parse().ok()?;
    let numbers: Vec<u64> = words
        .map(|word| u64::from_str_radix(word.strip_prefix("0x").unwrap_or(word), 16))
        .collect::<Result<_, _>>()
        .ok()?;
    let &[fd, request, .., sp, pc] = numbers.as_slice() else { return None };
    // Kernel threads that KVM creates in the process show the system call that created them, with SP and PC 0.
    (nr == IOCTL && request == KVM_RUN && (sp, pc) != (0, 0))
        .then(|| u32::try_from(fd).ok())
        .flatten()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_directory_of_a_vm_names_the_thread_that_made_it() {
        let creator = |name: &str| creator(&Path::new("/sys/kernel/debug/kvm").join(name));
        assert_eq!((creator("9204-5"), creator("vcpu0"), creator("x-5")), (Some(9204), None, None));
    }

    #[test]
    fn names_of_vcpu_threads() {
        for (name, id) in [
            ("CPU 0/KVM", Some(0)),
            ("CPU 12/TCG", Some(12)),
            ("fc_vcpu 3", Some(3)),
            ("vcpu7", Some(7)),
            ("ALL CPUs/TCG", None),
            ("kvm-nx-lpage-re", None),
            ("CPU x/KVM", None),
            ("worker", None),
        ] {
            assert_eq!(id_in_name(name), id, "{name}");
        }
    }

    /// Six vCPUs of two sockets with three cores: APIC ids 0, 1, 2, 4, 5, 6. Thread 100 + n runs cpu_index n.
    fn two_by_three() -> (BTreeMap<u32, u32>, BTreeMap<u32, u32>) {
        let apic_ids = [0, 1, 2, 4, 5, 6];
        let fds = (20..).zip(apic_ids).collect();
        (fds, (100..).zip(apic_ids).collect())
    }

    #[test]
    fn a_vcpu_has_the_number_of_its_vmm_whatever_its_apic_id() {
        let (fds, ids) = two_by_three();
        let expected: BTreeMap<u32, u32> = (100..).zip(0..6).collect();
        let none = BTreeMap::new();
        assert_eq!(numbers(&fds, &ids, &none), expected, "debugfs without names");
        assert_eq!(numbers(&fds, &ids, &expected), expected, "debugfs and names");
        assert_eq!(numbers(&fds, &none, &expected), expected, "names without debugfs");
        // Some threads have been found so far.
        let some = ids.iter().skip(3).map(|(tid, id)| (*tid, *id)).collect();
        assert_eq!(numbers(&fds, &some, &none), (103..).zip(3..6).collect());
    }

    #[test]
    fn a_vcpu_that_is_plugged_in_behind_a_gap_has_its_number() {
        let fds = BTreeMap::from([(20, 0), (21, 2)]);
        let ids = BTreeMap::from([(100, 0), (101, 2)]);
        let names = BTreeMap::from([(100, 0), (101, 2)]);
        assert_eq!(numbers(&fds, &ids, &names), names);
    }

    #[test]
    fn names_that_lie_are_not_believed() {
        let (fds, ids) = two_by_three();
        let expected: BTreeMap<u32, u32> = (100..).zip(0..6).collect();
        assert_eq!(numbers(&fds, &ids, &(100..106).map(|tid| (tid, 0)).collect()), expected);
        // Another thread with such a name is none beside six that run vCPUs.
        let mut names = expected.clone();
        names.insert(200, 9);
        assert_eq!(numbers(&fds, &ids, &names), expected);
        assert_eq!(id_in_name("CPU 4294967295/KVM"), None);
    }

    #[cfg(target_arch = "x86_64")]
    #[test]
    fn a_thread_in_kvm_run_shows_its_descriptor() {
        let vcpu = b"16 0x1b 0xae80 0x0 0x0 0x0 0x0 0x7ffd1 0x7fab2\n";
        let kernel_thread = b"16 0x11 0xae80 0x0 0x0 0x0 0x0 0x0 0x0\n";
        assert_eq!(kvm_run_fd(vcpu), Some(0x1b));
        for other in
            [&kernel_thread[..], b"running\n", b"202 0x1 0xae80 0x0 0x0 0x0 0x0 0x1 0x2\n", b""]
        {
            assert_eq!(kvm_run_fd(other), None);
        }
    }

    #[cfg(target_arch = "x86_64")]
    #[test]
    fn a_paused_vcpu_waits_for_a_condition() {
        for (line, rest) in [
            (&b"202 0x55d0 0x189 0x0 0x0 0x0 0xffffffff 0x7f 0x7e\n"[..], Rest::Paused),
            (b"202 0x55d0 0x80 0x2 0x0 0x0 0x0 0x7f 0x7e\n", Rest::Locked),
            (b"-1 0x7ffc 0x7f3a\n", Rest::Paused),
            (b"230 0x0 0x0 0x7f 0x7f 0x0 0x0 0x7f 0x7e\n", Rest::Other),
            (b"17 0x9 0x7f 0x1000 0x0 0x0 0x0 0x7f 0x7e\n", Rest::Other),
            (b"16 0x1b 0xae80 0x0 0x0 0x0 0x0 0x7ffd1 0x7fab2\n", Rest::InKvmRun),
            (b"running\n", Rest::Other),
            (b"", Rest::Other),
        ] {
            assert_eq!(rest_of(line), rest, "{:?}", String::from_utf8_lossy(line));
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn no_bytes_panic(line in prop::collection::vec(any::<u8>(), 0..200), name in ".{0,30}") {
            let _ = (kvm_run_fd(&line), rest_of(&line), id_in_name(&name));
        }
    }
}
