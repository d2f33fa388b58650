//! One set of VMs out of sources that do not wait for each other: what is reported of each VM, whatever comes first.
//! Time is made up: nothing sleeps.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod identity;
mod interfaces;
mod namesakes;
mod pauses;
mod reports;

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::{Duration, Instant},
};

use kvmeter::{
    account::Account,
    counters::{ImageSlot, VmSlot},
    inventory::{
        AdminState, AutoStart,
        ChangeEvent::{self, Deleted, State},
        Connection, Core, CoreConfig, CountedBy, CountingReport, DiskQuery, DiskSize, Domain,
        DomainDisk, DomainFact, DomainNic, DomainProcess, Fact, Fence, FoundState, Inventory,
        Memory, Now,
        OperState::{self, Migrating, Running, Shutdown, Shuttingdown, Unknown},
        Output, Persistence, SavedIndexes, SourceId, StorageAccess, StorageMedia, StorageSource,
        Submission, VmProcess, VmUuid,
    },
    probe::Method,
};

const UUID: VmUuid = VmUuid::of_bytes([9; 16]);
const QEMU: SourceId = SourceId(0);
const SECOND: SourceId = SourceId(1);

struct Host {
    core: Core,
    now: Now,
    view: Inventory,
    changes: Vec<(u32, OperState, ChangeEvent)>,
    /// The accounts of the VMs that changed.
    users: Vec<Option<Account>>,
    queries: Vec<DiskQuery>,
    others: Vec<Output>,
}

impl Host {
    /// A libvirt connection and procfs have reported that there is nothing.
    fn new() -> Self {
        let mut host = Self::with(&[("qemu:///system", true)], SavedIndexes::default());
        host.libvirt_of(QEMU, listed(Vec::new()));
        host
    }

    fn with(connections: &[(&str, bool)], indexes: SavedIndexes) -> Self {
        let mut host = Self::unlisted(connections, indexes);
        host.fact(Fact::ProcessesListed);
        host
    }

    /// What was there before the agent is to be reported yet.
    fn unlisted(connections: &[(&str, bool)], indexes: SavedIndexes) -> Self {
        let connections = connections
            .iter()
            .map(|&(uri, has_processes)| Connection {
                uri: uri.to_owned(),
                has_processes,
                is_unnamed: uri.starts_with("ch:"),
            })
            .collect();
        let config = CoreConfig {
            shows_processes: true,
            counts: true,
            connections,
            ..CoreConfig::default()
        };
        let now = Now { instant: Instant::now(), since_boot_ns: 1_000 };
        let core = Core::new(config, indexes, now);
        let view = core.view();
        let users = Vec::new();
        Self {
            core,
            now,
            view,
            changes: Vec::new(),
            users,
            queries: Vec::new(),
            others: Vec::new(),
        }
    }

    fn fact(&mut self, fact: Fact) {
        self.core.handle(fact, self.now);
        self.drain();
    }

    /// Takes the outputs. A change never comes before the view that has it.
    fn drain(&mut self) {
        while let Some(output) = self.core.poll_output() {
            match output {
                Output::Publish(view) => {
                    self.view = (*view).clone();
                }
                Output::Changed(change) => {
                    assert_eq!(self.view.vms, self.core.view().vms, "the view comes first");
                    self.users.push(change.account);
                    self.changes.push((change.index.0, change.before, change.event));
                }
                Output::QueryDisks(_, query) => self.queries.push(query),
                other => self.others.push(other),
            }
        }
        assert_eq!(self.view.vms, self.core.view().vms);
    }

    fn start(&mut self, pid: u32) {
        self.fact(Fact::Process(Arc::new(process(pid))));
    }

    fn end(&mut self, pid: u32) {
        self.fact(Fact::ProcessGone { pid, killed: false });
    }

    fn libvirt_of(&mut self, source: SourceId, fact: DomainFact) {
        self.fact(Fact::Libvirt(source, fact));
    }

    /// libvirt's events led through these states, and then this is found.
    fn libvirt(&mut self, states: &[OperState], found: Option<OperState>) {
        let events = states.iter().map(|state| (UUID, State(*state))).collect();
        let domains = BTreeMap::from([(UUID, found.map(domain))]);
        self.libvirt_of(QEMU, DomainFact::Changed { domains, events });
    }

