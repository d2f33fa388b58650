//! Changes that are reported together: those of one kind within a window.

use std::collections::BTreeSet;

use crate::{
    inventory::Change,
    mib::{smi::Notification, vm_mib::notification},
};

/// Largest vmIndex in a list. The list of a larger one would not fit into a PDU with the rest of its notification.
const LAST_INDEX: u32 = 8 * 60_000;

/// Most notifications of a window. A VM that goes back and forth adds one with each change; then the window ends early.
const MOST: usize = 64;

/// The notifications of one window, in the order in which they are sent. Each VM is in them in the order of its changes, so
/// that the last one that lists a VM is what the VM came to.
#[derive(Debug, Default)]
pub(super) struct Bulk {
    notifications: Vec<(&'static Notification, BTreeSet<u32>)>,
}

/// What became of a change.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Gathered {
    /// It is in the window.
    Yes,
    /// It is in the window, which has no room for another one.
    Full,
    /// There is no notification for it.
    Nothing,
    /// Its vmIndex fits into no list.
    TooLarge,
}

impl Bulk {
    /// Adds a change to the window: to the first notification of its kind after the last one that lists the VM.
    pub(super) fn gather(&mut self, change: &Change) -> Gathered {
        let index = change.index.0;
        let Some(bulk) = notification::bulk(change.event) else { return Gathered::Nothing };
        if index > LAST_INDEX {
            return Gathered::TooLarge;
        }
        let last = self.notifications.iter().rposition(|(_, vms)| vms.contains(&index));
        let from = last.map_or(0, |last| last + 1);
        let mut later = (0..).zip(&self.notifications).skip(from);
        let known = later.find(|(_, (of, _))| of.number == bulk.number).map(|(at, _)| at);
        let at = known.unwrap_or_else(|| {
            self.notifications.push((bulk, BTreeSet::new()));
            self.notifications.len() - 1
        });
        self.notifications[at].1.insert(index);
        if self.notifications.len() < MOST { Gathered::Yes } else { Gathered::Full }
    }

    /// The notifications with their lists, in order. Empties the window.
    pub(super) fn take(&mut self) -> Vec<(&'static Notification, Vec<u8>)> {
        let notifications = std::mem::take(&mut self.notifications).into_iter();
        notifications.map(|(bulk, indexes)| (bulk, list(&indexes))).collect()
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
    use proptest::prelude::*;

    use super::*;
    use crate::inventory::{ChangeEvent, OperState, Persistence, VmIndex};

    const EVENTS: [ChangeEvent; 4] = [
        ChangeEvent::State(OperState::Running),
        ChangeEvent::State(OperState::Paused),
        ChangeEvent::State(OperState::Shutdown),
        ChangeEvent::Deleted,
    ];

    fn change(index: u32, event: ChangeEvent) -> Change {
        Change {
            index: VmIndex(index),
            name: String::new(),
            uuid: None,
            persistence: Persistence::Transient,
            account: None,
            before: OperState::Unknown,
            event,
        }
    }

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

    #[test]
    fn a_vm_that_ends_and_comes_again_is_not_deleted_last() {
        let mut bulk = Bulk::default();
        let [running, _, shutdown, deleted] = EVENTS;
        for (index, event) in
            [(1, running), (2, shutdown), (2, deleted), (3, running), (2, running)]
        {
            assert_eq!(bulk.gather(&change(index, event)), Gathered::Yes);
        }
        let sent: Vec<_> = bulk.take().iter().map(|(of, list)| (of.name, list[0])).collect();
        assert_eq!(
            sent,
            [
                ("vmBulkRunning", 0xa0),
                ("vmBulkShutdown", 0x40),
                ("vmBulkDeleted", 0x40),
                ("vmBulkRunning", 0x40),
            ]
        );
        assert!(bulk.take().is_empty());
    }

    #[test]
    fn many_vms_with_one_life_take_one_notification_a_change() {
        let mut bulk = Bulk::default();
        for index in 1..=300 {
            for event in EVENTS {
                assert_eq!(bulk.gather(&change(index, event)), Gathered::Yes);
            }
        }
        assert_eq!(bulk.take().len(), EVENTS.len());
    }

    #[test]
    fn a_vm_that_goes_back_and_forth_fills_the_window() {
        let mut bulk = Bulk::default();
        let gathered: Vec<_> =
            (0..MOST).map(|at| bulk.gather(&change(1, EVENTS[at % 2]))).collect();
        assert_eq!(gathered[MOST - 2..], [Gathered::Yes, Gathered::Full]);
        let too_large = change(LAST_INDEX + 1, EVENTS[0]);
        assert_eq!(bulk.gather(&too_large), Gathered::TooLarge);
        let preparing = change(1, ChangeEvent::State(OperState::Preparing));
        assert_eq!(bulk.gather(&preparing), Gathered::Nothing);
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn each_vm_is_listed_in_the_order_of_its_changes(
            changes in prop::collection::vec((1_u32..9, 0_usize..4), 0..60),
        ) {
            let mut bulk = Bulk::default();
            for &(index, event) in &changes {
                bulk.gather(&change(index, EVENTS[event]));
            }
            let sent = bulk.take();
            for index in 1..9 {
                let of_vm = changes.iter().filter(|(of, _)| *of == index);
                let expected: Vec<_> = of_vm
                    .map(|(_, event)| notification::bulk(EVENTS[*event]).unwrap().name)
                    .collect();
                let is_listed = |list: &[u8]| {
                    list.first().is_some_and(|octet| octet & (0x80 >> (index - 1)) != 0)
                };
                let listed: Vec<_> =
                    sent.iter().filter(|(_, list)| is_listed(list)).map(|(of, _)| of.name).collect();
                prop_assert_eq!(listed, expected, "{}", index);
            }
        }
    }
}
