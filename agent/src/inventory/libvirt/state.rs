//! The MIB's states out of libvirt's state *and* its reason.

use std::ffi::c_int;

use virt::{
    domain::{
        DomainPausedReason as Paused, DomainShutoffReason as Shutoff, DomainState, DomainStateEnum,
        DomainStateReason as Reason, DomainStateReasonEnum,
    },
    enumutil::Enum,
    sys,
};

use super::super::{AdminState, OperState};

/// What is asked of a domain, and what it does. `has_managed_save`: its memory waits in a file.
pub(super) fn of(
    state: DomainStateEnum,
    reason: DomainStateReasonEnum,
    has_managed_save: bool,
) -> (AdminState, OperState) {
    match state.unwrap_or(DomainState::NoState) {
        DomainState::NoState => (AdminState::Running, OperState::Unknown),
        // Blocked: it waits for something, as a running guest often does.
        DomainState::Running | DomainState::Blocked => (AdminState::Running, OperState::Running),
        DomainState::Paused => match reason {
            Enum::Known(Reason::Paused(reason)) => paused(reason.unwrap_or(Paused::Unknown)),
            _ => (AdminState::Paused, OperState::Paused),
        },
        DomainState::Shutdown => (AdminState::Shutdown, OperState::Shuttingdown),
        DomainState::Shutoff if has_managed_save => (AdminState::Suspended, OperState::Suspended),
        DomainState::Shutoff => match reason {
            Enum::Known(Reason::Shutoff(reason))
                if reason.is_known_and(|r| r == Shutoff::Crashed) =>
            {
                (AdminState::Shutdown, OperState::Crashed)
            }
            _ => (AdminState::Shutdown, OperState::Shutdown),
        },
        DomainState::Crashed => (AdminState::Running, OperState::Crashed),
        // Its memory stays where it is.
        DomainState::PMSuspended => (AdminState::Paused, OperState::Paused),
    }
}

/// The state that a life-cycle event leads to; `None` = the event is about something else. An event of its own
/// tells less than a state with its reason: see [`through`].
fn of_event(event: u32, detail: u32) -> Option<OperState> {
    Some(match event {
        sys::VIR_DOMAIN_EVENT_STARTED if detail == sys::VIR_DOMAIN_EVENT_STARTED_RESTORED => {
            OperState::Resuming
        }
        // A process that waits for a VM to arrive.
        sys::VIR_DOMAIN_EVENT_STARTED if detail == sys::VIR_DOMAIN_EVENT_STARTED_MIGRATED => {
            OperState::Preparing
        }
        sys::VIR_DOMAIN_EVENT_STARTED | sys::VIR_DOMAIN_EVENT_RESUMED => OperState::Running,
        sys::VIR_DOMAIN_EVENT_SUSPENDED => match detail {
            sys::VIR_DOMAIN_EVENT_SUSPENDED_MIGRATED
            | sys::VIR_DOMAIN_EVENT_SUSPENDED_POSTCOPY
            | sys::VIR_DOMAIN_EVENT_SUSPENDED_POSTCOPY_FAILED => OperState::Migrating,
            _ => OperState::Paused,
        },
        sys::VIR_DOMAIN_EVENT_STOPPED => match detail {
            sys::VIR_DOMAIN_EVENT_STOPPED_CRASHED => OperState::Crashed,
            sys::VIR_DOMAIN_EVENT_STOPPED_SAVED => OperState::Suspended,
            _ => OperState::Shutdown,
        },
        sys::VIR_DOMAIN_EVENT_SHUTDOWN => OperState::Shuttingdown,
        sys::VIR_DOMAIN_EVENT_PMSUSPENDED => OperState::Paused,
        sys::VIR_DOMAIN_EVENT_CRASHED => OperState::Crashed,
        _ => return None,
    })
}

/// The states that a domain went through by its life-cycle events, in order. `now` is what was found after
/// them; it may be ahead of events that still wait.
pub(super) fn through(events: &[(c_int, c_int)], now: Option<OperState>) -> Vec<OperState> {
    let unsigned = |number: c_int| u32::try_from(number).unwrap_or(u32::MAX);
    let mut states: Vec<OperState> = events
        .iter()
        .filter_map(|&(event, detail)| of_event(unsigned(event), unsigned(detail)))
        .collect();
    // A pause is also the beginning of a save or a migration, which the reason tells, or what follows.
    for at in 0..states.len() {
        if states.get(at) != Some(&OperState::Paused) {
            continue;
        }
        let next = states.get(at + 1).copied().or(now);
        let truth = match next {
            Some(OperState::Suspended | OperState::Suspending) => OperState::Suspending,
            Some(state @ (OperState::Migrating | OperState::Preparing)) => state,
            _ => OperState::Paused,
        };
        states[at] = truth;
    }
    states
}

