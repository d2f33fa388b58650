//! vmIndex: small, dense, and the same for the same VM.

use std::collections::{BTreeSet, HashMap};

use super::VmIndex;

/// Who a VM is: what stays the same while its process, name and state change.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub(super) enum Identity {
    /// Its UUID. A VM that is started anew is the same VM.
    Uuid([u8; 16]),
    /// A VM that has no UUID is its process.
    Process {
        /// Process id.
        pid: u32,
        /// Start in clock ticks since boot, which tells one process with that id from another.
        start_ticks: u64,
    },
}

/// Gives each VM the smallest index that is free. A VM with a UUID keeps its index while it is away, a
/// process gives it back with its end.
#[derive(Debug, Default)]
pub(super) struct Indexes {
    given: HashMap<Identity, VmIndex>,
    taken: BTreeSet<u32>,
}

impl Indexes {
    /// The index of this VM, its own or a new one.
    pub(super) fn assign(&mut self, identity: Identity) -> VmIndex {
        if let Some(&index) = self.given.get(&identity) {
            return index;
        }
        // The first number that is missing in the ascending set.
        let free = (1..).zip(&self.taken).find(|&(number, &taken)| number != taken);
        let number =
            free.map_or_else(|| self.taken.last().map_or(1, |last| last + 1), |(number, _)| number);
        self.taken.insert(number);
        self.given.insert(identity, VmIndex(number));
        VmIndex(number)
    }

    /// Takes back the index of a VM that cannot come again.
    pub(super) fn release(&mut self, identity: Identity) {
        if matches!(identity, Identity::Process { .. })
            && let Some(VmIndex(number)) = self.given.remove(&identity)
        {
            self.taken.remove(&number);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn process(pid: u32) -> Identity {
        Identity::Process { pid, start_ticks: 1 }
    }

    #[test]
    fn indexes_are_dense_and_stay() {
        let mut indexes = Indexes::default();
        let given =
            [process(7), Identity::Uuid([1; 16]), process(9)].map(|id| indexes.assign(id).0);
        assert_eq!(given, [1, 2, 3]);
        assert_eq!(indexes.assign(process(7)).0, 1);
        indexes.release(process(7));
        assert_eq!(indexes.assign(process(11)).0, 1, "a process that is gone gives its index back");
        indexes.release(Identity::Uuid([1; 16]));
        assert_eq!(indexes.assign(process(12)).0, 4);
        assert_eq!(indexes.assign(Identity::Uuid([1; 16])).0, 2, "a VM with a UUID comes back");
    }
}