    /// Lets pass what is awaited.
    fn settle(&mut self) {
        while let Some(due) = self.core.poll_timeout() {
            self.now.instant = self.now.instant.max(due);
            self.core.handle_timeout(self.now);
            self.drain();
        }
    }

    fn told(&mut self) -> Vec<(OperState, ChangeEvent)> {
        self.changes.drain(..).map(|(_, before, event)| (before, event)).collect()
    }

    fn states(&self) -> Vec<OperState> {
        self.view.vms.iter().map(|vm| vm.oper_state).collect()
    }

    /// vmIndex, vmName and whether there is a vmUUID.
    fn rows(&self) -> Vec<(u32, &str, bool)> {
        let row = |vm: &'_ kvmeter::inventory::Vm| (vm.index.0, vm.uuid.is_some());
        self.view
            .vms
            .iter()
            .map(|vm| {
                let (index, has_uuid) = row(vm);
                (index, vm.name.as_str(), has_uuid)
            })
            .collect()
    }
}

fn domain(state: OperState) -> Domain {
    Domain {
        uuid: UUID,
        name: "vm".to_owned(),
        os_type: String::new(),
        state: FoundState {
            admin_state: AdminState::Running,
            oper_state: state,
            is_unexplained: false,
        },
        is_active: !matches!(state, Shutdown | OperState::Suspended | OperState::Crashed),
        auto_start: AutoStart::Disabled,
        persistence: Persistence::Persistent,
        process: DomainProcess::Untold,
        user: None,
        machine: None,
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
        nics: vec![DomainNic {
            mac: vec![2, 0, 0, 0, 0, 1],
            device: Some("vnet0".to_owned()),
            unnamed: None,
            model: "virtio".to_owned(),
        }],
    }
}

/// libvirt has listed these domains, and could describe all that it has.
fn listed(domains: Vec<Domain>) -> DomainFact {
    DomainFact::Listed(domains, BTreeSet::new())
}

fn process(pid: u32) -> VmProcess {
    VmProcess {
        pid,
        start_ticks: u64::from(pid),
        started_ns: u64::from(pid),
        name: "vm".to_owned(),
        uuid: Some(UUID),
        cpus: 1,
        max_cpus: Some(1),
        slot: Some(VmSlot(u16::try_from(pid).unwrap())),
        has_kvm: true,
        ..VmProcess::default()
    }
}

#[test]
fn a_domain_whose_process_is_seen_first_is_reported_as_libvirt_has_it() {
    let mut host = Host::new();
    host.start(1);
    assert_eq!(host.states(), [Running], "it is there at once");
    host.libvirt(&[Migrating], Some(Migrating));
    host.libvirt(&[Running], Some(Running));
    host.settle();
    assert_eq!(host.told(), [(Shutdown, State(Migrating)), (Migrating, State(Running))]);

    // And at the end: libvirt is first.
    host.libvirt(&[Shuttingdown, Shutdown], None);
    host.end(1);
    host.settle();
    let end =
        [(Running, State(Shuttingdown)), (Shuttingdown, State(Shutdown)), (Shutdown, Deleted)];
    assert_eq!(host.told(), end);
    assert!(host.view.vms.is_empty());
}

#[test]
fn a_process_that_libvirt_does_not_know_is_reported_in_the_end() {
    let mut host = Host::new();
    host.start(1);
    assert_eq!(host.told(), []);
    host.settle();
    assert_eq!(host.told(), [(Shutdown, State(Running))]);
    host.end(1);
    host.settle();
    assert_eq!(host.told(), [(Running, State(Shutdown)), (Shutdown, Deleted)]);
    // Without libvirt no event is to come.
    host.libvirt_of(QEMU, DomainFact::Lost);
    host.start(2);
    assert_eq!(host.told(), [(Shutdown, State(Running))]);
}

