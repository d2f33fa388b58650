//! vmIndex, vmStorageIndex and vmNetworkIndex: small, dense, and the same for the same thing until the host
//! reboots, over restarts of the agent.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, VecDeque},
    time::{Duration, Instant},
};

use serde::{Deserialize, Serialize};
use thiserror::Error;
use uuid::Uuid;

use super::{VmIndex, VmUuid};

/// Who a VM is: what stays the same while its process, name and state change.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub(super) enum Identity {
    /// Its UUID. A VM that is started again is the same VM.
    Uuid(VmUuid),
    /// A VM that has no UUID, or one that another VM has too, is its process.
    Process {
        /// Process id.
        pid: u32,
        /// Start in clock ticks since boot, which tells one process with that id from another.
        start_ticks: u64,
    },
}

/// A part of a VM that has an index of its own.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Part<'a> {
    /// A disk, by its name in the guest.
    Disk(&'a str),
    /// A network interface, by its address.
    Nic(&'a str),
}

/// Gives each thing the smallest index that is free. A VM with a UUID, and what belongs to it, keeps its indexes
/// while it is away, unless more than [`MAX_AWAY`] others have gone since; a process gives them back with its end. Then they
/// rest for [`REST`].
#[derive(Debug, Default)]
pub(super) struct Indexes {
    given: HashMap<Identity, Given>,
    free: Free,
    /// Indexes that were given back, with the time from which they are free.
    resting: VecDeque<(Instant, u32)>,
    /// VMs that an earlier agent knew, and that have not been found yet.
    unseen: BTreeSet<Identity>,
    /// When those of them have gone that have not been found until then; `None` = not all processes have been looked at.
    unseen_until: Option<Instant>,
    /// VMs with a UUID that are away, the one that has been away longest first, by a number that grows.
    away: BTreeMap<u64, Identity>,
    is_new: bool,
}

/// Time for which the index of a VM that is gone is not given again: a notification or a poll under way is about the VM that
/// had it, and a bulk notification gathers changes for up to a minute.
const REST: Duration = Duration::from_secs(61);

/// Most VMs that keep their indexes while they are away. A host that gives each VM a new UUID would otherwise give ever larger
/// indexes, and with them ever longer bulk notifications.
const MAX_AWAY: usize = 1024;

/// The free indexes of VMs, as ranges: to find the smallest costs the logarithm of the number of gaps.
#[derive(Debug)]
struct Free {
    /// Last index of each range, by the first. Two ranges are never neighbours.
    ranges: BTreeMap<u32, u32>,
}

/// The indexes of one VM and of its parts.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
struct Given {
    index: u32,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    disks: BTreeMap<String, u32>,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    nics: BTreeMap<String, u32>,
    /// Its number in [`Indexes::away`].
    #[serde(skip)]
    away: Option<u64>,
}

/// The indexes that outlive the agent.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
pub struct SavedIndexes {
    /// Of VMs with a UUID.
    vms: BTreeMap<Uuid, Given>,
    /// Of VMs that are their process.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    processes: Vec<SavedProcess>,
    /// Of VMs that have gone, and are not to be given again yet.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    resting: Vec<u32>,
}

/// The indexes of a VM that is its process.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
struct SavedProcess {
    pid: u32,
    start_ticks: u64,
    #[serde(flatten)]
    given: Given,
}

/// An index that a file cannot have.
#[derive(Clone, Copy, Debug, Error, Eq, PartialEq)]
#[error("it gives the index {0} twice, or is none")]
pub struct BadIndex(u32);

impl SavedIndexes {
    /// Whether each index is one that a MIB can have, and none is given twice.
    ///
    /// # Errors
    ///
    /// The first index that is not.
    pub fn check(&self) -> Result<(), BadIndex> {
        let mut taken = BTreeSet::new();
        let of_processes = self.processes.iter().map(|process| &process.given);
        for given in self.vms.values().chain(of_processes) {
            check(given.index, &mut taken)?;
            for parts in [&given.disks, &given.nics] {
                let mut taken = BTreeSet::new();
                parts.values().try_for_each(|&index| check(index, &mut taken))?;
            }
        }
        self.resting.iter().try_for_each(|&index| check(index, &mut taken))
    }
}

impl Indexes {
    /// Takes over what an earlier agent has given. A process that has ended meanwhile is only told by not being found.
    pub(super) fn of_saved(saved: SavedIndexes, now: Instant) -> Self {
        let SavedIndexes { vms, processes, resting } = saved;
        let of_vms = vms.into_iter().map(|(uuid, given)| (Identity::Uuid(uuid.into()), given));
        let of_processes = processes.into_iter().map(|SavedProcess { pid, start_ticks, given }| {
            (Identity::Process { pid, start_ticks }, given)
        });
        let given: HashMap<_, _> = of_vms.chain(of_processes).collect();
        let taken = given.values().map(|given| given.index).chain(resting.iter().copied());
        let free = Free::without(&taken.collect());
        let unseen = given.keys().copied().collect();
        let mut indexes = Self { given, free, unseen, ..Self::default() };
        resting.into_iter().for_each(|index| indexes.rest(index, now));
        indexes
    }

    /// What is to outlive the agent.
    pub(super) fn to_saved(&self) -> SavedIndexes {
        let mut saved = SavedIndexes::default();
        for (identity, given) in &self.given {
            let given = Given { away: None, ..given.clone() };
            match *identity {
                Identity::Uuid(uuid) => {
                    saved.vms.insert(uuid.to_uuid(), given);
                }
                Identity::Process { pid, start_ticks } => {
                    saved.processes.push(SavedProcess { pid, start_ticks, given });
                }
            }
        }
        saved.processes.sort_unstable_by_key(|process| process.given.index);
        saved.resting = self.resting.iter().map(|(_, index)| *index).collect();
        saved
    }

    /// Whether something is to be saved that was not there at the last call.
    pub(super) const fn take_is_new(&mut self) -> bool {
        std::mem::replace(&mut self.is_new, false)
    }

    /// All processes that were there at the start have been looked at: of those that have not been found the indexes rest.
    pub(super) fn note_all_seen(&mut self, now: Instant) {
        self.unseen_until = Some(now + REST);
    }

    /// Whether this process had a row of its own with an earlier agent, and none yet with this one.
    pub(super) fn was_given(&self, process: Identity) -> bool {
        self.unseen.contains(&process)
    }

    /// Frees what has rested.
    pub(super) fn end_rests(&mut self, now: Instant) {
        while let Some((_, index)) = self.resting.pop_front_if(|(end, _)| *end <= now) {
            self.free.put(index);
        }
        if self.unseen_until.take_if(|until| *until <= now).is_some() {
            self.end_unseen(now);
        }
    }

    fn end_unseen(&mut self, now: Instant) {
        let mut away = Vec::new();
        for identity in std::mem::take(&mut self.unseen) {
            if matches!(identity, Identity::Uuid(_)) {
                away.extend(self.given.get(&identity).map(|given| (given.index, identity)));
            } else if let Some(given) = self.given.remove(&identity) {
                self.free.put(given.index);
            }
        }
        // The larger indexes are those of the later VMs.
        away.sort_unstable();
        away.into_iter().for_each(|(_, identity)| self.note_away(identity));
        self.forget_longest_away(now);
    }

    /// The index of this VM, its own or a new one.
    pub(super) fn assign(&mut self, identity: Identity) -> VmIndex {
        self.unseen.remove(&identity);
        if let Some(given) = self.given.get_mut(&identity) {
            if let Some(number) = given.away.take() {
                self.away.remove(&number);
            }
            return VmIndex(given.index);
        }
        let index = self.free.take();
        self.given.insert(identity, Given { index, ..Given::default() });
        self.is_new = true;
        VmIndex(index)
    }

    /// The index of a VM, if it has one.
    pub(super) fn get(&self, identity: Identity) -> Option<VmIndex> {
        self.given.get(&identity).map(|given| VmIndex(given.index))
    }

    /// The index of a part of a VM that has one.
    pub(super) fn assign_part(&mut self, identity: Identity, part: Part<'_>) -> u32 {
        let given = self.given.entry(identity).or_default();
        let (parts, name) = match part {
            Part::Disk(name) => (&mut given.disks, name),
            Part::Nic(name) => (&mut given.nics, name),
        };
        if let Some(&index) = parts.get(name) {
            return index;
        }
        let index = smallest_free(&parts.values().copied().collect());
        parts.insert(name.to_owned(), index);
        self.is_new = true;
        index
    }

    /// A VM with a UUID is away from now on, if it has an index.
    fn note_away(&mut self, identity: Identity) {
        let Some(given) = self.given.get_mut(&identity) else { return };
        let number = self.away.last_key_value().map_or(0, |(last, _)| last + 1);
        if let Some(before) = given.away.replace(number) {
            self.away.remove(&before);
        }
        self.away.insert(number, identity);
    }

    /// Takes back the indexes of the VMs that have been away longest, if there are too many.
    fn forget_longest_away(&mut self, now: Instant) {
        while self.away.len() > MAX_AWAY
            && let Some((_, identity)) = self.away.pop_first()
        {
            if let Some(given) = self.given.remove(&identity) {
                self.rest(given.index, now);
                self.is_new = true;
            }
        }
    }

    /// From now on an index rests.
    fn rest(&mut self, index: u32, now: Instant) {
        self.resting.push_back((now + REST, index));
    }

    /// Takes back the index of a VM that cannot come again, and notes that one with a UUID is away. `rests`: the VM was there, so
    /// its index rests; a process that was in another row before managers were told of it leaves the index free.
    pub(super) fn release(&mut self, identity: Identity, rests: bool, now: Instant) {
        self.unseen.remove(&identity);
        if matches!(identity, Identity::Uuid(_)) {
            if self.given.contains_key(&identity) {
                self.note_away(identity);
                self.forget_longest_away(now);
            }
        } else if let Some(given) = self.given.remove(&identity) {
            self.is_new = true;
            if rests {
                self.rest(given.index, now);
            } else {
                self.free.put(given.index);
            }
        }
    }
}

impl Free {
    /// All indexes but those that are taken.
    fn without(taken: &BTreeSet<u32>) -> Self {
        let mut ranges = BTreeMap::new();
        let mut first = 1;
        for &index in taken {
            if first < index {
                ranges.insert(first, index - 1);
            }
            first = index.saturating_add(1);
        }
        ranges.insert(first, u32::MAX);
        Self { ranges }
    }

    /// The smallest one, which is taken from now on.
    fn take(&mut self) -> u32 {
        // There are more indexes than a host can have VMs.
        let Some((first, last)) = self.ranges.pop_first() else { return u32::MAX };
        if first < last {
            self.ranges.insert(first + 1, last);
        }
        first
    }

    fn put(&mut self, index: u32) {
        let before = self.ranges.range(..index).next_back().map(|(first, last)| (*first, *last));
        let first = before.filter(|(_, last)| last + 1 == index).map_or(index, |(first, _)| first);
        let last = index.checked_add(1).and_then(|next| self.ranges.remove(&next));
        self.ranges.insert(first, last.unwrap_or(index));
    }
}

impl Default for Free {
    fn default() -> Self {
        Self::without(&BTreeSet::new())
    }
}

/// The first number from 1 that is missing in the ascending set. Costs as much as there are numbers before it.
fn smallest_free(taken: &BTreeSet<u32>) -> u32 {
    let free = (1..).zip(taken).find(|&(number, &taken)| number != taken);
    free.map_or_else(|| taken.last().map_or(1, |last| last.saturating_add(1)), |(number, _)| number)
}

fn check(index: u32, taken: &mut BTreeSet<u32>) -> Result<(), BadIndex> {
    let is_index = (1..=i32::MAX.unsigned_abs()).contains(&index);
    if is_index && taken.insert(index) { Ok(()) } else { Err(BadIndex(index)) }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const fn process(pid: u32) -> Identity {
        Identity::Process { pid, start_ticks: 1 }
    }

    const fn uuid(number: u8) -> Identity {
        Identity::Uuid(VmUuid::of_bytes([number; 16]))
    }

    #[test]
    fn indexes_are_dense_and_stay() {
        let mut indexes = Indexes::default();
        let now = Instant::now();
        let given = [process(7), uuid(1), process(9)].map(|id| indexes.assign(id).0);
        assert_eq!(given, [1, 2, 3]);
        assert_eq!(indexes.assign(process(7)).0, 1);
        indexes.release(process(7), true, now);
        indexes.end_rests(now + Duration::from_secs(60));
        assert_eq!(indexes.assign(process(10)).0, 4, "its index rests for more than a minute");
        indexes.end_rests(now + Duration::from_secs(61));
        assert_eq!(indexes.assign(process(11)).0, 1, "a process that is gone gives its index back");
        indexes.release(uuid(1), true, now + Duration::from_secs(61));
        indexes.end_rests(now + Duration::from_secs(600));
        assert_eq!(indexes.assign(process(12)).0, 5);
        assert_eq!(indexes.assign(uuid(1)).0, 2, "a VM with a UUID comes back");
    }

    #[test]
    fn of_too_many_vms_that_are_away_the_one_that_has_been_longest_gives_its_index_back() {
        let numbered = |number: usize| {
            let mut bytes = [0; 16];
            bytes[..8].copy_from_slice(&number.to_be_bytes());
            Identity::Uuid(VmUuid::of_bytes(bytes))
        };
        let mut indexes = Indexes::default();
        let now = Instant::now();
        let stays = uuid(255);
        assert_eq!(indexes.assign(stays).0, 1);
        for number in 0..=MAX_AWAY {
            indexes.assign(numbered(number));
            indexes.release(numbered(number), true, now);
        }
        assert_eq!(indexes.get(numbered(0)), None);
        assert_eq!(indexes.get(numbered(1)), Some(VmIndex(3)));
        assert_eq!(indexes.get(stays), Some(VmIndex(1)), "it is not away");
        // One that was there again meanwhile has not been away for longest.
        indexes.assign(numbered(1));
        indexes.release(numbered(1), true, now);
        indexes.end_rests(now + REST);
        assert_eq!(indexes.assign(numbered(9999)).0, 2, "it has rested");
        indexes.release(numbered(9999), true, now + REST);
        assert_eq!((indexes.get(numbered(1)), indexes.get(numbered(2))), (Some(VmIndex(3)), None));
        let saved = indexes.to_saved();
        assert_eq!(saved.vms.len(), MAX_AWAY + 1);
        let mut after = Indexes::of_saved(saved.clone(), now);
        after.assign(stays);
        after.note_all_seen(now);
        after.end_rests(now + REST);
        assert_eq!(after.away.len(), MAX_AWAY);
        // Those that the next agent has not found yet are not away.
        let mut after = Indexes::of_saved(saved, now);
        let ends = [5, 6].map(numbered);
        for identity in ends {
            after.assign(identity);
            after.release(identity, true, now);
        }
        assert_eq!((after.away.len(), after.get(stays)), (2, Some(VmIndex(1))));
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn the_smallest_free_index_is_given(
            saved in prop::collection::btree_set(1_u32..40, 0..20),
            steps in prop::collection::vec(any::<Option<prop::sample::Index>>(), 0..100),
        ) {
            let (mut free, mut taken) = (Free::without(&saved), saved);
            for step in steps {
                match step {
                    Some(which) if !taken.is_empty() => {
                        let index = *taken.iter().nth(which.index(taken.len())).unwrap();
                        taken.remove(&index);
                        free.put(index);
                    }
                    _ => {
                        let index = free.take();
                        prop_assert_eq!(index, smallest_free(&taken));
                        taken.insert(index);
                    }
                }
            }
            let neighbours = free.ranges.iter().zip(free.ranges.iter().skip(1));
            prop_assert!(neighbours.into_iter().all(|((_, last), (first, _))| last + 1 < *first));
        }
    }

    #[test]
    fn parts_keep_theirs_when_others_come_and_go() {
        let mut indexes = Indexes::default();
        indexes.assign(uuid(1));
        let part = |indexes: &mut Indexes, part| indexes.assign_part(uuid(1), part);
        assert_eq!(part(&mut indexes, Part::Disk("vda")), 1);
        assert_eq!(part(&mut indexes, Part::Disk("vdb")), 2);
        assert_eq!(part(&mut indexes, Part::Nic("52:54:00:00:00:01")), 1);
        assert_eq!(part(&mut indexes, Part::Disk("vda")), 1);
        assert_eq!(part(&mut indexes, Part::Disk("vdc")), 3);
    }

    #[test]
    fn a_restart_changes_nothing() {
        let mut indexes = Indexes::default();
        indexes.assign(process(3));
        indexes.assign(uuid(2));
        indexes.assign(uuid(1));
        indexes.assign(process(8));
        indexes.assign_part(process(8), Part::Disk("hdb"));
        indexes.assign_part(process(8), Part::Disk("hda"));
        indexes.assign_part(uuid(1), Part::Disk("vdb"));
        indexes.assign_part(uuid(1), Part::Disk("vda"));
        assert!(indexes.take_is_new() && !indexes.take_is_new());

        let (saved, now) = (indexes.to_saved(), Instant::now());
        assert_eq!(saved.check(), Ok(()));
        let mut again = Indexes::of_saved(saved, now);
        assert_eq!(again.assign(process(8)).0, 4);
        assert_eq!(again.assign_part(process(8), Part::Disk("hda")), 2);
        assert_eq!(again.assign(uuid(1)).0, 3);
        assert_eq!(again.assign_part(uuid(1), Part::Disk("vda")), 2);
        assert_eq!(again.assign(uuid(9)).0, 5, "the process with index 1 may be found yet");
        let later = now + 10 * REST;
        again.end_rests(later);
        assert_eq!(again.assign(uuid(8)).0, 6, "not all processes have been looked at");
        again.note_all_seen(later);
        again.end_rests(later + REST);
        assert_eq!(again.assign(uuid(7)).0, 1, "it has ended");
        assert_eq!(again.assign(process(8)).0, 4);
        again.release(process(8), true, now);
        assert_eq!(again.get(process(8)), None, "it ends as any process");
    }

    #[test]
    fn an_index_rests_though_the_agent_starts_again() {
        let now = Instant::now();
        let mut indexes = Indexes::default();
        indexes.assign(process(3));
        indexes.assign(process(4));
        assert!(indexes.take_is_new());
        indexes.release(process(3), true, now);
        assert!(indexes.take_is_new(), "the file is to be written");
        let saved = indexes.to_saved();
        assert_eq!(saved.check(), Ok(()));
        let mut again = Indexes::of_saved(saved.clone(), now);
        assert_eq!(again.to_saved(), saved);
        assert_eq!(again.assign(process(5)).0, 3);
        again.end_rests(now + REST);
        assert_eq!(again.assign(process(6)).0, 1);
        let twice = SavedIndexes { resting: vec![2], ..saved };
        assert_eq!(twice.check(), Err(BadIndex(2)));
    }
}
