//! Groups and compliance statements (RFC 2580).

use super::{Access, Branch, Node, Notification};

/// A group: { `parent` `number` }.
#[derive(Debug)]
pub struct Group {
    /// The node above.
    pub parent: &'static Node,
    /// The last sub-identifier.
    pub number: u32,
    /// Descriptor.
    pub name: &'static str,
    /// What belongs to it.
    pub members: Members,
    /// DESCRIPTION clause, on one line.
    pub description: &'static str,
}

/// The members of a group.
#[derive(Clone, Copy, Debug)]
pub enum Members {
    /// OBJECT-GROUP of all objects of these branches but those that are only index.
    Objects(&'static [&'static dyn Branch]),
    /// NOTIFICATION-GROUP.
    Notifications(&'static [Notification]),
}

impl Members {
    /// Their descriptors, in order.
    #[must_use]
    pub fn names(&self) -> Vec<&'static str> {
        match *self {
            Self::Objects(branches) => {
                let objects = branches.iter().flat_map(|branch| branch.object_types());
                let accessible = objects.filter(|object| object.access != Access::NotAccessible);
                accessible.map(|object| object.name).collect()
            }
            Self::Notifications(notifications) => notifications.iter().map(|n| n.name).collect(),
        }
    }
}

/// A compliance statement for this module: { `parent` `number` }.
#[derive(Debug)]
pub struct Compliance {
    /// The node above.
    pub parent: &'static Node,
    /// The last sub-identifier.
    pub number: u32,
    /// Descriptor.
    pub name: &'static str,
    /// DESCRIPTION clause, on one line.
    pub description: &'static str,
    /// Groups that an agent must have.
    pub mandatory: &'static [&'static Group],
    /// Groups that it may have, and when.
    pub conditional: &'static [(&'static Group, &'static str)],
    /// Branches whose read-write objects may be read-only in it.
    pub may_be_read_only: &'static [&'static dyn Branch],
}
