//! Who may have how many requests in flight: an account a quarter of the table, all accounts half. The programs count by the number that
//! the agent gives an account; the count is in the VM record with that number.

use std::sync::atomic::Ordering::{Acquire, Relaxed, Release};

use super::{Holder, Records, VmSlot, mapped::SharedVmRecord};
use crate::account::Account;

impl Records {
    /// Notes for whom a VM is counted.
    pub(crate) fn set_holder(&self, vm: VmSlot, holder: Holder) {
        // The account depends on the holder before.
        self.set_request_holder(vm, holder);
        self.set_image_holder(vm, holder);
    }

    /// Has the programs count the requests of a VM for this holder.
    fn set_request_holder(&self, vm: VmSlot, holder: Holder) {
        let Some(record) = self.vms.get(usize::from(vm.0)) else { return };
        let has_account = record.account.load(Acquire) != 0;
        let is_same = self.image_index.lock().of_vm(vm).holder == holder;
        if is_same && has_account == (holder != Holder::Trusted) {
            return;
        }
        let account = match holder {
            Holder::Trusted => 0,
            Holder::Account(account) => {
                let number = self.account_of(vm, account);
                self.keep_number(account, number);
                number
            }
        };
        record.account.store(account, Release);
    }

    /// Remembers the number of an account, until none of its requests is in flight.
    fn keep_number(&self, account: Account, number: u64) {
        let mut images = self.image_index.lock();
        images.numbers.retain(|_, kept| *kept != number && self.in_flight_of(*kept) != 0);
        images.numbers.insert(account, number);
    }

    fn in_flight_of(&self, number: u64) -> u64 {
        let record = usize::try_from(number).ok().and_then(|number| self.vms.get(number));
        record.map_or(0, |record| record.in_flight_of_account.load(Relaxed))
    }

    /// The number of the account: that of another VM of it, or the one that an earlier agent gave the VM, or that of its VMs that have
    /// ended while their requests are in flight, or a new one.
    fn account_of(&self, vm: VmSlot, of: Account) -> u64 {
        let holder = Holder::Account(of);
        let account = |vm: VmSlot| match self.vms.get(usize::from(vm.0)) {
            Some(record) => record.account.load(Acquire),
            None => 0,
        };
        let images = self.image_index.lock();
        let others = || images.vms.iter().filter(|(other, _)| **other != vm);
        let mut of_same = others().filter(|(_, of_vm)| of_vm.holder == holder);
        if let Some(known) =
            of_same.find_map(|(other, _)| Some(account(*other)).filter(|n| *n != 0))
        {
            return known;
        }
        let own = account(vm);
        let is_of_others = || {
            others().any(|(other, of_vm)| of_vm.holder != Holder::Trusted && account(*other) == own)
        };
        if own != 0 && !is_of_others() {
            return own;
        }
        let kept = images.numbers.get(&of).copied();
        drop(images);
        kept.filter(|number| self.in_flight_of(*number) != 0).unwrap_or_else(|| self.free_account())
    }

    /// A number that no VM has: one without requests in flight, if there is one. Requests of an account's earlier user may be.
    fn free_account(&self) -> u64 {
        let mut is_taken = vec![false; self.vms.len()];
        for record in self.vms.iter().filter(|record| record.tgid.load(Acquire) != 0) {
            let number = usize::try_from(record.account.load(Acquire)).unwrap_or(usize::MAX);
            if let Some(taken) = is_taken.get_mut(number) {
                *taken = true;
            }
        }
        let in_flight = |record: &SharedVmRecord| record.in_flight_of_account.load(Relaxed);
        let free = (1_u64..).zip(self.vms.iter().zip(&is_taken).skip(1));
        // There are fewer accounts with VMs than VM records.
        free.filter(|(_, (_, taken))| !**taken)
            .min_by_key(|(_, (record, _))| in_flight(record))
            .map_or(1, |(number, _)| number)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn user(user: u32) -> Holder {
        Holder::Account(Account::User(user))
    }

    /// Counts a VM, as a registration does. Returns the number of its account.
    fn track(records: &Records, vm: u16, holder: Holder) -> u64 {
        records.set_holder(VmSlot(vm), holder);
        let record = &records.vms[usize::from(vm)];
        record.tgid.store(u64::from(vm) + 1000, Relaxed);
        record.account.load(Relaxed)
    }

    fn untrack(records: &Records, vm: u16) {
        records.free_images_of_vm(VmSlot(vm));
        records.vms[usize::from(vm)].clear();
        records.vms[usize::from(vm)].tgid.store(0, Relaxed);
    }

    #[test]
    fn the_vms_of_a_user_have_one_account_and_those_of_root_none() {
        let records = Records::in_memory();
        assert_eq!(track(&records, 1, Holder::Trusted), 0);
        let of_a = track(&records, 2, user(1000));
        let of_b = track(&records, 3, user(1001));
        assert!(of_a != 0 && of_b != 0 && of_a != of_b);
        assert_eq!(track(&records, 4, user(1000)), of_a);
        // Libvirt says that the VM is one of its domains, and does not any more.
        assert_eq!(track(&records, 2, Holder::Trusted), 0);
        assert_eq!(track(&records, 2, user(1000)), of_a);
    }

    #[test]
    fn a_new_account_has_no_requests_of_an_earlier_user() {
        let records = Records::in_memory();
        let first = track(&records, 2, user(1000));
        let record = &records.vms[usize::try_from(first).unwrap()];
        record.in_flight_of_account.store(9, Relaxed);
        untrack(&records, 2);
        let second = track(&records, 2, user(1001));
        assert_ne!(second, first);
        assert_eq!(record.in_flight_of_account.load(Relaxed), 9, "they are still in flight");
    }

    #[test]
    fn a_user_whose_vms_end_and_come_again_has_one_share_of_requests_in_flight() {
        let records = Records::in_memory();
        let first = track(&records, 2, user(1000));
        let in_flight = &records.vms[usize::try_from(first).unwrap()].in_flight_of_account;
        in_flight.store(9, Relaxed);
        untrack(&records, 2);
        let other = track(&records, 3, user(1001));
        assert_eq!(track(&records, 4, user(1000)), first);
        untrack(&records, 4);
        // Once they are not in flight, the number is anyone's, and forgotten.
        in_flight.store(0, Relaxed);
        for id in 2000..3000 {
            assert_ne!(track(&records, 4, user(id)), other);
            untrack(&records, 4);
        }
        assert!(records.image_index.lock().numbers.len() <= 2);
    }

    #[test]
    fn accounts_stay_over_a_restart_of_the_agent() {
        let records = Records::in_memory();
        for (vm, account) in [(2_u16, 7), (3, 7), (4, 9)] {
            records.vms[usize::from(vm)].account.store(account, Relaxed);
            records.vms[usize::from(vm)].tgid.store(5, Relaxed);
        }
        assert_eq!(track(&records, 2, user(1000)), 7);
        assert_eq!(track(&records, 4, user(1001)), 9);
        assert_eq!(track(&records, 3, user(1000)), 7);
        // Its process has become another user's.
        let third = track(&records, 3, user(1002));
        assert!(![0, 7, 9].contains(&third), "{third}");
    }
}
