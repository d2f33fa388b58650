//! The inventory's core: facts of the sources in, views and changes out. It has no clock, lock, file or kernel, so that a
//! recorded list of facts, played again, leads to the same outputs.
//!
//! The contract, for the one thread that owns it: [`Core::handle`] (or [`Core::handle_timeout`]) changes the state once;
//! then [`Core::poll_output`] is drained until it is empty, in the order that [`Output`] has; [`Core::poll_timeout`] says
//! when `handle_timeout` is due. More than one fact may be handled before the outputs are drained: changes are kept one by
//! one, and the view is published once. Time never goes back.
//!
//! A fact costs what the VMs cost that it is about: only their rows are made again, and all others are shared with the
//! view before.

use std::{
    collections::{BTreeSet, HashMap, VecDeque},
    sync::Arc,
    time::{Duration, Instant},
};

use super::{
    Change, CountingReport, Fact, Hypervisor, Inventory, NicNumbers, Now, OperState, Output,
    SavedIndexes, VmProcess, VmTable, VmUuid,
    domains::ConnectionState,
    indexes::{Identity, Indexes},
    merge::Namesakes,
    state::{LATE, Presence, Runs, VmState},
};

/// A domain that libvirt reports as active and that has lost its process for this long is one that libvirt does not follow
/// any more: in a storm of events its report may be seconds behind.
pub(super) const UNFOLLOWED: Duration = Duration::from_secs(30);

/// What does not change while the agent runs.
#[derive(Clone, Debug, Default)]
pub struct CoreConfig {
    /// Whether processes that belong to no domain are VMs, too.
    pub shows_processes: bool,
    /// Whether there are probes, so that disks can be counted.
    pub counts: bool,
    /// The libvirt connections; [`SourceId`] is the place in this list.
    pub connections: Vec<Connection>,
    /// The hypervisor, as long as no libvirt connection reports one.
    pub hypervisor: Hypervisor,
}

/// A libvirt connection.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Connection {
    /// Its URI.
    pub uri: String,
    /// Its domains are processes of this host, as those of QEMU are and those of the test driver are not.
    pub has_processes: bool,
}

/// The state of all VMs of the host.
#[derive(Debug)]
pub struct Core {
    pub(super) config: CoreConfig,
    pub(super) indexes: Indexes,
    pub(super) connections: Vec<ConnectionState>,
    /// The processes that are VMs, with the VM that each is; `None` = it belongs to a domain that has another process.
    pub(super) processes: HashMap<u32, (Arc<VmProcess>, Option<Identity>)>,
    /// The sources of processes have reported what was there at the start.
    has_processes: bool,
    pub(super) vms: HashMap<Identity, VmState>,
    pub(super) namesakes: HashMap<VmUuid, Namesakes>,
    pub(super) nics: HashMap<String, NicNumbers>,
    /// The VMs that use an interface of the host.
    pub(super) nic_users: HashMap<String, BTreeSet<Identity>>,
    deadlines: BTreeSet<(Instant, Identity)>,
    /// VMs whose rows are to be made again.
    pub(super) dirty: BTreeSet<Identity>,
    /// The next view.
    pub(super) hypervisor: Arc<Hypervisor>,
    last_change_ns: u64,
    pub(super) runs: Runs,
    table: VmTable,
    cpus: Arc<[u32]>,
    pub(super) view_is_new: bool,
    pub(super) changes: VecDeque<Change>,
    pub(super) outputs: VecDeque<Output>,
}

impl Core {
    /// A core that knows no VM. `indexes` are those that an earlier agent has given since the host booted.
    #[must_use]
    pub fn new(config: CoreConfig, indexes: SavedIndexes, now: Now) -> Self {
        let connections = config.connections.iter().map(|_| ConnectionState::default()).collect();
        Self {
            hypervisor: Arc::new(config.hypervisor.clone()),
            config,
            indexes: Indexes::of_saved(indexes),
            connections,
            processes: HashMap::new(),
            has_processes: false,
            vms: HashMap::new(),
            namesakes: HashMap::new(),
            nics: HashMap::new(),
            nic_users: HashMap::new(),
            deadlines: BTreeSet::new(),
            dirty: BTreeSet::new(),
            last_change_ns: now.since_boot_ns,
            runs: Runs::default(),
            table: VmTable::default(),
            cpus: Arc::default(),
            view_is_new: false,
            changes: VecDeque::new(),
            outputs: VecDeque::new(),
        }
    }

    /// The view as it is now.
    #[must_use]
    pub fn view(&self) -> Inventory {
        Inventory {
            hypervisor: Arc::clone(&self.hypervisor),
            last_change_ns: self.last_change_ns,
            vms: self.table.clone(),
            cpus: Arc::clone(&self.cpus),
        }
    }

