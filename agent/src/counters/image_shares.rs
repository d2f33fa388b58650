//! Who may have how many image records: a VM an eighth of the table, an account a quarter, all accounts half.
//! What the programs may claim by themselves is within these shares, too.

use std::collections::BTreeMap;

use kvmeter_common::VM_NEW_IMAGES;

use super::{
    ClaimError, Fill, Holder, Lack, Records, Shares, VmSlot,
    image_index::{Images, claims_of, set_limit},
};
use crate::account::Account;

/// What the programs may claim for one VM of an account is this part of what its share leaves, so that other VMs of the
/// account get some, too.
const PART: usize = 8;

impl Records {
    /// Number of image records that one VM may have: an eighth of the table, so that no VM leaves the others without any.
    pub(crate) fn images_for_each_vm(&self) -> usize {
        self.images.len() / 8
    }

    /// Number of image records of files that belong to no disk which one VM may have: they leave it records for its disks.
    fn new_images_for_each_vm(&self) -> usize {
        VM_NEW_IMAGES.min(self.images_for_each_vm() / 2)
    }

    /// Counts the image records of a VM for this holder.
    pub(super) fn set_image_holder(&self, vm: VmSlot, holder: Holder) {
        self.image_index.lock().set_holder(vm, holder);
    }

    /// Sets how many records the programs may claim for a VM by themselves until the next call. `unassigned` is the number of its
    /// records that belong to no disk. Returns whether these are as many as it may have.
    pub(crate) fn allow_new_images(&self, vm: VmSlot, unassigned: usize) -> bool {
        let most = self.new_images_for_each_vm();
        let mut images = self.image_index.lock();
        images.set_allowed(vm, 0);
        let of_vm = images.of_vm(vm);
        let (holder, claims) = (of_vm.holder, of_vm.claims);
        let left = self.images_for_each_vm().saturating_sub(of_vm.slots.len());
        let room = match holder {
            Holder::Trusted => images.held.room(holder),
            Holder::Account(_) => images.room_for_programs(holder).div_ceil(PART),
        };
        let allowed = most.saturating_sub(unassigned).min(left).min(room);
        images.set_allowed(vm, allowed);
        if let Some(record) = self.vms.get(usize::from(vm.0)) {
            set_limit(record, claims.saturating_add(allowed as u64));
        }
        unassigned >= most
    }

    /// Checks that the agent may claim a record for the VM.
    pub(super) fn check_image_shares(&self, vm: VmSlot) -> Result<(), ClaimError> {
        let mut images = self.image_index.lock();
        let of_vm = images.of_vm(vm);
        let (holder, share) = (of_vm.holder, self.images_for_each_vm());
        if of_vm.slots.len() >= share {
            return Err(ClaimError::Share(share));
        }
        if images.held.has_room(holder) {
            return Ok(());
        }
        Err(match images.held.lack(holder) {
            Lack::Account { account, most } => ClaimError::AccountShare { account, most },
            Lack::Accounts { most } => ClaimError::UsersShare { most },
            Lack::Table => ClaimError::Full,
        })
    }

    /// Has the programs claim no more for the VMs of an account by themselves, if its share is used up with what the
    /// agent has claimed: disks come first.
    pub(super) fn withdraw_images(&self, vm: VmSlot) {
        let mut images = self.image_index.lock();
        let Holder::Account(account) = images.of_vm(vm).holder else { return };
        let Images { vms, held, allowed, .. } = &*images;
        let is_over = |held: usize, allowed: usize, share| allowed > 0 && held + allowed > share;
        let of_own = is_over(held.held(account), allowed.held(account), held.of_one_account());
        let of_all =
            is_over(held.held_by_accounts(), allowed.held_by_accounts(), held.of_all_accounts());
        if !of_own && !of_all {
            return;
        }
        let is_meant = |holder| match holder {
            Holder::Trusted => false,
            Holder::Account(other) => of_all || other == account,
        };
        let meant: Vec<_> = vms
            .iter()
            .filter(|(_, of_vm)| is_meant(of_vm.holder) && of_vm.allowed > 0)
            .map(|(vm, of_vm)| (*vm, of_vm.claims))
            .collect();
        for (vm, claims) in meant {
            let Some(record) = self.vms.get(usize::from(vm.0)) else { continue };
            // Claims that have not been noted yet stay.
            let now = claims_of(record);
            set_limit(record, now);
            images.set_allowed(vm, usize::try_from(now.saturating_sub(claims)).unwrap_or(0));
        }
    }

