//! One set of VMs out of two sources that do not wait for each other: what is told of each VM, whatever comes first.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{
    collections::BTreeMap,
    sync::{Arc, mpsc},
    thread,
    time::Instant,
};

use kvmeter::{
    counters::DiskIo,
    inventory::{
        AdminState, Assembly, AutoStart, Change,
        ChangeEvent::{self, Deleted, State},
        DiskSize, Domain, DomainDisk, Hypervisor, Memory,
        OperState::{self, Migrating, Running, Shutdown, Shuttingdown, Unknown},
        Persistence, Registry, StorageAccess, StorageMedia, StorageSource, Submission, VmProcess,
        VmUuid,
    },
};

const UUID: VmUuid = VmUuid::of_bytes([9; 16]);

struct Host {
    assembly: Assembly,
    registry: Arc<Registry>,
    changes: mpsc::Receiver<Change>,
    _state: tempfile::TempDir,
}

impl Host {
    /// Both sources have told that there is nothing.
    fn new() -> Self {
        let state = tempfile::tempdir().unwrap();
        let (tell, changes) = mpsc::channel();
        let registry = Arc::new(Registry::new(Hypervisor::default(), 0));
        let tell = Box::new(move |change| tell.send(change).unwrap());
        let assembly = Assembly::new(Arc::clone(&registry), true, state.path(), tell);
        assembly.set_processes(Vec::new(), vec![0]);
        assembly.set_domains(Vec::new());
        Self { assembly, registry, changes, _state: state }
    }

    fn processes(&self, processes: &[VmProcess]) {
        self.assembly.set_processes(processes.to_vec(), vec![0]);
    }

    /// libvirt's events led through these states, and then this is found.
    fn libvirt(&self, states: &[OperState], found: Option<OperState>) {
        let happened: Vec<_> = states.iter().map(|state| (UUID, State(*state))).collect();
        self.assembly.update_domains(BTreeMap::from([(UUID, found.map(domain))]), &happened);
    }

    /// Lets pass what is waited for.
    fn settle(&self) {
        while let Some(due) = self.assembly.due() {
            thread::sleep(due.saturating_duration_since(Instant::now()));
            self.assembly.settle();
        }
    }

    fn told(&self) -> Vec<(OperState, ChangeEvent)> {
        self.changes.try_iter().map(|change| (change.before, change.event)).collect()
    }

    fn states(&self) -> Vec<OperState> {
        self.registry.view().vms.iter().map(|vm| vm.oper_state).collect()
    }

    fn reads(&self) -> Option<u64> {
        self.registry.view().vms[0].disks[0].totals.as_ref().map(|totals| totals.read().reads)
    }
}

fn domain(state: OperState) -> Domain {
    Domain {
        uuid: UUID,
        name: "vm".to_owned(),
        os_type: String::new(),
        admin_state: AdminState::Running,
        oper_state: state,
        is_unexplained: false,
        is_active: !matches!(state, Shutdown | OperState::Suspended | OperState::Crashed),
        auto_start: AutoStart::Disabled,
        persistence: Persistence::Persistent,
        cpus: Some(1),
        max_cpus: Some(1),
        vcpu_ids: Vec::new(),
        memory: Memory::default(),
        disks: vec![DomainDisk {
            target: "vda".to_owned(),
            source: StorageSource::Raw,
            format: "raw".to_owned(),
            resource: "/vda".to_owned(),
            access: StorageAccess::ReadWrite,
            media: StorageMedia::HardDisk,
            bus: "virtio".to_owned(),
            size: DiskSize::default(),
            others: Vec::new(),
            chain_is_in_image: false,
            submission: Submission::Unknown,
        }],
        nics: Vec::new(),
    }
}

fn process(pid: u32) -> VmProcess {
    VmProcess {
        pid,
        start_ticks: u64::from(pid),
        started_ns: u64::from(pid),
        name: "vm".to_owned(),
        uuid: Some(UUID),
        cpus: 1,
        max_cpus: 1,
        has_kvm: true,
        ..VmProcess::default()
    }
}

#[test]
fn a_domain_whose_process_is_seen_first_is_told_as_libvirt_has_it() {
    let host = Host::new();
    host.processes(&[process(1)]);
    assert_eq!(host.states(), [Running], "it is there at once");
    host.libvirt(&[Migrating], Some(Migrating));
    host.libvirt(&[Running], Some(Running));
    host.settle();
    assert_eq!(host.told(), [(Shutdown, State(Migrating)), (Migrating, State(Running))]);

    // And at the end: libvirt is first.
    host.libvirt(&[Shuttingdown, Shutdown], None);
    host.processes(&[]);
    host.settle();
    let end =
        [(Running, State(Shuttingdown)), (Shuttingdown, State(Shutdown)), (Shutdown, Deleted)];
    assert_eq!(host.told(), end);
}

