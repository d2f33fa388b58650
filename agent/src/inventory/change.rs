//! Changes of state of VMs, in the order in which they happened.

use super::{OperState, Persistence, VmIndex, VmUuid};
use crate::account::Account;

/// What happened to a VM.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Change {
    /// vmIndex; also of a VM that is gone.
    pub index: VmIndex,
    /// vmName.
    pub name: String,
    /// vmUUID.
    pub uuid: Option<VmUuid>,
    /// vmPersistent.
    pub persistence: Persistence,
    /// The account of a VM that is neither root's nor libvirt's: whether it is reported depends on how much else on this account is.
    pub account: Option<Account>,
    /// The state before.
    pub before: OperState,
    /// What it came to.
    pub event: ChangeEvent,
}

/// What a VM came to.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum ChangeEvent {
    /// Another state.
    State(OperState),
    /// The VM was deleted.
    Deleted,
}

/// What the last change of a VM said of it.
#[derive(Clone, Debug)]
pub(super) struct Announced {
    pub(super) name: String,
    pub(super) uuid: Option<VmUuid>,
    pub(super) persistence: Persistence,
    pub(super) account: Option<Account>,
    pub(super) state: OperState,
}

impl Announced {
    /// Goes to a state; the change, if it is another one.
    pub(super) fn go_to(&mut self, index: VmIndex, state: OperState) -> Option<Change> {
        let before = std::mem::replace(&mut self.state, state);
        (before != state).then(|| self.change(index, before, ChangeEvent::State(state)))
    }

    pub(super) fn change(&self, index: VmIndex, before: OperState, event: ChangeEvent) -> Change {
        Change {
            index,
            name: self.name.clone(),
            uuid: self.uuid,
            persistence: self.persistence,
            account: self.account,
            before,
            event,
        }
    }
}
