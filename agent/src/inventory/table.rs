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
    blocks: Vec<Arc<[Arc<Vm>]>>,
    len: usize,
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
        self.blocks.iter().flat_map(|block| block.iter()).map(|vm| &**vm)
    }

    /// The VMs whose index is `index` or above, in ascending order. Two binary searches find the first.
    pub fn iter_from(&self, index: u32) -> impl Iterator<Item = &Vm> {
        let block = self.block_of(index);
        let first = self
            .blocks
            .get(block)
            .map_or(&[][..], |block| &block[block.partition_point(|vm| vm.index.0 < index)..]);
        let rest = self.blocks.get(block + 1..).unwrap_or_default();
        first.iter().chain(rest.iter().flat_map(|block| block.iter())).map(|vm| &**vm)
    }

    /// The VM with this index.
    #[must_use]
    pub fn get(&self, index: VmIndex) -> Option<&Vm> {
        self.iter_from(index.0).next().filter(|vm| vm.index == index)
    }

    /// Puts a VM in the place of the one with its index, or adds it. Whether it was added.
    pub fn insert(&mut self, vm: Arc<Vm>) -> bool {
        let index = vm.index.0;
        let at = self.block_of(index).min(self.blocks.len().saturating_sub(1));
        let Some(block) = self.blocks.get(at) else {
            self.blocks.push(Arc::from([vm]));
            self.len = 1;
            return true;
        };
        let place = block.partition_point(|vm| vm.index.0 < index);
        let is_new = block.get(place).is_none_or(|known| known.index.0 != index);
        let rest = &block[if is_new { place } else { place + 1 }..];
        let all = || block[..place].iter().cloned().chain([vm]).chain(rest.iter().cloned());
        if is_new && block.len() == BLOCK {
            let all: Vec<_> = all().collect();
            // Indexes are given in ascending order: a block at the end stays full.
            let half = if place == BLOCK { BLOCK } else { BLOCK / 2 };
            let (low, high) = all.split_at(half);
            self.blocks.splice(at..=at, [Arc::from(low), Arc::from(high)]);
        } else {
            self.blocks[at] = all().collect();
        }
        self.len += usize::from(is_new);
        is_new
    }

    /// Takes a VM out. Whether it was there.
    pub fn remove(&mut self, index: VmIndex) -> bool {
        let at = self.block_of(index.0);
        let Some(block) = self.blocks.get(at) else { return false };
        if block.iter().all(|vm| vm.index != index) {
            return false;
        }
        if block.len() == 1 {
            self.blocks.remove(at);
        } else {
            self.blocks[at] = block.iter().filter(|vm| vm.index != index).cloned().collect();
        }
        self.len -= 1;
        true
    }

    /// The first block whose last index is `index` or above.
    fn block_of(&self, index: u32) -> usize {
        self.blocks.partition_point(|block| block.last().is_none_or(|vm| vm.index.0 < index))
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
            prop_assert_eq!(table.iter_from(from).map(pairs).collect::<Vec<_>>(), later);
            prop_assert_eq!(table.get(VmIndex(from)).map(|vm| pairs(vm).1), map.get(&from).copied());
            prop_assert!(table.blocks.iter().all(|block| (1..=BLOCK).contains(&block.len())));
        }
    }
}
