//! The rows of one view, out of what each source told.

use std::{
    collections::{HashMap, HashSet},
    time::Instant,
};

use super::{
    AdminState, AutoStart, CountedBy, Disk, DiskSize, Domain, DomainDisk, DomainNic, Memory, Nic,
    OperState, Persistence, Vcpu, Vm, VmProcess, VmUuid,
    assembly::{Parts, Totals},
    indexes::{Identity, Indexes, Part},
};
use crate::{
    counting::{Counted, Images},
    sources::host::HostNics,
};

impl Parts {
    /// The VMs as they are now. An active domain that has had no process since this or longer is not followed by
    /// libvirt.
    pub(super) fn compose(
        &mut self,
        shows_processes: bool,
        lost_before: Option<Instant>,
    ) -> Vec<Vm> {
        let Self {
            indexes, processes, domains, sizes, totals, had_process, migrating, images, ..
        } = self;
        if let Some(images) = images {
            images.begin();
        }
        let host = HostNics::default();
        let lost = |since: &Option<Instant>| since.is_some_and(|at| Some(at) <= lost_before);
        let unfollowed: HashSet<_> =
            had_process.iter().filter(|(_, since)| lost(since)).map(|(uuid, _)| *uuid).collect();
        let is_libvirt_live = self.is_libvirt_live;
        let mut rows =
            Rows { indexes, sizes, totals, images, host, is_libvirt_live, unfollowed, migrating };
        let mut of_uuid: HashMap<VmUuid, Vec<&VmProcess>> = HashMap::new();
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
            let mut taken: HashSet<VmUuid> = domains.iter().map(|domain| domain.uuid).collect();
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

/// vmOperState of a domain.
pub(super) fn state_of(domain: &Domain, migrating: &HashMap<VmUuid, bool>) -> OperState {
    match domain.oper_state {
        OperState::Running if migrating.get(&domain.uuid) == Some(&true) => OperState::Migrating,
        state => state,
    }
}

/// Whose disks are shown.
#[derive(Clone, Copy)]
struct Owner<'a> {
    identity: Identity,
    process: Option<&'a VmProcess>,
    is_of_domain: bool,
}

/// Makes the rows of one view.
struct Rows<'a> {
    indexes: &'a mut Indexes,
    sizes: &'a HashMap<VmUuid, HashMap<String, DiskSize>>,
    totals: &'a HashMap<VmUuid, Totals>,
    images: &'a mut Option<Images>,
    host: HostNics,
    is_libvirt_live: bool,
    unfollowed: HashSet<VmUuid>,
    migrating: &'a HashMap<VmUuid, bool>,
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
        let (mut admin_state, mut oper_state) =
            (domain.admin_state, state_of(domain, self.migrating));
        let is_unfollowed = !self.is_libvirt_live || self.unfollowed.contains(&domain.uuid);
        if is_unfollowed && domain.is_active != process.is_some() {
            // It was started, or it ended, while libvirt could not tell.
            (admin_state, oper_state) = match process {
                Some(_) => (AdminState::Running, OperState::Running),
                None => (admin_state, OperState::Unknown),
            };
        }
        // libvirt tells no event of a vCPU that is plugged in; the process has it.
        let seen = process.map(|process| process.cpus).filter(|&cpus| cpus > 0);
        let cpus = seen.or(domain.cpus).unwrap_or(0);
        let vcpus = match process {
            Some(process) => process.vcpus.clone(),
            None if domain.vcpu_ids.is_empty() => {
                (0..cpus).map(|id| Vcpu { id, slot: None }).collect()
            }
            None => domain.vcpu_ids.iter().map(|&id| Vcpu { id, slot: None }).collect(),
        };
        let disks = self.disks(Owner { identity, process, is_of_domain: true }, &domain.disks);
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

    fn disks(&mut self, owner: Owner<'_>, told: &[DomainDisk]) -> Vec<Disk> {
        let mut disks: Vec<Disk> = told.iter().map(|disk| self.disk(owner, disk)).collect();
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

    fn disk(&mut self, owner: Owner<'_>, disk: &DomainDisk) -> Disk {
        let Owner { identity, process, .. } = owner;
        let index = self.indexes.assign_part(identity, Part::Disk(&disk.target));
        let counted_by = match (&mut *self.images, process) {
            (_, None) => CountedBy::Nobody("the VM does not run".to_owned()),
            (None, _) => CountedBy::Nobody("there are no probes".to_owned()),
            (Some(images), Some(process)) => {
                let is_of_domain = owner.is_of_domain;
                let may_be_of_domain =
                    !is_of_domain && self.is_libvirt_live && process.uuid.is_some();
                let storage = index;
                images.count(Counted { process, storage, disk, is_of_domain, may_be_of_domain })
            }
        };
        let (size, totals) = match identity {
            Identity::Uuid(uuid) => (
                self.sizes.get(&uuid).and_then(|sizes| sizes.get(&disk.target)).copied(),
                self.totals.get(&uuid).and_then(|totals| totals.disks.get(&disk.target)).cloned(),
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
            counted_by,
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
            nic.device.as_deref().map_or((0, 0), |device| self.host.if_indexes(device));
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
            disks: self.disks(
                Owner { identity, process: Some(process), is_of_domain: false },
                &process.devices.disks,
            ),
            nics: self.nics(identity, &process.devices.nics),
        }
    }
}
