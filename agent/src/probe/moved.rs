//! Moves the records to tables of other sizes: which process has which VM record, and what was counted of each image. The
//! records of threads stay behind, for the agent registers each thread again with the kernel's own counters.

use std::{
    collections::{BTreeMap, HashSet},
    mem::offset_of,
};

use aya::{
    Ebpf,
    maps::{Array, Map, MapData},
};
use kvmeter_common::{
    BLOCK_LEN, ImageKey, ImageRecord, ThreadRecord, VM_BLOCKS, VmRecord,
    image::{MERGED, PROBES, buckets},
    names,
};

use super::{ProbeError, Sizes};

const THREAD_WORDS: usize = size_of::<ThreadRecord>() / 8;
const VM_WORDS: usize = size_of::<VmRecord>() / 8;
const IMAGE_WORDS: usize = size_of::<ImageRecord>() / 8;

type ThreadWords = [u64; THREAD_WORDS];
type VmWords = [u64; VM_WORDS];
type ImageWords = [u64; IMAGE_WORDS];

/// An old image record: its slot, what it had, and the slot of the new record.
type Place = (u32, ImageWords, u32);

/// Words of an image record from which on it counts.
const COUNTS: usize = offset_of!(ImageRecord, read) / 8;

/// Most merged records that are followed to the one that has the counts.
const MERGES: usize = 16;

/// Requests that were counted in an old record after it was copied: the slot of the new record, and the counts in the order of
/// the record's fields.
pub(crate) type LateCounts = (u32, Vec<u64>);

/// Records out of tables of other sizes, on their way to new ones.
pub(super) struct Moved {
    vms: BTreeMap<u32, VmWords>,
    images: BTreeMap<u32, ImageWords>,
    places: Vec<Place>,
    old_images: Array<MapData, ImageWords>,
}

impl Moved {
    /// Reads the old tables of VMs, threads and images, and finds the places in new ones.
    pub(super) fn read(
        vms: MapData,
        threads: MapData,
        images: MapData,
        sizes: Sizes,
    ) -> Result<Self, ProbeError> {
        let vms: Array<_, VmWords> = Map::Array(vms).try_into().map_err(ProbeError::load)?;
        let threads: Array<_, ThreadWords> =
            Map::Array(threads).try_into().map_err(ProbeError::load)?;
        let old_images: Array<_, ImageWords> =
            Map::Array(images).try_into().map_err(ProbeError::load)?;

        let has_owner = |slot: u32| {
            threads.get(&slot, 0).is_ok_and(|words| words[offset_of!(ThreadRecord, owner) / 8] != 0)
        };
        let mut kept = BTreeMap::new();
        for slot in 1..vms.len().min(u32::try_from(sizes.vms).unwrap_or(u32::MAX)) {
            let words = vms.get(&slot, 0).map_err(ProbeError::load)?;
            // The programs saw the end of every thread, so a VM without threads has ended.
            if words[offset_of!(VmRecord, tgid) / 8] != 0 && records_of(&words).any(has_owner) {
                kept.insert(slot, moved(&words));
            }
        }
        let mut found = BTreeMap::new();
        for slot in 0..old_images.len() {
            let words = old_images.get(&slot, 0).map_err(ProbeError::load)?;
            if words[0] != 0 {
                found.insert(slot, words);
            }
        }
        let live = kept.keys().filter_map(|slot| u16::try_from(*slot).ok()).collect();
        let (images, places) = place(&found, &live, sizes.images);
        Ok(Self { vms: kept, images, places, old_images })
    }

    /// Writes the records into the new tables.
    pub(super) fn write(&self, ebpf: &mut Ebpf) -> Result<(), ProbeError> {
        if let Some(map) = ebpf.map_mut(names::VM) {
            let mut vms = Array::<_, VmWords>::try_from(map).map_err(ProbeError::load)?;
            for (slot, words) in &self.vms {
                vms.set(*slot, words, 0).map_err(ProbeError::load)?;
            }
        }
        if let Some(map) = ebpf.map_mut(names::IMAGE) {
            let mut images = Array::<_, ImageWords>::try_from(map).map_err(ProbeError::load)?;
            for (slot, words) in &self.images {
                images.set(*slot, words, 0).map_err(ProbeError::load)?;
            }
        }
        tracing::info!(
            vms = self.vms.len(),
            images = self.images.len(),
            "The records have moved to tables of the configured sizes"
        );
        Ok(())
    }

