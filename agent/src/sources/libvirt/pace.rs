//! How often a domain is described: at once after an event, and when there are many, [`PAUSE`] after [`PAUSE`]. A guest
//! that ejects its CD in a loop makes as many events as it likes; each description is five calls to libvirt.

use std::{
    collections::{BTreeSet, HashMap},
    time::{Duration, Instant},
};

use crate::inventory::VmUuid;

/// Between two descriptions of a domain in the long run.
const PAUSE: Duration = Duration::from_millis(250);

/// How far ahead of that a domain may be: four descriptions without a pause.
const AHEAD: Duration = Duration::from_millis(750);

/// Until a domain that could not be described is asked for again.
const FIRST_RETRY: Duration = Duration::from_secs(1);

/// After 64 s the pause between two attempts grows no longer.
const MAX_DOUBLINGS: u32 = 6;

/// Which domains were described how often, and which are to be described later.
#[derive(Debug, Default)]
pub(super) struct Pace {
    /// When each domain would have been described last, had there been a pause before each description.
    paced: HashMap<VmUuid, Instant>,
    /// Domains that could not be described: how often in a row, and when each is to be asked for again.
    failures: HashMap<VmUuid, (u32, Instant)>,
    deferred: BTreeSet<(Instant, VmUuid)>,
}

impl Pace {
    /// Whether a domain with an event is to be described now. If not, it is due later.
    pub(super) fn admits(&mut self, uuid: VmUuid, now: Instant) -> bool {
        match self.paced.get(&uuid) {
            Some(&at) if at > now + AHEAD => {
                self.deferred.insert((at - AHEAD, uuid));
                false
            }
            _ => true,
        }
    }

    /// libvirt could not describe a domain: it is asked again, ever more seldom.
    pub(super) fn retry(&mut self, uuid: VmUuid, now: Instant) {
        let count = self.withdraw_retry(uuid).unwrap_or(0);
        let due = now + FIRST_RETRY * 2_u32.pow(count);
        self.deferred.insert((due, uuid));
        self.failures.insert(uuid, ((count + 1).min(MAX_DOUBLINGS), due));
    }

    /// libvirt has described a domain.
    pub(super) fn succeeded(&mut self, uuid: VmUuid) {
        self.withdraw_retry(uuid);
    }

    /// How often the domain could not be described.
    fn withdraw_retry(&mut self, uuid: VmUuid) -> Option<u32> {
        let (count, due) = self.failures.remove(&uuid)?;
        self.deferred.remove(&(due, uuid));
        Some(count)
    }

    /// A domain is described now.
    pub(super) fn note(&mut self, uuid: VmUuid, now: Instant) {
        let before = self.paced.get(&uuid).copied();
        if let Some(at) = before {
            self.withdraw(uuid, at);
        }
        // Events that are never delayed do not delay the others for longer.
        let paced = before.map_or(now, |at| at.max(now)) + PAUSE;
        self.paced.insert(uuid, paced.min(now + AHEAD + PAUSE));
    }

    /// A domain is gone.
    pub(super) fn forget(&mut self, uuid: VmUuid) {
        self.withdraw_retry(uuid);
        if let Some(at) = self.paced.remove(&uuid) {
            self.withdraw(uuid, at);
        }
    }

    fn withdraw(&mut self, uuid: VmUuid, at: Instant) {
        if let Some(due) = at.checked_sub(AHEAD) {
            self.deferred.remove(&(due, uuid));
        }
    }

    /// When the next domain is to be described; `None` = none is.
    pub(super) fn poll_timeout(&self) -> Option<Instant> {
        self.deferred.first().map(|(at, _)| *at)
    }

    /// The domains that are to be described by now.
    pub(super) fn due(&mut self, now: Instant) -> BTreeSet<VmUuid> {
        self.deferred.extract_if(.., |(at, _)| *at <= now).map(|(_, uuid)| uuid).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_storm_of_events_describes_a_domain_four_times_at_once_and_then_four_times_a_second() {
        let [a, b] = [1, 2].map(|byte| VmUuid::of_bytes([byte; 16]));
        let start = Instant::now();
        let mut pace = Pace::default();
        let mut described = Vec::new();
        // An event of `a` each ms, and one of `b`.
        for ms in 0..1000 {
            let now = start + Duration::from_millis(ms);
            let mut changed = pace.due(now);
            changed.insert(a);
            changed.extend((ms == 100).then_some(b));
            changed.retain(|uuid| pace.admits(*uuid, now));
            for uuid in changed {
                pace.note(uuid, now);
                described.push((ms, uuid));
            }
        }
        let of =
            |wanted| described.iter().filter(move |(_, uuid)| *uuid == wanted).map(|(ms, _)| *ms);
        assert_eq!(of(a).collect::<Vec<_>>(), [0, 1, 2, 3, 250, 500, 750]);
        assert_eq!(of(b).collect::<Vec<_>>(), [100]);
        // The last event is not lost, and one for which the domain is described anyway is not due any more.
        assert_eq!(pace.poll_timeout(), Some(start + Duration::from_secs(1)));
        pace.note(a, start + Duration::from_millis(999));
        assert_eq!(pace.poll_timeout(), None);
        assert!(!pace.admits(a, start + Duration::from_secs(1)));
        // After a rest there are four again.
        let later = start + Duration::from_secs(9);
        assert_eq!(pace.due(later), BTreeSet::from([a]));
        for _ in 0..4 {
            assert!(pace.admits(a, later));
            pace.note(a, later);
        }
        assert!(!pace.admits(a, later));
        pace.forget(a);
        assert_eq!(pace.poll_timeout(), None);
        assert_eq!(pace.due(later + Duration::from_secs(9)), BTreeSet::new());
    }

    #[test]
    fn changes_of_state_that_are_never_delayed_delay_other_events_by_one_pause() {
        let uuid = VmUuid::of_bytes([1; 16]);
        let now = Instant::now();
        let mut pace = Pace::default();
        for _ in 0..1000 {
            pace.note(uuid, now);
        }
        assert!(!pace.admits(uuid, now));
        assert_eq!(pace.poll_timeout(), Some(now + PAUSE));
    }

    #[test]
    fn a_domain_that_cannot_be_described_is_asked_for_ever_more_seldom() {
        let uuid = VmUuid::of_bytes([1; 16]);
        let start = Instant::now();
        let mut pace = Pace::default();
        let mut now = start;
        let mut pauses = Vec::new();
        for _ in 0..9 {
            pace.retry(uuid, now);
            let due = pace.poll_timeout().unwrap();
            pauses.push((due - now).as_secs());
            now = due;
            assert_eq!(pace.due(now), BTreeSet::from([uuid]));
        }
        assert_eq!(pauses, [1, 2, 4, 8, 16, 32, 64, 64, 64]);
        pace.succeeded(uuid);
        // An attempt for another reason meanwhile takes the place of the one that is due.
        for _ in 0..3 {
            pace.retry(uuid, now);
        }
        assert_eq!(pace.deferred.len(), 1);
        pace.succeeded(uuid);
        assert_eq!(pace.poll_timeout(), None);
    }
}
