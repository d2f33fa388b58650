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

/// Most transactions that are kept. A master that serves more SETs at a time loses the oldest: its CommitSet fails.
const MAX_TRANSACTIONS: usize = 64;

/// The SETs between two of their phases, by `h.transactionID`, the oldest first.
#[derive(Debug, Default)]
pub(super) struct Transactions(Vec<Transaction>);

/// A SET between two of its phases. A master that divides a subtree tests one SET in several PDUs.
#[derive(Debug)]
struct Transaction {
    /// `h.transactionID`
    id: u32,
    changes: Vec<Change>,
    /// The values that the first of the changes have replaced: as many as are committed.
    before: Vec<OwnedValue>,
}

/// One tested binding.
#[derive(Debug)]
struct Change {
    /// Position in its PDU, from 1.
    index: u16,
    name: Oid,
    value: OwnedValue,
}

impl Transactions {
    /// Section 7.2.4.1: tests every binding, and names the first that cannot be set. What an earlier PDU of the same
    /// transaction has tested stays.
    pub(super) fn test<O: Objects + ?Sized>(
        &mut self,
        objects: &O,
        id: u32,
        bindings: VarBinds<'_>,
    ) -> Result<(), Failure> {
        let known = self.0.iter_mut().find(|transaction| transaction.id == id);
        let earlier = known.as_ref().map_or(&[][..], |transaction| transaction.pending());
        let changes = tested(objects, earlier, bindings)?;
        match known {
            Some(transaction) => transaction.changes.extend(changes),
            None => {
                if self.0.len() == MAX_TRANSACTIONS {
                    self.0.remove(0);
                }
                self.0.push(Transaction { id, changes, before: Vec::new() });
            }
        }
        Ok(())
    }

    /// Section 7.2.4.2. A failure leaves everything as it was. What is committed already, since the master sends a CommitSet
    /// for each TestSet, is committed once.
    pub(super) fn commit<O: Objects + ?Sized>(
        &mut self,
        objects: &O,
        id: u32,
    ) -> Result<(), Failure> {
        let failed = |index| Failure { error: ResError::COMMIT_FAILED, index };
        let transaction = self.get(id).ok_or_else(|| failed(0))?;
        while let Some(Change { index, name, value }) =
            transaction.changes.get(transaction.before.len())
        {
            let committed = match objects.get(name) {
                Lookup::Found(old) => {
                    let old = old.to_owned();
                    objects.commit_set(name, value.as_value()).map(|()| old)
                }
                Lookup::NoSuchObject | Lookup::NoSuchInstance => Err(SetFailed),
            };
            match committed {
                Ok(old) => transaction.before.push(old),
                Err(SetFailed) => {
                    let index = *index;
                    // The error is the commit's, whether or not all could be set back.
                    let _ = transaction.undo(objects);
                    return Err(failed(index));
                }
            }
        }
        Ok(())
    }

    /// Section 7.2.4.3. Undoing what was not committed is no error.
    pub(super) fn undo<O: Objects + ?Sized>(
        &mut self,
        objects: &O,
        id: u32,
    ) -> Result<(), Failure> {
        self.get(id)
            .map_or(Ok(()), |transaction| transaction.undo(objects))
            .map_err(|SetFailed| Failure { error: ResError::UNDO_FAILED, index: 0 })
    }

    /// Section 7.2.4.4. Ends the transaction with this id, whatever its phase, and no other.
    pub(super) fn cleanup<O: Objects + ?Sized>(&mut self, objects: &O, id: u32) {
        let ended = self.0.extract_if(.., |transaction| transaction.id == id);
        for Transaction { changes, before, .. } in ended {
            for Change { name, value, .. } in changes.into_iter().take(before.len()) {
                objects.cleanup_set(&name, value.as_value());
            }
        }
    }

    /// Drops all without CleanupSet: the master has forgotten them.
    pub(super) fn clear(&mut self) {
        self.0.clear();
    }

    fn get(&mut self, id: u32) -> Option<&mut Transaction> {
        self.0.iter_mut().find(|transaction| transaction.id == id)
    }
}

/// Tests the bindings of a PDU. `earlier` are those of the same transaction that are tested and not committed.
fn tested<O: Objects + ?Sized>(
    objects: &O,
    earlier: &[Change],
    bindings: VarBinds<'_>,
) -> Result<Vec<Change>, Failure> {
    let mut changes: Vec<Change> = Vec::new();
    for (index, binding) in (1..).zip(bindings) {
        let failed = |error| Failure { error: res_error(error), index };
        let value = binding.data.value();
        objects.test_set(&binding.name, value).map_err(failed)?;
        let value = value.ok_or(SetError::WrongType).map_err(failed)?;
        let mut same = earlier.iter().chain(&changes).filter(|change| change.name == binding.name);
        if let Some(change) = same.next() {
            // RFC 3416 leaves open which of two values for one variable would hold.
            if change.value.as_value() != value {
                return Err(failed(SetError::InconsistentValue));
            }
            // The same again, as in a PDU that is repeated.
            continue;
        }
        if earlier.len() + changes.len() >= MAX_BINDINGS {
            return Err(failed(SetError::ResourceUnavailable));
        }
        changes.push(Change { index, name: binding.name, value: value.to_owned() });
    }
    Ok(changes)
}

impl Transaction {
    /// What is tested and not committed.
    fn pending(&self) -> &[Change] {
        self.changes.get(self.before.len()..).unwrap_or_default()
    }

    /// Sets back everything that is committed, the last first.
    fn undo<O: Objects + ?Sized>(&mut self, objects: &O) -> Result<(), SetFailed> {
        let mut undone = Ok(());
        while let Some(before) = self.before.pop() {
            let change = &self.changes[self.before.len()];
            let one = objects.undo_set(&change.name, before.as_value());
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
