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
    fmt, io,
    os::fd::{AsFd as _, OwnedFd},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

use crossbeam_channel::Receiver;
use kvmeter_common::EventKind;
use thiserror::Error;
use tracing::{debug, error, warn};

use self::{
    image_headers::HeaderScanner,
    poller::{Poller, Ready},
    schedule::Schedule,
    tracked::{Found, Machines},
    uevent::Uevent,
};
use crate::{counters::Records, counting::Tracker, inventory::Assembly, probe::Events};

/// Has VMs counted.
pub type SharedTracker = Arc<dyn Tracker + Send + Sync>;

/// Events that were lost are found by a look at everything, but not more often than this.
const FULL_PAUSE: Duration = Duration::from_secs(1);

/// The probes, as this source needs them.
pub struct Counted {
    /// What they tell.
    pub events: Events,
    /// Whether they could not tell all.
    pub records: Arc<Records>,
    /// Has VMs counted.
    pub tracker: SharedTracker,
}

/// What this source has done, for the status.
#[derive(Debug, Default)]
pub struct Statistics {
    /// Looks at all processes.
    pub scans: AtomicU64,
    /// Whether the source's thread has ended.
    pub ended: AtomicBool,
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
    statistics: Arc<Statistics>,
}

impl Procfs {
    /// Looks at all processes, publishes the VMs among them, and goes on with that on a thread of its own.
    /// Without probes the VMs are listed but not counted, and those without KVM are found only at the start.
    ///
    /// # Errors
    ///
    /// [`ProcfsError`]
    pub fn start(assembly: Arc<Assembly>, counted: Option<Counted>) -> Result<Self, ProcfsError> {
        let failed = |what| move |source| ProcfsError::Watch { what, source };
        let watch = Poller::new().map_err(failed("epoll"))?;
        let stop = watch.stop_handle().map_err(failed("eventfd"))?;
        let (sender, asked) = crossbeam_channel::unbounded();
        let wake = watch.wake_handle().map_err(failed("eventfd"))?;
        assembly.look_by(move |pid| {
            if sender.send(pid).is_ok() {
                // Any number but 0 wakes it; it fails only for a counter that is full, and then it is awake.
                let _ = rustix::io::write(&wake, &[1; 8]);
            }
        });
        let wake = watch.wake_handle().map_err(failed("eventfd"))?;
        let (headers, told) = HeaderScanner::new(wake);
        let uevents = uevent::open().map_err(failed("the netlink socket of uevents"))?;
        watch.add(uevents.as_fd(), Ready::Uevents).map_err(failed("uevents"))?;
        let (events, records, tracker) = match counted {
            Some(Counted { events, records, tracker }) => {
                (Some(events), Some(records), Some(tracker))
            }
            None => (None, None, None),
        };
        if let Some(events) = &events {
            watch.add(events.as_fd(), Ready::Events).map_err(failed("the programs' events"))?;
        }
        let statistics = Arc::new(Statistics::default());
        let mut source = Source {
            assembly,
            watch,
            asked,
            told,
            uevents,
            events,
            records,
            machines: Machines::new(tracker, headers),
            schedule: Schedule::default(),
            statistics: Arc::clone(&statistics),
            cpus: Machines::cpus(),
            lost: 0,
            full_due: None,
            full_last: Instant::now(),
            image_taken: false,
        };
        source.lost = source.events_lost();
        source.look_at_all().map_err(ProcfsError::Procfs)?;
        source.machines.retire_unknown();
        source.publish();
        let thread = std::thread::Builder::new()
            .name("inventory".to_owned())
            .spawn(move || source.run())
            .map_err(failed("a thread"))?;
        Ok(Self { stop, thread: Some(thread), statistics })
    }

    /// What it has done so far.
    #[must_use]
    pub fn statistics(&self) -> Arc<Statistics> {
        Arc::clone(&self.statistics)
    }
}

