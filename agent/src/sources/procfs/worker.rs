//! The source's thread: takes events, decides which process is scanned, and reports what the scans find.

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    sync::{Arc, atomic::Ordering::Relaxed},
    time::{Duration, Instant},
};

use crossbeam_channel::Receiver;
use kvmeter_common::{Event, EventKind};
use tracing::{debug, warn};

use super::{
    Handle, image_headers,
    pace::Pace,
    poller::{Poller, Ready},
    process,
    readers::cpu_time,
    schedule::Schedule,
    shares::Shares,
    tracked::{Payer, ScanOutcome, TrackedProcesses},
    uevent_reader::UeventReader,
    warnings::WarningLimit,
};
use crate::{
    account::Account,
    counters::{ImageSlot, Records, VmSlot, since_boot_ns},
    inventory::Fact,
    probe::Events,
    sources::Command,
    worker::Facts,
};

/// Shortest interval between two full scans after events were lost.
const FULL_SCAN_PAUSE: Duration = Duration::from_secs(1);

/// What a report about a VM costs the other threads: the view, the counting, notifications.
const REPORT: Duration = Duration::from_millis(1);

/// For how long processes of users are scanned before the agent serves, whatever their shares. It is enough for a thousand VMs;
/// what is left is scanned as the shares allow. systemd waits 90 s for the start.
const FIRST_SCANS: Duration = Duration::from_secs(5);

/// For how long the programs' word is waited for after the end of a VM's process: it tells whether a signal has ended the
/// process. It comes before the end, but the ring gives it away only after each earlier event has been written in full.
const LAST_WORD: Duration = Duration::from_millis(50);

