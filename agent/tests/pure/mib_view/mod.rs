//! Get and get-next against an oracle that lists every instance, over inventories of every shape.

#![expect(clippy::unwrap_used, clippy::expect_used, reason = "a test that cannot go on fails")]

mod host;
mod large;
mod oracle;
mod second;
mod shapes;
mod status;

use std::sync::Arc;

use kvmeter::{
    agentx::{Lookup, Objects as _},
    inventory::{Inventory, OperState, Vcpu, Vm},
    snmp::{Oid, OwnedValue, Value},
};
use proptest::{collection, prelude::*, sample::Index};

use host::{FixedReadings, TREE, instances, running_vm};
use oracle::{name, oracle};
use shapes::inventory;

/// What changes a name into one beside it.
#[derive(Clone, Debug)]
enum Edit {
    Truncate(Index),
    Push(u32),
    Set(Index, u32),
    Add(Index, i32),
}

fn part() -> impl Strategy<Value = u32> {
    prop_oneof![0..12_u32, Just(0x7fff_ffff), Just(0x8000_0000), Just(u32::MAX), any::<u32>()]
}

fn edit() -> impl Strategy<Value = Edit> {
    prop_oneof![
        any::<Index>().prop_map(Edit::Truncate),
        part().prop_map(Edit::Push),
        (any::<Index>(), part()).prop_map(|(at, part)| Edit::Set(at, part)),
        (any::<Index>(), -1..=1_i32).prop_map(|(at, by)| Edit::Add(at, by)),
    ]
}

fn edited(name: &Oid, edits: &[Edit]) -> Oid {
    let mut parts = name.parts().to_vec();
    for edit in edits {
        match edit {
            Edit::Push(part) => parts.push(*part),
            Edit::Truncate(at) if !parts.is_empty() => parts.truncate(at.index(parts.len())),
            Edit::Set(at, part) if !parts.is_empty() => {
                let at = at.index(parts.len());
                parts[at] = *part;
            }
            Edit::Add(at, by) if !parts.is_empty() => {
                let at = at.index(parts.len());
                parts[at] = parts[at].wrapping_add_signed(*by);
            }
            _ => (),
        }
    }
    Oid::of(&parts)
}

/// A name near one of the instances, or near nothing at all.
fn probe() -> impl Strategy<Value = (Index, Vec<Edit>)> {
    (any::<Index>(), collection::vec(edit(), 0..4))
}

