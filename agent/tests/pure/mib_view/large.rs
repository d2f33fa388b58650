//! A host of 1,000 VMs with 16 vCPUs each and 256 CPUs: 4,096,000 rows of vmCpuAffinityTable, of which a
//! request may touch one. Counts what is allocated and what is read, not time.

use std::{
    alloc::{GlobalAlloc, Layout, System},
    cell::Cell,
    sync::{Arc, atomic::Ordering},
};

use kvmeter::{
    agentx::{Lookup, Objects as _},
    counters::{Readings as _, ThreadSlot},
    inventory::{Inventory, Vcpu},
    mib::VM_MIB,
    snmp::{Oid, Value},
};

use super::host::{FixedReadings, TREE, instances, running_vm, snapshot};

const VMS: u32 = 1000;
const VCPUS: u32 = 16;
const CPUS: u32 = 256;
const AFFINITY: [u32; 4] = [1, 6, 1, 3];

thread_local! {
    static ALLOCATIONS: Cell<u64> = const { Cell::new(0) };
}

/// The system's allocator, with a count of this thread's allocations.
struct Counting;

#[expect(
    unsafe_code,
    reason = "an allocator is the only way to see allocations, and only unsafe makes one"
)]
// SAFETY: every call goes to the system's allocator as it came; the count is a thread's own cell, which
// neither allocates nor unwinds (`try_with`: it may be called while the thread ends).
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let _ = ALLOCATIONS.try_with(|count| count.set(count.get() + 1));
        // SAFETY: the caller keeps the contract of `alloc`, which is the same one.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, octets: *mut u8, layout: Layout) {
        // SAFETY: `octets` came from `System.alloc` with this layout.
        unsafe { System.dealloc(octets, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

fn host() -> Arc<Inventory> {
    let slot = |vm: u32, id: u32| {
        ThreadSlot::without_thread(u16::try_from((vm * VCPUS + id) % 65_535 + 1).unwrap())
    };
    let vcpus = |vm| (0..VCPUS).map(|id| Vcpu { id, slot: Some(slot(vm, id)) }).collect();
    Arc::new(Inventory {
        vms: (1..=VMS).map(|vm| running_vm(vm, vcpus(vm))).collect(),
        cpus: (0..CPUS).collect(),
        ..Inventory::default()
    })
}

fn name(index: [u32; 3]) -> Oid {
    let mut name = VM_MIB;
    for part in AFFINITY.into_iter().chain(index) {
        name.push(part).unwrap();
    }
    name
}

/// The index of the row with this number, counted from 0.
fn row(number: u32) -> [u32; 3] {
    let (vcpu, cpu) = (number / CPUS, number % CPUS);
    [vcpu / VCPUS + 1, vcpu % VCPUS + 1, 196_608 + cpu]
}

#[test]
fn any_of_four_million_rows_costs_one_reading_at_most_and_no_memory() {
    let inventory = host();
    let readings = FixedReadings::at(1);
    let served = instances(&inventory, &readings);
    let rows = VMS * VCPUS * CPUS;
    let (before, mut seen) = (ALLOCATIONS.get(), 0_u64);
    // Steps of a prime length land on every VM, vCPU and CPU number.
    for number in (0..rows - 1).step_by(409) {
        let (next, value) = served.get_next(&name(row(number)), false, &Oid::empty()).unwrap();
        assert_eq!(next, name(row(number + 1)));
        assert_eq!(served.get(&next), Lookup::Found(value));
        seen += 1;
    }
    let allocated = ALLOCATIONS.get() - before;
    // The get is about the vCPU of the get-next before.
    assert_eq!(readings.asked.load(Ordering::Relaxed), seen);
    assert_eq!(allocated, 0);
}

#[test]
fn the_rows_of_a_vcpu_cost_one_reading_of_its_mask_in_a_request() {
    let inventory = host();
    let readings = FixedReadings::at(1);
    for requests in 1..=2 {
        let served = instances(&inventory, &readings);
        for number in 0..2 * CPUS {
            assert!(matches!(served.get(&name(row(number))), Lookup::Found(_)));
        }
        // The next request reads anew: the mask may be another one.
        assert_eq!(readings.asked.load(Ordering::Relaxed), 2 * requests);
    }
}

#[test]
fn a_table_that_is_left_out_has_no_rows_and_costs_nothing() {
    let inventory = host();
    let readings = FixedReadings::at(1);
    let served = TREE.instances(snapshot(&inventory, &readings).with_affinity(false));
    assert_eq!(served.get(&name(row(0))), Lookup::NoSuchInstance);
    let (next, _) = served.get_next(&name([0, 0, 0]), false, &Oid::empty()).unwrap();
    assert_eq!(next.strip_prefix(VM_MIB.parts()), Some(&[1, 9, 0][..]));
    assert_eq!(readings.asked.load(Ordering::Relaxed), 0);
}

#[test]
fn a_walk_across_the_table_allocates_nothing() {
    let inventory = host();
    let readings = FixedReadings::at(1);
    let served = instances(&inventory, &readings);
    let before = ALLOCATIONS.get();
    let (mut at, mut count) = (Oid::empty(), 0_u32);
    // Through the scalars, vmTable and vmCpuTable into the first rows of the affinity.
    while let Some((next, value)) = served.get_next(&at, false, &name([3, 1, 0])) {
        assert!(at < next && served.get(&next) == Lookup::Found(value));
        at = next;
        count += 1;
    }
    assert_eq!(ALLOCATIONS.get() - before, 0);
    // Each VM lacks vmCurMem, which is not known, and each vCPU whose probe is dead its only column.
    let vcpus = inventory.vms.iter().flat_map(|vm| &vm.vcpus);
    let live =
        vcpus.filter(|vcpu| vcpu.slot.is_some_and(|slot| readings.vcpu_time_ns(slot).is_some()));
    let live = u32::try_from(live.count()).unwrap();
    assert_eq!(count, 6 + 15 * VMS + live + 2 * VCPUS * CPUS);
}

#[test]
fn the_last_row_is_followed_by_the_next_object() {
    let inventory = host();
    let readings = FixedReadings::at(1);
    let served = instances(&inventory, &readings);
    let last = name(row(VMS * VCPUS * CPUS - 1));
    assert_eq!(last, name([VMS, VCPUS, 196_608 + CPUS - 1]));
    let (next, value) = served.get_next(&last, false, &Oid::empty()).unwrap();
    assert_eq!(next.strip_prefix(VM_MIB.parts()), Some(&[1, 9, 0][..]));
    assert_eq!(value, Value::Integer(2));
}
