//! The processes that are VMs: scans them, registers them for counting, and reports them as facts.

mod creators;
mod first_scan;
mod images;
mod late;
mod payers;
mod records;

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, VecDeque},
    os::fd::{AsFd as _, BorrowedFd, OwnedFd},
    path::PathBuf,
    sync::{Arc, atomic::AtomicU64},
    time::{Duration, Instant},
};

use tracing::{debug, info, warn};

pub(super) use self::payers::Payer;
use self::{
    creators::{Makers, Rounds},
    first_scan::Unscanned,
    payers::Payers,
};
use super::{
    SharedTracker,
    command_line::Description,
    header_scans::HeaderScans,
    header_slots::Storage,
    image_headers::HeaderScanner,
    pauses::Pauses,
    plugged::Plugged,
    presence::{Copies, Probes},
    process,
    readers::{Answer, Readers, Returned},
    scan::{self, Earlier, Roots, Scan},
    shortage::{Shortages, is_shortage},
    threads::{self, Registered},
    vcpu_states::Sight,
    warnings::{LineLimit, WarningLimit},
};
use crate::{
    account::Account,
    counters::{ImageRecordInfo, ImageSlot, ThreadSlot, VmSlot, since_boot_ns},
    inventory::{Fact, Fence, Vcpu, VmProcess},
};

/// Age from which the description of a VM is final: its VMM has allocated the memory by then.
const SETTLED: Duration = Duration::from_secs(1);

/// The VM processes of this host.
pub(super) struct TrackedProcesses {
    roots: Arc<Roots>,
    readers: ProcessReaders,
    pub(super) tracker: Option<SharedTracker>,
    pub(super) known: BTreeMap<u32, TrackedProcess>,
    pub(super) pauses: Pauses,
    /// Closed, unassigned images: process id, and when they were first seen closed.
    closed: HashMap<ImageSlot, (u32, Instant)>,
    /// Slots of VMs that have ended, each with the fence after which no view refers to it.
    retired: Vec<Retired>,
    /// Slots of VMs that an earlier agent counted, by process id: whether they run will be known after a scan.
    unclear: BTreeMap<u32, VmSlot>,
    /// Processes that were there before the agent and have not been scanned.
    unscanned: Unscanned,
    /// Late reads that have returned.
    returned: VecDeque<Returned<std::io::Result<Option<Scan>>, Before>>,
    payers: Payers,
    makers: Makers,
    rounds: Rounds,
    copies: Copies,
    probes: Probes,
    fences: u64,
    /// Facts since the last report.
    pub(super) facts: Vec<Fact>,
    headers: HeaderScanner,
    /// Process id of a VM, and the storage of its header scan, which waits until another scan ends.
    waiting: BTreeSet<(u32, Storage)>,
    /// Warnings that processes cannot be scanned.
    warnings: WarningLimit,
    /// What the agent lacks.
    shortages: Arc<Shortages>,
    /// Lines about VMs of users.
    lines: LineLimit,
    /// Warnings that processes have no record.
    refusals: WarningLimit,
    /// Whether processes that went without a record may find one now.
    has_freed: bool,
}

/// The readers of processes. What a scan found out before it read is kept with the read.
pub(super) type ProcessReaders = Readers<std::io::Result<Option<Scan>>, Before>;

/// What was known before a process was read.
#[derive(Debug)]
pub(super) struct Before {
    slot: Option<VmSlot>,
    unassigned: Vec<ImageRecordInfo>,
}

pub(super) struct TrackedProcess {
    pub(super) vm: Arc<VmProcess>,
    pub(super) described: Arc<Description>,
    found: Instant,
    /// Whether a vCPU of it has been in `KVM_RUN`.
    pub(super) has_run: bool,
    /// What can be seen of its vCPUs.
    pub(super) sight: Sight,
    /// The first thread, where it is watched instead of vCPUs.
    pub(super) stand_in: Option<ThreadSlot>,
    /// Whether its command line was read after [`SETTLED`]; it is not read again then.
    is_settled: bool,
    /// The threads that have made its VMs.
    creators: BTreeSet<u32>,
    /// Whether its last thread has begun to exit. It is not a VM then, but its threads may still run.
    ending: bool,
    /// Whether the log has a warning that a thread has no record.
    has_warned: bool,
    /// Whether it is the process of a domain, as the files of root's libvirt tell.
    is_domain: bool,
    /// What is known of its images.
    images: HeaderScans,
    /// The disks that no option names.
    plugged: Plugged,
    /// The paths that libvirt has for its disks.
    domain_paths: Arc<[String]>,
    /// Readable once it has ended.
    pidfd: OwnedFd,
}

