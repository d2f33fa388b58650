//! Inventories of every shape, at the borders of what they promise.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use kvmeter::{
    counters::{DiskSize, ImageSlot, ThreadSlot, VmSlot},
    inventory::{
        AdminState, AutoStart, CountedBy, Disk, Hypervisor, IfIndex, Inventory, Memory, Nic,
        OperState, Persistence, StorageAccess, StorageMedia, StorageSource, Vcpu, Vm, VmIndex,
        VmUuid,
    },
    probe::Method,
    snmp::Oid,
};
use proptest::{collection, option, prelude::*, sample};

/// Indexes close together, so that names hit each other, and at the end of Integer32.
fn index() -> impl Strategy<Value = u32> {
    prop_oneof![4 => 1..8_u32, 1 => sample::select(vec![0x7fff_fffe, 0x7fff_ffff])]
}

fn text() -> impl Strategy<Value = String> {
    prop_oneof!["[a-zé😀\\PC]{0,6}", "(a|é|😀){60,130}", "[a-z]{253,258}"]
}

/// Numbers at the borders of units and widths.
fn size() -> impl Strategy<Value = u64> {
    prop_oneof![
        any::<u64>(),
        (0..64_u32, -2..=2_i64).prop_map(|(bit, off)| (1_u64 << bit).wrapping_add_signed(off)),
    ]
}

fn count() -> impl Strategy<Value = u32> {
    prop_oneof![0..5_u32, any::<u32>()]
}

fn vcpus() -> impl Strategy<Value = Vec<Vcpu>> {
    let id = prop_oneof![
        6 => 0..5_u32,
        1 => sample::select(vec![0x7fff_fffd, 0x7fff_fffe, 0x7fff_ffff, u32::MAX - 1, u32::MAX]),
    ];
    let slot = option::of((1..10_u16).prop_map(ThreadSlot::without_thread));
    collection::btree_map(id, slot, 0..5)
        .prop_map(|vcpus| vcpus.into_iter().map(|(id, slot)| Vcpu { id, slot }).collect())
}

fn nics() -> impl Strategy<Value = Vec<Nic>> {
    let nic = (count(), count(), text(), collection::vec(any::<u8>(), 0..20));
    let number = |number: u32| match number {
        0 => IfIndex::Absent("it is in no bridge"),
        number => IfIndex::Is(number),
    };
    collection::btree_map(index(), nic, 0..4).prop_map(move |nics| {
        let nic = |(index, (if_index, parent, model, phys_address))| Nic {
            index,
            device: None,
            if_index: number(if_index),
            parent: number(parent),
            model,
            phys_address,
        };
        nics.into_iter().map(nic).collect()
    })
}

fn disks() -> impl Strategy<Value = Vec<Disk>> {
    let source = sample::select(vec![
        StorageSource::Unknown,
        StorageSource::Other,
        StorageSource::Block,
        StorageSource::Raw,
        StorageSource::Sparse,
        StorageSource::Network,
    ]);
    let access = sample::select(vec![
        StorageAccess::Unknown,
        StorageAccess::ReadWrite,
        StorageAccess::ReadOnly,
    ]);
    let media = sample::select(vec![
        StorageMedia::Other,
        StorageMedia::Unknown,
        StorageMedia::HardDisk,
        StorageMedia::OpticalDisk,
        StorageMedia::FloppyDisk,
    ]);
    let images = collection::vec((1..9_u16).prop_map(ImageSlot), 0..3);
    let counted_by = prop_oneof![
        images.prop_map(|images| CountedBy::Kernel(images.into(), Method::Dio, "")),
        Just(CountedBy::Pending),
        Just(CountedBy::Uncounted("librbd".to_owned())),
    ];
    let size = (option::of(size()), option::of(size()));
    let size = size.prop_map(|(defined, allocated)| DiskSize { defined, allocated });
    let texts = (text(), text(), text());
    let disk = (source, access, media, texts, size, counted_by);
    collection::btree_map(index(), disk, 0..4).prop_map(|disks| {
        let disk = |(index, (source, access, media, (format, resource, bus), size, counted_by))| {
            let target = format!("vd{index}");
            Disk { index, target, source, format, resource, access, media, bus, size, counted_by }
        };
        disks.into_iter().map(disk).collect()
    })
}

fn vm() -> impl Strategy<Value = Vm> {
    let identity = (text(), option::of(any::<[u8; 16]>().prop_map(VmUuid::of_bytes)), text());
    let states = (
        sample::select(vec![
            AdminState::Running,
            AdminState::Suspended,
            AdminState::Paused,
            AdminState::Shutdown,
        ]),
        sample::select(vec![
            OperState::Unknown,
            OperState::Running,
            OperState::Suspended,
            OperState::Paused,
            OperState::Shutdown,
            OperState::Crashed,
        ]),
        sample::select(vec![AutoStart::Unknown, AutoStart::Enabled, AutoStart::Disabled]),
        sample::select(vec![Persistence::Unknown, Persistence::Persistent, Persistence::Transient]),
    );
    let cpus = (count(), option::of(count()), option::of(count()), vcpus());
    let memory = [option::of(size()), option::of(size()), option::of(size())];
    let process = (option::of(size()), option::of((1..10_u16).prop_map(VmSlot)));
    (identity, states, cpus, memory, process, disks(), nics()).prop_map(
        |(identity, states, cpus, [current, min, max], (started_ns, slot), disks, nics)| Vm {
            index: VmIndex(0),
            name: identity.0,
            uuid: identity.1,
            os_type: identity.2,
            admin_state: states.0,
            oper_state: states.1,
            auto_start: states.2,
            persistence: states.3,
            cpu_number: cpus.0,
            min_cpu_number: cpus.1,
            max_cpu_number: cpus.2,
            memory: Memory { current, min, max },
            started_ns,
            pid: None,
            slot,
            vcpus: cpus.3,
            disks,
            nics,
            ..Vm::default()
        },
    )
}

/// Any inventory that keeps the promises of [`Inventory`].
pub(crate) fn inventory() -> impl Strategy<Value = Inventory> {
    let object_id = prop_oneof![Just(Oid::empty()), Just(Oid::of(&[1, 3, 6, 1, 4, 1, 2021]))];
    let hypervisor = (text(), text(), object_id).prop_map(|(software, version, object_id)| {
        Arc::new(Hypervisor { software, version, object_id })
    });
    let vms = collection::btree_map(index(), vm(), 0..5).prop_map(|vms: BTreeMap<u32, Vm>| {
        vms.into_iter().map(|(index, vm)| Vm { index: VmIndex(index), ..vm }).collect()
    });
    let cpus = collection::btree_set(0..6_u32, 0..4)
        .prop_map(|cpus: BTreeSet<u32>| cpus.into_iter().collect());
    (hypervisor, size(), vms, cpus).prop_map(|(hypervisor, last_change_ns, vms, cpus)| Inventory {
        hypervisor,
        last_change_ns,
        vms,
        cpus,
    })
}
