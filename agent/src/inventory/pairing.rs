//! Which process is which domain's. What only libvirt can write counts first: the id in its own file, then the name of
//! the control group in which it has put the process. The UUID and the name of a command line are text that every process
//! may have; they count only where libvirt's files and groups cannot be seen, and never against a process that lives.

use std::collections::{BTreeSet, HashMap};

use super::{
    Core, Domain, DomainProcess, Machine, Now, Output, SourceId, VmProcess, VmUuid,
    indexes::Identity,
    namesakes::Namesakes,
    processes::{Wait, age},
};

/// What the marks of libvirt lead to.
#[derive(Debug, Default)]
pub(super) struct Marks {
    /// The domains whose process has this id, as libvirt has it.
    told: HashMap<u32, BTreeSet<VmUuid>>,
    /// The processes in the control group of a domain.
    in_machine: HashMap<Machine, BTreeSet<u32>>,
    /// The domains by their control group.
    of_machine: HashMap<Machine, BTreeSet<VmUuid>>,
    /// The drivers that put processes into groups.
    drivers: BTreeSet<String>,
}

/// What libvirt says of the process of a domain.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) struct Mark {
    process: DomainProcess,
    machine: Option<Machine>,
}

impl Mark {
    pub(super) fn of(domain: &Domain) -> Self {
        Self { process: domain.process, machine: domain.machine.clone() }
    }
}

impl Core {
    /// Gives the processes that have this UUID, and those of the domains that have it, to the VMs that they are. `is_old` = a
    /// connection reports for the first time, or there is no more to come: no process waits for libvirt.
    pub(super) fn resolve(&mut self, uuid: VmUuid, now: Now, is_old: bool) {
        let Some(namesakes) = self.namesakes.get(&uuid) else { return };
        let pairs = self.pairs(namesakes, is_old);
        let mut free = namesakes.pids.clone();
        // First what is taken away: a process is one VM at a time.
        for &(identity, pid) in &pairs {
            let holder = self.vms.get(&identity).and_then(|vm| vm.pid);
            if let Some(holder) = holder.filter(|_| holder != pid) {
                self.give_process(identity, None);
                free.insert(holder);
            }
        }
        for (identity, pid) in pairs {
            self.give_process(identity, pid);
            // When it ends its run as this domain, it may wait again.
            if let Some(known) = pid.and_then(|pid| self.processes.get_mut(&pid)) {
                known.wait = Wait::NotYet;
            }
        }
        let is_free = |pid: &u32| self.processes.get(pid).filter(|known| known.vm.is_none());
        let mut free: Vec<_> =
            free.iter().filter_map(is_free).map(|known| age(&known.process)).collect();
        free.sort_unstable();
        for (_, pid) in free {
            self.place(pid, now, is_old);
        }
    }

    /// The process of each domain with one UUID.
    fn pairs(&self, namesakes: &Namesakes, is_old: bool) -> Vec<(Identity, Option<u32>)> {
        let mut taken = BTreeSet::new();
        let mut pairs = Vec::with_capacity(namesakes.domains.len());
        for (&source, &identity) in &namesakes.domains {
            let pid = self.certain_process(source, identity).filter(|pid| taken.insert(*pid));
            pairs.push((source, identity, pid));
        }
        for (source, identity, pid) in &mut pairs {
            if pid.is_none()
                && let Some(domain) = self.domain_with_process(*source, *identity)
                && self.has_only_text(domain)
            {
                let namesakes = namesakes.pids.iter().filter(|pid| !taken.contains(pid));
                *pid = self.likely_process(domain, namesakes, is_old);
                taken.extend(*pid);
            }
        }
        pairs.into_iter().map(|(_, identity, pid)| (identity, pid)).collect()
    }

    /// A domain, unless it is certain that it has no process on this host.
    fn domain_with_process(&self, source: SourceId, identity: Identity) -> Option<&Domain> {
        let connection = self.connection(source);
        let (_, domain) = self.vms.get(&identity)?.domain.as_ref()?;
        let runs = domain.is_active || !connection.is_live;
        (connection.config.has_processes && runs).then_some(domain)
    }

