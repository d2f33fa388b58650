//! Each number with each reason for its absence.

use std::sync::Arc;

use super::*;
use crate::{
    counters::{
        CpuMask, DiskIo, DiskKey, DiskSize, ImageSlot, NoCounters, Requests, ThreadReading,
        ThreadSlot, VmSlot,
    },
    inventory::{
        CountedBy, Disk, IfIndex, Memory, Nic, OperState, StorageAccess, StorageMedia,
        StorageSource, Vcpu, Vm, VmIndex,
    },
    probe::Method,
};

/// Counters that are live; a thread's record in slot 9 has no event yet.
struct Live;

impl Readings for Live {
    fn vcpu_time_ns(&self, ThreadSlot { record: slot, .. }: ThreadSlot) -> Option<u64> {
        (slot != 9).then_some(70)
    }

    fn vm_time_ns(&self, _: VmSlot) -> Option<u64> {
        Some(90)
    }

    fn thread(&self, ThreadSlot { record: slot, .. }: ThreadSlot) -> Option<ThreadReading> {
        let tid = u32::from(slot) + 100;
        Some(ThreadReading { tid, wait_ns: None, switches_in: 5, preemptions: 2 })
    }

    fn cpu_mask(&self, _: ThreadSlot) -> Option<CpuMask> {
        Some(CpuMask::of_numbers([1]))
    }

    fn disk_io(&self, _: &[ImageSlot]) -> Option<DiskIo> {
        Some(io(3))
    }

    fn disk_requests(&self, _: &[ImageSlot]) -> Option<[Requests; 2]> {
        Some(<[Requests; 2]>::default())
    }

    fn since_boot_ns(&self) -> u64 {
        1000
    }
}

fn io(reads: u64) -> DiskIo {
    DiskIo { reads, ..DiskIo::default() }
}

fn counted() -> Vm {
    Vm {
        index: VmIndex(1),
        run: 1,
        oper_state: OperState::Running,
        started_ns: Some(400),
        pid: Some(7),
        slot: Some(VmSlot(1)),
        ..Vm::default()
    }
}

fn off() -> Vm {
    Vm { oper_state: OperState::Shutdown, started_ns: None, pid: None, slot: None, ..counted() }
}

fn disk(counted_by: CountedBy) -> Disk {
    Disk {
        index: 2,
        target: "vda".to_owned(),
        source: StorageSource::Sparse,
        format: String::new(),
        resource: String::new(),
        access: StorageAccess::Unknown,
        media: StorageMedia::HardDisk,
        bus: String::new(),
        size: DiskSize { defined: Some(10), allocated: None },
        counted_by,
    }
}

