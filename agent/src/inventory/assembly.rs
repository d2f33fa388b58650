//! One set of VMs out of what each source knows.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    fmt,
    path::Path,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use super::{
    AdminState, AutoStart, Change, ChangeEvent, CountedBy, Disk, DiskSize, Domain, DomainDisk,
    Hypervisor, OperState, Registry, StorageMedia, Vm, VmProcess, VmUuid,
    change::{Changes, is_down},
    compose::state_of,
    indexes::{Identity, Indexes},
};
use crate::{
    counters::{DiskIo, DiskTotals, Records, since_boot_ns},
    counting::{Images, SharedHooks},
};

/// What is found of a VM may be ahead of what is told of it. So long after it was found, nothing more is expected.
const LATE: Duration = Duration::from_secs(1);

/// A domain that is active by libvirt's word and has lost its process is one that libvirt does not follow any more,
/// when this has passed: in a storm its word may be seconds behind.
const UNFOLLOWED: Duration = Duration::from_secs(30);

/// Puts the VMs together and publishes them. Called by sources, never by a request.
#[derive(Debug)]
pub struct Assembly {
    registry: Arc<Registry>,
    /// Whether processes that are of no domain are VMs too.
    shows_processes: bool,
    parts: Mutex<Parts>,
}

/// Asks another source about one VM.
struct Ask<T>(Box<dyn Fn(T) + Send>);

impl<T> fmt::Debug for Ask<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Ask")
    }
}

/// What is known.
#[derive(Debug)]
pub(super) struct Parts {
    pub(super) indexes: Indexes,
    pub(super) processes: Vec<VmProcess>,
    cpus: Vec<u32>,
    pub(super) domains: HashMap<VmUuid, Domain>,
    /// By the names of the disks in the guest.
    pub(super) sizes: HashMap<VmUuid, HashMap<String, DiskSize>>,
    /// Of domains that have a process.
    pub(super) totals: HashMap<VmUuid, Totals>,
    /// Has disks counted; `None` = nothing can count them.
    pub(super) images: Option<Images>,
    /// Has libvirt asked anew about a domain; must not wait.
    ask_libvirt: Option<Ask<VmUuid>>,
    /// Has a process looked at anew; must not wait.
    look_at: Option<Ask<u32>>,
    /// libvirt answers, so that what it says of a state holds.
    pub(super) is_libvirt_live: bool,
    hypervisor: Hypervisor,
    changes: Changes,
    /// VMs of which more is to be told, and until when that is waited for.
    expected: HashMap<VmUuid, Instant>,
    /// VMs of which events are being answered.
    under_way: BTreeSet<VmUuid>,
    /// Active domains that had a process, and since when they have none; `None` = they have one.
    pub(super) had_process: HashMap<VmUuid, Option<Instant>>,
    /// Domains whose memory is copied while they run, and whether to another host.
    pub(super) migrating: HashMap<VmUuid, bool>,
    /// When the view was made that is published.
    composed: Instant,
    /// Each source has told once what there is.
    has_processes: bool,
    has_domains: bool,
    has_new_disks: bool,
}

/// What QEMU counts of a domain's disks, by their names in the guest.
#[derive(Debug, Default)]
pub(super) struct Totals {
    /// When the process started whose they are, if that is known.
    started_ns: Option<u64>,
    pub(super) disks: HashMap<String, DiskTotals>,
}

impl Assembly {
    /// Publishes into `registry`, with indexes that are kept in `state_dir`. `tell` gets every change of state
    /// and must not wait.
    #[must_use]
    pub fn new(
        registry: Arc<Registry>,
        shows_processes: bool,
        state_dir: &Path,
        tell: Box<dyn Fn(Change) + Send + Sync>,
    ) -> Self {
        let hypervisor = registry.view().hypervisor.clone();
        let parts = Parts {
            indexes: Indexes::load(state_dir),
            processes: Vec::new(),
            cpus: Vec::new(),
            domains: HashMap::new(),
            sizes: HashMap::new(),
            totals: HashMap::new(),
            images: None,
            ask_libvirt: None,
            look_at: None,
            is_libvirt_live: false,
            hypervisor,
            changes: Changes::new(tell),
            expected: HashMap::new(),
            under_way: BTreeSet::new(),
            had_process: HashMap::new(),
            migrating: HashMap::new(),
            composed: Instant::now(),
            has_processes: false,
            has_domains: false,
            has_new_disks: false,
        };
        Self { registry, shows_processes, parts: Mutex::new(parts) }
    }

