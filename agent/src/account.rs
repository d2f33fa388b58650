//! Whose share of the agent's time and tables a process uses.

use std::fmt;

/// One who can start as many processes that look like VMs as there is room for, and so has a share. Processes of root and of
/// domains of root's libvirt are on no account.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub enum Account {
    /// A user, by user id.
    User(u32),
    /// All processes that had ended, or could not be read, when their user was asked for.
    Ended,
}

impl Account {
    /// The user.
    #[must_use]
    pub const fn user(self) -> Option<u32> {
        match self {
            Self::User(user) => Some(user),
            Self::Ended => None,
        }
    }
}

impl fmt::Display for Account {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::User(user) => write!(f, "user {user}"),
            Self::Ended => f.write_str("processes that have ended"),
        }
    }
}
