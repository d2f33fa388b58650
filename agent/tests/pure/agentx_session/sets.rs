//! The phases of a SET, and what becomes of a value that was set when the master begins anew.

use std::{cell::Cell, collections::BTreeMap};

use kvmeter::agentx::{Lookup, SetError, SetFailed};

use super::*;

const FIRST: &[u32] = &[1, 3, 6, 1, 2, 1, 236, 1, 9, 0];
const SECOND: &[u32] = &[1, 3, 6, 1, 2, 1, 236, 1, 10, 0];

/// Two integers that can be set to any value but 13, and that are 0 after each initialisation.
#[derive(Default)]
struct Numbers {
    values: BTreeMap<Oid, Cell<i32>>,
    committed: Cell<u32>,
}

impl Numbers {
    fn new() -> Self {
        let values = [FIRST, SECOND].map(|name| (Oid::of(name), Cell::new(0)));
        Self { values: values.into(), committed: Cell::new(0) }
    }

    fn both(&self) -> [i32; 2] {
        [FIRST, SECOND].map(|name| self.values[&Oid::of(name)].get())
    }
}

impl Objects for Numbers {
    fn get(&self, name: &Oid) -> Lookup<'_> {
        self.values
            .get(name)
            .map_or(Lookup::NoSuchObject, |value| Lookup::Found(Value::Integer(value.get())))
    }

    fn get_next(&self, _: &Oid, _: bool, _: &Oid) -> Option<(Oid, Value<'_>)> {
        None
    }

    fn test_set(&self, name: &Oid, value: Option<Value<'_>>) -> Result<(), SetError> {
        match (self.values.get(name), value) {
            (None, _) => Err(SetError::NotWritable),
            (_, Some(Value::Integer(13))) => Err(SetError::WrongValue),
            (_, Some(Value::Integer(_))) => Ok(()),
            _ => Err(SetError::WrongType),
        }
    }

    fn commit_set(&self, name: &Oid, value: Value<'_>) -> Result<(), SetFailed> {
        let (Some(known), Value::Integer(value)) = (self.values.get(name), value) else {
            return Err(SetFailed);
        };
        known.set(value);
        self.committed.set(self.committed.get() + 1);
        Ok(())
    }

    fn reinitialize(&self) {
        self.values.values().for_each(|value| value.set(0));
    }
}

impl Master<Numbers> {
    /// A master that is up for so long, with a session.
    fn up_for(up: Duration) -> Self {
        let mut master = Self::with_objects(config(), Numbers::new());
        master.wait(86_400);
        master.open(up);
        master
    }

    fn open(&mut self, up: Duration) {
        self.connect();
        let centiseconds = u32::try_from(up.as_millis() / 10 % (1 << 32)).unwrap();
        while !self.session.output().is_empty() {
            let asked = frame::split(&self.output()).unwrap().unwrap().header;
            let header = Header { session_id: SESSION, ..asked.response() };
            let payload = [centiseconds.to_be_bytes(), [0; 4]].concat();
            let frame = Frame { header, payload: &payload };
            self.session.handle_pdu(&self.objects, frame, self.now).unwrap();
        }
        assert!(matches!(self.session.state(), State::Established { .. }));
    }

    fn lose(&mut self) {
        self.session.disconnected();
    }

    /// Sends a PDU of a SET. Returns the error of its response, and the index of the value with the error.
    fn phase(
        &mut self,
        kind: PduType,
        transaction: u32,
        values: &[(&[u32], i32)],
    ) -> (ResError, u16) {
        let header = Header {
            session_id: SESSION,
            transaction_id: transaction,
            ..Header::new(kind, ByteOrder::Network)
        };
        let mut octets = Vec::new();
        let mut writer = PduWriter::new(&mut octets, &header, b"");
        for (name, value) in values {
            writer.value(&Oid::of(name), Value::Integer(*value));
        }
        writer.finish();
        self.send(&octets).unwrap();
        let output = self.output();
        if kind == PduType::CleanupSet {
            assert!(output.is_empty(), "CleanupSet has no response");
            return (ResError::NO_ERROR, 0);
        }
        match Pdu::decode(frame::split(&output).unwrap().unwrap()).unwrap().body {
            Body::Response { error, index, .. } => (error, index),
            body => panic!("{body:?}"),
        }
    }

    fn test(&mut self, transaction: u32, values: &[(&[u32], i32)]) -> (ResError, u16) {
        self.phase(PduType::TestSet, transaction, values)
    }

    fn commit(&mut self, transaction: u32) -> (ResError, u16) {
        self.phase(PduType::CommitSet, transaction, &[])
    }

    fn undo(&mut self, transaction: u32) -> (ResError, u16) {
        self.phase(PduType::UndoSet, transaction, &[])
    }

