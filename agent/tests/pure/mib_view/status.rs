//! The status and SNMP show the same numbers, and leave out the same ones.

use std::sync::Arc;

use arc_swap::Guard;
use kvmeter::{
    agentx::{Lookup, Objects as _},
    counters::{DiskIo, DiskKey, DiskSize, ImageSlot, Readings, SlowValues, ThreadSlot, VmSlot},
    inventory::{
        CountedBy, Disk, Inventory, OperState, StorageAccess, StorageMedia, StorageSource, Vcpu,
        Vm, VmIndex,
    },
    mib::{
        Snapshot,
        smi::{Instances, Syntax},
        vm_mib::convention::VIRTUAL_MACHINE_OPER_STATE,
    },
    probe::Method,
    snmp::{OwnedValue, Value},
    status::{self, model},
    values::Moment,
};
use proptest::{collection, prelude::*, sample};

use super::{
    host::{FixedReadings, TREE, running_vm},
    oracle::name,
    shapes::inventory,
};

/// How a disk is counted, or why it is not.
#[derive(Clone, Copy, Debug)]
enum Counted {
    Kernel,
    Ended,
    Pending,
    Hypervisor,
    Uncounted,
}

const ALL: [Counted; 5] =
    [Counted::Kernel, Counted::Ended, Counted::Pending, Counted::Hypervisor, Counted::Uncounted];

fn disk(index: u32, counted: Counted) -> Disk {
    let of_kernel = |images: &[u16]| {
        let images = images.iter().copied().map(ImageSlot).collect();
        CountedBy::Kernel(images, Method::Dio, "it is direct")
    };
    Disk {
        index,
        target: format!("vd{index}"),
        source: StorageSource::Raw,
        format: "raw".to_owned(),
        resource: String::new(),
        access: StorageAccess::ReadWrite,
        media: StorageMedia::HardDisk,
        bus: String::new(),
        size: DiskSize::default(),
        counted_by: match counted {
            Counted::Kernel => of_kernel(&[5]),
            Counted::Ended => of_kernel(&[]),
            Counted::Pending => CountedBy::Pending,
            Counted::Hypervisor | Counted::Uncounted => CountedBy::Uncounted("remote".to_owned()),
        },
    }
}

/// Gives each VM these disks, and those that QEMU counts their counts.
fn with_disks(inventory: &mut Inventory, disks: &[Counted]) -> Arc<SlowValues> {
    let slow = SlowValues::default();
    let numbered = || (1..).zip(disks);
    let with_disks = |vm: &Vm| {
        for (storage, _) in numbered().filter(|(_, kind)| matches!(kind, Counted::Hypervisor)) {
            let io = DiskIo { reads: 8, write_octets: 9, write_ns: 10_999, ..DiskIo::default() };
            slow.observe_disk_io(DiskKey { vm: vm.index.0, storage }, vm.run, io);
        }
        let disks = numbered().map(|(index, kind)| disk(index, *kind)).collect();
        Vm { disks, ..vm.clone() }
    };
    inventory.vms = inventory.vms.iter().map(with_disks).collect();
    Arc::new(slow)
}

/// Compares every number that both show. Returns how many were there and how many were absent.
fn compare(
    inventory: &Arc<Inventory>,
    readings: &Arc<FixedReadings>,
    slow: &Arc<SlowValues>,
) -> [usize; 2] {
    let view = Guard::from_inner(Arc::clone(inventory));
    let readings: Arc<dyn Readings> = readings.clone();
    let served =
        TREE.instances(Snapshot::new(view, readings.clone(), Arc::clone(slow), Arc::default()));
    let vms = status::vms(Moment { inventory, readings: &*readings, slow });
    let mut seen = [0, 0];
    let mut counter = |suffix: &[u32], number: Option<u64>| {
        let shown = number.map(OwnedValue::Counter64);
        assert_eq!(get(&served, suffix), shown, "{suffix:?}");
        seen[usize::from(shown.is_none())] += 1;
    };
    for vm in &vms {
        counter(&[4, 1, 17, vm.index], vm.cpu_ns.map(|ns| ns / 1000));
        assert_eq!(vm.cpu_ns.is_none(), vm.why.is_some(), "{vm:?}");
        // The others have no vmCpuIndex, and so no row.
        for vcpu in vm.vcpus.iter().filter(|vcpu| vcpu.id < 0x7fff_ffff) {
            let index = [5, 1, 2, vm.index, vcpu.id + 1];
            counter(&index, vcpu.cpu_ns.map(|ns| ns / 1000));
            assert_eq!(vcpu.cpu_ns.is_none(), vcpu.why.is_some(), "{vcpu:?}");
        }
        for disk in &vm.disks {
            let [read, write] = [disk.read, disk.write];
            for (column, number) in [
                (13, read.map(|read| read.requests)),
                (14, write.map(|write| write.requests)),
                (15, read.map(|read| read.octets)),
                (16, write.map(|write| write.octets)),
                (17, read.map(|read| read.latency_ns / 1000)),
                (18, write.map(|write| write.latency_ns / 1000)),
            ] {
                counter(&[7, 1, column, vm.index, disk.index], number);
            }
        }
        compare_facts(&served, vm);
    }
    let count = OwnedValue::Integer(i32::try_from(vms.len()).unwrap());
    assert_eq!(get(&served, &[2, 0]), Some(count));
    seen
}

