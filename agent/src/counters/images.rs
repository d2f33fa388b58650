//! The records of images: the files and devices behind virtual disks, and what VMs do on them.

use std::sync::atomic::{
    AtomicU64,
    Ordering::{AcqRel, Acquire, Relaxed, Release},
    fence,
};

use kvmeter_common::{IMAGES, ImageKey, Layer, image::PROBES};

use super::{
    DiskIo, Records, VmSlot,
    mapped::{SharedDirectionCounters, SharedImageRecord},
    records::TRIES,
};
use crate::histogram::Histogram;

/// Slot of an image's record: 0 to 4,095.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct ImageSlot(pub u16);

/// A record that is in use.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct ImageRecordInfo {
    /// Which.
    pub slot: ImageSlot,
    /// What is counted in it, and for which VM.
    pub key: ImageKey,
    /// vmStorageIndex of the disk to which it belongs; 0 = none yet.
    pub storage: u32,
}

impl ImageRecordInfo {
    /// The VM whose I/O is counted in it.
    #[must_use]
    pub const fn vm(&self) -> VmSlot {
        VmSlot(self.key.vm)
    }

    /// Whether requests still lead to it.
    #[must_use]
    pub const fn is_open(&self) -> bool {
        self.key.file != 0
    }

    /// Whether nobody knows yet of which disk it is.
    #[must_use]
    pub const fn is_unassigned(&self) -> bool {
        self.is_open() && self.storage == 0
    }
}

/// What is known of a disk's requests in one direction beside the numbers that SNMP serves.
#[derive(Clone, Debug, Default)]
pub struct Requests {
    /// Requests that ended with an error.
    pub errors: u64,
    /// Latencies of the others.
    pub latencies: Histogram,
}

/// The disk of a record that was merged into another: none that a VM can have.
const MERGED: u32 = u32::MAX;

/// How many times as often as for a word a reader tries again while counts are moved.
const MOVES: usize = 64;