    /// From now on disks are counted in these records.
    pub fn count_images(&self, records: Arc<Records>, hooks: SharedHooks) {
        self.parts().images = Some(Images::new(records, hooks));
    }

    /// Who asks libvirt about a domain, without waiting for the answer.
    pub fn ask_libvirt_by(&self, ask: impl Fn(VmUuid) + Send + 'static) {
        self.parts().ask_libvirt = Some(Ask(Box::new(ask)));
    }

    /// Who looks at a process of which something has changed, soon.
    pub fn look_by(&self, look: impl Fn(u32) + Send + 'static) {
        self.parts().look_at = Some(Ask(Box::new(look)));
    }

    /// The kernel has begun to count an image of which nobody knew.
    pub fn image_taken(&self) {
        self.publish(&mut self.parts());
    }

    /// All VMs that are processes, and the online CPUs.
    pub fn set_processes(&self, processes: Vec<VmProcess>, cpus: Vec<u32>) {
        let mut parts = self.parts();
        if parts.has_processes && parts.processes == processes && parts.cpus == cpus {
            return;
        }
        (parts.processes, parts.cpus) = (processes, cpus);
        let is_first = !std::mem::replace(&mut parts.has_processes, true);
        self.publish_as(&mut parts, is_first);
    }

    /// This process was killed. libvirt tells of its domains itself.
    pub fn crashed(&self, pid: u32) {
        let mut parts = self.parts();
        let view = self.registry.view();
        if let Some(vm) = view.vms.iter().find(|vm| vm.pid == Some(pid))
            && !vm.uuid.is_some_and(|uuid| parts.domains.contains_key(&uuid))
        {
            parts.changes.note(vm.index, OperState::Crashed);
            parts.processes.retain(|process| process.pid != pid);
            self.publish(&mut parts);
        }
    }

    /// All domains of libvirt, which answers again. Events that led to what was found may still come.
    pub fn set_domains(&self, domains: Vec<Domain>) {
        let mut parts = self.parts();
        let domains: HashMap<_, _> =
            domains.into_iter().map(|domain| (domain.uuid, domain)).collect();
        let old = std::mem::replace(&mut parts.domains, domains);
        let is_first = !std::mem::replace(&mut parts.has_domains, true);
        if !is_first {
            let now: Vec<_> = parts
                .domains
                .values()
                .map(|domain| (domain.uuid, Some(domain.oper_state)))
                .chain(old.into_keys().map(|uuid| (uuid, None)))
                .collect();
            for (uuid, state) in now {
                if state.is_some() || !parts.domains.contains_key(&uuid) {
                    parts.found(uuid, state);
                }
            }
        }
        let Parts { sizes, totals, domains, .. } = &mut *parts;
        sizes.retain(|uuid, _| domains.contains_key(uuid));
        totals.retain(|uuid, _| domains.get(uuid).is_some_and(|domain| domain.is_active));
        parts.is_libvirt_live = true;
        self.publish_as(&mut parts, is_first);
    }

    /// Some domains as they are now (`None` = it is gone), after this happened to them. Where that does not lead to
    /// what was found, more is expected for a while before the rest is told.
    pub fn update_domains(
        &self,
        changes: BTreeMap<VmUuid, Option<Domain>>,
        happened: &[(VmUuid, ChangeEvent)],
    ) {
        let mut parts = self.parts();
        for &(uuid, event) in happened {
            // What is under way for this one is waited for anew.
            parts.expected.remove(&uuid);
            parts.had_process.remove(&uuid);
            let state = match event {
                ChangeEvent::State(state) => state,
                ChangeEvent::Deleted => {
                    if let Some(index) = parts.indexes.get(Identity::Uuid(uuid)) {
                        parts.changes.note_deleted(index);
                    }
                    continue;
                }
            };
            if is_down(state) {
                // The next QEMU counts anew.
                parts.totals.remove(&uuid);
            }
            // What comes after the copying tells itself.
            parts.migrating.remove(&uuid);
            let is_there = changes.get(&uuid).is_some_and(Option::is_some);
            let identity = Identity::Uuid(uuid);
            // Only who is seen has an index.
            let index = parts.indexes.get(identity);
            let Some(index) = index.or_else(|| is_there.then(|| parts.indexes.assign(identity)))
            else {
                continue;
            };
            parts.changes.note(index, state);
            if !changes.contains_key(&uuid)
                && let Some(domain) = parts.domains.get_mut(&uuid)
            {
                // libvirt did not say how it is now.
                domain.oper_state = state;
                domain.admin_state = admin_state(state);
                domain.is_active = !is_down(state);
            }
        }
        parts.under_way.clear();
        for (uuid, domain) in changes {
            let found = domain.as_ref().map(|domain| state_of(domain, &parts.migrating));
            parts.found(uuid, found);
            if !domain.as_ref().is_some_and(|domain| domain.is_active) {
                parts.totals.remove(&uuid);
            }
            match domain {
                Some(domain) => {
                    let old = parts.domains.insert(uuid, domain);
                    parts.look_at_disks(uuid, old.as_ref());
                }
                None => {
                    parts.domains.remove(&uuid);
                    parts.sizes.remove(&uuid);
                    parts.migrating.remove(&uuid);
                }
            }
        }
        self.publish(&mut parts);
    }