    /// Notes whether a VM lacks a record for an image of a disk, and why.
    pub(crate) fn note_refused_image(&self, vm: VmSlot, why: Option<ClaimError>) {
        self.image_index.lock().of_vm(vm).refused = why;
    }

    /// How full the table of image records is, and for each holder the number of VMs that lack a record, and why.
    #[must_use]
    pub fn image_occupancy(&self) -> (Fill, BTreeMap<Holder, (usize, String)>) {
        let images = self.image_index.lock();
        let mut refused: BTreeMap<Holder, (usize, String)> = BTreeMap::new();
        for of_vm in images.vms.values() {
            if let Some(why) = of_vm.refused {
                refused.entry(of_vm.holder).or_insert_with(|| (0, why.to_string())).0 += 1;
            }
        }
        (images.held.fill(), refused)
    }
}

impl Images {
    /// Number of records that the programs may still be allowed to claim for VMs of this holder.
    fn room_for_programs(&self, holder: Holder) -> usize {
        let Self { held, allowed, .. } = self;
        let Holder::Account(account) = holder else { return held.room(holder) };
        let left = |share: usize, of: fn(&Shares, Account) -> usize| {
            share.saturating_sub(of(held, account)).saturating_sub(of(allowed, account))
        };
        left(held.of_one_account(), Shares::held)
            .min(left(held.of_all_accounts(), |shares, _| shares.held_by_accounts()))
            .min(left(held.size(), |shares, _| shares.fill().used))
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::Ordering::Relaxed;

    use kvmeter_common::{ImageKey, Layer, VMS};

    use super::*;

    /// A record for each file of these, until one is refused. How many were claimed, and why not more.
    fn claim(
        records: &Records,
        vm: u16,
        files: std::ops::Range<u64>,
    ) -> (usize, Option<ClaimError>) {
        let mut claimed = 0;
        for file in files {
            let key = ImageKey { vm, device: 1, file };
            match records.claim_image(key, Layer::Call) {
                Ok(_) => claimed += 1,
                // Two buckets may be full long before the table is.
                Err(ClaimError::Full) => {}
                Err(error) => return (claimed, Some(error)),
            }
        }
        (claimed, None)
    }

    /// What the programs may still claim for a VM.
    fn left(records: &Records, vm: u16) -> u64 {
        let vm = &records.vms[usize::from(vm)];
        vm.new_images_limit.load(Relaxed).saturating_sub(vm.new_images.load(Relaxed))
    }

    /// Claims a record as the programs do, if they may.
    fn claim_by_programs(records: &Records, vm: u16, file: u64) -> bool {
        if left(records, vm) == 0 {
            return false;
        }
        let key = ImageKey { vm, device: 1, file };
        let free = records.images.iter().position(|image| image.owner.load(Relaxed) == 0).unwrap();
        records.images[free].owner.store(key.owner(), Relaxed);
        records.images[free].file.store(file, Relaxed);
        records.vms[usize::from(vm)].new_images.fetch_add(1, Relaxed);
        true
    }

    fn in_use(records: &Records) -> usize {
        records.image_records().len()
    }

    #[test]
    fn a_vm_has_a_share_of_the_records() {
        let records = Records::in_memory();
        let share = records.images_for_each_vm();
        assert_eq!(claim(&records, 7, 1..10_000), (share, Some(ClaimError::Share(share))));
        let key = |vm| ImageKey { vm, device: 1, file: 1 };
        assert!(records.claim_image(key(7), Layer::Call).is_ok(), "it has a record");
        assert!(records.claim_image(key(8), Layer::Call).is_ok());
    }

    #[test]
    fn a_user_has_a_quarter_and_all_users_have_half() {
        let records = Records::in_memory();
        let size = records.images.len();
        for vm in 1..=30 {
            records.set_image_holder(
                VmSlot(vm),
                Holder::Account(Account::User(u32::from(vm - 1) / 10)),
            );
        }
        // Ten VMs of each of three users want as many as they get.
        let mut refused = Vec::new();
        for vm in 1..=30 {
            refused.extend(claim(&records, vm, 1..400).1);
        }
        let held = |user| records.image_index.lock().held.held(Account::User(user));
        assert_eq!([held(0), held(1), held(2)], [size / 4, size / 4, 0]);
        assert!(
            refused
                .contains(&ClaimError::AccountShare { account: Account::User(0), most: size / 4 })
        );
        assert!(refused.contains(&ClaimError::UsersShare { most: size / 2 }));
        // What root and libvirt have is not limited by that, nor what a user has that is libvirt's in truth.
        assert!(claim(&records, 40, 1..100).1.is_none());
        records.set_image_holder(VmSlot(30), Holder::Trusted);
        assert!(claim(&records, 30, 1..100).1.is_none());
        // A VM that ends gives back what it had.
        records.free_images_of_vm(VmSlot(1));
        assert!(held(0) < size / 4 && claim(&records, 10, 1000..1010).1.is_none());
    }

    #[test]
    fn what_the_programs_claim_by_themselves_is_within_the_share_of_the_user() {
        for size in [256, 4096] {
            let records = Records::in_memory_with(size);
            for vm in 1..1000 {
                records.set_image_holder(VmSlot(vm), Holder::Account(Account::User(7)));
                assert!(!records.allow_new_images(VmSlot(vm), 0));
            }
            assert!((1..1000).all(|vm| left(&records, vm) <= 64.min(size as u64 / 16)));
            assert!((1..4).all(|vm| left(&records, vm) > 0), "the first ones leave some");
            // All at once, before the agent has seen any of it.
            let claimed: Vec<u64> = (1..1000)
                .map(|vm| {
                    (0..100).take_while(|n| claim_by_programs(&records, vm, 1 + n)).count() as u64
                })
                .collect();
            assert!(in_use(&records) <= size / 4 && claimed[0] > 0, "{size}");
            for vm in 1..1000 {
                let its = records.images_of_vm(VmSlot(vm)).len();
                assert_eq!(its as u64, claimed[usize::from(vm) - 1]);
                records.allow_new_images(VmSlot(vm), its);
            }
            // What the agent claims for disks and what the programs may claim are one share.
            for vm in 1..1000 {
                claim(&records, vm, 1000..1010);
            }
            for vm in 1..1000 {
                (0..100).take_while(|n| claim_by_programs(&records, vm, 2000 + n)).count();
            }
            assert!(in_use(&records) <= size / 4, "{size}");
            let root = u16::try_from(VMS).unwrap() - 1;
            records.allow_new_images(VmSlot(root), 0);
            assert_eq!(left(&records, root), 64.min(size as u64 / 16));
        }
    }

    #[test]
    fn files_of_no_disk_leave_records_for_disks_in_a_small_table() {
        let records = Records::in_memory_with(256);
        assert!(!records.allow_new_images(VmSlot(3), 0));
        while claim_by_programs(&records, 3, 1 + in_use(&records) as u64) {}
        let its = records.images_of_vm(VmSlot(3)).len();
        // Then the VM is taken for a file server, whose records are freed.
        assert!(its < records.images_for_each_vm() && records.allow_new_images(VmSlot(3), its));
        assert!(claim(&records, 3, 1000..1008) == (8, None));
    }

    #[test]
    fn records_that_are_freed_before_their_report_comes_are_not_held() {
        let records = Records::in_memory();
        records.set_image_holder(VmSlot(3), Holder::Account(Account::User(7)));
        records.allow_new_images(VmSlot(3), 0);
        assert!(claim_by_programs(&records, 3, 5));
        let slot = records.images_of_vm(VmSlot(3))[0].slot;
        records.free_image(slot);
        records.note_image(VmSlot(3), slot);
        let (fill, _) = records.image_occupancy();
        assert_eq!((fill.used, fill.of_users), (0, 0));
    }

    #[test]
    fn vms_that_lack_a_record_are_listed_for_each_holder() {
        let records = Records::in_memory();
        let why = ClaimError::AccountShare { account: Account::User(7), most: 1024 };
        for vm in 1..=3 {
            records.set_image_holder(VmSlot(vm), Holder::Account(Account::User(7)));
            records.note_refused_image(VmSlot(vm), Some(why));
        }
        records.note_refused_image(VmSlot(3), None);
        let listed = |records: &Records| records.image_occupancy().1;
        assert_eq!(
            listed(&records),
            BTreeMap::from([(Holder::Account(Account::User(7)), (2, why.to_string()))])
        );
        records.free_images_of_vm(VmSlot(1));
        records.free_images_of_vm(VmSlot(2));
        assert_eq!(listed(&records), BTreeMap::new());
    }
}
