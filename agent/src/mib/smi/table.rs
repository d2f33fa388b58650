//! Objects that stand together: scalars below one node, and conceptual tables.

use std::fmt;

use super::{Access, Object, ObjectType, Rows, Single, object::Accessor};
use crate::snmp::{Oid, OidError};

/// A name for an OBJECT IDENTIFIER below, or at, the root of a module.
#[derive(Debug)]
pub struct Node {
    /// Descriptor.
    pub name: &'static str,
    place: Place,
}

#[derive(Debug)]
enum Place {
    /// The root of the module with this name.
    Root(&'static str),
    Below(&'static Node, u32),
}

impl Node {
    /// The MODULE-IDENTITY `name` of a module.
    #[must_use]
    pub const fn root(module: &'static str, name: &'static str) -> Self {
        Self { name, place: Place::Root(module) }
    }

    /// { `parent` `number` }.
    #[must_use]
    pub const fn below(parent: &'static Self, number: u32, name: &'static str) -> Self {
        Self { name, place: Place::Below(parent, number) }
    }

    /// The node above and the last sub-identifier; `None` at the root.
    #[must_use]
    pub const fn parent(&self) -> Option<(&'static Self, u32)> {
        match self.place {
            Place::Root(_) => None,
            Place::Below(parent, number) => Some((parent, number)),
        }
    }

    /// The name of the module.
    #[must_use]
    pub const fn module(&self) -> &'static str {
        match self.place {
            Place::Root(module) => module,
            Place::Below(parent, _) => parent.module(),
        }
    }

    /// Where it is below the module's root.
    #[must_use]
    pub const fn suffix(&self) -> Suffix {
        match self.place {
            Place::Root(_) => Suffix::ROOT,
            Place::Below(parent, number) => parent.suffix().child(number),
        }
    }
}

/// The sub-identifiers of an object, or of a node, after those of its module's root.
#[derive(Clone, Copy)]
pub struct Suffix {
    parts: [u32; Self::MAX_LEN],
    len: usize,
}

impl Suffix {
    /// Deep enough for a column of a table three nodes below the root.
    pub(super) const MAX_LEN: usize = 6;

    const ROOT: Self = Self { parts: [0; Self::MAX_LEN], len: 0 };

    /// With one more sub-identifier.
    ///
    /// # Panics
    ///
    /// With more than 6 of them; the tables of a module are constants, so that every test of the module sees it.
    #[must_use]
    pub const fn child(mut self, number: u32) -> Self {
        self.parts[self.len] = number;
        self.len += 1;
        self
    }

    /// The sub-identifiers.
    #[must_use]
    pub fn parts(&self) -> &[u32] {
        &self.parts[..self.len]
    }
}

impl fmt::Debug for Suffix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.parts().fmt(f)
    }
}

/// An object by its place in a module, as notifications name it.
#[derive(Clone, Copy, Debug)]
pub struct ObjectRef {
    /// The module that defines it.
    pub module: &'static str,
    suffix: Suffix,
    /// Its clauses.
    pub object_type: &'static ObjectType,
}

impl ObjectRef {
    /// The name of an instance of the object, in a module with this root.
    ///
    /// # Errors
    ///
    /// [`OidError::TooLong`].
    pub fn instance(&self, root: &Oid, index: &[u32]) -> Result<Oid, OidError> {
        Oid::concat([root.parts(), self.suffix.parts(), index])
    }
}

/// Two references are equal where they name the same object.
impl PartialEq for ObjectRef {
    fn eq(&self, other: &Self) -> bool {
        // Not by address: a constant may be another copy of what a static has.
        self.module == other.module && self.suffix.parts() == other.suffix.parts()
    }
}

/// A conceptual table (RFC 2578 section 7.1.12) over the rows `R` in a context `C`.
pub struct Table<C: 'static, R: Rows<C>> {
    /// What is said of it.
    pub table_type: TableType,
    /// The columns, ascending.
    pub columns: &'static [Object<C, R>],
}

/// The clauses of a table and of its row.
#[derive(Debug)]
pub struct TableType {
    /// The node above.
    pub parent: &'static Node,
    /// The last sub-identifier of the table.
    pub number: u32,
    /// Descriptor of the table.
    pub name: &'static str,
    /// Descriptor of its row; the name of the row's type is the same with a capital letter.
    pub row: &'static str,
    /// What tells its rows apart.
    pub index: Indexed,
    /// What the table is about.
    pub description: &'static str,
    /// What a row is about.
    pub row_description: &'static str,
}

/// INDEX or AUGMENTS clause.
#[derive(Clone, Copy, Debug)]
pub enum Indexed {
    /// INDEX of the table's own columns that are not accessible.
    Own,
    /// INDEX of this table's, then of the own columns that are not accessible.
    Below(&'static dyn Branch),
    /// AUGMENTS: the rows of this table, which may be of another module.
    Augments(&'static dyn Branch),
}

/// Objects with the one instance `.0` that have the same node above them.
pub struct Scalars<C: 'static> {
    /// The node above.
    pub parent: &'static Node,
    /// The objects, ascending.
    pub objects: &'static [Object<C, Single>],
}

/// [`Table`] and [`Scalars`], whatever their context: what a printed module and its conformance need of them.
pub trait Branch: fmt::Debug + Sync {
    /// The node above the scalars or the table.
    fn parent(&self) -> &'static Node;

