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
//! is read; [`readers`] are the threads that do so;
//! [`accounts`] tells on whose account a process is, by its [`namespaces`] and the [`subordinate_ids`]; [`image_headers`] reads the headers of images,
//! [`header_scans`] decides which and [`header_slots`] how many at once; [`plugged`] finds disks
//! that no option names; [`tracked`] keeps the known VMs and registers them for counting; [`pauses`] and [`vcpu_states`] see whether they run;
//! [`schedule`] decides when a process is scanned, [`shares`] how much that may cost; [`pace`], [`poller`] and [`uevent_reader`] wait for
//! events; [`worker`] is the thread that does all this; [`warnings`] keeps the log short.

mod accounts;
mod cloud_hypervisor;
mod command_line;
mod credentials;
mod descriptors;
mod devices;
mod disk_paths;
mod files;
mod header_scans;
mod header_slots;
mod image_headers;
mod machine;
mod memory_estimate;
mod mounts;
mod named_file;
mod namespaces;
mod options;
mod pace;
mod path_walk;
mod pauses;
mod plugged;
mod poller;
mod presence;
mod process;
mod qcow2;
mod qemu;
mod readers;
mod scan;
mod schedule;
mod shares;
mod shortage;
mod subordinate_ids;
mod taps;
mod temporary_overlays;
#[cfg(test)]
mod test_child;
mod threads;
mod tracked;
mod uevent;
mod uevent_reader;
mod vcpu_states;
mod vcpus;
mod warnings;
mod worker;

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt, io,
    os::fd::{AsFd as _, OwnedFd},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    thread::JoinHandle,
    time::{Duration, Instant, SystemTime},
};

use crossbeam_channel::Sender;
use thiserror::Error;

use self::{
    image_headers::HeaderScanner,
    pace::Pace,
    poller::{Poller, Ready},
    readers::{Hanging, Readers},
    scan::Roots,
    schedule::Schedule,
    shares::Shares,
    shortage::Shortages,
    tracked::TrackedProcesses,
    uevent_reader::UeventReader,
    warnings::WarningLimit,
    worker::Worker,
};
use super::{Command, Health, Spent};
use crate::{
    account::Account,
    counters::Records,
    counting::Tracker,
    heartbeat::Heartbeat,
    inventory::{Fact, SourceId},
    probe::Events,
    worker::{Facts, join},
};

/// The tracker, shared between threads.
pub type SharedTracker = Arc<dyn Tracker + Send + Sync>;

/// Deadline for one turn of this source's thread, which scans the processes with an event.
const DEADLINE: Duration = Duration::from_secs(30);

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
    /// Accounts whose share of scans was spent.
    spent: Mutex<BTreeMap<Account, Spent>>,
    /// Lines that were left out of the log.
    left_out: Arc<AtomicU64>,
    /// What the agent lacks to read processes.
    shortages: Arc<Shortages>,
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
    /// Scans the processes, reports the VMs among them, and starts the thread of the source. Processes of users that take long are
    /// scanned by that. Without probes, VMs are
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
        let mut worker = Self::worker(facts, probes, shows_processes)?;
        let failed = |what| move |source| ProcfsError::Watch { what, source };
        let stop = worker.poller.stop_handle().map_err(failed("eventfd"))?;
        let handle = Arc::clone(&worker.handle);
        subordinate_ids::refresh();
        worker.scan_first().map_err(ProcfsError::Procfs)?;
        worker.facts.send(Fact::ProcessesListed);
        worker.report_all_scanned();
        let thread = std::thread::Builder::new()
            .name("procfs".to_owned())
            .spawn(move || worker.run())
            .map_err(failed("a thread"))?;
        Ok(Self { stop, thread: Some(thread), handle })
    }

    /// The work of the source's thread, which has scanned nothing yet.
    fn worker(
        facts: Facts,
        probes: Option<ProbeHandles>,
        shows_processes: bool,
    ) -> Result<Worker, ProcfsError> {
        let failed = |what| move |source| ProcfsError::Watch { what, source };
        let poller = Poller::new().map_err(failed("epoll"))?;
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
            spent: Mutex::default(),
            left_out: Arc::default(),
            shortages: Arc::default(),
            shows_processes,
        });
        let wake = poller.wake_handle().map_err(failed("eventfd"))?;
        let (headers, header_reports) = HeaderScanner::new(wake);
        let stop_uevents = poller.stop_handle().map_err(failed("eventfd"))?;
        let uevents =
            UeventReader::start(stop_uevents, &facts).map_err(failed("the reader of uevents"))?;
        poller.add(uevents.ready(), Ready::Uevents).map_err(failed("uevents"))?;
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
            processes: TrackedProcesses::new(
                tracker,
                headers,
                roots,
                readers,
                Arc::clone(&handle.left_out),
                Arc::clone(&handle.shortages),
            ),
            schedule: Schedule::default(),
            pace: Pace::default(),
            shares: Shares::default(),
            ended: BTreeMap::new(),
            warnings: WarningLimit::default(),
            lost: 0,
            full_scan_due: None,
            last_full_scan: Instant::now(),
            images_claimed: BTreeSet::new(),
        };
        worker.lost = worker.events_lost();
        Ok(worker)
    }

    /// The interface for other threads.
    #[must_use]
    pub fn handle(&self) -> Arc<Handle> {
        Arc::clone(&self.handle)
    }
}

impl Handle {
    fn spent(&self) -> MutexGuard<'_, BTreeMap<Account, Spent>> {
        // Each change is one call that leaves it whole.
        self.spent.lock().unwrap_or_else(PoisonError::into_inner)
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
        let now = Instant::now();
        let state = match (overdue, self.heartbeat.has_ended()) {
            (Some(busy), _) => format!("busy for {} s", busy.as_secs()),
            (None, true) => "ended".to_owned(),
            (None, false) if full_since.is_some() => "all reads of processes hang".to_owned(),
            (None, false) if let Some(error) = self.shortages.of_late(now) => {
                format!("could not read processes in the last minute: {error}")
            }
            (None, false) if self.shows_processes => "live".to_owned(),
            (None, false) => "for libvirt's domains only".to_owned(),
        };
        Health {
            state,
            stale_since: overdue
                .map(|busy| SystemTime::now() - busy)
                .or(full_since)
                .or_else(|| self.shortages.since(now)),
            hanging: self.hanging.list(),
            spent: self.spent().values().copied().collect(),
            left_out: self.left_out.load(Relaxed),
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

impl fmt::Debug for ProbeHandles {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ProbeHandles").field("events", &self.events).finish_non_exhaustive()
    }
}