    /// The process that libvirt has marked as that of a domain, or that the domain has had until now.
    fn certain_process(&self, source: SourceId, identity: Identity) -> Option<u32> {
        let domain = self.domain_with_process(source, identity)?;
        let present = self.vms.get(&identity)?.pid;
        match domain.process {
            DomainProcess::Pid(pid) => Some(pid).filter(|pid| self.may_be_told(*pid, identity)),
            DomainProcess::None => present,
            DomainProcess::Untold => self.process_in_machine(domain).or(present),
        }
    }

    /// Whether a process can be the one that libvirt names for a VM: a file that is left over from an earlier process does not
    /// take the process of another domain.
    fn may_be_told(&self, pid: u32, identity: Identity) -> bool {
        let Some(known) = self.processes.get(&pid) else { return false };
        let holder = known.vm.filter(|vm| *vm != identity).and_then(|vm| self.vms.get(&vm));
        let named = holder.and_then(|vm| vm.domain.as_ref()).map(|(_, domain)| domain.process);
        named != Some(DomainProcess::Pid(pid))
    }

    fn process_in_machine(&self, domain: &Domain) -> Option<u32> {
        let pids = self.marks.in_machine.get(domain.machine.as_ref()?)?;
        let found = pids.iter().filter_map(|pid| self.processes.get(pid));
        found.map(|known| age(&known.process)).min().map(|(_, pid)| pid)
    }

    /// Whether nothing but a command line tells which process is a domain's.
    fn has_only_text(&self, domain: &Domain) -> bool {
        let driver = domain.machine.as_ref().map(|machine| &machine.driver);
        domain.process == DomainProcess::Untold
            && !driver.is_some_and(|driver| self.marks.drivers.contains(driver))
    }

