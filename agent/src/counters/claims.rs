//! Which image has which record: records are claimed, closed and freed.

use std::sync::atomic::Ordering::{AcqRel, Acquire, Relaxed, Release};

use kvmeter_common::{
    ImageKey, Layer,
    image::{PROBES, buckets},
};
use thiserror::Error;

use super::{ImageSlot, Records, VmSlot, images::cells, mapped::SharedImageRecord};
use crate::account::Account;

/// Owner word of a record that is being freed. The kernel has no device 0.
const OF_NO_IMAGE: u64 = ImageKey { vm: 0, device: 0, file: 0 }.owner();

/// Why an image has no record.
#[derive(Clone, Copy, Debug, Eq, Error, PartialEq)]
pub enum ClaimError {
    /// Both buckets of the image are full.
    #[error("no record is free for it")]
    Full,
    /// The VM has its share of the records.
    #[error("the VM has all {0} records that one VM may have")]
    Share(usize),
    /// The account has an account's share of the records.
    #[error("{account} has all {most} records that one user or container may have")]
    AccountShare {
        /// The account.
        account: Account,
        /// The share.
        most: usize,
    },
    /// Accounts have the share of all of them.
    #[error(
        "users other than root and libvirt, and containers, have all {most} records that they may have"
    )]
    UsersShare {
        /// The share.
        most: usize,
    },
    /// The bucket of the block device is full.
    #[error("too many VMs have the device")]
    Device,
    /// The image has a record that was [mixed](Records::mix_image).
    #[error(
        "a limit of its cgroup has delayed requests, and the counts may have those of other processes"
    )]
    Mixed,
}

impl ClaimError {
    /// Whether the image finds a record as soon as others are freed.
    pub(crate) const fn is_shortage(self) -> bool {
        match self {
            Self::Full | Self::Share(_) | Self::AccountShare { .. } | Self::UsersShare { .. } => {
                true
            }
            Self::Device | Self::Mixed => false,
        }
    }
}

impl Records {
    /// The open records of an image. A race of two CPUs can create several; the kernel counts in any of them.
    pub fn images_of(&self, key: ImageKey) -> impl Iterator<Item = ImageSlot> {
        self.probes(key)
            .filter(move |slot| self.image(*slot).is_some_and(|record| is_open_for(record, key)))
    }

    /// Finds or claims a record for `key`, and has its requests counted in `layer` from now on. A record that the image has keeps
    /// its counts; the programs count a request that is in flight where it began. On an error nothing has changed.
    ///
    /// # Errors
    ///
    /// [`ClaimError`]
    pub fn claim_image(&self, key: ImageKey, layer: Layer) -> Result<ImageSlot, ClaimError> {
        let open: Vec<_> = self.images_of(key).collect();
        if open.iter().any(|slot| self.is_mixed(*slot)) {
            return Err(ClaimError::Mixed);
        }
        let claimed = match open.first() {
            Some(claimed) => *claimed,
            None => self.claim_new(key, layer)?,
        };
        if layer == Layer::Block && !self.add_device_user(key.device, key.vm) {
            if open.is_empty() {
                self.free_image(claimed);
            }
            return Err(ClaimError::Device);
        }
        for record in open.iter().filter_map(|slot| self.image(*slot)) {
            record.layer.store(layer as u32, Relaxed);
        }
        Ok(claimed)
    }

    /// Claims a record for an image that has none.
    fn claim_new(&self, key: ImageKey, layer: Layer) -> Result<ImageSlot, ClaimError> {
        let vm = VmSlot(key.vm);
        self.check_image_shares(vm)?;
        let claimed = self.claim_free(key, layer).ok_or(ClaimError::Full)?;
        self.image_index.lock().insert(vm, claimed);
        self.withdraw_images(vm);
        Ok(claimed)
    }

    /// Claims a free record in the image's buckets.
    fn claim_free(&self, key: ImageKey, layer: Layer) -> Option<ImageSlot> {
        let slots: Vec<_> = self.probes(key).collect();
        let free = loop {
            let owners = slots.iter().filter_map(|slot| self.image(*slot));
            let taken = owners.zip(0..).fold(0, |taken, (record, probe)| {
                taken | ImageKey::taken_bit(record.owner.load(Acquire)) << probe
            });
            let free = *slots.get(ImageKey::free_probe(taken)? as usize)?;
            let owner = &self.image(free)?.owner;
            if owner.compare_exchange(0, key.owner(), AcqRel, Relaxed).is_ok() {
                break free;
            }
        };
        let record = self.image(free)?;
        // A program on another CPU may have counted a request in it after it was freed.
        reset_counts(record);
        record.layer.store(layer as u32, Relaxed);
        record.file.store(key.file, Release);
        Some(free)
    }

    /// Ends the counting of an image: what its records have may be requests of another process. They stay as they are until the
    /// VM ends, so that the next agent knows, too.
    pub(crate) fn mix_image(&self, key: ImageKey) {
        for record in self.images_of(key).filter_map(|slot| self.image(slot)) {
            record.layer.store(Layer::Mixed as u32, Relaxed);
        }
    }

    /// Whether the counts of a record may have requests of another process.
    pub(crate) fn is_mixed(&self, slot: ImageSlot) -> bool {
        self.has_layer(slot, Layer::Mixed)
    }

    /// Whether this is the layer of a record.
    pub(super) fn has_layer(&self, slot: ImageSlot, layer: Layer) -> bool {
        self.image(slot).is_some_and(|record| record.layer.load(Relaxed) == layer as u32)
    }

    /// Closes a record: it keeps its counts, and later requests get a new record.
    pub fn close_image(&self, slot: ImageSlot) {
        let Some(record) = self.image(slot) else { return };
        record.file.store(0, Release);
        self.remove_closed_device(record.owner.load(Acquire));
    }