#[test]
fn events_of_a_libvirt_that_says_no_more_are_believed() {
    let mut host = Host::new();
    host.start(1);
    host.libvirt(&[Running], Some(Running));
    let last = vec![(UUID, State(Shuttingdown)), (UUID, State(Shutdown))];
    host.libvirt_of(QEMU, DomainFact::Changed { domains: BTreeMap::new(), events: last });
    host.end(1);
    host.libvirt_of(QEMU, DomainFact::Lost);
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
fn what_changed_while_libvirt_was_away_is_reported_once() {
    let mut host = Host::new();
    host.start(1);
    host.libvirt(&[Running], Some(Running));
    host.libvirt_of(QEMU, DomainFact::Lost);
    // The list is newer than events that libvirt sends now.
    host.libvirt_of(QEMU, listed(vec![domain(Shutdown)]));
    host.end(1);
    host.libvirt(&[Shuttingdown], Some(Shutdown));
    host.libvirt(&[Shutdown], Some(Shutdown));
    host.settle();
    let stopped = [(Running, State(Shuttingdown)), (Shuttingdown, State(Shutdown))];
    assert_eq!(host.told()[1..], stopped);
    // Here it sends none.
    host.libvirt_of(QEMU, DomainFact::Lost);
    host.libvirt_of(QEMU, listed(vec![domain(Running)]));
    assert_eq!(host.told(), []);
    host.settle();
    assert_eq!(host.told(), [(Shutdown, State(Running))]);
}

#[test]
fn what_is_under_way_is_awaited_past_the_deadline() {
    let mut host = Host::new();
    host.start(1);
    host.libvirt(&[Running], Some(Running));
    assert_eq!(host.told().len(), 1);
    host.end(1);
    host.libvirt(&[], Some(Shutdown));
    let due = host.core.poll_timeout().unwrap();
    assert!(due <= host.now.instant + Duration::from_secs(1));
    // The event has come, and waits until other domains have been described.
    host.libvirt_of(QEMU, DomainFact::EventCame(UUID, 7));
    let others = BTreeSet::from([VmUuid::of_bytes([1; 16])]);
    host.libvirt_of(QEMU, DomainFact::EventsUnderWay(others, 6));
    let described = DomainFact::Changed { domains: BTreeMap::new(), events: Vec::new() };
    host.libvirt_of(QEMU, described);
    assert_eq!(host.core.poll_timeout(), None);
    host.now.instant = due + Duration::from_secs(5);
    host.core.handle_timeout(host.now);
    host.drain();
    assert_eq!(host.told(), []);
    // libvirt takes long to describe the domain, too.
    host.libvirt_of(QEMU, DomainFact::EventsUnderWay(BTreeSet::from([UUID]), 7));
    host.now.instant = due + Duration::from_secs(10);
    host.core.handle_timeout(host.now);
    host.drain();
    assert_eq!(host.told(), []);
    host.libvirt(&[Shuttingdown, Shutdown], Some(Shutdown));
    let stopped = [(Running, State(Shuttingdown)), (Shuttingdown, State(Shutdown))];
    assert_eq!(host.told(), stopped);
}

#[test]
fn a_vm_that_is_never_seen_takes_no_index() {
    let mut host = Host::new();
    host.libvirt(&[Running, Shutdown], None);
    host.settle();
    let other = VmProcess { uuid: Some(VmUuid::of_bytes([1; 16])), ..process(1) };
    host.fact(Fact::Process(Arc::new(other)));
    assert_eq!(host.view.vms.iter().next().unwrap().index.0, 1);
}

#[test]
fn a_libvirt_that_hangs_while_a_process_ends_is_not_believed_for_ever() {
    let mut host = Host::new();
    host.start(1);
    host.libvirt(&[Running], Some(Running));
    host.end(1);
    assert_eq!(host.states(), [Running], "its report may only be late");
    assert!(host.core.poll_timeout().is_some(), "but it is not waited for without an end");
    host.settle();
    assert_eq!(host.states(), [Unknown]);
}

#[test]
fn a_process_that_was_killed_has_crashed() {
    let mut host = Host::with(&[], SavedIndexes::default());
    host.start(1);
    assert_eq!(host.told(), [(Shutdown, State(Running))]);
    host.fact(Fact::ProcessGone { pid: 1, killed: true });
    assert_eq!(host.told(), [(Running, State(OperState::Crashed)), (OperState::Crashed, Deleted)]);
}

#[test]
fn each_run_of_a_vm_has_a_number_of_its_own() {
    let mut host = Host::new();
    let run = |host: &Host| host.view.vms.iter().next().unwrap().run;
    host.start(1);
    host.libvirt(&[Running], Some(Running));
    let first = run(&host);
    // Off and on again before it was described.
    host.end(1);
    host.start(2);
    host.libvirt(&[Shutdown, Running], Some(Running));
    let second = run(&host);
    assert_ne!(first, second);
    // The same while libvirt was away.
    host.libvirt_of(QEMU, DomainFact::Lost);
    host.end(2);
    host.start(3);
    host.libvirt_of(QEMU, listed(vec![domain(Running)]));
    let third = run(&host);
    assert!(![first, second].contains(&third));
    let query = host.queries.last().unwrap();
    assert_eq!((query.run, query.asks_now, query.is_active), (third, true, true));
}

#[test]
fn how_a_disk_is_counted_comes_back_as_a_fact() {
    let mut host = Host::new();
    let counted_by = |host: &Host| host.view.vms.iter().next().unwrap().disks[0].counted_by.clone();
    let plans = |host: &mut Host| -> Vec<bool> {
        let plans = host.others.drain(..).filter_map(|output| match output {
            Output::Count(plan) => Some(plan.is_of_domain),
            _ => None,
        });
        plans.collect()
    };
    host.start(1);
    assert_eq!(plans(&mut host), [false]);
    host.libvirt(&[Running], Some(Running));
    assert_eq!(plans(&mut host), [true], "with the domain's disks");
    assert_eq!(counted_by(&host), CountedBy::Pending);
    let kernel = CountedBy::Kernel([ImageSlot(3)].into(), Method::Dio, "test");
    let report = |pid, counted_by: &CountedBy| CountingReport {
        pid,
        vm: VmSlot(u16::try_from(pid).unwrap()),
        disks: vec![(1, counted_by.clone())],
        has_unidentified: false,
    };
    assert!(host.queries.iter().all(|query| !query.wants_io), "the kernel may count it");
    host.fact(Fact::Counted(report(1, &CountedBy::Uncounted("test".to_owned()))));
    assert!(host.queries.last().unwrap().wants_io);
    host.fact(Fact::Counted(report(1, &kernel)));
    assert_eq!(counted_by(&host), kernel);
    assert!(!host.queries.last().unwrap().wants_io, "QEMU's counts are not needed");
    // A report about a process that is gone is of no use.
    host.fact(Fact::Counted(report(2, &CountedBy::Pending)));
    assert_eq!(counted_by(&host), kernel);
    host.fact(Fact::ImageTaken(1));
    assert_eq!(plans(&mut host), [true], "once more, with the new image");
    host.end(1);
    assert!(host.others.iter().any(|it| matches!(it, Output::EndCount(VmSlot(1)))));
    assert!(matches!(counted_by(&host), CountedBy::Uncounted(_)));
}

#[test]
fn a_fence_comes_back_after_the_view_without_the_process() {
    let mut host = Host::with(&[], SavedIndexes::default());
    host.start(1);
    host.core.handle(Fact::ProcessGone { pid: 1, killed: false }, host.now);
    host.core.handle(Fact::Fence(Fence::Procfs(7)), host.now);
    let mut is_published = false;
    while let Some(output) = host.core.poll_output() {
        match output {
            Output::Publish(view) => is_published = view.vms.is_empty(),
            Output::Reached(fence) => {
                assert!(is_published);
                assert_eq!(fence, Fence::Procfs(7));
                return;
            }
            _ => {}
        }
    }
    panic!("the fence did not come back");
}

#[test]
fn a_change_shares_all_other_rows_with_the_view_before() {
    let mut host = Host::with(&[], SavedIndexes::default());
    for pid in 1..=100 {
        let name = format!("vm{pid}");
        host.fact(Fact::Process(Arc::new(VmProcess { uuid: None, name, ..process(pid) })));
    }
    let before = host.view.clone();
    host.fact(Fact::Process(Arc::new(VmProcess { uuid: None, cpus: 5, ..process(50) })));
    let shared = before.vms.iter().zip(host.view.vms.iter()).filter(|(a, b)| std::ptr::eq(*a, *b));
    assert_eq!(shared.count(), 99);
    assert_eq!(before.last_change_ns, host.view.last_change_ns, "no row came or went");
}

/// Count and EndCount of one record, in the order in which they are carried out.
fn counting(host: &mut Host) -> Vec<(&'static str, u16)> {
    let step = |output| match output {
        Output::Count(plan) => Some(("count", plan.vm.0)),
        Output::EndCount(VmSlot(slot)) => Some(("end", slot)),
        _ => None,
    };
    host.others.drain(..).filter_map(step).collect()
}

#[test]
fn a_process_that_goes_from_one_vm_to_another_is_counted_in_the_end() {
    let mut host = Host::new();
    let other = VmProcess { name: "x".to_owned(), ..process(1) };
    host.fact(Fact::Process(Arc::new(other)));
    host.start(2);
    counting(&mut host);
    host.libvirt(&[Running], Some(Running));
    let last = |slot: u16, steps: &[(&'static str, u16)]| {
        steps.iter().rev().find(|(_, of)| *of == slot).map(|(step, _)| *step)
    };
    let steps = counting(&mut host);
    assert_eq!((last(1, &steps), last(2, &steps)), (None, Some("count")), "{steps:?}");
}

#[test]
fn the_first_list_of_another_connection_keeps_what_is_awaited() {
    let connections = [("qemu:///system", true), ("test:///default", false)];
    let mut host = Host::with(&connections, SavedIndexes::default());
    host.libvirt_of(QEMU, listed(Vec::new()));
    host.start(1);
    host.libvirt_of(SECOND, listed(Vec::new()));
    assert_eq!(host.told(), []);
    host.settle();
    assert_eq!(host.told(), [(Shutdown, State(Running))]);
}

#[test]
fn events_that_are_under_way_before_the_process_is_seen_are_awaited() {
    let mut host = Host::new();
    host.libvirt_of(QEMU, DomainFact::EventsUnderWay(BTreeSet::from([UUID]), 0));
    host.start(1);
    host.now.instant += Duration::from_secs(2);
    host.core.handle_timeout(host.now);
    host.drain();
    host.libvirt(&[Migrating, Running], Some(Running));
    assert_eq!(host.told(), [(Shutdown, State(Migrating)), (Migrating, State(Running))]);
}

#[test]
fn an_event_that_came_is_not_awaited_once_the_connection_is_lost() {
    let mut host = Host::new();
    host.start(1);
    host.libvirt(&[Running], Some(Running));
    host.libvirt_of(QEMU, DomainFact::EventCame(UUID, 1));
    host.libvirt_of(QEMU, DomainFact::Lost);
    host.libvirt_of(QEMU, listed(vec![domain(Shutdown)]));
    host.end(1);
    host.told();
    host.settle();
    assert_eq!(host.told(), [(Running, State(Shutdown))]);
}

#[test]
fn the_time_since_the_start_goes_on_over_a_managed_save() {
    use OperState::{Resuming, Suspended, Suspending};
    let mut host = Host::new();
    let up = |host: &Host| host.view.vms.iter().next().and_then(|vm| vm.up_since_ns);
    host.libvirt_of(QEMU, listed(Vec::new()));
    host.start(7);
    host.libvirt(&[Running], Some(Running));
    assert_eq!(up(&host), Some(7));
    for pid in [8, 9] {
        host.end(pid - 1);
        host.libvirt(&[Suspending, Suspended], Some(Suspended));
        assert_eq!(up(&host), Some(7), "it goes on");
        host.start(pid);
        host.libvirt(&[Resuming, Running], Some(Running));
        assert_eq!(up(&host), Some(7));
    }
    // All of it in one report, with a shutdown in it.
    host.end(9);
    host.start(10);
    host.libvirt(&[Suspended, Running, Shutdown, Running], Some(Running));
    assert_eq!(up(&host), Some(10));
    host.end(10);
    host.libvirt(&[Shutdown], Some(Shutdown));
    assert_eq!(up(&host), None);
}
