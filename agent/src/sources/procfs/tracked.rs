//! The processes that are VMs: looked at, counted, and described.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    os::fd::{AsFd as _, BorrowedFd, OwnedFd},
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant},
};

use rustix::process::{Pid, PidfdFlags, pidfd_open};
use tracing::{debug, info, warn};

use super::{
    SharedTracker,
    command_line::Description,
    image_headers::{HeaderReport, HeaderScanner, ScanTarget},
    process::{self, Thread},
    scan::{self, Roots, Scan},
};
use crate::{
    counters::{ImageRecordInfo, ImageSlot, ThreadSlot, VmSlot},
    counting::{HeldThread, TrackError},
    inventory::{Fact, Fence, FileIdentity, ImageHeader, Vcpu, VmProcess, retry::Backoff},
};

/// After so long a VMM has its memory.
const SETTLED: Duration = Duration::from_secs(1);

/// A VM that uses more files of which nobody knows what they are than this is a file server.
const LOOSE: usize = 64;

/// An image that was closed so long ago is forgotten, if it is of no disk.
const CLOSED: Duration = Duration::from_secs(5);

/// After headers were asked for the first time what an image is on which a VM does I/O.
const FIRST_PAUSE: Duration = Duration::from_millis(20);

/// How often the threads of a process are listed until there is none that is not counted.
const PASSES: usize = 8;

/// The VMs of this host that are processes.
pub(super) struct TrackedProcesses {
    roots: Roots,
    tracker: Option<SharedTracker>,
    known: BTreeMap<u32, TrackedProcess>,
    /// Images that are of no disk and not open: of which process, and since when.
    closed: HashMap<ImageSlot, (u32, Instant)>,
    /// Slots of VMs that are gone, each with the fence after which no view shows it.
    retired: Vec<(u64, VmSlot)>,
    fences: u64,
    /// What has changed since the last report.
    facts: Vec<Fact>,
    headers: HeaderScanner,
    /// VMs whose images are to be looked at once a look at those of others has ended.
    waiting: BTreeSet<u32>,
}

struct TrackedProcess {
    vm: VmProcess,
    described: Description,
    found: Instant,
    /// It was looked at when it was there for a while: what it was described by then stays.
    is_settled: bool,
    /// Its last thread has begun to exit: it is no VM any more, but its threads still run.
    ending: bool,
    /// A thread for which there is no record has been reported.
    reported: bool,
    /// What the headers of its images told.
    headers: Vec<ImageHeader>,
    /// The files that it had open when they were asked for last.
    asked: Vec<FileIdentity>,
    /// They have not told yet.
    is_asked: bool,
    /// To be asked again with these files open, as long as there is one of which it is not known what it is.
    backoff: Backoff,
    /// Tells its end.
    pidfd: OwnedFd,
}

/// What a look at a process found.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum ScanOutcome {
    /// A VM. `is_new`: it was not known. `is_moving`: threads came during the look, and it should be looked at again.
    Vm { is_new: bool, is_moving: bool },
    /// No VM.
    Nothing,
}

impl ScanOutcome {
    const KNOWN: Self = Self::Vm { is_new: false, is_moving: false };
}

impl TrackedProcesses {
    pub(super) fn new(tracker: Option<SharedTracker>, headers: HeaderScanner) -> Self {
        Self {
            headers,
            waiting: BTreeSet::new(),
            roots: Roots::default(),
            tracker,
            known: BTreeMap::new(),
            closed: HashMap::new(),
            retired: Vec::new(),
            fences: 0,
            facts: Vec::new(),
        }
    }

    /// The ids of all processes that are there.
    pub(super) fn processes(&self) -> std::io::Result<Vec<u32>> {
        process::pids(&self.roots.proc)
    }

    /// The online CPUs.
    pub(super) fn cpus() -> Vec<u32> {
        scan::online_cpus(&PathBuf::from("/sys/devices/system/cpu/online"))
    }

