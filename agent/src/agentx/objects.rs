//! The objects that a session serves, as the session sees them.

use thiserror::Error;

use crate::snmp::{Oid, Value};

/// The answer to a Get for one name (RFC 2741 section 7.2.3.1).
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Lookup<'a> {
    /// The instance exists.
    Found(Value<'a>),
    /// No object has this name, or a name that this one begins with.
    NoSuchObject,
    /// There is such an object, but not this instance.
    NoSuchInstance,
}

/// One consistent state of the objects in the registered subtrees. It does not change while it is read, but for
/// counters, which have the value of the moment at which they are read.
///
/// A SET is tested as a whole, committed as a whole or undone, and then ended (RFC 2741 section 7.2.4). The state
/// may be another one in each of these phases. Objects of which none is writable need no method but the first two.
pub trait Objects {
    /// The instance with exactly this name.
    fn get(&self, name: &Oid) -> Lookup<'_>;

    /// The first instance whose name is after `start` (or equal to it, when `include` is set) and
    /// before `end`; an empty `end` sets no bound (RFC 2741 section 7.2.3.2). `None`: endOfMibView.
    fn get_next(&self, start: &Oid, include: bool, end: &Oid) -> Option<(Oid, Value<'_>)>;

    /// TestSet: whether this instance can be set to this value, without setting it. `None` stands for what no
    /// object can be set to: NULL, or an exception.
    ///
    /// # Errors
    ///
    /// The first of RFC 3416 section 4.2.5 that holds.
    fn test_set(&self, _name: &Oid, _value: Option<Value<'_>>) -> Result<(), SetError> {
        Err(SetError::NotWritable)
    }

    /// CommitSet: sets an instance to a value that was tested.
    ///
    /// # Errors
    ///
    /// [`SetFailed`] where it stays as it was.
    fn commit_set(&self, _name: &Oid, _value: Value<'_>) -> Result<(), SetFailed> {
        Err(SetFailed)
    }

    /// UndoSet: sets an instance that was committed back to the value that it had before.
    ///
    /// # Errors
    ///
    /// [`SetFailed`] where that cannot be done.
    fn undo_set(&self, name: &Oid, before: Value<'_>) -> Result<(), SetFailed> {
        self.commit_set(name, before)
    }

    /// CleanupSet of an instance that was committed: it cannot be undone from here on.
    fn cleanup_set(&self, _name: &Oid, _value: Value<'_>) {}

    /// The management system was initialised again after the last SET, as by a restart of the master: sets every object
    /// whose value must not outlive that back to its initial value.
    fn reinitialize(&self) {}
}

/// Why an instance cannot be set (RFC 3416 section 4.2.5).
#[derive(Clone, Copy, Debug, Eq, Error, PartialEq)]
pub enum SetError {
    /// No variable with a name that begins so can ever be written, or this one cannot.
    #[error("notWritable")]
    NotWritable,
    /// The value is of another type than the object.
    #[error("wrongType")]
    WrongType,
    /// The value has a length that no value of the object has.
    #[error("wrongLength")]
    WrongLength,
    /// The octets of the value are not encoded as the object's are.
    #[error("wrongEncoding")]
    WrongEncoding,
    /// The object can never have this value.
    #[error("wrongValue")]
    WrongValue,
    /// The instance does not exist, and can never be created.
    #[error("noCreation")]
    NoCreation,
    /// The instance does not exist, and cannot be created now.
    #[error("inconsistentName")]
    InconsistentName,
    /// The object cannot have this value now.
    #[error("inconsistentValue")]
    InconsistentValue,
    /// Something that setting it takes is not there.
    #[error("resourceUnavailable")]
    ResourceUnavailable,
}

/// A value that was tested could not be set, or not be set back.
#[derive(Clone, Copy, Debug, Eq, Error, PartialEq)]
#[error("The instance could not be set")]
pub struct SetFailed;