#[test]
fn a_process_that_libvirt_does_not_know_is_told_in_the_end() {
    let host = Host::new();
    host.processes(&[process(1)]);
    assert_eq!(host.told(), []);
    host.settle();
    assert_eq!(host.told(), [(Shutdown, State(Running))]);
    host.processes(&[]);
    host.settle();
    assert_eq!(host.told(), [(Running, State(Shutdown)), (Shutdown, Deleted)]);
    // Without libvirt there is nobody to wait for.
    host.assembly.libvirt_is_gone();
    host.processes(&[process(2)]);
    assert_eq!(host.told(), [(Shutdown, State(Running))]);
}

#[test]
fn events_of_a_libvirt_that_says_no_more_are_believed() {
    let host = Host::new();
    host.processes(&[process(1)]);
    host.libvirt(&[Running], Some(Running));
    let last = [(UUID, State(Shuttingdown)), (UUID, State(Shutdown))];
    host.assembly.update_domains(BTreeMap::new(), &last);
    host.processes(&[]);
    host.assembly.libvirt_is_gone();
    host.settle();
    assert_eq!(host.states(), [Shutdown]);
    assert_eq!(
        host.told(),
        [
            (Shutdown, State(Running)),
            (Running, State(Shuttingdown)),
            (Shuttingdown, State(Shutdown))
        ]
    );
}

#[test]
fn what_changed_while_libvirt_was_away_is_told_once() {
    let host = Host::new();
    host.processes(&[process(1)]);
    host.libvirt(&[Running], Some(Running));
    host.assembly.libvirt_is_gone();
    // The list is newer than events that it sends now.
    host.assembly.set_domains(vec![domain(Shutdown)]);
    host.libvirt(&[Shuttingdown], Some(Shutdown));
    host.libvirt(&[Shutdown], Some(Shutdown));
    host.settle();
    let stopped = [(Running, State(Shuttingdown)), (Shuttingdown, State(Shutdown))];
    assert_eq!(host.told()[1..], stopped);
    // Here it sends none.
    host.processes(&[]);
    host.assembly.libvirt_is_gone();
    host.assembly.set_domains(vec![domain(Running)]);
    assert_eq!(host.told(), []);
    host.settle();
    assert_eq!(host.told(), [(Shutdown, State(Running))]);
}

#[test]
fn who_is_never_seen_takes_no_index() {
    let host = Host::new();
    host.libvirt(&[Running, Shutdown], None);
    host.settle();
    host.processes(&[VmProcess { uuid: Some(VmUuid::of_bytes([1; 16])), ..process(1) }]);
    assert_eq!(host.registry.view().vms[0].index.0, 1);
}

#[test]
fn a_libvirt_that_hangs_while_a_process_ends_is_not_believed_for_ever() {
    let host = Host::new();
    host.processes(&[process(1)]);
    host.libvirt(&[Running], Some(Running));
    host.processes(&[]);
    assert_eq!(host.states(), [Running], "its word may only be late");
    assert!(host.assembly.due().is_some(), "but it is not waited for without an end");
    host.settle();
    assert_eq!(host.states(), [Unknown]);
}

#[test]
fn counts_of_disks_begin_anew_with_the_vm() {
    let host = Host::new();
    let io = |reads| [("vda".to_owned(), DiskIo { reads, ..DiskIo::default() })];
    host.processes(&[process(1)]);
    host.libvirt(&[Running], Some(Running));
    host.assembly.note_io(UUID, &io(100));
    host.assembly.publish_disks();
    assert_eq!(host.reads(), Some(100));
    host.assembly.note_io(UUID, &io(120));
    assert_eq!(host.reads(), Some(120), "without a new view");
    // Off and on again before anybody looks.
    host.processes(&[process(2)]);
    host.libvirt(&[Shutdown, Running], Some(Running));
    assert_eq!(host.reads(), None);
    host.assembly.note_io(UUID, &io(150));
    host.assembly.publish_disks();
    assert_eq!(host.reads(), Some(150));
    // The same where libvirt was away.
    host.assembly.libvirt_is_gone();
    host.processes(&[process(3)]);
    host.assembly.set_domains(vec![domain(Running)]);
    host.assembly.note_io(UUID, &io(160));
    host.assembly.publish_disks();
    assert_eq!(host.reads(), Some(160));
}
