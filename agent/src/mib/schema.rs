//! What an object of VM-MIB is, and all of them in the order of their identifiers. Get, get-next, the
//! printed module and the checks of values follow from this table.

use crate::{
    inventory::Vm,
    snmp::{Oid, Value},
};

use super::{
    View, affinity, hypervisor, network, notification,
    rows::{AffinityRow, DiskRow, NicRow, VcpuRow},
    storage, vcpu, vm,
};

/// vmMIB: { mib-2 236 }. What the agent registers with the master.
pub const VM_MIB: Oid = Oid::of(VM_MIB_PARTS);

pub(super) const VM_MIB_PARTS: &[u32] = &[1, 3, 6, 1, 2, 1, 236];

/// Every object of the module, ascending.
pub const TREE: &[Branch] = &[
    Branch::Scalars { parent: "vmHypervisor", suffix: &[1, 1], objects: hypervisor::ABOUT },
    Branch::Scalars { parent: "vmObjects", suffix: &[1], objects: hypervisor::TOTALS },
    Branch::Table { suffix: &[1, 4], table: vm::TABLE },
    Branch::Table { suffix: &[1, 5], table: vcpu::TABLE },
    Branch::Table { suffix: &[1, 6], table: affinity::TABLE },
    Branch::Table { suffix: &[1, 7], table: storage::TABLE },
    Branch::Table { suffix: &[1, 8], table: network::TABLE },
    Branch::Scalars { parent: "vmObjects", suffix: &[1], objects: notification::VARIABLES },
];

/// Objects that share all but the last sub-identifier.
#[derive(Debug)]
pub enum Branch {
    /// Objects with the one instance `.0`.
    Scalars {
        /// Name of the node above them.
        parent: &'static str,
        /// That node's place below vmMIB.
        suffix: &'static [u32],
        /// The objects, ascending.
        objects: &'static [Object],
    },
    /// Objects with an instance per row.
    Table {
        /// The table's place below vmMIB.
        suffix: &'static [u32],
        /// The table.
        table: Table,
    },
}

/// A conceptual table (RFC 2578 section 7.1.12).
#[derive(Debug)]
pub struct Table {
    /// Descriptor of the table.
    pub name: &'static str,
    /// Descriptor of its row; the name of the row's type is the same with a capital letter.
    pub row: &'static str,
    /// Names of the objects whose values make the instance identifier, one sub-identifier each.
    pub index: &'static [&'static str],
    /// What the table is about.
    pub description: &'static str,
    /// What a row is about.
    pub row_description: &'static str,
    /// The columns, ascending.
    pub columns: &'static [Object],
}

/// A scalar, or a column of a table.
#[derive(Debug)]
pub struct Object {
    /// The last sub-identifier.
    pub number: u32,
    /// Descriptor.
    pub name: &'static str,
    /// Type, range and enumeration.
    pub syntax: Syntax,
    /// UNITS clause.
    pub units: Option<&'static str>,
    /// MAX-ACCESS clause.
    pub access: Access,
    /// DESCRIPTION clause, on one line.
    pub description: &'static str,
    pub(super) getter: Getter,
}

impl Object {
    pub(super) const fn read_only(
        number: u32,
        name: &'static str,
        syntax: Syntax,
        description: &'static str,
        getter: Getter,
    ) -> Self {
        Self { number, name, syntax, units: None, access: Access::ReadOnly, description, getter }
    }

    pub(super) const fn index(
        number: u32,
        name: &'static str,
        syntax: Syntax,
        description: &'static str,
    ) -> Self {
        let access = Access::NotAccessible;
        Self { number, name, syntax, units: None, access, description, getter: Getter::None }
    }

    pub(super) const fn in_units(mut self, units: &'static str) -> Self {
        self.units = Some(units);
        self
    }

    pub(super) const fn with_access(mut self, access: Access) -> Self {
        self.access = access;
        self
    }
}