/// Compares what is no number: name, UUID and state.
fn compare_facts(served: &Instances<'_, Snapshot>, vm: &model::Vm) {
    let Some(OwnedValue::OctetString(cut)) = get(served, &[4, 1, 2, vm.index]) else {
        panic!("{} has no vmName", vm.name);
    };
    assert!(vm.name.as_bytes().starts_with(&cut), "{}", vm.name);
    assert!(cut.len() == vm.name.len() || cut.len() > 251, "{}", vm.name);
    let uuid = vm
        .uuid
        .as_ref()
        .map_or_else(Vec::new, |uuid| uuid.parse::<uuid::Uuid>().unwrap().as_bytes().to_vec());
    assert_eq!(get(served, &[4, 1, 3, vm.index]), Some(OwnedValue::OctetString(uuid)));
    let Syntax::Enumeration(names) = VIRTUAL_MACHINE_OPER_STATE.syntax else {
        panic!("vmOperState is an enumeration");
    };
    let state = names.iter().find(|(name, _)| *name == vm.state).map(|(_, number)| *number);
    assert_eq!(get(served, &[4, 1, 6, vm.index]), state.map(OwnedValue::Integer));
}

fn get(served: &Instances<'_, Snapshot>, suffix: &[u32]) -> Option<OwnedValue> {
    match served.get(&name(&[&[1], suffix].concat())) {
        Lookup::Found(value) => Some(value.to_owned()),
        _ => None,
    }
}

proptest! {
    #[test]
    fn the_status_and_snmp_agree_on_inventories_of_every_shape(
        mut inventory in inventory(),
        now: u64,
        disks in collection::vec(sample::select(&ALL[..]), 0..6),
    ) {
        let slow = with_disks(&mut inventory, &disks);
        compare(&Arc::new(inventory), &FixedReadings::at(now), &slow);
    }
}

#[test]
fn the_status_and_snmp_leave_out_the_same() {
    let vcpu = |id, slot: Option<u16>| Vcpu { id, slot: slot.map(ThreadSlot::without_thread) };
    let vcpus = || vec![vcpu(0, Some(1)), vcpu(1, Some(3)), vcpu(4, None)];
    let counted = running_vm(1, vcpus());
    let silent = Vm { slot: Some(VmSlot(3)), ..running_vm(2, vcpus()) };
    let unprobed = Vm { slot: None, pid: Some(4), ..running_vm(3, vec![vcpu(0, None)]) };
    let off = Vm {
        index: VmIndex(4),
        oper_state: OperState::Shutdown,
        started_ns: None,
        slot: None,
        ..unprobed.clone()
    };
    let unknown = Vm { index: VmIndex(5), oper_state: OperState::Unknown, ..off.clone() };
    let vms = [counted, silent, unprobed, off, unknown].into_iter().collect();
    let mut inventory = Inventory { vms, ..Inventory::default() };
    let slow = with_disks(&mut inventory, &ALL);
    // Of 5 VMs with 5 disks each, 2 disks are counted, and that of the VM that is off is 0.
    let disks = [6 * (5 * 2 + 1), 6 * (5 * 3 - 1)];
    // VMs: the counted one, and the one that is off. vCPUs: 2 of 6 with a thread, and that of the VM that is off.
    let [there, absent] = [2 + 2 + 1, 3 + 4 + 2];
    let seen = compare(&Arc::new(inventory), &FixedReadings::at(1), &slow);
    assert_eq!(seen, [disks[0] + there, disks[1] + absent]);
}

#[test]
fn a_vm_that_is_off_shows_zeros() {
    let off = Vm {
        oper_state: OperState::Suspended,
        started_ns: None,
        slot: None,
        ..running_vm(1, vec![Vcpu { id: 0, slot: None }])
    };
    let mut inventory = Inventory { vms: [off].into_iter().collect(), ..Inventory::default() };
    let slow = with_disks(&mut inventory, &[Counted::Uncounted]);
    let readings = FixedReadings::at(1);
    let vms = status::vms(Moment { inventory: &inventory, readings: &*readings, slow: &slow });
    let [model::Vm { cpu_ns: Some(0), why: None, vcpus, disks, .. }] = &vms[..] else {
        panic!("{vms:?}");
    };
    let zero = (Some(0), Some(0), Some(0), Some(0), false);
    let [vcpu] = &vcpus[..] else { panic!("{vcpus:?}") };
    let shown = (vcpu.cpu_ns, vcpu.wait_ns, vcpu.switches, vcpu.preemptions, vcpu.live);
    assert_eq!(shown, zero);
    assert_eq!(disks[0].read, Some(model::DiskRequests::default()));
    assert_eq!((&disks[0].counted_by, disks[0].why.as_deref()), (&None, Some("remote")));
    let snapshot = Snapshot::new(
        Guard::from_inner(Arc::new(inventory.clone())),
        readings,
        slow,
        Arc::default(),
    );
    let served = TREE.instances(snapshot);
    assert_eq!(served.get(&name(&[1, 7, 1, 13, 1, 1])), Lookup::Found(Value::Counter64(0)));
}