/// Result of the scan of a process.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum ScanOutcome {
    /// A VM. `is_new`: it was not known before. `is_moving`: another scan is needed.
    Vm { is_new: bool, is_moving: bool },
    /// Not a VM.
    Nothing,
    /// It may be a VM: the agent lacks what it needs to find out.
    Unscanned,
}

impl ScanOutcome {
    const KNOWN: Self = Self::Vm { is_new: false, is_moving: false };
}

/// The record of a VM that is gone.
struct Retired {
    /// After this fence no view shows it.
    fence: u64,
    pid: u32,
    slot: VmSlot,
}

impl TrackedProcesses {
    pub(super) fn new(
        tracker: Option<SharedTracker>,
        headers: HeaderScanner,
        roots: Roots,
        readers: ProcessReaders,
        left_out: Arc<AtomicU64>,
        shortages: Arc<Shortages>,
    ) -> Self {
        Self {
            headers,
            shortages,
            waiting: BTreeSet::new(),
            warnings: WarningLimit::default(),
            lines: LineLimit::new(left_out),
            refusals: WarningLimit::default(),
            has_freed: false,
            roots: Arc::new(roots),
            readers,
            tracker,
            known: BTreeMap::new(),
            pauses: Pauses::default(),
            closed: HashMap::new(),
            retired: Vec::new(),
            unclear: BTreeMap::new(),
            unscanned: Unscanned::default(),
            returned: VecDeque::new(),
            payers: Payers::default(),
            makers: Makers::default(),
            rounds: Rounds::default(),
            copies: Copies::default(),
            probes: Probes::default(),
            fences: 0,
            facts: Vec::new(),
        }
    }

    /// The ids of all processes.
    pub(super) fn processes(&self) -> std::io::Result<Vec<u32>> {
        process::pids(&self.roots.proc)
    }

    /// The online CPUs.
    pub(super) fn cpus() -> std::io::Result<Vec<u32>> {
        scan::online_cpus(&PathBuf::from("/sys/devices/system/cpu/online"))
    }

    /// The process that a thread belongs to.
    pub(super) fn process_of(&self, tid: u32) -> Option<u32> {
        process::of_thread(&self.roots.proc, tid)
    }

    /// What scans have cost since the last call: CPU time of readers, or the time for which a late one was waited for.
    pub(super) fn take_cost(&mut self) -> Duration {
        self.readers.take_cost()
    }

    /// The CPU time of late reads, each with the account of the process.
    pub(super) fn take_late_costs(&mut self) -> Vec<(Account, Duration)> {
        self.readers.take_late_costs()
    }

    /// Whether the programs have reported the end of this VM's process.
    pub(super) fn is_ending(&self, pid: u32) -> bool {
        self.known.get(&pid).is_none_or(|known| known.ending)
    }

    /// The ids of the processes that are VMs.
    pub(super) fn pids(&self) -> Vec<u32> {
        self.known.keys().copied().collect()
    }

    /// Returns the facts since the last call. They end with a fence if a VM has ended: its record is freed when the fence
    /// comes back.
    pub(super) fn take_facts(&mut self) -> Vec<Fact> {
        let mut facts = std::mem::take(&mut self.facts);
        if self.retired.iter().any(|retired| retired.fence > self.fences) {
            self.fences += 1;
            facts.push(Fact::Fence(Fence::Procfs(self.fences)));
        }
        facts
    }

    /// Frees the records of VMs to which no view refers: the fence `reached` has come back.
    pub(super) fn untrack_retired(&mut self, reached: u64) {
        self.untrack(|retired| retired.fence <= reached);
    }

    fn untrack(&mut self, is_free: impl Fn(&Retired) -> bool) {
        for Retired { slot, .. } in self.retired.extract_if(.., |retired| is_free(retired)) {
            if let Some(tracker) = &self.tracker {
                tracker.untrack_vm(slot);
                self.has_freed = true;
            }
        }
    }

