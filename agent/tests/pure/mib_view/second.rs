//! A second module beside VM-MIB: found, walked and set by its tables alone.

use std::{
    sync::{Arc, LazyLock},
    time::Instant,
};

use kvmeter::{
    agentx::{
        Config, Lookup, Objects, Session, SetError, State as SessionState,
        codec::{Body, ByteOrder, Frame, Header, Pdu, PduType, PduWriter, ResError, frame},
    },
    inventory::Inventory,
    mib::{
        self, Snapshot,
        smi::{Instances, Tree, TreeError},
    },
    snmp::{Oid, OwnedValue, Value},
};
use proptest::prelude::*;

use super::{
    host::{FixedReadings, running_vm, snapshot},
    oracle::{if_index, oracle},
    shapes::inventory,
};
use crate::second_mib::{MODULE, STATE, faults, models, temperature};

/// Where the configuration puts it: before VM-MIB, or behind.
const ROOTS: [&[u32]; 2] = [&[1, 3, 6, 1, 2, 1, 99], &[1, 3, 6, 1, 4, 1, 99_999, 7]];

static TREES: LazyLock<[Tree<Snapshot>; 2]> = LazyLock::new(|| {
    ROOTS.map(|root| {
        Tree::new(mib::modules().into_iter().chain([(Oid::of(root), &MODULE)])).unwrap()
    })
});

/// Every instance of the module, in no order.
fn second(root: &[u32], inventory: &Inventory) -> Vec<(Oid, OwnedValue)> {
    let mut all = Vec::new();
    let mut put = |suffix: &[u32], value: Value<'_>| {
        all.push((Oid::concat([root, suffix]).unwrap(), value.to_owned()));
    };
    put(&[1, 1, 0], Value::Gauge32(0));
    put(&[1, 2, 0], Value::OctetString(&[]));
    put(&[1, 3, 0], Value::ObjectIdentifier(&Oid::of(&[0, 0])));
    put(&[1, 4, 0], Value::IpAddress([0; 4]));
    put(&[1, 5, 0], Value::OctetString(&[]));
    put(&[1, 7, 0], Value::TimeTicks(u32::MAX));
    put(&[1, 8, 0], Value::Opaque(&[0x9f, 0x78, 4, 0x42, 0xf6, 0, 0]));
    for vm in inventory.vms.iter() {
        let i = vm.index.0;
        put(&[1, 9, 1, 1, i], Value::Gauge32(temperature(vm)));
        if let Some(faults) = faults(vm) {
            put(&[1, 9, 1, 2, i], Value::Counter32(faults));
        }
        put(&[1, 9, 1, 3, i], Value::Integer(0));
        for (index, nic) in models(vm) {
            let column = [&[1, 10, 1, 2], index.parts()].concat();
            // A name of more than 128 sub-identifiers is no name.
            if root.len() + column.len() <= Oid::MAX_LEN {
                put(&column, Value::Gauge32(if_index(nic.if_index)));
            }
        }
    }
    all
}

proptest! {
    #[test]
    fn two_modules_are_walked_in_order(inventory in inventory().prop_map(Arc::new), now: u64) {
        let readings = FixedReadings::at(now);
        for (tree, root) in TREES.iter().zip(ROOTS) {
            let served = tree.instances(snapshot(&inventory, &readings));
            let mut all = oracle(&inventory, &readings);
            all.extend(second(root, &inventory));
            all.sort_by_key(|(name, _)| *name);
            let mut walk = Vec::new();
            let mut at = Oid::empty();
            while let Some((name, value)) = served.get_next(&at, false, &Oid::empty()) {
                prop_assert!(at < name, "{} after {}", name, at);
                walk.push((name, value.to_owned()));
                at = name;
            }
            prop_assert_eq!(&walk, &all);
            for (at, (name, value)) in all.iter().enumerate() {
                prop_assert_eq!(served.get(name), Lookup::Found(value.as_value()));
                let included = served.get_next(name, true, &Oid::empty());
                prop_assert_eq!(included, Some((*name, value.as_value())));
                let bounded = served.get_next(name, false, &all[(at + 1).min(all.len() - 1)].0);
                prop_assert_eq!(bounded, None);
            }
        }
    }
}

#[test]
fn two_modules_at_one_place_are_refused() {
    for root in [&[1, 3, 6, 1, 2, 1, 236][..], &[1, 3, 6, 1, 2, 1, 236, 9]] {
        let modules = mib::modules().into_iter().chain([(Oid::of(root), &MODULE)]);
        assert!(matches!(Tree::new(modules), Err(TreeError::Within { above: "VM-MIB", .. })));
    }
    let modules = mib::modules().into_iter().chain([(Oid::of(&[1, 3, 6]), &MODULE)]);
    assert!(matches!(Tree::new(modules), Err(TreeError::Within { below: "VM-MIB", .. })));
}

fn served() -> Instances<'static, Snapshot> {
    let vms = [running_vm(1, Vec::new()), running_vm(2, Vec::new())].into_iter().collect();
    let inventory = Arc::new(Inventory { vms, ..Inventory::default() });
    TREES[1].instances(snapshot(&inventory, &FixedReadings::at(1)))
}

