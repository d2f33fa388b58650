//! Which process and which domain are the same VM. Both have a UUID, which is only text: more than one process may have
//! it, and a domain of each libvirt connection.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BTreeSet},
};

use super::{Core, Domain, SourceId, VmUuid, indexes::Identity};

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
        let pairs = self.pairs(namesakes);
        let mut free: Vec<u32> = namesakes.pids.iter().copied().collect();
        free.retain(|pid| !pairs.contains_key(pid));
        let mut given = Vec::new();
        let mut names = BTreeSet::new();
        for (&source, &identity) in &namesakes.domains {
            let Some(domain) = self.domain_of(identity) else { continue };
            if self.config.connections[usize::from(source.0)].has_processes {
                names.insert(domain.name.as_str());
            }
            let pair = pairs.iter().find(|(_, of)| **of == source);
            given.push((identity, pair.map(|(pid, _)| *pid)));
        }
        // Also a process that libvirt has not reported yet, or not any more, is its domain's.
        let is_of_domain = |pid: &u32| {
            self.processes.get(pid).is_some_and(|(process, _)| names.contains(&*process.name))
        };
        let mut hidden: Vec<u32> = free.extract_if(.., |pid| is_of_domain(pid)).collect();
        if !self.config.shows_processes {
            hidden.append(&mut free);
        }
        let rows = self.rows_without_domain(uuid, namesakes);
        for identity in rows {
            let holder = self.vms.get(&identity).and_then(|vm| vm.pid);
            // A process that has a row keeps it, unless its row was another's: the holder of this one is a domain's.
            let is_moved = holder.is_some_and(|pid| pairs.contains_key(&pid));
            let may_take = |pid: &&u32| {
                is_moved || self.processes.get(pid).is_some_and(|(_, of)| of.is_none())
            };
            let pid = holder
                .filter(|pid| free.contains(pid))
                .or_else(|| free.iter().find(may_take).copied());
            free.retain(|free| Some(*free) != pid);
            if pid.is_some() || identity == plain {
                given.push((identity, pid));
            }
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

    /// The processes of the domains with one UUID. The likeliest pair is made first: no domain takes the process of
    /// another one, as libvirt starts QEMU with the domain's UUID and name.
    fn pairs(&self, namesakes: &Namesakes) -> BTreeMap<u32, SourceId> {
        let mut likely = Vec::new();
        for (&source, &identity) in &namesakes.domains {
            let at = usize::from(source.0);
            let has_processes = self.config.connections[at].has_processes;
            let Some(domain) = self.domain_of(identity) else { continue };
            if !has_processes || (!domain.is_active && self.connections[at].is_live) {
                continue;
            }
            let present = self.vms.get(&identity).and_then(|vm| vm.pid);
            for &pid in &namesakes.pids {
                let Some((process, _)) = self.processes.get(&pid) else { continue };
                // A command line is only text: of two with the name, the one that has KVM is more likely to be it.
                let likeness = (process.name == domain.name, process.has_kvm, Some(pid) == present);
                likely.push((likeness, Reverse(source), pid));
            }
        }
        likely.sort_unstable_by_key(|pair| Reverse(*pair));
        let (mut pairs, mut paired) = (BTreeMap::new(), BTreeSet::new());
        for (_, Reverse(source), pid) in likely {
            if !pairs.contains_key(&pid) && paired.insert(source) {
                pairs.insert(pid, source);
            }
        }
        pairs
    }

    /// The rows of this UUID that have no domain at present, and that processes may take: the row of the UUID itself, and the
    /// row of each connection that has not listed its domains since the agent started.
    fn rows_without_domain(&self, uuid: VmUuid, namesakes: &Namesakes) -> Vec<Identity> {
        let has_domain = |row: &Identity| namesakes.domains.values().any(|of| of == row);
        let connections = self.config.connections.iter().zip(&self.connections);
        let unreported = connections
            .filter(|(connection, state)| connection.has_processes && !state.has_listed)
            .map(|(connection, _)| Identity::Uuid(uuid.of_domain_at(&connection.uri)))
            .filter(|second| self.connections.len() > 1 && self.indexes.get(*second).is_some());
        std::iter::once(Identity::Uuid(uuid))
            .chain(unreported)
            .filter(|row| !has_domain(row))
            .collect()
    }

    fn domain_of(&self, identity: Identity) -> Option<&Domain> {
        self.vms.get(&identity)?.domain.as_ref().map(|(_, domain)| domain)
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