    /// The process that a thread belongs to.
    pub(super) fn process_of(&self, tid: u32) -> Option<u32> {
        process::of_thread(&self.roots.proc, tid)
    }

    /// The ids of the processes that are VMs.
    pub(super) fn pids(&self) -> Vec<u32> {
        self.known.keys().copied().collect()
    }

    /// The facts since the last call. They end with a fence if a VM is gone: its record is freed when the fence comes back.
    pub(super) fn take_facts(&mut self) -> Vec<Fact> {
        let mut facts = std::mem::take(&mut self.facts);
        if self.retired.iter().any(|(fence, _)| *fence > self.fences) {
            self.fences += 1;
            facts.push(Fact::Fence(Fence::Procfs(self.fences)));
        }
        facts
    }

    /// The VMs that an earlier agent counted and that are gone.
    pub(super) fn retire_unknown(&mut self) {
        let Some(tracker) = &self.tracker else { return };
        for (slot, pid) in tracker.tracked_vms() {
            if !self.known.contains_key(&pid) {
                self.retired.push((self.fences + 1, slot));
            }
        }
    }

    /// Frees the records of VMs that no view shows any more: this fence has come back.
    pub(super) fn untrack_retired(&mut self, reached: u64) {
        for (_, slot) in self.retired.extract_if(.., |(fence, _)| *fence <= reached) {
            if let Some(tracker) = &self.tracker {
                tracker.untrack_vm(slot);
            }
        }
    }

    /// The last thread of a process has begun to exit. `killed`: because of a signal.
    pub(super) fn begin_end(&mut self, pid: u32, killed: bool) {
        if let Some(known) = self.known.get_mut(&pid)
            && !std::mem::replace(&mut known.ending, true)
        {
            self.facts.push(Fact::ProcessGone { pid, killed });
        }
    }

    /// A process has ended.
    pub(super) fn end(&mut self, pid: u32) {
        let Some(gone) = self.known.remove(&pid) else { return };
        self.closed.retain(|_, (of, _)| *of != pid);
        self.waiting.remove(&pid);
        info!(vm = gone.vm.name, pid, "VM ended");
        if !gone.ending {
            self.facts.push(Fact::ProcessGone { pid, killed: false });
        }
        self.retired.extend(gone.vm.slot.map(|slot| (self.fences + 1, slot)));
    }