    fn cleanup(&mut self, transaction: u32) {
        self.phase(PduType::CleanupSet, transaction, &[]);
    }

    /// A whole SET.
    fn set(&mut self, values: &[(&[u32], i32)]) {
        assert_eq!(self.test(1, values), OK);
        assert_eq!(self.commit(1), OK);
        self.cleanup(1);
    }
}

const OK: (ResError, u16) = (ResError::NO_ERROR, 0);
const HOUR: Duration = Duration::from_secs(3600);

#[test]
fn transactions_do_not_disturb_each_other() {
    let mut master = Master::up_for(HOUR);
    assert_eq!(master.test(1, &[(FIRST, 1)]), OK);
    assert_eq!(master.test(2, &[(SECOND, 2)]), OK);
    // The cleanup of another one, and of none.
    master.cleanup(2);
    master.cleanup(3);
    assert_eq!(master.commit(2), (ResError::COMMIT_FAILED, 0));
    assert_eq!(master.commit(1), OK);
    assert_eq!(master.objects.both(), [1, 0]);
    assert_eq!(master.undo(2), OK, "nothing to undo");
    assert_eq!(master.objects.both(), [1, 0]);
    assert_eq!(master.undo(1), OK);
    assert_eq!(master.objects.both(), [0, 0]);
}

#[test]
fn a_transaction_may_be_tested_in_several_pdus() {
    let mut master = Master::up_for(HOUR);
    assert_eq!(master.test(1, &[(FIRST, 1)]), OK);
    assert_eq!(master.test(1, &[(SECOND, 2)]), OK);
    // One that is refused leaves the others.
    assert_eq!(master.test(1, &[(FIRST, 1), (SECOND, 13)]), (ResError::WRONG_VALUE, 2));
    assert_eq!(master.test(1, &[(SECOND, 3)]), (ResError::INCONSISTENT_VALUE, 1));
    assert_eq!(master.commit(1), OK);
    assert_eq!(master.commit(1), OK);
    assert_eq!(master.objects.both(), [1, 2]);
    assert_eq!(master.objects.committed.get(), 2, "each once");
    assert_eq!(master.undo(1), OK);
    assert_eq!(master.undo(1), OK);
    assert_eq!(master.objects.both(), [0, 0]);
}

#[test]
fn a_pdu_that_is_repeated_changes_nothing() {
    let mut master = Master::up_for(HOUR);
    for _ in 0..3 {
        assert_eq!(master.test(1, &[(FIRST, 1), (FIRST, 1)]), OK);
    }
    assert_eq!([master.commit(1), master.commit(1)], [OK, OK]);
    assert_eq!(master.undo(1), OK);
    assert_eq!(master.objects.both(), [0, 0]);
}

#[test]
fn transactions_without_an_end_take_no_more_than_their_room() {
    let mut master = Master::up_for(HOUR);
    for id in 0..1000 {
        assert_eq!(master.test(id, &[(FIRST, 1)]), OK);
    }
    assert_eq!(master.commit(0), (ResError::COMMIT_FAILED, 0));
    assert_eq!(master.commit(999), OK);
}

#[test]
fn a_value_does_not_outlive_the_master_in_which_it_was_set() {
    let mut master = Master::up_for(HOUR);
    master.set(&[(FIRST, 1)]);
    // The session is lost, and the master is the same.
    master.now += HOUR;
    master.lose();
    master.open(2 * HOUR);
    assert_eq!(master.objects.both(), [1, 0]);
    // It begins anew, at once or after a while.
    master.lose();
    master.now += HOUR;
    master.open(Duration::from_secs(3));
    assert_eq!(master.objects.both(), [0, 0]);
    // One that has begun after the SET, although it was found late.
    master.set(&[(SECOND, 2)]);
    master.lose();
    master.now += 10 * HOUR;
    master.open(9 * HOUR);
    assert_eq!(master.objects.both(), [0, 0]);
    // Set since this master began; only the session is lost, so the value stays.
    master.set(&[(SECOND, 3)]);
    master.lose();
    master.now += HOUR;
    master.open(10 * HOUR);
    assert_eq!(master.objects.both(), [0, 3]);
}

#[test]
fn an_empty_context_is_the_default_context() {
    let mut master = Master::established();
    let mut get = pdu::Get::new(ranges(&["1.5.0"]));
    master.stamp(&mut get.header);
    get.header.flags |= Flags::NON_DEFAULT_CONTEXT;
    get.context = Some(agentx::encodings::Context(agentx::encodings::OctetString("".into())));
    let get = get.to_bytes().unwrap();
    assert_eq!(master.ask(&get), found(&["1.5.0 = Integer(-1)"]));
}
