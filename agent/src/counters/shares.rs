//! For whom records are: an account has a share of a table, root and libvirt have what there is.

use std::collections::HashMap;

use crate::account::Account;

/// For whom a VM is counted.
#[derive(Clone, Copy, Debug, Default, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub enum Holder {
    /// Root, or libvirt: no share limits its VMs.
    #[default]
    Trusted,
    /// Its account has a share.
    Account(Account),
}

/// How full a table of records is.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Fill {
    /// Records in the table.
    pub size: usize,
    /// Records in use.
    pub used: usize,
    /// Those of them that accounts hold.
    pub of_users: usize,
}

/// Why a holder gets no record of a table.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Lack {
    /// The account has an account's share, which is `most` records.
    Account { account: Account, most: usize },
    /// Accounts have the share of all of them, which is `most` records.
    Accounts { most: usize },
    /// No record is free.
    Table,
}

/// A table of records, and how many of them each account has.
#[derive(Debug, Default)]
pub(crate) struct Shares {
    size: usize,
    used: usize,
    of_users: usize,
    by_account: HashMap<Account, usize>,
}

impl Shares {
    pub(crate) fn new(size: usize) -> Self {
        Self { size, used: 0, of_users: 0, by_account: HashMap::new() }
    }

    /// Adds records to the table.
    pub(crate) const fn grow(&mut self, more: usize) {
        self.size += more;
    }

    pub(crate) const fn size(&self) -> usize {
        self.size
    }

    /// Number of records that accounts have.
    pub(crate) const fn held_by_accounts(&self) -> usize {
        self.of_users
    }

    /// Most records of all accounts together: the other half is for VMs of libvirt and root alone.
    pub(crate) const fn of_all_accounts(&self) -> usize {
        self.size / 2
    }

    /// Most records of one account, so that one leaves as much to the others.
    pub(crate) const fn of_one_account(&self) -> usize {
        self.size / 4
    }

    pub(crate) fn held(&self, account: Account) -> usize {
        self.by_account.get(&account).copied().unwrap_or(0)
    }

    /// Number of records that the holder may still get.
    pub(crate) fn room(&self, holder: Holder) -> usize {
        let free = self.size.saturating_sub(self.used);
        match holder {
            Holder::Trusted => free,
            Holder::Account(account) => free
                .min(self.of_one_account().saturating_sub(self.held(account)))
                .min(self.of_all_accounts().saturating_sub(self.of_users)),
        }
    }

    pub(crate) fn has_room(&self, holder: Holder) -> bool {
        self.room(holder) > 0
    }

    /// Why the holder, for whom there is no room, gets no record.
    pub(crate) fn lack(&self, holder: Holder) -> Lack {
        match holder {
            Holder::Account(account) if self.held(account) >= self.of_one_account() => {
                Lack::Account { account, most: self.of_one_account() }
            }
            Holder::Account(_) if self.of_users >= self.of_all_accounts() => {
                Lack::Accounts { most: self.of_all_accounts() }
            }
            _ => Lack::Table,
        }
    }

    pub(crate) fn take(&mut self, holder: Holder, count: usize) {
        self.used += count;
        if let Holder::Account(account) = holder {
            self.of_users += count;
            *self.by_account.entry(account).or_default() += count;
        }
    }

    pub(crate) fn give_back(&mut self, holder: Holder, count: usize) {
        self.used = self.used.saturating_sub(count);
        if let Holder::Account(account) = holder {
            self.of_users = self.of_users.saturating_sub(count);
            let left = self.held(account).saturating_sub(count);
            if left == 0 {
                self.by_account.remove(&account);
            } else {
                self.by_account.insert(account, left);
            }
        }
    }

    pub(crate) const fn fill(&self) -> Fill {
        Fill { size: self.size, used: self.used, of_users: self.of_users }
    }
}
