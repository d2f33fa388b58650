//! The core's facts of libvirt: what each connection reports about its domains, and which of its events are awaited.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use super::{
    ChangeEvent, Connection, Core, Domain, DomainFact, FoundState, Hypervisor, Now, OperState,
    SourceId, VmUuid,
    indexes::Identity,
    pairing::Mark,
    state::{LATE, Presence},
};
use crate::account::Account;

/// What is known of a libvirt connection.
#[derive(Debug)]
pub(super) struct ConnectionState {
    pub(super) config: Connection,
    /// libvirt answers, so that its report of a state holds.
    pub(super) is_live: bool,
    pub(super) has_listed: bool,
    hypervisor: Option<(String, String)>,
    /// The last event of each VM that has come and that libvirt's thread has not taken yet.
    came: BTreeMap<Identity, u64>,
    /// VMs about which libvirt's thread is to report.
    under_way: BTreeSet<Identity>,
}

impl ConnectionState {
    /// A connection that has reported nothing.
    pub(super) const fn new(config: Connection) -> Self {
        Self {
            config,
            is_live: false,
            has_listed: false,
            hypervisor: None,
            came: BTreeMap::new(),
            under_way: BTreeSet::new(),
        }
    }

    /// Whether events have come and the report about them has not.
    pub(super) fn is_under_way(&self) -> bool {
        !self.under_way.is_empty() || !self.came.is_empty()
    }
}

impl Core {
    /// Takes in what a libvirt connection reports. Whether it is its first list: what that has is no change.
    pub(super) fn libvirt(&mut self, source: SourceId, fact: DomainFact, now: Now) -> bool {
        match fact {
            DomainFact::Hypervisor { software, version } => {
                self.connection_mut(source).hypervisor = Some((software, version));
                self.describe_hypervisor();
            }
            DomainFact::Listed(domains, undescribed) => {
                return self.list(source, domains, &undescribed, now);
            }
            DomainFact::Changed { domains, events } => self.change(source, domains, events, now),
            DomainFact::State(uuid, found, events) => {
                self.take_state(source, uuid, found, events, now);
            }
            DomainFact::EventCame(uuid, number) => {
                let identity = self.identity_of(source, uuid);
                self.connection_mut(source).came.insert(identity, number);
                self.dirty.insert(identity);
            }
            DomainFact::EventsUnderWay(uuids, through) => {
                self.end_under_way(source);
                self.end_came(source, through);
                for uuid in uuids {
                    // Also a domain that is not known yet: its process may be seen before it is described.
                    let identity = self.identity_of(source, uuid);
                    self.connection_mut(source).under_way.insert(identity);
                    self.dirty.insert(identity);
                }
            }
            DomainFact::AutoStart(uuids) => self.auto_start(source, &uuids),
            DomainFact::Migrating(uuid, is_migrating) => {
                let identity = self.identity_of(source, uuid);
                if let Some(vm) = self.vms.get_mut(&identity)
                    && let Some((_, domain)) = &vm.domain
                {
                    let runs = domain.state.oper_state == OperState::Running;
                    vm.is_migrating = Some(is_migrating && runs);
                    self.dirty.insert(identity);
                }
            }
            DomainFact::Lost => self.lost(source, now),
        }
        false
    }

    fn list(
        &mut self,
        source: SourceId,
        domains: Vec<Domain>,
        undescribed: &BTreeSet<VmUuid>,
        now: Now,
    ) -> bool {
        let connection = self.connection_mut(source);
        connection.is_live = true;
        let is_first = !std::mem::replace(&mut connection.has_listed, true);
        let mut domains: BTreeMap<_, _> =
            domains.into_iter().map(|domain| (domain.uuid, domain)).collect();
        for uuid in self.domains_of(source) {
            if undescribed.contains(&uuid) {
                // libvirt answers again, so that the state known last holds.
                self.dirty.insert(self.identity_of(source, uuid));
            } else if !domains.contains_key(&uuid) {
                self.update(source, uuid, None, is_first, now);
            }
        }
        while let Some((uuid, domain)) = domains.pop_first() {
            self.update(source, uuid, Some(domain), is_first, now);
        }
        // What libvirt knows, a process alone does not say any more.
        self.dirty.extend(self.processes.values().filter_map(|known| known.vm));
        is_first
    }

