//! One OBJECT-TYPE (RFC 2578 section 7), with what gets and sets its instances.

use std::fmt;

use super::{Index as _, Rows, Syntax};
use crate::{
    agentx::{SetError, SetFailed},
    snmp::{Oid, Value},
};

/// The clauses of an OBJECT-TYPE.
#[derive(Debug)]
pub struct ObjectType {
    /// The last sub-identifier.
    pub number: u32,
    /// Descriptor.
    pub name: &'static str,
    /// Type, range and enumeration.
    pub syntax: Syntax,
    /// UNITS clause.
    pub units: Option<&'static str>,
    /// MAX-ACCESS clause: follows from what the object was made with.
    pub access: Access,
    /// DESCRIPTION clause, on one line.
    pub description: &'static str,
}

/// MAX-ACCESS (RFC 2578 section 7.3).
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[expect(missing_docs, reason = "the names are SMI's")]
pub enum Access {
    NotAccessible,
    AccessibleForNotify,
    ReadOnly,
    ReadWrite,
}

impl Access {
    /// Whether a Get may be answered.
    #[must_use]
    pub const fn is_readable(self) -> bool {
        matches!(self, Self::ReadOnly | Self::ReadWrite)
    }
}

/// A scalar or a column over the rows `R` in a context `C`.
pub struct Object<C: 'static, R: Rows<C>> {
    pub(super) object_type: ObjectType,
    get: Option<Getter<C, R>>,
    set: Option<Setter<C, R>>,
}

/// The value of an instance; `None` = it does not exist. A counter has the value of the moment at each call.
pub type Getter<C, R> = for<'a> fn(&'a C, <R as Rows<C>>::Row<'a>) -> Option<Value<'a>>;

type Test<C, R> = for<'a> fn(&'a C, <R as Rows<C>>::Row<'a>, Value<'_>) -> Result<(), SetError>;
type Commit<C, R> = for<'a> fn(&'a C, <R as Rows<C>>::Row<'a>, Value<'_>) -> Result<(), SetFailed>;
type Cleanup<C, R> = for<'a> fn(&'a C, <R as Rows<C>>::Row<'a>, Value<'_>);

/// What the phases of a SET do with an instance (RFC 2741 section 7.2.4). Each sees only values that the object's
/// syntax allows.
pub struct Setter<C: 'static, R: Rows<C>> {
    test: Test<C, R>,
    commit: Commit<C, R>,
    undo: Commit<C, R>,
    cleanup: Cleanup<C, R>,
    reinitialize: fn(&C),
}

impl<C: 'static, R: Rows<C>> Setter<C, R> {
    /// CommitSet sets the value. Every value of the syntax passes TestSet, UndoSet commits the value before, and
    /// CleanupSet does nothing. The value outlives the master.
    #[must_use]
    pub const fn new(commit: Commit<C, R>) -> Self {
        Self {
            test: |_, _, _| Ok(()),
            commit,
            undo: commit,
            cleanup: |_, _, _| (),
            reinitialize: |_| (),
        }
    }

    /// With a test of its own.
    #[must_use]
    pub const fn with_test(mut self, test: Test<C, R>) -> Self {
        self.test = test;
        self
    }

    /// With another way back; its value is the one before.
    #[must_use]
    pub const fn with_undo(mut self, undo: Commit<C, R>) -> Self {
        self.undo = undo;
        self
    }

    /// With something to do once the value that was committed stays.
    #[must_use]
    pub const fn with_cleanup(mut self, cleanup: Cleanup<C, R>) -> Self {
        self.cleanup = cleanup;
        self
    }

    /// For an object whose value must not outlive a re-initialisation of the management system: sets all of its
    /// instances back to their initial values.
    #[must_use]
    pub const fn until_reinitialized(mut self, reinitialize: fn(&C)) -> Self {
        self.reinitialize = reinitialize;
        self
    }
}

impl<C: 'static, R: Rows<C>> Object<C, R> {
    /// An object that can be read.
    #[must_use]
    pub const fn read_only(
        number: u32,
        name: &'static str,
        syntax: Syntax,
        description: &'static str,
        get: Getter<C, R>,
    ) -> Self {
        Self::new(number, name, syntax, Access::ReadOnly, description, Some(get), None)
    }

    /// An object that can be read and set.
    #[must_use]
    pub const fn read_write(
        number: u32,
        name: &'static str,
        syntax: Syntax,
        description: &'static str,
        get: Getter<C, R>,
        set: Setter<C, R>,
    ) -> Self {
        Self::new(number, name, syntax, Access::ReadWrite, description, Some(get), Some(set))
    }

    /// A column that is part of its table's index, and read there only.
    #[must_use]
    pub const fn index(
        number: u32,
        name: &'static str,
        syntax: Syntax,
        description: &'static str,
    ) -> Self {
        Self::new(number, name, syntax, Access::NotAccessible, description, None, None)
    }

    /// An object that only notifications carry.
    #[must_use]
    pub const fn for_notify(
        number: u32,
        name: &'static str,
        syntax: Syntax,
        description: &'static str,
    ) -> Self {
        Self::new(number, name, syntax, Access::AccessibleForNotify, description, None, None)
    }

    const fn new(
        number: u32,
        name: &'static str,
        syntax: Syntax,
        access: Access,
        description: &'static str,
        get: Option<Getter<C, R>>,
        set: Option<Setter<C, R>>,
    ) -> Self {
        let object_type = ObjectType { number, name, syntax, units: None, access, description };
        Self { object_type, get, set }
    }

    /// With a UNITS clause.
    #[must_use]
    pub const fn in_units(mut self, units: &'static str) -> Self {
        self.object_type.units = Some(units);
        self
    }
}