    /// Looks at a process and counts all that it has.
    pub(super) fn scan(&mut self, pid: u32) -> ScanOutcome {
        if self.known.get(&pid).is_some_and(|known| known.ending) {
            return ScanOutcome::KNOWN;
        }
        // Before the look: what comes after it is an event again.
        let slot_before = self.known.get(&pid).and_then(|_| self.track_vm(pid));
        let settled = self.known.get(&pid).filter(|known| known.is_settled);
        let told = settled.map(|known| (known.vm.start_ticks, &known.described));
        let files = self.known.get(&pid).map_or(&[][..], |known| &known.vm.files);
        let loose = slot_before.zip(self.tracker.as_ref());
        let loose = loose.map_or_else(Vec::new, |(slot, tracker)| tracker.unassigned_images(slot));
        let scan = match scan::scan_process(&self.roots, pid, told, files) {
            Ok(Some(scan)) => scan,
            Ok(None) => {
                self.end(pid);
                return ScanOutcome::Nothing;
            }
            Err(error) if !self.known.contains_key(&pid) => {
                debug!(pid, "not looked at: {error}");
                return ScanOutcome::Nothing;
            }
            // A lack of descriptors or memory is no end of a VM.
            Err(error) => {
                warn!(pid, "Cannot look at a VM: {error}; it stays as it is known");
                return ScanOutcome::Vm { is_new: false, is_moving: true };
            }
        };
        if self.known.get(&pid).is_some_and(|known| known.vm.start_ticks != scan.vm.start_ticks) {
            // Another process with the same id. What the old one used must not become the new one's.
            self.end(pid);
            self.untrack_retired(u64::MAX);
            return self.scan(pid);
        }
        let is_new = !self.known.contains_key(&pid);
        if is_new {
            let Some(pidfd) = open_pidfd(pid) else { return ScanOutcome::Nothing };
            // What another process with this id has used must not become this one's.
            self.untrack_retired(u64::MAX);
            let tracked = TrackedProcess {
                vm: scan.vm.clone(),
                described: Description::default(),
                found: Instant::now(),
                is_settled: false,
                ending: false,
                reported: false,
                headers: Vec::new(),
                asked: Vec::new(),
                is_asked: false,
                backoff: Backoff::new(FIRST_PAUSE, Instant::now()),
                pidfd,
            };
            self.known.insert(pid, tracked);
        }
        let slot = slot_before.or_else(|| self.track_vm(pid));
        let (slots, is_moving) = self.track_threads(pid, slot, &scan);
        let waits = slot.is_some_and(|slot| self.forget_closed(slot, &scan.vm, &loose));
        let Scan { mut vm, vcpus, described, .. } = scan;
        vm.slot = slot;
        vm.vcpus =
            vcpus.iter().map(|(tid, &id)| Vcpu { id, slot: slots.get(tid).copied() }).collect();
        vm.vcpus.sort_by_key(|vcpu| vcpu.id);
        // A process may have two VMs, each with a vCPU 0.
        vm.vcpus.dedup_by_key(|vcpu| vcpu.id);
        let waits = self.ask_for_headers(&vm, !loose.is_empty()) || waits;
        let Some(known) = self.known.get_mut(&pid) else { return ScanOutcome::Nothing };
        vm.note_headers(&known.headers);
        if is_new {
            info!(vm = vm.name, pid, vcpus = vm.vcpus.len(), "VM found");
        } else if known.vm != vm {
            debug!(vm = vm.name, pid, vcpus = vm.vcpus.len(), "VM changed");
        }
        if is_new || known.vm != vm {
            self.facts.push(Fact::Process(Arc::new(vm.clone())));
        }
        (known.vm, known.described) = (vm, described);
        known.is_settled = known.found.elapsed() > SETTLED;
        ScanOutcome::Vm { is_new, is_moving: is_moving || waits }
    }

    /// Forgets images of which it was not known before the look what they are, and that are not open in it: a VMM makes an
    /// image, closes it and opens it anew, so not at once. Whether it is to be looked at again for that.
    fn forget_closed(&mut self, slot: VmSlot, vm: &VmProcess, loose: &[ImageRecordInfo]) -> bool {
        let Some(tracker) = &self.tracker else { return false };
        if loose.len() > LOOSE {
            tracker.limit_images(slot);
        }
        let is_open =
            |image: &ImageRecordInfo| vm.files.iter().any(|file| file.key(slot) == image.key);
        let closed: Vec<_> =
            loose.iter().filter(|image| !is_open(image)).map(|image| image.slot).collect();
        let now = Instant::now();
        self.closed.retain(|image, (of, _)| *of != vm.pid || closed.contains(image));
        for image in closed {
            let (_, since) = self.closed.entry(image).or_insert((vm.pid, now));
            if since.elapsed() > CLOSED {
                tracker.free_image(image);
                self.closed.remove(&image);
            }
        }
        self.closed.values().any(|(of, _)| *of == vm.pid)
    }

