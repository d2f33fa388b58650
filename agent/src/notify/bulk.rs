//! Changes that are reported together: all of one kind within a window.

use std::collections::{BTreeMap, BTreeSet};

use super::notice::of_many;
use crate::{
    agentx::Notice,
    inventory::Change,
    mib::{smi::Notification, vm_mib::notification},
};

/// The list of a larger index would fit into no PDU; no host has as many VMs.
const LAST_INDEX: u32 = 8 * 60_000;

/// The vmIndexes of the VMs of each notification in this window, by its number.
#[derive(Debug, Default)]
pub(super) struct Bulk {
    affected: BTreeMap<u32, (&'static Notification, BTreeSet<u32>)>,
}

impl Bulk {
    /// Adds a change to the window. Returns whether there is a notification for it.
    pub(super) fn gather(&mut self, change: &Change) -> bool {
        let index = change.index.0;
        match notification::bulk(change.event) {
            Some(bulk) if index <= LAST_INDEX => {
                let (_, affected) =
                    self.affected.entry(bulk.number).or_insert((bulk, BTreeSet::new()));
                affected.insert(index);
                true
            }
            _ => false,
        }
    }

    /// Returns one notification for each kind, and empties the window.
    pub(super) fn take(&mut self) -> Vec<Notice> {
        let affected = std::mem::take(&mut self.affected).into_values();
        affected.filter_map(|(bulk, indexes)| of_many(bulk, list(&indexes))).collect()
    }
}

/// Encodes a VirtualMachineList: vmIndex 1 is the most significant bit of the first octet. As short as the largest index
/// allows.
fn list(indexes: &BTreeSet<u32>) -> Vec<u8> {
    let last = indexes.last().copied().unwrap_or(0);
    let mut octets = vec![0; usize::try_from(last.div_ceil(8)).unwrap_or(0)];
    for index in indexes.iter().filter_map(|index| index.checked_sub(1)) {
        if let Some(octet) = usize::try_from(index / 8).ok().and_then(|at| octets.get_mut(at)) {
            *octet |= 0x80 >> (index % 8);
        }
    }
    octets
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_are_as_short_as_they_can_be() {
        for (indexes, octets) in [
            (&[1][..], &[0x80][..]),
            (&[8], &[0x01]),
            (&[9], &[0, 0x80]),
            (&[1, 2, 16], &[0xc0, 0x01]),
            (&[], &[]),
        ] {
            assert_eq!(list(&indexes.iter().copied().collect()), octets, "{indexes:?}");
        }
    }
}
