//! What the source of processes reports, and the rows of processes that are no domain's.

use std::{sync::Arc, time::Duration};

use super::{
    AdminState, Core, CountingReport, Now, OperState, Output, VcpuState, VmProcess, VmUuid,
    indexes::Identity, state::LATE,
};

/// A process that may be the one of a domain that libvirt is about to report as started is shown as that domain or, after
/// [`LATE`], in a row of its own. libvirt is asked about the domain before, after this time.
const ASK: Duration = Duration::from_millis(500);

/// A process that is a VM.
#[derive(Debug)]
pub(super) struct KnownProcess {
    pub(super) process: Arc<VmProcess>,
    /// The VM that it is; `None` = it is not shown.
    pub(super) vm: Option<Identity>,
    pub(super) wait: Wait,
    pub(super) vcpus: VcpuState,
    /// It was there before the agent.
    is_old: bool,
}

impl KnownProcess {
    /// vmAdminState and vmOperState of a VM that is no domain.
    pub(super) fn states(&self) -> (AdminState, OperState) {
        match self.vcpus {
            VcpuState::Unknown if self.process.starts_stopped => {
                (AdminState::Paused, OperState::Paused)
            }
            VcpuState::Unknown | VcpuState::Running => (AdminState::Running, OperState::Running),
            VcpuState::Stopped { by_user: true } => (AdminState::Paused, OperState::Paused),
            VcpuState::Stopped { by_user: false } => (AdminState::Running, OperState::Paused),
        }
    }
}

/// Whether a process waits for libvirt's word that it is a domain's.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Wait {
    /// It has not waited.
    NotYet,
    /// It waits, and libvirt has not been asked.
    First,
    /// It waits, and libvirt has been asked.
    Asked,
    /// It has waited in vain, or has been there since before the agent.
    Over,
}

impl Core {
    pub(super) fn put_process(&mut self, process: Arc<VmProcess>, now: Now) {
        let pid = process.pid;
        let is_old = self.is_old(&process);
        let changed = self.processes.get(&pid).map(|known| {
            let is_same = known.process.start_ticks == process.start_ticks;
            (is_same, known.process.uuid == process.uuid, self.is_of_domain(known.vm))
        });
        match changed {
            None | Some((true, true, _)) => {}
            // libvirt's word is worth more than a command line that the process itself may write.
            Some((true, false, true)) => self.forget_name(pid),
            // Another process with the same id, or another program in the process.
            Some(_) => self.process_gone(pid, false, now),
        }
        if let Some(uuid) = process.uuid {
            self.namesakes.entry(uuid).or_default().pids.insert(pid);
        }
        self.note_machine(&process);
        let before = self.processes.get(&pid).map(|known| Arc::clone(&known.process));
        self.note_taps(pid, before.as_deref(), Some(&process));
        match self.processes.get_mut(&pid) {
            Some(known) => known.process = process,
            None => {
                let known = KnownProcess {
                    process,
                    vm: None,
                    wait: Wait::NotYet,
                    vcpus: VcpuState::Unknown,
                    is_old,
                };
                self.processes.insert(pid, known);
            }
        }
        self.dirty.extend(self.processes.get(&pid).and_then(|known| known.vm));
        // Of those that are there at the start the oldest is placed first.
        if self.has_processes {
            self.assign(pid, now, is_old);
        }
    }

    /// Whether a process is reported for the first time though it was there before the agent.
    pub(super) fn is_old(&self, process: &VmProcess) -> bool {
        let is_known = self.processes.contains_key(&process.pid);
        !self.has_processes || (process.was_there && !is_known)
    }

    /// The vCPUs of a process run, or have stopped. Returns whether that is no change: it was like this before the agent.
    pub(super) fn follow_vcpus(&mut self, pid: u32, state: VcpuState) -> bool {
        let Some(known) = self.processes.get_mut(&pid) else { return false };
        let before = std::mem::replace(&mut known.vcpus, state);
        self.dirty.extend(known.vm);
        known.is_old && before == VcpuState::Unknown
    }

    /// All processes that were there at the start have been reported.
    pub(super) fn processes_listed(&mut self, now: Now) {
        self.has_processes = true;
        let mut found: Vec<_> = self.processes.values().map(|known| age(&known.process)).collect();
        found.sort_unstable();
        for (_, pid) in found {
            self.assign(pid, now, true);
        }
    }

    /// All processes that were there at the start have been scanned.
    pub(super) fn processes_scanned(&mut self, now: Now) {
        self.indexes.note_all_seen(now.instant);
    }

    pub(super) fn process_gone(&mut self, pid: u32, killed: bool, now: Now) {
        self.forget_name(pid);
        let Some(known) = self.processes.remove(&pid) else { return };
        if let Some(vm) = known.vm.and_then(|identity| self.vms.get_mut(&identity))
            && killed
            && vm.domain.is_none()
        {
            // libvirt reports the crash of its domains itself.
            vm.note(OperState::Crashed, &mut self.changes);
        }
        if let Some(identity) = known.vm {
            self.give_process(identity, None);
        }
        self.forget_machine(&known.process);
        self.note_taps(pid, Some(&known.process), None);
        // What libvirt said of this id does not hold for the next process that has it.
        let mut uuids = self.forget_told(pid);
        uuids.extend(known.process.uuid);
        for uuid in uuids {
            self.resolve(uuid, now, false);
            self.forget_namesakes(uuid);
        }
    }

    /// The process has its UUID no more.
    fn forget_name(&mut self, pid: u32) {
        let uuid = self.processes.get(&pid).and_then(|known| known.process.uuid);
        if let Some(namesakes) = uuid.and_then(|uuid| self.namesakes.get_mut(&uuid)) {
            namesakes.pids.remove(&pid);
        }
        if let Some(uuid) = uuid {
            self.forget_namesakes(uuid);
        }
    }

