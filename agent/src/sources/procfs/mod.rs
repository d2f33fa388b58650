//! Finds VMs by their processes: every process that has a KVM VM open, and QEMU without KVM.
//!
//! All processes are scanned at the start and after events were lost; otherwise kernel events trigger the scan of a single
//! process. KVM sends a uevent when a VM is created. The BPF programs report the `exec` of a QEMU without KVM, threads that
//! start and end, threads in `KVM_RUN` that are not registered as vCPUs, and the end of a VM; a pidfd reports the end, too,
//! for when there are no programs. Nothing is polled: between events the thread of this source sleeps without a timer.
//!
//! From the bottom up: [`process`] reads procfs; [`mounts`] and [`path_walk`] follow paths as the process would, for
//! [`named_file`], which reads a small file with the rights that the process has ([`credentials`]), and [`disk_paths`], which finds the open file ([`files`]) of each disk;
//! [`command_line`], [`qemu`], [`cloud_hypervisor`], [`devices`], [`memory_estimate`], [`vcpus`] and [`scan`] interpret what
//! is read; [`readers`] are the threads that do so; [`image_headers`] reads the headers of images;
//! [`tracked`] keeps the known VMs and registers them for counting; [`pauses`] and [`vcpu_states`] see whether they run; [`schedule`] decides when a process is scanned; [`poller`] and [`uevent`] wait for events;
//! [`warnings`] keeps the log short.

mod cloud_hypervisor;
mod command_line;
mod credentials;
mod devices;
mod disk_paths;
mod files;
mod image_headers;
mod machine;
mod memory_estimate;
mod mounts;
mod named_file;
mod options;
mod path_walk;
mod pauses;
mod poller;
mod presence;
mod process;
mod qcow2;
mod qemu;
mod readers;
mod scan;
mod schedule;
mod taps;
mod threads;
mod tracked;
mod uevent;
mod vcpu_states;
mod vcpus;
mod warnings;

use std::{
    collections::BTreeSet,
    fmt, io,
    os::fd::{AsFd as _, OwnedFd},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    thread::JoinHandle,
    time::{Duration, Instant, SystemTime},
};

use crossbeam_channel::{Receiver, Sender};
use kvmeter_common::{Event, EventKind};
use rustix::io::Errno;
use thiserror::Error;
use tracing::{debug, warn};

use self::{
    image_headers::HeaderScanner,
    poller::{Poller, Ready},
    readers::{Hanging, Readers},
    scan::Roots,
    schedule::Schedule,
    tracked::{ScanOutcome, TrackedProcesses},
    uevent::Uevent,
};
use super::{Command, Health};
use crate::{
    counters::{ImageSlot, Records, VmSlot},
    counting::Tracker,
    heartbeat::Heartbeat,
    inventory::{Fact, SourceId},
    probe::Events,
    worker::{Facts, join},
};

/// The tracker, shared between threads.
pub type SharedTracker = Arc<dyn Tracker + Send + Sync>;

/// Shortest interval between two full scans after events were lost.
const FULL_SCAN_PAUSE: Duration = Duration::from_secs(1);

/// Deadline for one turn of this source's thread, which scans the processes with an event.
const DEADLINE: Duration = Duration::from_secs(30);

/// Most uevents that are read in one turn: in a flood of them, the processes with an event are scanned between two turns.
const MAX_UEVENTS: usize = 10_000;

/// What this source needs of the probes.
pub struct ProbeHandles {
    /// Events of the programs.
    pub events: Events,
    /// The records, for the number of lost events.
    pub records: Arc<Records>,
    /// Registers VMs for counting.
    pub tracker: SharedTracker,
}

/// The interface of the source for other threads: commands and health.
#[derive(Debug)]
pub struct Handle {
    commands: Sender<Command>,
    wake: OwnedFd,
    heartbeat: Arc<Heartbeat>,
    scans: AtomicU64,
    hanging: Arc<Hanging>,
    /// Whether VMs without a domain are shown.
    shows_processes: bool,
}

