//! I/O counters of images, the files and block devices behind virtual disks.

use std::sync::atomic::{
    AtomicU64,
    Ordering::{AcqRel, Acquire, Relaxed},
    fence,
};

use kvmeter_common::ImageKey;

use super::{
    DiskIo, Records, VmSlot,
    mapped::{SharedDirectionCounters, SharedImageRecord},
    records::TRIES,
};
use crate::histogram::Histogram;

/// Slot of an image's record.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct ImageSlot(pub u16);

/// An image record in use.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct ImageRecordInfo {
    /// Slot of the record.
    pub slot: ImageSlot,
    /// The VM and the file whose requests it counts.
    pub key: ImageKey,
    /// vmStorageIndex of the disk that the image belongs to; 0 = unassigned.
    pub storage: u32,
}

impl ImageRecordInfo {
    /// Slot of the VM whose I/O the record counts.
    #[must_use]
    pub const fn vm(&self) -> VmSlot {
        VmSlot(self.key.vm)
    }

    /// Whether new requests are still counted here.
    #[must_use]
    pub const fn is_open(&self) -> bool {
        self.key.file != 0
    }

    /// Whether the record is open and not assigned to a disk yet.
    #[must_use]
    pub const fn is_unassigned(&self) -> bool {
        self.is_open() && self.storage == 0
    }
}

/// Errors and latencies of a disk's requests in one direction.
#[derive(Clone, Debug, Default)]
pub struct Requests {
    /// Number of failed requests.
    pub errors: u64,
    /// Latencies of the successful requests.
    pub latencies: Histogram,
}

/// Disk of a record that was merged into another one: above every vmStorageIndex. The low bits are the other record's slot.
const MERGED: u32 = 1 << 31;

/// Most merged records that are followed to the one that has the counts: that one may have been merged, too.
const MERGES: usize = 16;

/// Retries while counts are being merged, as a multiple of [`TRIES`].
const MERGE_TRIES: usize = 64;

impl Records {
    /// Sums the I/O of these images. No number decreases between two calls with the same images while their VM runs.
    #[must_use]
    pub fn image_io(&self, images: &[ImageSlot]) -> DiskIo {
        self.at_rest(|| self.sum(images))
    }

    /// What `sum` returns of counts that are not being merged meanwhile.
    fn at_rest<T: Default>(&self, mut sum: impl FnMut() -> T) -> T {
        let mut found = T::default();
        for attempt in 0..MERGE_TRIES * TRIES {
            let before = self.merge_seq.load(Acquire);
            found = sum();
            fence(Acquire);
            if before.is_multiple_of(2) && self.merge_seq.load(Relaxed) == before {
                break;
            }
            if attempt < TRIES {
                std::hint::spin_loop();
            } else {
                // The merging thread was preempted.
                std::thread::yield_now();
            }
        }
        found
    }

    fn sum(&self, images: &[ImageSlot]) -> DiskIo {
        let mut io = DiskIo::default();
        for record in images.iter().filter_map(|slot| self.image(*slot)) {
            let load = |cell: &AtomicU64| cell.load(Relaxed);
            io.reads = io.reads.wrapping_add(load(&record.read.requests));
            io.writes = io.writes.wrapping_add(load(&record.write.requests));
            io.read_octets = io.read_octets.wrapping_add(load(&record.read.bytes));
            io.write_octets = io.write_octets.wrapping_add(load(&record.write.bytes));
            io.read_ns = io.read_ns.wrapping_add(load(&record.read.latency_ns));
            io.write_ns = io.write_ns.wrapping_add(load(&record.write.latency_ns));
        }
        io
    }

    /// Merges the counts of closed records into one of them. The others stay claimed, empty and without a disk, until
    /// [`free_merged`](Self::free_merged), because a view may still refer to them. Only one thread at a time may call this.
    pub fn merge_images(&self, into: ImageSlot, others: &[ImageSlot]) {
        for &other in others {
            self.move_counts(other, into);
            self.assign_image(other, MERGED | u32::from(into.0));
        }
    }

    /// Moves the counts of one record to another one.
    fn move_counts(&self, from: ImageSlot, into: ImageSlot) {
        let (Some(from), Some(to)) = (self.image(from), self.image(into)) else { return };
        self.merge_seq.fetch_add(1, AcqRel);
        for (from, to) in [(&from.read, &to.read), (&from.write, &to.write)] {
            for (from, to) in cells(from).zip(cells(to)) {
                to.fetch_add(from.swap(0, AcqRel), AcqRel);
            }
        }
        self.merge_seq.fetch_add(1, AcqRel);
    }

    /// Frees a record that was merged into another one, unless it was reused for another image since. Requests that were
    /// in flight when it was merged have been counted in it since; these counts are moved, too.
    pub fn free_merged(&self, slot: ImageSlot) {
        if self.storage_of_image(slot) < MERGED {
            return;
        }
        self.move_late_counts(slot);
        self.free_image(slot);
    }

    /// Moves what a merged record has counted since it was merged.
    fn move_late_counts(&self, slot: ImageSlot) {
        if let Some(into) = self.merged_into(slot) {
            self.move_counts(slot, into);
        }
    }

    /// The record that has the counts of a merged one; `None` = it has been freed, or an agent of an earlier version did
    /// not note it.
    fn merged_into(&self, slot: ImageSlot) -> Option<ImageSlot> {
        let vm_of = |slot| Some(ImageKey::of(self.image(slot)?.owner.load(Acquire), 0).vm);
        let mut into = slot;
        for _ in 0..MERGES {
            let Some(next) = self.storage_of_image(into).checked_sub(MERGED) else {
                return (vm_of(into) == vm_of(slot)).then_some(into);
            };
            into = ImageSlot(u16::try_from(next).ok()?);
        }
        None
    }