    /// What the old programs have counted since the tables were read. To be called when they are detached.
    pub(super) fn late(&self) -> Vec<LateCounts> {
        let late = |(from, before, to): &Place| {
            let now = self.old_images.get(from, 0).ok()?;
            // A record that was freed meanwhile counts nothing more.
            let counts: Vec<u64> =
                (COUNTS..IMAGE_WORDS).map(|at| now[at].saturating_sub(before[at])).collect();
            (now[0] == before[0] && counts.iter().any(|count| *count > 0)).then_some((*to, counts))
        };
        self.places.iter().filter_map(late).collect()
    }
}

/// The slots of the thread records of a VM.
fn records_of(words: &VmWords) -> impl Iterator<Item = u32> {
    let count = words[offset_of!(VmRecord, block_count) / 8];
    let count = usize::try_from(count).unwrap_or(VM_BLOCKS).min(VM_BLOCKS);
    let first = offset_of!(VmRecord, blocks) / 8;
    let blocks: Vec<u64> =
        (0..count).map(|at| words[first + at / 4] >> (at % 4 * 16) & 0xffff).collect();
    let len = BLOCK_LEN as u64;
    let records = blocks.into_iter().flat_map(move |block| block * len..(block + 1) * len);
    records.filter_map(|slot| u32::try_from(slot).ok())
}

/// The record of a VM without its threads: until they are registered, its CPU time is the kernel's own sum.
fn moved(words: &VmWords) -> VmWords {
    let mut moved = [0; VM_WORDS];
    for field in [
        offset_of!(VmRecord, tgid),
        offset_of!(VmRecord, high_water),
        offset_of!(VmRecord, new_images),
        offset_of!(VmRecord, new_images_limit),
    ] {
        moved[field / 8] = words[field / 8];
    }
    moved[offset_of!(VmRecord, flags) / 8] =
        VmRecord::MOVED | words[offset_of!(VmRecord, flags) / 8] & VmRecord::NO_IMAGES;
    moved[offset_of!(VmRecord, unrecorded) / 8] = 1;
    moved
}

/// vmStorageIndex of an image's disk.
const fn storage(words: &ImageWords) -> u32 {
    // The layer is the low half of the word.
    (words[offset_of!(ImageRecord, layer) / 8] >> 32) as u32
}