/// Why this source cannot start.
#[derive(Debug, Error)]
pub enum ProcfsError {
    /// A descriptor or thread cannot be created.
    #[error("Cannot watch the host's processes: {what}")]
    Watch {
        /// What could not be created.
        what: &'static str,
        /// Reason.
        source: io::Error,
    },
    /// Procfs cannot be read.
    #[error("Cannot read /proc; is it mounted, and may kvmeter see the processes of others?")]
    Procfs(#[source] io::Error),
}

/// The running source. It ends when this is dropped.
#[derive(Debug)]
pub struct Procfs {
    stop: OwnedFd,
    thread: Option<JoinHandle<()>>,
    handle: Arc<Handle>,
}

impl Procfs {
    /// Scans all processes, reports the VMs among them, and starts the thread of the source. Without probes, VMs are
    /// listed but not counted, and VMs without KVM are found only at the start. `shows_processes` = VMs without a domain are
    /// shown.
    ///
    /// # Errors
    ///
    /// [`ProcfsError`]
    pub fn start(
        facts: Facts,
        probes: Option<ProbeHandles>,
        shows_processes: bool,
    ) -> Result<Self, ProcfsError> {
        let failed = |what| move |source| ProcfsError::Watch { what, source };
        let poller = Poller::new().map_err(failed("epoll"))?;
        let stop = poller.stop_handle().map_err(failed("eventfd"))?;
        let (sender, commands) = crossbeam_channel::unbounded();
        let roots = Roots::default();
        let wake = poller.wake_handle().map_err(failed("eventfd"))?;
        let readers = Readers::new(roots.proc.clone(), facts.clone(), wake);
        let handle = Arc::new(Handle {
            commands: sender,
            wake: poller.wake_handle().map_err(failed("eventfd"))?,
            heartbeat: Arc::new(Heartbeat::new("procfs", DEADLINE)),
            scans: AtomicU64::new(0),
            hanging: readers.hanging(),
            shows_processes,
        });
        let wake = poller.wake_handle().map_err(failed("eventfd"))?;
        let (headers, header_reports) = HeaderScanner::new(wake);
        let uevents = uevent::open().map_err(failed("the netlink socket of uevents"))?;
        poller.add(uevents.as_fd(), Ready::Uevents).map_err(failed("uevents"))?;
        let (events, records, tracker) = match probes {
            Some(ProbeHandles { events, records, tracker }) => {
                (Some(events), Some(records), Some(tracker))
            }
            None => (None, None, None),
        };
        if let Some(events) = &events {
            poller.add(events.as_fd(), Ready::Events).map_err(failed("the programs' events"))?;
        }
        let mut worker = Worker {
            facts,
            handle: Arc::clone(&handle),
            poller,
            commands,
            header_reports,
            uevents,
            events,
            records,
            processes: TrackedProcesses::new(tracker, headers, roots, readers),
            schedule: Schedule::default(),
            lost: 0,
            are_uevents_lost: false,
            full_scan_due: None,
            last_full_scan: Instant::now(),
            images_claimed: BTreeSet::new(),
        };
        worker.lost = worker.events_lost();
        worker.scan_all().map_err(ProcfsError::Procfs)?;
        worker.processes.retire_unknown();
        worker.report();
        worker.facts.send(Fact::ProcessesListed);
        let thread = std::thread::Builder::new()
            .name("procfs".to_owned())
            .spawn(move || worker.run())
            .map_err(failed("a thread"))?;
        Ok(Self { stop, thread: Some(thread), handle })
    }

    /// The interface for other threads.
    #[must_use]
    pub fn handle(&self) -> Arc<Handle> {
        Arc::clone(&self.handle)
    }
}

impl super::Source for Handle {
    fn name(&self) -> &'static str {
        "procfs"
    }

    fn connection(&self) -> Option<(SourceId, &str)> {
        None
    }

    fn command(&self, command: Command) {
        if self.commands.send(command).is_ok() {
            // Any number but 0 wakes the thread. Fails only if the counter is at its maximum; then the thread is awake.
            let _ = rustix::io::write(&self.wake, &[1; 8]);
        }
    }

    fn health(&self) -> Health {
        let overdue = self.heartbeat.overdue();
        let full_since = self.hanging.full_since();
        let state = match (overdue, self.heartbeat.has_ended()) {
            (Some(busy), _) => format!("busy for {} s", busy.as_secs()),
            (None, true) => "ended".to_owned(),
            (None, false) if full_since.is_some() => "all reads of processes hang".to_owned(),
            (None, false) if self.shows_processes => "live".to_owned(),
            (None, false) => "for libvirt's domains only".to_owned(),
        };
        Health {
            state,
            stale_since: overdue.map(|busy| SystemTime::now() - busy).or(full_since),
            hanging: self.hanging.list(),
        }
    }

    fn scans(&self) -> u64 {
        self.scans.load(Relaxed)
    }

    fn heartbeat(&self) -> Option<Arc<Heartbeat>> {
        Some(Arc::clone(&self.heartbeat))
    }
}

impl Drop for Procfs {
    fn drop(&mut self) {
        // Any number but 0 makes the eventfd readable. Fails only if the counter is at its maximum.
        let _ = rustix::io::write(&self.stop, &[1; 8]);
        join(&mut self.thread, "that scans processes");
    }
}

/// Parses the content of `/proc/PID/cmdline`, for the fuzzer: no bytes make it panic.
pub fn read_command_line(bytes: &[u8]) {
    drop(command_line::parse(bytes, &mut |_| None));
}