    fn change(
        &mut self,
        source: SourceId,
        domains: BTreeMap<VmUuid, Option<Domain>>,
        events: Vec<(VmUuid, ChangeEvent)>,
        now: Now,
    ) {
        for domain in domains.values().flatten() {
            let identity = self.claim(source, domain, false);
            if let Some(announced) =
                self.vms.get_mut(&identity).and_then(|vm| vm.announced.as_mut())
            {
                // What root's libvirt reports is no user's, though its process may have been found first.
                announced.account = domain.user.map(Account::User);
            }
        }
        for (uuid, event) in events {
            self.take_event(source, uuid, event, domains.contains_key(&uuid), now);
        }
        self.end_under_way(source);
        for (uuid, domain) in domains {
            self.update(source, uuid, domain, false, now);
        }
    }

    fn take_event(
        &mut self,
        source: SourceId,
        uuid: VmUuid,
        event: ChangeEvent,
        is_described: bool,
        now: Now,
    ) {
        let identity = self.identity_of(source, uuid);
        if self.is_of_another(source, uuid, identity) {
            return;
        }
        let Some(vm) = self.vms.get_mut(&identity) else { return };
        // The next event is awaited anew.
        vm.awaited = vm.awaited.map(|_| now.instant + LATE);
        vm.presence = Presence::NeverSeen;
        self.dirty.insert(identity);
        if let (Some(announced), Some((_, domain))) = (&mut vm.announced, &vm.domain) {
            announced.account = domain.user.map(Account::User);
        }
        let ChangeEvent::State(state) = event else {
            vm.note_deleted(&mut self.changes);
            return;
        };
        if state.is_down() {
            // The next QEMU counts from 0.
            vm.run = self.runs.next();
        }
        // What follows the copying of the memory has events of its own.
        vm.is_migrating = None;
        vm.note(state, &mut self.changes);
        if !is_described {
            let before = vm.domain.as_ref().map(|(_, domain)| Mark::of(domain));
            vm.follow_event(state);
            let after = vm.domain.as_ref().map(|(_, domain)| Mark::of(domain));
            self.mark(uuid, before, after);
            self.resolve(uuid, now, false);
        }
    }

    /// The state of a domain after these events, before the domain is described.
    fn take_state(
        &mut self,
        source: SourceId,
        uuid: VmUuid,
        found: FoundState,
        events: Vec<ChangeEvent>,
        now: Now,
    ) {
        for event in events {
            self.take_event(source, uuid, event, true, now);
        }
        let identity = self.identity_of(source, uuid);
        self.connection_mut(source).under_way.remove(&identity);
        let Some(vm) = self.vms.get_mut(&identity) else { return };
        let Some((_, domain)) = &mut vm.domain else { return };
        domain.state = found;
        domain.is_active = true;
        let found = vm.domain.as_ref().map(|(_, domain)| vm.domain_state(domain));
        vm.await_events(found, now.instant);
        self.dirty.insert(identity);
        self.resolve(uuid, now, false);
    }

    /// A domain as it was found; `None` = it is gone.
    fn update(
        &mut self,
        source: SourceId,
        uuid: VmUuid,
        domain: Option<Domain>,
        is_old: bool,
        now: Now,
    ) {
        let identity = match &domain {
            Some(domain) => self.claim(source, domain, is_old),
            None => self.identity_of(source, uuid),
        };
        if domain.is_none() && self.is_of_another(source, uuid, identity) {
            return;
        }
        let known = self.domain_of(identity);
        let has_same_devices =
            known.zip(domain.as_ref()).is_some_and(|(a, b)| a.disks == b.disks && a.nics == b.nics);
        let before = known.map(Mark::of);
        self.mark(uuid, before, domain.as_ref().map(Mark::of));
        let Some(vm) = self.vms.get_mut(&identity) else { return };
        if !is_old {
            let found = domain.as_ref().map(|domain| vm.domain_state(domain));
            vm.await_events(found, now.instant);
        }
        let was_active = vm.domain.as_ref().is_some_and(|(_, domain)| domain.is_active);
        if was_active && !domain.as_ref().is_some_and(|domain| domain.is_active) {
            vm.run = self.runs.next();
        }
        self.dirty.insert(identity);
        let has_new_devices = domain.is_some() && !has_same_devices;
        match domain {
            Some(domain) => {
                vm.domain = Some((source, domain));
                // Asked for with each report: the size of an image may be another one.
                vm.wants_io = None;
            }
            None => {
                (vm.domain, vm.is_migrating) = (None, None);
                if let Some(namesakes) = self.namesakes.get_mut(&uuid) {
                    namesakes.domains.remove(&source);
                }
                self.refresh_namesakes(uuid);
            }
        }
        self.resolve(uuid, now, is_old);
        if has_new_devices {
            self.rescan(identity);
        }
        self.forget_namesakes(uuid);
    }