fn name(suffix: &[u32]) -> Oid {
    Oid::concat([ROOTS[1], suffix]).unwrap()
}

#[test]
fn what_a_set_is_refused_for() {
    let served = served();
    let test = |suffix: &[u32], value| served.test_set(&name(suffix), Some(value));
    let oid = Oid::empty();
    for (suffix, value, expected) in [
        (&[1, 1, 0][..], Value::Gauge32(100), Ok(())),
        (&[1, 1, 0], Value::Gauge32(101), Err(SetError::WrongValue)),
        (&[1, 1, 0], Value::Gauge32(99), Err(SetError::InconsistentValue)),
        (&[1, 1, 0], Value::Integer(2), Err(SetError::WrongType)),
        (&[1, 1, 1], Value::Gauge32(2), Err(SetError::NoCreation)),
        (&[1, 1], Value::Gauge32(2), Err(SetError::NoCreation)),
        (&[1, 2, 0], Value::OctetString(&[b'x'; 256]), Err(SetError::WrongLength)),
        (&[1, 3, 0], Value::ObjectIdentifier(&oid), Ok(())),
        (&[1, 5, 0], Value::OctetString(&[0x40]), Err(SetError::WrongValue)),
        (&[1, 6, 0], Value::Integer(3), Err(SetError::WrongValue)),
        (&[1, 6, 0], Value::Integer(1), Err(SetError::NoCreation)),
        (&[1, 7, 0], Value::TimeTicks(1), Err(SetError::NotWritable)),
        (&[1, 9, 1, 1, 1], Value::Gauge32(1), Err(SetError::NotWritable)),
        (&[1, 9, 1, 3, 1], Value::Integer(1000), Ok(())),
        (&[1, 9, 1, 3, 2], Value::Integer(1000), Err(SetError::NotWritable)),
        (&[1, 9, 1, 3, 3], Value::Integer(1000), Err(SetError::NoCreation)),
        (&[1, 9, 1, 4, 1], Value::Integer(1), Err(SetError::NotWritable)),
        (&[1, 10, 1, 1, 1, 1, 97], Value::OctetString(b"a"), Err(SetError::NotWritable)),
        (&[9], Value::Integer(1), Err(SetError::NotWritable)),
    ] {
        assert_eq!(test(suffix, value), expected, "{suffix:?} {value:?}");
    }
    assert_eq!(served.test_set(&name(&[1, 1, 0]), None), Err(SetError::WrongType));
    assert_eq!(served.test_set(&name(&[1, 7, 0]), None), Err(SetError::NotWritable));
}

/// A session whose master sends the phases of a SET.
struct Master {
    session: Session,
    served: Instances<'static, Snapshot>,
    packet_id: u32,
}

const SESSION: u32 = 77;

impl Master {
    fn established() -> Self {
        let roots = TREES[1].modules().map(|(root, _)| *root).collect();
        let mut session = Session::new(Config::new(roots));
        let served = served();
        session.connected(Instant::now()).unwrap();
        while let SessionState::Opening { packet_id }
        | SessionState::Registering { packet_id, .. } = session.state()
        {
            let header = Header {
                session_id: SESSION,
                packet_id,
                payload_length: 8,
                ..Header::new(PduType::Response, ByteOrder::Network)
            };
            let yes = Frame { header, payload: &[0; 8] };
            session.handle_pdu(&served, yes, Instant::now()).unwrap();
        }
        session.consume_output(usize::MAX);
        Self { session, served, packet_id: 0 }
    }

