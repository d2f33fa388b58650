//! Everything that is known of one VM: what the sources reported, what was announced to managers, and its row.

use std::{
    collections::VecDeque,
    sync::Arc,
    time::{Duration, Instant},
};

use super::{
    Change, ChangeEvent, CountedBy, Domain, OperState, SourceId, Vm, VmIndex, VmPlan,
    change::Announced, indexes::Identity, messages::admin_state_after,
};
use crate::account::Account;

/// What is found of a VM may be ahead of the events about it. After this time no event is expected any more.
pub(super) const LATE: Duration = Duration::from_secs(1);

/// What is known of one VM. Removing it removes all.
#[derive(Debug, Default)]
pub(super) struct VmState {
    /// vmIndex; given with the first row.
    pub(super) index: Option<VmIndex>,
    /// The domain, as the libvirt connection has it.
    pub(super) domain: Option<(SourceId, Domain)>,
    /// The process.
    pub(super) pid: Option<u32>,
    /// What was known of the process of an active domain.
    pub(super) presence: Presence,
    /// Whether the domain is being migrated to another host; `None` = not known.
    pub(super) is_migrating: Option<bool>,
    /// Which run of the VM this is; 0 = none yet.
    pub(super) run: u32,
    /// Start of the last process that this VM had, in ns since boot.
    pub(super) started_ns: Option<u64>,
    /// When it was started from shutdown(4).
    pub(super) up: UpSince,
    /// How the disks of its process are counted, by vmStorageIndex; `None` = not reported yet.
    pub(super) counted: Option<Vec<(u32, CountedBy)>>,
    /// What the counting was told last.
    pub(super) plan: Option<Arc<VmPlan>>,
    /// The paths that the source of processes was asked about last, and of which process.
    pub(super) asked_paths: Option<(Identity, Arc<[String]>)>,
    /// In which run libvirt was asked last, and whether for QEMU's counts.
    pub(super) wants_io: Option<(u32, bool)>,
    /// What managers know.
    pub(super) announced: Option<Announced>,
    /// States that it went through before its first row.
    pub(super) early: Vec<OperState>,
    /// It was found in a state to which no event has led yet; until then the event is awaited.
    pub(super) awaited: Option<Instant>,
    /// The deadline that is in the core's list.
    pub(super) deadline: Option<Instant>,
    /// Its row in the view.
    pub(super) row: Option<Arc<Vm>>,
}

/// When a VM was last started from shutdown(4), for vmUpTime: a process that goes on with a managed save is not the first.
#[derive(Debug, Default)]
pub(super) struct UpSince {
    since_ns: Option<u64>,
    /// Start of the process that was seen last, in ns since boot.
    process_ns: Option<u64>,
    /// It was saved after that process.
    was_saved: bool,
}

impl UpSince {
    /// The VM went to a state.
    pub(super) fn follow(&mut self, state: OperState) {
        match state {
            OperState::Suspended => self.was_saved = true,
            OperState::Shutdown | OperState::Crashed => *self = Self::default(),
            _ => {}
        }
    }

    /// The time in ns since boot of a VM with a process that was started at `process_ns`; `None` = not known, or it is off.
    pub(super) fn of(&mut self, process_ns: Option<u64>) -> Option<u64> {
        if let Some(started) = process_ns
            && self.process_ns != Some(started)
        {
            if !self.was_saved || self.since_ns.is_none() {
                self.since_ns = Some(started);
            }
            (self.process_ns, self.was_saved) = (Some(started), false);
        }
        self.since_ns
    }
}

/// Whether an active domain has a process.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub(super) enum Presence {
    /// It was not seen with one.
    #[default]
    NeverSeen,
    /// It has one.
    Present,
    /// It has lost its process, and libvirt still reports the domain as active.
    LostSince(Instant),
}

/// Gives each run of a VM a number that no run has had: an answer about an earlier run is never taken for one about this.
#[derive(Debug, Default)]
pub(super) struct Runs(u32);