    /// Frees what an earlier agent merged and did not free before it ended. To be called before there is a view.
    pub(crate) fn free_all_merged(&self) {
        let mut merged = self.image_records();
        merged.retain(|image| image.storage >= MERGED);
        // None is freed before another one's counts have been moved through it.
        for image in &merged {
            self.move_late_counts(image.slot);
        }
        for image in merged {
            self.free_image(image.slot);
        }
    }

    /// Errors and latencies of reads and of writes on these images. No number decreases, as in [`image_io`](Self::image_io).
    #[must_use]
    pub fn image_requests(&self, images: &[ImageSlot]) -> [Requests; 2] {
        let records = || images.iter().filter_map(|slot| self.image(*slot));
        self.at_rest(|| {
            [
                requests(records().map(|record| &record.read)),
                requests(records().map(|record| &record.write)),
            ]
        })
    }

    /// Number of image requests that could not be counted, since the maps were created.
    #[must_use]
    pub fn uncounted_requests(&self) -> u64 {
        self.meta[0].uncounted.load(Relaxed)
    }

    /// All image records in use.
    #[must_use]
    pub fn image_records(&self) -> Vec<ImageRecordInfo> {
        let slots = (0..=u16::MAX).map(ImageSlot).take(self.images.len());
        slots.filter_map(|slot| self.image_record(slot)).collect()
    }

    /// vmStorageIndex of the disk that an image belongs to; 0 = unassigned.
    #[must_use]
    pub fn storage_of_image(&self, slot: ImageSlot) -> u32 {
        self.image(slot).map_or(0, |record| record.storage.load(Relaxed))
    }

    /// Assigns an image to a disk.
    pub fn assign_image(&self, slot: ImageSlot, storage: u32) {
        if let Some(record) = self.image(slot) {
            record.storage.store(storage, Relaxed);
        }
    }

    pub(super) fn image(&self, slot: ImageSlot) -> Option<&SharedImageRecord> {
        self.images.get(usize::from(slot.0))
    }
}

pub(super) fn cells(direction: &SharedDirectionCounters) -> impl Iterator<Item = &AtomicU64> {
    let numbers = [&direction.requests, &direction.bytes, &direction.latency_ns, &direction.errors];
    numbers.into_iter().chain(&direction.buckets)
}

fn requests<'a>(directions: impl Iterator<Item = &'a SharedDirectionCounters>) -> Requests {
    let mut requests = Requests::default();
    for direction in directions {
        requests.errors = requests.errors.wrapping_add(direction.errors.load(Relaxed));
        requests.latencies.add(direction.buckets.iter().map(|bucket| bucket.load(Relaxed)));
    }
    requests
}

#[cfg(test)]
mod tests {
    use kvmeter_common::Layer;

    use super::*;

    const KEY: ImageKey = ImageKey { vm: 7, device: 1, file: 2 };

    /// A closed record of this disk with a number of reads.
    fn closed(records: &Records, vm: u16, storage: u32, reads: u64) -> ImageSlot {
        let slot = records.claim_image(ImageKey { vm, ..KEY }, Layer::Call).unwrap();
        records.assign_image(slot, storage);
        records.close_image(slot);
        add_reads(records, slot, reads);
        slot
    }

    fn add_reads(records: &Records, slot: ImageSlot, reads: u64) {
        records.image(slot).unwrap().read.requests.fetch_add(reads, Relaxed);
    }

    fn reads(records: &Records, slots: &[ImageSlot]) -> u64 {
        records.image_io(slots).reads
    }

    #[test]
    fn what_is_in_flight_at_a_merge_is_counted() {
        let records = Records::in_memory();
        let [a, b, c] = [1, 10, 100].map(|reads| closed(&records, 7, 1, reads));
        records.merge_images(a, &[b]);
        assert_eq!(reads(&records, &[a]), 11);
        add_reads(&records, b, 1000);
        // What it was merged into is merged itself, before it is freed.
        records.merge_images(c, &[a]);
        records.free_merged(b);
        records.free_merged(a);
        records.free_merged(c);
        assert_eq!(reads(&records, &[c]), 1111);
        assert_eq!(records.images_of_vm(VmSlot(7)).len(), 1);
    }

    #[test]
    fn counts_are_not_read_while_they_are_merged() {
        let records = Records::in_memory();
        records.merge_seq.store(1, Relaxed);
        let mut looks = 0;
        let seen = records.at_rest(|| {
            looks += 1;
            match looks {
                // One merge ends, and another one begins and ends during a look.
                3 => drop(records.merge_seq.fetch_add(1, Relaxed)),
                4 => drop(records.merge_seq.fetch_add(2, Relaxed)),
                _ => {}
            }
            looks
        });
        assert_eq!(seen, 5);
    }

    #[test]
    fn what_an_agent_merged_and_did_not_free_is_freed_at_the_next_start() {
        let records = Records::in_memory();
        let [a, b, c] = [1, 10, 100].map(|reads| closed(&records, 7, 1, reads));
        let other = closed(&records, 8, 1, 5);
        records.merge_images(a, &[b]);
        records.merge_images(c, &[a]);
        add_reads(&records, b, 1000);
        let old = closed(&records, 7, u32::MAX, 0);
        records.free_all_merged();
        assert_eq!((reads(&records, &[c]), reads(&records, &[other])), (1111, 5));
        let left: Vec<_> = records.image_records().iter().map(|image| image.slot).collect();
        assert_eq!(left.len(), 2);
        assert!(left.contains(&c) && left.contains(&other) && !left.contains(&old));
        // Once more, it changes nothing.
        records.free_all_merged();
        assert_eq!(reads(&records, &[c]), 1111);
    }
}