    /// The indexes as they are now, to be written. Costs as much as there are VMs.
    #[must_use]
    pub fn saved_indexes(&self) -> SavedIndexes {
        self.indexes.to_saved()
    }

    /// Takes in a fact.
    pub fn handle(&mut self, fact: Fact, now: Now) {
        self.indexes.set_time(now.instant);
        let mut is_old = false;
        match fact {
            Fact::Process(process) => {
                is_old = !self.has_processes;
                self.put_process(process);
            }
            Fact::ProcessGone { pid, killed } => self.process_gone(pid, killed),
            Fact::ProcessesListed => self.has_processes = true,
            Fact::Cpus(cpus) => {
                if *self.cpus != *cpus {
                    self.cpus = cpus.into();
                    self.view_is_new = true;
                }
            }
            Fact::ImageTaken(pid) => self.count_again(pid),
            Fact::Libvirt(source, fact) => {
                if usize::from(source.0) < self.connections.len() {
                    is_old = self.libvirt(source, fact, now);
                }
            }
            Fact::HostNic(name, numbers) => self.host_nic(&name, numbers),
            Fact::Counted(report) => self.counted(report),
            Fact::Fence(fence) => self.outputs.push_back(Output::Reached(fence)),
        }
        self.refresh(is_old, now);
    }