impl Runs {
    /// The number of the next run. 0 stands for none; after 2^32 runs a number comes again.
    pub(super) fn next(&mut self) -> u32 {
        self.0 = self.0.checked_add(1).unwrap_or(1);
        self.0
    }
}

impl VmState {
    /// vmOperState of the domain.
    pub(super) fn domain_state(&self, domain: &Domain) -> OperState {
        match domain.state.oper_state {
            OperState::Running if self.is_migrating == Some(true) => OperState::Migrating,
            state => state,
        }
    }

    /// The VM went through a state that no row may have shown.
    pub(super) fn note(&mut self, state: OperState, changes: &mut VecDeque<Change>) {
        self.up.follow(state);
        match (&mut self.announced, self.index) {
            (Some(announced), Some(index)) => changes.extend(announced.go_to(index, state)),
            _ => self.early.push(state),
        }
    }

    /// A VM that was off was deleted, and another has its UUID now.
    pub(super) fn note_deleted(&mut self, changes: &mut VecDeque<Change>) {
        if let (Some(announced), Some(index)) = (&mut self.announced, self.index)
            && announced.state.is_down()
        {
            let before = std::mem::replace(&mut announced.state, OperState::Shutdown);
            changes.push_back(announced.change(index, before, ChangeEvent::Deleted));
        }
    }

    /// Whether what was noted does not lead to the state in which the VM was found (`None` = it is gone): then
    /// libvirt's events are awaited, for what is found may be ahead of them.
    pub(super) fn is_ahead(&self, found: Option<OperState>) -> bool {
        match (&self.announced, found) {
            (Some(announced), Some(found)) => announced.state != found,
            (Some(announced), None) => !announced.state.is_down(),
            (None, Some(found)) => *self.early.last().unwrap_or(&OperState::Shutdown) != found,
            (None, None) => false,
        }
    }

    /// Awaits the events that lead to the state in which the VM was found, if they are not there yet.
    pub(super) fn await_events(&mut self, found: Option<OperState>, now: Instant) {
        self.awaited = self.is_ahead(found).then(|| self.awaited.unwrap_or(now + LATE));
    }

    /// Announces what the row shows, or that it is gone. `is_old`: the VM was like this before the agent knew it, which
    /// is no change. `account`: on whose account it changes.
    pub(super) fn announce_row(
        &mut self,
        is_old: bool,
        account: Option<Account>,
        changes: &mut VecDeque<Change>,
    ) {
        let early = std::mem::take(&mut self.early);
        let Some(index) = self.index else { return };
        let Some(row) = &self.row else {
            if self.awaited.is_some() {
                return;
            }
            if let Some(mut announced) = self.announced.take().filter(|_| !is_old) {
                if !announced.state.is_down() {
                    changes.extend(announced.go_to(index, OperState::Shutdown));
                }
                changes.push_back(announced.change(index, announced.state, ChangeEvent::Deleted));
            }
            return;
        };
        // A VM that was not known was not running.
        let known = self.announced.take().map_or(OperState::Shutdown, |announced| announced.state);
        let mut announced = Announced {
            name: row.name.clone(),
            uuid: row.uuid,
            persistence: row.persistence,
            account,
            state: if is_old && self.awaited.is_none() { row.oper_state } else { known },
        };
        let found = self.awaited.is_none().then_some(row.oper_state);
        for state in early.into_iter().chain(found) {
            changes.extend(announced.go_to(index, state));
        }
        self.announced = Some(announced);
    }

    /// libvirt reported only the event: the domain is what the event led to.
    pub(super) fn follow_event(&mut self, state: OperState) {
        if let Some((_, domain)) = &mut self.domain {
            domain.state.oper_state = state;
            domain.state.admin_state = admin_state_after(state);
            domain.is_active = !state.is_down();
            if state.is_down() {
                // The next run has another process.
                (domain.process, domain.machine) = (domain.process.after_end(), None);
            }
        }
    }
}
