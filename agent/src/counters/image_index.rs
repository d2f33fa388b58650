//! Which image records each VM has, so that a look at one VM's costs what that VM has. The agent notes the records that it
//! claims and frees, and those that the programs report; [`VmRecord::new_images`] tells whether a report is missing.
//!
//! [`VmRecord::new_images`]: kvmeter_common::VmRecord::new_images

use std::{
    collections::{BTreeSet, HashMap},
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::Ordering::{Acquire, Release},
    },
};

use kvmeter_common::ImageKey;

use super::{
    ClaimError, Holder, ImageRecordInfo, ImageSlot, Records, Shares, VmSlot, mapped::SharedVmRecord,
};
use crate::account::Account;

/// By slot of the VM's record.
#[derive(Debug)]
pub(super) struct ImageIndex(Mutex<Images>);

/// The records of all VMs, and how many of them each user has.
#[derive(Debug)]
pub(super) struct Images {
    pub(super) vms: HashMap<VmSlot, OfVm>,
    /// Records in use.
    pub(super) held: Shares,
    /// Records that the programs may claim for VMs of users, beyond those in use.
    pub(super) allowed: Shares,
    /// The number by which the programs count the requests in flight of an account, as it was given last.
    pub(super) numbers: HashMap<Account, u64>,
}

#[derive(Debug, Default)]
pub(super) struct OfVm {
    pub(super) holder: Holder,
    /// The number of records claimed by the programs that `slots` has had.
    pub(super) claims: u64,
    pub(super) slots: BTreeSet<ImageSlot>,
    /// Records that the programs may claim beyond `claims`.
    pub(super) allowed: usize,
    /// Block devices that the VM has open.
    pub(super) open_devices: BTreeSet<u32>,
    /// Why an image of the VM has no record.
    pub(super) refused: Option<ClaimError>,
}

