//! A MIB module: all of its tables.

use super::{Compliance, Convention, Group, Node, Notification, Served};

/// A module whose objects are read in a context `C`. Where its root is may be known only at run time: nothing in
/// here has an identifier above the module's own.
pub struct Module<C: 'static> {
    /// The root: names the module and its MODULE-IDENTITY.
    pub root: &'static Node,
    /// What is said of it.
    pub identity: Identity,
    /// What the master's sysORTable says of an agent that serves it.
    pub capabilities: &'static str,
    /// The textual conventions that it defines.
    pub conventions: &'static [&'static Convention],
    /// Its objects, as they are printed: scalars and tables may be mixed.
    pub branches: &'static [&'static dyn Served<C>],
    /// Its notifications, as they are printed.
    pub notifications: &'static [&'static [Notification]],
    /// Its compliance statements, ascending.
    pub compliances: &'static [Compliance],
    /// Its groups, ascending.
    pub groups: &'static [&'static Group],
}

/// The clauses of a MODULE-IDENTITY. In texts, an empty line begins a new paragraph.
#[derive(Debug)]
pub struct Identity {
    /// ORGANIZATION clause.
    pub organization: &'static str,
    /// CONTACT-INFO clause.
    pub contact: &'static str,
    /// DESCRIPTION clause.
    pub description: &'static str,
    /// REVISION clauses with their descriptions, the latest first: that is LAST-UPDATED.
    pub revisions: &'static [(&'static str, &'static str)],
}

impl<C> std::fmt::Debug for Module<C> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Module").field("name", &self.root.module()).finish_non_exhaustive()
    }
}