pub(super) struct Worker {
    pub(super) facts: Facts,
    pub(super) handle: Arc<Handle>,
    pub(super) poller: Poller,
    pub(super) commands: Receiver<Command>,
    /// Results of header scans.
    pub(super) header_reports: Receiver<image_headers::HeaderReport>,
    pub(super) uevents: UeventReader,
    pub(super) events: Option<Events>,
    pub(super) records: Option<Arc<Records>>,
    pub(super) processes: TrackedProcesses,
    pub(super) schedule: Schedule,
    pub(super) pace: Pace,
    pub(super) shares: Shares,
    /// VMs whose processes have ended, each with the end of the wait for the programs' word.
    pub(super) ended: BTreeMap<u32, Instant>,
    pub(super) warnings: WarningLimit,
    /// Number of lost events of the programs at the last check.
    pub(super) lost: u64,
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
            heartbeat.rest();
            let rested = match self.pace.turn(Instant::now()) {
                Some(length) => self.poller.rest(length),
                None => Ok(()),
            };
            let limit = self.next().map(|at| at.saturating_duration_since(Instant::now()));
            let ready = match rested.and_then(|()| self.poller.wait(limit)) {
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
                        self.exited(pid);
                    }
                    Ready::Woken => self.take_commands(),
                    Ready::Stop => {}
                }
                self.report();
            }
            for pid in self.processes.take_waiting() {
                self.schedule.urgent(pid, Instant::now());
            }
            self.work_off_returned();
            self.scan_due();
            let now = Instant::now();
            for pid in self.processes.look(now) {
                self.schedule.urgent(pid, now);
            }
            self.report();
            self.report_all_scanned();
        }
        heartbeat.rest();
        heartbeat.end();
    }

    /// When something is to be done next; `None` = when something happens.
    fn next(&self) -> Option<Instant> {
        let ended = self.ended.values().min().copied();
        let look = self.processes.next_look();
        let returned = self.processes.has_returned().then(Instant::now);
        let round = self.processes.next_round();
        let others = [self.full_scan_due, self.shares.next(), look, ended, returned, round];
        self.schedule.next().into_iter().chain(others.into_iter().flatten()).min()
    }

    fn take_events(&mut self) {
        let now = Instant::now();
        while let Some(event) = self.events.as_mut().and_then(Events::oldest) {
            debug!(kind = event.kind, tgid = event.tgid, tid = event.tid, "event of the programs");
            match EventKind::from_u32(event.kind) {
                Some(EventKind::Exec) => self.schedule.started(event.tgid, now),
                Some(EventKind::VmExit) => self.processes.begin_end(event.tgid, false),
                Some(EventKind::VmKilled) => self.processes.begin_end(event.tgid, true),
                Some(
                    kind @ (EventKind::ImageClaimed
                    | EventKind::ImageDelayed
                    | EventKind::Submitted),
                ) => {
                    if kind == EventKind::ImageClaimed {
                        self.note_image(event);
                    }
                    self.schedule.urgent(event.tgid, now);
                    self.images_claimed.insert(event.tgid);
                }
                Some(EventKind::ThreadsChanged) => self.changed(event.tgid, now),
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
            // What they said of images is not said again.
            self.images_claimed.extend(self.processes.pids());
            self.scan_all_soon(now);
        }
    }

    /// The threads of a process have changed.
    fn changed(&mut self, pid: u32, now: Instant) {
        match self.processes.payer(pid, now) {
            Ok(Payer::Host) => self.schedule.changed_on_host(pid, now),
            // A share limits its scans; if it is not known now, the scan asks again.
            Ok(Payer::Account(_) | Payer::Gone) | Err(_) => self.schedule.changed(pid, now),
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
                Command::Entrust(pid, start) => {
                    if self.processes.entrust(pid, start) {
                        self.schedule.urgent(pid, now);
                    }
                }
                Command::Describe(_) | Command::QueryDisks(_) => {}
            }
        }
        for report in self.header_reports.try_iter() {
            for pid in self.processes.take_headers(report) {
                self.schedule.urgent(pid, now);
            }
        }
        for pid in self.processes.take_returned() {
            self.schedule.urgent(pid, now);
        }
        for (account, cost) in self.processes.take_late_costs() {
            self.shares.charge(account, cost, now);
        }
    }

    /// Works off the result of one late read: an event of another process may have come meanwhile.
    fn work_off_returned(&mut self) {
        let before = cpu_time();
        let Some((pid, outcome, is_to_be_scanned)) = self.processes.next_returned() else { return };
        if let Some(outcome) = outcome {
            self.follow(pid, outcome);
        }
        let reports = self.report();
        let cost = cpu_time().saturating_sub(before) + REPORT * reports;
        let now = Instant::now();
        if is_to_be_scanned {
            self.schedule.urgent(pid, now);
        }
        if let Ok(Payer::Account(account)) = self.processes.payer(pid, now) {
            self.shares.charge(account, cost, now);
        }
    }

    fn take_uevents(&mut self) {
        let news = self.uevents.take();
        debug!(?news, "uevents");
        if news.has_cpus {
            self.report_cpus();
        }
        let now = Instant::now();
        for tid in news.created {
            // The uevent has the id of the thread that created the VM, which may have exited since.
            let pid = self.processes.process_of(tid);
            if let Some(pid) = pid {
                self.processes.note_creator(tid, pid);
            }
            self.schedule.born(pid.unwrap_or(tid), now);
        }
        for tid in news.destroyed {
            if let Some(pid) = self.processes.creator(tid, now) {
                self.schedule.urgent(pid, now);
            }
        }
        if let Some(error) = news.error {
            self.processes.warn(&format!("Uevents of KVM cannot be read: {error}"));
            self.scan_all_soon(now);
        }
        if news.are_lost {
            self.processes.warn("Uevents of KVM were lost; all processes are scanned");
            self.scan_all_soon(now);
        }
    }

    /// Handles that the process of a VM has ended.
    fn exited(&mut self, pid: u32) {
        if self.events.is_none() || self.processes.is_ending(pid) {
            self.end(pid);
            return;
        }
        // Its descriptor stays readable.
        let removed = self.processes.pidfd(pid).map(|pidfd| self.poller.remove(pidfd));
        if let Some(Err(error)) = removed {
            debug!(pid, "the descriptor of an ended process is not watched: {error}");
        }
        self.ended.insert(pid, Instant::now() + LAST_WORD);
    }

    fn end(&mut self, pid: u32) {
        self.ended.remove(&pid);
        self.forget(pid);
        self.processes.end(pid);
        // The id may be in use again already.
        if self.processes.exists(pid) {
            self.schedule.urgent(pid, Instant::now());
        }
    }

    /// Forgets what was to be done about a process, but for its end.
    fn forget(&mut self, pid: u32) {
        self.schedule.forget(pid);
        self.images_claimed.remove(&pid);
    }

    fn scan_due(&mut self) {
        let now = Instant::now();
        for pid in
            self.ended.extract_if(.., |_, due| *due <= now).collect::<BTreeMap<_, _>>().into_keys()
        {
            self.end(pid);
            self.report();
        }
        if self.full_scan_due.is_some_and(|due| due <= now) {
            self.full_scan_due = None;
            match self.list_all() {
                Ok(pids) => pids.into_iter().for_each(|pid| self.schedule.urgent(pid, now)),
                Err(error) => {
                    self.processes.failed("Cannot scan all processes", &error);
                    self.scan_all_soon(now);
                }
            }
        }
        for pid in self.processes.take_round(now) {
            self.changed(pid, now);
        }
        let mut has_waiting = false;
        for pid in self.schedule.take_due(now) {
            let before = cpu_time();
            match self.processes.payer(pid, now) {
                Ok(Payer::Gone) => {
                    // The end of a VM is reported otherwise.
                    self.forget(pid);
                    self.processes.retire_unclear(pid);
                }
                Ok(Payer::Account(account)) => {
                    self.wait(account, pid, now);
                    self.shares.charge(account, cpu_time().saturating_sub(before), now);
                    has_waiting = true;
                }
                Ok(Payer::Host) => drop(self.scan(pid)),
                Err(error) => self.put_off(pid, &error),
            }
        }
        // One with a share in each turn: an event of another process may have come meanwhile.
        if let Some((account, pid)) = self.shares.take(now) {
            let cost = self.scan_waiting(pid);
            self.shares.charge_scan(account, cost, Instant::now());
            has_waiting = true;
        }
        if has_waiting {
            self.show_spent();
        }
    }

    /// Has a process scanned when its share allows.
    fn wait(&mut self, account: Account, pid: u32, now: Instant) {
        let processes = &mut self.processes;
        self.shares.wait(account, pid, now, |pid| {
            let has_ended = !process::is_there(pid);
            if has_ended {
                processes.retire_unclear(pid);
            }
            has_ended
        });
    }

    /// Has a process scanned later: the agent lacks what it needs to find out whose it is.
    fn put_off(&mut self, pid: u32, error: &io::Error) {
        self.processes.failed(&format!("Cannot find out whose process {pid} is"), error);
        self.follow(pid, ScanOutcome::Unscanned);
    }

    /// Scans a process that has waited, unless it has ended. Returns what that has cost.
    fn scan_waiting(&mut self, pid: u32) -> Duration {
        if process::is_there(pid) {
            return self.scan(pid);
        }
        self.processes.retire_unclear(pid);
        Duration::ZERO
    }

    /// Shows the accounts whose share is spent.
    fn show_spent(&mut self) {
        for (account, spent) in self.shares.take_changed() {
            if spent.is_some_and(|spent| spent.waiting > 0) && self.warnings.allows() {
                warn!(
                    %account,
                    "Scans of a user's or container's processes cost too much, and wait; `kvmeter status` lists whose"
                );
            }
            let mut shown = self.handle.spent();
            match spent {
                Some(spent) => drop(shown.insert(account, spent)),
                None => drop(shown.remove(&account)),
            }
        }
    }

    fn scan_all_soon(&mut self, now: Instant) {
        self.full_scan_due = Some(now.max(self.last_full_scan + FULL_SCAN_PAUSE));
    }

    /// Scans the processes that are there at the start: all that the host pays for, and those of users for [`FIRST_SCANS`], one of each
    /// user in turn. What is left waits for its share.
    pub(super) fn scan_first(&mut self) -> io::Result<()> {
        let pids = self.list_all()?;
        self.processes.note_listed(&pids, since_boot_ns());
        let now = Instant::now();
        for pid in pids {
            match self.processes.payer(pid, now) {
                Ok(Payer::Gone) => self.processes.retire_unclear(pid),
                Ok(Payer::Host) => drop(self.scan(pid)),
                Ok(Payer::Account(account)) => self.wait(account, pid, now),
                Err(error) => self.put_off(pid, &error),
            }
        }
        let end = Instant::now() + FIRST_SCANS;
        while Instant::now() < end
            && let Some((_, pid)) = self.shares.take_any()
        {
            self.scan_waiting(pid);
        }
        self.processes.retire_unknown();
        self.report();
        Ok(())
    }

    /// The processes that are or may be VMs.
    fn list_all(&mut self) -> io::Result<Vec<u32>> {
        self.handle.scans.fetch_add(1, Relaxed);
        self.last_full_scan = Instant::now();
        self.report_cpus();
        let mut pids = self.processes.processes()?;
        pids.extend(self.processes.pids());
        pids.extend(self.processes.unclear_pids());
        pids.sort_unstable();
        pids.dedup();
        Ok(pids)
    }

    /// Scans a process and reports what it is: in a storm, the first VM does not wait for the last. Returns what that has cost.
    fn scan(&mut self, pid: u32) -> Duration {
        let before = cpu_time();
        let outcome = self.processes.scan(pid);
        self.follow(pid, outcome);
        let mut reports = self.report();
        // After the facts, which contain the open files of the process.
        if self.images_claimed.remove(&pid) {
            self.facts.send(Fact::ImageTaken(pid));
            reports += 1;
        }
        let own = cpu_time().saturating_sub(before);
        own + self.processes.take_cost() + REPORT * reports
    }

    fn follow(&mut self, pid: u32, outcome: ScanOutcome) {
        match outcome {
            ScanOutcome::Vm { is_new, is_moving } => {
                if is_new {
                    // What has ended was another process.
                    self.ended.remove(&pid);
                }
                if let Some(pidfd) = self.processes.pidfd(pid).filter(|_| is_new)
                    && let Err(error) = self.poller.add(pidfd, Ready::Exited(pid))
                {
                    warn!(pid, "Cannot watch for the end of a VM: {error}");
                }
                if is_moving {
                    self.changed(pid, Instant::now());
                }
            }
            ScanOutcome::Nothing => self.schedule.settle(pid),
            ScanOutcome::Unscanned => {
                self.schedule.settle(pid);
                self.scan_all_soon(Instant::now());
            }
        }
    }

    /// Reports the facts. Returns their number.
    pub(super) fn report(&mut self) -> u32 {
        let mut reports = 0;
        for fact in self.processes.take_facts() {
            self.facts.send(fact);
            reports += 1;
        }
        reports
    }

    /// Reports once that the processes that were there at the start have been scanned.
    pub(super) fn report_all_scanned(&mut self) {
        if self.processes.take_all_scanned() {
            self.facts.send(Fact::ProcessesScanned);
        }
    }

    fn report_cpus(&mut self) {
        match TrackedProcesses::cpus() {
            Ok(cpus) => self.facts.send(Fact::Cpus(cpus)),
            Err(error) => {
                self.processes.failed("Cannot list the CPUs", &error);
                self.scan_all_soon(Instant::now());
            }
        }
    }

    pub(super) fn events_lost(&self) -> u64 {
        self.records.as_ref().map_or(0, |records| records.events_lost())
    }
}

