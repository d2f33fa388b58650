//! What one change of one VM costs the inventory: from the fact to the view that readers see, on hosts of 10 to 4,000 VMs.
//! And what a slow value costs a reader, beside a value that the view itself holds.

#![expect(unsafe_code, reason = "an allocator that counts")]

use std::{
    alloc::{GlobalAlloc, Layout, System},
    cell::Cell,
    collections::{BTreeMap, BTreeSet},
    hint::black_box,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Instant,
};

use kvmeter::{
    counters::{DiskIo, DiskKey, DiskSize, SlowValues, ThreadSlot, VmSlot},
    inventory::{
        AdminState, AutoStart, ChangeEvent, Connection, Core, CoreConfig, Domain, DomainDisk,
        DomainFact, DomainNic, DomainProcess, Fact, FoundState, Memory, Now, OperState, Output,
        Persistence, Registry, SavedIndexes, SourceId, StorageAccess, StorageMedia, StorageSource,
        Submission, Vcpu, VmProcess, VmUuid,
    },
};

use crate::measure::{Subject, compare, print};

const HOSTS: [u32; 3] = [10, 1000, 4000];

/// Counts the allocations of each thread.
struct Counting;

thread_local! {
    static ALLOCATIONS: Cell<u64> = const { Cell::new(0) };
}

