//! What the threads of one libvirt connection share: how the connection is, and which domains it has.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, Instant, SystemTime},
};

use crossbeam_channel::{Sender, bounded};

use super::{super::Health, events::Event, process_files::ProcessFiles};
use crate::{
    counters::{DiskKey, SlowValues},
    inventory::{DiskQuery, Domain, DomainFact, Fact, SourceId, VmUuid},
    worker::Facts,
};

/// A call that takes longer hangs; so long does the status wait for an answer of libvirt.
const SLOW: Duration = Duration::from_millis(500);

/// One libvirt connection.
#[derive(Debug)]
pub(super) struct ConnectionState {
    pub(super) id: SourceId,
    pub(super) uri: String,
    pub(super) process_files: ProcessFiles,
    /// How often QEMU's counts of disks are polled; `None` = never.
    pub(super) block_statistics: Option<Duration>,
    facts: Facts,
    pub(super) slow: Arc<SlowValues>,
    scans: AtomicU64,
    /// Life-cycle events that have come.
    came: AtomicU64,
    state: Mutex<State>,
    domains: Mutex<Domains>,
}

#[derive(Debug, Default)]
struct State {
    /// Why there is no connection.
    error: Option<String>,
    /// Since when there is none.
    lost: Option<SystemTime>,
    /// When a call was answered last.
    answered: Option<Instant>,
    /// Reaches the thread that follows events, while it does.
    events: Option<Sender<Event>>,
}

/// The domains of the connection.
#[derive(Debug, Default)]
struct Domains {
    names: BTreeMap<VmUuid, String>,
    /// What is to be asked about their disks.
    queries: HashMap<VmUuid, DiskQuery>,
    /// Domains whose memory is being copied, and whether to another host.
    migrating: HashMap<VmUuid, bool>,
}

impl ConnectionState {
    pub(super) fn new(
        id: SourceId,
        uri: String,
        block_statistics: Option<Duration>,
        facts: Facts,
        slow: Arc<SlowValues>,
    ) -> Self {
        let state = State { lost: Some(SystemTime::now()), ..State::default() };
        Self {
            id,
            process_files: ProcessFiles::of(&uri),
            uri,
            block_statistics,
            facts,
            slow,
            scans: AtomicU64::new(0),
            came: AtomicU64::new(0),
            state: Mutex::new(state),
            domains: Mutex::default(),
        }
    }

    pub(super) const fn facts(&self) -> &Facts {
        &self.facts
    }

    /// Reports a fact about this connection's domains.
    pub(super) fn report(&self, fact: DomainFact) {
        self.facts.send(Fact::Libvirt(self.id, fact));
    }

    /// Reports that a life-cycle event has come. Its number. Called by the thread of libvirt's event loop only.
    pub(super) fn event_came(&self, uuid: VmUuid) -> u64 {
        let number = self.came.fetch_add(1, Relaxed) + 1;
        self.report(DomainFact::EventCame(uuid, number));
        number
    }

    /// The number of the last life-cycle event that has come.
    pub(super) fn last_event(&self) -> u64 {
        self.came.load(Relaxed)
    }

    /// How the connection is now. Asks libvirt whether it answers, and waits half a second for that at most.
    pub(super) fn health(&self) -> Health {
        let mut answers = true;
        if let Some(events) = self.events() {
            let (reply, answer) = bounded(1);
            answers = events.send(Event::Ping(reply)).is_ok() && answer.recv_timeout(SLOW).is_ok();
        }
        let state = self.state();
        // In a storm of events the ping may wait in the queue although libvirt answers; the time of the last answer tells
        // the two apart.
        let silence = state.answered.map(|at| at.elapsed()).filter(|age| *age >= SLOW);
        let hangs = silence.filter(|_| !answers).and_then(|age| SystemTime::now().checked_sub(age));
        let (text, stale_since) = match (&state.error, state.lost, hangs) {
            (Some(error), since, _) => (error.clone(), since),
            (None, _, Some(since)) => ("it does not answer".to_owned(), Some(since)),
            (None, Some(since), None) => ("connecting".to_owned(), Some(since)),
            (None, None, None) => ("live".to_owned(), None),
        };
        Health { state: text, stale_since, hanging: Vec::new(), spent: Vec::new(), left_out: 0 }
    }

    /// Reaches the thread that follows events, while it does.
    pub(super) fn events(&self) -> Option<Sender<Event>> {
        self.state().events.clone()
    }

    pub(super) fn live(&self, events: Sender<Event>) {
        let mut state = self.state();
        (state.error, state.lost, state.events) = (None, None, Some(events));
    }

