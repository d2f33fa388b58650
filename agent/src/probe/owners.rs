//! Which threads have records, read from the pinned tables: before they are adopted, and into a new map of thread ids.

use std::{collections::BTreeMap, mem::offset_of};

use aya::{
    Ebpf,
    maps::{Array, Map, MapData},
};
use kvmeter_common::{
    BLOCK_LEN, Owner, SLOTS_PER_ELEMENT, ThreadRecord, VM_BLOCKS, VmRecord, names,
};

use super::ProbeError;

type VmWords = [u64; size_of::<VmRecord>() / 8];
type ThreadWords = [u64; size_of::<ThreadRecord>() / 8];

/// The owners of all thread records of VMs, with the slots of the records. The programs see the end of every thread: a VM without
/// any has ended.
pub(super) fn owners(vms: MapData, threads: MapData) -> Result<Vec<(u16, Owner)>, ProbeError> {
    let vms: Array<_, VmWords> = Map::Array(vms).try_into().map_err(ProbeError::load)?;
    let threads: Array<_, ThreadWords> =
        Map::Array(threads).try_into().map_err(ProbeError::load)?;
    let mut owners = Vec::new();
    // Record 0 is that of the self-test.
    for vm in 1..vms.len() {
        let words = vms.get(&vm, 0).map_err(ProbeError::load)?;
        if words[offset_of!(VmRecord, tgid) / 8] == 0 {
            continue;
        }
        for slot in records_of(&words).filter(|slot| u32::from(*slot) < threads.len()) {
            let words = threads.get(&u32::from(slot), 0).map_err(ProbeError::load)?;
            let owner = Owner(words[offset_of!(ThreadRecord, owner) / 8]);
            if owner.is_of_thread() {
                owners.push((slot, owner));
            }
        }
    }
    Ok(owners)
}

/// The slots of the thread records of a VM.
fn records_of(words: &VmWords) -> impl Iterator<Item = u16> {
    let count = words[offset_of!(VmRecord, block_count) / 8];
    let count = usize::try_from(count).unwrap_or(VM_BLOCKS).min(VM_BLOCKS);
    let first = offset_of!(VmRecord, blocks) / 8;
    let blocks: Vec<u64> =
        (0..count).map(|at| words[first + at / 4] >> (at % 4 * 16) & 0xffff).collect();
    let len = BLOCK_LEN as u64;
    let records = blocks.into_iter().flat_map(move |block| block * len..(block + 1) * len);
    records.filter_map(|slot| u16::try_from(slot).ok())
}

/// Enters the threads into a new map of thread ids, which no program uses yet.
pub(super) fn enter(ebpf: &mut Ebpf, owners: &[(u16, Owner)]) -> Result<(), ProbeError> {
    let Some(map) = ebpf.map_mut(names::TID_SLOT) else { return Ok(()) };
    let mut ids = Array::<_, [u16; SLOTS_PER_ELEMENT]>::try_from(map).map_err(ProbeError::load)?;
    for (element, slots) in elements(owners) {
        // The agent frees the records of ids beyond this map.
        if element < ids.len() {
            ids.set(element, slots, 0).map_err(ProbeError::load)?;
        }
    }
    Ok(())
}

/// The elements of the map of thread ids that are not zero.
fn elements(owners: &[(u16, Owner)]) -> BTreeMap<u32, [u16; SLOTS_PER_ELEMENT]> {
    let len = u32::try_from(SLOTS_PER_ELEMENT).unwrap_or(1);
    let mut elements: BTreeMap<u32, [u16; SLOTS_PER_ELEMENT]> = BTreeMap::new();
    for (slot, owner) in owners {
        let tid = owner.tid();
        elements.entry(tid / len).or_default()[(tid % len) as usize] = *slot;
    }
    elements
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_threads_of_a_vm_are_those_of_its_blocks() {
        let mut words = [0; size_of::<VmRecord>() / 8];
        words[offset_of!(VmRecord, block_count) / 8] = 5;
        let first = offset_of!(VmRecord, blocks) / 8;
        words[first] = 4 << 48 | 3 << 32 | 2 << 16 | 1;
        words[first + 1] = 8191;
        let records: Vec<u16> = records_of(&words).collect();
        assert_eq!(records.len(), 40);
        assert_eq!((records[0], records[31], records[32], records[39]), (8, 39, 65_528, 65_535));
    }

    #[test]
    fn threads_share_elements_of_the_map_of_thread_ids() {
        let owner = |tid, flags| Owner(Owner::new(tid, 1).0 | flags);
        let owners = [
            (8, owner(100, Owner::DYING | Owner::ENDED)),
            (9, owner(101, Owner::VCPU)),
            (10, owner(103, Owner::DYING)),
            (65_535, owner(4_194_303, 0)),
        ];
        let expected = BTreeMap::from([(25, [8, 9, 0, 10]), (1_048_575, [0, 0, 0, 65_535])]);
        assert_eq!(elements(&owners), expected);
    }
}
