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
    Change, Fact, Hypervisor, Inventory, NicNumbers, Now, OperState, Output, SavedIndexes, VmTable,
    VmUuid,
    domains::ConnectionState,
    indexes::{Identity, Indexes},
    namesakes::Namesakes,
    pairing::Marks,
    processes::KnownProcess,
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
    /// The libvirt connections; [`SourceId`](super::SourceId) is the place in this list.
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
    /// The VMMs that libvirt starts for it get neither name nor UUID on their command lines, as Cloud Hypervisor does not.
    pub is_unnamed: bool,
}

/// The state of all VMs of the host.
#[derive(Debug)]
pub struct Core {
    pub(super) shows_processes: bool,
    pub(super) counts: bool,
    pub(super) indexes: Indexes,
    /// [`SourceId`](super::SourceId) is the place in this list.
    pub(super) connections: Vec<ConnectionState>,
    /// The processes that are VMs.
    pub(super) processes: HashMap<u32, KnownProcess>,
    /// The sources of processes have reported what was there at the start.
    pub(super) has_processes: bool,
    /// Deadlines of processes that may be a domain's.
    pub(super) waits: BTreeSet<(Instant, u32)>,
    pub(super) marks: Marks,
    pub(super) vms: HashMap<Identity, VmState>,
    pub(super) namesakes: HashMap<VmUuid, Namesakes>,
    pub(super) nics: HashMap<String, NicNumbers>,
    /// The VMs that use an interface of the host.
    pub(super) nic_users: HashMap<String, BTreeSet<Identity>>,
    /// The processes that hold a tap of a name.
    pub(super) tap_holders: HashMap<String, BTreeSet<u32>>,
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
        let CoreConfig { shows_processes, counts, connections, hypervisor } = config;
        Self {
            shows_processes,
            counts,
            indexes: Indexes::of_saved(indexes, now.instant),
            connections: connections.into_iter().map(ConnectionState::new).collect(),
            processes: HashMap::new(),
            has_processes: false,
            waits: BTreeSet::new(),
            marks: Marks::default(),
            vms: HashMap::new(),
            namesakes: HashMap::new(),
            nics: HashMap::new(),
            nic_users: HashMap::new(),
            tap_holders: HashMap::new(),
            deadlines: BTreeSet::new(),
            dirty: BTreeSet::new(),
            hypervisor: Arc::new(hypervisor),
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
        self.indexes.end_rests(now.instant);
        let mut is_old = false;
        match fact {
            Fact::Process(process) => {
                is_old = self.is_old(&process);
                self.put_process(process, now);
            }
            Fact::Vcpus(pid, state) => is_old = self.follow_vcpus(pid, state),
            Fact::ProcessGone { pid, killed } => self.process_gone(pid, killed, now),
            Fact::ProcessesListed => {
                is_old = !self.has_processes;
                self.processes_listed(now);
            }
            Fact::ProcessesScanned => self.processes_scanned(now),
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
        let of_vm = self.deadlines.first().map(|(at, _)| *at);
        of_vm.into_iter().chain(self.waits.first().map(|(at, _)| *at)).min()
    }

    /// Acts on the deadlines that have passed.
    pub fn handle_timeout(&mut self, now: Now) {
        self.indexes.end_rests(now.instant);
        while let Some(&(at, pid)) = self.waits.first()
            && at <= now.instant
        {
            self.waits.pop_first();
            self.follow_wait(pid, now);
        }
        while let Some(&(at, identity)) = self.deadlines.first()
            && at <= now.instant
        {
            self.deadlines.pop_first();
            let is_under_way = self.is_under_way(identity);
            let Some(vm) = self.vms.get_mut(&identity) else { continue };
            vm.deadline = None;
            if vm.awaited.is_some_and(|until| until <= now.instant) && !is_under_way {
                let found = vm.row.as_ref().map(|row| row.oper_state);
                if found == Some(OperState::Preparing) {
                    // An event ends this state, however long libvirt takes to start the domain.
                    vm.awaited = Some(now.instant + LATE);
                } else {
                    // No event has come: the VM is as it was found.
                    vm.awaited = None;
                    if let Some(state) = found {
                        vm.note(state, &mut self.changes);
                    }
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

    fn host_nic(&mut self, name: &str, numbers: Option<NicNumbers>) {
        let before = match numbers {
            Some(numbers) => self.nics.insert(name.to_owned(), numbers),
            None => self.nics.remove(name),
        };
        if before != numbers {
            self.dirty.extend(self.nic_users.get(name).into_iter().flatten());
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
                let may_be_of_domain = self.awaited_uuid(vm.pid).is_some();
                let found = row.as_ref().map(|row| row.oper_state);
                if may_be_of_domain && vm.awaited.is_none() && vm.is_ahead(found) {
                    vm.awaited = Some(now.instant + LATE);
                }
            }
            self.put_row(identity, &mut vm, row, now);
            let account = self.account_of(&vm);
            let is_announced = vm.announced.is_some() && !is_old;
            vm.announce_row(is_old, account, &mut self.changes);
            self.ask_paths(&mut vm);
            plans.extend(self.plan(&mut vm));
            self.query_disks(&mut vm);
            self.set_deadline(identity, &mut vm, now.instant);
            if vm.domain.is_none() && vm.pid.is_none() && vm.awaited.is_none() {
                self.forget(identity, &vm, is_announced, now.instant);
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

    /// The VM is no more: only its index stays, if it has a UUID. `is_announced`: managers were told that it was there.
    fn forget(&mut self, identity: Identity, vm: &VmState, is_announced: bool, now: Instant) {
        let is_gone = match identity {
            Identity::Process { pid, start_ticks } => self
                .processes
                .get(&pid)
                .is_none_or(|known| known.process.start_ticks != start_ticks),
            Identity::Uuid(_) => true,
        };
        self.indexes.release(identity, is_gone || is_announced, now);
        if let Some(at) = vm.deadline {
            self.deadlines.remove(&(at, identity));
        }
    }
}