fn found(next: Option<(Oid, Value<'_>)>) -> Option<(Oid, OwnedValue)> {
    next.map(|(name, value)| (name, value.to_owned()))
}

proptest! {
    #[test]
    fn a_walk_gives_every_instance_once_and_in_order(inventory in inventory().prop_map(Arc::new), now: u64) {
        let readings = FixedReadings::at(now);
        let served = instances(&inventory, &readings);
        let all = oracle(&inventory, &readings);
        let mut walk = Vec::new();
        let mut at = Oid::empty();
        while let Some((name, value)) = served.get_next(&at, false, &Oid::empty()) {
            prop_assert!(at < name, "{} after {}", name, at);
            walk.push((name, value.to_owned()));
            at = name;
        }
        prop_assert_eq!(&walk, &all);
        for (name, value) in &all {
            match served.get(name) {
                Lookup::Found(got) => prop_assert_eq!(&got.to_owned(), value),
                other => prop_assert!(false, "{} is {:?}", name, other),
            }
        }
    }

    #[test]
    fn get_next_gives_the_first_instance_in_the_range(
        inventory in inventory().prop_map(Arc::new),
        now: u64,
        probes in collection::vec((probe(), any::<bool>(), probe()), 32),
    ) {
        let readings = FixedReadings::at(now);
        let served = instances(&inventory, &readings);
        let all = oracle(&inventory, &readings);
        for ((start, start_edits), include, (end, end_edits)) in probes {
            let start = edited(&start.get(&all).0, &start_edits);
            let end = edited(&end.get(&all).0, &end_edits);
            for end in [Oid::empty(), end] {
                let first = all
                    .iter()
                    .find(|(name, _)| *name > start || (include && *name == start))
                    .filter(|(name, _)| end.is_empty() || *name < end);
                let next = found(served.get_next(&start, include, &end));
                prop_assert_eq!(next.as_ref(), first, "{} {} {}", start, include, end);
            }
        }
    }

    #[test]
    fn get_tells_objects_and_instances_apart(
        inventory in inventory().prop_map(Arc::new),
        probes in collection::vec(probe(), 64),
    ) {
        let readings = FixedReadings::at(1);
        let served = instances(&inventory, &readings);
        let all = oracle(&inventory, &readings);
        for (near, edits) in probes {
            let name = edited(&near.get(&all).0, &edits);
            let value = all.iter().find(|(known, _)| *known == name).map(|(_, value)| value);
            let is_object =
                TREE.objects().any(|(object, _)| name.strip_prefix(object.parts()).is_some());
            match served.get(&name) {
                Lookup::Found(got) => prop_assert_eq!(Some(&got.to_owned()), value, "{}", name),
                Lookup::NoSuchInstance => prop_assert!(is_object && value.is_none(), "{}", name),
                Lookup::NoSuchObject => prop_assert!(!is_object, "{}", name),
            }
        }
    }

    #[test]
    fn values_obey_their_syntax(inventory in inventory().prop_map(Arc::new), now: u64) {
        let readings = FixedReadings::at(now);
        let served = instances(&inventory, &readings);
        for (object, object_type) in TREE.objects() {
            let mut at = object;
            while let Some((next, value)) = served.get_next(&at, false, &Oid::empty()) {
                if next.strip_prefix(object.parts()).is_none() {
                    break;
                }
                prop_assert_eq!(object_type.syntax.check(value), Ok(()), "{} {:?}", next, value);
                at = next;
            }
        }
    }
}

#[test]
fn what_may_not_be_read_is_no_such_object() {
    let vms = [running_vm(1, Vec::new())].into_iter().collect();
    let inventory = Arc::new(Inventory { vms, ..Inventory::default() });
    let readings = FixedReadings::at(0);
    let served = instances(&inventory, &readings);
    for suffix in [
        &[][..],
        &[0, 1],           // a notification
        &[1, 4],           // vmTable
        &[1, 4, 1],        // vmEntry
        &[1, 4, 1, 1, 1],  // vmIndex
        &[1, 4, 1, 18, 1], // no column
        &[1, 4, 2, 2, 1],  // no row type
        &[1, 11, 0],       // vmAffectedVMs
        &[2, 2, 1],        // a group
    ] {
        assert_eq!(served.get(&name(suffix)), Lookup::NoSuchObject, "{suffix:?}");
    }
    for suffix in [
        &[1, 2][..],                // vmNumber without an instance
        &[1, 2, 1],                 // vmNumber has one instance, .0
        &[1, 2, 0, 0],              // longer than that
        &[1, 4, 1, 2],              // vmName without an instance
        &[1, 4, 1, 2, 2],           // no such VM
        &[1, 4, 1, 2, 0x8000_0001], // nor one beyond Integer32
        &[1, 4, 1, 2, u32::MAX],
        &[1, 4, 1, 2, 1, 0], // longer than the index
        &[1, 7, 1, 3, 1, 1], // vmStorageParent: no disks
    ] {
        assert_eq!(served.get(&name(suffix)), Lookup::NoSuchInstance, "{suffix:?}");
    }
    assert_eq!(served.get(&Oid::empty()), Lookup::NoSuchObject);
    assert_eq!(served.get(&Oid::of(&[1, 3, 6, 1, 2, 1, 237, 1, 2, 0])), Lookup::NoSuchObject);
}

#[test]
fn get_next_begins_before_the_module_and_ends_behind_it() {
    let inventory = Arc::new(Inventory::default());
    let readings = FixedReadings::at(0);
    let served = instances(&inventory, &readings);
    let first = name(&[1, 1, 1, 0]);
    let next =
        |start: &[u32]| served.get_next(&Oid::of(start), false, &Oid::empty()).map(|(n, _)| n);
    for start in [&[][..], &[0], &[1, 3, 6, 1, 2, 1], &[1, 3, 6, 1, 2, 1, 235, u32::MAX]] {
        assert_eq!(next(start), Some(first), "{start:?}");
    }
    assert_eq!(next(name(&[1, 9, 0]).parts()), Some(name(&[1, 10, 0])));
    assert_eq!(next(name(&[1, 10, 0]).parts()), None);
    for start in [&[1, 3, 6, 1, 2, 1, 237][..], &[2], &[u32::MAX; 128]] {
        assert_eq!(next(start), None, "{start:?}");
    }
    let included = served.get_next(&first, true, &first);
    assert_eq!(included, None, "the end is not part of the range");
}

#[test]
fn a_name_of_128_parts_is_answered() {
    let vms = [running_vm(1, Vec::new())].into_iter().collect();
    let inventory = Arc::new(Inventory { vms, ..Inventory::default() });
    let readings = FixedReadings::at(0);
    let served = instances(&inventory, &readings);
    let mut long = name(&[1, 4, 1, 2, 1]);
    while long.push(u32::MAX).is_ok() {}
    assert_eq!(served.get(&long), Lookup::NoSuchInstance);
    let next = served.get_next(&long, true, &Oid::empty());
    assert_eq!(next.map(|(name, _)| name), Some(name(&[1, 4, 1, 3, 1])));
}

#[test]
fn rows_of_a_vm_that_is_down_stay_at_zero_and_those_without_a_probe_are_absent() {
    let vcpu = Vcpu { id: 0, slot: None };
    let unprobed = Vm { slot: None, ..running_vm(1, vec![vcpu]) };
    let down = Vm {
        oper_state: OperState::Shutdown,
        started_ns: None,
        pid: None,
        slot: None,
        ..running_vm(2, vec![vcpu])
    };
    let inventory =
        Arc::new(Inventory { vms: [unprobed, down].into_iter().collect(), ..Inventory::default() });
    let readings = FixedReadings::at(5_000_000_000);
    let served = instances(&inventory, &readings);
    let get = |suffix: &[u32]| served.get(&name(suffix));
    assert_eq!(get(&[1, 4, 1, 16, 1]), Lookup::Found(Value::TimeTicks(500)));
    assert_eq!(get(&[1, 4, 1, 17, 1]), Lookup::NoSuchInstance);
    assert_eq!(get(&[1, 5, 1, 2, 1, 1]), Lookup::NoSuchInstance);
    assert_eq!(get(&[1, 4, 1, 16, 2]), Lookup::Found(Value::TimeTicks(0)));
    assert_eq!(get(&[1, 4, 1, 17, 2]), Lookup::Found(Value::Counter64(0)));
    assert_eq!(get(&[1, 5, 1, 2, 2, 1]), Lookup::Found(Value::Counter64(0)));
    let next = served.get_next(&name(&[1, 4, 1, 17]), false, &Oid::empty());
    assert_eq!(next, Some((name(&[1, 4, 1, 17, 2]), Value::Counter64(0))));
}