    /// The clauses of the table; `None` for scalars.
    fn table_type(&'static self) -> Option<&'static TableType>;

    /// The clauses of the objects, ascending.
    fn object_types(&'static self) -> Vec<&'static ObjectType>;
}

/// A branch with what gets and sets its objects.
pub trait Served<C>: Branch {
    #[doc(hidden)]
    fn accessors(&'static self) -> Vec<(Suffix, &'static dyn Accessor<C>)>;
}

impl<C: 'static, R: Rows<C>> Table<C, R> {
    const fn column_suffix(&self, number: u32) -> Suffix {
        self.table_type.parent.suffix().child(self.table_type.number).child(1).child(number)
    }

    /// The column with this name.
    ///
    /// # Panics
    ///
    /// At compile time, where it is used in a constant, if there is none.
    #[must_use]
    pub const fn column(&'static self, name: &str) -> ObjectRef {
        let object_type = named(self.columns, name);
        let (module, suffix) =
            (self.table_type.parent.module(), self.column_suffix(object_type.number));
        ObjectRef { module, suffix, object_type }
    }
}

impl<C: 'static> Scalars<C> {
    /// The scalar with this name.
    ///
    /// # Panics
    ///
    /// At compile time, where it is used in a constant, if there is none.
    #[must_use]
    pub const fn object(&'static self, name: &str) -> ObjectRef {
        let object_type = named(self.objects, name);
        let (module, suffix) =
            (self.parent.module(), self.parent.suffix().child(object_type.number));
        ObjectRef { module, suffix, object_type }
    }
}

const fn named<C: 'static, R: Rows<C>>(
    objects: &'static [Object<C, R>],
    name: &str,
) -> &'static ObjectType {
    let mut at = 0;
    while at < objects.len() {
        if is_same(objects[at].object_type.name.as_bytes(), name.as_bytes()) {
            return &objects[at].object_type;
        }
        at += 1;
    }
    panic!("no object has this name")
}

const fn is_same(one: &[u8], other: &[u8]) -> bool {
    match (one, other) {
        ([], []) => true,
        ([a, one @ ..], [b, other @ ..]) => *a == *b && is_same(one, other),
        _ => false,
    }
}

impl dyn Branch {
    /// The objects that make the index of the table: the first ones may be of other tables.
    #[must_use]
    pub fn index(&'static self) -> Vec<(&'static str, &'static ObjectType)> {
        let Some(table_type) = self.table_type() else { return Vec::new() };
        let (mut index, own) = match table_type.index {
            Indexed::Own => (Vec::new(), true),
            Indexed::Below(table) => (table.index(), true),
            Indexed::Augments(table) => (table.index(), false),
        };
        let module = table_type.parent.module();
        let columns = self.object_types().into_iter();
        let parts = columns.filter(|column| own && column.access == Access::NotAccessible);
        index.extend(parts.map(|column| (module, column)));
        index
    }
}

impl<C: 'static, R: Rows<C>> Branch for Table<C, R> {
    fn parent(&self) -> &'static Node {
        self.table_type.parent
    }

    fn table_type(&'static self) -> Option<&'static TableType> {
        Some(&self.table_type)
    }

    fn object_types(&'static self) -> Vec<&'static ObjectType> {
        self.columns.iter().map(|column| &column.object_type).collect()
    }
}

impl<C: 'static, R: Rows<C>> Served<C> for Table<C, R> {
    fn accessors(&'static self) -> Vec<(Suffix, &'static dyn Accessor<C>)> {
        let accessor = |column: &'static Object<C, R>| {
            let accessor: &dyn Accessor<C> = column;
            (self.column_suffix(column.object_type.number), accessor)
        };
        self.columns.iter().map(accessor).collect()
    }
}

impl<C: 'static> Branch for Scalars<C> {
    fn parent(&self) -> &'static Node {
        self.parent
    }

    fn table_type(&'static self) -> Option<&'static TableType> {
        None
    }

    fn object_types(&'static self) -> Vec<&'static ObjectType> {
        self.objects.iter().map(|object| &object.object_type).collect()
    }
}

impl<C: 'static> Served<C> for Scalars<C> {
    fn accessors(&'static self) -> Vec<(Suffix, &'static dyn Accessor<C>)> {
        let accessor = |object: &'static Object<C, Single>| {
            let accessor: &dyn Accessor<C> = object;
            (self.parent.suffix().child(object.object_type.number), accessor)
        };
        self.objects.iter().map(accessor).collect()
    }
}

impl<C: 'static, R: Rows<C>> fmt::Debug for Table<C, R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Table")
            .field("table_type", &self.table_type)
            .field("columns", &self.columns)
            .finish()
    }
}

impl<C: 'static> fmt::Debug for Scalars<C> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Scalars")
            .field("parent", &self.parent)
            .field("objects", &self.objects)
            .finish()
    }
}
