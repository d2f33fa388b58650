//! Derives the states that domains go through from libvirt's life-cycle events and the state found after them.

use std::{
    collections::{HashMap, HashSet},
    ffi::c_int,
};

use virt::sys;

use crate::inventory::{AdminState, ChangeEvent, FoundState, OperState, VmUuid};

/// (VIR_DOMAIN_EVENT_DEFINED, _DEFINED_ADDED) and (VIR_DOMAIN_EVENT_UNDEFINED, _UNDEFINED_REMOVED). The other details of
/// these types are changes of a domain that stays.
const DEFINED: (c_int, c_int) = (0, 0);
const UNDEFINED: (c_int, c_int) = (1, 0);

/// State kept between events.
#[derive(Debug, Default)]
pub(super) struct Transitions {
    /// Domains that are being restored from a file. libvirt's state for that is the same as for an incoming migration.
    restoring: HashSet<VmUuid>,
    /// Domains with a pause that libvirt did not explain. What comes next tells what the pause was.
    unexplained: HashSet<VmUuid>,
    /// Domains that are being saved or migrated, whose QEMU ends then. libvirt 11 and newer report that as a shutdown of the
    /// domain.
    leaving: HashMap<VmUuid, OperState>,
}

impl Transitions {
    /// The changes that these events of a domain amount to, in order. `now` is the state found after the events; it may be
    /// ahead of events that are still queued. A restore in `now` is corrected from migrating to resuming.
    pub(super) fn apply(
        &mut self,
        uuid: VmUuid,
        events: &[(c_int, c_int)],
        now: Option<&mut FoundState>,
    ) -> Vec<ChangeEvent> {
        let mut states = Vec::with_capacity(events.len() + 1);
        if self.unexplained.remove(&uuid) {
            states.push(OperState::Paused);
        }
        let mut leaving = self.leaving.get(&uuid).copied();
        // Index into `states` before which the domain was deleted and defined again.
        let mut deleted = None;
        for (at, &event) in events.iter().enumerate() {
            if event == UNDEFINED && events[at..].contains(&DEFINED) {
                deleted = Some(states.len());
            }
            let Some(state) = of_event(event.0, event.1) else { continue };
            if state == OperState::Shuttingdown
                && (leaving.is_some() || events[at..].iter().any(|event| is_left_behind(*event)))
            {
                continue;
            }
            leaving = is_leaving(state).then_some(state);
            if state == OperState::Resuming {
                self.restoring.insert(uuid);
            } else {
                self.restoring.remove(&uuid);
            }
            states.push(state);
        }
        let is_unexplained = now.as_ref().is_some_and(|found| found.is_unexplained);
        let now = now.map(|found| {
            if found.oper_state != OperState::Migrating {
                self.restoring.remove(&uuid);
            } else if self.restoring.contains(&uuid) {
                (found.admin_state, found.oper_state) = (AdminState::Running, OperState::Resuming);
            }
            if let (Some(state), OperState::Shuttingdown) = (leaving, found.oper_state) {
                let is_saved = state == OperState::Suspending;
                let admin = if is_saved { AdminState::Suspended } else { AdminState::Running };
                (found.admin_state, found.oper_state) = (admin, state);
            }
            found.oper_state
        });
        // A save, a migration, and preserving a panicked guest also begin with a pause. The next state, or the reason of the
        // state found, tells which it is.
        for at in 0..states.len() {
            if states.get(at) == Some(&OperState::Paused) {
                states[at] = match states.get(at + 1).copied().or(now) {
                    Some(OperState::Suspended | OperState::Suspending) => OperState::Suspending,
                    Some(state @ (OperState::Migrating | OperState::Crashed)) => state,
                    _ => OperState::Paused,
                };
            }
        }
        match states.last().copied().or_else(|| now.filter(|state| is_leaving(*state))) {
            Some(state) if is_leaving(state) => drop(self.leaving.insert(uuid, state)),
            Some(_) => drop(self.leaving.remove(&uuid)),
            None => {}
        }
        if states.last() == Some(&OperState::Paused) && is_unexplained {
            // The state found is reported if no event follows.
            states.pop();
            self.unexplained.insert(uuid);
        }
        // A failed start sends the same event as a crashed QEMU, and a save to a file of the user's the same as a managed
        // save. The state found is right.
        if let (
            Some(last @ (OperState::Crashed | OperState::Suspended)),
            Some(OperState::Shutdown),
        ) = (states.last_mut(), now)
        {
            *last = OperState::Shutdown;
        }
        let mut happened: Vec<_> = states.into_iter().map(ChangeEvent::State).collect();
        if let Some(at) = deleted {
            happened.insert(at, ChangeEvent::Deleted);
        }
        happened
    }
}

