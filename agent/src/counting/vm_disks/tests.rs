//! A VM with one disk, in records that no program writes.

use std::{collections::BTreeMap, sync::atomic::Ordering::Relaxed};

use kvmeter_common::{Owner, VmRecord};

use super::*;
use crate::{
    account::Account,
    counters::{DiskSize, Holder, VmSlot},
    inventory::{FileIdentity, StorageAccess, Submission, VmProcess},
};

const VM: VmSlot = VmSlot(3);
/// Thread id of no process: its cgroup cannot be read.
const PID: u32 = 4_000_000;
const THREAD: u16 = 9;
const STORAGE: u32 = 5;

/// The methods that work.
struct Only(&'static [Method]);

impl Works for Only {
    fn works(&self, method: Method) -> Result<(), &str> {
        if self.0.contains(&method) { Ok(()) } else { Err("not here") }
    }
}

fn records() -> Records {
    let records = Records::in_memory();
    records.vms[usize::from(VM.0)].tgid.store(PID.into(), Relaxed);
    set_first_thread(&records, Owner::new(PID, VM.0).0);
    records
}

fn set_first_thread(records: &Records, owner: u64) {
    records.threads[usize::from(THREAD)].owner.store(owner, Relaxed);
    records.slot_entry(PID).unwrap().store(THREAD, Relaxed);
}

/// A VM whose only disk is this file, open with `O_DIRECT`.
fn vm(identity: FileIdentity) -> VmDisks {
    let path = "/image".to_owned();
    let file = OpenFile {
        path: path.clone(),
        identity,
        mount: 1,
        device: identity.device,
        is_direct: true,
        is_writable: true,
        has_write_lock: false,
        has_iomap: true,
        answers_from_memory: true,
    };
    let process = VmProcess {
        pid: PID,
        slot: Some(VM),
        files: vec![file],
        paths: BTreeMap::from([(path.clone(), PathAnswer::Open(identity))]),
        has_positions: true,
        ..VmProcess::default()
    };
    let disk = DomainDisk {
        target: "vda".to_owned(),
        source: StorageSource::Raw,
        format: "raw".to_owned(),
        resource: path,
        access: StorageAccess::ReadWrite,
        media: StorageMedia::HardDisk,
        bus: "virtio".to_owned(),
        size: DiskSize::default(),
        others: Vec::new(),
        chain_is_in_image: false,
        submission: Submission::Unknown,
    };
    VmDisks::new(Arc::new(VmPlan {
        vm: VM,
        process: Arc::new(process),
        disks: vec![(STORAGE, disk)],
        is_of_domain: false,
        may_be_of_domain: false,
    }))
}

const FILE: FileIdentity = FileIdentity { device: 1, file: 2 };

const fn device(number: u32) -> FileIdentity {
    FileIdentity { device: number, file: ImageKey::NO_FILE }
}

fn now() -> Now {
    // The VM is not young.
    Now { instant: Instant::now(), since_boot_ns: u64::MAX }
}

/// How the disk is counted: the records and the method, or why not.
fn counted(
    vm: &mut VmDisks,
    records: &Records,
    methods: &'static [Method],
) -> Result<(Vec<ImageSlot>, Method), String> {
    vm.report = None;
    let report = vm.count(records, &Only(methods), now()).report.unwrap();
    match &report.disks[..] {
        [(STORAGE, CountedBy::Kernel(slots, method, _))] => Ok((slots.to_vec(), *method)),
        [(STORAGE, other)] => Err(other.why().to_owned()),
        _ => panic!("{report:?}"),
    }
}

#[test]
fn a_vm_whose_process_the_hooks_do_not_know_is_not_counted_until_they_do() {
    let records = records();
    let mut vm = vm(FILE);
    let of_another_vm = Owner::new(PID, VM.0 + 1).0;
    for owner in [0, Owner::new(PID + 1, VM.0).0, of_another_vm] {
        set_first_thread(&records, owner);
        assert_eq!(counted(&mut vm, &records, &[Method::Dio]), Err(UNKNOWN_PROCESS.to_owned()));
        assert!(records.image_records().is_empty() && vm.needed.is_empty());
        assert!(vm.due().is_some_and(|due| due <= Instant::now() + UNKNOWN_INTERVAL));
    }
    // Its first thread may have ended before the others.
    for flags in [0, Owner::DYING | Owner::ENDED] {
        set_first_thread(&records, Owner::new(PID, VM.0).0 | flags);
        assert!(counted(&mut vm, &records, &[Method::Dio]).is_ok());
        assert_eq!(vm.due(), None);
    }
}

#[test]
fn a_disk_keeps_its_record_when_other_methods_count_it() {
    let records = records();
    let mut vm = vm(device(7 << 20));
    let (first, method) = counted(&mut vm, &records, &[Method::Bdev]).unwrap();
    assert_eq!((first.len(), method), (1, Method::Bdev));
    // Every other record is taken.
    for image in &*records.images {
        let _ = image.owner.compare_exchange(0, u64::MAX, Relaxed, Relaxed);
    }
    for _ in 0..20 {
        let functions = counted(&mut vm, &records, &[Method::Vfs, Method::Aio, Method::Bdev]);
        assert_eq!(functions, Ok((first.clone(), Method::Vfs)));
        assert_eq!(counted(&mut vm, &records, &[Method::Bdev]), Ok((first.clone(), Method::Bdev)));
    }
}

#[test]
fn counts_with_requests_of_others_are_not_shown_by_the_next_agent() {
    let records = records();
    let flags = &records.vms[usize::from(VM.0)].flags;
    let of = device(7 << 20);
    let mut first = vm(of);
    assert!(counted(&mut first, &records, &[Method::Bdev]).is_ok());
    flags.store(VmRecord::DELAYED, Relaxed);
    let why = counted(&mut first, &records, &[Method::Bdev]).unwrap_err();
    assert!(why.contains("those of any process"), "{why}");
    // No other process is there any more, and another agent starts.
    flags.store(0, Relaxed);
    records.index_images();
    let mixed = Err(ClaimError::Mixed.to_string());
    for vm in [&mut first, &mut vm(of)] {
        for methods in [&[Method::Bdev][..], &[Method::Vfs, Method::Aio]] {
            assert_eq!(counted(vm, &records, methods), mixed);
        }
    }
    // The disk has another image now; its counts would have those of the first one.
    assert_eq!(counted(&mut vm(device(8 << 20)), &records, &[Method::Bdev]), mixed);
    // Another VM gets the record when this one has ended.
    records.free_images_of_vm(VM);
    assert!(counted(&mut vm(of), &records, &[Method::Bdev]).is_ok());
}

#[test]
fn a_vm_whose_requests_are_delayed_is_counted_again_when_another_opens_the_device() {
    let (records, disk) = (records(), device(7 << 20));
    let opened = BTreeSet::from([disk.device]);
    let mut known = vm(disk);
    let count = |vm: &mut VmDisks| vm.count(&records, &Only(&[Method::Bdev]), now()).opened;
    assert_eq!(count(&mut known), opened);
    assert!(!known.is_delayed_on(&opened), "its requests are known as its own");
    records.vms[usize::from(VM.0)].flags.store(VmRecord::DELAYED, Relaxed);
    assert!(count(&mut known).is_empty());
    assert!(known.is_delayed_on(&opened) && !known.is_delayed_on(&BTreeSet::from([8 << 20])));
    // Another VM, which has just been found: no hook knows its process yet.
    let mut new = vm(disk);
    let plan = VmPlan { vm: VmSlot(4), ..VmPlan::clone(&new.plan) };
    new.plan = Arc::new(plan);
    assert_eq!(count(&mut new), opened);
    let vms = BTreeMap::from([(VM, known), (VmSlot(4), new)]);
    let affected = |by| super::super::thread::affected(&vms, by, &opened).collect::<Vec<_>>();
    assert_eq!((affected(VmSlot(4)), affected(VM)), (vec![VM], vec![]));
}

#[test]
fn an_image_that_finds_no_record_is_tried_again_and_listed() {
    let records = records();
    records.set_holder(VM, Holder::Account(Account::User(7)));
    let of_user = VmSlot(4);
    records.set_holder(of_user, Holder::Account(Account::User(7)));
    let key = |vm: VmSlot, file| ImageKey { vm: vm.0, device: 1, file };
    for file in 100..100 + records.images_for_each_vm() as u64 {
        records.claim_image(key(of_user, file), Layer::Call).unwrap();
    }
    records.set_holder(VmSlot(6), Holder::Account(Account::User(7)));
    for file in 100.. {
        match records.claim_image(key(VmSlot(6), file), Layer::Call) {
            Ok(_) | Err(ClaimError::Full) => {}
            Err(_) => break,
        }
    }
    let mut vm = vm(FILE);
    let mut last = Duration::ZERO;
    for _ in 0..10 {
        let why = counted(&mut vm, &records, &[Method::Dio]).unwrap_err();
        assert!(why.starts_with("user 7 has all"), "{why}");
        let pause = vm.due().unwrap().duration_since(Instant::now());
        assert!(pause > last || pause > LONGEST_RETRY / 2 && pause <= LONGEST_RETRY, "{pause:?}");
        last = pause;
    }
    assert_eq!(records.image_occupancy().1[&Holder::Account(Account::User(7))].0, 1);
    // Another VM of the user has ended.
    records.free_images_of_vm(of_user);
    assert!(counted(&mut vm, &records, &[Method::Dio]).is_ok());
    assert!(vm.due().is_none() && records.image_occupancy().1.is_empty());
}
