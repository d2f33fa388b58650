//! Which image records each VM has, so that a look at one VM's costs what that VM has. The agent notes the records that it
//! claims and frees, and those that the programs report; [`VmRecord::new_images`] tells whether a report is missing.
//!
//! [`VmRecord::new_images`]: kvmeter_common::VmRecord::new_images

use std::{
    collections::{BTreeSet, HashMap},
    sync::{Mutex, MutexGuard, PoisonError, atomic::Ordering::Acquire},
};

use kvmeter_common::ImageKey;

use super::{ImageRecordInfo, ImageSlot, Records, VmSlot};

/// By slot of the VM's record.
#[derive(Debug, Default)]
pub(super) struct ImageIndex(Mutex<HashMap<VmSlot, OfVm>>);

#[derive(Debug, Default)]
struct OfVm {
    /// The number of records claimed by the programs that `slots` has had.
    claims: u64,
    slots: BTreeSet<ImageSlot>,
}

impl ImageIndex {
    fn vms(&self) -> MutexGuard<'_, HashMap<VmSlot, OfVm>> {
        // A panic cannot leave the map inconsistent.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn insert(&self, vm: VmSlot, slot: ImageSlot) {
        self.vms().entry(vm).or_default().slots.insert(slot);
    }

    pub(super) fn remove(&self, vm: VmSlot, slot: ImageSlot) {
        if let Some(of_vm) = self.vms().get_mut(&vm) {
            of_vm.slots.remove(&slot);
        }
    }

    /// Number of records of the VM that are known.
    pub(super) fn len(&self, vm: VmSlot) -> usize {
        self.vms().get(&vm).map_or(0, |of_vm| of_vm.slots.len())
    }
}

impl Records {
    /// Notes a record that the programs have claimed for a VM and reported.
    pub(crate) fn note_image(&self, vm: VmSlot, slot: ImageSlot) {
        let mut vms = self.image_index.vms();
        let of_vm = vms.entry(vm).or_default();
        if of_vm.slots.insert(slot) {
            of_vm.claims += 1;
        }
    }

    /// The image records of one VM.
    #[must_use]
    pub fn images_of_vm(&self, vm: VmSlot) -> Vec<ImageRecordInfo> {
        let mut vms = self.image_index.vms();
        let of_vm = vms.entry(vm).or_default();
        // The programs count a record after they have claimed it.
        let claims = self.vms.get(usize::from(vm.0)).map_or(0, |vm| vm.new_images.load(Acquire));
        if of_vm.claims != claims {
            let its = self.image_records().into_iter().filter(|image| image.vm() == vm);
            of_vm.slots.extend(its.map(|image| image.slot));
            of_vm.claims = claims;
        }
        let its = of_vm.slots.iter().filter_map(|slot| self.image_record(*slot));
        its.filter(|image| image.vm() == vm).collect()
    }

    /// Notes all records in use, at the start.
    pub(crate) fn index_images(&self) {
        let claims = self.vms.iter().map(|vm| vm.new_images.load(Acquire));
        let claims = (0..=u16::MAX).map(VmSlot).zip(claims).filter(|(_, claims)| *claims != 0);
        let of_vm = |claims| OfVm { claims, slots: BTreeSet::new() };
        let mut vms: HashMap<_, _> = claims.map(|(vm, claims)| (vm, of_vm(claims))).collect();
        for image in self.image_records() {
            vms.entry(image.vm()).or_default().slots.insert(image.slot);
        }
        *self.image_index.vms() = vms;
    }

    /// Frees all image records of a VM that is gone.
    pub(crate) fn free_images_of_vm(&self, vm: VmSlot) {
        for image in self.images_of_vm(vm) {
            self.free_image(image.slot);
        }
        self.image_index.vms().remove(&vm);
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

#[cfg(test)]
mod tests {
    use std::sync::atomic::Ordering::Relaxed;

    use kvmeter_common::Layer;

    use super::*;
    use crate::counters::ClaimError;

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

    #[test]
    fn a_vm_has_a_share_of_the_records() {
        let records = Records::in_memory();
        let share = records.images_for_each_vm();
        for file in 1..=share as u64 {
            records.claim_image(key(file), Layer::Call).unwrap();
        }
        let none = records.claim_image(key(u64::MAX - 1), Layer::Call);
        assert_eq!(none, Err(ClaimError::Share(share)));
        assert!(records.claim_image(key(1), Layer::Call).is_ok(), "it has a record");
        let other = ImageKey { vm: 8, ..key(1) };
        assert!(records.claim_image(other, Layer::Call).is_ok());
    }
}