    /// Handles that the last thread of a process has begun to exit. `killed` = because of a signal.
    pub(super) fn begin_end(&mut self, pid: u32, killed: bool) {
        if let Some(known) = self.known.get_mut(&pid)
            && !std::mem::replace(&mut known.ending, true)
        {
            self.facts.push(Fact::ProcessGone { pid, killed });
        }
    }

    /// Handles the end of a process.
    pub(super) fn end(&mut self, pid: u32) {
        let Some(gone) = self.known.remove(&pid) else { return };
        self.closed.retain(|_, (of, _)| *of != pid);
        self.waiting.retain(|(of, _)| *of != pid);
        self.pauses.forget(pid);
        if let Some(tracker) = &self.tracker {
            tracker.forget(pid);
        }
        if self.lines.allows(gone.vm.account) {
            info!(vm = gone.vm.name, pid, "VM ended");
        }
        if !gone.ending {
            // The event that says it may have found the ring full.
            let killed = gone.vm.slot.zip(self.tracker.as_ref());
            let killed = killed.is_some_and(|(slot, tracker)| tracker.was_killed(slot));
            self.facts.push(Fact::ProcessGone { pid, killed });
        }
        let fence = self.fences + 1;
        self.retired.extend(gone.vm.slot.map(|slot| Retired { fence, pid, slot }));
    }

    /// Whether there is a process with this id. Does not block.
    pub(super) fn exists(&self, pid: u32) -> bool {
        self.roots.proc.join(pid.to_string()).exists()
    }

    /// Scans a process, and registers its threads for counting if it is a VM.
    pub(super) fn scan(&mut self, pid: u32) -> ScanOutcome {
        if self.known.get(&pid).is_some_and(|known| known.ending) {
            return ScanOutcome::KNOWN;
        }
        if self.is_returned(pid) || !self.readers.can_read(pid) {
            return self.unread(pid);
        }
        let known = self.known.get(&pid);
        // Before the scan: the kernel reports later threads by events again.
        let slot = match known.map(|known| known.vm.account.filter(|_| !known.is_domain)) {
            Some(account) => self.track_vm(pid, account),
            None => None,
        };
        let known = self.known.get(&pid);
        let unassigned = slot.zip(self.tracker.as_ref());
        let unassigned =
            unassigned.map_or_else(Vec::new, |(slot, tracker)| tracker.unassigned_images(slot));
        let earlier = known.map(|known| {
            let (vm, described) = (Arc::clone(&known.vm), Arc::clone(&known.described));
            (vm, described, known.is_settled, known.plugged.disks())
        });
        let wants_rests = self.pauses.asks(pid);
        let domain_paths = known.map_or_else(Arc::default, |known| Arc::clone(&known.domain_paths));
        let roots = Arc::clone(&self.roots);
        let read = move || {
            let earlier = earlier.as_ref();
            let earlier = earlier.map(|(vm, described, is_settled, plugged)| Earlier {
                vm,
                described,
                is_settled: *is_settled,
                wants_rests,
                plugged,
            });
            scan::scan_process(&roots, pid, earlier, &domain_paths, since_boot_ns())
        };
        match self.readers.read(pid, Before { slot, unassigned }, read) {
            Ok(Answer::Done(result, before)) => self.take_scan(pid, result, before),
            Ok(Answer::Late) => self.unread(pid),
            Err(error) => {
                let before = Before { slot, unassigned: Vec::new() };
                self.take_scan(pid, Err(error), before)
            }
        }
    }

    /// A process cannot be read now: what was known of it stays.
    fn unread(&self, pid: u32) -> ScanOutcome {
        if self.known.contains_key(&pid) { ScanOutcome::KNOWN } else { ScanOutcome::Nothing }
    }

    fn take_scan(
        &mut self,
        pid: u32,
        result: std::io::Result<Option<Scan>>,
        before: Before,
    ) -> ScanOutcome {
        // A process that cannot be read for want of something may still be the VM.
        let is_clear = result.as_ref().err().is_none_or(|error| !is_shortage(error));
        let unclear = if is_clear { self.unclear.remove(&pid) } else { None };
        let started_ns = result.as_ref().ok().and_then(|scan| Some(scan.as_ref()?.vm.started_ns));
        let was_there = is_clear && self.unscanned.settle(pid, started_ns);
        let outcome = self.take_result(pid, result, before, was_there);
        if let Some(slot) = unclear.filter(|_| outcome == ScanOutcome::Nothing) {
            self.retired.push(Retired { fence: self.fences + 1, pid, slot });
        }
        outcome
    }