    /// The process that is a domain's by its command line. One whose row of its own has been announced stays there.
    fn likely_process<'a>(
        &self,
        domain: &Domain,
        pids: impl Iterator<Item = &'a u32>,
        is_old: bool,
    ) -> Option<u32> {
        let known = pids.filter_map(|pid| self.processes.get(pid));
        let likely = known.filter(|known| {
            let row = known.vm.and_then(|vm| self.vms.get(&vm));
            let is_settled =
                row.is_some_and(|vm| vm.domain.is_some() || !(is_old || vm.awaited.is_some()));
            known.process.name == domain.name && !is_settled
        });
        // Of two with the name, the one that has KVM is more likely to be it.
        let likely = likely.min_by_key(|known| (!known.process.has_kvm, age(&known.process)))?;
        Some(likely.process.pid)
    }

    /// Whether a process may be that of a domain that libvirt has not reported yet, or whose start it has not reported.
    pub(super) fn may_be_of_domain(&self, process: &VmProcess) -> bool {
        if process.uuid.is_none() {
            let mut connections = self.connections.iter();
            return process.has_kvm
                && connections
                    .any(|connection| connection.config.is_unnamed && connection.is_live);
        }
        let domains = self.domains_with(process);
        domains.iter().any(|(_, _, vm)| self.vms.get(vm).is_some_and(|vm| vm.pid.is_none()))
    }

    /// The domains with the UUID and the name of a process.
    pub(super) fn domains_with(&self, process: &VmProcess) -> Vec<(SourceId, VmUuid, Identity)> {
        let Some(uuid) = process.uuid else { return Vec::new() };
        let Some(namesakes) = self.namesakes.get(&uuid) else { return Vec::new() };
        let is_its = |(source, identity): &(&SourceId, &Identity)| {
            self.connection(**source).config.has_processes
                && self.domain_of(**identity).is_some_and(|domain| domain.name == process.name)
        };
        let domains = namesakes.domains.iter().filter(is_its);
        domains.map(|(source, identity)| (*source, uuid, *identity)).collect()
    }

    /// Whether events have come of domains whose processes have no name.
    pub(super) fn is_unnamed_under_way(&self) -> bool {
        let mut connections = self.connections.iter();
        connections.any(|connection| connection.config.is_unnamed && connection.is_under_way())
    }

    /// Follows what libvirt says of a domain's process: `before`, and now.
    pub(super) fn mark(&mut self, uuid: VmUuid, before: Option<Mark>, now: Option<Mark>) {
        if before == now {
            return;
        }
        let marks = &mut self.marks;
        if let Some(Mark { process, machine }) = before {
            if let DomainProcess::Pid(pid) = process {
                remove(&mut marks.told, &pid, &uuid);
            }
            if let Some(machine) = machine {
                remove(&mut marks.of_machine, &machine, &uuid);
            }
        }
        if let Some(Mark { process, machine }) = now {
            if let DomainProcess::Pid(pid) = process {
                marks.told.entry(pid).or_default().insert(uuid);
            }
            if let Some(machine) = machine {
                marks.of_machine.entry(machine).or_default().insert(uuid);
            }
        }
    }

    /// The UUIDs of the domains whose process has this id.
    pub(super) fn told(&self, pid: u32) -> BTreeSet<VmUuid> {
        self.marks.told.get(&pid).cloned().unwrap_or_default()
    }

    /// Forgets that domains have a process with this id. Their UUIDs.
    pub(super) fn forget_told(&mut self, pid: u32) -> BTreeSet<VmUuid> {
        let uuids = self.marks.told.remove(&pid).unwrap_or_default();
        let namesakes = uuids.iter().filter_map(|uuid| self.namesakes.get(uuid));
        for identity in namesakes.flat_map(|namesakes| namesakes.domains.values()) {
            if let Some(vm) = self.vms.get_mut(identity)
                && let Some((_, domain)) = &mut vm.domain
                && domain.process == DomainProcess::Pid(pid)
            {
                domain.process = DomainProcess::None;
            }
        }
        uuids
    }

    /// The UUIDs of the domain in whose control group a process is.
    pub(super) fn domain_of_machine(&self, process: &VmProcess) -> BTreeSet<VmUuid> {
        let of_machine = process.machine.as_ref().and_then(|it| self.marks.of_machine.get(it));
        of_machine.cloned().unwrap_or_default()
    }

    /// Follows the control group of a process, before the process replaces what was known of it.
    pub(super) fn note_machine(&mut self, process: &VmProcess) {
        if let Some(known) = self.processes.get(&process.pid)
            && known.process.machine != process.machine
        {
            let known = std::sync::Arc::clone(&known.process);
            self.forget_machine(&known);
        }
        if let Some(machine) = &process.machine {
            if !self.marks.drivers.contains(&machine.driver) {
                self.marks.drivers.insert(machine.driver.clone());
            }
            self.marks.in_machine.entry(machine.clone()).or_default().insert(process.pid);
        }
    }

    pub(super) fn forget_machine(&mut self, process: &VmProcess) {
        if let Some(machine) = &process.machine {
            remove(&mut self.marks.in_machine, machine, &process.pid);
        }
    }

    /// Has the process of a domain scanned again, since the disks of the domain have changed.
    pub(super) fn rescan(&mut self, identity: Identity) {
        let pid = self.vms.get(&identity).and_then(|vm| vm.pid);
        self.outputs.extend(pid.map(Output::Rescan));
    }

    pub(super) fn domain_of(&self, identity: Identity) -> Option<&Domain> {
        self.vms.get(&identity)?.domain.as_ref().map(|(_, domain)| domain)
    }
}

fn remove<K: Eq + std::hash::Hash, V: Ord>(sets: &mut HashMap<K, BTreeSet<V>>, key: &K, value: &V) {
    if let Some(set) = sets.get_mut(key) {
        set.remove(value);
        if set.is_empty() {
            sets.remove(key);
        }
    }
}
