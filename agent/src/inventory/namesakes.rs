//! VMs with one UUID. It is only text: more than one process may have it, and a domain of each libvirt connection. The VM that
//! got the row of the UUID keeps it for as long as it lives; every other one has a row of its own, with an empty vmUUID.

use std::collections::{BTreeMap, BTreeSet};

use super::{Core, Domain, DomainProcess, SourceId, VmUuid, indexes::Identity};

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
        let second = self.second_identity(source, uuid);
        let is_taken =
            namesakes.is_some_and(|namesakes| namesakes.domains.values().any(|it| *it == plain));
        // A domain that is no process here leaves the row to the process that has it.
        let has_processes = self.connection(source).config.has_processes;
        let is_of_process = self.vms.get(&plain).is_some_and(|vm| vm.pid.is_some());
        if is_taken || self.indexes.get(second).is_some() || (!has_processes && is_of_process) {
            second
        } else {
            plain
        }
    }

    fn second_identity(&self, source: SourceId, uuid: VmUuid) -> Identity {
        let uri = &self.connection(source).config.uri;
        Identity::Uuid(uuid.of_domain_at(uri))
    }

    /// The VM that a domain is from now on. A process that has the row of the UUID and is not the domain's keeps the row, unless
    /// the connection reports for the first time (`is_first`): then the row is the domain's since before the agent.
    pub(super) fn claim(&mut self, source: SourceId, domain: &Domain, is_first: bool) -> Identity {
        let uuid = domain.uuid;
        let mut identity = self.identity_of(source, uuid);
        if !self.has_claimed(source, uuid) {
            let holder = self.vms.get(&identity).filter(|vm| vm.domain.is_none());
            if let Some(pid) = holder.and_then(|vm| vm.pid)
                && !self.may_become(pid, domain, is_first)
            {
                if is_first {
                    self.give_process(identity, None);
                } else {
                    identity = self.second_identity(source, uuid);
                }
            }
            let namesakes = self.namesakes.entry(uuid).or_default();
            namesakes.domains.insert(source, identity);
            self.refresh_namesakes(uuid);
        }
        self.vms.entry(identity).or_default();
        identity
    }

    /// Whether a connection has a domain with this UUID.
    pub(super) fn has_claimed(&self, source: SourceId, uuid: VmUuid) -> bool {
        self.namesakes.get(&uuid).is_some_and(|it| it.domains.contains_key(&source))
    }

    /// Whether the process that has the row of a domain's UUID can be the domain's.
    fn may_become(&self, pid: u32, domain: &Domain, is_first: bool) -> bool {
        let Some(known) = self.processes.get(&pid) else { return false };
        let process = &known.process;
        let row = known.vm.and_then(|vm| self.vms.get(&vm));
        let is_awaited = !is_first && row.is_some_and(|vm| vm.awaited.is_some());
        let has_name = process.name == domain.name;
        match domain.process {
            DomainProcess::Pid(told) if domain.is_active => told == pid,
            DomainProcess::Untold if domain.is_active => {
                match (&process.machine, &domain.machine) {
                    (Some(of_process), Some(of_domain)) => of_process == of_domain,
                    _ => has_name,
                }
            }
            // libvirt reports its start soon.
            _ => has_name && is_awaited,
        }
    }

    /// Whether a VM with this UUID shows it: one that libvirt vouches for before one that only says so.
    pub(super) fn has_uuid(&self, identity: Identity, uuid: VmUuid) -> bool {
        let plain = Identity::Uuid(uuid);
        let Some(namesakes) = self.namesakes.get(&uuid) else { return identity == plain };
        let mut connections = self.connections.iter();
        let are_known =
            connections.all(|connection| !connection.config.has_processes || connection.has_listed);
        if !are_known || namesakes.domains.values().any(|it| *it == plain) {
            return identity == plain;
        }
        let vouched = namesakes
            .domains
            .iter()
            .find(|(source, _)| self.connection(**source).config.has_processes);
        identity == vouched.map_or(plain, |(_, identity)| *identity)
    }

    /// Has the rows made again that may show this UUID.
    pub(super) fn refresh_namesakes(&mut self, uuid: VmUuid) {
        self.dirty.insert(Identity::Uuid(uuid));
        let namesakes = self.namesakes.get(&uuid);
        self.dirty.extend(namesakes.into_iter().flat_map(|it| it.domains.values()));
    }

    /// The row that a process with this UUID may take.
    pub(super) fn free_row(&self, uuid: VmUuid) -> Option<Identity> {
        let namesakes = self.namesakes.get(&uuid)?;
        let is_free = |row: &Identity| {
            self.vms.get(row).is_none_or(|vm| vm.domain.is_none() && vm.pid.is_none())
        };
        self.rows_without_domain(uuid, namesakes).into_iter().find(is_free)
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

    /// The rows of this UUID that have no domain at present, and that processes may take: the row of the UUID itself, and the
    /// row of each connection that has not listed its domains since the agent started.
    fn rows_without_domain(&self, uuid: VmUuid, namesakes: &Namesakes) -> Vec<Identity> {
        let has_domain = |row: &Identity| namesakes.domains.values().any(|of| of == row);
        let unreported = self
            .connections
            .iter()
            .filter(|connection| connection.config.has_processes && !connection.has_listed)
            .map(|connection| Identity::Uuid(uuid.of_domain_at(&connection.config.uri)))
            .filter(|second| self.indexes.get(*second).is_some());
        std::iter::once(Identity::Uuid(uuid))
            .chain(unreported)
            .filter(|row| !has_domain(row))
            .collect()
    }
}
