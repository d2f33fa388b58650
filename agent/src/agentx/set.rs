//! The phases of a SET (RFC 2741 section 7.2.4): tested as a whole, then committed as a whole or not at all.

use super::{
    codec::{Data, ResError, VarBinds},
    request::Failure,
    view::{Lookup, SetError, View},
};
use crate::snmp::{Oid, Value};

/// The most bindings in one transaction; what can be set at all is far less.
const MAX_BINDINGS: usize = 1024;

/// A SET between two of its phases.
#[derive(Debug)]
pub(super) struct Transaction {
    /// `h.transactionID`
    id: u32,
    changes: Vec<(Oid, i32)>,
    /// What was there before, in the order in which it was set.
    before: Vec<(Oid, i32)>,
}

/// Section 7.2.4.1: tests every binding, and names the first that cannot be set.
pub(super) fn test<V: View + ?Sized>(
    view: &V,
    id: u32,
    bindings: VarBinds<'_>,
) -> Result<Transaction, Failure> {
    let mut changes: Vec<(Oid, i32)> = Vec::new();
    for (position, binding) in (1..).zip(bindings) {
        let failed = |error| Failure { error, index: position };
        let value = view
            .test_set(&binding.name, value(&binding.data))
            .map_err(|error| failed(res_error(error)))?;
        // RFC 3416 leaves open which of two values for one variable would hold.
        if changes.iter().any(|(name, other)| *name == binding.name && *other != value) {
            return Err(failed(ResError::INCONSISTENT_VALUE));
        }
        if changes.len() == MAX_BINDINGS {
            return Err(failed(ResError::RESOURCE_UNAVAILABLE));
        }
        changes.push((binding.name, value));
    }
    Ok(Transaction { id, changes, before: Vec::new() })
}

/// Section 7.2.4.2. A failure leaves everything as it was.
pub(super) fn commit<V: View + ?Sized>(
    view: &V,
    id: u32,
    transaction: Option<&mut Transaction>,
) -> Result<(), Failure> {
    let failed = |index| Failure { error: ResError::COMMIT_FAILED, index };
    let Some(transaction) = transaction.filter(|transaction| transaction.id == id) else {
        return Err(failed(0));
    };
    for (position, (name, value)) in (1..).zip(&transaction.changes) {
        let before = match view.get(name) {
            Lookup::Found(Value::Integer(before)) => Some(before),
            _ => None,
        };
        match before {
            Some(before) if view.set(name, *value) => transaction.before.push((*name, before)),
            _ => {
                restore(view, &mut transaction.before);
                return Err(failed(position));
            }
        }
    }
    Ok(())
}

/// Section 7.2.4.3. Undoing what was not committed is no error.
pub(super) fn undo<V: View + ?Sized>(
    view: &V,
    id: u32,
    transaction: Option<&mut Transaction>,
) -> Result<(), Failure> {
    let Some(transaction) = transaction.filter(|transaction| transaction.id == id) else {
        return Ok(());
    };
    if restore(view, &mut transaction.before) {
        Ok(())
    } else {
        Err(Failure { error: ResError::UNDO_FAILED, index: 0 })
    }
}

/// The last that was set goes first. Whether all could be set back.
fn restore<V: View + ?Sized>(view: &V, before: &mut Vec<(Oid, i32)>) -> bool {
    before.drain(..).rev().fold(true, |done, (name, value)| view.set(&name, value) && done)
}

fn value<'a>(data: &'a Data<'a>) -> Option<Value<'a>> {
    match data {
        Data::Integer(number) => Some(Value::Integer(*number)),
        Data::OctetString(octets) => Some(Value::OctetString(octets)),
        Data::ObjectIdentifier(oid) => Some(Value::ObjectIdentifier(oid)),
        Data::TimeTicks(ticks) => Some(Value::TimeTicks(*ticks)),
        Data::Counter64(count) => Some(Value::Counter64(*count)),
        _ => None,
    }
}

const fn res_error(error: SetError) -> ResError {
    match error {
        SetError::NotWritable => ResError::NOT_WRITABLE,
        SetError::WrongType => ResError::WRONG_TYPE,
        SetError::WrongValue => ResError::WRONG_VALUE,
        SetError::NoCreation => ResError::NO_CREATION,
    }
}
