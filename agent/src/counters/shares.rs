//! For whom records are: a user has a share of a table, root and libvirt have what there is.

use std::collections::HashMap;

/// For whom a VM is counted.
#[derive(Clone, Copy, Debug, Default, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub enum Holder {
    /// Root, or libvirt: no share limits its VMs.
    #[default]
    Trusted,
    /// A user, who may start as many processes as the user likes.
    User(u32),
}

/// How full a table of records is.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Fill {
    /// Records in the table.
    pub size: usize,
    /// Records in use.
    pub used: usize,
    /// Those of them that users hold, who are neither root nor libvirt.
    pub of_users: usize,
}

/// Why a holder gets no record of a table.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Lack {
    /// The user has a user's share, which is `most` records.
    User { user: u32, most: usize },
    /// Users have the share of all of them, which is `most` records.
    Users { most: usize },
    /// No record is free.
    Table,
}

/// A table of records, and how many of them each user has.
#[derive(Debug, Default)]
pub(crate) struct Shares {
    size: usize,
    used: usize,
    of_users: usize,
    by_user: HashMap<u32, usize>,
}

impl Shares {
    pub(crate) fn new(size: usize) -> Self {
        Self { size, used: 0, of_users: 0, by_user: HashMap::new() }
    }

    /// Adds records to the table.
    pub(crate) const fn grow(&mut self, more: usize) {
        self.size += more;
    }

    pub(crate) const fn size(&self) -> usize {
        self.size
    }

    /// Number of records that users have.
    pub(crate) const fn held_by_users(&self) -> usize {
        self.of_users
    }

    /// Most records of all users together: the other half is for VMs of libvirt and root alone.
    pub(crate) const fn of_all_users(&self) -> usize {
        self.size / 2
    }

    /// Most records of one user, so that one leaves as much to the others.
    pub(crate) const fn of_one_user(&self) -> usize {
        self.size / 4
    }

    pub(crate) fn held(&self, user: u32) -> usize {
        self.by_user.get(&user).copied().unwrap_or(0)
    }

    /// Number of records that the holder may still get.
    pub(crate) fn room(&self, holder: Holder) -> usize {
        let free = self.size.saturating_sub(self.used);
        match holder {
            Holder::Trusted => free,
            Holder::User(user) => free
                .min(self.of_one_user().saturating_sub(self.held(user)))
                .min(self.of_all_users().saturating_sub(self.of_users)),
        }
    }

    pub(crate) fn has_room(&self, holder: Holder) -> bool {
        self.room(holder) > 0
    }

    /// Why the holder, for whom there is no room, gets no record.
    pub(crate) fn lack(&self, holder: Holder) -> Lack {
        match holder {
            Holder::User(user) if self.held(user) >= self.of_one_user() => {
                Lack::User { user, most: self.of_one_user() }
            }
            Holder::User(_) if self.of_users >= self.of_all_users() => {
                Lack::Users { most: self.of_all_users() }
            }
            _ => Lack::Table,
        }
    }

    pub(crate) fn take(&mut self, holder: Holder, count: usize) {
        self.used += count;
        if let Holder::User(user) = holder {
            self.of_users += count;
            *self.by_user.entry(user).or_default() += count;
        }
    }

    pub(crate) fn give_back(&mut self, holder: Holder, count: usize) {
        self.used = self.used.saturating_sub(count);
        if let Holder::User(user) = holder {
            self.of_users = self.of_users.saturating_sub(count);
            let left = self.held(user).saturating_sub(count);
            if left == 0 {
                self.by_user.remove(&user);
            } else {
                self.by_user.insert(user, left);
            }
        }
    }

    pub(crate) const fn fill(&self) -> Fill {
        Fill { size: self.size, used: self.used, of_users: self.of_users }
    }
}
