//! VMs that show themselves in the kernel: every process that holds a KVM VM, and QEMU without KVM.
//!
//! One look at all processes at the start, or when events were lost; from then on the kernel tells. A VM that
//! is made is a uevent of KVM; a QEMU without KVM is an `exec` that the programs see; threads that come and
//! go, and threads in `KVM_RUN` that nobody took for a vCPU, are events of the programs; an end is one of the
//! programs' too, and a pidfd for when they are not there. Nothing is asked again and again: between events
//! the thread of this source sleeps without a timer.
//!
//! From the bottom up: [`process`] reads procfs, [`command_line`], [`blockdev_graph`], [`devices`], [`memory_estimate`], [`vcpus`] and
//! [`scan`] make sense of it, [`image_headers`] looks into images, [`tracked`] keeps what is known and has it counted, [`schedule`] says when what is looked at,
//! [`poller`] and [`uevent`] wake this up.

mod blockdev_graph;
mod command_line;
mod devices;
mod files;
mod image_headers;
mod memory_estimate;
mod options;
mod poller;
mod process;
mod qcow2;
mod scan;
mod schedule;
mod tracked;
mod uevent;
mod vcpus;

use std::{
    collections::BTreeSet,
    fmt, io,
    os::fd::{AsFd as _, OwnedFd},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

use crossbeam_channel::{Receiver, Sender};
use kvmeter_common::EventKind;
use thiserror::Error;
use tracing::{debug, error, warn};

use self::{
    image_headers::HeaderScanner,
    poller::{Poller, Ready},
    schedule::Schedule,
    tracked::{ScanOutcome, TrackedProcesses},
    uevent::Uevent,
};
use super::{Command, Health};
use crate::{
    counters::Records,
    counting::Tracker,
    inventory::{Fact, SourceId},
    probe::Events,
    worker::{Facts, Heartbeat},
};

/// Has VMs counted.
pub type SharedTracker = Arc<dyn Tracker + Send + Sync>;

/// Events that were lost are found by a look at everything, but not more often than this.
const FULL_PAUSE: Duration = Duration::from_secs(1);

/// A turn of this source's thread scans the processes for which there was an event.
const DEADLINE: Duration = Duration::from_secs(30);

/// The probes, as this source needs them.
pub struct ProbeHandles {
    /// What they tell.
    pub events: Events,
    /// Whether they could not tell all.
    pub records: Arc<Records>,
    /// Has VMs counted.
    pub tracker: SharedTracker,
}

/// The source as others see it: commands go in, its health comes out.
#[derive(Debug)]
pub struct Handle {
    commands: Sender<Command>,
    wake: OwnedFd,
    heartbeat: Arc<Heartbeat>,
    scans: AtomicU64,
    /// Whether VMs that belong to no domain are shown.
    shows_processes: bool,
}

/// Why this source cannot work.
#[derive(Debug, Error)]
pub enum ProcfsError {
    /// A descriptor that it needs.
    #[error("Cannot watch the host's processes: {what}")]
    Watch {
        /// What was tried.
        what: &'static str,
        /// Why not.
        source: io::Error,
    },
    /// Procfs is the source itself.
    #[error("Cannot read /proc; is it mounted, and may kvmeter see the processes of others?")]
    Procfs(#[source] io::Error),
}

/// The source at work. It ends when this is dropped.
#[derive(Debug)]
pub struct Procfs {
    stop: OwnedFd,
    thread: Option<JoinHandle<()>>,
    handle: Arc<Handle>,
}

impl Procfs {
    /// Scans all processes, reports the VMs among them, and goes on with that on a thread of its own. Without probes
    /// the VMs are listed but not counted, and those without KVM are found only at the start. `shows_processes` says
    /// whether VMs that belong to no domain are shown.
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
        let handle = Arc::new(Handle {
            commands: sender,
            wake: poller.wake_handle().map_err(failed("eventfd"))?,
            heartbeat: Arc::new(Heartbeat::new("procfs", DEADLINE)),
            scans: AtomicU64::new(0),
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
            processes: TrackedProcesses::new(tracker, headers),
            schedule: Schedule::default(),
            lost: 0,
            full_due: None,
            full_last: Instant::now(),
            images_taken: BTreeSet::new(),
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

    /// Where commands go.
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
            // Any number but 0 wakes the thread; it fails only for a counter that is full, and then the thread is awake.
            let _ = rustix::io::write(&self.wake, &[1; 8]);
        }
    }

    fn health(&self) -> Health {
        let state = match (self.heartbeat.overdue(), self.heartbeat.has_ended()) {
            (Some(busy), _) => format!("busy for {} s", busy.as_secs()),
            (None, true) => "ended".to_owned(),
            (None, false) if self.shows_processes => "live".to_owned(),
            (None, false) => "for libvirt's domains only".to_owned(),
        };
        let since = self.heartbeat.overdue().map(|busy| std::time::SystemTime::now() - busy);
        Health { state, stale_since: since }
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
        // Any number but 0 makes the descriptor readable; it fails only for a counter that is full.
        let _ = rustix::io::write(&self.stop, &[1; 8]);
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            error!("the thread that scans processes had panicked");
        }
    }
}

/// Reads a command line as `/proc/PID/cmdline` has it, for the fuzzer: any octets tell something or nothing.
pub fn read_command_line(octets: &[u8]) {
    drop(command_line::parse(octets));
}

/// Reads what an image begins with, for the fuzzer: any octets tell something or nothing.
pub fn read_image(octets: &[u8]) {
    image_headers::interpret(octets);
}

struct Worker {
    facts: Facts,
    handle: Arc<Handle>,
    poller: Poller,
    commands: Receiver<Command>,
    /// What the headers of images say.
    header_reports: Receiver<image_headers::HeaderReport>,
    uevents: OwnedFd,
    events: Option<Events>,
    records: Option<Arc<Records>>,
    processes: TrackedProcesses,
    schedule: Schedule,
    /// Events of the programs that were lost so far.
    lost: u64,
    full_due: Option<Instant>,
    full_last: Instant,
    /// Processes whose I/O on a new image the kernel has begun to count.
    images_taken: BTreeSet<u32>,
}

impl Worker {
    fn run(mut self) {
        let _end = self.facts.end_guard("procfs");
        let heartbeat = Arc::clone(&self.handle.heartbeat);
        loop {
            let next = self.schedule.next().into_iter().chain(self.full_due).min();
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
                    Ready::Exited(pid) => self.end(pid),
                    Ready::Woken => self.take_commands(),
                    Ready::Stop => {}
                }
            }
            self.scan_due();
            self.report();
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
                Some(EventKind::ImageClaimed) => {
                    self.schedule.urgent(event.tgid, now);
                    self.images_taken.insert(event.tgid);
                }
                Some(EventKind::ThreadsChanged) => self.schedule.changed(event.tgid, now),
                Some(EventKind::SeenInKvm | EventKind::VcpuExit) => {
                    self.schedule.urgent(event.tgid, now);
                }
                None => {}
            }
        }
        let lost = self.events_lost();
        if lost != self.lost {
            self.lost = lost;
            self.scan_all_soon(now);
        }
    }

    fn take_commands(&mut self) {
        self.poller.clear_wake();
        let now = Instant::now();
        for command in self.commands.try_iter() {
            match command {
                Command::Rescan(pid) => self.schedule.born(pid, now),
                Command::Reached(fence) => self.processes.untrack_retired(fence),
                Command::Describe(_) | Command::QueryDisks(_) => {}
            }
        }
        for report in self.header_reports.try_iter() {
            for pid in self.processes.take_headers(report) {
                self.schedule.urgent(pid, now);
            }
        }
    }

    fn take_uevents(&mut self) {
        loop {
            let now = Instant::now();
            let next = uevent::next(&self.uevents);
            debug!(?next, "uevent");
            match next {
                // It is the thread that made the VM, and that may be gone by the end.
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
                Ok(None) => return,
                Err(error) => {
                    // ENOBUFS is one error for all that was lost.
                    warn!("Uevents of KVM were lost ({error}); looking at all processes");
                    self.scan_all_soon(now);
                    return;
                }
            }
        }
    }

    fn end(&mut self, pid: u32) {
        self.schedule.forget(pid);
        self.processes.end(pid);
        // The id may have a new owner already.
        self.scan(pid);
    }

    fn scan_due(&mut self) {
        let now = Instant::now();
        if self.full_due.is_some_and(|due| due <= now) {
            self.full_due = None;
            if let Err(error) = self.scan_all() {
                warn!("Cannot look at all processes: {error}");
            }
        }
        for pid in self.schedule.take_due(now) {
            self.scan(pid);
        }
    }

    fn scan_all_soon(&mut self, now: Instant) {
        self.full_due = Some(now.max(self.full_last + FULL_PAUSE));
    }

    fn scan_all(&mut self) -> io::Result<()> {
        self.handle.scans.fetch_add(1, Relaxed);
        self.full_last = Instant::now();
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

    fn scan(&mut self, pid: u32) {
        match self.processes.scan(pid) {
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
        }
    }

    fn report(&mut self) {
        for fact in self.processes.take_facts() {
            self.facts.send(fact);
        }
        // After the facts: the files that the process has open are known.
        for pid in std::mem::take(&mut self.images_taken) {
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
