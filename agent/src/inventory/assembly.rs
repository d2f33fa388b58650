//! One set of VMs out of what each source knows.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    path::Path,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use super::{
    AdminState, AutoStart, Change, Disk, DiskSize, Hypervisor, Memory, Nic, OperState, Persistence,
    Registry, StorageAccess, StorageMedia, StorageSource, Vcpu, Vm,
    change::Changes,
    indexes::{Identity, Indexes, Part},
    interfaces::Interfaces,
    procfs::Devices,
};
use crate::counters::{DiskIo, DiskTotals, VmSlot, since_boot_ns};

/// A VM as its process shows it.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct VmProcess {
    /// Process id.
    pub pid: u32,
    /// Start in clock ticks since boot.
    pub start_ticks: u64,
    /// The same in ns.
    pub started_ns: u64,
    /// By its command line, or made of its program and process id.
    pub name: String,
    /// By its command line.
    pub uuid: Option<[u8; 16]>,
    /// vCPUs that it has.
    pub cpus: u32,
    /// vCPUs that it can have.
    pub max_cpus: u32,
    /// By its command line, or estimated.
    pub memory: Memory,
    /// The record of its process; `None` = not counted.
    pub slot: Option<VmSlot>,
    /// In ascending order of id, no id twice.
    pub vcpus: Vec<Vcpu>,
    /// By its command line.
    pub devices: Devices,
    /// Whether it holds a VM of KVM.
    pub has_kvm: bool,
}

/// A VM as libvirt knows it, running or not.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Domain {
    /// UUID in network byte order.
    pub uuid: [u8; 16],
    /// Name.
    pub name: String,
    /// libosinfo's id of the guest's system; empty = not known.
    pub os_type: String,
    /// vmAdminState.
    pub admin_state: AdminState,
    /// vmOperState.
    pub oper_state: OperState,
    /// Whether it has a process, by libvirt's word.
    pub is_active: bool,
    /// vmAutoStart.
    pub auto_start: AutoStart,
    /// vmPersistent.
    pub persistence: Persistence,
    /// vCPUs that are plugged in; `None` = not known.
    pub cpus: Option<u32>,
    /// vCPUs that it can have; `None` = not known.
    pub max_cpus: Option<u32>,
    /// Ids of the vCPUs, where the domain's description lists them.
    pub vcpu_ids: Vec<u32>,
    /// The memory columns.
    pub memory: Memory,
    /// In the order of the description.
    pub disks: Vec<DomainDisk>,
    /// In the order of the description.
    pub nics: Vec<DomainNic>,
}

/// A disk of a [`Domain`].
#[derive(Clone, Debug, Eq, PartialEq)]
#[expect(missing_docs, reason = "the fields are those of `Disk`")]
pub struct DomainDisk {
    pub target: String,
    pub source: StorageSource,
    pub format: String,
    pub resource: String,
    pub access: StorageAccess,
    pub media: StorageMedia,
    pub bus: String,
    pub size: DiskSize,
}

/// A network interface of a [`Domain`].
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct DomainNic {
    /// Link-layer address.
    pub mac: Vec<u8>,
    /// The host's interface.
    pub device: Option<String>,
    /// What the guest sees.
    pub model: String,
}

/// Puts the VMs together and publishes them. Called by sources, never by a request.
#[derive(Debug)]
pub struct Assembly {
    registry: Arc<Registry>,
    /// Whether processes that are of no domain are VMs too.
    shows_processes: bool,
    parts: Mutex<Parts>,
}