#[cfg(test)]
mod tests {
    use std::{os::unix::process::CommandExt as _, process};

    use super::{
        super::{Procfs, test_child::TestChild},
        *,
    };
    use crate::sources::Source as _;

    fn worker() -> Worker {
        let facts =
            Facts::new(crossbeam_channel::unbounded().0, tokio::sync::mpsc::unbounded_channel().0);
        Procfs::worker(facts, None, true).unwrap()
    }

    /// A process of a user.
    struct OfUser(TestChild, Account);

    impl OfUser {
        fn start() -> Self {
            let own = rustix::process::geteuid().as_raw();
            let user = if own == 0 { 1000 } else { own };
            let mut command = process::Command::new("sleep");
            let child = command.arg("120").uid(user).spawn().unwrap();
            Self(TestChild(child), Account::User(user))
        }
    }

    #[test]
    fn scans_that_libvirts_reports_cause_have_the_share_of_the_processs_user() {
        let mut worker = worker();
        let OfUser(child, account) = &OfUser::start();
        let pid = child.id();
        for command in [Command::Rescan(pid), Command::ResolvePaths(pid, Arc::default())] {
            worker.shares.charge(*account, Duration::from_secs(60), Instant::now());
            worker.handle.command(command);
            worker.take_commands();
            worker.scan_due();
            let spent = worker.handle.health().spent;
            let [spent] = spent[..] else { panic!("{spent:?}") };
            assert_eq!((spent.account, spent.waiting), (*account, 1));
        }
    }
}