    /// Asks on which files a VM's images are based, where only they tell: a disk is given without that, or the VM does
    /// I/O on a file of which it is not known what it is. Whether it is to be looked at again for that.
    fn ask_for_headers(&mut self, vm: &VmProcess, is_unassigned: bool) -> bool {
        let Some(known) = self.known.get_mut(&vm.pid) else { return false };
        if !is_unassigned && !vm.devices.disks.iter().any(|disk| disk.chain_is_in_image) {
            return false;
        }
        let files: Vec<_> = vm.files.iter().map(|file| file.identity).collect();
        // Who does not answer is not asked once more.
        if known.is_asked {
            return false;
        }
        if known.asked != files {
            known.backoff = Backoff::new(FIRST_PAUSE, Instant::now());
        } else if !is_unassigned {
            return false;
        }
        match known.backoff.due() {
            None => return false,
            // The VMM makes an image first, and says then what it is based on.
            Some(due) if due > Instant::now() => return true,
            Some(_) => {}
        }
        let subject = ScanTarget {
            proc_root: self.roots.proc.clone(),
            pid: vm.pid,
            start_ticks: vm.start_ticks,
            raw: vm.raw_files().collect(),
        };
        if self.headers.start_scan(subject) {
            self.waiting.insert(vm.pid);
        } else {
            (known.asked, known.is_asked) = (files, true);
            known.backoff.attempt(Instant::now());
        }
        false
    }

    /// Takes in what headers told. The VMs that are to be looked at now.
    pub(super) fn take_headers(&mut self, told: HeaderReport) -> BTreeSet<u32> {
        let mut look = std::mem::take(&mut self.waiting);
        if let Some(known) = self.known.get_mut(&told.pid)
            && known.vm.start_ticks == told.start_ticks
        {
            // One that could not be read this time, closed or not, is as it was.
            let files = &known.vm.files;
            known.headers.retain(|old| {
                files.iter().any(|file| file.identity == old.image)
                    && told.headers.iter().all(|new| new.image != old.image)
            });
            known.headers.extend(told.headers);
            known.is_asked = false;
            look.insert(told.pid);
        }
        look
    }

    /// What tells the end of a VM that is known.
    pub(super) fn pidfd(&self, pid: u32) -> Option<BorrowedFd<'_>> {
        self.known.get(&pid).map(|known| known.pidfd.as_fd())
    }

    fn track_vm(&self, pid: u32) -> Option<VmSlot> {
        match self.tracker.as_ref()?.track_vm(pid) {
            Ok(slot) => Some(slot),
            Err(error) => {
                warn!(pid, "{error}");
                None
            }
        }
    }

    /// Counts every thread, and says which slot each has and whether threads came meanwhile.
    fn track_threads(
        &mut self,
        pid: u32,
        slot: Option<VmSlot>,
        scan: &Scan,
    ) -> (HashMap<u32, ThreadSlot>, bool) {
        let mut slots = HashMap::new();
        let (Some(tracker), Some(slot)) = (&self.tracker, slot) else { return (slots, false) };
        let mut later: Vec<Thread> = Vec::new();
        let mut failure = None;
        let mut tried = 0;
        for _ in 0..PASSES {
            let threads =
                if tried == 0 { &scan.threads[..] } else { &later[tried - scan.threads.len()..] };
            tried += threads.len();
            for thread in threads {
                match tracker.track_thread(slot, thread, scan.vcpus.get(&thread.tid()).copied()) {
                    Ok(thread_slot) => {
                        slots.insert(thread.tid(), thread_slot);
                    }
                    Err(TrackError::Gone { .. }) => {}
                    Err(error) => failure = Some(error),
                }
            }
            // A thread that an uncounted thread has started meanwhile is no event.
            let known = |tid| scan.threads.iter().chain(&later).any(|thread| thread.tid() == tid);
            match scan.process.threads_except(known) {
                Ok(more) if !more.is_empty() => later.extend(more),
                _ => break,
            }
        }
        let all: Vec<&dyn HeldThread> =
            scan.threads.iter().chain(&later).map(|thread| thread as &dyn HeldThread).collect();
        tracker.settle(slot, &all);
        if let (Some(error), Some(known)) = (failure, self.known.get_mut(&pid))
            && !std::mem::replace(&mut known.reported, true)
        {
            warn!(vm = known.vm.name, pid, "{error}");
        }
        (slots, !later.is_empty())
    }
}

fn open_pidfd(pid: u32) -> Option<OwnedFd> {
    let pid = Pid::from_raw(i32::try_from(pid).ok()?)?;
    pidfd_open(pid, PidfdFlags::empty()).ok()
}