    /// Events of these domains have come and are about to be answered: nothing of them is settled meanwhile.
    pub fn under_way(&self, domains: &BTreeSet<VmUuid>) {
        self.parts().under_way.clone_from(domains);
    }

    /// When [`settle`](Self::settle) is to be called; `None` = nothing is waited for.
    pub fn due(&self) -> Option<Instant> {
        let parts = self.parts();
        let unfollowed = parts.had_process.values().flatten().map(|since| *since + UNFOLLOWED);
        // What has become of those that were past it then is in the view.
        let unfollowed = unfollowed.filter(|at| *at > parts.composed).min();
        let expected = parts.expected.iter().filter(|(uuid, _)| !parts.under_way.contains(*uuid));
        let images = parts.images.as_ref().and_then(Images::due);
        expected.map(|(_, until)| *until).chain(unfollowed).chain(images).min()
    }

    /// Tells what was found of VMs of which nothing more is told in time.
    pub fn settle(&self) {
        let mut parts = self.parts();
        let now = Instant::now();
        let Parts { expected, under_way, .. } = &mut *parts;
        let is_late =
            |uuid: &VmUuid, until: &mut Instant| *until <= now && !under_way.contains(uuid);
        let late: Vec<_> = expected.extract_if(is_late).collect();
        let view = self.registry.view();
        for (uuid, _) in late {
            if let Some(index) = parts.indexes.get(Identity::Uuid(uuid)) {
                parts.changes.settle(index);
                if let Some(vm) = view.vms.iter().find(|vm| vm.index == index) {
                    parts.changes.note(index, vm.oper_state);
                }
            }
        }
        self.publish(&mut parts);
    }

    /// Whether a domain that runs is on its way to another host.
    pub fn set_migrating(&self, uuid: VmUuid, is_migrating: bool) {
        let mut parts = self.parts();
        let runs = |domain: &Domain| domain.oper_state == OperState::Running;
        let is_migrating = is_migrating && parts.domains.get(&uuid).is_some_and(runs);
        if parts.migrating.insert(uuid, is_migrating).unwrap_or(false) != is_migrating {
            self.publish(&mut parts);
        }
    }

    /// Whether a domain is on its way to another host while it runs; `None` = it is not known.
    pub fn is_migrating(&self, uuid: VmUuid) -> Option<bool> {
        let parts = self.parts();
        match parts.domains.get(&uuid) {
            Some(domain) if domain.is_active => parts.migrating.get(&uuid).copied(),
            // There is nothing to ask any more.
            _ => Some(false),
        }
    }

    /// The memory of a domain is copied anew: what was known of the last time does not hold.
    pub fn forget_migration(&self, uuid: VmUuid) {
        let mut parts = self.parts();
        if parts.migrating.get(&uuid) == Some(&false) {
            parts.migrating.remove(&uuid);
        }
    }

    /// The domains that start with the host; the others that can be told apart do not.
    pub fn set_auto_start(&self, uuids: &BTreeSet<VmUuid>) {
        let mut parts = self.parts();
        for (uuid, domain) in &mut parts.domains {
            if domain.auto_start != AutoStart::Unknown {
                let starts = uuids.contains(uuid);
                domain.auto_start = if starts { AutoStart::Enabled } else { AutoStart::Disabled };
            }
        }
        self.publish(&mut parts);
    }