impl ImageIndex {
    /// The index of a table with this number of records.
    pub(super) fn new(size: usize) -> Self {
        Self(Mutex::new(Images::new(size)))
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, Images> {
        // A panic cannot leave the map inconsistent.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Images {
    fn new(size: usize) -> Self {
        Self {
            vms: HashMap::new(),
            held: Shares::new(size),
            allowed: Shares::new(size),
            numbers: HashMap::new(),
        }
    }

    pub(super) fn of_vm(&mut self, vm: VmSlot) -> &mut OfVm {
        self.vms.entry(vm).or_default()
    }

    /// Notes a record that the agent has claimed.
    pub(super) fn insert(&mut self, vm: VmSlot, slot: ImageSlot) {
        let of_vm = self.vms.entry(vm).or_default();
        if of_vm.slots.insert(slot) {
            self.held.take(of_vm.holder, 1);
        }
    }

    /// Notes a record that the programs have claimed. Returns whether it was not known.
    fn insert_claimed(&mut self, vm: VmSlot, slot: ImageSlot) -> bool {
        let of_vm = self.vms.entry(vm).or_default();
        let is_new = of_vm.slots.insert(slot);
        if is_new {
            let (holder, left) = (of_vm.holder, of_vm.allowed.saturating_sub(1));
            self.held.take(holder, 1);
            self.set_allowed(vm, left);
        }
        is_new
    }

    pub(super) fn remove(&mut self, vm: VmSlot, slot: ImageSlot) {
        if let Some(of_vm) = self.vms.get_mut(&vm)
            && of_vm.slots.remove(&slot)
        {
            self.held.give_back(of_vm.holder, 1);
        }
    }

    fn remove_vm(&mut self, vm: VmSlot) {
        self.set_holder(vm, Holder::Trusted);
        if let Some(of_vm) = self.vms.remove(&vm) {
            self.held.give_back(Holder::Trusted, of_vm.slots.len());
        }
    }

    /// Sets how many records the programs may claim beyond those that are known.
    pub(super) fn set_allowed(&mut self, vm: VmSlot, count: usize) {
        let of_vm = self.vms.entry(vm).or_default();
        let before = std::mem::replace(&mut of_vm.allowed, count);
        // Root and libvirt have no share that could be kept for them.
        if of_vm.holder != Holder::Trusted {
            self.allowed.give_back(of_vm.holder, before);
            self.allowed.take(of_vm.holder, count);
        }
    }

    pub(super) fn set_holder(&mut self, vm: VmSlot, holder: Holder) {
        let of_vm = self.of_vm(vm);
        if of_vm.holder == holder {
            return;
        }
        let allowed = of_vm.allowed;
        self.set_allowed(vm, 0);
        let of_vm = self.vms.entry(vm).or_default();
        let before = std::mem::replace(&mut of_vm.holder, holder);
        self.held.give_back(before, of_vm.slots.len());
        self.held.take(holder, of_vm.slots.len());
        self.set_allowed(vm, allowed);
    }
}

impl Records {
    /// Notes a record that the programs have claimed for a VM and reported.
    pub(crate) fn note_image(&self, vm: VmSlot, slot: ImageSlot) {
        let mut images = self.image_index.lock();
        // A look at all records may have found it before the report came, and it may have been freed since.
        if self.image_record(slot).is_some_and(|image| image.vm() == vm)
            && images.insert_claimed(vm, slot)
        {
            images.of_vm(vm).claims += 1;
        }
    }

    /// The image records of one VM.
    #[must_use]
    pub fn images_of_vm(&self, vm: VmSlot) -> Vec<ImageRecordInfo> {
        let mut images = self.image_index.lock();
        // The programs count a record after they have claimed it.
        let claims = self.vms.get(usize::from(vm.0)).map_or(0, claims_of);
        if images.of_vm(vm).claims != claims {
            for image in self.image_records().into_iter().filter(|image| image.vm() == vm) {
                images.insert_claimed(vm, image.slot);
            }
            images.of_vm(vm).claims = claims;
        }
        let its = images.of_vm(vm).slots.iter().filter_map(|slot| self.image_record(*slot));
        its.filter(|image| image.vm() == vm).collect()
    }

    /// Notes all records in use, at the start. For whom they are is known with the first scan of each VM.
    pub(crate) fn index_images(&self) {
        let mut images = Images::new(self.images.len());
        for (slot, vm) in (0..=u16::MAX).map(VmSlot).zip(self.vms.iter()) {
            let (claims, limit) = (claims_of(vm), vm.new_images_limit.load(Acquire));
            if claims != 0 {
                images.of_vm(slot).claims = claims;
                let allowed = limit.saturating_sub(claims);
                images.set_allowed(slot, usize::try_from(allowed).unwrap_or(usize::MAX));
            }
        }
        for image in self.image_records() {
            images.insert(image.vm(), image.slot);
        }
        *self.image_index.lock() = images;
    }

    /// Frees all image records of a VM that is gone.
    pub(crate) fn free_images_of_vm(&self, vm: VmSlot) {
        for image in self.images_of_vm(vm) {
            self.free_image(image.slot);
        }
        self.image_index.lock().remove_vm(vm);
    }

    /// An image record; `None` = it is free.
    pub(super) fn image_record(&self, slot: ImageSlot) -> Option<ImageRecordInfo> {
        let record = self.image(slot)?;
        let owner = record.owner.load(Acquire);
        (owner != 0).then(|| ImageRecordInfo {
            slot,
            key: ImageKey::of(owner, record.file.load(Acquire)),
            storage: self.storage_of_image(slot),
        })
    }
}

/// Number of records that the programs have claimed for the VM.
pub(super) fn claims_of(vm: &SharedVmRecord) -> u64 {
    vm.new_images.load(Acquire)
}

/// Sets the number of records that the programs may have claimed for the VM.
pub(super) fn set_limit(vm: &SharedVmRecord, limit: u64) {
    vm.new_images_limit.store(limit, Release);
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::Ordering::Relaxed;

    use kvmeter_common::Layer;

    use super::*;

    const VM: VmSlot = VmSlot(7);

    fn key(file: u64) -> ImageKey {
        ImageKey { vm: VM.0, device: 1, file }
    }

    fn slots(records: &Records) -> Vec<ImageSlot> {
        records.images_of_vm(VM).iter().map(|image| image.slot).collect()
    }

    /// Claims a record as the programs do.
    fn claim(records: &Records, slot: u16) -> ImageSlot {
        let file = u64::from(slot);
        let record = &records.images[usize::from(slot)];
        record.owner.store(key(file).owner(), Relaxed);
        record.file.store(file, Relaxed);
        records.vms[usize::from(VM.0)].new_images.fetch_add(1, Relaxed);
        ImageSlot(slot)
    }

    #[test]
    fn records_of_either_side_are_known() {
        let records = Records::in_memory();
        let mut all = vec![records.claim_image(key(1), Layer::Call).unwrap()];
        assert_eq!(slots(&records), all);
        // The report comes before and after the look, and not at all.
        for (number, reports) in [(1, [true, false]), (2, [false, true]), (3, [false, false])] {
            let slot = claim(&records, 4000 + number);
            all.push(slot);
            all.sort_unstable();
            for reports in reports {
                if reports {
                    records.note_image(VM, slot);
                }
                assert_eq!(slots(&records), all, "{number}");
            }
        }
        records.free_image(all.remove(0));
        assert_eq!(slots(&records), all);
        // The next agent.
        records.index_images();
        assert_eq!(slots(&records), all);
        records.free_images_of_vm(VM);
        assert_eq!((slots(&records), records.image_records()), (vec![], vec![]));
    }
}