    /// One phase; its error and the binding that it is about. CleanupSet has no response.
    fn phase(
        &mut self,
        kind: PduType,
        transaction_id: u32,
        bindings: &[(Oid, Value<'_>)],
    ) -> Option<(ResError, u16)> {
        self.packet_id += 1;
        let header = Header {
            session_id: SESSION,
            transaction_id,
            packet_id: self.packet_id,
            ..Header::new(kind, ByteOrder::Network)
        };
        let mut octets = Vec::new();
        let mut pdu = PduWriter::new(&mut octets, &header, &[]);
        bindings.iter().for_each(|(name, value)| pdu.value(name, *value));
        pdu.finish();
        let request = frame::split(&octets).unwrap().unwrap();
        self.session.handle_pdu(&self.served, request, Instant::now()).unwrap();
        let output = self.session.output().to_vec();
        self.session.consume_output(usize::MAX);
        let response = frame::split(&output).unwrap()?;
        match Pdu::decode(response).unwrap().body {
            Body::Response { error, index, .. } => Some((error, index)),
            body => panic!("{body:?}"),
        }
    }

    fn get(&self, suffix: &[u32]) -> Option<OwnedValue> {
        match self.served.get(&name(suffix)) {
            Lookup::Found(value) => Some(value.to_owned()),
            _ => None,
        }
    }
}

const DONE: Option<(ResError, u16)> = Some((ResError::NO_ERROR, 0));

#[test]
fn values_of_every_type_are_set_and_set_back() {
    let mut master = Master::established();
    let target = Oid::of(&[1, 3, 6, 1, 2, 1, 236, 1, 4, 1, 2, 1]);
    let changes = [
        (name(&[1, 1, 0]), Value::Gauge32(42)),
        (name(&[1, 2, 0]), Value::OctetString("zwölf".as_bytes())),
        (name(&[1, 3, 0]), Value::ObjectIdentifier(&target)),
        (name(&[1, 4, 0]), Value::IpAddress([192, 0, 2, 7])),
        (name(&[1, 5, 0]), Value::OctetString(&[0x80, 0x40])),
        (name(&[1, 9, 1, 3, 1]), Value::Integer(1000)),
    ];
    let values = |master: &Master| {
        changes.map(|(name, _)| match master.served.get(&name) {
            Lookup::Found(value) => value.to_owned(),
            other => panic!("{name}: {other:?}"),
        })
    };
    let before = values(&master);
    let after = changes.map(|(_, value)| value.to_owned());

    assert_eq!(master.phase(PduType::TestSet, 1, &changes), DONE);
    assert_eq!(values(&master), before, "a test sets nothing");
    assert_eq!(master.phase(PduType::CommitSet, 1, &[]), DONE);
    assert_eq!(values(&master), after);
    assert_eq!(master.phase(PduType::UndoSet, 1, &[]), DONE);
    assert_eq!(values(&master), before);
    assert_eq!(master.phase(PduType::CleanupSet, 1, &[]), None);

    assert_eq!(master.phase(PduType::TestSet, 2, &changes), DONE);
    assert_eq!(master.phase(PduType::CommitSet, 2, &[]), DONE);
    assert_eq!(master.phase(PduType::CleanupSet, 2, &[]), None);
    assert_eq!(values(&master), after);
    // What is ended is not undone.
    assert_eq!(master.phase(PduType::UndoSet, 2, &[]), DONE);
    assert_eq!(values(&master), after);
    let log = STATE.with(|state| state.log.take());
    assert_eq!(
        log,
        ["commit Gauge32(42)", "undo Gauge32(0)", "commit Gauge32(42)", "cleanup Gauge32(42)"]
    );
}

#[test]
fn a_commit_that_fails_leaves_everything_as_it_was() {
    let mut master = Master::established();
    STATE.with(|state| state.is_broken.set(true));
    let changes = [
        (name(&[1, 4, 0]), Value::IpAddress([192, 0, 2, 7])),
        (name(&[1, 1, 0]), Value::Gauge32(42)),
    ];
    assert_eq!(master.phase(PduType::TestSet, 1, &changes), DONE);
    assert_eq!(master.phase(PduType::CommitSet, 1, &[]), Some((ResError::COMMIT_FAILED, 2)));
    assert_eq!(master.get(&[1, 4, 0]), Some(OwnedValue::IpAddress([0; 4])));
    // What failed is undone by the master all the same, and cleaned up.
    assert_eq!(master.phase(PduType::UndoSet, 1, &[]), DONE);
    assert_eq!(master.phase(PduType::CleanupSet, 1, &[]), None);
    assert_eq!(STATE.with(|state| state.log.take()), ["commit Gauge32(42)"]);

    // And what cannot be set back says so.
    STATE.with(|state| state.is_broken.set(false));
    assert_eq!(master.phase(PduType::TestSet, 2, &changes), DONE);
    assert_eq!(master.phase(PduType::CommitSet, 2, &[]), DONE);
    STATE.with(|state| state.is_broken.set(true));
    assert_eq!(master.phase(PduType::UndoSet, 2, &[]), Some((ResError::UNDO_FAILED, 0)));
    assert_eq!(master.get(&[1, 4, 0]), Some(OwnedValue::IpAddress([0; 4])));
}

#[test]
fn a_test_names_the_first_binding_that_cannot_be_set() {
    let mut master = Master::established();
    let limit = name(&[1, 1, 0]);
    let (two, four) = (Value::Gauge32(2), Value::Gauge32(4));
    for (bindings, expected) in [
        (vec![(limit, two), (name(&[1, 1, 5]), two)], (ResError::NO_CREATION, 2)),
        (vec![(limit, Value::Gauge32(3)), (limit, two)], (ResError::INCONSISTENT_VALUE, 1)),
        (vec![(limit, two), (limit, four)], (ResError::INCONSISTENT_VALUE, 2)),
        (vec![(limit, two), (limit, two)], (ResError::NO_ERROR, 0)),
    ] {
        assert_eq!(master.phase(PduType::TestSet, 1, &bindings), Some(expected), "{bindings:?}");
    }
    // Of another transaction, or of none, nothing is committed.
    assert_eq!(master.phase(PduType::CommitSet, 9, &[]), Some((ResError::COMMIT_FAILED, 0)));
    assert_eq!(master.get(&[1, 1, 0]), Some(OwnedValue::Gauge32(0)));
}
