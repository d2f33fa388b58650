//! The row of a VM, made of its domain and its process, and what follows from the row: what is to be counted, and what
//! libvirt is to be asked about its disks.

use std::{collections::HashMap, sync::Arc, time::Instant};

use super::{
    AdminState, AutoStart, Core, CountedBy, Disk, DiskQuery, Domain, DomainDisk, DomainProcess,
    Memory, OperState, Output, Persistence, QueriedDisk, SourceId, StorageMedia, StorageSource,
    Vcpu, Vm, VmPlan, VmProcess,
    core::UNFOLLOWED,
    indexes::{Identity, Part},
    processes::KnownProcess,
    state::{Presence, VmState},
};
use crate::account::Account;

impl Core {
    /// The row of a VM; `None` = it is none any more.
    pub(super) fn row(&mut self, identity: Identity, vm: &mut VmState, now: Instant) -> Option<Vm> {
        let known = vm.pid.and_then(|pid| self.processes.get(&pid));
        let process_states = known.map(KnownProcess::states);
        let process = known.map(|known| Arc::clone(&known.process));
        if vm.domain.is_none() && process.is_none() {
            return None;
        }
        let index = *vm.index.get_or_insert_with(|| self.indexes.assign(identity));
        let disks = self.disks(identity, vm, process.as_deref());
        let nics = self.nics(identity, vm, process.as_deref());
        let of_process = process.as_deref();
        let uuid = |uuid| Some(uuid).filter(|_| self.has_uuid(identity, uuid));
        let common = |name: &str, uuid, disks, nics| Vm {
            index,
            name: name.to_owned(),
            uuid,
            run: vm.run,
            started_ns: of_process.map(|process| process.started_ns),
            pid: of_process.map(|process| process.pid),
            slot: of_process.and_then(|process| process.slot),
            gaps: of_process.map(|process| process.gaps.clone()).unwrap_or_default(),
            disks,
            nics,
            ..Vm::default()
        };
        match (&vm.domain, of_process) {
            (Some((source, domain)), process) => {
                let base = common(&domain.name, uuid(domain.uuid), disks, nics);
                let (admin_state, oper_state) = self.states(*source, domain, vm, now);
                let row = of_domain(base, *source, domain, process, (admin_state, oper_state));
                vm.up.follow(oper_state);
                Some(Vm { up_since_ns: vm.up.of(row.started_ns), ..row })
            }
            (None, Some(process)) => {
                let base = common(&process.name, process.uuid.and_then(uuid), disks, nics);
                let (admin_state, oper_state) = process_states?;
                Some(of_process_alone(Vm { admin_state, oper_state, ..base }, process))
            }
            (None, None) => None,
        }
    }

    /// vmAdminState and vmOperState of a domain: libvirt's word, unless libvirt cannot know better.
    fn states(
        &self,
        source: SourceId,
        domain: &Domain,
        vm: &VmState,
        now: Instant,
    ) -> (AdminState, OperState) {
        let connection = self.connection(source);
        let is_lost = matches!(vm.presence, Presence::LostSince(at) if at + UNFOLLOWED <= now);
        let is_followed = connection.is_live && !is_lost;
        let has_processes = connection.config.has_processes;
        match vm.pid {
            _ if is_followed || domain.is_active == vm.pid.is_some() || !has_processes => {
                (domain.state.admin_state, vm.domain_state(domain))
            }
            // It was started, or it ended, while libvirt could not tell.
            Some(_) => (AdminState::Running, OperState::Running),
            None => (domain.state.admin_state, OperState::Unknown),
        }
    }