/// One of the phases of a SET after the test.
#[derive(Clone, Copy, Debug)]
pub enum Phase {
    Commit,
    Undo,
    Cleanup,
}

/// An object of whatever rows, as [`Tree`](super::Tree) sees it. An `index` is what a name has after the object's
/// own sub-identifiers.
pub trait Accessor<C>: Sync {
    fn object_type(&self) -> &ObjectType;

    /// The instance with exactly this index.
    fn get<'a>(&self, context: &'a C, index: &[u32]) -> Option<Value<'a>>;

    /// The first instance after `index`, or at it where `include` is set. `object` is the name of the object, and
    /// `name` becomes that of the instance: in its place, for identifiers are large.
    fn first<'a>(
        &self,
        context: &'a C,
        object: [&[u32]; 2],
        index: &[u32],
        include: bool,
        name: &mut Oid,
    ) -> Option<Value<'a>>;

    /// TestSet.
    fn test(&self, context: &C, index: &[u32], value: Option<Value<'_>>) -> Result<(), SetError>;

    /// One of the phases after it.
    fn set(
        &self,
        phase: Phase,
        context: &C,
        index: &[u32],
        value: Value<'_>,
    ) -> Result<(), SetFailed>;

    /// The management system was initialised again.
    fn reinitialize(&self, context: &C);
}

impl<C: 'static, R: Rows<C>> Accessor<C> for Object<C, R> {
    fn object_type(&self) -> &ObjectType {
        &self.object_type
    }

    fn get<'a>(&self, context: &'a C, index: &[u32]) -> Option<Value<'a>> {
        let value = (self.get?)(context, row::<C, R>(context, index)?)?;
        self.assert_allowed(value);
        Some(value)
    }

    fn first<'a>(
        &self,
        context: &'a C,
        [root, suffix]: [&[u32]; 2],
        index: &[u32],
        include: bool,
        name: &mut Oid,
    ) -> Option<Value<'a>> {
        let get = self.get?;
        let mut at = R::Index::lower_bound(index, include)?;
        loop {
            let row = R::at_or_after(context, at)?;
            let index = R::index(row);
            if let Some(value) = get(context, row)
                // An index too long for any name is no instance.
                && name.replace([root, suffix, index.parts()]).is_ok()
            {
                self.assert_allowed(value);
                return Some(value);
            }
            at = index.successor()?;
        }
    }

    fn test(&self, context: &C, index: &[u32], value: Option<Value<'_>>) -> Result<(), SetError> {
        let setter = self.set.as_ref().ok_or(SetError::NotWritable)?;
        let value = value.ok_or(SetError::WrongType)?;
        self.object_type.syntax.check(value)?;
        // What has no value does not exist, and a setter creates nothing.
        let row = row::<C, R>(context, index).ok_or(SetError::NoCreation)?;
        self.get.and_then(|get| get(context, row)).ok_or(SetError::NoCreation)?;
        (setter.test)(context, row, value)
    }

    fn set(
        &self,
        phase: Phase,
        context: &C,
        index: &[u32],
        value: Value<'_>,
    ) -> Result<(), SetFailed> {
        let setter = self.set.as_ref().ok_or(SetFailed)?;
        // The row may be gone since the test.
        let row = row::<C, R>(context, index).ok_or(SetFailed)?;
        match phase {
            Phase::Commit => (setter.commit)(context, row, value),
            Phase::Undo => (setter.undo)(context, row, value),
            Phase::Cleanup => {
                (setter.cleanup)(context, row, value);
                Ok(())
            }
        }
    }

    fn reinitialize(&self, context: &C) {
        if let Some(setter) = &self.set {
            (setter.reinitialize)(context);
        }
    }
}

/// The row with exactly this index.
fn row<'a, C: 'static, R: Rows<C>>(context: &'a C, index: &[u32]) -> Option<R::Row<'a>> {
    let index = R::Index::exact(index)?;
    let row = R::at_or_after(context, index)?;
    (R::index(row) == index).then_some(row)
}

impl<C: 'static, R: Rows<C>> Object<C, R> {
    fn assert_allowed(&self, value: Value<'_>) {
        debug_assert!(
            self.object_type.syntax.check(value).is_ok(),
            "{} cannot have the value {value:?}",
            self.object_type.name
        );
    }
}

impl<C: 'static, R: Rows<C>> fmt::Debug for Object<C, R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.object_type.fmt(f)
    }
}

impl<C: 'static, R: Rows<C>> fmt::Debug for Setter<C, R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Setter").finish_non_exhaustive()
    }
}
