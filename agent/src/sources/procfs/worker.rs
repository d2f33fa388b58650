//! The source's thread: takes events, decides which process is scanned, and reports what the scans find.

use std::{
    collections::BTreeSet,
    io,
    os::fd::OwnedFd,
    sync::{Arc, atomic::Ordering::Relaxed},
    time::{Duration, Instant},
};

use crossbeam_channel::Receiver;
use kvmeter_common::{Event, EventKind};
use rustix::io::Errno;
use tracing::{debug, warn};

use super::{
    Handle, image_headers,
    poller::{Poller, Ready},
    schedule::Schedule,
    tracked::{ScanOutcome, TrackedProcesses},
    uevent::{self, Uevent},
};
use crate::{
    counters::{ImageSlot, Records, VmSlot},
    inventory::Fact,
    probe::Events,
    sources::Command,
    worker::Facts,
};

/// Shortest interval between two full scans after events were lost.
const FULL_SCAN_PAUSE: Duration = Duration::from_secs(1);

/// Most uevents that are read in one turn: in a flood of them, the processes with an event are scanned between two turns.
const MAX_UEVENTS: usize = 10_000;

pub(super) struct Worker {
    pub(super) facts: Facts,
    pub(super) handle: Arc<Handle>,
    pub(super) poller: Poller,
    pub(super) commands: Receiver<Command>,
    /// Results of header scans.
    pub(super) header_reports: Receiver<image_headers::HeaderReport>,
    pub(super) uevents: OwnedFd,
    pub(super) events: Option<Events>,
    pub(super) records: Option<Arc<Records>>,
    pub(super) processes: TrackedProcesses,
    pub(super) schedule: Schedule,
    /// Number of lost events of the programs at the last check.
    pub(super) lost: u64,
    /// Whether uevents were lost, and the queue has not been empty since.
    pub(super) are_uevents_lost: bool,
    pub(super) full_scan_due: Option<Instant>,
    pub(super) last_full_scan: Instant,
    /// Processes for which the kernel created an image record since the last report.
    pub(super) images_claimed: BTreeSet<u32>,
}

impl Worker {
    pub(super) fn run(mut self) {
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

    pub(super) fn scan_all(&mut self) -> io::Result<()> {
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

    pub(super) fn report(&mut self) {
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

    pub(super) fn events_lost(&self) -> u64 {
        self.records.as_ref().map_or(0, |records| records.events_lost())
    }
}