/// Reads a number once with live counters and once after the counting has ended.
fn read<T>(read: impl Fn(Moment<'_>) -> T, slow: &SlowValues) -> [T; 2] {
    let inventory = Inventory::default();
    let readings: [&dyn Readings; 2] = [&Live, &NoCounters];
    readings.map(|readings| read(Moment { inventory: &inventory, readings, slow }))
}

#[test]
fn the_time_of_a_vm_is_counted_or_0_or_absent() {
    let slow = SlowValues::default();
    let of = |vm: &Vm| read(|moment| vm_time_ns(moment, vm), &slow);
    let [live, ended] = of(&counted());
    assert_eq!((live, live.value()), (Number::Kernel(90), Some(90)));
    assert_eq!(ended.why_absent(), Some("the process has exited, or the counting has ended"));
    assert_eq!(ended.value(), None);
    let [live, _] = of(&off());
    assert_eq!((live, live.value(), live.why_absent()), (Number::Off, Some(0), None));
    let [live, _] = of(&Vm { slot: None, ..counted() });
    assert_eq!(live, Number::Absent("its process is not counted"));
    // libvirt is gone and so is the process: the VM may run elsewhere.
    let [live, _] = of(&Vm { oper_state: OperState::Unknown, ..off() });
    assert_eq!(live, Number::Absent("its process is not known"));
    // A state that comes before its process has exited does not make the counters 0.
    let [live, _] = of(&Vm { oper_state: OperState::Shutdown, ..counted() });
    assert_eq!(live, Number::Kernel(90));
}

#[test]
fn the_time_since_the_start_is_known_without_counters() {
    let slow = SlowValues::default();
    let of = |vm: &Vm| read(|moment| vm_up_time_ns(moment, vm), &slow);
    assert_eq!(of(&counted())[0], Number::Kernel(600));
    assert!(matches!(of(&counted())[1], Number::Kernel(_)));
    assert_eq!(of(&off())[0], Number::Off);
    let unknown = Vm { started_ns: None, pid: None, slot: None, ..counted() };
    assert_eq!(of(&unknown)[0], Number::Absent("its process is not known"));
}

#[test]
fn the_numbers_of_a_vcpu_are_absent_together() {
    type Get = fn(Moment<'_>, &Vm, &Vcpu) -> Number<'static, u64>;
    let slow = SlowValues::default();
    let all: [(Get, Option<u64>); 4] = [
        (vcpu_time_ns, Some(70)),
        (vcpu_switches, Some(5)),
        (vcpu_preemptions, Some(2)),
        (vcpu_wait_ns, None),
    ];
    let without_thread = Vcpu { id: 0, slot: None };
    for (get, number) in all {
        let of = |vm: &Vm, vcpu: &Vcpu| read(|moment| get(moment, vm, vcpu), &slow);
        let [live, ended] =
            of(&counted(), &Vcpu { id: 0, slot: Some(ThreadSlot::without_thread(1)) });
        assert_eq!(live.value(), number);
        let no_time = "the thread has exited or has not run yet, or the counting has ended";
        assert_eq!(ended, Number::Absent(no_time));
        let [silent, _] =
            of(&counted(), &Vcpu { id: 0, slot: Some(ThreadSlot::without_thread(9)) });
        assert_eq!(silent, Number::Absent(no_time));
        let [live, _] = of(&counted(), &without_thread);
        assert_eq!(live, Number::Absent("its thread is not known"));
        let [live, _] = of(&Vm { slot: None, ..counted() }, &without_thread);
        assert_eq!(live, Number::Absent("its process is not counted"));
        assert_eq!(of(&off(), &without_thread)[0], Number::Off);
    }
}

#[test]
fn the_thread_of_a_vcpu_and_its_affinity_need_a_thread() {
    let slow = SlowValues::default();
    let of = |slot: Option<u16>| {
        let vcpu = Vcpu { id: 0, slot: slot.map(ThreadSlot::without_thread) };
        let get = |moment: Moment<'_>| {
            let mask = vcpu_cpu_mask(moment, &vcpu);
            (vcpu_thread(moment, &vcpu), [0, 1].map(|cpu| mask.and_then(|mask| mask.has(cpu))))
        };
        read(get, &slow)
    };
    assert_eq!(of(Some(1)), [(Some(101), [Some(false), Some(true)]), (None, [None, None])]);
    assert_eq!(of(None), [(None, [None, None]), (None, [None, None])]);
}

#[test]
fn the_io_of_a_disk_names_who_counted_it_or_why_it_is_absent() {
    let slow = SlowValues::default();
    let of = |vm: &Vm, disk: &Disk, slow: &SlowValues| {
        read(
            |moment| {
                let io = disk_io(moment, vm, disk);
                let counter = disk_counter(moment, disk, io);
                let requests = disk_requests(moment, disk).is_some();
                (io.value(), counter.name, counter.why.to_owned(), requests)
            },
            slow,
        )
    };
    let images = || Arc::<[ImageSlot]>::from([ImageSlot(1)]);
    let kernel = disk(CountedBy::Kernel(images(), Method::Dio, "it is direct"));
    let uncounted = disk(CountedBy::Uncounted("it is remote".to_owned()));
    assert_eq!(
        of(&counted(), &kernel, &slow),
        [
            (Some(io(3)), Some("dio"), "it is direct".to_owned(), true),
            (None, None, "the counting has ended".to_owned(), false),
        ]
    );
    let pending = disk(CountedBy::Pending);
    let expected = (None, None, "the VM is not known to have opened it yet".to_owned(), false);
    assert_eq!(of(&counted(), &pending, &slow)[0], expected);
    let absent = (None, None, "it is remote".to_owned(), false);
    assert_eq!(of(&counted(), &uncounted, &slow)[0], absent);
    let zero = (Some(io(0)), None, "it is remote".to_owned(), false);
    assert_eq!(of(&off(), &uncounted, &slow)[0], zero);

    slow.observe_disk_io(DiskKey { vm: 1, storage: 2 }, 1, io(8));
    let hypervisor = (Some(io(8)), Some("hypervisor"), "it is remote".to_owned(), false);
    assert_eq!(of(&counted(), &uncounted, &slow)[0], hypervisor);
    assert_eq!(of(&counted(), &uncounted, &slow)[1], hypervisor, "it needs no probe");
    let next_run = Vm { run: 2, ..counted() };
    assert_eq!(of(&next_run, &uncounted, &slow)[0], absent, "QEMU has not answered in this run");
    let age = read(
        |moment| disk_counter(moment, &uncounted, disk_io(moment, &counted(), &uncounted)).age_ns,
        &slow,
    );
    assert!(age[1].is_some());
}

#[test]
fn the_sizes_of_a_disk_are_the_hypervisors_where_it_has_answered() {
    let slow = SlowValues::default();
    let of = |source| {
        let disk = Disk { source, ..disk(CountedBy::Pending) };
        let [DiskSize { defined, allocated }, _] =
            read(|moment| disk_size(moment, &counted(), &disk), &slow);
        (defined, allocated)
    };
    assert_eq!(of(StorageSource::Sparse), (Some(10), None));
    assert_eq!(of(StorageSource::Raw), (Some(10), Some(10)));
    let size = DiskSize { defined: Some(20), allocated: Some(5) };
    slow.set_disk_size(DiskKey { vm: 1, storage: 2 }, Some(size));
    assert_eq!(of(StorageSource::Sparse), (Some(20), Some(5)));
    assert_eq!(of(StorageSource::Network), (Some(20), Some(5)));
    assert_eq!(of(StorageSource::Block), (Some(20), Some(20)));
    slow.set_disk_size(DiskKey { vm: 1, storage: 2 }, Some(DiskSize::default()));
    assert_eq!(of(StorageSource::Block), (None, None), "an empty drive");
}

#[test]
fn facts_that_no_source_reports_are_absent() {
    let vm = Vm::default();
    assert_eq!((vm_uuid(&vm), vm_os_type(&vm), vm_process(&vm)), (None, None, None));
    assert_eq!((vm_min_cpu_number(&vm), vm_max_cpu_number(&vm)), (None, None));
    let memory = |vm: &Vm| [vm_current_memory(vm), vm_min_memory(vm), vm_max_memory(vm)];
    assert_eq!(memory(&vm), [None; 3]);
    let known = Memory { current: Some(3), min: None, max: Some(0) };
    assert_eq!(memory(&Vm { memory: known, ..vm }), [Some(3), None, Some(0)]);

    let disk = disk(CountedBy::Pending);
    assert_eq!((disk_format(&disk), disk_resource(&disk), disk_bus(&disk)), (None, None, None));

    let nic = Nic {
        index: 1,
        device: Some("tap0".to_owned()),
        if_index: IfIndex::Absent("why"),
        parent: IfIndex::Is(3),
        model: String::new(),
        phys_address: Vec::new(),
    };
    assert_eq!((nic_if_index(&nic), nic_parent_if_index(&nic)), (None, Some(3)));
    assert_eq!((nic_device(&nic), nic_why_absent(&nic)), (Some("tap0"), Some("why")));
    assert_eq!((nic_model(&nic), nic_phys_address(&nic)), (None, None));
}