/// Parses the text of a file that QEMU is given with `-readconfig`, for the fuzzer: no bytes make it panic.
pub fn read_qemu_config(bytes: &[u8]) {
    qemu::interpret_config(bytes);
}

/// Parses the start of an image, for the fuzzer: no bytes make it panic.
pub fn read_image(bytes: &[u8]) {
    image_headers::interpret(bytes);
}

struct Worker {
    facts: Facts,
    handle: Arc<Handle>,
    poller: Poller,
    commands: Receiver<Command>,
    /// Results of header scans.
    header_reports: Receiver<image_headers::HeaderReport>,
    uevents: OwnedFd,
    events: Option<Events>,
    records: Option<Arc<Records>>,
    processes: TrackedProcesses,
    schedule: Schedule,
    /// Number of lost events of the programs at the last check.
    lost: u64,
    /// Whether uevents were lost, and the queue has not been empty since.
    are_uevents_lost: bool,
    full_scan_due: Option<Instant>,
    last_full_scan: Instant,
    /// Processes for which the kernel created an image record since the last report.
    images_claimed: BTreeSet<u32>,
}

impl Worker {
    fn run(mut self) {
        let _end = self.facts.end_guard("procfs");
        let heartbeat = Arc::clone(&self.handle.heartbeat);
        loop {
            let due = [self.schedule.next(), self.full_scan_due, self.processes.next_look()];
            let next = due.into_iter().flatten().min();
            let limit = next.map(|at| at.saturating_duration_since(Instant::now()));
            heartbeat.rest();
            let ready = match self.poller.wait(limit) {
                Ok(ready) => ready,
                Err(error) => {
                    self.facts.fail(format!("Cannot wait for events of processes: {error}"));
                    break;
                }
            };
            heartbeat.work();
            if ready.contains(&Ready::Stop) {
                break;
            }
            for ready in ready {
                match ready {
                    Ready::Events => self.take_events(),
                    Ready::Uevents => self.take_uevents(),
                    Ready::Exited(pid) => {
                        // What ended it was reported before.
                        self.take_events();
                        self.end(pid);
                    }
                    Ready::Woken => self.take_commands(),
                    Ready::Stop => {}
                }
                self.report();
            }
            self.scan_due();
            let now = Instant::now();
            for pid in self.processes.look(now) {
                self.schedule.urgent(pid, now);
            }
            self.report();
            self.report_images();
        }
        heartbeat.rest();
        heartbeat.end();
    }

    fn take_events(&mut self) {
        let now = Instant::now();
        while let Some(event) = self.events.as_mut().and_then(Events::oldest) {
            debug!(kind = event.kind, tgid = event.tgid, tid = event.tid, "event of the programs");
            match EventKind::from_u32(event.kind) {
                Some(EventKind::Exec) => self.schedule.born(event.tgid, now),
                Some(EventKind::VmExit) => self.processes.begin_end(event.tgid, false),
                Some(EventKind::VmKilled) => self.processes.begin_end(event.tgid, true),
                Some(kind @ (EventKind::ImageClaimed | EventKind::ImageDelayed)) => {
                    if kind == EventKind::ImageClaimed {
                        self.note_image(event);
                    }
                    self.schedule.urgent(event.tgid, now);
                    self.images_claimed.insert(event.tgid);
                }
                Some(EventKind::ThreadsChanged) => self.schedule.changed(event.tgid, now),
                Some(EventKind::SeenInKvm | EventKind::VcpuExit) => {
                    self.schedule.urgent(event.tgid, now);
                }
                Some(EventKind::VcpuMoved) => self.processes.suspect(event.tgid, now),
                None => {}
            }
        }
        let lost = self.events_lost();
        if lost != self.lost {
            self.lost = lost;
            self.processes.suspect_all(now);
            self.scan_all_soon(now);
        }
    }

    /// Notes the image record that the programs have claimed.
    fn note_image(&self, event: Event) {
        let (vm, slot) = (u16::try_from(event.vm_slot), u16::try_from(event.tid));
        if let (Some(records), Ok(vm), Ok(slot)) = (&self.records, vm, slot) {
            records.note_image(VmSlot(vm), ImageSlot(slot));
        }
    }

    fn take_commands(&mut self) {
        self.poller.clear_wake();
        let now = Instant::now();
        for command in self.commands.try_iter() {
            match command {
                Command::Rescan(pid) => self.schedule.born(pid, now),
                Command::ResolvePaths(pid, paths) => {
                    self.processes.set_domain_paths(pid, paths);
                    self.schedule.urgent(pid, now);
                }
                Command::Reached(fence) => self.processes.untrack_retired(fence),
                Command::Describe(_) | Command::QueryDisks(_) => {}
            }
        }
        for report in self.header_reports.try_iter() {
            for pid in self.processes.take_headers(report) {
                self.schedule.urgent(pid, now);
            }
        }
        let (returned, to_scan) = self.processes.take_returned();
        for (pid, outcome) in returned {
            self.follow(pid, outcome);
        }
        for pid in to_scan {
            self.schedule.urgent(pid, now);
        }
    }