impl Records {
    /// What VMs did on these images, together. Each number is never less than it was before, as long as the images
    /// are the same and their VM runs.
    #[must_use]
    pub fn image_io(&self, images: &[ImageSlot]) -> DiskIo {
        let mut io = DiskIo::default();
        for attempt in 0..MOVES * TRIES {
            let before = self.merge_seq.load(Acquire);
            io = self.sum(images);
            fence(Acquire);
            if before.is_multiple_of(2) && self.merge_seq.load(Relaxed) == before {
                break;
            }
            if attempt < TRIES {
                std::hint::spin_loop();
            } else {
                // Whoever moves them lost its CPU meanwhile.
                std::thread::yield_now();
            }
        }
        io
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

    /// Moves all counts of closed records into one of them. The others stay, empty and of no disk, until
    /// [`free_merged`](Self::free_merged): a view may still show them. Only one thread may do this at a time.
    pub fn merge_images(&self, into: ImageSlot, others: &[ImageSlot]) {
        let Some(to) = self.image(into) else { return };
        self.merge_seq.fetch_add(1, AcqRel);
        for &other in others {
            let Some(from) = self.image(other) else { continue };
            for (from, to) in [(&from.read, &to.read), (&from.write, &to.write)] {
                for (from, to) in cells(from).zip(cells(to)) {
                    to.fetch_add(from.swap(0, AcqRel), AcqRel);
                }
            }
            from.storage.store(MERGED, Relaxed);
        }
        self.merge_seq.fetch_add(1, AcqRel);
    }

    /// Frees a record that was merged into another. Not one that has become another image's since.
    pub(crate) fn free_merged(&self, slot: ImageSlot) {
        if self.storage_of_image(slot) == MERGED {
            self.free_image(slot);
        }
    }

    /// Reads and writes on these images in more detail, for the status.
    #[must_use]
    pub fn image_requests(&self, images: &[ImageSlot]) -> [Requests; 2] {
        let records = || images.iter().filter_map(|slot| self.image(*slot));
        [
            requests(records().map(|record| &record.read)),
            requests(records().map(|record| &record.write)),
        ]
    }

    /// Requests of images that could not be counted, since the maps were made.
    #[must_use]
    pub fn uncounted_requests(&self) -> u64 {
        self.meta[0].uncounted.load(Relaxed)
    }

    /// All records that are in use.
    #[must_use]
    pub fn image_records(&self) -> Vec<ImageRecordInfo> {
        (0..)
            .zip(self.images.iter())
            .filter_map(|(slot, record)| {
                let owner = record.owner.load(Acquire);
                (owner != 0).then(|| ImageRecordInfo {
                    slot: ImageSlot(slot),
                    key: ImageKey::of(owner, record.file.load(Acquire)),
                    storage: record.storage.load(Relaxed),
                })
            })
            .collect()
    }

    /// The records of one VM that are in use.
    #[must_use]
    pub fn images_of_vm(&self, vm: VmSlot) -> Vec<ImageRecordInfo> {
        let mut images = self.image_records();
        images.retain(|image| image.vm() == vm);
        images
    }

    /// The records of an image to which its requests lead. More than one after a race: the kernel counts in any.
    pub fn images_of(&self, key: ImageKey) -> impl Iterator<Item = ImageSlot> {
        probes(key).filter(move |slot| self.image(*slot).is_some_and(|record| leads(record, key)))
    }

    /// Has an image counted by this layer. `None`: no record is free near its place.
    pub fn claim_image(&self, key: ImageKey, layer: Layer) -> Option<ImageSlot> {
        let mut taken = None;
        for slot in self.images_of(key) {
            if self.image(slot).is_some_and(|record| record.layer.load(Relaxed) == layer as u32) {
                taken = Some(slot);
            } else {
                // What was counted by another way was counted; from now on it is by this one.
                self.close_image(slot);
            }
        }
        taken.or_else(|| {
            let free = probes(key).find(|slot| {
                self.image(*slot).is_some_and(|record| {
                    record.owner.compare_exchange(0, key.owner(), AcqRel, Relaxed).is_ok()
                })
            })?;
            let record = self.image(free)?;
            record.layer.store(layer as u32, Relaxed);
            record.file.store(key.file, Release);
            Some(free)
        })
    }

    /// The disk to which an image belongs; 0 = none that is known.
    #[must_use]
    pub fn storage_of_image(&self, slot: ImageSlot) -> u32 {
        self.image(slot).map_or(0, |record| record.storage.load(Relaxed))
    }

    /// Notes to which disk an image belongs.
    pub fn assign_image(&self, slot: ImageSlot, storage: u32) {
        if let Some(record) = self.image(slot) {
            record.storage.store(storage, Relaxed);
        }
    }

    /// Has the next requests of the image counted in another record, and keeps what this one has.
    pub fn close_image(&self, slot: ImageSlot) {
        if let Some(record) = self.image(slot) {
            record.file.store(0, Release);
        }
    }

    /// Gives a record back with all that it has.
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
        record.owner.store(0, Release);
    }

    fn image(&self, slot: ImageSlot) -> Option<&SharedImageRecord> {
        self.images.get(usize::from(slot.0))
    }
}

fn cells(direction: &SharedDirectionCounters) -> impl Iterator<Item = &AtomicU64> {
    let numbers = [&direction.requests, &direction.bytes, &direction.latency_ns, &direction.errors];
    numbers.into_iter().chain(&direction.buckets)
}

/// Where an image's record can be, in the order in which it is looked for.
fn probes(key: ImageKey) -> impl Iterator<Item = ImageSlot> {
    (0..PROBES).filter_map(move |step| {
        let slot = (key.home_slot() as usize + step) % IMAGES;
        u16::try_from(slot).ok().map(ImageSlot)
    })
}

fn leads(record: &SharedImageRecord, key: ImageKey) -> bool {
    record.owner.load(Acquire) == key.owner() && record.file.load(Acquire) == key.file
}

fn requests<'a>(directions: impl Iterator<Item = &'a SharedDirectionCounters>) -> Requests {
    let mut requests = Requests::default();
    for direction in directions {
        requests.errors = requests.errors.wrapping_add(direction.errors.load(Relaxed));
        requests.latencies.add(direction.buckets.iter().map(|bucket| bucket.load(Relaxed)));
    }
    requests
}