/// Places the image records of these VMs in a table of `len` records: each open one in one of its two buckets, closed ones
/// where there is room. The counts of a record that was merged go to the one that it was merged into. What finds no room is left
/// out.
fn place(
    found: &BTreeMap<u32, ImageWords>,
    live: &HashSet<u16>,
    len: usize,
) -> (BTreeMap<u32, ImageWords>, Vec<Place>) {
    let buckets = buckets(len);
    let mut table: BTreeMap<u32, ImageWords> = BTreeMap::new();
    let mut places: BTreeMap<u32, u32> = BTreeMap::new();
    let is_live = |words: &ImageWords| live.contains(&ImageKey::of(words[0], words[1]).vm);
    let is_merged = |words: &ImageWords| storage(words) >= MERGED;
    let (open, closed): (Vec<_>, Vec<_>) = found
        .iter()
        .filter(|(_, words)| is_live(words) && !is_merged(words))
        .partition(|(_, words)| words[1] != 0);
    for (from, words) in open {
        let hash = ImageKey::of(words[0], words[1]).hash();
        let slot = |probe| ImageKey::slot(hash, probe, buckets);
        let taken = (0..PROBES)
            .fold(0, |taken, probe| taken | u32::from(table.contains_key(&slot(probe))) << probe);
        if let Some(probe) = ImageKey::free_probe(taken) {
            table.insert(slot(probe), *words);
            places.insert(*from, slot(probe));
        }
    }
    let mut next = 0;
    for (from, words) in closed {
        while table.contains_key(&next) {
            next += 1;
        }
        if (next as usize) < len {
            table.insert(next, *words);
            places.insert(*from, next);
        }
    }
    for (from, words) in found.iter().filter(|(_, words)| is_live(words) && is_merged(words)) {
        let mut into = storage(words) - MERGED;
        for _ in 0..MERGES {
            match found.get(&into).map(storage).and_then(|storage| storage.checked_sub(MERGED)) {
                Some(next) => into = next,
                None => break,
            }
        }
        let vm = |words: &ImageWords| ImageKey::of(words[0], words[1]).vm;
        if let Some(&to) = places.get(&into)
            && let Some(target) = table.get_mut(&to).filter(|target| vm(target) == vm(words))
        {
            for (count, more) in target[COUNTS..].iter_mut().zip(&words[COUNTS..]) {
                *count = count.wrapping_add(*more);
            }
            places.insert(*from, to);
        }
    }
    let places = places.into_iter().map(|(from, to)| (from, found[&from], to)).collect();
    (table, places)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn image(vm: u16, file: u64, storage: u32, reads: u64) -> ImageWords {
        let mut words = [0; IMAGE_WORDS];
        let key = ImageKey { vm, device: 3, file };
        (words[0], words[1]) = (key.owner(), file);
        words[offset_of!(ImageRecord, layer) / 8] = u64::from(storage) << 32 | 1;
        words[COUNTS] = reads;
        words
    }

    #[test]
    fn every_image_is_found_in_the_new_table_with_its_counts() {
        for len in [512, 4096, 65_536] {
            let found: BTreeMap<_, _> = (0..300_u32)
                .map(|number| (number * 7, image(1, u64::from(number) + 9, 1, u64::from(number))))
                .collect();
            let (table, places) = place(&found, &HashSet::from([1]), len);
            assert_eq!((table.len(), places.len()), (300, 300), "{len}");
            for (from, words, to) in places {
                assert_eq!((table[&to], found[&from]), (words, words));
                let hash = ImageKey::of(words[0], words[1]).hash();
                assert!((0..PROBES).any(|probe| ImageKey::slot(hash, probe, buckets(len)) == to));
            }
        }
    }

    #[test]
    fn closed_and_merged_records_keep_their_counts_and_those_of_no_vm_are_left_out() {
        let found = BTreeMap::from([
            (5, image(1, 77, 1, 1)),
            (6, image(1, 0, 1, 10)),
            // Merged into 6, by way of 8.
            (7, image(1, 0, MERGED | 8, 100)),
            (8, image(1, 0, MERGED | 6, 1000)),
            (9, image(2, 78, 1, 5)),
        ]);
        let (table, places) = place(&found, &HashSet::from([1]), 256);
        assert_eq!(places.iter().map(|(from, _, _)| *from).collect::<Vec<_>>(), [5, 6, 7, 8]);
        assert_eq!(table.values().map(|words| words[COUNTS]).sum::<u64>(), 1111);
        assert_eq!(table[&places[1].2][COUNTS], 1110);
    }

    #[test]
    fn what_finds_no_room_is_left_out() {
        let found: BTreeMap<_, _> =
            (0..2000).map(|number| (number, image(1, u64::from(number) + 1, 1, 1))).collect();
        let (table, places) = place(&found, &HashSet::from([1]), 256);
        assert_eq!(table.len(), places.len());
        assert!(table.len() <= 256 && table.keys().all(|slot| *slot < 256));
    }

    #[test]
    fn the_threads_of_a_vm_are_those_of_its_blocks() {
        let mut words = [0; VM_WORDS];
        words[offset_of!(VmRecord, block_count) / 8] = 5;
        let first = offset_of!(VmRecord, blocks) / 8;
        words[first] = 4 << 48 | 3 << 32 | 2 << 16 | 1;
        words[first + 1] = 8191;
        let records: Vec<u32> = records_of(&words).collect();
        assert_eq!(records.len(), 40);
        assert_eq!((records[0], records[31], records[32], records[39]), (8, 39, 65_528, 65_535));
    }
}
