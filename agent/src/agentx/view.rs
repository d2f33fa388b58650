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
}

impl<P: Deref<Target: View>> View for P {
    fn get(&self, name: &Oid) -> Lookup<'_> {
        (**self).get(name)
    }

    fn get_next(&self, start: &Oid, include: bool, end: &Oid) -> Option<(Oid, Value<'_>)> {
        (**self).get_next(start, include, end)
    }
}
