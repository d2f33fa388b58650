//! Whose share of the agent's time and tables a process uses.

use std::fmt;

/// One who can start as many processes that look like VMs as there is room for, and so has a share. Processes of root outside of
/// containers and of domains of root's libvirt are on no account.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub enum Account {
    /// A user, by user id, also with all user ids of the user's own user namespaces, and all subordinate ids.
    User(u32),
    /// A container that root has made, with all its users: the inode number of its user namespace; of one without, that of its PID
    /// namespace.
    Container(u32),
    /// All processes in PID namespaces below the agent's that the agent cannot tell apart: without waiting before Linux 6.11, or at
    /// all.
    Nested,
    /// All processes that had ended, or could not be read, when their user was asked for.
    Ended,
}

impl Account {
    /// The user.
    #[must_use]
    pub const fn user(self) -> Option<u32> {
        match self {
            Self::User(user) => Some(user),
            Self::Container(_) | Self::Nested | Self::Ended => None,
        }
    }
}

/// How many of something accounts may have at the same time: a user can have whatever the agent does for the user's processes hang at
/// will.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Most of all accounts together: the others are for processes that are on no account.
    pub all: usize,
    /// Number of all accounts together from which an account may not have a second one. An account that has none is not affected by
    /// the others' yet.
    pub many: usize,
    /// Most of one account.
    pub each: usize,
}

impl Limits {
    /// Whether an account that has `own` may have one more while all accounts together have `of_all`.
    #[must_use]
    pub const fn has_room(self, own: usize, of_all: usize) -> bool {
        let most = if of_all >= self.many { 1 } else { self.each };
        of_all < self.all && own < most
    }
}

impl fmt::Display for Account {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::User(user) => write!(f, "user {user}"),
            Self::Container(inode) => write!(f, "the container of namespace {inode}"),
            Self::Nested => f.write_str("containers that cannot be told apart"),
            Self::Ended => f.write_str("processes that have ended"),
        }
    }
}