impl Drop for Procfs {
    fn drop(&mut self) {
        // Any number but 0 makes the descriptor readable; it fails only for a counter that is full.
        let _ = rustix::io::write(&self.stop, &[1; 8]);
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            error!("the thread of the inventory had panicked");
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

struct Source {
    assembly: Arc<Assembly>,
    watch: Poller,
    /// Processes that somebody wants looked at.
    asked: Receiver<u32>,
    /// What images tell of themselves.
    told: Receiver<image_headers::HeaderReport>,
    uevents: OwnedFd,
    events: Option<Events>,
    records: Option<Arc<Records>>,
    machines: Machines,
    schedule: Schedule,
    statistics: Arc<Statistics>,
    cpus: Vec<u32>,
    lost: u64,
    full_due: Option<Instant>,
    full_last: Instant,
    /// There are images of which nobody has been told.
    image_taken: bool,
}

impl Source {
    fn run(mut self) {
        loop {
            let settle = self.assembly.due();
            let next = [self.schedule.next(), self.full_due, settle].into_iter().flatten().min();
            let limit = next.map(|at| at.saturating_duration_since(Instant::now()));
            let ready = match self.watch.wait(limit) {
                Ok(ready) => ready,
                Err(error) => {
                    error!(
                        "Cannot wait for events of VMs: {error}; the VMs stay as they are known"
                    );
                    break;
                }
            };
            if ready.contains(&Ready::Stop) {
                break;
            }
            for ready in ready {
                match ready {
                    Ready::Events => self.take_events(),
                    Ready::Uevents => self.take_uevents(),
                    Ready::Exited(pid) => self.end(pid),
                    Ready::Woken => self.take_asked(),
                    Ready::Stop => {}
                }
            }
            self.look_at_due();
            self.publish();
            if std::mem::take(&mut self.image_taken) {
                self.assembly.image_taken();
            }
            if settle.is_some_and(|settle| settle <= Instant::now()) {
                self.assembly.settle();
            }
        }
        self.statistics.ended.store(true, Relaxed);
    }

    fn take_events(&mut self) {
        let now = Instant::now();
        while let Some(event) = self.events.as_mut().and_then(Events::oldest) {
            debug!(kind = event.kind, tgid = event.tgid, tid = event.tid, "event of the programs");
            match EventKind::from_u32(event.kind) {
                Some(EventKind::Exec) => self.schedule.born(event.tgid, now),
                Some(EventKind::VmExit) => self.machines.begin_end(event.tgid),
                Some(EventKind::VmKilled) => {
                    self.machines.begin_end(event.tgid);
                    self.assembly.crashed(event.tgid);
                }
                Some(EventKind::ImageClaimed) => {
                    self.schedule.urgent(event.tgid, now);
                    self.image_taken = true;
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
            self.look_at_all_soon(now);
        }
    }

    fn take_asked(&mut self) {
        self.watch.clear_wake();
        let now = Instant::now();
        for pid in self.asked.try_iter() {
            self.schedule.born(pid, now);
        }
        for told in self.told.try_iter() {
            for pid in self.machines.take_headers(told) {
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
                    self.schedule.born(self.machines.process_of(tid).unwrap_or(tid), now);
                }
                Ok(Some(Uevent::VmDestroyed(tid))) => match self.machines.process_of(tid) {
                    Some(pid) => self.schedule.urgent(pid, now),
                    None => {
                        for pid in self.machines.pids() {
                            self.schedule.urgent(pid, now);
                        }
                    }
                },
                Ok(Some(Uevent::Cpus)) => self.cpus = Machines::cpus(),
                Ok(None) => return,
                Err(error) => {
                    // ENOBUFS is one error for all that was lost.
                    warn!("Uevents of KVM were lost ({error}); looking at all processes");
                    self.look_at_all_soon(now);
                    return;
                }
            }
        }
    }

    fn end(&mut self, pid: u32) {
        self.schedule.forget(pid);
        self.machines.end(pid);
        // The id may have a new owner already.
        self.look(pid);
    }

    fn look_at_due(&mut self) {
        let now = Instant::now();
        if self.full_due.is_some_and(|due| due <= now) {
            self.full_due = None;
            if let Err(error) = self.look_at_all() {
                warn!("Cannot look at all processes: {error}");
            }
        }
        for pid in self.schedule.take_due(now) {
            self.look(pid);
        }
    }

    fn look_at_all_soon(&mut self, now: Instant) {
        self.full_due = Some(now.max(self.full_last + FULL_PAUSE));
    }

    fn look_at_all(&mut self) -> io::Result<()> {
        self.statistics.scans.fetch_add(1, Relaxed);
        self.full_last = Instant::now();
        self.cpus = Machines::cpus();
        let mut pids = self.machines.processes()?;
        pids.extend(self.machines.pids());
        pids.sort_unstable();
        pids.dedup();
        for pid in pids {
            self.look(pid);
        }
        Ok(())
    }

    fn look(&mut self, pid: u32) {
        match self.machines.look(pid) {
            Found::Vm { is_new, is_moving } => {
                if let Some(pidfd) = self.machines.pidfd(pid).filter(|_| is_new)
                    && let Err(error) = self.watch.add(pidfd, Ready::Exited(pid))
                {
                    warn!(pid, "Cannot watch for the end of a VM: {error}");
                }
                if is_moving {
                    self.schedule.changed(pid, Instant::now());
                }
            }
            Found::Nothing => self.schedule.settle(pid),
        }
    }

    /// Readers see the new view before the slots of what is gone are free for others.
    fn publish(&mut self) {
        self.assembly.set_processes(self.machines.vms(), self.cpus.clone());
        self.machines.untrack_retired();
    }

    fn events_lost(&self) -> u64 {
        self.records.as_ref().map_or(0, |records| records.events_lost())
    }
}

impl fmt::Debug for Counted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Counted").field("events", &self.events).finish_non_exhaustive()
    }
}
