//! Which image has which record: records are claimed, closed and freed.

use std::sync::atomic::Ordering::{AcqRel, Acquire, Relaxed, Release};

use kvmeter_common::{
    ImageKey, Layer,
    image::{PROBES, buckets},
};
use thiserror::Error;

use super::{ImageSlot, Records, VmSlot, images::cells, mapped::SharedImageRecord};

/// Why an image has no record.
#[derive(Clone, Copy, Debug, Eq, Error, PartialEq)]
pub enum ClaimError {
    /// Both buckets of the image are full.
    #[error("no record is free for it")]
    Full,
    /// The VM has its share of the records.
    #[error("the VM has all {0} records that one VM may have")]
    Share(usize),
    /// The bucket of the block device is full.
    #[error("too many VMs have the device")]
    Device,
}

impl Records {
    /// Number of image records that one VM may have: an eighth of the table, so that no VM leaves the others without any.
    pub(crate) fn images_for_each_vm(&self) -> usize {
        self.images.len() / 8
    }

    /// The open records of an image. A race of two CPUs can create several; the kernel counts in any of them.
    pub fn images_of(&self, key: ImageKey) -> impl Iterator<Item = ImageSlot> {
        self.probes(key)
            .filter(move |slot| self.image(*slot).is_some_and(|record| is_open_for(record, key)))
    }

    /// Finds or claims a record for `key` on `layer`, and closes its records of other layers.
    ///
    /// # Errors
    ///
    /// [`ClaimError`]
    pub fn claim_image(&self, key: ImageKey, layer: Layer) -> Result<ImageSlot, ClaimError> {
        let mut claimed = None;
        for slot in self.images_of(key) {
            if self.image(slot).is_some_and(|record| record.layer.load(Relaxed) == layer as u32) {
                claimed = Some(slot);
            } else {
                // It keeps what the other layer counted; new requests go to the record of this layer.
                self.close_image(slot);
            }
        }
        if layer == Layer::Block && !self.add_device_user(key.device, key.vm) {
            return Err(ClaimError::Device);
        }
        if let Some(claimed) = claimed {
            return Ok(claimed);
        }
        let (vm, share) = (VmSlot(key.vm), self.images_for_each_vm());
        if self.image_index.len(vm) >= share {
            return Err(ClaimError::Share(share));
        }
        let claimed = self.claim_free(key, layer).ok_or(ClaimError::Full)?;
        self.image_index.insert(vm, claimed);
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
        record.layer.store(layer as u32, Relaxed);
        record.file.store(key.file, Release);
        Some(free)
    }

    /// Closes a record: it keeps its counts, and later requests get a new record.
    pub fn close_image(&self, slot: ImageSlot) {
        if let Some(record) = self.image(slot) {
            record.file.store(0, Release);
        }
    }

    /// Resets a record and frees it.
    pub(crate) fn free_image(&self, slot: ImageSlot) {
        let Some(record) = self.image(slot) else { return };
        record.file.store(0, Release);
        for direction in [&record.read, &record.write] {
            for cell in cells(direction) {
                cell.store(0, Relaxed);
            }
        }
        record.layer.store(0, Relaxed);
        record.storage.store(0, Relaxed);
        let of_device = ImageKey::of(record.owner.swap(0, AcqRel), ImageKey::NO_FILE);
        self.image_index.remove(VmSlot(of_device.vm), slot);
        if self.images_of(of_device).next().is_none() {
            self.remove_device_user(of_device.device, of_device.vm);
        }
    }

    /// The slots in which an image's record can be: those of its first bucket, then those of its second.
    fn probes(&self, key: ImageKey) -> impl Iterator<Item = ImageSlot> + use<> {
        let (hash, buckets) = (key.hash(), buckets(self.images.len()));
        let slot =
            move |probe| u16::try_from(ImageKey::slot(hash, probe, buckets)).ok().map(ImageSlot);
        (0..PROBES).filter_map(slot)
    }
}

fn is_open_for(record: &SharedImageRecord, key: ImageKey) -> bool {
    record.owner.load(Acquire) == key.owner() && record.file.load(Acquire) == key.file
}
