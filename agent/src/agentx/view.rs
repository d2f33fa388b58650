//! What the session asks of whoever has the objects.

use std::ops::Deref;

use crate::snmp::{Oid, Value};

/// The answer to a Get for one name (RFC 2741 section 7.2.3.1).
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Lookup<'a> {
    /// The instance exists.
    Found(Value<'a>),
    /// There is no such object in this view.
    NoSuchObject,
    /// There is such an object, but not this instance.
    NoSuchInstance,
}

/// One consistent state of the objects that this subagent serves. It does not change while it is read,
/// but for counters, which have the value of the moment at which they are read.
pub trait View {
    /// The instance with exactly this name.
    fn get(&self, name: &Oid) -> Lookup<'_>;

    /// The first instance whose name is after `start` (or equal to it, when `include` is set) and
    /// before `end`; an empty `end` sets no bound (RFC 2741 section 7.2.3.2). `None`: endOfMibView.
    fn get_next(&self, start: &Oid, include: bool, end: &Oid) -> Option<(Oid, Value<'_>)>;

    /// Whether this instance may be set to this value (RFC 2741 section 7.2.4.1), without setting it. All
    /// that can be set are numbers; `None` is a value of a type that no object has.
    ///
    /// # Errors
    ///
    /// The first of RFC 3416 section 4.2.5 that holds.
    fn test_set(&self, _name: &Oid, _value: Option<Value<'_>>) -> Result<i32, SetError> {
        Err(SetError::NotWritable)
    }

    /// Sets an instance to a value that was tested. Whether that was done.
    fn set(&self, _name: &Oid, _value: i32) -> bool {
        false
    }
}

/// Why an instance cannot be set (RFC 3416 section 4.2.5).
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum SetError {
    /// No object that can be set has a name that begins so.
    NotWritable,
    /// The value is of another type than the object.
    WrongType,
    /// The object cannot have this value.
    WrongValue,
    /// The object can be set, but has no such instance.
    NoCreation,
}

impl<P: Deref<Target: View>> View for P {
    fn get(&self, name: &Oid) -> Lookup<'_> {
        (**self).get(name)
    }

    fn get_next(&self, start: &Oid, include: bool, end: &Oid) -> Option<(Oid, Value<'_>)> {
        (**self).get_next(start, include, end)
    }

    fn test_set(&self, name: &Oid, value: Option<Value<'_>>) -> Result<i32, SetError> {
        (**self).test_set(name, value)
    }

    fn set(&self, name: &Oid, value: i32) -> bool {
        (**self).set(name, value)
    }
}
