//! How many threads may read headers of images at the same time: in all, of one storage, and for one user. A storage that hangs keeps
//! its readers, and none of those of others.

use std::collections::HashMap;

use crate::{
    account::{Account, Limits},
    inventory::FileIdentity,
};

/// Most scans that run at the same time: in all, with files of one filesystem, and with block devices of one driver. Further ones
/// wait until one ends.
const MAX_SCANS: usize = 32;
const MAX_OF_FILESYSTEM: usize = 4;
const MAX_OF_DRIVER: usize = 8;

/// Scans of processes that are neither root's nor domains of root's libvirt: a user can have images on file servers of the user's own.
const OF_ACCOUNTS: Limits = Limits { all: 24, many: 16, each: 8 };

/// Users have at most this part of the scans of a storage, so that a scan of many images of a user does not delay those of root's
/// and libvirt's VMs.
const PART_OF_USERS: usize = 2;

/// What may hang as one.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub(super) enum Storage {
    /// A filesystem, by its device number.
    Filesystem(u32),
    /// The block devices of a driver, by their major number.
    Driver(u32),
}

impl Storage {
    pub(super) const fn of(file: FileIdentity) -> Self {
        if file.is_block_device() {
            Self::Driver(file.device >> 20)
        } else {
            Self::Filesystem(file.device)
        }
    }

    const fn limit(self) -> usize {
        match self {
            Self::Filesystem(_) => MAX_OF_FILESYSTEM,
            Self::Driver(_) => MAX_OF_DRIVER,
        }
    }
}

/// The scans that run. Each reads files of one storage.
#[derive(Debug, Default)]
pub(super) struct Slots {
    scans: usize,
    of_users: usize,
    of_storage: HashMap<Storage, OfStorage>,
    of_account: HashMap<Account, usize>,
}

/// The scans of one storage.
#[derive(Clone, Copy, Debug, Default)]
struct OfStorage {
    scans: usize,
    of_users: usize,
}

impl Slots {
    /// Whether a scan of files of this storage may begin now, for a process on this account; `None` = the process is root's or a
    /// domain.
    pub(super) fn has_room(&self, storage: Storage, account: Option<Account>) -> bool {
        let of_storage = self.of_storage.get(&storage).copied().unwrap_or_default();
        let has_share = account.is_none_or(|account| {
            let own = self.of_account.get(&account).copied().unwrap_or(0);
            let has_part = of_storage.of_users < storage.limit() / PART_OF_USERS;
            OF_ACCOUNTS.has_room(own, self.of_users) && has_part
        });
        self.scans < MAX_SCANS && of_storage.scans < storage.limit() && has_share
    }

    /// Begins a scan, if it has room. Returns whether it may run now.
    pub(super) fn begin(&mut self, storage: Storage, account: Option<Account>) -> bool {
        if !self.has_room(storage, account) {
            return false;
        }
        self.scans += 1;
        let of_storage = self.of_storage.entry(storage).or_default();
        of_storage.scans += 1;
        if let Some(account) = account {
            of_storage.of_users += 1;
            self.of_users += 1;
            *self.of_account.entry(account).or_default() += 1;
        }
        true
    }

    /// Ends a scan that was begun with the same.
    pub(super) fn end(&mut self, storage: Storage, account: Option<Account>) {
        self.scans = self.scans.saturating_sub(1);
        if let Some(of_storage) = self.of_storage.get_mut(&storage) {
            of_storage.scans = of_storage.scans.saturating_sub(1);
            of_storage.of_users =
                of_storage.of_users.saturating_sub(usize::from(account.is_some()));
        }
        self.of_storage.retain(|_, of_storage| of_storage.scans > 0);
        let Some(account) = account else { return };
        self.of_users = self.of_users.saturating_sub(1);
        if let Some(scans) = self.of_account.get_mut(&account) {
            *scans = scans.saturating_sub(1);
        }
        self.of_account.retain(|_, scans| *scans > 0);
    }
}

#[cfg(test)]
mod tests {
    use kvmeter_common::ImageKey;

    use super::*;
    use Account::User;

    const fn file(device: u32) -> Storage {
        Storage::of(FileIdentity { device, file: 7 })
    }

    /// Begins scans until one may not run. Returns their number.
    fn fill(
        slots: &mut Slots,
        storages: impl IntoIterator<Item = Storage>,
        account: Option<Account>,
    ) -> usize {
        storages.into_iter().take_while(|storage| slots.begin(*storage, account)).count()
    }

    #[test]
    fn a_storage_that_hangs_keeps_no_other_waiting() {
        let disk = Storage::of(FileIdentity { device: 253 << 20 | 1, file: ImageKey::NO_FILE });
        let mut slots = Slots::default();
        assert_eq!(fill(&mut slots, [file(1); 99], None), MAX_OF_FILESYSTEM);
        assert_eq!(fill(&mut slots, [disk; 99], None), MAX_OF_DRIVER);
        assert!(slots.begin(file(2), None) && slots.begin(file(3), Some(User(1000))));
        slots.end(file(1), None);
        assert!(slots.begin(file(1), None) && !slots.begin(file(1), None));
        let others = fill(&mut slots, (10..99).map(file), None);
        assert_eq!(others + MAX_OF_FILESYSTEM + MAX_OF_DRIVER + 2, MAX_SCANS);
    }

    #[test]
    fn a_user_with_file_servers_that_hang_keeps_no_other_waiting() {
        let mut slots = Slots::default();
        assert_eq!(fill(&mut slots, (0..99).map(file), Some(User(1000))), OF_ACCOUNTS.each);
        assert_eq!(fill(&mut slots, (100..199).map(file), Some(User(1001))), OF_ACCOUNTS.each);
        // Users share what is left.
        for user in 2000..2099 {
            fill(&mut slots, (user..user + 9).map(file), Some(User(user)));
        }
        assert_eq!(slots.of_users, OF_ACCOUNTS.all);
        assert_eq!(slots.of_account[&User(2000)], 1);
        assert!(slots.begin(file(7000), None), "root and libvirt have their own");
        for at in 0..8 {
            slots.end(file(at), Some(User(1000)));
        }
        assert!(
            !slots.of_account.contains_key(&User(1000)) && slots.begin(file(1), Some(User(3000)))
        );
    }

    #[test]
    fn users_who_read_much_of_a_storage_leave_room_for_the_host() {
        let mut slots = Slots::default();
        let users = (1000..1099).filter(|user| slots.begin(file(1), Some(User(*user)))).count();
        assert_eq!(users, MAX_OF_FILESYSTEM / 2);
        assert!(slots.begin(file(1), None) && slots.begin(file(1), None));
        assert!(!slots.has_room(file(1), None));
        slots.end(file(1), None);
        assert!(!slots.has_room(file(1), Some(User(1000))) && slots.has_room(file(1), None));
        slots.end(file(1), Some(User(1000)));
        assert!(slots.begin(file(1), Some(User(1100))));
    }
}