/// Whether the QEMU of a domain in this state ends, and the domain does not.
const fn is_leaving(state: OperState) -> bool {
    matches!(state, OperState::Suspending | OperState::Migrating)
}

/// Whether an event is the end of a QEMU whose domain was saved or migrated.
fn is_left_behind((event, detail): (c_int, c_int)) -> bool {
    let [event, detail] = [event, detail].map(|number| u32::try_from(number).unwrap_or(u32::MAX));
    event == sys::VIR_DOMAIN_EVENT_STOPPED
        && (detail == sys::VIR_DOMAIN_EVENT_STOPPED_SAVED
            || detail == sys::VIR_DOMAIN_EVENT_STOPPED_MIGRATED)
}

/// Whether these events change the state of an active domain and nothing else: it was paused or goes on.
pub(super) fn are_pauses(events: &[(c_int, c_int)]) -> bool {
    let is_pause = |(event, _): &(c_int, c_int)| {
        u32::try_from(*event).is_ok_and(|event| {
            event == sys::VIR_DOMAIN_EVENT_SUSPENDED || event == sys::VIR_DOMAIN_EVENT_RESUMED
        })
    };
    !events.is_empty() && events.iter().all(is_pause)
}

/// The state that a life-cycle event leads to; `None` = it changes no state. An event alone says less than a state with its
/// reason: see [`Transitions::apply`].
fn of_event(event: c_int, detail: c_int) -> Option<OperState> {
    let [event, detail] = [event, detail].map(|number| u32::try_from(number).unwrap_or(u32::MAX));
    Some(match event {
        sys::VIR_DOMAIN_EVENT_STARTED if detail == sys::VIR_DOMAIN_EVENT_STARTED_RESTORED => {
            OperState::Resuming
        }
        // Incoming migration.
        sys::VIR_DOMAIN_EVENT_STARTED if detail == sys::VIR_DOMAIN_EVENT_STARTED_MIGRATED => {
            OperState::Migrating
        }
        sys::VIR_DOMAIN_EVENT_STARTED | sys::VIR_DOMAIN_EVENT_RESUMED => OperState::Running,
        sys::VIR_DOMAIN_EVENT_SUSPENDED => match detail {
            sys::VIR_DOMAIN_EVENT_SUSPENDED_MIGRATED
            | sys::VIR_DOMAIN_EVENT_SUSPENDED_POSTCOPY
            | sys::VIR_DOMAIN_EVENT_SUSPENDED_POSTCOPY_FAILED => OperState::Migrating,
            _ => OperState::Paused,
        },
        sys::VIR_DOMAIN_EVENT_STOPPED => match detail {
            // QEMU has exited without being asked to.
            sys::VIR_DOMAIN_EVENT_STOPPED_CRASHED | sys::VIR_DOMAIN_EVENT_STOPPED_FAILED => {
                OperState::Crashed
            }
            sys::VIR_DOMAIN_EVENT_STOPPED_SAVED => OperState::Suspended,
            _ => OperState::Shutdown,
        },
        sys::VIR_DOMAIN_EVENT_SHUTDOWN => OperState::Shuttingdown,
        sys::VIR_DOMAIN_EVENT_PMSUSPENDED => OperState::Paused,
        sys::VIR_DOMAIN_EVENT_CRASHED => OperState::Crashed,
        _ => return None,
    })
}