    fn disks(
        &mut self,
        identity: Identity,
        vm: &VmState,
        process: Option<&VmProcess>,
    ) -> Vec<Disk> {
        let mut disks: Vec<Disk> = disks_of(vm, process)
            .iter()
            .map(|disk| {
                let index = self.indexes.assign_part(identity, Part::Disk(&disk.target));
                Disk {
                    index,
                    target: disk.target.clone(),
                    source: disk.source,
                    format: disk.format.clone(),
                    resource: disk.resource.clone(),
                    access: disk.access,
                    media: disk.media,
                    bus: disk.bus.clone(),
                    size: disk.size,
                    counted_by: self.counted_by(vm, process, index),
                }
            })
            .collect();
        disks.sort_by_key(|disk| disk.index);
        // Names are unique, but they are only text.
        disks.dedup_by_key(|disk| disk.index);
        disks
    }

    fn counted_by(&self, vm: &VmState, process: Option<&VmProcess>, storage: u32) -> CountedBy {
        let Some(process) = process else {
            return CountedBy::Uncounted("the VM does not run".to_owned());
        };
        if !self.counts {
            return CountedBy::Uncounted("there are no probes".to_owned());
        }
        if process.slot.is_none() {
            return CountedBy::Uncounted("the VM is not counted".to_owned());
        }
        let counted = vm.counted.iter().flatten().find(|(of, _)| *of == storage);
        counted.map_or(CountedBy::Pending, |(_, counted)| counted.clone())
    }

    /// On whose account a VM changes: that of the user of its libvirt, or without a domain that of its process; `None` = root's.
    /// Tells the source of processes that a process is that of a domain of root's libvirt.
    pub(super) fn account_of(&mut self, vm: &VmState) -> Option<Account> {
        let process = vm.pid.and_then(|pid| self.processes.get(&pid)).map(|known| &known.process);
        let Some((_, domain)) = &vm.domain else { return process?.account };
        if let Some(process) = process
            && domain.user.is_none()
            && process.account.is_some()
            && domain.process == DomainProcess::Pid(process.pid)
        {
            self.outputs.push_back(Output::Entrust(process.pid, process.start_ticks));
        }
        domain.user.map(Account::User)
    }

    /// Has the source of processes find out what libvirt's paths mean to the domain's process.
    pub(super) fn ask_paths(&mut self, vm: &mut VmState) {
        let (Some((_, domain)), Some(pid)) = (&vm.domain, vm.pid) else { return };
        let Some(known) = self.processes.get(&pid) else { return };
        let process = &known.process;
        let files = domain.disks.iter().filter(|disk| disk.source != StorageSource::Network);
        let paths = files.flat_map(DomainDisk::paths).filter(|path| !path.is_empty());
        let process_id = process.identity();
        let has_asked = |(of, asked): &(Identity, Arc<[String]>)| {
            *of == process_id && asked.iter().eq(paths.clone())
        };
        if paths.clone().all(|path| process.paths.contains_key(path))
            || vm.asked_paths.as_ref().is_some_and(has_asked)
        {
            return;
        }
        let paths: Arc<[String]> = paths.map(str::to_owned).collect();
        vm.asked_paths = Some((process_id, Arc::clone(&paths)));
        self.outputs.push_back(Output::ResolvePaths(pid, paths));
    }

    /// What is to be counted, if the disks or the process have changed. Ends the counting of another process.
    pub(super) fn plan(&mut self, vm: &mut VmState) -> Option<Arc<VmPlan>> {
        let process = vm.pid.and_then(|pid| self.processes.get(&pid));
        let plan = process.filter(|_| self.counts).and_then(|known| {
            let process = &known.process;
            let (slot, row) = (process.slot?, vm.row.as_deref()?);
            let reported = disks_of(vm, Some(process));
            let by_target: HashMap<&str, &DomainDisk> =
                reported.iter().rev().map(|of| (of.target.as_str(), of)).collect();
            let planned = row.disks.iter().filter_map(|disk| {
                let reported = by_target.get(disk.target.as_str())?;
                Some((disk.index, DomainDisk::clone(reported)))
            });
            let is_of_domain = vm.domain.is_some();
            Some(VmPlan {
                vm: slot,
                process: Arc::clone(process),
                disks: planned.collect(),
                is_of_domain,
                may_be_of_domain: !is_of_domain
                    && process.uuid.is_some()
                    && vm.awaited.is_some()
                    && self.is_any_live(),
            })
        });
        if plan.as_ref() == vm.plan.as_deref() {
            return None;
        }
        if let Some(old) = &vm.plan
            && plan.as_ref().is_none_or(|plan| plan.vm != old.vm)
        {
            self.outputs.push_back(Output::EndCount(old.vm));
        }
        vm.plan = plan.map(Arc::new);
        vm.plan.clone()
    }

