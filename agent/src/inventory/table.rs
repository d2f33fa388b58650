//! The VMs of one view in the order of vmIndex, shared with the views before and after it as far as nothing changed.

use std::sync::Arc;

use super::{Vm, VmIndex};

/// VMs of one block. A change copies the pointers of one block and one pointer for each block.
const BLOCK: usize = 32;

/// The VMs in ascending order of [`Vm::index`], no index twice. A clone costs one pointer for each block of VMs;
/// a change copies the block of the VM that changed and shares all others.
#[derive(Clone, Debug, Default)]
pub struct VmTable {
    /// In ascending order, none of them empty.
    blocks: Vec<Block>,
    len: usize,
}

/// Some VMs in ascending order.
#[derive(Clone, Debug)]
struct Block {
    /// The index of the last one. The search for a block stays within the list of blocks, and that within a block reads
    /// no VM: each VM read would be a miss of the cache.
    last: u32,
    vms: Arc<[Indexed]>,
}

/// A VM with its index.
#[derive(Clone, Debug)]
struct Indexed {
    index: u32,
    vm: Arc<Vm>,
}

impl VmTable {
    /// The number of VMs.
    #[must_use]
    pub const fn len(&self) -> usize {
        self.len
    }

    /// Whether there is no VM.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The VMs in ascending order.
    pub fn iter(&self) -> impl Iterator<Item = &Vm> {
        self.blocks.iter().flat_map(|block| block.vms.iter()).map(|indexed| &*indexed.vm)
    }

    /// The first VM whose index is `index` or above.
    #[must_use]
    pub fn first_from(&self, index: u32) -> Option<&Vm> {
        let block = self.blocks.get(self.block_of(index))?;
        // The last VM of the block has this index or one above.
        block.vms.get(block.place_of(index)).map(|found| &*found.vm)
    }

    /// The first result for a VM whose index is `index` or above, in ascending order. Two binary searches find the first
    /// VM.
    pub fn find_map_from<'a, T>(
        &'a self,
        index: u32,
        mut find: impl FnMut(&'a Vm) -> Option<T>,
    ) -> Option<T> {
        let (first, rest) = self.blocks.get(self.block_of(index)..)?.split_first()?;
        let mut find = |found: &'a Indexed| find(&found.vm);
        first.vms[first.place_of(index)..]
            .iter()
            .find_map(&mut find)
            .or_else(|| rest.iter().find_map(|block| block.vms.iter().find_map(&mut find)))
    }

    /// The VM with this index.
    #[must_use]
    pub fn get(&self, index: VmIndex) -> Option<&Vm> {
        self.first_from(index.0).filter(|vm| vm.index == index)
    }

    /// Puts a VM in the place of the one with its index, or adds it. Whether it was added.
    pub fn insert(&mut self, vm: Arc<Vm>) -> bool {
        let index = vm.index.0;
        let vm = Indexed { index, vm };
        let at = self.block_of(index).min(self.blocks.len().saturating_sub(1));
        let Some(block) = self.blocks.get(at) else {
            self.blocks.extend(Block::of([vm]));
            self.len = 1;
            return true;
        };
        let place = block.place_of(index);
        let vms = &block.vms;
        let is_new = vms.get(place).is_none_or(|known| known.index != index);
        let rest = &vms[if is_new { place } else { place + 1 }..];
        let all = || vms[..place].iter().cloned().chain([vm]).chain(rest.iter().cloned());
        if is_new && vms.len() == BLOCK {
            let mut low: Vec<_> = all().collect();
            // Indexes are given in ascending order: a block at the end stays full.
            let high = low.split_off(if place == BLOCK { BLOCK } else { BLOCK / 2 });
            self.blocks.splice(at..=at, [low, high].into_iter().filter_map(Block::of));
        } else {
            let changed = Block::of(all());
            self.blocks.splice(at..=at, changed);
        }
        self.len += usize::from(is_new);
        is_new
    }

    /// Takes a VM out. Whether it was there.
    pub fn remove(&mut self, index: VmIndex) -> bool {
        let at = self.block_of(index.0);
        let Some(block) = self.blocks.get(at) else { return false };
        if block.vms.iter().all(|vm| vm.index != index.0) {
            return false;
        }
        let rest = Block::of(block.vms.iter().filter(|vm| vm.index != index.0).cloned());
        self.blocks.splice(at..=at, rest);
        self.len -= 1;
        true
    }

    /// The first block whose last index is `index` or above.
    fn block_of(&self, index: u32) -> usize {
        self.blocks.partition_point(|block| block.last < index)
    }
}

impl Block {
    /// These VMs; `None` without one.
    fn of(vms: impl IntoIterator<Item = Indexed>) -> Option<Self> {
        let vms: Arc<[Indexed]> = vms.into_iter().collect();
        Some(Self { last: vms.last()?.index, vms })
    }

    /// The place of the first VM whose index is `index` or above.
    fn place_of(&self, index: u32) -> usize {
        self.vms.partition_point(|vm| vm.index < index)
    }
}

impl FromIterator<Vm> for VmTable {
    /// Of two VMs with the same index the later one stays.
    fn from_iter<T: IntoIterator<Item = Vm>>(vms: T) -> Self {
        let mut table = Self::default();
        for vm in vms {
            table.insert(Arc::new(vm));
        }
        table
    }
}

impl PartialEq for VmTable {
    fn eq(&self, other: &Self) -> bool {
        self.len == other.len && self.iter().eq(other.iter())
    }
}

impl Eq for VmTable {}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    fn vm(index: u32, name: u32) -> Arc<Vm> {
        Arc::new(Vm { index: VmIndex(index), name: name.to_string(), ..Vm::default() })
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn a_table_is_an_ordered_map(
            steps in prop::collection::vec((1_u32..200, any::<bool>()), 0..600),
            from in 0_u32..220,
        ) {
            let (mut table, mut map) = (VmTable::default(), BTreeMap::new());
            let mut before = table.clone();
            let mut before_len = 0;
            for (at, (index, inserts)) in (0..).zip(steps) {
                if at % 50 == 0 {
                    (before, before_len) = (table.clone(), map.len());
                }
                if inserts {
                    prop_assert_eq!(table.insert(vm(index, at)), map.insert(index, at).is_none());
                } else {
                    prop_assert_eq!(table.remove(VmIndex(index)), map.remove(&index).is_some());
                }
                prop_assert_eq!(before.iter().count(), before_len, "a view stays as it is");
            }
            let pairs = |vm: &Vm| (vm.index.0, vm.name.parse().unwrap_or(u32::MAX));
            prop_assert_eq!(table.len(), map.len());
            let all: Vec<_> = map.iter().map(|(index, name)| (*index, *name)).collect();
            prop_assert_eq!(table.iter().map(pairs).collect::<Vec<_>>(), all.clone());
            let later: Vec<_> = all.into_iter().filter(|(index, _)| *index >= from).collect();
            let mut seen = Vec::new();
            let end = table.find_map_from(from, |vm| {
                seen.push(pairs(vm));
                (seen.len() == 100).then_some(())
            });
            prop_assert_eq!(end.is_some(), later.len() >= 100);
            prop_assert_eq!(table.first_from(from).map(pairs), later.first().copied());
            prop_assert_eq!(seen, later.into_iter().take(100).collect::<Vec<_>>());
            prop_assert_eq!(table.get(VmIndex(from)).map(|vm| pairs(vm).1), map.get(&from).copied());
            prop_assert!(table.blocks.iter().all(|block| (1..=BLOCK).contains(&block.vms.len())));
        }
    }
}