    fn take_result(
        &mut self,
        pid: u32,
        result: std::io::Result<Option<Scan>>,
        Before { slot: slot_before, unassigned }: Before,
        was_there: bool,
    ) -> ScanOutcome {
        let mut scan = match result {
            Ok(Some(scan)) => scan,
            Ok(None) => {
                self.probes.forget(pid);
                if self.known.contains_key(&pid) && !process::has_memory(&self.roots.proc, pid) {
                    // It is exiting: the programs report whether a signal killed it, and its pidfd the end.
                    return ScanOutcome::KNOWN;
                }
                self.end(pid);
                return ScanOutcome::Nothing;
            }
            Err(error) if !self.known.contains_key(&pid) && !is_shortage(&error) => {
                debug!(pid, "not scanned: {error}");
                return ScanOutcome::Nothing;
            }
            // The VM may still run, or the process may be one: descriptors or memory may have run out.
            Err(error) => return self.unscanned(pid, &error),
        };
        if self.known.get(&pid).is_some_and(|known| known.vm.start_ticks != scan.vm.start_ticks) {
            // Another process with the same id, which must not inherit the old one's records.
            self.end(pid);
            self.untrack(|retired| retired.pid == pid);
            return self.scan(pid);
        }
        if self.known.get(&pid).is_some_and(|known| known.is_domain) {
            scan.vm.account = None;
        }
        let is_new = !self.known.contains_key(&pid);
        let parent_is_vm = self.known.contains_key(&scan.parent);
        if is_new && self.copies.has(&scan.vm, scan.is_own, parent_is_vm) {
            return ScanOutcome::Nothing;
        }
        if is_new && scan.may_be_probe && self.probes.has(pid, scan.vm.start_ticks, Instant::now())
        {
            // It is looked at again.
            return ScanOutcome::Vm { is_new: false, is_moving: true };
        }
        scan.vm.was_there = self.known.get(&pid).map_or(was_there, |known| known.vm.was_there);
        if is_new {
            // The id may be another process's by now.
            let opened = process::open_pidfd(pid).and_then(|pidfd| {
                scan.process.program()?;
                Ok(pidfd)
            });
            let pidfd = match opened {
                Ok(pidfd) => pidfd,
                Err(error) if is_shortage(&error) => return self.unscanned(pid, &error),
                Err(_) => return ScanOutcome::Nothing,
            };
            // The records of an earlier process with this id must not be inherited.
            self.untrack(|retired| retired.pid == pid);
            let tracked = TrackedProcess {
                vm: Arc::new(scan.vm.clone()),
                described: Arc::default(),
                found: Instant::now(),
                has_run: false,
                sight: Sight::None,
                stand_in: None,
                is_settled: false,
                creators: BTreeSet::new(),
                ending: false,
                has_warned: false,
                is_domain: false,
                images: HeaderScans::default(),
                plugged: Plugged::default(),
                domain_paths: Arc::default(),
                pidfd,
            };
            self.known.insert(pid, tracked);
        }
        let slot = slot_before.or_else(|| self.track_vm(pid, scan.vm.account));
        let (slots, is_moving) = match self.track_threads(pid, slot, &scan) {
            Ok(tracked) => tracked,
            Err(error) => {
                if is_new {
                    self.known.remove(&pid);
                    // It is freed if the process turns out to be gone.
                    self.unclear.extend(slot.map(|slot| (pid, slot)));
                }
                return self.unscanned(pid, &error);
            }
        };
        let waits = slot.is_some_and(|slot| self.free_closed(slot, &scan.vm, &unassigned));
        let (sight, unseen) = self.note_places(pid, &scan, &slots);
        let Scan { mut vm, vcpus, runs, described, creators, .. } = scan;
        let stand_in = runs.stand_in.and_then(|tid| slots.get(&tid).copied());
        vm.slot = slot;
        vm.vcpus =
            vcpus.iter().map(|(tid, &id)| Vcpu { id, slot: slots.get(tid).copied() }).collect();
        vm.vcpus.sort_by_key(|vcpu| vcpu.id);
        // A process may run two VMs, each with a vCPU 0.
        vm.vcpus.dedup_by_key(|vcpu| vcpu.id);
        let waits = self.scan_headers(&vm, described.vmm, !unassigned.is_empty()) || waits;
        let Some(known) = self.known.get_mut(&pid) else { return ScanOutcome::Nothing };
        let is_other_sight = std::mem::replace(&mut known.sight, sight) != sight;
        let is_other_thread = std::mem::replace(&mut known.stand_in, stand_in) != stand_in;
        let is_watched_anew = is_other_sight || is_other_thread || known.vm.vcpus != vm.vcpus;
        vm.starts_stopped &= sight == Sight::Runs && !known.has_run;
        known.images.complete(&mut vm);
        if let Some(gap) = vm.gaps.iter().find(|gap| is_new || !known.vm.gaps.contains(gap))
            && self.lines.allows(vm.account)
        {
            warn!(
                vm = vm.name,
                pid, gap, "Not all is known of a VM; `kvmeter status` has the list"
            );
        }
        if is_new {
            if self.lines.allows(vm.account) {
                // A VM is usually found before it has vCPUs.
                let vcpus = Some(vm.vcpus.len()).filter(|vcpus| *vcpus > 0);
                info!(vm = vm.name, pid, vcpus, "VM found");
            }
        } else if *known.vm != vm {
            debug!(vm = vm.name, pid, vcpus = vm.vcpus.len(), "VM changed");
        }
        vm.gaps.extend(unseen);
        if is_new || *known.vm != vm {
            known.vm = Arc::new(vm);
            self.facts.push(Fact::Process(Arc::clone(&known.vm)));
        }
        known.described = Arc::new(described);
        known.is_settled = known.found.elapsed() > SETTLED;
        let vm = Arc::clone(&known.vm);
        self.note_found(pid, creators);
        if is_watched_anew {
            self.watch(&vm, sight);
        }
        ScanOutcome::Vm { is_new, is_moving: is_moving || waits }
    }

