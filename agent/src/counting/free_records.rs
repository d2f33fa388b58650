//! The records of VMs and of threads that are free, and who may have them: a user has a share, root and libvirt have what there
//! is.

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};

use super::{occupancy::Occupancy, tracker::TrackError};
use crate::counters::{Holder, Lack, Shares, VmSlot};

/// What a VM record in use is.
#[derive(Clone, Copy, Debug)]
struct Held {
    tgid: u32,
    holder: Holder,
    blocks: usize,
}

/// The free records, in the order in which they were freed: one that an old view still shows is used again as late as possible.
#[derive(Debug)]
pub(super) struct FreeRecords {
    vms: VecDeque<u16>,
    blocks: VecDeque<u16>,
    /// The records in use, by process id.
    known: HashMap<u32, u16>,
    held: HashMap<u16, Held>,
    vm_shares: Shares,
    block_shares: Shares,
    /// Processes that found no VM record.
    refused: HashMap<u32, Holder>,
    /// VMs that found no block of thread records.
    short: HashSet<u16>,
}

impl FreeRecords {
    /// Nothing is in use but `used`: process id, VM record and number of blocks of each.
    pub(super) fn new(
        vms: VecDeque<u16>,
        blocks: VecDeque<u16>,
        used: impl IntoIterator<Item = (u32, u16, usize)>,
    ) -> Self {
        let mut free = Self {
            vm_shares: Shares::new(vms.len()),
            block_shares: Shares::new(blocks.len()),
            vms,
            blocks,
            known: HashMap::new(),
            held: HashMap::new(),
            refused: HashMap::new(),
            short: HashSet::new(),
        };
        for (tgid, slot, blocks) in used {
            free.known.entry(tgid).or_insert(slot);
            // Whose it is will be known with its first scan.
            free.held.insert(slot, Held { tgid, holder: Holder::Trusted, blocks });
            free.vm_shares.grow(1);
            free.vm_shares.take(Holder::Trusted, 1);
            free.block_shares.grow(blocks);
            free.block_shares.take(Holder::Trusted, blocks);
        }
        free
    }

    /// The VM record of a process, or a free one.
    pub(super) fn vm(&mut self, tgid: u32, holder: Holder) -> Result<VmSlot, TrackError> {
        if let Some(&slot) = self.known.get(&tgid) {
            self.set_holder(slot, holder);
            return Ok(VmSlot(slot));
        }
        let slot = if self.vm_shares.has_room(holder) { self.vms.pop_front() } else { None };
        let Some(slot) = slot else {
            self.refused.insert(tgid, holder);
            return Err(self.why(holder));
        };
        self.refused.remove(&tgid);
        self.vm_shares.take(holder, 1);
        self.known.insert(tgid, slot);
        self.held.insert(slot, Held { tgid, holder, blocks: 0 });
        Ok(VmSlot(slot))
    }

    fn why(&self, holder: Holder) -> TrackError {
        match self.vm_shares.lack(holder) {
            Lack::Account { account, most } => TrackError::AccountShare { account, most },
            Lack::Accounts { most } => TrackError::UsersShare { most },
            Lack::Table => TrackError::TooManyVms(self.vm_shares.size()),
        }
    }

    fn set_holder(&mut self, slot: u16, holder: Holder) {
        let Some(held) = self.held.get_mut(&slot).filter(|held| held.holder != holder) else {
            return;
        };
        let before = std::mem::replace(&mut held.holder, holder);
        let blocks = held.blocks;
        self.vm_shares.give_back(before, 1);
        self.vm_shares.take(holder, 1);
        self.block_shares.give_back(before, blocks);
        self.block_shares.take(holder, blocks);
    }

    /// For whom a VM is counted.
    pub(super) fn holder(&self, slot: VmSlot) -> Holder {
        self.held.get(&slot.0).map_or(Holder::Trusted, |held| held.holder)
    }

    /// A block of thread records for a VM.
    pub(super) fn block(&mut self, slot: VmSlot) -> Option<u16> {
        let held = self.held.get_mut(&slot.0)?;
        let block =
            if self.block_shares.has_room(held.holder) { self.blocks.pop_front() } else { None };
        if block.is_some() {
            held.blocks += 1;
            self.block_shares.take(held.holder, 1);
            self.short.remove(&slot.0);
        } else {
            self.short.insert(slot.0);
        }
        block
    }

    /// Takes the records of a VM back.
    pub(super) fn free(&mut self, slot: VmSlot, tgid: u32, blocks: Vec<u16>) {
        if let Some(held) = self.held.remove(&slot.0) {
            self.vm_shares.give_back(held.holder, 1);
            self.block_shares.give_back(held.holder, held.blocks);
        }
        self.short.remove(&slot.0);
        self.blocks.extend(blocks);
        self.vms.push_back(slot.0);
        if self.known.get(&tgid) == Some(&slot.0) {
            self.known.remove(&tgid);
        }
    }

    /// Forgets that a process went without: it has ended.
    pub(super) fn forget(&mut self, tgid: u32) {
        self.refused.remove(&tgid);
    }