    /// Has libvirt asked about the disks of a domain that it has reported again, or whose I/O only QEMU counts.
    pub(super) fn query_disks(&mut self, vm: &mut VmState) {
        let (Some((source, domain)), Some(row)) = (&vm.domain, &vm.row) else {
            vm.wants_io = None;
            return;
        };
        // How a pending disk is counted is reported soon.
        let is_uncounted = |disk: &Disk| matches!(disk.counted_by, CountedBy::Uncounted(_));
        let wants_io = domain.is_active && row.disks.iter().any(is_uncounted);
        let is_same_run = vm.wants_io.is_some_and(|(run, _)| run == vm.run);
        if vm.wants_io == Some((vm.run, wants_io)) {
            return;
        }
        // Sizes are the same where only the way of counting has changed.
        let asks_now = wants_io || !is_same_run;
        vm.wants_io = Some((vm.run, wants_io));
        let queried = |disk: &Disk| QueriedDisk {
            target: disk.target.clone(),
            storage: disk.index,
            has_size: !disk.resource.is_empty() || disk.media == StorageMedia::HardDisk,
        };
        self.outputs.push_back(Output::QueryDisks(
            *source,
            DiskQuery {
                uuid: domain.uuid,
                vm: row.index,
                run: vm.run,
                disks: row.disks.iter().map(queried).collect(),
                wants_io,
                asks_now,
                is_active: domain.is_active,
            },
        ));
    }
}

/// The disks as they were reported: by libvirt, or by the process alone.
fn disks_of<'a>(vm: &'a VmState, process: Option<&'a VmProcess>) -> &'a [DomainDisk] {
    match (&vm.domain, process) {
        (Some((_, domain)), _) => &domain.disks,
        (None, Some(process)) => &process.devices.disks,
        (None, None) => &[],
    }
}

fn of_domain(
    base: Vm,
    source: SourceId,
    domain: &Domain,
    process: Option<&VmProcess>,
    (admin_state, oper_state): (AdminState, OperState),
) -> Vm {
    // libvirt has no event for a vCPU that is plugged in; the process shows it.
    let seen = process.map(|process| process.cpus).filter(|&cpus| cpus > 0);
    let cpu_number = seen.or(domain.cpus).unwrap_or(0);
    let without_thread = |id| Vcpu { id, slot: None };
    let vcpus = match process {
        Some(process) => process.vcpus.clone(),
        None if domain.vcpu_ids.is_empty() => (0..cpu_number).map(without_thread).collect(),
        None => domain.vcpu_ids.iter().copied().map(without_thread).collect(),
    };
    Vm {
        source: Some(source),
        os_type: domain.os_type.clone(),
        admin_state,
        oper_state,
        auto_start: domain.auto_start,
        persistence: domain.persistence,
        cpu_number,
        max_cpu_number: domain.max_cpus.or_else(|| process?.max_cpus),
        memory: match process {
            Some(process) if domain.memory == Memory::default() => process.memory,
            _ => domain.memory,
        },
        vcpus,
        ..base
    }
}

fn of_process_alone(base: Vm, process: &VmProcess) -> Vm {
    Vm {
        auto_start: AutoStart::Unknown,
        // Whether some manager has a configuration of it, as Proxmox does, is not seen.
        persistence: Persistence::Unknown,
        cpu_number: process.cpus,
        max_cpu_number: process.max_cpus,
        memory: process.memory,
        vcpus: process.vcpus.clone(),
        ..base
    }
}