    /// Writes to the log that processes cannot be scanned for now, once a minute as a warning.
    pub(super) fn warn(&mut self, what: &str) {
        if self.warnings.allows() {
            warn!("{what}; it is tried again, and what was known of VMs stays");
        } else {
            debug!("{what}");
        }
    }

    /// Notes that something cannot be read for now, and why.
    pub(super) fn failed(&mut self, what: &str, error: &std::io::Error) {
        self.shortages.note(error, Instant::now());
        self.warn(&format!("{what}: {error}"));
    }

    /// Handles an error of a scan that says nothing about the process.
    fn unscanned(&mut self, pid: u32, error: &std::io::Error) -> ScanOutcome {
        self.failed(&format!("Cannot scan process {pid}"), error);
        if self.known.contains_key(&pid) {
            ScanOutcome::Vm { is_new: false, is_moving: true }
        } else {
            ScanOutcome::Unscanned
        }
    }

    /// Notes the paths that libvirt has for the disks of a process.
    pub(super) fn set_domain_paths(&mut self, pid: u32, paths: Arc<[String]>) {
        if let Some(known) = self.known.get_mut(&pid) {
            known.domain_paths = paths;
        }
    }

    /// The pidfd of a known VM.
    pub(super) fn pidfd(&self, pid: u32) -> Option<BorrowedFd<'_>> {
        self.known.get(&pid).map(|known| known.pidfd.as_fd())
    }

    /// Registers every thread. Returns the slots by thread id, and whether another scan is needed.
    fn track_threads(
        &mut self,
        pid: u32,
        slot: Option<VmSlot>,
        scan: &Scan,
    ) -> std::io::Result<(HashMap<u32, ThreadSlot>, bool)> {
        let (Some(tracker), Some(slot)) = (&self.tracker, slot) else {
            return Ok((HashMap::new(), false));
        };
        let Registered { slots, is_moving, failure } =
            threads::register(&**tracker, slot, pid, scan)?;
        if let (Some(error), Some(known)) = (failure, self.known.get_mut(&pid))
            && !std::mem::replace(&mut known.has_warned, true)
            && self.lines.allows(known.vm.account)
        {
            warn!(vm = known.vm.name, pid, "{error}");
        }
        Ok((slots, is_moving))
    }
}
