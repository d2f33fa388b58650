//! Maps libvirt's state *and* its reason to vmAdminState and vmOperState.

use virt::{
    domain::{
        DomainPausedReason as Paused, DomainShutoffReason as Shutoff, DomainState, DomainStateEnum,
        DomainStateReason as Reason, DomainStateReasonEnum,
    },
    enumutil::Enum,
};

use crate::inventory::{AdminState, FoundState, OperState};

/// The state in which a domain was found. `has_managed_save`: libvirt has a file with the domain's saved memory.
pub(super) fn found(
    state: DomainStateEnum,
    reason: DomainStateReasonEnum,
    has_managed_save: bool,
) -> FoundState {
    let (admin_state, oper_state) = mib_states(state, reason, has_managed_save);
    FoundState { admin_state, oper_state, is_unexplained: is_unexplained(reason) }
}

/// Whether a domain in this state is active; `None` = the state does not say.
pub(super) fn is_active(state: DomainStateEnum) -> Option<bool> {
    match state.unwrap_or(DomainState::NoState) {
        DomainState::Running
        | DomainState::Blocked
        | DomainState::Paused
        | DomainState::Shutdown
        | DomainState::PMSuspended => Some(true),
        DomainState::Shutoff => Some(false),
        DomainState::NoState | DomainState::Crashed => None,
    }
}

/// The administrative and the operational state. `has_managed_save`: libvirt has a file with the domain's saved memory.
fn mib_states(
    state: DomainStateEnum,
    reason: DomainStateReasonEnum,
    has_managed_save: bool,
) -> (AdminState, OperState) {
    match state.unwrap_or(DomainState::NoState) {
        DomainState::NoState => (AdminState::Running, OperState::Unknown),
        // Blocked: the guest is idle or waits for I/O.
        DomainState::Running | DomainState::Blocked => (AdminState::Running, OperState::Running),
        DomainState::Paused => match reason {
            Enum::Known(Reason::Paused(reason)) => paused(reason.unwrap_or(Paused::Unknown)),
            _ => (AdminState::Running, OperState::Paused),
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
        // Suspended to RAM by its own guest: the memory is resident.
        DomainState::PMSuspended => (AdminState::Running, OperState::Paused),
    }
}

/// Whether a domain is paused for a reason that libvirt does not know yet: QEMU has paused it.
fn is_unexplained(reason: DomainStateReasonEnum) -> bool {
    match reason {
        Enum::Known(Reason::Paused(reason)) => reason.is_known_and(|r| r == Paused::Unknown),
        _ => false,
    }
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
        // FromSnapshot: a user has reverted to a snapshot of a paused domain.
        Paused::User | Paused::FromSnapshot => (AdminState::Paused, OperState::Paused),
        // A user has asked for none of these pauses. A snapshot or a dump pauses for its own time, or leaves the domain so
        // when it fails.
        Paused::Unknown
        | Paused::Dump
        | Paused::IOError
        | Paused::Watchdog
        | Paused::Snapshot
        | Paused::APIError => (AdminState::Running, OperState::Paused),
    }
}

#[cfg(test)]
mod tests {
    use virt::{domain::DomainNoStateReason, sys};

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
            (DomainState::Paused, sys::VIR_DOMAIN_PAUSED_UNKNOWN, false, (A::Running, O::Paused)),
            (DomainState::Paused, sys::VIR_DOMAIN_PAUSED_IOERROR, false, (A::Running, O::Paused)),
            (DomainState::Paused, sys::VIR_DOMAIN_PAUSED_WATCHDOG, false, (A::Running, O::Paused)),
            (DomainState::Paused, sys::VIR_DOMAIN_PAUSED_API_ERROR, false, (A::Running, O::Paused)),
            (DomainState::Paused, sys::VIR_DOMAIN_PAUSED_DUMP, false, (A::Running, O::Paused)),
            (DomainState::Paused, sys::VIR_DOMAIN_PAUSED_SNAPSHOT, false, (A::Running, O::Paused)),
            (
                DomainState::Paused,
                sys::VIR_DOMAIN_PAUSED_FROM_SNAPSHOT,
                false,
                (A::Paused, O::Paused),
            ),
            (DomainState::Paused, 4711, false, (A::Running, O::Paused)),
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
            (DomainState::PMSuspended, 0, false, (A::Running, O::Paused)),
        ] {
            let seen = mib_states(Enum::Known(state), Enum::Known(reason_of(state, reason)), saved);
            assert_eq!(seen, expected, "{state:?} {reason}");
        }
    }
}