const fn paused(reason: Paused) -> (AdminState, OperState) {
    match reason {
        Paused::Migration | Paused::PostCopy | Paused::PostCopyFailed => {
            (AdminState::Running, OperState::Migrating)
        }
        Paused::Save => (AdminState::Suspended, OperState::Suspending),
        Paused::StartingUp => (AdminState::Running, OperState::Preparing),
        Paused::Crashed => (AdminState::Running, OperState::Crashed),
        Paused::ShuttingDown => (AdminState::Shutdown, OperState::Shuttingdown),
        Paused::Unknown
        | Paused::User
        | Paused::Dump
        | Paused::IOError
        | Paused::Watchdog
        | Paused::FromSnapshot
        | Paused::Snapshot
        | Paused::APIError => (AdminState::Paused, OperState::Paused),
    }
}

#[cfg(test)]
mod tests {
    use virt::domain::DomainNoStateReason;

    use super::*;

    #[test]
    fn states_and_reasons() {
        use AdminState as A;
        use OperState as O;
        let reason_of = |state: DomainState, reason: u32| match state {
            DomainState::Paused => Reason::Paused(Enum::from_raw(reason)),
            DomainState::Shutoff => Reason::Shutoff(Enum::from_raw(reason)),
            _ => Reason::NoState(Enum::Known(DomainNoStateReason::Unknown)),
        };
        for (state, reason, saved, expected) in [
            (DomainState::NoState, 0, false, (A::Running, O::Unknown)),
            (DomainState::Running, 0, false, (A::Running, O::Running)),
            (DomainState::Blocked, 0, false, (A::Running, O::Running)),
            (DomainState::Paused, sys::VIR_DOMAIN_PAUSED_USER, false, (A::Paused, O::Paused)),
            (
                DomainState::Paused,
                sys::VIR_DOMAIN_PAUSED_MIGRATION,
                false,
                (A::Running, O::Migrating),
            ),
            (
                DomainState::Paused,
                sys::VIR_DOMAIN_PAUSED_SAVE,
                false,
                (A::Suspended, O::Suspending),
            ),
            (
                DomainState::Paused,
                sys::VIR_DOMAIN_PAUSED_STARTING_UP,
                false,
                (A::Running, O::Preparing),
            ),
            (DomainState::Paused, sys::VIR_DOMAIN_PAUSED_CRASHED, false, (A::Running, O::Crashed)),
            (DomainState::Paused, 4711, false, (A::Paused, O::Paused)),
            (DomainState::Shutdown, 0, false, (A::Shutdown, O::Shuttingdown)),
            (
                DomainState::Shutoff,
                sys::VIR_DOMAIN_SHUTOFF_SAVED,
                true,
                (A::Suspended, O::Suspended),
            ),
            (
                DomainState::Shutoff,
                sys::VIR_DOMAIN_SHUTOFF_CRASHED,
                false,
                (A::Shutdown, O::Crashed),
            ),
            (
                DomainState::Shutoff,
                sys::VIR_DOMAIN_SHUTOFF_DESTROYED,
                false,
                (A::Shutdown, O::Shutdown),
            ),
            (DomainState::Crashed, 0, false, (A::Running, O::Crashed)),
            (DomainState::PMSuspended, 0, false, (A::Paused, O::Paused)),
        ] {
            let seen = of(Enum::Known(state), Enum::Known(reason_of(state, reason)), saved);
            assert_eq!(seen, expected, "{state:?} {reason}");
        }
    }

    #[test]
    fn a_domain_goes_through_the_states_of_its_events() {
        use OperState as O;
        const STARTED: c_int = 2;
        const SUSPENDED: c_int = 3;
        const RESUMED: c_int = 4;
        const STOPPED: c_int = 5;
        for (events, now, expected) in [
            (&[(STARTED, 0)][..], Some(O::Running), &[O::Running][..]),
            (&[(SUSPENDED, 0)], Some(O::Paused), &[O::Paused]),
            (&[(SUSPENDED, 0)], Some(O::Suspending), &[O::Suspending]),
            (&[(SUSPENDED, 0), (RESUMED, 0)], Some(O::Running), &[O::Paused, O::Running]),
            // Managed save, and its way back.
            (&[(SUSPENDED, 0), (STOPPED, 4)], Some(O::Suspended), &[O::Suspending, O::Suspended]),
            (&[(STARTED, 2), (RESUMED, 0)], Some(O::Running), &[O::Resuming, O::Running]),
            (&[(SUSPENDED, 1), (STOPPED, 3)], Some(O::Shutdown), &[O::Migrating, O::Shutdown]),
            (&[(STOPPED, 2)], None, &[O::Crashed]),
            (&[(6, 0), (STOPPED, 0)], Some(O::Shutdown), &[O::Shuttingdown, O::Shutdown]),
            (&[(0, 0), (1, 0), (99, 0), (-1, -1)], None, &[]),
        ] {
            assert_eq!(through(events, now), expected, "{events:?}");
        }
    }
}