    /// Whether a VM is that of a process that has been announced as no domain's: events of a domain that has come and gone
    /// unseen are not about it.
    fn is_of_another(&self, source: SourceId, uuid: VmUuid, identity: Identity) -> bool {
        let vm = self.vms.get(&identity).filter(|_| !self.has_claimed(source, uuid));
        vm.is_some_and(|vm| vm.domain.is_none() && vm.pid.is_some() && vm.awaited.is_none())
    }

    fn auto_start(&mut self, source: SourceId, uuids: &BTreeSet<VmUuid>) {
        for uuid in self.domains_of(source) {
            let identity = self.identity_of(source, uuid);
            if let Some((_, domain)) = self.vms.get_mut(&identity).and_then(|vm| vm.domain.as_mut())
                && domain.set_auto_start(uuids.contains(&uuid))
            {
                self.dirty.insert(identity);
            }
        }
    }

    fn lost(&mut self, source: SourceId, now: Now) {
        self.connection_mut(source).is_live = false;
        self.end_under_way(source);
        self.end_came(source, u64::MAX);
        let is_any_live = self.is_any_live();
        for (identity, vm) in &mut self.vms {
            let is_its = vm.domain.as_ref().is_some_and(|(of, _)| *of == source);
            if is_its || (vm.domain.is_none() && !is_any_live) {
                // No event is to come.
                (vm.awaited, vm.is_migrating) = (None, None);
                self.dirty.insert(*identity);
            }
        }
        for uuid in self.domains_of(source) {
            self.resolve(uuid, now, false);
        }
    }

    /// The events up to this number are not waited for any more.
    fn end_came(&mut self, source: SourceId, through: u64) {
        let came = &mut self.connection_mut(source).came;
        let taken: Vec<_> =
            came.extract_if(.., |_, number| *number <= through).map(|(vm, _)| vm).collect();
        self.dirty.extend(taken);
    }

    fn end_under_way(&mut self, source: SourceId) {
        let ended = std::mem::take(&mut self.connection_mut(source).under_way);
        self.dirty.extend(ended);
    }

    /// The first connection in the configuration that reports a hypervisor names it.
    fn describe_hypervisor(&mut self) {
        let known = self.connections.iter().find_map(|connection| connection.hypervisor.as_ref());
        if let Some((software, version)) = known
            && (software, version) != (&self.hypervisor.software, &self.hypervisor.version)
        {
            self.hypervisor = Arc::new(Hypervisor {
                software: software.clone(),
                version: version.clone(),
                object_id: self.hypervisor.object_id,
            });
            self.view_is_new = true;
        }
    }

    /// Whether libvirt's events about a VM have come, and the report about them has not.
    pub(super) fn is_under_way(&self, identity: Identity) -> bool {
        self.connections.iter().any(|connection| {
            connection.under_way.contains(&identity) || connection.came.contains_key(&identity)
        })
    }

    pub(super) fn is_any_live(&self) -> bool {
        self.connections.iter().any(|connection| connection.is_live)
    }

    pub(super) fn connection(&self, source: SourceId) -> &ConnectionState {
        // `handle` has compared the number with the length.
        &self.connections[usize::from(source.0)]
    }

    fn connection_mut(&mut self, source: SourceId) -> &mut ConnectionState {
        &mut self.connections[usize::from(source.0)]
    }
}