    /// The processes that went without, and find a record now: those of root and libvirt first.
    pub(super) fn waiting(&self) -> Vec<u32> {
        let mut refused: Vec<_> =
            self.refused.iter().filter(|(_, holder)| self.vm_shares.has_room(**holder)).collect();
        refused.sort_unstable_by_key(|&(tgid, holder)| (holder, tgid));
        let mut waiting: Vec<u32> =
            refused.into_iter().map(|(tgid, _)| *tgid).take(self.vms.len()).collect();
        let short = self.short.iter().filter_map(|slot| self.held.get(slot));
        let mut short: Vec<_> = short
            .filter(|held| self.block_shares.has_room(held.holder))
            .map(|held| (held.holder, held.tgid))
            .collect();
        short.sort_unstable();
        waiting.extend(short.into_iter().map(|(_, tgid)| tgid).take(self.blocks.len()));
        waiting
    }

    pub(super) fn occupancy(&self) -> Occupancy {
        let mut refused: BTreeMap<Holder, (usize, String)> = BTreeMap::new();
        for &holder in self.refused.values() {
            let entry = refused.entry(holder).or_insert_with(|| (0, self.why(holder).to_string()));
            entry.0 += 1;
        }
        let mut short: BTreeMap<Holder, usize> = BTreeMap::new();
        for held in self.short.iter().filter_map(|slot| self.held.get(slot)) {
            *short.entry(held.holder).or_default() += 1;
        }
        let (vms, blocks) = (self.vm_shares.fill(), self.block_shares.fill());
        Occupancy { vms, blocks, refused, short }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{account::Account, counters::Fill};
    use Holder::Trusted;

    fn user(user: u32) -> Holder {
        Holder::Account(Account::User(user))
    }

    fn free(vms: u16, blocks: u16) -> FreeRecords {
        FreeRecords::new((1..=vms).collect(), (1..=blocks).collect(), [])
    }

    /// Takes VM records for these processes until one is refused. How many were taken.
    fn take(free: &mut FreeRecords, tgids: std::ops::Range<u32>, holder: Holder) -> usize {
        tgids.map_while(|tgid| free.vm(tgid, holder).ok()).count()
    }

    #[test]
    fn a_user_has_a_quarter_and_all_users_have_half() {
        let mut free = free(40, 8);
        assert_eq!(take(&mut free, 100..200, user(1)), 10);
        assert!(matches!(
            free.vm(200, user(1)),
            Err(TrackError::AccountShare { account: Account::User(1), most: 10 })
        ));
        assert_eq!(take(&mut free, 300..400, user(2)), 10);
        assert!(matches!(free.vm(400, user(3)), Err(TrackError::UsersShare { most: 20 })));
        assert_eq!(take(&mut free, 500..600, Trusted), 20);
        assert!(matches!(free.vm(600, Trusted), Err(TrackError::TooManyVms(40))));
        // A process that has a record keeps it.
        assert!(free.vm(100, user(1)).is_ok() && free.vm(500, Trusted).is_ok());
        let Occupancy { vms, refused, .. } = free.occupancy();
        assert_eq!(vms, Fill { size: 40, used: 40, of_users: 20 });
        let counts: Vec<_> = refused.iter().map(|(holder, (count, _))| (*holder, *count)).collect();
        assert_eq!(counts, [(Trusted, 2), (user(1), 2), (user(2), 1), (user(3), 1)]);
    }

    #[test]
    fn what_went_without_is_tried_again_and_libvirt_first() {
        let mut free = free(8, 8);
        take(&mut free, 10..12, user(1));
        take(&mut free, 20..26, Trusted);
        assert!(free.vm(12, user(1)).is_err() && free.vm(13, user(2)).is_err());
        assert!(free.vm(99, Trusted).is_err());
        assert!(free.waiting().is_empty(), "nothing is free");
        free.free(VmSlot(1), 10, vec![]);
        assert_eq!(free.waiting(), [99], "one record, and all may have it");
        assert!(free.vm(99, Trusted).is_ok());
        free.free(VmSlot(2), 11, vec![]);
        assert_eq!(free.waiting(), [12]);
        free.forget(12);
        assert_eq!(free.waiting(), [13]);
    }

    #[test]
    fn a_process_that_turns_out_to_be_libvirts_is_no_users() {
        let mut free = free(8, 8);
        let slot = free.vm(10, user(7)).unwrap();
        assert!(free.block(slot).is_some() && free.block(slot).is_some());
        assert!(free.block(slot).is_none(), "two of eight");
        assert_eq!(free.occupancy().short, BTreeMap::from([(user(7), 1)]));
        assert!(free.waiting().is_empty());
        assert_eq!(free.vm(10, Trusted).unwrap(), slot);
        assert_eq!(free.occupancy().vms.of_users + free.occupancy().blocks.of_users, 0);
        assert_eq!(free.waiting(), [10], "for its threads");
        assert!((0..6).all(|_| free.block(slot).is_some()));
        assert!(free.block(slot).is_none());
        free.free(slot, 10, (1..=8).collect());
        assert_eq!(
            free.occupancy(),
            Occupancy {
                vms: Fill { size: 8, used: 0, of_users: 0 },
                blocks: Fill { size: 8, used: 0, of_users: 0 },
                ..Occupancy::default()
            }
        );
    }

    #[test]
    fn records_from_before_a_restart_count_for_their_holder_once_it_is_known() {
        let mut free = FreeRecords::new((2..=8).collect(), (3..=8).collect(), [(10, 1, 2)]);
        let fill = |used, of_users| Fill { size: 8, used, of_users };
        assert_eq!(free.occupancy().vms, fill(1, 0));
        assert_eq!(free.vm(10, user(1)).unwrap(), VmSlot(1));
        assert_eq!((free.occupancy().vms, free.occupancy().blocks), (fill(1, 1), fill(2, 2)));
    }
}