    fn take_uevents(&mut self) {
        for _ in 0..MAX_UEVENTS {
            let now = Instant::now();
            let next = uevent::next(&self.uevents);
            debug!(?next, "uevent");
            match next {
                // The scan of all processes finds what it is about.
                Ok(Some(_)) if self.are_uevents_lost => {}
                // The uevent has the id of the thread that created the VM, which may have exited since.
                Ok(Some(Uevent::VmCreated(tid))) => {
                    self.schedule.born(self.processes.process_of(tid).unwrap_or(tid), now);
                }
                Ok(Some(Uevent::VmDestroyed(tid))) => match self.processes.process_of(tid) {
                    Some(pid) => self.schedule.urgent(pid, now),
                    None => {
                        for pid in self.processes.pids() {
                            self.schedule.urgent(pid, now);
                        }
                    }
                },
                Ok(Some(Uevent::Cpus)) => self.report_cpus(),
                Ok(None) => break,
                // One error for all that are lost until the queue is empty: netlink_overrun() in net/netlink/af_netlink.c. What
                // is lost after a scan of all processes, and before the queue is empty, would never be seen.
                Err(error) if error.raw_os_error() == Some(Errno::NOBUFS.raw_os_error()) => {
                    self.are_uevents_lost = true;
                }
                Err(error) => {
                    self.processes.warn(&format!("Uevents of KVM cannot be read: {error}"));
                    self.scan_all_soon(now);
                    return;
                }
            }
        }
        if std::mem::take(&mut self.are_uevents_lost) {
            self.processes.warn("Uevents of KVM were lost; all processes are scanned");
            self.scan_all_soon(Instant::now());
        }
    }

    fn end(&mut self, pid: u32) {
        self.schedule.forget(pid);
        self.processes.end(pid);
        // The id may be in use again already.
        if self.processes.exists(pid) {
            self.scan(pid);
        }
    }

    fn scan_due(&mut self) {
        let now = Instant::now();
        if self.full_scan_due.is_some_and(|due| due <= now) {
            self.full_scan_due = None;
            if let Err(error) = self.scan_all() {
                self.processes.warn(&format!("Cannot scan all processes: {error}"));
                self.scan_all_soon(now);
            }
        }
        for pid in self.schedule.take_due(now) {
            self.scan(pid);
        }
    }

    fn scan_all_soon(&mut self, now: Instant) {
        self.full_scan_due = Some(now.max(self.last_full_scan + FULL_SCAN_PAUSE));
    }

    fn scan_all(&mut self) -> io::Result<()> {
        self.handle.scans.fetch_add(1, Relaxed);
        self.last_full_scan = Instant::now();
        self.report_cpus();
        let mut pids = self.processes.processes()?;
        pids.extend(self.processes.pids());
        pids.sort_unstable();
        pids.dedup();
        for pid in pids {
            self.scan(pid);
        }
        Ok(())
    }

    /// Scans a process and reports what it is: in a storm, the first VM does not wait for the last.
    fn scan(&mut self, pid: u32) {
        let outcome = self.processes.scan(pid);
        self.follow(pid, outcome);
        self.report();
    }

    fn follow(&mut self, pid: u32, outcome: ScanOutcome) {
        match outcome {
            ScanOutcome::Vm { is_new, is_moving } => {
                if let Some(pidfd) = self.processes.pidfd(pid).filter(|_| is_new)
                    && let Err(error) = self.poller.add(pidfd, Ready::Exited(pid))
                {
                    warn!(pid, "Cannot watch for the end of a VM: {error}");
                }
                if is_moving {
                    self.schedule.changed(pid, Instant::now());
                }
            }
            ScanOutcome::Nothing => self.schedule.settle(pid),
            ScanOutcome::Unscanned => {
                self.schedule.settle(pid);
                self.scan_all_soon(Instant::now());
            }
        }
    }

    fn report(&mut self) {
        for fact in self.processes.take_facts() {
            self.facts.send(fact);
        }
    }

    /// Reports the images that the kernel counts, after the facts, which contain the open files of the process.
    fn report_images(&mut self) {
        for pid in std::mem::take(&mut self.images_claimed) {
            self.facts.send(Fact::ImageTaken(pid));
        }
    }

    fn report_cpus(&self) {
        self.facts.send(Fact::Cpus(TrackedProcesses::cpus()));
    }

    fn events_lost(&self) -> u64 {
        self.records.as_ref().map_or(0, |records| records.events_lost())
    }
}

impl fmt::Debug for ProbeHandles {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ProbeHandles").field("events", &self.events).finish_non_exhaustive()
    }
}