    /// Finds out which VM a process is. `is_old` = it was there before the agent, or before libvirt answered for the first time:
    /// it does not wait for libvirt.
    fn assign(&mut self, pid: u32, now: Now, is_old: bool) {
        let mut uuids = self.told(pid);
        let Some(known) = self.processes.get(&pid) else { return };
        uuids.extend(self.domain_of_machine(&known.process));
        uuids.extend(known.process.uuid);
        for uuid in uuids {
            self.resolve(uuid, now, is_old);
        }
        self.place(pid, now, is_old);
    }

    /// Gives a process that is no domain's a row: that of its UUID, if no other VM has it, or one of its own.
    pub(super) fn place(&mut self, pid: u32, now: Now, is_old: bool) {
        let Some(known) = self.processes.get(&pid) else { return };
        if known.vm.is_some() || !self.shows_processes {
            return;
        }
        if !is_old && known.wait != Wait::Over && self.may_be_of_domain(&known.process) {
            self.begin_wait(pid, now);
            return;
        }
        let own = known.process.identity();
        // One that had a row of its own keeps it: the row of the UUID is another VM's.
        let uuid = known.process.uuid.filter(|_| !self.indexes.was_given(own));
        let named = uuid.and_then(|uuid| self.free_row(uuid));
        if let Some(known) = self.processes.get_mut(&pid).filter(|_| is_old) {
            known.wait = Wait::Over;
        }
        self.give_process(named.unwrap_or(own), Some(pid));
    }

    fn begin_wait(&mut self, pid: u32, now: Now) {
        if let Some(known) = self.processes.get_mut(&pid)
            && known.wait == Wait::NotYet
        {
            known.wait = Wait::First;
            self.waits.insert((now.instant + ASK, pid));
        }
    }

    /// A deadline of a process that waits has passed.
    pub(super) fn follow_wait(&mut self, pid: u32, now: Now) {
        let Some(known) = self.processes.get(&pid).filter(|known| known.vm.is_none()) else {
            return;
        };
        let asks = known.wait == Wait::First;
        let domains = self.domains_with(&known.process);
        let is_under_way = match known.process.uuid {
            Some(_) => domains.iter().any(|(_, _, vm)| self.is_under_way(*vm)),
            None => self.is_unnamed_under_way(),
        };
        if asks || is_under_way {
            self.waits.insert((now.instant + if asks { LATE - ASK } else { LATE }, pid));
        }
        if asks {
            let ask = |(source, uuid, _)| Output::Describe(source, uuid);
            self.outputs.extend(domains.into_iter().map(ask));
        }
        if let Some(known) = self.processes.get_mut(&pid) {
            known.wait = if asks || is_under_way { Wait::Asked } else { Wait::Over };
        }
        self.place(pid, now, false);
    }

    /// Makes a process that of a VM, and of no other; `None` = the VM has none.
    pub(super) fn give_process(&mut self, identity: Identity, pid: Option<u32>) {
        if pid.is_none() && !self.vms.contains_key(&identity) {
            return;
        }
        let known = pid.and_then(|pid| self.processes.get(&pid));
        if let Some(other) = known.and_then(|known| known.vm).filter(|other| *other != identity) {
            self.give_process(other, None);
        }
        let vm = self.vms.entry(identity).or_default();
        if vm.pid == pid {
            return;
        }
        if let Some(known) = vm.pid.and_then(|pid| self.processes.get_mut(&pid)) {
            known.vm = None;
        }
        // How another process was counted does not hold, though it had the same id.
        (vm.pid, vm.counted) = (pid, None);
        if let Some(known) = pid.and_then(|pid| self.processes.get_mut(&pid)) {
            known.vm = Some(identity);
            if vm.started_ns.is_some_and(|started| started != known.process.started_ns) {
                // The next QEMU counts from 0.
                vm.run = self.runs.next();
            }
            vm.started_ns = Some(known.process.started_ns);
        }
        self.dirty.insert(identity);
    }

    pub(super) fn count_again(&mut self, pid: u32) {
        if let Some(identity) = self.processes.get(&pid).and_then(|known| known.vm)
            && let Some(plan) = self.vms.get(&identity).and_then(|vm| vm.plan.clone())
        {
            self.outputs.push_back(Output::Count(plan));
        }
    }

    pub(super) fn counted(&mut self, report: CountingReport) {
        let Some(known) = self.processes.get(&report.pid) else { return };
        let (Some(identity), true) = (known.vm, known.process.slot == Some(report.vm)) else {
            return;
        };
        let Some(vm) = self.vms.get_mut(&identity) else { return };
        vm.counted = Some(report.disks);
        self.dirty.insert(identity);
        let domain = vm.domain.as_ref().map(|(source, domain)| (*source, domain.uuid));
        if let Some((source, uuid)) = domain.filter(|_| report.has_unidentified)
            && self.connection(source).is_live
        {
            self.outputs.push_back(Output::Describe(source, uuid));
        }
    }

    /// The UUID of a process that libvirt may still report as a domain's.
    pub(super) fn awaited_uuid(&self, pid: Option<u32>) -> Option<VmUuid> {
        let known = self.processes.get(&pid?)?;
        known.process.uuid.filter(|_| known.wait != Wait::Over)
    }

    fn is_of_domain(&self, vm: Option<Identity>) -> bool {
        vm.and_then(|vm| self.vms.get(&vm)).is_some_and(|vm| vm.domain.is_some())
    }
}

/// By what processes are put in order: the oldest first.
pub(super) fn age(process: &VmProcess) -> (u64, u32) {
    (process.started_ns, process.pid)
}