    /// The domain of this name.
    pub fn domain_named(&self, name: &str) -> Option<VmUuid> {
        self.parts().domains.values().find(|domain| domain.name == name).map(|domain| domain.uuid)
    }

    /// The names in the guest of a domain's disks that have a size: an empty drive has none.
    pub fn sized_disks(&self, uuid: VmUuid) -> Vec<String> {
        let parts = self.parts();
        let disks = parts.domains.get(&uuid).map_or(&[][..], |domain| &domain.disks);
        let has_size =
            |disk: &&DomainDisk| !disk.resource.is_empty() || disk.media == StorageMedia::HardDisk;
        disks.iter().filter(has_size).map(|disk| disk.target.clone()).collect()
    }

    /// Notes what sizes of a domain's disks could be learned, of those that have one, by their names in the guest;
    /// they are seen with the next publication.
    pub fn note_sizes(&self, uuid: VmUuid, disks: &[String], sizes: Vec<(String, DiskSize)>) {
        let mut parts = self.parts();
        if parts.domains.contains_key(&uuid) {
            let known = parts.sizes.entry(uuid).or_default();
            let before = known.clone();
            known.retain(|disk, _| disks.contains(disk));
            known.extend(sizes);
            parts.has_new_disks |= parts.sizes.get(&uuid) != Some(&before);
        }
    }

    /// Takes in what QEMU counts of the I/O of a domain's disks, by their names in the guest. A disk that was not
    /// counted yet is seen with the next publication; one thread at a time does this for a domain.
    pub fn note_io(&self, uuid: VmUuid, disks: &[(String, DiskIo)]) {
        let mut parts = self.parts();
        let Parts { domains, totals, processes, has_new_disks, .. } = &mut *parts;
        if !domains.get(&uuid).is_some_and(|domain| domain.is_active) {
            return;
        }
        let process = processes.iter().find(|process| process.uuid == Some(uuid));
        let started_ns = process.map(|process| process.started_ns);
        let totals = totals.entry(uuid).or_default();
        if totals.started_ns.is_some() && started_ns.is_some() && totals.started_ns != started_ns {
            *totals = Totals::default();
            *has_new_disks = true;
        }
        totals.started_ns = totals.started_ns.or(started_ns);
        for (target, io) in disks {
            if let Some(totals) = totals.disks.get(target) {
                totals.observe(*io);
            } else {
                let new = DiskTotals::default();
                new.observe(*io);
                totals.disks.insert(target.clone(), new);
                *has_new_disks = true;
            }
        }
    }

    /// The active domains with disks, and whether there is one whose I/O QEMU may count and the kernel does not.
    pub fn domains_with_disks(&self) -> Vec<(VmUuid, bool)> {
        let parts = self.parts();
        let view = self.registry.view();
        let is_uncounted = |disk: &Disk| matches!(disk.counted_by, CountedBy::Nobody(_));
        let is_active = |uuid: &VmUuid| parts.domains.get(uuid).is_some_and(|d| d.is_active);
        let with_disks = view.vms.iter().filter(|vm| !vm.disks.is_empty());
        with_disks
            .filter_map(|vm| Some((vm.uuid?, vm.disks.iter().any(is_uncounted))))
            .filter(|(uuid, _)| is_active(uuid))
            .collect()
    }

    /// Publishes what was noted of disks, if it is seen only then.
    pub fn publish_disks(&self) {
        let mut parts = self.parts();
        if parts.has_new_disks {
            self.publish(&mut parts);
        }
    }

    /// What runs the VMs, by its own word.
    pub fn set_hypervisor(&self, software: String, version: String) {
        let mut parts = self.parts();
        (parts.hypervisor.software, parts.hypervisor.version) = (software, version);
        self.publish(&mut parts);
    }

    /// libvirt does not answer: what it said last stays, but for what the processes show.
    pub fn libvirt_is_gone(&self) {
        let mut parts = self.parts();
        parts.is_libvirt_live = false;
        parts.changes.settle_all();
        parts.expected.clear();
        parts.under_way.clear();
        parts.migrating.clear();
        self.publish(&mut parts);
    }

