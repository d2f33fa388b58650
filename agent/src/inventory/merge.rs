//! Which process and which domain are the same VM. Both have a UUID, which is only text: more than one process may have
//! it, and a domain of each libvirt connection.

use std::collections::{BTreeMap, BTreeSet};

use super::{Core, Domain, SourceId, VmProcess, VmUuid, indexes::Identity};

/// The processes and domains with one UUID.
#[derive(Debug, Default)]
pub(super) struct Namesakes {
    pub(super) pids: BTreeSet<u32>,
    /// The VM that the domain of each connection is.
    pub(super) domains: BTreeMap<SourceId, Identity>,
}

impl Namesakes {
    pub(super) fn is_empty(&self) -> bool {
        self.pids.is_empty() && self.domains.is_empty()
    }
}

impl Core {
    /// The VM that a domain is, or would be. Domains of two connections with one UUID are two VMs. The first one has the
    /// UUID; which it is stays the same over restarts of the agent, since the other's index is kept under a UUID of its own.
    pub(super) fn identity_of(&self, source: SourceId, uuid: VmUuid) -> Identity {
        let namesakes = self.namesakes.get(&uuid);
        if let Some(known) = namesakes.and_then(|namesakes| namesakes.domains.get(&source)) {
            return *known;
        }
        let plain = Identity::Uuid(uuid);
        if self.connections.len() < 2 {
            return plain;
        }
        let uri = &self.config.connections[usize::from(source.0)].uri;
        let second = Identity::Uuid(uuid.of_domain_at(uri));
        let is_taken =
            namesakes.is_some_and(|namesakes| namesakes.domains.values().any(|it| *it == plain));
        // A domain that is no process here leaves the row to the process that has it.
        let has_processes = self.config.connections[usize::from(source.0)].has_processes;
        let is_of_process = self.vms.get(&plain).is_some_and(|vm| vm.pid.is_some());
        if is_taken || self.indexes.get(second).is_some() || (!has_processes && is_of_process) {
            second
        } else {
            plain
        }
    }

    /// The UUIDs of a connection's domains. Costs as much as there are UUIDs.
    pub(super) fn domains_of(&self, source: SourceId) -> Vec<VmUuid> {
        let its = self.namesakes.iter().filter(|(_, it)| it.domains.contains_key(&source));
        its.map(|(uuid, _)| *uuid).collect()
    }

    /// Forgets a UUID that nothing has.
    pub(super) fn forget_namesakes(&mut self, uuid: VmUuid) {
        if self.namesakes.get(&uuid).is_some_and(Namesakes::is_empty) {
            self.namesakes.remove(&uuid);
        }
    }

    /// Gives each process with this UUID to the VM that it is.
    pub(super) fn resolve(&mut self, uuid: VmUuid) {
        let plain = Identity::Uuid(uuid);
        let Some(namesakes) = self.namesakes.get(&uuid) else { return };
        let mut free: Vec<u32> = namesakes.pids.iter().copied().collect();
        let mut given = Vec::new();
        let mut names = BTreeSet::new();
        for (&source, &identity) in &namesakes.domains {
            let Some(vm) = self.vms.get(&identity) else { continue };
            let Some((_, domain)) = &vm.domain else { continue };
            if self.config.connections[usize::from(source.0)].has_processes {
                names.insert(domain.name.as_str());
            }
            let pid = self.process_of(source, domain, vm.pid, &free);
            free.retain(|free| Some(*free) != pid);
            given.push((identity, pid));
        }
        // Also a process that libvirt has not reported yet, or not any more, is its domain's.
        let is_of_domain = |pid: &u32| {
            self.processes.get(pid).is_some_and(|(process, _)| names.contains(&*process.name))
        };
        let mut hidden: Vec<u32> = free.extract_if(.., |pid| is_of_domain(pid)).collect();
        if !self.config.shows_processes {
            hidden.append(&mut free);
        }
        if namesakes.domains.values().all(|identity| *identity != plain) {
            // Without a domain, the process that has the UUID's index keeps it.
            let holder = self.vms.get(&plain).and_then(|vm| vm.pid);
            let is_new = |pid: &&u32| self.processes.get(pid).is_some_and(|(_, of)| of.is_none());
            let pid = holder
                .filter(|pid| free.contains(pid))
                .or_else(|| free.iter().find(is_new).copied());
            free.retain(|free| Some(*free) != pid);
            given.push((plain, pid));
        }
        let own = |pid: u32| Some((self.processes.get(&pid)?.0.identity(), Some(pid)));
        given.extend(free.into_iter().filter_map(own));
        // First what is taken away: a process is one VM at a time.
        for pid in hidden {
            self.take_process(pid);
        }
        for (identity, pid) in &given {
            if let Some(pid) = pid
                && self.processes.get(pid).is_some_and(|(_, of)| *of != Some(*identity))
            {
                self.take_process(*pid);
            }
        }
        for (identity, pid) in given {
            self.give_process(identity, pid);
        }
    }

    /// The process of a domain, of those with its UUID: libvirt starts QEMU with the domain's UUID and name.
    fn process_of(
        &self,
        source: SourceId,
        domain: &Domain,
        present: Option<u32>,
        free: &[u32],
    ) -> Option<u32> {
        let at = usize::from(source.0);
        let has_processes = self.config.connections[at].has_processes;
        if !has_processes || (!domain.is_active && self.connections[at].is_live) {
            return None;
        }
        let likeness = |process: &VmProcess| {
            // A command line is only text: a process that has KVM is more likely to be the one.
            (process.has_kvm, process.name == domain.name, Some(process.pid) == present)
        };
        let candidates = free.iter().filter_map(|pid| Some(&*self.processes.get(pid)?.0));
        candidates.max_by_key(|process| likeness(process)).map(|process| process.pid)
    }

    fn take_process(&mut self, pid: u32) {
        if let Some(identity) = self.processes.get(&pid).and_then(|(_, identity)| *identity) {
            self.give_process(identity, None);
        }
    }

    /// Makes a process that of a VM; `None` = the VM has none.
    pub(super) fn give_process(&mut self, identity: Identity, pid: Option<u32>) {
        if pid.is_none() && !self.vms.contains_key(&identity) {
            return;
        }
        let vm = self.vms.entry(identity).or_default();
        if vm.pid == pid {
            return;
        }
        if let Some((_, of)) = vm.pid.and_then(|pid| self.processes.get_mut(&pid)) {
            *of = None;
        }
        // How another process was counted does not hold, though it had the same id.
        (vm.pid, vm.counted) = (pid, None);
        if let Some((process, of)) = pid.and_then(|pid| self.processes.get_mut(&pid)) {
            *of = Some(identity);
            if vm.started_ns.is_some_and(|started| started != process.started_ns) {
                // The next QEMU counts from 0.
                vm.run = self.runs.next();
            }
            vm.started_ns = Some(process.started_ns);
        }
        self.dirty.insert(identity);
    }
}