    pub(super) fn lost(&self, error: String) {
        let mut state = self.state();
        state.events = None;
        state.error = Some(error);
        state.lost.get_or_insert_with(SystemTime::now);
    }

    /// Makes a call to libvirt, and notes that it was answered.
    pub(super) fn call<T>(&self, call: impl FnOnce() -> T) -> T {
        let answer = call();
        self.state().answered = Some(Instant::now());
        answer
    }

    /// Lists of all domains that were read.
    pub(super) fn scans(&self) -> u64 {
        self.scans.load(Relaxed)
    }

    /// All domains have been read, but for these, which could not be.
    pub(super) fn list(&self, domains: &[Domain], undescribed: &BTreeSet<VmUuid>) {
        self.scans.fetch_add(1, Relaxed);
        let mut known = self.domains();
        known.names.retain(|uuid, _| undescribed.contains(uuid));
        known.names.extend(domains.iter().map(|domain| (domain.uuid, domain.name.clone())));
        let Domains { names, queries, migrating } = &mut *known;
        queries.retain(|uuid, _| names.contains_key(uuid));
        migrating.clear();
    }

    /// These domains have been read; `None` = it is gone.
    pub(super) fn update(&self, domains: &BTreeMap<VmUuid, Option<Domain>>) {
        let mut known = self.domains();
        for (uuid, domain) in domains {
            match domain {
                Some(domain) => drop(known.names.insert(*uuid, domain.name.clone())),
                None => {
                    known.names.remove(uuid);
                    known.queries.remove(uuid);
                    known.migrating.remove(uuid);
                }
            }
        }
    }

    /// The domain with this name.
    pub(super) fn domain_named(&self, name: &str) -> Option<VmUuid> {
        self.domains().names.iter().find(|(_, of)| *of == name).map(|(uuid, _)| *uuid)
    }

    /// All domains.
    pub(super) fn uuids(&self) -> Vec<VmUuid> {
        self.domains().names.keys().copied().collect()
    }

    /// Whether the domain was there when domains were read last.
    pub(super) fn has(&self, uuid: VmUuid) -> bool {
        self.domains().names.contains_key(&uuid)
    }

    /// The number of domains.
    pub(super) fn len(&self) -> usize {
        self.domains().names.len()
    }

    /// Takes in what is to be asked about the disks of a domain. Sizes of disks that have none any more are forgotten.
    pub(super) fn set_query(&self, query: &DiskQuery) {
        let mut domains = self.domains();
        // The domain may have gone before the core knew.
        if !domains.names.contains_key(&query.uuid) {
            return;
        }
        let old = domains.queries.insert(query.uuid, query.clone());
        drop(domains);
        let Some(old) = old.filter(|old| old.vm == query.vm) else { return };
        for disk in old.disks.iter().filter(|disk| disk.has_size) {
            if query.disks.iter().all(|of| of.storage != disk.storage || !of.has_size) {
                let disk = DiskKey { vm: query.vm.0, storage: disk.storage };
                self.slow.set_disk_size(disk, None);
            }
        }
    }

    /// What is to be asked about the disks of a domain.
    pub(super) fn query(&self, uuid: VmUuid) -> Option<DiskQuery> {
        self.domains().queries.get(&uuid).cloned()
    }

    /// The active domains with disks, and whether QEMU's own counts are wanted.
    pub(super) fn polled(&self) -> Vec<(VmUuid, bool)> {
        let domains = self.domains();
        let polled = domains.queries.values().filter(|query| query.has_active_disks());
        polled.map(|query| (query.uuid, query.wants_io)).collect()
    }

    /// Whether there is an active domain with disks.
    pub(super) fn polls(&self) -> bool {
        self.domains().queries.values().any(DiskQuery::has_active_disks)
    }

    /// Reports whether a domain whose memory is copied is migrated.
    pub(super) fn set_migrating(&self, uuid: VmUuid, is_migrating: bool) {
        self.domains().migrating.insert(uuid, is_migrating);
        self.report(DomainFact::Migrating(uuid, is_migrating));
    }

    /// Whether the copying of a domain's memory goes on as a migration, as far as it is known.
    pub(super) fn may_be_migrating(&self, uuid: VmUuid) -> bool {
        let domains = self.domains();
        let is_active = domains.queries.get(&uuid).is_none_or(|query| query.is_active);
        domains.names.contains_key(&uuid)
            && is_active
            && domains.migrating.get(&uuid) != Some(&false)
    }

    /// The memory of a domain is copied again: the answer about the last time does not hold.
    pub(super) fn forget_migration(&self, uuid: VmUuid) {
        self.domains().migrating.remove(&uuid);
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // A thread that panicked left the state whole: each change is one assignment.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn domains(&self) -> MutexGuard<'_, Domains> {
        self.domains.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