    /// How many domains and how many other processes there are.
    pub fn counts(&self) -> (usize, usize) {
        let parts = self.parts();
        let all = self.registry.view().vms.len();
        (parts.domains.len(), all.saturating_sub(parts.domains.len()))
    }

    fn parts(&self) -> MutexGuard<'_, Parts> {
        // Whoever panicked left whole parts.
        self.parts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn publish(&self, parts: &mut Parts) {
        self.publish_as(parts, false);
    }

    fn publish_as(&self, parts: &mut Parts, is_first: bool) {
        parts.follow_processes();
        parts.composed = Instant::now();
        let lost_before = parts.composed.checked_sub(UNFOLLOWED);
        let vms = parts.compose(self.shows_processes, lost_before);
        parts.indexes.save();
        parts.has_new_disks = false;
        parts.ask_about_images(&vms);
        if parts.is_libvirt_live && !is_first {
            // A process with a UUID may be of a domain that libvirt is about to tell of, or has told the end of.
            // What is already waited for is not found anew.
            let may_be_of_domain = |uuid: &VmUuid| {
                !parts.domains.contains_key(uuid) && !parts.expected.contains_key(uuid)
            };
            let uncertain: Vec<_> =
                vms.iter().filter_map(|vm| vm.uuid).filter(may_be_of_domain).collect();
            for uuid in uncertain {
                parts.found(uuid, Some(OperState::Running));
            }
        }
        parts.changes.follow(&vms, is_first);
        self.registry.publish(vms, parts.cpus.clone(), &parts.hypervisor, since_boot_ns());
    }
}

impl Parts {
    /// See [`Changes::found`].
    fn found(&mut self, uuid: VmUuid, state: Option<OperState>) {
        let identity = Identity::Uuid(uuid);
        let index = match state {
            Some(_) => self.indexes.assign(identity),
            // Who is gone needs no new index.
            None => match self.indexes.get(identity) {
                Some(index) => index,
                None => return,
            },
        };
        if self.changes.found(index, state) {
            self.expected.entry(uuid).or_insert_with(|| Instant::now() + LATE);
        } else {
            self.expected.remove(&uuid);
        }
    }

    /// Has a process looked at whose disks are others than before: what it has open is so, too.
    fn look_at_disks(&self, uuid: VmUuid, before: Option<&Domain>) {
        if before.map(|domain| &domain.disks) == self.domains.get(&uuid).map(|now| &now.disks) {
            return;
        }
        let its = self.processes.iter().filter(|process| process.uuid == Some(uuid));
        for process in its {
            if let Some(look_at) = &self.look_at {
                look_at.0(process.pid);
            }
        }
    }

    /// Asks libvirt about VMs that do I/O on files of which it is not known what they are.
    fn ask_about_images(&mut self, vms: &[Vm]) {
        let Some(images) = &mut self.images else { return };
        let wanted = images.end();
        let Some(ask) = self.ask_libvirt.as_ref().filter(|_| self.is_libvirt_live) else { return };
        for vm in vms.iter().filter(|vm| vm.slot.is_some_and(|slot| wanted.contains(&slot))) {
            if let Some(uuid) = vm.uuid.filter(|uuid| self.domains.contains_key(uuid)) {
                ask.0(uuid);
            }
        }
    }

    /// Notes which active domains have a process, and which have lost it.
    fn follow_processes(&mut self) {
        let Self { domains, processes, had_process, .. } = self;
        let uuids: HashSet<_> = processes.iter().filter_map(|process| process.uuid).collect();
        had_process.retain(|uuid, _| domains.get(uuid).is_some_and(|domain| domain.is_active));
        for domain in domains.values().filter(|domain| domain.is_active) {
            if uuids.contains(&domain.uuid) {
                had_process.insert(domain.uuid, None);
            } else if let Some(since) = had_process.get_mut(&domain.uuid) {
                since.get_or_insert_with(Instant::now);
            }
        }
    }
}

/// What was asked of a domain that has come to this state.
const fn admin_state(state: OperState) -> AdminState {
    match state {
        OperState::Paused => AdminState::Paused,
        OperState::Suspending | OperState::Suspended => AdminState::Suspended,
        OperState::Shuttingdown | OperState::Shutdown | OperState::Crashed => AdminState::Shutdown,
        OperState::Unknown
        | OperState::Other
        | OperState::Preparing
        | OperState::Running
        | OperState::Resuming
        | OperState::Migrating => AdminState::Running,
    }
}
