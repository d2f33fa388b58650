//! How often a domain is described: at once after an event, and then not again for a while, however many events come. A
//! guest that ejects its CD in a loop makes as many events as it likes; each description is five calls to libvirt.

use std::{
    collections::{BTreeSet, HashMap},
    time::{Duration, Instant},
};

use crate::inventory::VmUuid;

/// Between two descriptions of a domain whose state has not changed.
const PAUSE: Duration = Duration::from_millis(250);

/// When domains were described last, and which are to be described later.
#[derive(Debug, Default)]
pub(super) struct Pace {
    described: HashMap<VmUuid, Instant>,
    deferred: BTreeSet<(Instant, VmUuid)>,
}

impl Pace {
    /// Whether a domain with an event is to be described now. If not, it is due later.
    pub(super) fn admits(&mut self, uuid: VmUuid, now: Instant) -> bool {
        match self.described.get(&uuid) {
            Some(&at) if now < at + PAUSE => {
                self.deferred.insert((at + PAUSE, uuid));
                false
            }
            _ => true,
        }
    }

    /// A domain is described now.
    pub(super) fn note(&mut self, uuid: VmUuid, now: Instant) {
        if let Some(at) = self.described.insert(uuid, now) {
            self.deferred.remove(&(at + PAUSE, uuid));
        }
    }

    /// A domain is gone.
    pub(super) fn forget(&mut self, uuid: VmUuid) {
        if let Some(at) = self.described.remove(&uuid) {
            self.deferred.remove(&(at + PAUSE, uuid));
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
    fn a_storm_of_events_describes_each_domain_at_once_and_then_four_times_a_second() {
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
        assert_eq!(described, [(0, a), (100, b), (250, a), (500, a), (750, a)]);
        // The last event is not lost, and one for which the domain is described anyway is not due any more.
        assert_eq!(pace.poll_timeout(), Some(start + Duration::from_millis(1000)));
        pace.note(a, start + Duration::from_millis(999));
        assert_eq!(pace.poll_timeout(), None);
        assert!(!pace.admits(a, start + Duration::from_millis(999)));
        pace.forget(a);
        assert_eq!(pace.poll_timeout(), None);
        assert_eq!(pace.due(start + Duration::from_secs(9)), BTreeSet::new());
    }
}