// SAFETY: every call is passed on to the system's allocator, which keeps the contract; counting allocates nothing, for the
// cell has no destructor and is made at compile time.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.with(|count| count.set(count.get() + 1));
        // SAFETY: upheld by this function's own caller.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, place: *mut u8, layout: Layout) {
        // SAFETY: upheld by this function's own caller: `place` came from `alloc`, which is the system's.
        unsafe { System.dealloc(place, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// A host whose VMs all run.
struct Host {
    core: Core,
    registry: Registry,
    now: Now,
    number: u32,
    changed: VmUuid,
    is_running: bool,
}

impl Host {
    fn new(vms: u32) -> Self {
        let now = Now { instant: Instant::now(), since_boot_ns: 1 };
        let uri = "qemu:///system".to_owned();
        let connection = Connection { uri, has_processes: true, is_unnamed: false };
        let config = CoreConfig {
            shows_processes: true,
            counts: true,
            connections: vec![connection],
            ..CoreConfig::default()
        };
        let core = Core::new(config, SavedIndexes::default(), now);
        let registry = Registry::new(core.view());
        let mut host =
            Self { core, registry, now, number: vms / 2, changed: uuid(vms / 2), is_running: true };
        host.take(Fact::ProcessesListed);
        for number in 0..vms {
            host.take(Fact::Process(Arc::new(process(number))));
        }
        let domains = (0..vms).map(|number| domain(number, OperState::Running)).collect();
        host.take(Fact::Libvirt(SourceId(0), DomainFact::Listed(domains, BTreeSet::new())));
        host
    }

    fn take(&mut self, fact: Fact) {
        self.core.handle(fact, self.now);
        while let Some(output) = self.core.poll_output() {
            if let Output::Publish(view) = output {
                self.registry.publish(view);
            }
        }
    }

    /// Pauses or resumes one domain.
    fn change(&mut self) {
        self.is_running = !self.is_running;
        let state = if self.is_running { OperState::Running } else { OperState::Paused };
        let found = Domain { uuid: self.changed, ..domain(self.number, state) };
        let fact = DomainFact::Changed {
            domains: BTreeMap::from([(self.changed, Some(found))]),
            events: vec![(self.changed, ChangeEvent::State(state))],
        };
        self.take(Fact::Libvirt(SourceId(0), fact));
    }
}

/// Measures and prints.
pub(crate) fn run(rounds: u32) {
    let mut hosts: Vec<Host> = HOSTS.into_iter().map(Host::new).collect();
    let allocations: Vec<u64> = hosts
        .iter_mut()
        .map(|host| {
            let before = ALLOCATIONS.with(Cell::get);
            host.change();
            ALLOCATIONS.with(Cell::get) - before
        })
        .collect();
    let mut subjects: Vec<Subject<'_>> = hosts
        .iter_mut()
        .zip(HOSTS)
        .map(|(host, vms)| Subject::new(format!("one of {vms} VMs changes"), move || host.change()))
        .collect();
    compare(&mut subjects, rounds);
    print("a publication", &subjects);
    for (vms, count) in HOSTS.into_iter().zip(allocations) {
        println!("{:<58} {count:>26}", format!("allocations, one of {vms} VMs changes"));
    }
    let ratio = subjects[1].samples.median() / subjects[0].samples.median();
    let verdict = if ratio <= 2.0 { "met" } else { "MISSED" };
    println!("target  1,000 VMs beside 10: {ratio:.2}, at most 2: {verdict}");
    slow(rounds);
}

/// A disk's six counts from the concurrent map, and from atomics to which the view points.
fn slow(rounds: u32) {
    let map = SlowValues::default();
    let view: Vec<Arc<[AtomicU64; 6]>> = (0..2000).map(|_| Arc::default()).collect();
    for vm in 0..1000 {
        for storage in 1..=2 {
            map.observe_disk_io(
                DiskKey { vm, storage },
                0,
                DiskIo { reads: 7, ..DiskIo::default() },
            );
        }
    }
    let (mut at, mut place) = (0_u32, 0_usize);
    let mut subjects = [
        Subject::new("from atomics in the view", || {
            place = (place + 7) % view.len();
            view[place].each_ref().map(|count| count.load(Relaxed))
        }),
        Subject::new("from the concurrent map", || {
            at = (at + 7) % 1000;
            map.disk_io(black_box(DiskKey { vm: at, storage: 1 }), 0)
        }),
    ];
    compare(&mut subjects, rounds);
    print("a slow value of a disk, of 1,000 VMs with two disks", &subjects);
}

fn uuid(number: u32) -> VmUuid {
    VmUuid::of_bytes(u128::from(number).wrapping_add(1 << 100).to_be_bytes())
}

fn process(number: u32) -> VmProcess {
    let slot = |slot| u16::try_from(slot % 60_000 + 1).ok();
    VmProcess {
        pid: 1000 + number,
        start_ticks: 1,
        started_ns: 1,
        name: format!("vm{number}"),
        uuid: Some(uuid(number)),
        cpus: 4,
        max_cpus: Some(4),
        slot: slot(number).map(VmSlot),
        vcpus: (0..4)
            .map(|id| Vcpu { id, slot: slot(number * 4 + id).map(ThreadSlot::without_thread) })
            .collect(),
        has_kvm: true,
        ..VmProcess::default()
    }
}

fn domain(number: u32, state: OperState) -> Domain {
    let disk = |target: &str| DomainDisk {
        target: target.to_owned(),
        source: StorageSource::Sparse,
        format: "qcow2".to_owned(),
        resource: format!("/var/lib/libvirt/images/vm{number}-{target}.qcow2"),
        access: StorageAccess::ReadWrite,
        media: StorageMedia::HardDisk,
        bus: "virtio".to_owned(),
        size: DiskSize::default(),
        others: Vec::new(),
        chain_is_in_image: false,
        submission: Submission::Native,
    };
    Domain {
        uuid: uuid(number),
        name: format!("vm{number}"),
        os_type: String::new(),
        state: FoundState {
            admin_state: AdminState::Running,
            oper_state: state,
            is_unexplained: false,
        },
        is_active: true,
        auto_start: AutoStart::Disabled,
        persistence: Persistence::Persistent,
        process: DomainProcess::Untold,
        machine: None,
        user: None,
        cpus: Some(4),
        max_cpus: Some(4),
        vcpu_ids: Vec::new(),
        memory: Memory { current: Some(1 << 30), min: None, max: Some(1 << 30) },
        disks: vec![disk("vda"), disk("vdb")],
        nics: vec![DomainNic {
            mac: vec![2, 0, 0, 0, 0, 1],
            device: Some(format!("vnet{number}")),
            unnamed: None,
            model: "virtio".to_owned(),
        }],
    }
}