    /// When [`handle_timeout`](Self::handle_timeout) is due; `None` = no deadline is set.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Instant> {
        self.deadlines.first().map(|(at, _)| *at)
    }

    /// Acts on the deadlines that have passed.
    pub fn handle_timeout(&mut self, now: Now) {
        self.indexes.set_time(now.instant);
        while let Some(&(at, identity)) = self.deadlines.first()
            && at <= now.instant
        {
            self.deadlines.pop_first();
            let is_under_way = self.is_under_way(identity);
            let Some(vm) = self.vms.get_mut(&identity) else { continue };
            vm.deadline = None;
            if vm.awaited.is_some_and(|until| until <= now.instant) && !is_under_way {
                // No event has come: the VM is as it was found.
                vm.awaited = None;
                if let Some(state) = vm.row.as_ref().map(|row| row.oper_state) {
                    vm.note(state, &mut self.changes);
                }
            }
            self.dirty.insert(identity);
        }
        self.refresh(false, now);
    }

    /// What is to be done next; `None` = nothing.
    pub fn poll_output(&mut self) -> Option<Output> {
        if std::mem::take(&mut self.view_is_new) {
            return Some(Output::Publish(Arc::new(self.view())));
        }
        self.changes.pop_front().map(Output::Changed).or_else(|| self.outputs.pop_front())
    }

    fn put_process(&mut self, process: Arc<VmProcess>) {
        let pid = process.pid;
        if let Some((known, _)) = self.processes.get(&pid)
            && (known.start_ticks, known.uuid) != (process.start_ticks, process.uuid)
        {
            // Another process with the same id, or another program in the process.
            self.process_gone(pid, false);
        }
        let identity = self.processes.get(&pid).and_then(|(_, identity)| *identity);
        let (uuid, own) = (process.uuid, process.identity());
        self.processes.insert(pid, (process, identity));
        self.dirty.extend(identity);
        match uuid {
            Some(uuid) => {
                self.namesakes.entry(uuid).or_default().pids.insert(pid);
                self.resolve(uuid);
            }
            None if self.config.shows_processes => self.give_process(own, Some(pid)),
            None => {}
        }
    }

    fn process_gone(&mut self, pid: u32, killed: bool) {
        let Some((process, identity)) = self.processes.remove(&pid) else { return };
        if let Some(vm) = identity.and_then(|identity| self.vms.get_mut(&identity))
            && killed
            && vm.domain.is_none()
        {
            // libvirt reports the crash of its domains itself.
            vm.note(OperState::Crashed, &mut self.changes);
        }
        if let Some(identity) = identity {
            self.give_process(identity, None);
        }
        if let Some(uuid) = process.uuid {
            if let Some(namesakes) = self.namesakes.get_mut(&uuid) {
                namesakes.pids.remove(&pid);
            }
            self.resolve(uuid);
            self.forget_namesakes(uuid);
        }
    }

    fn host_nic(&mut self, name: &str, numbers: Option<NicNumbers>) {
        let before = match numbers {
            Some(numbers) => self.nics.insert(name.to_owned(), numbers),
            None => self.nics.remove(name),
        };
        if before != numbers {
            self.dirty.extend(self.nic_users.get(name).into_iter().flatten());
        }
    }

    fn count_again(&mut self, pid: u32) {
        if let Some(identity) = self.processes.get(&pid).and_then(|(_, identity)| *identity)
            && let Some(plan) = self.vms.get(&identity).and_then(|vm| vm.plan.clone())
        {
            self.outputs.push_back(Output::Count(plan));
        }
    }

    fn counted(&mut self, report: CountingReport) {
        let Some((process, Some(identity))) = self.processes.get(&report.pid) else { return };
        let Some(vm) = self.vms.get_mut(identity).filter(|_| process.slot == Some(report.vm))
        else {
            return;
        };
        vm.counted = Some(report.disks);
        self.dirty.insert(*identity);
        if let Some((source, domain)) = vm.domain.as_ref().filter(|_| report.has_unidentified)
            && self.connections[usize::from(source.0)].is_live
        {
            self.outputs.push_back(Output::Describe(*source, domain.uuid));
        }
    }

    /// Makes the rows again of the VMs that may have changed.
    fn refresh(&mut self, is_old: bool, now: Now) {
        // Last: a process that goes from one VM to another ends its counting first.
        let mut plans = Vec::new();
        while let Some(identity) = self.dirty.pop_first() {
            let Some(mut vm) = self.vms.remove(&identity) else { continue };
            self.follow_presence(&mut vm, now.instant);
            if vm.run == 0 {
                vm.run = self.runs.next();
            }
            let row = self.row(identity, &mut vm, now.instant);
            if vm.domain.is_none() && row.is_some() && self.is_any_live() && !is_old {
                // The process may be that of a domain that libvirt is about to report, or whose end it has reported.
                let may_be_of_domain = self.processes_uuid(vm.pid).is_some();
                if may_be_of_domain && vm.awaited.is_none() && vm.is_ahead(Some(OperState::Running))
                {
                    vm.awaited = Some(now.instant + LATE);
                }
            }
            self.put_row(identity, &mut vm, row, now);
            vm.announce_row(is_old, &mut self.changes);
            plans.extend(self.plan(&mut vm));
            self.query_disks(&mut vm);
            self.set_deadline(identity, &mut vm, now.instant);
            if vm.domain.is_none() && vm.pid.is_none() && vm.awaited.is_none() {
                self.forget(identity, &vm);
            } else {
                self.vms.insert(identity, vm);
            }
        }
        self.outputs.extend(plans.into_iter().map(Output::Count));
        if self.indexes.take_is_new() {
            self.outputs.push_back(Output::SaveIndexes);
        }
    }

    fn follow_presence(&self, vm: &mut VmState, now: Instant) {
        let is_active = vm.domain.as_ref().is_some_and(|(_, domain)| domain.is_active);
        vm.presence = match (is_active, vm.pid, vm.presence) {
            (false, ..) => Presence::NeverSeen,
            (true, Some(_), _) => Presence::Present,
            (true, None, Presence::Present) => Presence::LostSince(now),
            (true, None, presence) => presence,
        };
    }

    fn put_row(&mut self, identity: Identity, vm: &mut VmState, row: Option<super::Vm>, now: Now) {
        match row {
            Some(row) if vm.row.as_deref() == Some(&row) => {}
            Some(row) => {
                let is_same = vm.row.as_ref().is_some_and(|known| known.uuid == row.uuid);
                let row = Arc::new(row);
                self.table.insert(Arc::clone(&row));
                vm.row = Some(row);
                self.view_is_new = true;
                if !is_same {
                    self.last_change_ns = now.since_boot_ns;
                }
            }
            None => {
                if let Some(row) = vm.row.take() {
                    self.note_nic_users(identity, Some(&row), &[]);
                    self.table.remove(row.index);
                    self.outputs.push_back(Output::ForgetDisks(row.index));
                    self.view_is_new = true;
                    self.last_change_ns = now.since_boot_ns;
                }
            }
        }
    }

    fn set_deadline(&mut self, identity: Identity, vm: &mut VmState, now: Instant) {
        let awaited = vm.awaited.filter(|_| !self.is_under_way(identity));
        let unfollowed = match vm.presence {
            Presence::LostSince(at) => Some(at + UNFOLLOWED).filter(|at| *at > now),
            Presence::NeverSeen | Presence::Present => None,
        };
        let deadline = awaited.into_iter().chain(unfollowed).min();
        if deadline != vm.deadline {
            if let Some(at) = vm.deadline {
                self.deadlines.remove(&(at, identity));
            }
            self.deadlines.extend(deadline.map(|at| (at, identity)));
            vm.deadline = deadline;
        }
    }

    /// The VM is no more: only its index stays, if it has a UUID.
    fn forget(&mut self, identity: Identity, vm: &VmState) {
        let is_gone = match identity {
            Identity::Process { pid, start_ticks } => self
                .processes
                .get(&pid)
                .is_none_or(|(process, _)| process.start_ticks != start_ticks),
            Identity::Uuid(_) => true,
        };
        self.indexes.release(identity, is_gone);
        if let Some(at) = vm.deadline {
            self.deadlines.remove(&(at, identity));
        }
    }

    fn processes_uuid(&self, pid: Option<u32>) -> Option<VmUuid> {
        self.processes.get(&pid?)?.0.uuid
    }
}
