//! A host that exists only in memory: its counters, and a VM on it.

use std::sync::{
    Arc, LazyLock,
    atomic::{AtomicU64, Ordering},
};

use kvmeter::{
    counters::{CpuMask, DiskIo, ImageSlot, Readings, Requests, ThreadReading, ThreadSlot, VmSlot},
    inventory::{
        AdminState, AutoStart, Inventory, Memory, OperState, Persistence, Vcpu, Vm, VmIndex,
    },
    mib::{
        self, Snapshot,
        smi::{Instances, Tree},
    },
};

/// The modules of the agent.
pub(crate) static TREE: LazyLock<Tree<Snapshot>> = LazyLock::new(|| mib::tree().unwrap());

/// All instances of the agent's modules.
pub(crate) fn instances(
    inventory: &Arc<Inventory>,
    readings: &Arc<FixedReadings>,
) -> Instances<'static, Snapshot> {
    TREE.instances(snapshot(inventory, readings))
}

pub(crate) fn snapshot(inventory: &Arc<Inventory>, readings: &Arc<FixedReadings>) -> Snapshot {
    Snapshot::of_counters(Arc::clone(inventory), readings.clone())
}

/// Counters whose values follow from their slots.
#[derive(Debug, Default)]
pub(crate) struct FixedReadings {
    /// What [`Readings::since_boot_ns`] answers.
    pub(crate) since_boot_ns: u64,
    /// How often a counter or an affinity was asked for.
    pub(crate) asked: AtomicU64,
}

impl FixedReadings {
    pub(crate) fn at(since_boot_ns: u64) -> Arc<Self> {
        Arc::new(Self { since_boot_ns, asked: AtomicU64::new(0) })
    }

    fn count(&self) {
        self.asked.fetch_add(1, Ordering::Relaxed);
    }
}

impl Readings for FixedReadings {
    fn vcpu_time_ns(&self, ThreadSlot { record: slot, .. }: ThreadSlot) -> Option<u64> {
        self.count();
        (slot % 3 != 0).then_some(u64::from(slot) * 1_234_567)
    }

    fn vm_time_ns(&self, VmSlot(slot): VmSlot) -> Option<u64> {
        self.count();
        (slot % 3 != 0).then_some(u64::MAX - u64::from(slot))
    }

    fn thread(&self, ThreadSlot { record: slot, .. }: ThreadSlot) -> Option<ThreadReading> {
        self.count();
        let switches_in = u64::from(slot);
        let thread = ThreadReading {
            tid: u32::from(slot) + 1000,
            wait_ns: Some(switches_in * 1000),
            switches_in,
            preemptions: switches_in / 2,
        };
        (slot != 3).then_some(thread)
    }

    fn cpu_mask(&self, ThreadSlot { record: slot, .. }: ThreadSlot) -> Option<CpuMask> {
        self.count();
        let has = |cpu: &u32| (u32::from(slot) + cpu) % 3 == 1;
        (slot % 4 != 0).then(|| CpuMask::of_numbers((0..100).filter(has)))
    }

    fn disk_io(&self, images: &[ImageSlot]) -> Option<DiskIo> {
        self.count();
        let reads = u64::from(images.first()?.0);
        Some(DiskIo { reads, write_ns: reads * 1000, ..DiskIo::default() })
    }

    fn disk_requests(&self, images: &[ImageSlot]) -> Option<[Requests; 2]> {
        self.count();
        let requests = Requests { errors: u64::from(images.first()?.0), ..Requests::default() };
        Some([requests.clone(), requests])
    }

    fn since_boot_ns(&self) -> u64 {
        self.since_boot_ns
    }
}

/// A VM that runs, with nothing that is not asked for.
pub(crate) fn running_vm(index: u32, vcpus: Vec<Vcpu>) -> Vm {
    Vm {
        index: VmIndex(index),
        name: format!("vm{index}"),
        uuid: None,
        os_type: String::new(),
        admin_state: AdminState::Running,
        oper_state: OperState::Running,
        auto_start: AutoStart::Unknown,
        persistence: Persistence::Unknown,
        cpu_number: 1,
        min_cpu_number: None,
        max_cpu_number: None,
        memory: Memory::default(),
        started_ns: Some(0),
        pid: None,
        slot: Some(VmSlot(1)),
        vcpus,
        disks: Vec::new(),
        nics: Vec::new(),
        ..Vm::default()
    }
}