    /// Resets a record and frees it.
    pub(crate) fn free_image(&self, slot: ImageSlot) {
        let Some(record) = self.image(slot) else { return };
        record.file.store(0, Release);
        // A request in flight is no image's from here on, and no image gets the record before it is empty.
        let owner = record.owner.swap(OF_NO_IMAGE, AcqRel);
        reset_counts(record);
        record.layer.store(0, Relaxed);
        record.storage.store(0, Relaxed);
        record.owner.store(0, Release);
        self.image_index.lock().remove(VmSlot(ImageKey::of(owner, 0).vm), slot);
        self.remove_closed_device(owner);
    }

    /// Notes that a VM has a block device no longer, if it has no open record of the device. `owner` is the owner word of a record.
    fn remove_closed_device(&self, owner: u64) {
        let of_device = ImageKey::of(owner, ImageKey::NO_FILE);
        if self.images_of(of_device).next().is_none() {
            self.remove_device_user(of_device.device, of_device.vm);
        }
    }

    /// The slots in which an image's record can be: those of its first bucket, then those of its second.
    fn probes(&self, key: ImageKey) -> impl Iterator<Item = ImageSlot> + use<> {
        let (hash, buckets) = (key.hash(self.image_secret), buckets(self.images.len()));
        let slot =
            move |probe| u16::try_from(ImageKey::slot(hash, probe, buckets)).ok().map(ImageSlot);
        (0..PROBES).filter_map(slot)
    }
}

fn reset_counts(record: &SharedImageRecord) {
    for cell in [&record.read, &record.write].into_iter().flat_map(cells) {
        cell.store(0, Relaxed);
    }
}

fn is_open_for(record: &SharedImageRecord, key: ImageKey) -> bool {
    record.owner.load(Acquire) == key.owner() && record.file.load(Acquire) == key.file
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: ImageKey = ImageKey { vm: 7, device: 1, file: 2 };

    /// Claims every free record of the table for another VM.
    fn fill(records: &Records) {
        for image in &*records.images {
            let _ = image.owner.compare_exchange(0, u64::MAX, AcqRel, Relaxed);
        }
    }

    #[test]
    fn an_image_keeps_its_record_when_another_layer_counts_it() {
        let records = Records::in_memory();
        let slot = records.claim_image(KEY, Layer::Call).unwrap();
        records.image(slot).unwrap().read.requests.fetch_add(5, Relaxed);
        // Also where no record is free.
        fill(&records);
        for layer in [Layer::Function, Layer::Call, Layer::Direct, Layer::Ring, Layer::Function] {
            assert_eq!(records.claim_image(KEY, layer), Ok(slot));
            assert_eq!(records.image(slot).unwrap().layer.load(Relaxed), layer as u32);
        }
        assert_eq!(records.images_of(KEY).collect::<Vec<_>>(), [slot]);
        assert_eq!(
            (records.images_of_vm(VmSlot(7)).len(), records.image_io(&[slot]).reads),
            (1, 5)
        );
    }

    #[test]
    fn a_record_begins_with_no_counts() {
        let records = Records::in_memory();
        let slot = records.claim_image(KEY, Layer::Call).unwrap();
        let record = records.image(slot).unwrap();
        records.free_image(slot);
        // A program that had found the record before.
        for cell in [&record.read, &record.write].into_iter().flat_map(cells) {
            cell.fetch_add(1, Relaxed);
        }
        assert_eq!(records.claim_image(KEY, Layer::Call), Ok(slot));
        assert_eq!(records.image_io(&[slot]), crate::counters::DiskIo::default());
        let requests = records.image_requests(&[slot]);
        assert!(requests.iter().all(|of| of.errors == 0 && of.latencies.count() == 0));
    }

    #[test]
    fn a_claim_that_fails_changes_nothing() {
        let device = ImageKey { file: ImageKey::NO_FILE, ..KEY };
        let records = Records::in_memory();
        let has_device = || records.devices.iter().flatten().any(|cell| cell.load(Relaxed) != 0);
        for file in 1..=records.images_for_each_vm() as u64 {
            records.claim_image(ImageKey { file, ..KEY }, Layer::Call).unwrap();
        }
        let share = records.images_for_each_vm();
        assert_eq!(records.claim_image(device, Layer::Block), Err(ClaimError::Share(share)));
        assert!(!has_device());
        fill(&records);
        let other = ImageKey { vm: 8, ..device };
        assert_eq!(records.claim_image(other, Layer::Block), Err(ClaimError::Full));
        assert!(!has_device());
    }

    #[test]
    fn a_device_that_has_too_many_vms_keeps_no_record_and_its_layer() {
        let records = Records::in_memory();
        let key = |vm| ImageKey { vm, device: 9 << 20, file: ImageKey::NO_FILE };
        for vm in 1..=8 {
            records.claim_image(key(vm), Layer::Block).unwrap();
        }
        assert_eq!(records.claim_image(key(9), Layer::Block), Err(ClaimError::Device));
        assert_eq!(records.images_of_vm(VmSlot(9)), []);
        let known = records.claim_image(key(9), Layer::Function).unwrap();
        assert_eq!(records.claim_image(key(9), Layer::Block), Err(ClaimError::Device));
        let layer = records.image(known).unwrap().layer.load(Relaxed);
        assert_eq!((records.images_of(key(9)).count(), layer), (1, Layer::Function as u32));
        // A device that was unplugged leaves its place, though its counts stay.
        records.close_image(records.images_of(key(1)).next().unwrap());
        assert_eq!(records.claim_image(key(9), Layer::Block), Ok(known));
        assert_eq!(records.images_of_vm(VmSlot(1)).len(), 1);
    }
}