#[derive(Debug)]
struct Parts {
    indexes: Indexes,
    processes: Vec<VmProcess>,
    cpus: Vec<u32>,
    domains: HashMap<[u8; 16], Domain>,
    /// By the names of the disks in the guest.
    sizes: HashMap<[u8; 16], HashMap<String, DiskSize>>,
    /// Of domains that have a process, by the same names.
    totals: HashMap<[u8; 16], HashMap<String, DiskTotals>>,
    /// libvirt answers, so that what it says of a state holds.
    is_libvirt_live: bool,
    hypervisor: Hypervisor,
    changes: Changes,
    /// Each source has told once what there is.
    has_processes: bool,
    has_domains: bool,
    has_new_disks: bool,
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
            is_libvirt_live: false,
            hypervisor,
            changes: Changes::new(tell),
            has_processes: false,
            has_domains: false,
            has_new_disks: false,
        };
        Self { registry, shows_processes, parts: Mutex::new(parts) }
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
        }
    }

    /// All domains of libvirt, which answers again.
    pub fn set_domains(&self, domains: Vec<Domain>) {
        let mut parts = self.parts();
        parts.domains = domains.into_iter().map(|domain| (domain.uuid, domain)).collect();
        let Parts { sizes, totals, domains, .. } = &mut *parts;
        sizes.retain(|uuid, _| domains.contains_key(uuid));
        totals.retain(|uuid, _| domains.get(uuid).is_some_and(|domain| domain.is_active));
        parts.is_libvirt_live = true;
        parts.changes.settle_all();
        let is_first = !std::mem::replace(&mut parts.has_domains, true);
        self.publish_as(&mut parts, is_first);
    }

    /// Some domains as they are now (`None` = it is gone), after they went through these states. Of those that are
    /// given back more states are expected, before what was found is told, or [`settle`](Self::settle).
    pub fn update_domains(
        &self,
        changes: BTreeMap<[u8; 16], Option<Domain>>,
        states: &[([u8; 16], OperState)],
    ) -> Vec<[u8; 16]> {
        let mut parts = self.parts();
        for &(uuid, state) in states {
            let index = parts.indexes.assign(Identity::Uuid(uuid));
            parts.changes.note(index, state);
        }
        let mut expected = Vec::new();
        for (uuid, domain) in changes {
            let index = parts.indexes.assign(Identity::Uuid(uuid));
            if parts.changes.found(index, domain.as_ref().map(|domain| domain.oper_state)) {
                expected.push(uuid);
            }
            if !domain.as_ref().is_some_and(|domain| domain.is_active) {
                parts.totals.remove(&uuid);
            }
            match domain {
                Some(domain) => {
                    parts.domains.insert(uuid, domain);
                }
                None => {
                    parts.domains.remove(&uuid);
                    parts.sizes.remove(&uuid);
                }
            }
        }
        self.publish(&mut parts);
        expected
    }

    /// No more states are expected of these domains: they are as they were found.
    pub fn settle(&self, domains: &[[u8; 16]]) {
        let mut parts = self.parts();
        for &uuid in domains {
            let index = parts.indexes.assign(Identity::Uuid(uuid));
            parts.changes.settle(index);
        }
        self.publish(&mut parts);
    }

    /// The domains that start with the host; the others that can be told apart do not.
    pub fn set_auto_start(&self, uuids: &BTreeSet<[u8; 16]>) {
        let mut parts = self.parts();
        for (uuid, domain) in &mut parts.domains {
            if domain.auto_start != AutoStart::Unknown {
                let starts = uuids.contains(uuid);
                domain.auto_start = if starts { AutoStart::Enabled } else { AutoStart::Disabled };
            }
        }
        self.publish(&mut parts);
    }

    /// The names in the guest of a domain's disks that have a size: an empty drive has none.
    pub fn sized_disks(&self, uuid: [u8; 16]) -> Vec<String> {
        let parts = self.parts();
        let disks = parts.domains.get(&uuid).map_or(&[][..], |domain| &domain.disks);
        let has_size =
            |disk: &&DomainDisk| !disk.resource.is_empty() || disk.media == StorageMedia::HardDisk;
        disks.iter().filter(has_size).map(|disk| disk.target.clone()).collect()
    }

    /// Notes the sizes of a domain's disks, by their names in the guest; they are seen with the next publication.
    pub fn note_sizes(&self, uuid: [u8; 16], sizes: Vec<(String, DiskSize)>) {
        let mut parts = self.parts();
        if parts.domains.contains_key(&uuid) {
            parts.sizes.insert(uuid, sizes.into_iter().collect());
            parts.has_new_disks = true;
        }
    }

    /// Takes in what QEMU counts of the I/O of a domain's disks, by their names in the guest. A disk that was not
    /// counted yet is seen with the next publication; one thread at a time does this for a domain.
    pub fn note_io(&self, uuid: [u8; 16], disks: &[(String, DiskIo)]) {
        let mut parts = self.parts();
        let Parts { domains, totals, has_new_disks, .. } = &mut *parts;
        if !domains.get(&uuid).is_some_and(|domain| domain.is_active) {
            return;
        }
        let totals = totals.entry(uuid).or_default();
        for (target, io) in disks {
            if let Some(totals) = totals.get(target) {
                totals.follow(*io);
            } else {
                let new = DiskTotals::default();
                new.follow(*io);
                totals.insert(target.clone(), new);
                *has_new_disks = true;
            }
        }
    }

    /// The domains with disks whose I/O QEMU may count.
    pub fn domains_with_io(&self) -> Vec<[u8; 16]> {
        let parts = self.parts();
        let has_io = |domain: &&Domain| domain.is_active && !domain.disks.is_empty();
        parts.domains.values().filter(has_io).map(|domain| domain.uuid).collect()
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
        let vms = parts.compose(self.shows_processes);
        parts.indexes.save();
        parts.has_new_disks = false;
        parts.changes.follow(&vms, is_first);
        self.registry.publish(vms, parts.cpus.clone(), &parts.hypervisor, since_boot_ns());
    }
}

