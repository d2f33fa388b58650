//! The phases of a SET (RFC 2741 section 7.2.4): tested as a whole, then committed as a whole or not at all.

use super::{
    codec::{ResError, VarBinds},
    objects::{Lookup, Objects, SetError, SetFailed},
    request::Failure,
};
use crate::snmp::{Oid, OwnedValue};

/// The most bindings in one transaction: more than any agent has writable objects, and few enough to compare each
/// with all others.
const MAX_BINDINGS: usize = 1024;

/// A SET between two of its phases.
#[derive(Debug)]
pub(super) struct Transaction {
    /// `h.transactionID`
    id: u32,
    changes: Vec<(Oid, OwnedValue)>,
    /// The values that the first of the changes have replaced: as many as are committed.
    before: Vec<OwnedValue>,
}

/// Section 7.2.4.1: tests every binding, and names the first that cannot be set.
pub(super) fn test<O: Objects + ?Sized>(
    objects: &O,
    id: u32,
    bindings: VarBinds<'_>,
) -> Result<Transaction, Failure> {
    let mut changes: Vec<(Oid, OwnedValue)> = Vec::new();
    for (index, binding) in (1..).zip(bindings) {
        let failed = |error| Failure { error: res_error(error), index };
        let value = binding.data.value();
        objects.test_set(&binding.name, value).map_err(failed)?;
        let value = value.ok_or(SetError::WrongType).map_err(failed)?;
        // RFC 3416 leaves open which of two values for one variable would hold.
        let is_other =
            |(name, other): &(Oid, OwnedValue)| *name == binding.name && other.as_value() != value;
        if changes.iter().any(is_other) {
            return Err(failed(SetError::InconsistentValue));
        }
        if changes.len() == MAX_BINDINGS {
            return Err(failed(SetError::ResourceUnavailable));
        }
        changes.push((binding.name, value.to_owned()));
    }
    Ok(Transaction { id, changes, before: Vec::new() })
}

/// Section 7.2.4.2. A failure leaves everything as it was.
pub(super) fn commit<O: Objects + ?Sized>(
    objects: &O,
    id: u32,
    transaction: Option<&mut Transaction>,
) -> Result<(), Failure> {
    let failed = |index| Failure { error: ResError::COMMIT_FAILED, index };
    let Some(transaction) = transaction.filter(|transaction| transaction.id == id) else {
        return Err(failed(0));
    };
    let Transaction { changes, before, .. } = transaction;
    for (index, (name, value)) in (1..).zip(&*changes) {
        let committed = match objects.get(name) {
            Lookup::Found(old) => {
                let old = old.to_owned();
                objects.commit_set(name, value.as_value()).map(|()| before.push(old))
            }
            Lookup::NoSuchObject | Lookup::NoSuchInstance => Err(SetFailed),
        };
        if committed.is_err() {
            // The error is the commit's, whether or not all could be set back.
            let _ = transaction.undo(objects);
            return Err(failed(index));
        }
    }
    Ok(())
}

/// Section 7.2.4.3. Undoing what was not committed is no error.
pub(super) fn undo<O: Objects + ?Sized>(
    objects: &O,
    id: u32,
    transaction: Option<&mut Transaction>,
) -> Result<(), Failure> {
    transaction
        .filter(|transaction| transaction.id == id)
        .map_or(Ok(()), |transaction| transaction.undo(objects))
        .map_err(|SetFailed| Failure { error: ResError::UNDO_FAILED, index: 0 })
}

/// Section 7.2.4.4. Ends the transaction, whatever its phase.
pub(super) fn cleanup<O: Objects + ?Sized>(
    objects: &O,
    Transaction { changes, before, .. }: Transaction,
) {
    for (name, value) in changes.into_iter().take(before.len()) {
        objects.cleanup_set(&name, value.as_value());
    }
}

impl Transaction {
    /// Sets back everything that is committed, the last first.
    fn undo<O: Objects + ?Sized>(&mut self, objects: &O) -> Result<(), SetFailed> {
        let mut undone = Ok(());
        while let Some(before) = self.before.pop() {
            let (name, _) = &self.changes[self.before.len()];
            let one = objects.undo_set(name, before.as_value());
            undone = undone.and(one);
        }
        undone
    }
}

const fn res_error(error: SetError) -> ResError {
    match error {
        SetError::NotWritable => ResError::NOT_WRITABLE,
        SetError::WrongType => ResError::WRONG_TYPE,
        SetError::WrongLength => ResError::WRONG_LENGTH,
        SetError::WrongEncoding => ResError::WRONG_ENCODING,
        SetError::WrongValue => ResError::WRONG_VALUE,
        SetError::NoCreation => ResError::NO_CREATION,
        SetError::InconsistentName => ResError::INCONSISTENT_NAME,
        SetError::InconsistentValue => ResError::INCONSISTENT_VALUE,
        SetError::ResourceUnavailable => ResError::RESOURCE_UNAVAILABLE,
    }
}