/// Where the value of an instance comes from; `None` = the instance does not exist. The counters among
/// them read the moment's value each time.
#[derive(Clone, Copy, Debug)]
pub(super) enum Getter {
    /// Never answered to a request: index columns, vmAffectedVMs.
    None,
    Scalar(for<'a> fn(View<'a>) -> Option<Value<'a>>),
    Vm(for<'a> fn(View<'a>, &'a Vm) -> Option<Value<'a>>),
    Vcpu(for<'a> fn(View<'a>, VcpuRow<'a>) -> Option<Value<'a>>),
    Affinity(for<'a> fn(View<'a>, AffinityRow<'a>) -> Option<Value<'a>>),
    Disk(for<'a> fn(View<'a>, DiskRow<'a>) -> Option<Value<'a>>),
    Nic(for<'a> fn(View<'a>, NicRow<'a>) -> Option<Value<'a>>),
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

/// SYNTAX: a base type, or a textual convention. Ranges include both ends.
#[derive(Clone, Copy, Debug)]
pub enum Syntax {
    /// `Integer32` within these ranges.
    Integer32(&'static [(i32, i32)]),
    /// `INTEGER` with named numbers.
    Enumeration(&'static [(&'static str, i32)]),
    /// `OCTET STRING` of these lengths; none given = any.
    OctetString(&'static [(u32, u32)]),
    /// `OBJECT IDENTIFIER`.
    ObjectIdentifier,
    /// `TimeTicks`.
    TimeTicks,
    /// `Counter64`.
    Counter64,
    /// A textual convention as it stands.
    Convention(&'static Convention),
    /// A textual convention of octets with these lengths only.
    Sized(&'static Convention, &'static [(u32, u32)]),
}

/// A textual convention (RFC 2579).
#[derive(Debug)]
pub struct Convention {
    /// Descriptor.
    pub name: &'static str,
    /// The module that defines it; `None` = VM-MIB itself.
    pub module: Option<&'static str>,
    /// DISPLAY-HINT clause.
    pub hint: Option<&'static str>,
    /// The type beneath.
    pub syntax: Syntax,
    /// DESCRIPTION clause, on one line; empty where another module defines the convention.
    pub description: &'static str,
}

impl Syntax {
    /// Whether an object of this syntax can have this value.
    #[must_use]
    pub fn admits(&self, value: &Value<'_>) -> bool {
        match (*self, value) {
            (Self::Convention(convention), _) => convention.syntax.admits(value),
            (Self::Sized(convention, sizes), _) => {
                convention.syntax.admits(value) && Self::OctetString(sizes).admits(value)
            }
            (Self::Integer32(ranges), Value::Integer(number)) => {
                ranges.iter().any(|(low, high)| (low..=high).contains(&number))
            }
            (Self::Enumeration(names), Value::Integer(number)) => {
                names.iter().any(|(_, named)| named == number)
            }
            (Self::OctetString(sizes), Value::OctetString(octets)) => {
                let fits = |&(low, high)| {
                    u32::try_from(octets.len()).is_ok_and(|n| (low..=high).contains(&n))
                };
                sizes.is_empty() || sizes.iter().any(fits)
            }
            (Self::ObjectIdentifier, Value::ObjectIdentifier(_))
            | (Self::TimeTicks, Value::TimeTicks(_))
            | (Self::Counter64, Value::Counter64(_)) => true,
            _ => false,
        }
    }
}

/// A readable object with its place below vmMIB.
#[derive(Clone, Copy, Debug)]
pub struct Leaf {
    parts: [u32; Self::MAX_LEN],
    len: usize,
    /// The object.
    pub object: &'static Object,
}

impl Leaf {
    /// The deepest object is a column: vmObjects, table, row, column.
    pub(super) const MAX_LEN: usize = 4;

    const fn new(above: &[u32], below: &[u32], object: &'static Object) -> Self {
        let mut parts = [0; Self::MAX_LEN];
        let mut len = 0;
        while len < above.len() {
            parts[len] = above[len];
            len += 1;
        }
        let mut i = 0;
        while i < below.len() {
            parts[len] = below[i];
            len += 1;
            i += 1;
        }
        Self { parts, len, object }
    }

    /// The object identifier without its first parts, [`VM_MIB`].
    #[must_use]
    pub fn suffix(&self) -> &[u32] {
        &self.parts[..self.len]
    }
}

/// Every readable object, ascending, and none the prefix of another.
pub static LEAVES: &[Leaf] = &leaves::<{ readable() }>();

const fn readable() -> usize {
    let (mut count, mut b) = (0, 0);
    while b < TREE.len() {
        let objects = objects_of(&TREE[b]);
        let mut o = 0;
        while o < objects.len() {
            if objects[o].access.is_readable() {
                count += 1;
            }
            o += 1;
        }
        b += 1;
    }
    count
}

const fn leaves<const N: usize>() -> [Leaf; N] {
    let mut leaves = [Leaf::new(&[], &[], &hypervisor::ABOUT[0]); N];
    let (mut count, mut b) = (0, 0);
    while b < TREE.len() {
        let objects = objects_of(&TREE[b]);
        let mut o = 0;
        while o < objects.len() {
            let object = &objects[o];
            if object.access.is_readable() {
                leaves[count] = match &TREE[b] {
                    Branch::Scalars { suffix, .. } => Leaf::new(suffix, &[object.number], object),
                    Branch::Table { suffix, .. } => Leaf::new(suffix, &[1, object.number], object),
                };
                count += 1;
            }
            o += 1;
        }
        b += 1;
    }
    leaves
}

const fn objects_of(branch: &'static Branch) -> &'static [Object] {
    match branch {
        Branch::Scalars { objects, .. } => objects,
        Branch::Table { table, .. } => table.columns,
    }
}

impl Branch {
    /// The scalars, or the columns.
    #[must_use]
    pub const fn objects(&'static self) -> &'static [Object] {
        objects_of(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn leaves_ascend_and_none_is_the_prefix_of_another() {
        for pair in LEAVES.windows(2) {
            assert!(pair[0].suffix() < pair[1].suffix(), "{}", pair[1].object.name);
            assert!(!pair[1].suffix().starts_with(pair[0].suffix()), "{}", pair[1].object.name);
        }
    }

    #[test]
    fn what_is_readable_has_a_getter_and_nothing_else_has() {
        for object in TREE.iter().flat_map(Branch::objects) {
            let has_getter = !matches!(object.getter, Getter::None);
            assert_eq!(object.access.is_readable(), has_getter, "{}", object.name);
        }
    }

    #[test]
    fn getters_belong_to_tables_with_as_many_index_parts() {
        for branch in TREE {
            let index_len = match branch {
                Branch::Scalars { .. } => 0,
                Branch::Table { table, .. } => table.index.len(),
            };
            for object in branch.objects() {
                let expected = match object.getter {
                    Getter::None => continue,
                    Getter::Scalar(_) => 0,
                    Getter::Vm(_) => 1,
                    Getter::Vcpu(_) | Getter::Disk(_) | Getter::Nic(_) => 2,
                    Getter::Affinity(_) => 3,
                };
                assert_eq!(index_len, expected, "{}", object.name);
            }
        }
    }

    #[test]
    fn index_objects_are_columns_of_the_module() {
        let columns: Vec<_> = TREE.iter().flat_map(Branch::objects).map(|o| o.name).collect();
        for branch in TREE {
            if let Branch::Table { table, .. } = branch {
                for part in table.index {
                    assert!(columns.contains(part), "{part} of {}", table.name);
                }
            }
        }
    }

    #[test]
    fn a_syntax_admits_its_range_and_nothing_beside() {
        let limit = Syntax::Integer32(&[(-1, -1), (1, 5)]);
        for (number, admitted) in
            [(-2, false), (-1, true), (0, false), (1, true), (5, true), (6, false)]
        {
            assert_eq!(limit.admits(&Value::Integer(number)), admitted, "{number}");
        }
        let uuid = Syntax::Convention(&super::super::convention::UUID_OR_ZERO);
        for (len, admitted) in [(0, true), (1, false), (15, false), (16, true), (17, false)] {
            assert_eq!(uuid.admits(&Value::OctetString(&[0; 17][..len])), admitted, "{len}");
        }
        assert!(!Syntax::TimeTicks.admits(&Value::Counter64(0)));
    }
}