impl Parts {
    fn compose(&mut self, shows_processes: bool) -> Vec<Vm> {
        let Self { indexes, processes, domains, sizes, totals, is_libvirt_live, .. } = self;
        let host = Interfaces::default();
        let mut rows = Rows { indexes, sizes, totals, host, is_libvirt_live: *is_libvirt_live };
        let mut of_uuid: HashMap<[u8; 16], Vec<&VmProcess>> = HashMap::new();
        for process in &*processes {
            if let Some(uuid) = process.uuid {
                of_uuid.entry(uuid).or_default().push(process);
            }
        }
        let mut domains: Vec<&Domain> = domains.values().collect();
        // A full list comes in no order; without this, equal hosts would differ in their indexes.
        domains.sort_unstable_by_key(|domain| domain.uuid);
        let mut of_domains = HashSet::new();
        let mut vms = Vec::with_capacity(domains.len() + processes.len());
        for domain in &domains {
            let same = of_uuid.get(&domain.uuid).map_or(&[][..], Vec::as_slice);
            let process = rows.process_of(domain, same);
            // Also one that libvirt has not told of yet, or not any more.
            let its = same.iter().copied().filter(|process| process.name == domain.name);
            of_domains.extend(its.chain(process).map(|process| process.pid));
            vms.push(rows.domain(domain, process));
        }
        let mut identities = HashSet::new();
        if shows_processes {
            let mut taken: HashSet<[u8; 16]> = domains.iter().map(|domain| domain.uuid).collect();
            for process in processes.iter().filter(|process| !of_domains.contains(&process.pid)) {
                let identity = match process.uuid {
                    // Another VM has it too: only one can have its index.
                    Some(uuid) if !taken.insert(uuid) => process.identity(),
                    Some(uuid) => Identity::Uuid(uuid),
                    None => process.identity(),
                };
                identities.insert(identity);
                vms.push(rows.process(process, identity));
            }
        }
        for gone in self.indexes.processes() {
            if !identities.contains(&gone) {
                self.indexes.release(gone);
            }
        }
        vms
    }
}

/// Makes the rows of one view.
struct Rows<'a> {
    indexes: &'a mut Indexes,
    sizes: &'a HashMap<[u8; 16], HashMap<String, DiskSize>>,
    totals: &'a HashMap<[u8; 16], HashMap<String, DiskTotals>>,
    host: Interfaces,
    is_libvirt_live: bool,
}

impl Rows<'_> {
    /// The process of a domain, of those with its UUID: libvirt starts QEMU with the domain's UUID and name.
    fn process_of<'p>(&self, domain: &Domain, same: &[&'p VmProcess]) -> Option<&'p VmProcess> {
        if !domain.is_active && self.is_libvirt_live {
            return None;
        }
        // A command line is only text: a process that has KVM is more likely to be the one.
        same.iter().copied().max_by_key(|process| (process.has_kvm, process.name == domain.name))
    }

    fn domain(&mut self, domain: &Domain, process: Option<&VmProcess>) -> Vm {
        let identity = Identity::Uuid(domain.uuid);
        let index = self.indexes.assign(identity);
        let (mut admin_state, mut oper_state) = (domain.admin_state, domain.oper_state);
        if !self.is_libvirt_live && domain.is_active != process.is_some() {
            // It was started, or it ended, while libvirt could not tell.
            (admin_state, oper_state) = match process {
                Some(_) => (AdminState::Running, OperState::Running),
                None => (admin_state, OperState::Unknown),
            };
        }
        let cpus = domain.cpus.or_else(|| process.map(|process| process.cpus)).unwrap_or(0);
        let vcpus = match process {
            Some(process) => process.vcpus.clone(),
            None if domain.vcpu_ids.is_empty() => {
                (0..cpus).map(|id| Vcpu { id, slot: None }).collect()
            }
            None => domain.vcpu_ids.iter().map(|&id| Vcpu { id, slot: None }).collect(),
        };
        let disks = self.disks(identity, &domain.disks);
        let nics = self.nics(identity, &domain.nics);
        Vm {
            index,
            name: domain.name.clone(),
            uuid: Some(domain.uuid),
            os_type: domain.os_type.clone(),
            admin_state,
            oper_state,
            auto_start: domain.auto_start,
            persistence: domain.persistence,
            cpu_number: cpus,
            min_cpu_number: None,
            max_cpu_number: domain.max_cpus.or_else(|| process.map(|process| process.max_cpus)),
            memory: match process {
                Some(process) if domain.memory == Memory::default() => process.memory,
                _ => domain.memory,
            },
            started_ns: process.map(|process| process.started_ns),
            pid: process.map(|process| process.pid),
            slot: process.and_then(|process| process.slot),
            vcpus,
            disks,
            nics,
        }
    }

    fn disks(&mut self, identity: Identity, told: &[DomainDisk]) -> Vec<Disk> {
        let mut disks: Vec<Disk> = told.iter().map(|disk| self.disk(identity, disk)).collect();
        disks.sort_by_key(|disk| disk.index);
        // Names are unique, but they are only text.
        disks.dedup_by_key(|disk| disk.index);
        disks
    }

    fn nics(&mut self, identity: Identity, told: &[DomainNic]) -> Vec<Nic> {
        let mut nics: Vec<Nic> =
            told.iter().enumerate().map(|(at, nic)| self.nic(identity, at, nic)).collect();
        nics.sort_by_key(|nic| nic.index);
        nics.dedup_by_key(|nic| nic.index);
        nics
    }

    fn disk(&mut self, identity: Identity, disk: &DomainDisk) -> Disk {
        let index = self.indexes.assign_part(identity, Part::Disk(&disk.target));
        let (size, totals) = match identity {
            Identity::Uuid(uuid) => (
                self.sizes.get(&uuid).and_then(|sizes| sizes.get(&disk.target)).copied(),
                self.totals.get(&uuid).and_then(|totals| totals.get(&disk.target)).cloned(),
            ),
            Identity::Process { .. } => (None, None),
        };
        Disk {
            index,
            target: disk.target.clone(),
            source: disk.source,
            format: disk.format.clone(),
            resource: disk.resource.clone(),
            access: disk.access,
            media: disk.media,
            bus: disk.bus.clone(),
            size: size.unwrap_or(disk.size),
            totals,
        }
    }

    fn nic(&mut self, identity: Identity, at: usize, nic: &DomainNic) -> Nic {
        // Addresses need not be unique in a domain, and may be missing.
        let key = match (&nic.mac[..], &nic.device) {
            (&[], Some(device)) => device.clone(),
            (&[], None) => format!("#{at}"),
            (mac, _) => {
                mac.iter().map(|octet| format!("{octet:02x}")).collect::<Vec<_>>().join(":")
            }
        };
        let index = self.indexes.assign_part(identity, Part::Nic(&key));
        let (if_index, parent_if_index) =
            nic.device.as_deref().map_or((0, 0), |device| self.host.numbers(device));
        Nic {
            index,
            if_index,
            parent_if_index,
            model: nic.model.clone(),
            phys_address: nic.mac.clone(),
        }
    }

    fn process(&mut self, process: &VmProcess, identity: Identity) -> Vm {
        Vm {
            index: self.indexes.assign(identity),
            name: process.name.clone(),
            uuid: process.uuid,
            os_type: String::new(),
            admin_state: AdminState::Running,
            oper_state: OperState::Running,
            auto_start: AutoStart::Unknown,
            persistence: Persistence::Transient,
            cpu_number: process.cpus,
            min_cpu_number: None,
            max_cpu_number: Some(process.max_cpus),
            memory: process.memory,
            started_ns: Some(process.started_ns),
            pid: Some(process.pid),
            slot: process.slot,
            vcpus: process.vcpus.clone(),
            disks: self.disks(identity, &process.devices.disks),
            nics: self.nics(identity, &process.devices.nics),
        }
    }
}

impl VmProcess {
    const fn identity(&self) -> Identity {
        Identity::Process { pid: self.pid, start_ticks: self.start_ticks }
    }
}

/// Octets in hexadecimal with colons between them; nothing where one is none.
pub(super) fn mac(text: &str) -> Vec<u8> {
    let octets: Option<Vec<u8>> = text
        .split(':')
        .take(32)
        .map(|octet| u8::from_str_radix(octet, 16).ok().filter(|_| octet.len() == 2))
        .collect();
    octets.unwrap_or_default()
}
